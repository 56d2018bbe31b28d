//! The general product: strips of B are packed into this thread's buffer and swept by the rows of A.
//!
//! A task is a range of rows and a few strips of columns. Rows of A that already lie along the reduction in the
//! kernel's own words are read in place; otherwise chunks of A are packed too, and shared by several strips. The
//! reduction is cut at multiples of [`SEGMENT`] words, for every shape and every number of threads alike.

use super::super::scratch;
use super::kernel::Block;
use super::pack::{Part, pack_across, pack_along};
use super::store::Tile;
use super::{Data, Gemm, Mat, Product, Task};
use rayon::prelude::*;
use std::ops::Range;

/// Columns of a packed strip: a multiple of the widest register tile of every level.
const STRIP: usize = 48;
/// Words of the reduction packed at a time.
const SEGMENT: usize = 256;
/// Rows of A that are packed, multiplied and stored together.
const CHUNK: usize = 64;
/// Most rows of a task. Where the reduction takes several passes their sums are kept between them, in a space that
/// holds so many rows of one strip, or fewer of several.
const ROWS: usize = 512;
/// Strips that share a packed chunk of A.
const SHARED_STRIPS: usize = 4;
/// Segments of all strips that are packed at once.
const SLOTS: usize = 8;
/// Up to this many rows B is read in place where it lies across the reduction: packing would cost as much.
const FEW_ROWS: usize = 16;
/// Multiply-adds below which waking other threads costs more than it saves.
const SERIAL: usize = 1 << 17;

const B_WORDS: usize = SLOTS * SEGMENT * STRIP;
const A_WORDS: usize = CHUNK * SEGMENT;
const SUM_WORDS: usize = ROWS * STRIP;
const _: () = assert!(B_WORDS + A_WORDS + 2 * SUM_WORDS <= scratch::WORDS);

/// Computes `args` into the task's target.
pub(super) fn blocked(args: &Gemm<'_>, task: &Task) {
    let strips = args.n.div_ceil(STRIP);
    let per_task = if in_place(&args.product, task.kernels.per_word) { 1 } else { SHARED_STRIPS.min(strips) };
    let groups = strips.div_ceil(per_task);
    let serial = args.m * args.n * args.product.k <= SERIAL;
    let threads = if serial { 1 } else { rayon::current_num_threads() };
    // Enough tasks for every thread, by halving rows; the sums don't depend on it.
    let one_pass = segments(args, task.kernels.per_word).count() <= SLOTS / per_task;
    // Sums are kept in whole chunks of rows, for each strip.
    let most = if one_pass { ROWS } else { ROWS / per_task / CHUNK * CHUNK };
    let mut rows = most.min(args.m.next_multiple_of(CHUNK));
    while rows > CHUNK && groups * args.m.div_ceil(rows) < 2 * threads && threads > groups {
        rows = (rows / 2).next_multiple_of(CHUNK);
    }
    let blocks = args.m.div_ceil(rows);
    let run = |t: usize| {
        let (group, block) = (t / blocks, t % blocks);
        let strips = group * per_task..((group + 1) * per_task).min(strips);
        let rows = block * rows..((block + 1) * rows).min(args.m);
        scratch::with(|buffer| Work { args, task, rows, strips }.run(buffer));
    };
    if serial {
        (0..groups * blocks).for_each(run);
    } else {
        (0..groups * blocks).into_par_iter().with_max_len(1).for_each(run);
    }
}

/// Whether rows of A can be broadcast from where they lie.
fn in_place(p: &Product<'_>, per_word: usize) -> bool {
    let native = match p.a.data {
        Data::F32(_) => per_word == 1,
        Data::Bf16(_) => per_word == 2 && p.k.is_multiple_of(2),
        // Its words are no floats of the kernel's.
        Data::F16(_) => false,
    };
    native && !p.a.trans
}

/// Part of the reduction of one product.
#[derive(Clone)]
struct Segment<'a> {
    product: &'a Product<'a>,
    second: bool,
    steps: Range<usize>,
}

/// A rectangle of C that one thread computes.
struct Work<'a> {
    args: &'a Gemm<'a>,
    task: &'a Task,
    rows: Range<usize>,
    strips: Range<usize>,
}

/// Where the words of an operand are: start, stride, whether A's rows are neighbours, and whether the stride counts
/// bf16 elements.
struct Operand {
    start: *const u32,
    ld: usize,
    columns: bool,
    halves: bool,
}

/// The reductions of both products, in order; each has a segment even if it is empty.
fn segments<'a>(args: &'a Gemm<'a>, per_word: usize) -> impl Iterator<Item = Segment<'a>> + Clone + use<'a> {
    let step = SEGMENT * per_word;
    let cut = move |product: &'a Product<'a>, second| {
        let count = product.k.div_ceil(step).max(1);
        (0..count).map(move |i| Segment { product, second, steps: i * step..product.k.min((i + 1) * step) })
    };
    let second = args.second.as_ref().map(move |p| cut(p, true));
    cut(&args.product, false).chain(second.into_iter().flatten())
}

impl Work<'_> {
    fn run(&self, buffer: &mut [u32]) {
        let (packed, rest) = buffer.split_at_mut(B_WORDS);
        let (chunk_a, rest) = rest.split_at_mut(A_WORDS);
        let sums: &mut [f32] = bytemuck::cast_slice_mut(&mut rest[..2 * SUM_WORDS]);
        let (main, second) = sums.split_at_mut(SUM_WORDS);
        let slots = SLOTS / self.strips.len();
        let all = segments(self.args, self.task.kernels.per_word);
        let total = all.clone().count();
        // With one pass the sums of a chunk are stored at once, and stay in the first-level cache.
        let kept = if total <= slots { CHUNK } else { self.rows.len().next_multiple_of(CHUNK) };
        for pass in (0..total).step_by(slots) {
            let segments = all.clone().skip(pass).take(slots);
            for (slot, segment) in segments.clone().enumerate() {
                for (s, strip) in self.strips.clone().enumerate() {
                    let at = (slot * self.strips.len() + s) * SEGMENT * STRIP;
                    self.pack_strip(&segment, strip, &mut packed[at..at + SEGMENT * STRIP]);
                }
            }
            let last = pass + slots >= total;
            for first in self.rows.clone().step_by(CHUNK) {
                let chunk = first..(first + CHUNK).min(self.rows.end);
                let sums_at = |strip: usize| (strip * kept + (first - self.rows.start) % kept) * STRIP;
                if last {
                    for strip in self.strips.clone() {
                        let columns = self.columns(strip);
                        self.task.target.prefetch((first, columns.start), (chunk.len(), columns.len()));
                    }
                }
                for (slot, segment) in segments.clone().enumerate() {
                    let sums = if segment.second { &mut *second } else { &mut *main };
                    let a = self.operand_a(&segment, chunk.clone(), chunk_a);
                    for (s, strip) in self.strips.clone().enumerate() {
                        let at = (slot * self.strips.len() + s) * SEGMENT * STRIP;
                        let b = self.operand_b(&segment, strip, &packed[at..at + SEGMENT * STRIP]);
                        let c = &mut sums[sums_at(s)..];
                        self.multiply(&segment, chunk.len(), (&a, &b), c, self.width(strip));
                    }
                }
                if last {
                    for (s, strip) in self.strips.clone().enumerate() {
                        self.store(&chunk, strip, &main[sums_at(s)..], &second[sums_at(s)..]);
                    }
                }
            }
        }
    }

    fn columns(&self, strip: usize) -> Range<usize> {
        strip * STRIP..((strip + 1) * STRIP).min(self.args.n)
    }

    /// Columns of a strip, rounded up to whole registers.
    fn width(&self, strip: usize) -> usize {
        self.columns(strip).len().next_multiple_of(self.task.kernels.lanes)
    }

    fn pack_strip(&self, segment: &Segment<'_>, strip: usize, packed: &mut [u32]) {
        if self.b_in_place(segment, strip).is_none() {
            let Mat { data, ld, trans } = segment.product.b;
            let part = Part { data, ld, along: trans, outer: self.columns(strip), steps: segment.steps.clone() };
            pack_across(self.task.level, &part, self.task.kernels.per_word, packed, STRIP);
        }
    }

    /// B's words where they lie, if that serves the kernel.
    fn b_in_place(&self, segment: &Segment<'_>, strip: usize) -> Option<*const u32> {
        let Mat { data, ld, trans: false } = segment.product.b else { return None };
        let columns = self.columns(strip);
        let at = segment.steps.start * ld + columns.start;
        let whole = columns.len() == self.width(strip) && self.task.kernels.per_word == 1;
        if !whole || self.args.m > FEW_ROWS || segment.steps.is_empty() {
            return None;
        }
        match data {
            Data::F32(s) => Some(s[at..].as_ptr().cast()),
            Data::Bf16(s) => Some(s[at..].as_ptr().cast()),
            Data::F16(_) => None,
        }
    }

    fn operand_b(&self, segment: &Segment<'_>, strip: usize, packed: &[u32]) -> Operand {
        let Mat { data, ld, .. } = segment.product.b;
        match self.b_in_place(segment, strip) {
            Some(start) => Operand { start, ld, columns: false, halves: matches!(data, Data::Bf16(_)) },
            None => Operand { start: packed.as_ptr(), ld: STRIP, columns: false, halves: false },
        }
    }

    fn operand_a(&self, segment: &Segment<'_>, rows: Range<usize>, packed: &mut [u32]) -> Operand {
        let per_word = self.task.kernels.per_word;
        let Mat { data, ld, trans } = segment.product.a;
        if in_place(segment.product, per_word) && !segment.steps.is_empty() {
            let at = rows.start * ld + segment.steps.start;
            let start = match data {
                Data::F32(s) => s[at..].as_ptr().cast(),
                Data::Bf16(s) => s[at..].as_ptr().cast(),
                Data::F16(s) => s[at..].as_ptr().cast(),
            };
            return Operand { start, ld, columns: false, halves: per_word == 2 };
        }
        let part = Part { data, ld, along: !trans, outer: rows, steps: segment.steps.clone() };
        if trans {
            pack_across(self.task.level, &part, per_word, packed, CHUNK);
            Operand { start: packed.as_ptr(), ld: CHUNK, columns: true, halves: false }
        } else {
            pack_along(self.task.level, &part, per_word, packed);
            Operand { start: packed.as_ptr(), ld: part.words(per_word), columns: false, halves: false }
        }
    }

    fn multiply(&self, segment: &Segment<'_>, m: usize, (a, b): (&Operand, &Operand), c: &mut [f32], n: usize) {
        let kernels = &self.task.kernels;
        assert!(c.len() >= (m - 1) * STRIP + n, "sums outside their buffer");
        let block = Block {
            m,
            n,
            k: segment.steps.len().div_ceil(kernels.per_word),
            a: a.start,
            lda: a.ld,
            a_columns: a.columns,
            a_halves: a.halves,
            b: b.start,
            ldb: b.ld,
            b_halves: b.halves,
            c: c.as_mut_ptr(),
            ldc: STRIP,
            accumulate: segment.steps.start > 0,
        };
        // SAFETY: the level is available; operands in place were checked against their matrices by `gemm`, packed
        // ones by the packing; the sums were checked above.
        unsafe { (kernels.block)(&block) };
    }

    fn store(&self, chunk: &Range<usize>, strip: usize, main: &[f32], second: &[f32]) {
        let columns = self.columns(strip);
        let second = self.args.second.map(|_| second);
        let (at, size) = ((chunk.start, columns.start), (chunk.len(), columns.len()));
        let tile = Tile { at, size, ld: STRIP, main, second };
        // SAFETY: tasks cover disjoint rectangles of C, and chunks and strips disjoint parts of those.
        unsafe { self.task.target.store(self.task.level, self.args, &tile) };
    }
}
