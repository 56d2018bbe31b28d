//! Products with one thin operand, as dot products: LoRA's down projection (8 columns), and decoding (1 row).
//!
//! The long operand's rows run along the reduction and are read once, from where they lie; the thin one (at most
//! [`THIN`] rows) is brought into the same form. Both reading and arithmetic use whole registers along the reduction,
//! where [`super::blocked`] would leave half of its lanes empty or pack a matrix to use it once.

#[cfg(target_arch = "x86_64")]
use super::super::vector::{Avx2, Avx512, Bf16Pairs};
use super::super::vector::{Portable, Vector};
use super::super::{Element, Level, scratch};
use super::pack::{Part, pack_along};
use super::store::{MAX_SIDE, Tile};
use super::{Data, Gemm, Mat, THIN, Task};
use rayon::prelude::*;
use std::ops::Range;

/// Words of the thin operand's rows that are packed at a time.
const SEGMENT: usize = 8192;
/// Rows of the long operand in a task, at most.
const ROWS: usize = MAX_SIDE;
const THIN_WORDS: usize = THIN * SEGMENT;
const _: () = assert!(THIN_WORDS + ROWS * THIN <= scratch::WORDS);
/// Multiply-adds below which waking other threads costs more than it saves.
const SERIAL: usize = 1 << 16;

/// Computes `args`, whose A runs along the reduction with at most [`THIN`] columns in C, or whose B does with at most
/// [`THIN`] rows. There is no second product.
pub(super) fn thin(args: &Gemm<'_>, task: &Task) {
    let by_rows = args.n <= THIN && !args.product.a.trans;
    let (long, thin, rows, count) = if by_rows {
        (args.product.a, args.product.b, args.m, args.n)
    } else {
        (args.product.b, args.product.a, args.n, args.m)
    };
    let thin_along = thin.trans == by_rows;
    let target = if by_rows { task.target } else { task.target.flipped() };
    let work = Work { args, task: Task { target, ..*task }, long, thin, thin_along, count };
    let serial = rows * count * args.product.k <= SERIAL;
    let threads = if serial { 1 } else { rayon::current_num_threads() };
    let step = rows.div_ceil(2 * threads).next_multiple_of(12).min(ROWS);
    let run = |t: usize| scratch::with(|buffer| work.run(t * step..((t + 1) * step).min(rows), buffer));
    if serial {
        (0..rows.div_ceil(step)).for_each(run);
    } else {
        (0..rows.div_ceil(step)).into_par_iter().with_max_len(1).for_each(run);
    }
}

struct Work<'a> {
    args: &'a Gemm<'a>,
    task: Task,
    long: Mat<'a>,
    thin: Mat<'a>,
    /// The thin operand's stored rows run along the reduction.
    thin_along: bool,
    count: usize,
}

/// Dot products of `rows` long rows with `count` thin rows over `elements` of the reduction.
struct Dots {
    long: *const u8,
    /// Bytes from one long row to the next.
    long_stride: usize,
    /// The long rows are bf16 to be widened to f32 words.
    widen: bool,
    thin: *const u8,
    /// Bytes from one thin row to the next.
    thin_stride: usize,
    rows: usize,
    count: usize,
    elements: usize,
    /// `[rows, THIN]`
    sums: *mut f32,
    accumulate: bool,
}

impl Work<'_> {
    fn run(&self, rows: Range<usize>, buffer: &mut [u32]) {
        let (packed, rest) = buffer.split_at_mut(THIN_WORDS);
        let sums: &mut [f32] = bytemuck::cast_slice_mut(&mut rest[..ROWS * THIN]);
        let per_word = self.task.kernels.per_word;
        let k = self.args.product.k;
        let native = match self.thin.data {
            Data::F32(_) => per_word == 1,
            Data::Bf16(_) => per_word == 2,
            Data::F16(_) => false,
        };
        let in_place = native && self.thin_along;
        let segment = if in_place { k.max(1) } else { SEGMENT * per_word };
        for i in 0..k.div_ceil(segment).max(1) {
            let steps = i * segment..((i + 1) * segment).min(k);
            let (thin, thin_stride) = if in_place {
                (row_pointer(self.thin, 0, 0), self.thin.ld * element_bytes(self.thin))
            } else {
                let words = self.pack_thin(steps.clone(), packed);
                (packed.as_ptr().cast(), words * 4)
            };
            let dots = Dots {
                long: row_pointer(self.long, rows.start, steps.start),
                long_stride: self.long.ld * element_bytes(self.long),
                widen: self.long.is_bf16() && per_word == 1,
                thin,
                thin_stride,
                rows: rows.len(),
                count: self.count,
                elements: steps.len(),
                sums: sums.as_mut_ptr(),
                accumulate: i > 0,
            };
            // SAFETY: both operands were checked against their shapes by `gemm`, and the packed one holds whole words
            // of every row; at most ROWS rows of THIN sums are written; the level is available.
            unsafe { dispatch(self.task.level, per_word, &dots) };
        }
        let tile = Tile { at: (rows.start, 0), size: (rows.len(), self.count), ld: THIN, main: sums, second: None };
        // SAFETY: tasks hold disjoint ranges of long rows.
        unsafe { self.task.target.store(self.task.level, self.args, &tile) };
    }

    /// Brings a segment of the thin operand into rows along the reduction; returns their length in words.
    fn pack_thin(&self, steps: Range<usize>, packed: &mut [u32]) -> usize {
        let per_word = self.task.kernels.per_word;
        let Mat { data, ld, .. } = self.thin;
        let part = Part { data, ld, along: self.thin_along, outer: 0..self.count, steps };
        let words = part.words(per_word);
        if self.thin_along {
            pack_along(self.task.level, &part, per_word, packed);
        } else {
            match data {
                Data::F32(s) => turn(s, &part, per_word, packed),
                Data::Bf16(s) => turn(s, &part, per_word, packed),
                Data::F16(s) => turn(s, &part, per_word, packed),
            }
        }
        words
    }
}

fn element_bytes(m: Mat<'_>) -> usize {
    if matches!(m.data, Data::F32(_)) { 4 } else { 2 }
}

fn row_pointer(m: Mat<'_>, row: usize, step: usize) -> *const u8 {
    let at = (row * m.ld + step).min(m.data.len());
    match m.data {
        Data::F32(s) => s[at..].as_ptr().cast(),
        Data::Bf16(s) => s[at..].as_ptr().cast(),
        Data::F16(s) => s[at..].as_ptr().cast(),
    }
}

/// Transposes a thin part whose rows lie across the reduction.
fn turn<T: Element>(src: &[T], part: &Part<'_>, per_word: usize, dst: &mut [u32]) {
    let words = part.words(per_word);
    let count = part.outer.len();
    for p in 0..words {
        let step = part.steps.start + p * per_word;
        let low = &src[step * part.ld..step * part.ld + count];
        for (i, x) in low.iter().enumerate() {
            dst[i * words + p] = if per_word == 1 { x.get().to_bits() } else { x.half_bits() };
        }
        if per_word == 2 && step + 1 < part.steps.end {
            for (i, x) in src[(step + 1) * part.ld..][..count].iter().enumerate() {
                dst[i * words + p] |= x.half_bits() << 16;
            }
        }
    }
}

unsafe fn dispatch(level: Level, per_word: usize, dots: &Dots) {
    // SAFETY: the caller's contract.
    unsafe {
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16 if per_word == 2 => dots_bf16(dots),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::Avx512Bf16 => dots_avx512(dots),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => dots_avx2(dots),
            _ => blocks::<Portable>(dots),
        }
    }
    debug_assert!(per_word == 1 || level == Level::Avx512Bf16);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn dots_avx2(d: &Dots) {
    // SAFETY: the caller's contract.
    unsafe { blocks::<Avx2>(d) }
}
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn dots_avx512(d: &Dots) {
    // SAFETY: the caller's contract.
    unsafe { blocks::<Avx512>(d) }
}
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn dots_bf16(d: &Dots) {
    // SAFETY: the caller's contract.
    unsafe { blocks::<Bf16Pairs>(d) }
}

/// Covers the sums with tiles of R long rows by S thin rows, R * S at most 24 accumulators (8 below AVX-512).
#[inline(always)]
unsafe fn blocks<V: Vector>(d: &Dots) {
    let wide = V::LANES >= 16;
    let mut s = 0;
    while s < d.count {
        let left = d.count - s;
        // SAFETY: thin rows s.. exist as counted here; the rest is the caller's contract.
        unsafe {
            if wide && left >= 8 {
                sweep::<V, 3, 8>(d, s);
                s += 8;
            } else if left >= 4 {
                if wide {
                    sweep::<V, 4, 4>(d, s);
                } else {
                    sweep::<V, 2, 4>(d, s);
                }
                s += 4;
            } else if left >= 2 {
                sweep::<V, 4, 2>(d, s);
                s += 2;
            } else {
                sweep::<V, 8, 1>(d, s);
                s += 1;
            }
        }
    }
}

#[inline(always)]
unsafe fn sweep<V: Vector, const R: usize, const S: usize>(d: &Dots, s: usize) {
    let mut r = 0;
    // SAFETY: rows r.. exist as counted here; the rest is the caller's contract.
    unsafe {
        while r + R <= d.rows {
            tile::<V, R, S>(d, r, s);
            r += R;
        }
        while r < d.rows {
            tile::<V, 1, S>(d, r, s);
            r += 1;
        }
    }
}

#[inline(always)]
unsafe fn tile<V: Vector, const R: usize, const S: usize>(d: &Dots, r: usize, s: usize) {
    let step = V::LANES * V::PER_WORD;
    // SAFETY: R long and S thin rows of `elements` exist from r and s, and so do their sums.
    unsafe {
        let long_bytes = if d.widen { 2 } else { 4 / V::PER_WORD };
        let long = d.long.add(r * d.long_stride);
        let thin = d.thin.add(s * d.thin_stride);
        let mut acc = [[V::zero(); S]; R];
        let mut e = 0;
        while e < d.elements {
            let left = (d.elements - e).min(step);
            let mut ys = [V::zero(); S];
            for (j, y) in ys.iter_mut().enumerate() {
                let at = thin.add(j * d.thin_stride + e * (4 / V::PER_WORD)).cast();
                *y = if left == step { V::words(at) } else { V::partial(at, left) };
            }
            for (i, row) in acc.iter_mut().enumerate() {
                let at = long.add(i * d.long_stride + e * long_bytes);
                let x = if d.widen {
                    V::widened(at.cast(), left)
                } else if left == step {
                    V::words(at.cast())
                } else {
                    V::partial(at.cast(), left)
                };
                for (sum, &y) in row.iter_mut().zip(&ys) {
                    *sum = V::fma(x, y, *sum);
                }
            }
            e += step;
        }
        for (i, row) in acc.iter().enumerate() {
            for (j, &sum) in row.iter().enumerate() {
                let to = d.sums.add((r + i) * THIN + s + j);
                *to = V::sum(sum) + if d.accumulate { *to } else { 0.0 };
            }
        }
    }
}
