//! Parts of the tensors as operands of register tiles: read in place where they fit, else packed into scratch.

use super::super::gemm::kernel::{Block, Kernels};
use super::super::gemm::pack::{Part, pack_across, pack_along};
use super::super::{Data, Level};
use super::{Attention, K_BLOCK, MAX_DIM, Q_BLOCK};
use std::ops::Range;

/// A left operand: rows that are broadcast word by word.
#[derive(Clone, Copy)]
pub(super) struct Left {
    pub(super) start: *const u32,
    pub(super) ld: usize,
    pub(super) columns: bool,
    pub(super) halves: bool,
}

/// A right operand: rows that are read in whole registers.
#[derive(Clone, Copy)]
pub(super) struct Right {
    pub(super) start: *const u32,
    pub(super) ld: usize,
}

/// Where a product goes.
pub(super) struct Out<'a> {
    pub(super) to: &'a mut [f32],
    /// Floats from one row to the next.
    pub(super) ld: usize,
    pub(super) accumulate: bool,
}

/// Words of a packed transposed block of keys, of a packed block of keys, and of a packed block of queries.
pub(super) const KEYS: usize = K_BLOCK * MAX_DIM;
pub(super) const QUERIES: usize = Q_BLOCK * MAX_DIM;

/// How the tensors of one call are read.
#[derive(Clone, Copy)]
pub(super) struct Reader {
    pub(super) level: Level,
    pub(super) kernels: Kernels,
    pub(super) dim: usize,
    padded: usize,
}

/// One head's rows of a tensor `[tokens, heads, head_dim]`.
#[derive(Clone)]
pub(super) struct Rows<'a> {
    pub(super) data: Data<'a>,
    pub(super) heads: usize,
    pub(super) head: usize,
    pub(super) rows: Range<usize>,
}

impl Reader {
    pub(super) fn new(args: &Attention<'_>, level: Level) -> Self {
        let pairs = Kernels::bf16(level).filter(|_| matches!(args.q, Data::Bf16(_)));
        let kernels = pairs.unwrap_or_else(|| Kernels::f32(level));
        Self { level, kernels, dim: args.shape.head_dim, padded: args.shape.padded() }
    }

    fn part<'a>(&self, x: &Rows<'a>, along: bool) -> Part<'a> {
        let columns = x.head * self.dim..(x.head + 1) * self.dim;
        let (outer, steps) = if along { (x.rows.clone(), columns) } else { (columns, x.rows.clone()) };
        Part { data: x.data, ld: x.heads * self.dim, along, outer, steps }
    }

    /// Words of the reduction over a head's width.
    pub(super) fn dim_words(&self) -> usize {
        self.dim.div_ceil(self.kernels.per_word)
    }

    /// Rows as a left operand, reduced over the head's width.
    pub(super) fn left(&self, x: &Rows<'_>, packed: &mut [u32]) -> Left {
        let ld = x.heads * self.dim;
        let at = x.rows.start * ld + x.head * self.dim;
        match (x.data, self.kernels.per_word) {
            (Data::F32(s), 1) => Left { start: s[at..].as_ptr().cast(), ld, columns: false, halves: false },
            (Data::Bf16(s), 2) => Left { start: s[at..].as_ptr().cast(), ld, columns: false, halves: true },
            (_, per_word) => {
                pack_along(self.level, &self.part(x, true), per_word, packed);
                Left { start: packed.as_ptr(), ld: self.dim_words(), columns: false, halves: false }
            }
        }
    }

    /// Rows transposed, as a right operand reduced over the head's width: `[head_dim, K_BLOCK]`.
    pub(super) fn transposed(&self, x: &Rows<'_>, packed: &mut [u32]) -> Right {
        pack_across(self.level, &self.part(x, true), self.kernels.per_word, packed, K_BLOCK);
        Right { start: packed.as_ptr(), ld: K_BLOCK }
    }

    /// Rows as a right operand, reduced over the rows: `[rows, head_dim]`.
    pub(super) fn right(&self, x: &Rows<'_>, packed: &mut [u32]) -> Right {
        if let (Data::F32(s), 1, true) = (x.data, self.kernels.per_word, self.dim.is_multiple_of(self.kernels.lanes)) {
            let ld = x.heads * self.dim;
            return Right { start: s[x.rows.start * ld + x.head * self.dim..].as_ptr().cast(), ld };
        }
        pack_across(self.level, &self.part(x, false), self.kernels.per_word, packed, self.padded);
        Right { start: packed.as_ptr(), ld: self.padded }
    }

    /// A matrix of scores `[rows, K_BLOCK]` as a left operand reduced over the first `keys` keys.
    pub(super) fn scores(&self, scores: &[f32], rows: usize, keys: usize, packed: &mut [u32]) -> Left {
        if self.kernels.per_word == 1 {
            return Left { start: scores.as_ptr().cast(), ld: K_BLOCK, columns: false, halves: false };
        }
        let part = Part { data: Data::F32(scores), ld: K_BLOCK, along: true, outer: 0..rows, steps: 0..keys };
        pack_along(self.level, &part, self.kernels.per_word, packed);
        Left { start: packed.as_ptr(), ld: part.words(self.kernels.per_word), columns: false, halves: false }
    }

    /// The transpose of a matrix of scores `[rows, K_BLOCK]` as a left operand reduced over the rows.
    pub(super) fn scores_transposed(&self, scores: &[f32], rows: usize, packed: &mut [u32]) -> Left {
        if self.kernels.per_word == 1 {
            return Left { start: scores.as_ptr().cast(), ld: K_BLOCK, columns: true, halves: false };
        }
        let part = Part { data: Data::F32(scores), ld: K_BLOCK, along: false, outer: 0..K_BLOCK, steps: 0..rows };
        pack_across(self.level, &part, self.kernels.per_word, packed, K_BLOCK);
        Left { start: packed.as_ptr(), ld: K_BLOCK, columns: true, halves: false }
    }

    /// `out[m, n] (+)= a b` over `k` words, n rounded up to whole registers.
    ///
    /// # Safety
    /// The operands have m rows, k words and n columns (rounded up).
    pub(super) unsafe fn multiply(&self, mnk: (usize, usize, usize), a: Left, b: Right, out: &mut Out<'_>) {
        let (m, n, k) = (mnk.0, mnk.1.next_multiple_of(self.kernels.lanes), mnk.2);
        if m == 0 || n == 0 {
            return;
        }
        assert!((m - 1) * out.ld + n <= out.to.len(), "product outside its buffer");
        let block = Block {
            m,
            n,
            k,
            a: a.start,
            lda: a.ld,
            a_columns: a.columns,
            a_halves: a.halves,
            b: b.start,
            ldb: b.ld,
            b_halves: false,
            c: out.to.as_mut_ptr(),
            ldc: out.ld,
            accumulate: out.accumulate,
        };
        // SAFETY: the caller's contract; c was checked; the level is available.
        unsafe { (self.kernels.block)(&block) };
    }

    /// Floats from one row of an accumulator to the next.
    pub(super) fn padded(&self) -> usize {
        self.padded
    }
}
