//! Register tiles: the loops in which all arithmetic of matrix products and attention happens.
//!
//! [`Block`] is a product of small matrices inside one thread: A is read by broadcasting single words, B by whole
//! registers, C is f32. Every element of C is one chain of fused multiply-adds in the order of the reduction, whatever
//! tile it falls into; that is why results don't depend on how callers cut a matrix into blocks of rows and columns.

use super::super::Level;
#[cfg(target_arch = "x86_64")]
use super::super::vector::{Avx2, Avx512, Bf16Pairs};
use super::super::vector::{Portable, Vector};

/// `c[m, n] (+)= a[m, k] b[k, n]` on raw words; `n` is a multiple of the level's lanes.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    /// Rows of C.
    pub(crate) m: usize,
    /// Columns of C.
    pub(crate) n: usize,
    /// Words of the reduction.
    pub(crate) k: usize,
    /// Word (i, p) of A lies at `i * lda + p`, or at `p * lda + i` if `a_columns`.
    pub(crate) a: *const u32,
    /// Stride of A in words (in bf16 elements if `a_halves`).
    pub(crate) lda: usize,
    /// A's rows are neighbours in memory.
    pub(crate) a_columns: bool,
    /// `lda` counts 16-bit elements (bf16 rows read in place, two elements a word).
    pub(crate) a_halves: bool,
    /// Word (p, j) of B lies at `p * ldb + j`.
    pub(crate) b: *const u32,
    /// Row stride of B in words (in bf16 elements if `b_halves`).
    pub(crate) ldb: usize,
    /// B is bf16 that is widened as it is read; f32 kernels only.
    pub(crate) b_halves: bool,
    /// Row-major C.
    pub(crate) c: *mut f32,
    /// Row stride of C.
    pub(crate) ldc: usize,
    /// Adds to C instead of overwriting it.
    pub(crate) accumulate: bool,
}

/// Kernels of one instruction set and operand type.
#[derive(Clone, Copy)]
pub(crate) struct Kernels {
    /// Computes a [`Block`].
    ///
    /// Safety: the processor supports the level; all strides and pointers cover the operands; C overlaps neither.
    pub(crate) block: unsafe fn(&Block),
    /// f32 lanes of a register: column counts are rounded up to this.
    pub(crate) lanes: usize,
    /// Elements of the reduction in a word: 2 for bf16 pairs.
    pub(crate) per_word: usize,
}

impl Kernels {
    /// The f32 kernels of a level.
    pub(crate) fn f32(level: Level) -> Self {
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::Avx512Bf16 => {
                Self { block: block_avx512, lanes: Avx512::LANES, per_word: Avx512::PER_WORD }
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => Self { block: block_avx2, lanes: Avx2::LANES, per_word: Avx2::PER_WORD },
            _ => Self { block: block_portable, lanes: Portable::LANES, per_word: Portable::PER_WORD },
        }
    }

    /// The kernels whose both operands are bf16, where the processor multiplies such pairs.
    pub(crate) fn bf16(level: Level) -> Option<Self> {
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16 => {
                Some(Self { block: block_bf16, lanes: Bf16Pairs::LANES, per_word: Bf16Pairs::PER_WORD })
            }
            _ => None,
        }
    }
}

unsafe fn block_portable(b: &Block) {
    // SAFETY: the caller's contract.
    unsafe { run::<Portable>(b) }
}
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn block_avx2(b: &Block) {
    // SAFETY: the caller's contract.
    unsafe { run::<Avx2>(b) }
}
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn block_avx512(b: &Block) {
    // SAFETY: the caller's contract.
    unsafe { run::<Avx512>(b) }
}
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn block_bf16(b: &Block) {
    // SAFETY: the caller's contract.
    unsafe { run::<Bf16Pairs>(b) }
}

/// Bytes from one row and from one word of the reduction of A to the next.
#[derive(Clone, Copy)]
struct Strides {
    row: usize,
    word: usize,
}

#[inline(always)]
unsafe fn run<V: Vector>(b: &Block) {
    let unit = if b.a_halves { 2 } else { 4 };
    let (row, word) = if b.a_columns { (4, b.lda * unit) } else { (b.lda * unit, 4) };
    let strides = Strides { row, word };
    let registers = b.n / V::LANES;
    let mut j = 0;
    while j < registers {
        let width = (registers - j).min(V::NV);
        // SAFETY: the columns named lie inside B and C by the caller's contract.
        unsafe {
            match width {
                3.. => rows::<V, 3>(b, strides, j * V::LANES),
                2 => rows::<V, 2>(b, strides, j * V::LANES),
                _ => rows::<V, 1>(b, strides, j * V::LANES),
            }
        }
        j += width;
    }
}

#[inline(always)]
unsafe fn rows<V: Vector, const W: usize>(b: &Block, strides: Strides, j: usize) {
    let mut i = 0;
    while i < b.m {
        let left = b.m - i;
        // SAFETY: rows i.. lie inside A and C by the caller's contract.
        unsafe {
            if V::MR == 8 && left >= 8 {
                columns::<V, 8, W>(b, strides, i, j);
                i += 8;
            } else if V::MR == 6 && left >= 6 && left != 8 {
                // Eight are two times four: six would leave two, too few chains to fill the units.
                columns::<V, 6, W>(b, strides, i, j);
                i += 6;
            } else if left >= 4 {
                columns::<V, 4, W>(b, strides, i, j);
                i += 4;
            } else if left >= 2 {
                columns::<V, 2, W>(b, strides, i, j);
                i += 2;
            } else {
                columns::<V, 1, W>(b, strides, i, j);
                i += 1;
            }
        }
    }
}

/// Chooses constant addressing where A's rows are neighbours: eight row pointers would cost registers.
#[inline(always)]
unsafe fn columns<V: Vector, const R: usize, const W: usize>(b: &Block, s: Strides, i: usize, j: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        let widens = V::PER_WORD == 1 && b.b_halves;
        match (b.a_columns, widens) {
            (true, false) => tile::<V, R, W, false>(b, Strides { row: 4, word: s.word }, i, j),
            (false, false) => tile::<V, R, W, false>(b, Strides { row: s.row, word: 4 }, i, j),
            (true, true) => tile::<V, R, W, true>(b, Strides { row: 4, word: s.word }, i, j),
            (false, true) => tile::<V, R, W, true>(b, Strides { row: s.row, word: 4 }, i, j),
        }
    }
}

#[inline(always)]
unsafe fn tile<V: Vector, const R: usize, const W: usize, const H: bool>(blk: &Block, s: Strides, i: usize, j: usize) {
    // SAFETY: by the contract of `Kernels::block` all words of rows i..i+R of A, columns j..j+W*LANES of B and the
    // same tile of C exist, and the processor supports V.
    unsafe {
        let c = blk.c.add(i * blk.ldc + j);
        let mut acc = [[V::zero(); W]; R];
        if blk.accumulate {
            for (r, row) in acc.iter_mut().enumerate() {
                for (w, reg) in row.iter_mut().enumerate() {
                    *reg = V::load(c.add(r * blk.ldc + w * V::LANES));
                }
            }
        }
        let mut a = blk.a.cast::<u8>().add(i * s.row);
        let unit = if H { 2 } else { 4 };
        let mut b = blk.b.cast::<u8>().add(j * unit);
        for _ in 0..blk.k {
            let mut bs = [V::zero(); W];
            for (w, reg) in bs.iter_mut().enumerate() {
                let at = b.add(w * V::LANES * unit);
                *reg = if H { V::widened(at.cast(), V::LANES) } else { V::words(at.cast()) };
            }
            for (r, row) in acc.iter_mut().enumerate() {
                let x = V::splat(a.add(r * s.row).cast());
                for (reg, &y) in row.iter_mut().zip(&bs) {
                    *reg = V::fma(x, y, *reg);
                }
            }
            a = a.add(s.word);
            b = b.add(blk.ldb * unit);
        }
        for (r, row) in acc.iter().enumerate() {
            for (w, &reg) in row.iter().enumerate() {
                V::store(c.add(r * blk.ldc + w * V::LANES), reg);
            }
        }
    }
}
