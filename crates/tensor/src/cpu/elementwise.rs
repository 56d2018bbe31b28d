//! Sums, products, casts and checks, element by element or a column at a time.

use super::level::simd;
use super::parallel::{over_rows, part, read};
use super::{Data, DataMut, Element, Shared, alike, by_type, level, math};
use rayon::prelude::*;

/// `x += y`.
pub fn add_assign(x: DataMut<'_>, y: Data<'_>) {
    assert_eq!(x.len(), y.len(), "terms of a sum");
    let level = level();
    by_type!(x: DataMut => by_type!(y: Data => {
        let x = Shared::new(x);
        over_rows(y.len(), 1, |r| {
            // SAFETY: ranges of tasks are disjoint.
            add_part(level, unsafe { part(&x, &r, 1) }, read(y, &r, 1));
        });
    }));
}

simd! {
    fn add_part<X: Element, Y: Element>(x: &mut [X], y: &[Y]) {
        for (x, y) in x.iter_mut().zip(y) {
            *x = X::put(x.get() + y.get());
        }
    }
}

/// `x *= factor`.
pub fn scale(x: DataMut<'_>, factor: f32) {
    let level = level();
    by_type!(x: DataMut => {
        let (n, x) = (x.len(), Shared::new(x));
        // SAFETY: ranges of tasks are disjoint.
        over_rows(n, 1, |r| scale_part(level, unsafe { part(&x, &r, 1) }, factor));
    });
}

simd! {
    fn scale_part<X: Element>(x: &mut [X], factor: f32) {
        for x in x {
            *x = X::put(x.get() * factor);
        }
    }
}

/// Copies values, rounding to nearest even where `to` is bf16.
pub fn cast(to: DataMut<'_>, from: Data<'_>) {
    assert_eq!(to.len(), from.len(), "cast");
    let level = level();
    by_type!(to: DataMut => by_type!(from: Data => {
        let to = Shared::new(to);
        over_rows(from.len(), 1, |r| {
            // SAFETY: ranges of tasks are disjoint.
            cast_part(level, unsafe { part(&to, &r, 1) }, read(from, &r, 1));
        });
    }));
}

simd! {
    fn cast_part<X: Element, Y: Element>(to: &mut [X], from: &[Y]) {
        for (x, y) in to.iter_mut().zip(from) {
            *x = X::put(y.get());
        }
    }
}

/// `y[r, c] = x[r, c] factors[c] + bias[c]`.
pub fn scale_columns(x: Data<'_>, factors: &[f32], bias: Option<Data<'_>>, y: DataMut<'_>) {
    let width = factors.len();
    assert!(x.len() == y.len() && x.len().is_multiple_of(width.max(1)), "columns of factors");
    assert!(bias.is_none_or(|b| b.len() == width), "columns of the bias");
    let level = level();
    let bias = bias.unwrap_or(Data::F32(&[]));
    alike!((x: Data, y: DataMut) => by_type!(bias: Data => {
        let (rows, y) = (x.len() / width.max(1), Shared::new(y));
        over_rows(rows, width, |r| {
            // SAFETY: ranges of tasks are disjoint.
            scale_columns_part(level, read(x, &r, width), factors, bias, unsafe { part(&y, &r, width) });
        });
    }));
}

simd! {
    fn scale_columns_part<X: Element, B: Element, Y: Element>(x: &[X], factors: &[f32], bias: &[B], y: &mut [Y]) {
        let width = factors.len();
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
            for ((x, y), f) in x.iter().zip(y.iter_mut()).zip(factors) {
                *y = Y::put(x.get() * f);
            }
            for (y, b) in y.iter_mut().zip(bias) {
                *y = Y::put(y.get() + b.get());
            }
        }
    }
}

/// Columns of one task of a sum over rows: each column is one chain of additions in the order of the rows.
const COLUMNS: usize = 64;

/// `sums[c] += sum over rows of x[r, c]`.
pub fn add_column_sums(x: Data<'_>, sums: &mut [f32]) {
    let width = sums.len();
    assert!(x.len().is_multiple_of(width.max(1)), "columns of sums");
    let level = level();
    by_type!(x: Data => sums.par_chunks_mut(COLUMNS).enumerate().for_each(|(i, sums)| {
        column_sums_part(level, x, (width, i * COLUMNS), sums);
    }));
}

simd! {
    fn column_sums_part<X: Element>(x: &[X], at: (usize, usize), sums: &mut [f32]) {
        for row in x.chunks_exact(at.0) {
            for (s, x) in sums.iter_mut().zip(&row[at.1..]) {
                *s += x.get();
            }
        }
    }
}

/// `sums[c] += (sum over rows of x[r, c] y[r, c]) / norms[c]`: the gradient of DoRA's magnitudes.
pub fn add_column_dots(x: Data<'_>, y: Data<'_>, norms: &[f32], sums: &mut [f32]) {
    let width = sums.len();
    assert!(x.len() == y.len() && norms.len() == width && x.len().is_multiple_of(width.max(1)), "columns of dots");
    let level = level();
    alike!((x: Data, y: Data) => sums.par_chunks_mut(COLUMNS).enumerate().for_each(|(i, sums)| {
        column_dots_part(level, (x, y), (width, i * COLUMNS), norms, sums);
    }));
}

simd! {
    fn column_dots_part<X: Element, Y: Element>(
        xy: (&[X], &[Y]), at: (usize, usize), norms: &[f32], sums: &mut [f32],
    ) {
        let mut dots = [0f32; COLUMNS];
        for (x, y) in xy.0.chunks_exact(at.0).zip(xy.1.chunks_exact(at.0)) {
            let n = sums.len();
            for ((d, x), y) in dots[..n].iter_mut().zip(&x[at.1..]).zip(&y[at.1..]) {
                *d += x.get() * y.get();
            }
        }
        for ((s, d), n) in sums.iter_mut().zip(dots).zip(&norms[at.1..]) {
            *s += d / n;
        }
    }
}

/// The Euclidean norm of each row of `x`, `norms.len()` rows.
pub fn row_norms(x: &[f32], norms: &mut [f32]) {
    let width = x.len() / norms.len().max(1);
    assert_eq!(width * norms.len(), x.len(), "rows of norms");
    let level = level();
    norms.par_iter_mut().enumerate().for_each(|(r, n)| {
        *n = squares_part(level, &x[r * width..(r + 1) * width]).sqrt() as f32;
    });
}

/// Elements whose squares one task sums.
const SQUARES: usize = 1 << 16;

/// Sum of squares in f64, in an order fixed by the length alone.
pub fn sum_of_squares(x: Data<'_>) -> f64 {
    let level = level();
    by_type!(x: Data => pairwise(x, &|part| squares_part(level, part)))
}

/// Adds `f` of fixed parts of `x`, halving in parallel.
fn pairwise<T: Sync>(x: &[T], f: &(impl Fn(&[T]) -> f64 + Sync)) -> f64 {
    if x.len() <= SQUARES {
        return f(x);
    }
    let (left, right) = x.split_at((x.len() / 2).next_multiple_of(SQUARES).min(x.len()));
    let (a, b) = rayon::join(|| pairwise(left, f), || if right.is_empty() { 0.0 } else { pairwise(right, f) });
    a + b
}

simd! {
    fn squares_part<X: Element>(x: &[X]) -> f64 {
        let mut lanes = [0f64; 16];
        let (blocks, rest) = x.as_chunks::<16>();
        for block in blocks {
            for (lane, x) in lanes.iter_mut().zip(block) {
                let x = f64::from(x.get());
                *lane += x * x;
            }
        }
        let rest: f64 = rest.iter().map(|x| f64::from(x.get()).powi(2)).sum();
        lanes.iter().sum::<f64>() + rest
    }
}

/// Whether no element is infinite or NaN.
pub fn all_finite(x: Data<'_>) -> bool {
    let level = level();
    by_type!(x: Data => x.par_chunks(SQUARES).all(|part| finite_part(level, part)))
}

simd! {
    fn finite_part<X: Element>(x: &[X]) -> bool {
        // x * 0 is zero, or NaN where x is infinite or NaN.
        let off = math::sum(x, |x| x * 0.0);
        off == 0.0
    }
}
