//! Causal attention over sequences laid end to end, in blocks: never an n x n matrix.
//!
//! FlashAttention-2 (Dao 2023, <https://arxiv.org/abs/2307.08691>) on the register tiles of the matrix products. Blocks
//! of keys and queries lie at fixed places of a sequence, and every sum runs over them in order, so results don't
//! depend on threads. Where the tensors are bf16 and the processor multiplies bf16 pairs, all products do, with f32
//! sums, softmax and statistics.

mod backward;
mod forward;
mod operand;

pub use backward::{attention_backward, attention_backward_workspace};
pub use forward::attention_forward;

use super::Data;
use std::ops::Range;

/// Which heads there are and which tokens see each other.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape<'a> {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` query heads in a row.
    pub kv_heads: usize,
    /// Width of a head: a multiple of 8, at most 256.
    pub head_dim: usize,
    /// A query sees only the last so many keys, its own position included.
    pub window: Option<usize>,
    /// Factor of the scores.
    pub scale: f32,
    /// Borders of the sequences in the queries, from 0 to their number.
    pub cu_q: &'a [u32],
    /// Borders of the sequences in the keys. The last query of a sequence sees its last key.
    pub cu_k: &'a [u32],
}

/// Inputs of attention.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Heads and sequences.
    pub shape: AttentionShape<'a>,
    /// `[queries, heads, head_dim]`
    pub q: Data<'a>,
    /// `[keys, kv_heads, head_dim]`, in q's type.
    pub k: Data<'a>,
    /// `[keys, kv_heads, head_dim]`, in q's type.
    pub v: Data<'a>,
}

/// What the backward pass is given besides the inputs.
#[derive(Clone, Copy, Debug)]
pub struct AttentionGrad<'a> {
    /// The output of the forward pass, in q's type.
    pub o: Data<'a>,
    /// Its log-sum-exp, `[heads, queries]`.
    pub lse: &'a [f32],
    /// The gradient of the output, in q's type.
    pub dout: Data<'a>,
}

/// Queries of a block.
const Q_BLOCK: usize = 64;
/// Keys of a block: two strips of the widest register tiles.
const K_BLOCK: usize = 96;
/// Rows of scores computed together; what lies above the diagonal is skipped in such steps.
const ROWS: usize = 16;
/// Widest head.
const MAX_DIM: usize = 256;

impl AttentionShape<'_> {
    fn queries(&self) -> usize {
        self.cu_q.last().map_or(0, |&n| n as usize)
    }

    fn keys(&self) -> usize {
        self.cu_k.last().map_or(0, |&n| n as usize)
    }

    fn sequences(&self) -> usize {
        self.cu_q.len().saturating_sub(1)
    }

    fn sequence(&self, i: usize) -> Sequence {
        let range = |cu: &[u32]| cu[i] as usize..cu[i + 1] as usize;
        Sequence { q: range(self.cu_q), k: range(self.cu_k), window: self.window.unwrap_or(usize::MAX) }
    }

    /// Head width in whole registers of any level: the row length of f32 accumulators.
    fn padded(&self) -> usize {
        self.head_dim.next_multiple_of(16)
    }

    fn kv_head(&self, head: usize) -> usize {
        head / (self.heads / self.kv_heads)
    }

    fn check(&self) {
        let Self { heads, kv_heads, head_dim, cu_q, cu_k, .. } = *self;
        assert!(kv_heads > 0 && heads.is_multiple_of(kv_heads), "{heads} heads over {kv_heads}");
        assert!(head_dim > 0 && head_dim.is_multiple_of(8) && head_dim <= MAX_DIM, "heads of {head_dim}");
        assert!(cu_q.len() == cu_k.len() && !cu_q.is_empty(), "borders of sequences");
        for cu in [cu_q, cu_k] {
            assert!(cu[0] == 0 && cu.is_sorted(), "borders of sequences");
        }
    }
}

impl Attention<'_> {
    fn check(&self) {
        let shape = &self.shape;
        shape.check();
        assert_eq!(self.q.len(), shape.queries() * shape.heads * shape.head_dim, "queries");
        assert_eq!(self.k.len(), shape.keys() * shape.kv_heads * shape.head_dim, "keys");
        assert_eq!(self.v.len(), self.k.len(), "values");
        let same = |x: &Data<'_>| std::mem::discriminant(x) == std::mem::discriminant(&self.q);
        assert!(same(&self.k) && same(&self.v), "queries, keys and values share one type");
    }
}

/// One sequence: its rows among all queries and all keys.
#[derive(Clone, Debug)]
struct Sequence {
    q: Range<usize>,
    k: Range<usize>,
    window: usize,
}

impl Sequence {
    fn q_blocks(&self) -> usize {
        self.q.len().div_ceil(Q_BLOCK)
    }

    fn k_blocks(&self) -> usize {
        self.k.len().div_ceil(K_BLOCK)
    }

    /// Rows of block `b` among all queries.
    fn q_block(&self, b: usize) -> Range<usize> {
        self.q.start + b * Q_BLOCK..(self.q.start + (b + 1) * Q_BLOCK).min(self.q.end)
    }

    /// Rows of block `b` among all keys.
    fn k_block(&self, b: usize) -> Range<usize> {
        self.k.start + b * K_BLOCK..(self.k.start + (b + 1) * K_BLOCK).min(self.k.end)
    }

    /// Keys, counted from the first of the sequence, that query row `q` sees.
    fn visible(&self, q: usize) -> Range<usize> {
        let end = (q + 1 - self.q.start + self.k.len()).saturating_sub(self.q.len());
        end.saturating_sub(self.window)..end
    }

    /// Keys of a block, counted from its first, that query row `q` sees.
    fn visible_in(&self, q: usize, keys: &Range<usize>) -> Range<usize> {
        let first = keys.start - self.k.start;
        let seen = self.visible(q);
        let clip = |at: usize| at.saturating_sub(first).min(keys.len());
        clip(seen.start)..clip(seen.end)
    }

    /// Key blocks of which some row of a block of queries sees a part.
    fn blocks_seen(&self, rows: &Range<usize>) -> Range<usize> {
        if rows.is_empty() {
            return 0..0;
        }
        let (first, last) = (self.visible(rows.start), self.visible(rows.end - 1));
        first.start / K_BLOCK..last.end.div_ceil(K_BLOCK)
    }
}
