//! Rows by index: embedding, its gradient, and the rows that have a label.

use super::level::simd;
use super::parallel::{over_rows, part};
use super::{Data, DataMut, Element, Shared, by_type, level};
use rayon::prelude::*;

/// `to[i] = from[index[i]]`, rows of `width` elements, converted if the types differ.
///
/// # Panics
/// If an index is beyond the rows of `from`.
pub fn gather_rows(from: Data<'_>, index: &[u32], to: DataMut<'_>, width: usize) {
    assert_eq!(to.len(), index.len() * width, "gathered rows");
    let level = level();
    by_type!(from: Data => by_type!(to: DataMut => {
        let to = Shared::new(to);
        over_rows(index.len(), width, |r| {
            for i in r {
                let at = index[i] as usize * width;
                // SAFETY: every row belongs to one task.
                convert_row(level, &from[at..at + width], unsafe { part(&to, &(i..i + 1), width) });
            }
        });
    }));
}

/// `to[index[i]] = from[i]`, rows of `width` elements; of equal indices the last counts.
///
/// # Panics
/// If an index is beyond the rows of `to`.
pub fn scatter_rows(from: Data<'_>, index: &[u32], to: DataMut<'_>, width: usize) {
    assert_eq!(from.len(), index.len() * width, "scattered rows");
    let level = level();
    by_type!(from: Data => by_type!(to: DataMut => {
        for (row, &i) in from.chunks_exact(width.max(1)).zip(index) {
            let at = i as usize * width;
            convert_row(level, row, &mut to[at..at + width]);
        }
    }));
}

simd! {
    fn convert_row<X: Element, Y: Element>(from: &[X], to: &mut [Y]) {
        for (x, y) in from.iter().zip(to) {
            *y = Y::put(x.get());
        }
    }
}

/// Columns of one task of a scattered sum.
const COLUMNS: usize = 64;

/// `to[index[i]] += from[i]`, rows of `width` elements, added in the order of `i` whatever the number of threads.
///
/// # Panics
/// If an index is beyond the rows of `to`.
pub fn scatter_add_rows(from: Data<'_>, index: &[u32], to: &mut [f32], width: usize) {
    assert_eq!(from.len(), index.len() * width, "scattered rows");
    let level = level();
    by_type!(from: Data => {
        let to = Shared::new(to);
        (0..width.div_ceil(COLUMNS)).into_par_iter().for_each(|c| {
            let columns = c * COLUMNS..((c + 1) * COLUMNS).min(width);
            for (row, &i) in from.chunks_exact(width).zip(index) {
                // SAFETY: every column belongs to one task.
                let to = unsafe { to.slice(i as usize * width + columns.start, columns.len()) };
                add_row(level, &row[columns.clone()], to);
            }
        });
    });
}

simd! {
    fn add_row<X: Element>(from: &[X], to: &mut [f32]) {
        for (x, y) in from.iter().zip(to) {
            *y += x.get();
        }
    }
}
