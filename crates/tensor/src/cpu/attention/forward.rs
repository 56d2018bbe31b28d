//! The forward pass: a task is a block of queries and the heads that share a key head, swept over blocks of keys.

use super::super::level::simd;
use super::super::{DataMut, Element, Shared, level, math, scratch};
use super::operand::{KEYS, Out, QUERIES, Reader, Rows};
use super::{Attention, K_BLOCK, Q_BLOCK, ROWS, Sequence};
use half::{bf16, f16};
use rayon::prelude::*;
use std::ops::Range;

/// Most heads of a task.
const HEADS: usize = 4;
const _: () = assert!(2 * KEYS + QUERIES + HEADS * (QUERIES + 2 * Q_BLOCK) + 2 * ROWS * K_BLOCK <= scratch::WORDS);

#[derive(Clone, Copy)]
enum Output {
    F32(Shared<f32>),
    Bf16(Shared<bf16>),
    F16(Shared<f16>),
}

/// Writes `o = softmax(scale q k' + mask) v`, `[queries, heads, head_dim]` in its own type, and the logarithm of each
/// softmax's denominator, `lse` `[heads, queries]`.
///
/// A query that sees no key gets zeros and a log-sum-exp of minus infinity.
pub fn attention_forward(args: &Attention<'_>, o: DataMut<'_>, lse: &mut [f32]) {
    args.check();
    let shape = &args.shape;
    assert!(o.len() == args.q.len() && lse.len() == shape.heads * shape.queries(), "output of attention");
    let reader = Reader::new(args, level());
    let o = match o {
        DataMut::F32(s) => Output::F32(Shared::new(s)),
        DataMut::Bf16(s) => Output::Bf16(Shared::new(s)),
        DataMut::F16(s) => Output::F16(Shared::new(s)),
    };
    let lse = Shared::new(lse);
    let blocks: usize = (0..shape.sequences()).map(|i| shape.sequence(i).q_blocks()).sum();
    let group = shape.heads / shape.kv_heads;
    // Heads that share keys share their packing, unless threads would idle.
    let shared = if blocks * shape.kv_heads >= 4 * rayon::current_num_threads() { group.min(HEADS) } else { 1 };
    let parts = group.div_ceil(shared);
    let tasks = blocks * shape.kv_heads * parts;
    let run = |t: usize| {
        // The last blocks of a sequence see most keys: they start first.
        let (block, rest) = (blocks - 1 - t / (shape.kv_heads * parts), t % (shape.kv_heads * parts));
        let (kv_head, part) = (rest / parts, rest % parts);
        let heads = kv_head * group + part * shared..kv_head * group + ((part + 1) * shared).min(group);
        let (sequence, block) = locate(args, block);
        let rows = sequence.q_block(block);
        scratch::with(|buffer| Task { args, reader, sequence, rows, heads, kv_head }.run(buffer, o, lse));
    };
    if tasks > 1 {
        (0..tasks).into_par_iter().with_max_len(1).for_each(run);
    } else {
        (0..tasks).for_each(run);
    }
}

/// The sequence that holds query block `block` of all sequences, and which of its blocks that is.
fn locate(args: &Attention<'_>, mut block: usize) -> (Sequence, usize) {
    for i in 0..args.shape.sequences() {
        let sequence = args.shape.sequence(i);
        if block < sequence.q_blocks() {
            return (sequence, block);
        }
        block -= sequence.q_blocks();
    }
    unreachable!("blocks are counted over the same sequences")
}

struct Task<'a> {
    args: &'a Attention<'a>,
    reader: Reader,
    sequence: Sequence,
    rows: Range<usize>,
    heads: Range<usize>,
    kv_head: usize,
}

/// Running softmax of one head: unnormalised output, maximum and sum of each row.
struct State<'a> {
    o: &'a mut [f32],
    top: &'a mut [f32],
    sum: &'a mut [f32],
}

impl Task<'_> {
    fn run(&self, buffer: &mut [u32], o: Output, lse: Shared<f32>) {
        let (keys, rest) = buffer.split_at_mut(KEYS);
        let (values, rest) = rest.split_at_mut(KEYS);
        let (wide, rest) = rest.split_at_mut(QUERIES);
        let (words, rest) = rest.split_at_mut(ROWS * K_BLOCK);
        let floats: &mut [f32] = bytemuck::cast_slice_mut(rest);
        let (scores, states) = floats.split_at_mut(ROWS * K_BLOCK);
        let size = Q_BLOCK * self.reader.padded();
        let each = size + 2 * Q_BLOCK;
        for state in states.chunks_exact_mut(each).take(self.heads.len()) {
            let state = split_state(state, size);
            state.o.fill(0.0);
            state.top.fill(f32::NEG_INFINITY);
            state.sum.fill(0.0);
        }
        for block in self.sequence.blocks_seen(&self.rows) {
            let seen = self.sequence.k_block(block);
            let shape = &self.args.shape;
            let part = |data| Rows { data, heads: shape.kv_heads, head: self.kv_head, rows: seen.clone() };
            let kt = self.reader.transposed(&part(self.args.k), keys);
            let v = self.reader.right(&part(self.args.v), values);
            for (head, state) in self.heads.clone().zip(states.chunks_exact_mut(each)) {
                let mut state = split_state(state, size);
                for first in self.rows.clone().step_by(ROWS) {
                    let rows = first..(first + ROWS).min(self.rows.end);
                    let q = Rows { data: self.args.q, heads: shape.heads, head, rows: rows.clone() };
                    let n = self.sequence.visible_in(rows.end - 1, &seen).end;
                    let q = self.reader.left(&q, wide);
                    // SAFETY: q has these rows, and kt all keys of the block.
                    unsafe {
                        let mnk = (rows.len(), n, self.reader.dim_words());
                        let mut out = Out { to: &mut *scores, ld: K_BLOCK, accumulate: false };
                        self.reader.multiply(mnk, q, kt, &mut out);
                    }
                    self.soften(&rows, &seen, n, scores, &mut state);
                    let p = self.reader.scores(scores, rows.len(), n, words);
                    let at = (rows.start - self.rows.start) * self.reader.padded();
                    let k = n.div_ceil(self.reader.kernels.per_word);
                    // SAFETY: p has these rows and n keys, v all keys of the block.
                    unsafe {
                        let mnk = (rows.len(), self.reader.dim, k);
                        let mut out = Out { to: &mut state.o[at..], ld: self.reader.padded(), accumulate: true };
                        self.reader.multiply(mnk, p, v, &mut out);
                    }
                }
            }
        }
        for (head, state) in self.heads.clone().zip(states.chunks_exact_mut(each)) {
            self.store(head, &split_state(state, size), o, lse);
        }
    }

    /// Turns scores into unnormalised probabilities and rescales what was summed under a smaller maximum.
    fn soften(&self, rows: &Range<usize>, keys: &Range<usize>, n: usize, scores: &mut [f32], state: &mut State<'_>) {
        let width = self.reader.padded();
        let whole = n.next_multiple_of(math::LANES);
        for (row, p) in rows.clone().zip(scores.chunks_exact_mut(K_BLOCK)) {
            let i = row - self.rows.start;
            let seen = self.sequence.visible_in(row, keys);
            let (top, sum, factor) =
                soften_row(self.reader.level, &mut p[..whole], seen, self.args.shape.scale, state.top[i]);
            state.top[i] = top;
            state.sum[i] = state.sum[i] * factor + sum;
            if factor != 1.0 {
                scale_row(self.reader.level, &mut state.o[i * width..(i + 1) * width], factor);
            }
        }
    }

    fn store(&self, head: usize, state: &State<'_>, o: Output, lse: Shared<f32>) {
        let shape = &self.args.shape;
        let (dim, padded) = (shape.head_dim, self.reader.padded());
        // SAFETY: these queries of this head belong to this task, here and in the outputs below.
        let lse = unsafe { lse.slice(head * shape.queries() + self.rows.start, self.rows.len()) };
        for (i, row) in self.rows.clone().enumerate() {
            let (top, sum) = (state.top[i], state.sum[i]);
            lse[i] = if sum > 0.0 { top + sum.ln() } else { f32::NEG_INFINITY };
            let factor = if sum > 0.0 { 1.0 / sum } else { 0.0 };
            let from = &state.o[i * padded..i * padded + dim];
            let at = (row * shape.heads + head) * dim;
            match o {
                // SAFETY: as above.
                Output::F32(o) => put_row(self.reader.level, from, factor, unsafe { o.slice(at, dim) }),
                // SAFETY: as above.
                Output::Bf16(o) => put_row(self.reader.level, from, factor, unsafe { o.slice(at, dim) }),
                // SAFETY: as above.
                Output::F16(o) => put_row(self.reader.level, from, factor, unsafe { o.slice(at, dim) }),
            }
        }
    }
}

fn split_state(floats: &mut [f32], size: usize) -> State<'_> {
    let (o, rest) = floats.split_at_mut(size);
    let (top, sum) = rest.split_at_mut(Q_BLOCK);
    State { o, top, sum }
}

simd! {
    /// Replaces visible scores s by `exp(scale s - top)` and others by 0; returns the new maximum, the sum, and the
    /// factor of what was summed before. NaN scores stay NaN.
    fn soften_row(p: &mut [f32], seen: Range<usize>, scale: f32, old: f32) -> (f32, f32, f32) {
        if seen.is_empty() {
            p.fill(0.0);
            return (old, 0.0, 1.0);
        }
        p[..seen.start].fill(f32::NEG_INFINITY);
        p[seen.end..].fill(f32::NEG_INFINITY);
        let (blocks, _) = p.as_chunks_mut::<{ math::LANES }>();
        let mut lanes = [f32::NEG_INFINITY; math::LANES];
        for block in blocks.iter_mut() {
            for (x, top) in block.iter_mut().zip(&mut lanes) {
                *x *= scale;
                *top = math::larger(*top, *x);
            }
        }
        let top = math::larger(old, math::fold(lanes, math::larger));
        // Nothing finite so far: any finite reference will do.
        let reference = if top == f32::NEG_INFINITY { 0.0 } else { top };
        let mut lanes = [0.0; math::LANES];
        for block in blocks.iter_mut() {
            for (x, sum) in block.iter_mut().zip(&mut lanes) {
                *x = math::exp::<M>(*x - reference);
                *sum += *x;
            }
        }
        let factor = if old == top { 1.0 } else { math::exp::<M>(old - reference) };
        (top, math::fold(lanes, |a, b| a + b), factor)
    }
}

simd! {
    fn scale_row(row: &mut [f32], factor: f32) {
        for x in row {
            *x *= factor;
        }
    }
}

simd! {
    fn put_row<T: Element>(from: &[f32], factor: f32, to: &mut [T]) {
        for (x, y) in from.iter().zip(to) {
            *y = T::put(x * factor);
        }
    }
}
