//! Packing: parts of a matrix of either type and orientation, brought into words that [`super::kernel`] reads.
//!
//! "Along" and "across" say how the matrix lies in memory relative to the reduction: rows that run along it hold
//! neighbouring reduction elements, rows across it hold one reduction step each.

use super::super::{Data, Element, Level, level::simd, prefetch};
use super::transpose::{Words, transpose};
use std::ops::Range;

/// A rectangle of a stored matrix: `outer` counts columns of B (or rows of A), `steps` elements of the reduction.
#[derive(Clone)]
pub(crate) struct Part<'a> {
    /// The stored elements.
    pub(crate) data: Data<'a>,
    /// Row stride.
    pub(crate) ld: usize,
    /// Rows run along the reduction.
    pub(crate) along: bool,
    /// Which rows of A or columns of B.
    pub(crate) outer: Range<usize>,
    /// Which elements of the reduction.
    pub(crate) steps: Range<usize>,
}

impl Part<'_> {
    /// Words of the reduction.
    pub(crate) fn words(&self, per_word: usize) -> usize {
        self.steps.len().div_ceil(per_word)
    }
}

/// Packs reduction-major: word (p, j) of the part at `dst[p * width + j]`, columns from its own up to `width` zero.
pub(crate) fn pack_across(level: Level, part: &Part<'_>, per_word: usize, dst: &mut [u32], width: usize) {
    assert!(part.outer.len() <= width && part.words(per_word) * width <= dst.len(), "packing buffer too small");
    match part.data {
        Data::F32(s) if part.along => gather_along(level, s, part, per_word, dst, width),
        Data::Bf16(s) if part.along => gather_along(level, s, part, per_word, dst, width),
        Data::F16(s) if part.along => gather_along(level, s, part, per_word, dst, width),
        Data::F32(s) => copy_across(level, s, part, per_word, dst, width),
        Data::Bf16(s) => copy_across(level, s, part, per_word, dst, width),
        Data::F16(s) => copy_across(level, s, part, per_word, dst, width),
    }
}

/// Packs outer-major a part whose rows run along the reduction: word (i, p) at `dst[i * words + p]`.
pub(crate) fn pack_along(level: Level, part: &Part<'_>, per_word: usize, dst: &mut [u32]) {
    let words = part.words(per_word);
    assert!(part.along && part.outer.len() * words <= dst.len(), "packing buffer too small");
    match part.data {
        Data::F32(s) => convert_along(level, s, part, per_word, dst),
        Data::Bf16(s) => convert_along(level, s, part, per_word, dst),
        Data::F16(s) => convert_along(level, s, part, per_word, dst),
    }
}

/// Rows that are fetched ahead where only a strip of each is read: they lie in different pages.
const AHEAD: usize = 16;

simd! {
    fn copy_across<T: Element>(src: &[T], part: &Part<'_>, per_word: usize, dst: &mut [u32], width: usize) {
        let row = |step: usize| &src[step * part.ld + part.outer.start..step * part.ld + part.outer.end];
        let n = part.outer.len();
        for (p, out) in dst.chunks_exact_mut(width).take(part.words(per_word)).enumerate() {
            let (out, pad) = out.split_at_mut(n);
            pad.fill(0);
            let step = part.steps.start + p * per_word;
            prefetch(src.as_ptr().wrapping_add((step + AHEAD) * part.ld + part.outer.start), n);
            if per_word == 1 {
                for (o, x) in out.iter_mut().zip(row(step)) {
                    *o = x.get().to_bits();
                }
            } else if step + 1 < part.steps.end {
                for ((o, x), y) in out.iter_mut().zip(row(step)).zip(row(step + 1)) {
                    *o = x.half_bits() | (y.half_bits() << 16);
                }
            } else {
                for (o, x) in out.iter_mut().zip(row(step)) {
                    *o = x.half_bits();
                }
            }
        }
    }
}

simd! {
    /// One row of elements as words; an odd last bf16 is paired with zero.
    fn convert_row<T: Element>(src: &[T], per_word: usize, dst: &mut [u32]) {
        if per_word == 1 {
            for (o, x) in dst.iter_mut().zip(src) {
                *o = x.get().to_bits();
            }
        } else {
            let (pairs, last) = src.as_chunks::<2>();
            for (o, [x, y]) in dst.iter_mut().zip(pairs) {
                *o = x.half_bits() | (y.half_bits() << 16);
            }
            if let [x] = last {
                dst[pairs.len()] = x.half_bits();
            }
        }
    }
}

fn convert_along<T: Element>(level: Level, src: &[T], part: &Part<'_>, per_word: usize, dst: &mut [u32]) {
    let words = part.words(per_word);
    for (i, out) in part.outer.clone().zip(dst.chunks_exact_mut(words.max(1))) {
        let row = &src[i * part.ld + part.steps.start..i * part.ld + part.steps.end];
        convert_row(level, row, per_word, out);
    }
}

/// Rows and words staged at a time where elements must be converted before they are transposed.
const STAGE: usize = 16;

fn gather_along<T: Element>(level: Level, src: &[T], part: &Part<'_>, per_word: usize, dst: &mut [u32], width: usize) {
    let (n, words) = (part.outer.len(), part.words(per_word));
    if n < width {
        dst.chunks_exact_mut(width).take(words).for_each(|row| row[n..].fill(0));
    }
    if n == 0 || words == 0 {
        return;
    }
    let at = |row: usize| row * part.ld + part.steps.start;
    let in_place = T::WORDS && size_of::<T>() * per_word == 4 && part.steps.len().is_multiple_of(per_word);
    if in_place {
        assert!(at(part.outer.end - 1) + part.steps.len() <= src.len(), "matrix shorter than its shape");
        let start = src[at(part.outer.start)..].as_ptr().cast();
        let rows = Words { start, stride: part.ld * size_of::<T>() };
        // SAFETY: all rows lie inside `src` and all words inside `dst`, as asserted here and by the caller.
        unsafe { transpose(level, rows, n, words, dst.as_mut_ptr(), width) };
        return;
    }
    let mut stage = [[0u32; STAGE]; STAGE];
    for p in (0..words).step_by(STAGE) {
        let count = (words - p).min(STAGE);
        for j in (0..n).step_by(STAGE) {
            let rows = (n - j).min(STAGE);
            for (r, out) in stage.iter_mut().enumerate().take(rows) {
                let first = at(part.outer.start + j + r);
                let row = &src[first + p * per_word..first + part.steps.len().min((p + count) * per_word)];
                convert_row(level, row, per_word, out);
            }
            let staged = Words { start: stage.as_ptr().cast(), stride: STAGE * 4 };
            // SAFETY: the staged rows and words exist, and `dst` covers rows p.. and columns j.. of the panel.
            unsafe { transpose(level, staged, rows, count, dst.as_mut_ptr().add(p * width + j), width) };
        }
    }
}
