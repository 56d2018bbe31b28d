//! RMSNorm over rows, and its gradient: `y = x r w` with `r = 1 / sqrt(mean(x^2) + eps)`, in f32 inside.

use super::level::simd;
use super::parallel::{over_rows, part, read};
use super::{Data, DataMut, Element, Shared, alike, by_type, level, math};
use rayon::prelude::*;

/// Normalises rows of w's length; `rstd` receives r of each row.
pub fn rmsnorm(x: Data<'_>, w: Data<'_>, eps: f32, y: DataMut<'_>, rstd: &mut [f32]) {
    let width = w.len();
    assert!(x.len() == y.len() && x.len() == width * rstd.len(), "rows of a norm");
    let level = level();
    alike!((x: Data, y: DataMut) => by_type!(w: Data => {
        let (rows, y, rstd) = (rstd.len(), Shared::new(y), Shared::new(rstd));
        over_rows(rows, width, |r| {
            // SAFETY: ranges of tasks are disjoint.
            let (y, rstd) = unsafe { (part(&y, &r, width), part(&rstd, &r, 1)) };
            let x = read(x, &r, width);
            rstd_part(level, x, width, eps, rstd);
            apply_part(level, x, w, rstd, y);
        });
    }));
}

/// The output of [`rmsnorm`] again, from the `rstd` it gave.
pub fn rmsnorm_apply(x: Data<'_>, w: Data<'_>, rstd: &[f32], y: DataMut<'_>) {
    let width = w.len();
    assert!(x.len() == y.len() && x.len() == width * rstd.len(), "rows of a norm");
    let level = level();
    alike!((x: Data, y: DataMut) => by_type!(w: Data => {
        let y = Shared::new(y);
        over_rows(rstd.len(), width, |r| {
            // SAFETY: ranges of tasks are disjoint.
            apply_part(level, read(x, &r, width), w, read(rstd, &r, 1), unsafe { part(&y, &r, width) });
        });
    }));
}

simd! {
    fn rstd_part<X: Element>(x: &[X], width: usize, eps: f32, rstd: &mut [f32]) {
        for (x, r) in x.chunks_exact(width).zip(rstd) {
            let squares = math::sum(x, |x| x * x);
            *r = 1.0 / (squares / width as f32 + eps).sqrt();
        }
    }
}

simd! {
    fn apply_part<X: Element, W: Element, Y: Element>(x: &[X], w: &[W], rstd: &[f32], y: &mut [Y]) {
        for ((x, y), r) in x.chunks_exact(w.len()).zip(y.chunks_exact_mut(w.len())).zip(rstd) {
            for ((x, y), w) in x.iter().zip(y).zip(w) {
                *y = Y::put(x.get() * r * w.get());
            }
        }
    }
}

/// What the gradient is computed from.
#[derive(Clone, Copy, Debug)]
pub struct RmsNormGrad<'a> {
    /// The input, `[rows, width]`.
    pub x: Data<'a>,
    /// The weight, `[width]`.
    pub w: Data<'a>,
    /// What [`rmsnorm`] gave, `[rows]`.
    pub rstd: &'a [f32],
    /// The gradient of the output, `[rows, width]`, in x's type.
    pub dy: Data<'a>,
}

/// Rows whose part of the weight's gradient is summed by one task: at least so many, in at most so many parts.
const ROWS: usize = 64;
const PARTS: usize = 256;

fn part_rows(rows: usize) -> usize {
    rows.div_ceil(PARTS).max(ROWS)
}

/// Floats of workspace that [`rmsnorm_backward`] needs.
pub fn rmsnorm_backward_workspace(rows: usize, width: usize, weight_grad: bool) -> usize {
    if weight_grad { rows.div_ceil(part_rows(rows)) * width } else { 0 }
}

/// Writes `dx = r (w dy - x r^2 mean(w dy x))` in x's type and, if wanted, adds `sum over rows of dy x r` to `dw`.
pub fn rmsnorm_backward(g: &RmsNormGrad<'_>, dx: DataMut<'_>, dw: Option<&mut [f32]>, work: &mut [f32]) {
    let (width, rows) = (g.w.len(), g.rstd.len());
    assert!(g.x.len() == width * rows && g.dy.len() == g.x.len() && dx.len() == g.x.len(), "rows of a norm");
    let level = level();
    let RmsNormGrad { x, w, dy, rstd } = *g;
    alike!((x: Data, dy: Data, dx: DataMut) => by_type!(w: Data => {
        let dx = Shared::new(dx);
        over_rows(rows, width, |r| {
            // SAFETY: ranges of tasks are disjoint.
            let dx = unsafe { part(&dx, &r, width) };
            dx_part(level, (read(x, &r, width), read(dy, &r, width)), w, read(rstd, &r, 1), dx);
        });
    }));
    let Some(dw) = dw else { return };
    assert!(dw.len() == width && work.len() >= rmsnorm_backward_workspace(rows, width, true), "weight gradient");
    if rows == 0 || width == 0 {
        return;
    }
    let step = part_rows(rows);
    let parts = &mut work[..rows.div_ceil(step) * width];
    alike!((x: Data, dy: Data) => {
        parts.par_chunks_mut(width).enumerate().for_each(|(i, sums)| {
            let r = i * step..((i + 1) * step).min(rows);
            dw_part(level, (read(x, &r, width), read(dy, &r, width)), read(rstd, &r, 1), sums);
        });
    });
    for sums in parts.chunks_exact(width) {
        dw.iter_mut().zip(sums).for_each(|(d, s)| *d += s);
    }
}

simd! {
    fn dx_part<X: Element, G: Element, W: Element, D: Element>(
        xdy: (&[X], &[G]), w: &[W], rstd: &[f32], dx: &mut [D],
    ) {
        let n = w.len();
        let rows = xdy.0.chunks_exact(n).zip(xdy.1.chunks_exact(n)).zip(dx.chunks_exact_mut(n)).zip(rstd);
        for (((x, dy), dx), &r) in rows {
            let dot = math::dot3(x, dy, w);
            let pull = r * r * (dot / n as f32);
            for (((x, dy), w), dx) in x.iter().zip(dy).zip(w).zip(dx) {
                *dx = D::put(r * (w.get() * dy.get() - x.get() * pull));
            }
        }
    }
}

simd! {
    fn dw_part<X: Element, G: Element>(xdy: (&[X], &[G]), rstd: &[f32], sums: &mut [f32]) {
        let n = sums.len();
        sums.fill(0.0);
        for ((x, dy), r) in xdy.0.chunks_exact(n).zip(xdy.1.chunks_exact(n)).zip(rstd) {
            for ((x, dy), s) in x.iter().zip(dy).zip(&mut *sums) {
                *s += dy.get() * (x.get() * r);
            }
        }
    }
}
