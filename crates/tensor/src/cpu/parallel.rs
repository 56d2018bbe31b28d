//! Cutting flat work for rayon at fixed places: results never depend on the number of threads.

use super::Shared;
use rayon::prelude::*;
use std::ops::Range;

/// Elements of a task of elementwise work: some tens of microseconds.
const CHUNK: usize = 1 << 15;

/// Runs `f` over ranges of rows of `width` elements, in parallel if there is enough work.
pub(crate) fn over_rows(rows: usize, width: usize, f: impl Fn(Range<usize>) + Sync) {
    let step = (CHUNK / width.max(1)).max(1);
    let run = |i: usize| f(i * step..((i + 1) * step).min(rows));
    let tasks = rows.div_ceil(step);
    if tasks <= 1 {
        (0..tasks).for_each(run);
    } else {
        (0..tasks).into_par_iter().for_each(run);
    }
}

/// Elements of rows `rows` of `width` elements of a shared slice.
///
/// # Safety
/// No other live reference covers them: what [`over_rows`] gives to different tasks never overlaps.
#[expect(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
pub(crate) unsafe fn part<'a, T>(all: &'a Shared<T>, rows: &Range<usize>, width: usize) -> &'a mut [T] {
    // SAFETY: the caller's promise.
    unsafe { all.slice(rows.start * width, rows.len() * width) }
}

/// The same rows of a slice that is only read.
pub(crate) fn read<'a, T>(all: &'a [T], rows: &Range<usize>, width: usize) -> &'a [T] {
    &all[rows.start * width..rows.end * width]
}
