//! Rotary position embedding in place, Hugging Face's convention: a head's first half is rotated with its second half.

use super::level::simd;
use super::parallel::{over_rows, part, read};
use super::{DataMut, Element, Shared, by_type, level};

/// Rotates every head of `x`, `[rows, heads * head_dim]`, by the angles of its row, whose cosines and sines are
/// `[rows, head_dim / 2]`; with `back` by the negative angles, which is the gradient.
pub fn rope(x: DataMut<'_>, cos: &[f32], sin: &[f32], head_dim: usize, back: bool) {
    let half = head_dim / 2;
    assert!(head_dim > 0 && head_dim.is_multiple_of(2), "heads of {head_dim} have no halves");
    let rows = cos.len() / half;
    assert!(sin.len() == cos.len() && cos.len() == rows * half, "tables of cosines and sines");
    if rows == 0 {
        return;
    }
    let width = x.len() / rows;
    assert!(x.len() == rows * width && width.is_multiple_of(head_dim), "rows of heads");
    let level = level();
    let sign = if back { -1.0 } else { 1.0 };
    by_type!(x: DataMut => {
        let x = Shared::new(x);
        over_rows(rows, width, |r| {
            // SAFETY: ranges of tasks are disjoint.
            let x = unsafe { part(&x, &r, width) };
            rope_part(level, x, width, (read(cos, &r, half), read(sin, &r, half)), half, sign);
        });
    });
}

simd! {
    fn rope_part<X: Element>(x: &mut [X], width: usize, table: (&[f32], &[f32]), half: usize, sign: f32) {
        let tables = table.0.chunks_exact(half).zip(table.1.chunks_exact(half));
        for (row, (cos, sin)) in x.chunks_exact_mut(width).zip(tables) {
            for head in row.chunks_exact_mut(2 * half) {
                let (first, second) = head.split_at_mut(half);
                for (((a, b), c), s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                    let (x, y, s) = (a.get(), b.get(), sign * s);
                    *a = X::put(x * c - y * s);
                    *b = X::put(y * c + x * s);
                }
            }
        }
    }
}
