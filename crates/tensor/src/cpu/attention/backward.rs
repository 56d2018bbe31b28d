//! The backward pass, from the scores again: with P the probabilities, `dP = dO V'`, `dS = P (dP - delta)` and
//! `delta = sum(dO O)` a row, dV = P' dO, dK = scale dS' Q and dQ = scale dS K.
//!
//! Two ways give the same bits, since each sum runs over the same blocks in the same order. A task for each sequence
//! and head needs five products a block; where that leaves threads idle, one sweep over blocks of keys (for dK and dV)
//! and one over blocks of queries (for dQ) need seven, in many more tasks. Each query head has its own sums of dK and
//! dV, added over the heads of a group at the end.

use super::super::level::simd;
use super::super::parallel::over_rows;
use super::super::{DataMut, Element, Shared, alike, by_type, level, math, scratch};
use super::operand::{KEYS, Left, Out, QUERIES, Reader, Right, Rows};
use super::{Attention, AttentionGrad, AttentionShape, K_BLOCK, Q_BLOCK, ROWS, Sequence};
use rayon::prelude::*;
use std::ops::Range;

const SCORES: usize = Q_BLOCK * K_BLOCK;
const _: () = assert!(3 * KEYS + 4 * QUERIES + 5 * SCORES <= scratch::WORDS);

/// Floats of workspace that [`attention_backward`] needs, whatever the machine.
pub fn attention_backward_workspace(shape: &AttentionShape<'_>) -> usize {
    let (queries, keys) = (shape.queries(), shape.keys());
    shape.heads * (queries + shape.padded() * (queries + 2 * keys))
}

/// Writes the gradients of q, k and v, each in any type.
pub fn attention_backward(
    args: &Attention<'_>,
    grad: &AttentionGrad<'_>,
    (dq, dk, dv): (DataMut<'_>, DataMut<'_>, DataMut<'_>),
    work: &mut [f32],
) {
    args.check();
    let shape = &args.shape;
    assert!(grad.o.len() == args.q.len() && grad.dout.len() == args.q.len(), "output of attention");
    assert!(grad.lse.len() == shape.heads * shape.queries(), "log-sum-exp of attention");
    assert!(dq.len() == args.q.len() && dk.len() == args.k.len() && dv.len() == args.v.len(), "gradients");
    let work = &mut work[..attention_backward_workspace(shape)];
    let (delta, sums) = work.split_at_mut(shape.heads * shape.queries());
    let (sum_q, sum_kv) = sums.split_at_mut(shape.heads * shape.queries() * shape.padded());
    let (sum_k, sum_v) = sum_kv.split_at_mut(shape.heads * shape.keys() * shape.padded());
    let reader = Reader::new(args, level());
    deltas(args, grad, reader, delta);
    let sums = Sums { q: Shared::new(sum_q), k: Shared::new(sum_k), v: Shared::new(sum_v) };
    let pass = Pass { args, grad, reader, delta, sums };
    pass.run();
    let all = shape.heads;
    collect(&pass, sum_q, shape.queries(), (all, all), dq);
    collect(&pass, sum_k, shape.keys(), (all, shape.kv_heads), dk);
    collect(&pass, sum_v, shape.keys(), (all, shape.kv_heads), dv);
}

/// `delta[head, row] = sum(dO O)`.
fn deltas(args: &Attention<'_>, grad: &AttentionGrad<'_>, reader: Reader, delta: &mut [f32]) {
    let (heads, dim, queries) = (args.shape.heads, reader.dim, args.shape.queries());
    let (o, dout) = (grad.o, grad.dout);
    let delta = Shared::new(delta);
    alike!((o: Data, dout: Data) => over_rows(queries, heads * dim, |rows| {
        for head in 0..heads {
            // SAFETY: rows of tasks are disjoint.
            let out = unsafe { delta.slice(head * queries + rows.start, rows.len()) };
            for (row, out) in rows.clone().zip(out) {
                let at = (row * heads + head) * dim;
                *out = dot(reader.level, &o[at..at + dim], &dout[at..at + dim]);
            }
        }
    }));
}

simd! {
    fn dot<X: Element, Y: Element>(x: &[X], y: &[Y]) -> f32 {
        math::dot(x, y)
    }
}

/// Adds the sums `[from heads, rows, padded]` of each group of heads into `[rows, to heads, head_dim]`.
fn collect(pass: &Pass<'_>, sums: &[f32], rows: usize, (from, to): (usize, usize), out: DataMut<'_>) {
    let (dim, padded, level) = (pass.reader.dim, pass.reader.padded(), pass.reader.level);
    let group = from / to;
    by_type!(out: DataMut => {
        let out = Shared::new(out);
        over_rows(rows, to * dim, |range| {
            for row in range {
                for head in 0..to {
                    let part = |i: usize| &sums[((head * group + i) * rows + row) * padded..][..dim];
                    // SAFETY: rows of tasks are disjoint.
                    let out = unsafe { out.slice((row * to + head) * dim, dim) };
                    let mut total = [0f32; super::MAX_DIM];
                    for i in 0..group {
                        add(level, &mut total[..dim], part(i));
                    }
                    put(level, &total[..dim], out);
                }
            }
        });
    });
}

simd! {
    fn add(total: &mut [f32], x: &[f32]) {
        for (t, x) in total.iter_mut().zip(x) {
            *t += x;
        }
    }
}

simd! {
    fn put<T: Element>(from: &[f32], to: &mut [T]) {
        for (x, y) in from.iter().zip(to) {
            *y = T::put(*x);
        }
    }
}

/// f32 sums of each query head, `[heads, rows, padded]`.
#[derive(Clone, Copy)]
struct Sums {
    q: Shared<f32>,
    k: Shared<f32>,
    v: Shared<f32>,
}

#[derive(Clone, Copy)]
struct Pass<'a> {
    args: &'a Attention<'a>,
    grad: &'a AttentionGrad<'a>,
    reader: Reader,
    delta: &'a [f32],
    sums: Sums,
}

/// Which gradients a sweep computes.
#[derive(Clone, Copy, PartialEq)]
enum Want {
    Queries,
    Keys,
    All,
}

impl Pass<'_> {
    fn run(&self) {
        let shape = &self.args.shape;
        let heads = shape.heads;
        let units = shape.sequences() * heads;
        let sequence = |i: usize| shape.sequence(i);
        if self.few_tasks() {
            let threads_work = |blocks: &(dyn Fn(&Sequence) -> usize + Sync), want| {
                let most = (0..shape.sequences()).map(|i| blocks(&sequence(i))).max().unwrap_or(0);
                (0..units * most).into_par_iter().with_max_len(1).for_each(|t| {
                    // Blocks first, and the costly ones among them first whichever end they are at.
                    let (block, unit) = (t / units, t % units);
                    let sequence = sequence(unit / heads);
                    let count = blocks(&sequence);
                    if block < count {
                        let block = if want == Want::Queries { count - 1 - block } else { block };
                        scratch::with(|b| Sweep::new(self, sequence, unit % heads, b).one(block, want));
                    }
                });
            };
            threads_work(&Sequence::k_blocks, Want::Keys);
            threads_work(&Sequence::q_blocks, Want::Queries);
        } else {
            (0..units).into_par_iter().with_max_len(1).for_each(|unit| {
                scratch::with(|b| Sweep::new(self, sequence(unit / heads), unit % heads, b).all());
            });
        }
    }

    /// Whether a task for each sequence and head would take longer than two sweeps of finer tasks.
    fn few_tasks(&self) -> bool {
        let shape = &self.args.shape;
        let costs = (0..shape.sequences()).map(|i| {
            let s = shape.sequence(i);
            s.q.len() as f64 * s.k.len().min(s.window) as f64
        });
        let (total, most) = costs.fold((0.0, 0f64), |(t, m), c| (t + c * shape.heads as f64, m.max(c)));
        let threads = rayon::current_num_threads() as f64;
        most + (total - most) / threads > 1.4 * total / threads
    }
}

/// One sequence and head, and this thread's buffers.
struct Sweep<'a, 'b> {
    pass: &'a Pass<'a>,
    sequence: Sequence,
    head: usize,
    buffers: Buffers<'b>,
}

struct Buffers<'b> {
    keys_t: &'b mut [u32],
    values_t: &'b mut [u32],
    keys: &'b mut [u32],
    queries: &'b mut [u32],
    douts: &'b mut [u32],
    wide: [&'b mut [u32]; 2],
    words: [&'b mut [u32]; 2],
    row_words: &'b mut [u32],
    p: &'b mut [f32],
    ds: &'b mut [f32],
}

impl<'b> Buffers<'b> {
    fn new(buffer: &'b mut [u32]) -> Self {
        let mut rest = buffer;
        let mut take = |n: usize| {
            let (part, left) = std::mem::take(&mut rest).split_at_mut(n);
            rest = left;
            part
        };
        Self {
            keys_t: take(KEYS),
            values_t: take(KEYS),
            keys: take(KEYS),
            queries: take(QUERIES),
            douts: take(QUERIES),
            wide: [take(QUERIES), take(QUERIES)],
            words: [take(SCORES / 2), take(SCORES / 2)],
            row_words: take(SCORES),
            p: bytemuck::cast_slice_mut(take(SCORES)),
            ds: bytemuck::cast_slice_mut(take(SCORES)),
        }
    }
}

/// A block of keys as the operands of its three products.
#[derive(Clone, Copy)]
struct KeyBlock {
    keys_t: Right,
    values_t: Right,
    keys: Right,
}

impl<'a, 'b> Sweep<'a, 'b> {
    fn new(pass: &'a Pass<'a>, sequence: Sequence, head: usize, buffer: &'b mut [u32]) -> Self {
        Self { pass, sequence, head, buffers: Buffers::new(buffer) }
    }

    /// All gradients of the sequence and head.
    fn all(&mut self) {
        self.clear_queries(self.sequence.q.clone());
        for k in 0..self.sequence.k_blocks() {
            self.keys(k, Want::All);
        }
    }

    /// One block's gradients: of keys and values, or of queries.
    fn one(&mut self, block: usize, want: Want) {
        if want == Want::Keys {
            self.keys(block, want);
            return;
        }
        let rows = self.sequence.q_block(block);
        self.clear_queries(rows.clone());
        for k in self.sequence.blocks_seen(&rows) {
            let keys = self.sequence.k_block(k);
            let operands = self.load(&keys);
            self.block(&rows, &keys, operands, want);
        }
    }

    fn keys(&mut self, block: usize, want: Want) {
        let keys = self.sequence.k_block(block);
        let operands = self.load(&keys);
        for sums in [&self.pass.sums.k, &self.pass.sums.v] {
            self.sum_rows(sums, self.pass.args.shape.keys(), &keys).fill(0.0);
        }
        for q in 0..self.sequence.q_blocks() {
            let rows = self.sequence.q_block(q);
            if self.sequence.blocks_seen(&rows).contains(&block) {
                self.block(&rows, &keys, operands, want);
            }
        }
    }

    fn clear_queries(&self, rows: Range<usize>) {
        self.sum_rows(&self.pass.sums.q, self.pass.args.shape.queries(), &rows).fill(0.0);
    }

    /// Rows of this head's sums; `total` is the number of rows of a head.
    #[expect(clippy::mut_from_ref, reason = "the sums are shared by tasks, each with rows of its own")]
    fn sum_rows(&self, sums: &'a Shared<f32>, total: usize, rows: &Range<usize>) -> &'a mut [f32] {
        let width = self.pass.reader.padded();
        // SAFETY: in each sweep the rows of a head belong to one task, which holds one such slice of them at a time.
        unsafe { sums.slice((self.head * total + rows.start) * width, rows.len() * width) }
    }

    fn load(&mut self, keys: &Range<usize>) -> KeyBlock {
        let (args, reader) = (self.pass.args, &self.pass.reader);
        let head = args.shape.kv_head(self.head);
        let rows = |data| Rows { data, heads: args.shape.kv_heads, head, rows: keys.clone() };
        KeyBlock {
            keys_t: reader.transposed(&rows(args.k), self.buffers.keys_t),
            values_t: reader.transposed(&rows(args.v), self.buffers.values_t),
            keys: reader.right(&rows(args.k), self.buffers.keys),
        }
    }

    /// Adds what one block of queries and one block of keys give to each other's gradients.
    fn block(&mut self, rows: &Range<usize>, keys: &Range<usize>, operands: KeyBlock, want: Want) {
        for first in rows.clone().step_by(ROWS) {
            let part = first..(first + ROWS).min(rows.end);
            let at = (first - rows.start) * K_BLOCK;
            let n = self.scores(&part, keys, operands, at);
            if want != Want::Keys {
                let reader = &self.pass.reader;
                let ds = reader.scores(&self.buffers.ds[at..], part.len(), n, self.buffers.row_words);
                let dq = self.sum_rows(&self.pass.sums.q, self.pass.args.shape.queries(), &part);
                let mnk = (part.len(), reader.dim, n.div_ceil(reader.kernels.per_word));
                // SAFETY: ds has these rows and n keys, and the keys' rows are at least n.
                unsafe {
                    reader.multiply(mnk, ds, operands.keys, &mut Out { to: dq, ld: reader.padded(), accumulate: true })
                };
            }
        }
        if want != Want::Queries {
            self.key_gradients(rows, keys);
        }
    }

    /// Fills P and scale dS of some rows from `at` on; returns how many keys were computed.
    fn scores(&mut self, rows: &Range<usize>, keys: &Range<usize>, operands: KeyBlock, at: usize) -> usize {
        let Pass { args, grad, reader, delta, .. } = *self.pass;
        let n = self.sequence.visible_in(rows.end - 1, keys).end;
        let size = rows.len() * K_BLOCK;
        let part = |data| Rows { data, heads: args.shape.heads, head: self.head, rows: rows.clone() };
        let [wide_q, wide_do] = &mut self.buffers.wide;
        let (p, ds) = (&mut self.buffers.p[at..at + size], &mut self.buffers.ds[at..at + size]);
        let mnk = (rows.len(), n, reader.dim_words());
        let (q, dout) = (reader.left(&part(args.q), wide_q), reader.left(&part(grad.dout), wide_do));
        // SAFETY: q and dout have these rows, the transposed blocks at least n keys.
        unsafe {
            reader.multiply(mnk, q, operands.keys_t, &mut Out { to: p, ld: K_BLOCK, accumulate: false });
            reader.multiply(mnk, dout, operands.values_t, &mut Out { to: ds, ld: K_BLOCK, accumulate: false });
        }
        let base = self.head * args.shape.queries();
        for ((row, p), ds) in rows.clone().zip(p.chunks_exact_mut(K_BLOCK)).zip(ds.chunks_exact_mut(K_BLOCK)) {
            let seen = self.sequence.visible_in(row, keys);
            score_row(reader.level, p, ds, seen, (args.shape.scale, grad.lse[base + row], delta[base + row]));
        }
        n
    }

    /// dV += P' dO and dK += scale dS' Q, by groups of keys, from the first row that sees one of them.
    fn key_gradients(&mut self, rows: &Range<usize>, keys: &Range<usize>) {
        let Pass { args, grad, reader, .. } = *self.pass;
        let shape = &args.shape;
        let part = |data| Rows { data, heads: shape.heads, head: self.head, rows: rows.clone() };
        let q = reader.right(&part(args.q), self.buffers.queries);
        let dout = reader.right(&part(grad.dout), self.buffers.douts);
        let [p_words, ds_words] = &mut self.buffers.words;
        let pt = reader.scores_transposed(self.buffers.p, rows.len(), p_words);
        let dst = reader.scores_transposed(self.buffers.ds, rows.len(), ds_words);
        for (a, b, sums) in [(pt, dout, &self.pass.sums.v), (dst, q, &self.pass.sums.k)] {
            for first in (0..keys.len()).step_by(ROWS) {
                let group = keys.start + first..(keys.start + first + ROWS).min(keys.end);
                let skip = rows.clone().take_while(|&row| self.sequence.visible_in(row, keys).end <= first).count();
                let skip = skip / reader.kernels.per_word;
                let k = rows.len().div_ceil(reader.kernels.per_word) - skip;
                let sums = self.sum_rows(sums, shape.keys(), &group);
                // SAFETY: words (p, i) of the left operands lie at p * ld + i, for all rows and K_BLOCK keys.
                unsafe {
                    let a = Left { start: a.start.add(skip * a.ld + first), ..a };
                    let b = Right { start: b.start.add(skip * b.ld), ..b };
                    let mut out = Out { to: sums, ld: reader.padded(), accumulate: true };
                    reader.multiply((group.len(), reader.dim, k), a, b, &mut out);
                }
            }
        }
    }
}

simd! {
    /// Turns scores and dP into P and scale dS, zero where the key isn't seen.
    fn score_row(p: &mut [f32], ds: &mut [f32], seen: Range<usize>, row: (f32, f32, f32)) {
        let (scale, lse, delta) = row;
        // Whole registers first: what isn't seen is finite or overwritten.
        let whole = seen.end.next_multiple_of(math::LANES);
        let (p_blocks, _) = p[..whole].as_chunks_mut::<{ math::LANES }>();
        let (ds_blocks, _) = ds[..whole].as_chunks_mut::<{ math::LANES }>();
        for (p, ds) in p_blocks.iter_mut().zip(ds_blocks) {
            for (p, ds) in p.iter_mut().zip(ds) {
                *p = math::exp::<M>(*p * scale - lse);
                *ds = *p * (*ds - delta) * scale;
            }
        }
        for x in [p, ds] {
            x[..seen.start].fill(0.0);
            x[seen.end..].fill(0.0);
        }
    }
}
