//! `kernels/attention.cu` on matrix instructions, `kernels/attention_plain.cu` for f32 and for heads of other sizes.

use super::{blocks, name, size};
use crate::cuda::gpu::{Arg, Gpu, Shape};
use crate::cuda::images::Image;
use crate::ops::{Heads, SpanTables, Spans};
use crate::{DType, Tensor};

/// What attention needs beside its tensors.
#[derive(Clone, Copy)]
pub(crate) struct AttentionCall<'a> {
    pub(crate) heads: Heads,
    pub(crate) spans: &'a Spans,
    pub(crate) tables: &'a SpanTables,
}

/// Sequence and stretch of 64 rows for each block of the grid's y: the last stretches first, which are the longest.
pub(crate) fn tables(borders: &[u32]) -> Vec<u32> {
    let stretches = borders.windows(2).enumerate().map(|(i, at)| (i as u32, (at[1] - at[0]).div_ceil(64)));
    stretches.flat_map(|(i, count)| (0..count).rev().flat_map(move |stretch| [i, stretch])).collect()
}

/// Elements of workspace of the gradient: a number a query and head.
pub(crate) fn attention_backward_workspace(shape: &crate::cpu::AttentionShape<'_>) -> usize {
    shape.heads * shape.cu_q.last().map_or(0, |n| *n as usize)
}

/// Rows of passing tiles: forward, dq, dk and dv (`kernels/attention.cu`).
fn passing(head_dim: usize) -> [usize; 3] {
    match head_dim {
        64 => [64, 64, 64],
        256 => [32, 16, 32],
        _ => [64, 32, 32],
    }
}

/// Bytes of shared memory of the three kernels.
fn shared(head_dim: usize) -> [u32; 3] {
    let [n, n_q, n_k] = passing(head_dim);
    let held = if head_dim == 256 { 64 } else { 0 };
    [(2 * n + held) * 2 * head_dim, (128 + 2 * n_q) * 2 * head_dim, (128 + 2 * n_k) * 2 * head_dim + 8 * n_k]
        .map(blocks)
}

impl AttentionCall<'_> {
    fn arg(&self, tiles: &Tensor) -> Arg {
        let lists = [&self.tables.q, &self.tables.k, tiles].map(|list| list.address().to_ne_bytes()).concat();
        let window = self.heads.window.map_or(1 << 30, |window| blocks(window).min(1 << 30));
        let words = [self.queries(), self.heads.heads, self.heads.kv_heads].map(blocks);
        let sequences = blocks(self.spans.q.len() - 1);
        let words = [words[0], words[1], words[2], window, self.heads.scale().to_bits(), sequences];
        let mut bytes = [0; 64];
        bytes[..24].copy_from_slice(&lists);
        bytes[24..48].copy_from_slice(&words.map(u32::to_ne_bytes).concat());
        Arg::Struct(bytes)
    }

    fn queries(&self) -> usize {
        self.spans.q.last().map_or(0, |n| *n as usize)
    }

    fn keys(&self) -> usize {
        self.spans.k.last().map_or(0, |n| *n as usize)
    }

    /// Whether matrix instructions can do it: else the plain kernels do.
    fn by_matrices(&self, q: &Tensor) -> bool {
        q.dtype() != DType::F32 && matches!(self.heads.head_dim, 64 | 96 | 128 | 256)
    }
}

/// A warp for each of `items` heads of tokens.
fn a_warp_an_item(items: usize) -> Shape {
    Shape::new([blocks(items.div_ceil(4)), 1, 1], [32, 4, 1])
}

/// Most queries of a sequence that decodes: a warp for each head of each, over a stretch of the keys.
const DECODED: u32 = 8;
/// Keys of a stretch.
const STRETCH: usize = 256;
/// Warps that fill any GPU: keys are split no further.
const WARPS: usize = 1 << 14;

/// Stretches that the keys are split into where a few queries meet a long cache, 1 where they aren't; and the elements of
/// workspace: sums, largest score and denominator of each. A split output has no log-sum-exps, and so no gradient.
pub(crate) fn attention_splits(spans: &Spans, heads: Heads) -> (usize, usize) {
    let lengths = spans.q.windows(2).zip(spans.k.windows(2)).map(|(q, k)| (q[1] - q[0], k[1] - k[0]));
    let lengths: Vec<(u32, u32)> = lengths.filter(|(queries, _)| *queries > 0).collect();
    let items = heads.heads * spans.q.last().map_or(0, |n| *n as usize);
    let longest = lengths.iter().map(|(_, keys)| *keys as usize).max().unwrap_or(0);
    let seen = heads.window.map_or(longest, |window| window.min(longest));
    let decodes = lengths.iter().all(|(queries, _)| *queries <= DECODED);
    let most = WARPS.div_ceil(items.max(1));
    let splits = if decodes { seen.div_ceil(STRETCH).clamp(1, most) } else { 1 };
    (splits, splits * items * (heads.head_dim + 2))
}

impl Gpu {
    /// The output and the log-sum-exps; with `splits` above 1 only the output, by way of `parts`.
    pub(crate) fn attention_forward(
        &self,
        call: &AttentionCall<'_>,
        qkv: [&Tensor; 3],
        [o, lse]: [&Tensor; 2],
        (splits, parts): (usize, Option<&Tensor>),
    ) {
        let (head_dim, tables) = (call.heads.head_dim, call.tables);
        let args = [qkv[0].into(), qkv[1].into(), qkv[2].into(), o.into(), lse.into()];
        if call.by_matrices(o) && splits == 1 {
            let kernel = format!("attention_forward_{}_{head_dim}", name(o));
            let grid = [blocks(call.heads.heads), blocks(tables.q_tiles.numel() / 2), 1];
            let shape = Shape { grid, block: [128, 1, 1], shared: shared(head_dim)[0] };
            return self.launch(Image::Attention, &kernel, shape, &[&args[..], &[call.arg(&tables.q_tiles)]].concat());
        }
        if !head_dim.is_multiple_of(8) || head_dim > 256 {
            return self.lacks(format!("attention with heads of {head_dim}"));
        }
        let rest = [parts.into(), call.arg(&tables.q_tiles), size(head_dim)];
        let items = call.queries() * call.heads.heads;
        let shape = a_warp_an_item(items);
        let split = Shape { grid: [shape.grid[0], blocks(splits), 1], ..shape };
        let kernel = format!("attention_plain_forward_{}", name(o));
        self.launch(Image::AttentionPlain, &kernel, split, &[&args[..], &rest].concat());
        if parts.is_some() {
            let args = [o.into(), parts.into(), size(splits), size(items), size(head_dim)];
            self.launch(Image::AttentionPlain, &format!("attention_combine_{}", name(o)), shape, &args);
        }
    }

    /// The gradients of q, k and v; `delta` is workspace, `[heads, queries]` in f32.
    pub(crate) fn attention_backward(
        &self,
        call: &AttentionCall<'_>,
        [q, k, v, o, lse, dout]: [&Tensor; 6],
        [dq, dk, dv]: [&Tensor; 3],
        delta: &Tensor,
    ) {
        let (head_dim, heads, queries) = (call.heads.head_dim, call.heads.heads, call.queries());
        let numbers = [queries, heads, head_dim].map(size);
        let args = [&[o.into(), dout.into(), delta.into()][..], &numbers].concat();
        let items = a_warp_an_item(queries * heads);
        self.launch(Image::Attention, &format!("attention_delta_{}", name(o)), items, &args);
        let (inputs, of) = ([q, k, v, dout, lse, delta].map(Arg::from), name(q));
        let to_keys = [&inputs[..], &[dk.into(), dv.into()]].concat();
        let to_queries = [&inputs[..], &[dq.into()]].concat();
        let (by_query, by_key) = (call.arg(&call.tables.q_tiles), call.arg(&call.tables.k_tiles));
        if call.by_matrices(q) {
            let [_, queries_shared, keys_shared] = shared(head_dim);
            let block = |threads| [threads, 1, 1];
            let grid = [blocks(heads), blocks(call.tables.q_tiles.numel() / 2), 1];
            let shape = Shape { grid, block: block(128), shared: queries_shared };
            let kernel = format!("attention_backward_queries_{of}_{head_dim}");
            self.launch(Image::Attention, &kernel, shape, &[&to_queries[..], &[by_query]].concat());
            let grid = [blocks(call.heads.kv_heads), blocks(call.tables.k_tiles.numel() / 2), 1];
            let threads = block(if head_dim == 256 { 256 } else { 128 });
            let shape = Shape { grid, block: threads, shared: keys_shared };
            let kernel = format!("attention_backward_keys_{of}_{head_dim}");
            return self.launch(Image::Attention, &kernel, shape, &[&to_keys[..], &[by_key]].concat());
        }
        let width = size(head_dim);
        let args = [&to_queries[..], &[by_query, width]].concat();
        self.launch(Image::AttentionPlain, &format!("attention_plain_backward_queries_{of}"), items, &args);
        let args = [&to_keys[..], &[by_key, width, size(call.keys())]].concat();
        let items = a_warp_an_item(call.keys() * call.heads.kv_heads);
        self.launch(Image::AttentionPlain, &format!("attention_plain_backward_keys_{of}"), items, &args);
    }
}
