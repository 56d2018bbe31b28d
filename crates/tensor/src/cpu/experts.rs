//! Mixtures of experts: which rows go to which expert, and products of each expert's rows with its own matrix.
//!
//! Rows are sorted by expert, so that an expert's lie together; no row is dropped and none is added. Experts are worked on
//! side by side, and each one's product is that of [`gemm`], so the bits don't depend on the number of threads.

use super::gemm::{Gemm, Mat, Product, gemm};
use super::level::simd;
use super::parallel::{over_rows, part};
use super::{Data, DataMut, Element, Shared, alike, level};
use half::{bf16, f16};
use rayon::prelude::*;
use std::ops::Range;

/// How tokens are routed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Route {
    /// Experts to choose from.
    pub experts: usize,
    /// Experts of a token.
    pub top_k: usize,
    /// A token's weights are divided by their sum.
    pub normalize: bool,
}

/// What [`route`] writes. `t` tokens, `k` experts each.
#[derive(Debug)]
pub struct Routed<'a> {
    /// Softmax of the logits, `[t, experts]`.
    pub probabilities: &'a mut [f32],
    /// Weights of a token's experts, the heaviest first, `[t, k]`.
    pub weights: &'a mut [f32],
    /// The experts, `[t, k]`.
    pub chosen: &'a mut [u32],
    /// Where each of them finds the token among the sorted rows, `[t, k]`.
    pub slots: &'a mut [u32],
    /// The token of each sorted row, `[t * k]`.
    pub sources: &'a mut [u32],
    /// Where each expert's rows begin, and where the last one's end, `[experts + 1]`.
    pub offsets: &'a mut [u32],
}

/// Softmax over experts and the `top_k` largest of each token; of equal ones the lower number. Then rows are sorted by
/// expert, those of one expert by token.
///
/// # Panics
/// If a slice is of another length, or `top_k` isn't within 1 and the number of experts.
pub fn route(logits: &[f32], args: Route, out: &mut Routed<'_>) {
    let Route { experts, top_k, normalize } = args;
    assert!((1..=experts).contains(&top_k), "{top_k} of {experts} experts");
    let tokens = logits.len() / experts;
    let lengths = [out.probabilities.len(), out.weights.len(), out.chosen.len(), out.slots.len(), out.sources.len()];
    assert_eq!(lengths, [tokens * experts, tokens * top_k, tokens * top_k, tokens * top_k, tokens * top_k]);
    assert_eq!(out.offsets.len(), experts + 1, "offsets");
    let [probabilities, weights] = [&mut *out.probabilities, &mut *out.weights].map(Shared::new);
    let chosen = Shared::new(out.chosen);
    over_rows(tokens, experts, |rows| {
        for token in rows {
            let at = token..token + 1;
            // SAFETY: every token belongs to one task.
            let (p, w, e) =
                unsafe { (part(&probabilities, &at, experts), part(&weights, &at, top_k), part(&chosen, &at, top_k)) };
            softmax(&logits[token * experts..][..experts], p);
            choose(p, w, e);
            if normalize {
                let sum: f32 = w.iter().sum();
                w.iter_mut().for_each(|w| *w /= sum);
            }
        }
    });
    sort(out.chosen, top_k, out.offsets, out.slots, out.sources);
}

fn softmax(logits: &[f32], p: &mut [f32]) {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    p.iter_mut().zip(logits).for_each(|(p, x)| *p = (x - largest).exp());
    let sum: f32 = p.iter().sum();
    p.iter_mut().for_each(|p| *p /= sum);
}

/// The largest of `p`, in order. What isn't a number comes last.
fn choose(p: &[f32], weights: &mut [f32], chosen: &mut [u32]) {
    for (j, weight) in weights.iter_mut().enumerate() {
        let (before, rest) = chosen.split_at_mut(j);
        let free = (0..p.len()).filter(|e| !before.contains(&(*e as u32)));
        let key = |e: &usize| if p[*e].is_nan() { f32::NEG_INFINITY } else { p[*e] };
        let best = free.reduce(|a, b| if key(&b) > key(&a) { b } else { a }).expect("fewer are chosen than there are");
        rest[0] = best as u32;
        *weight = p[best];
    }
}

/// Sorts by counting: in the order of tokens within an expert.
fn sort(chosen: &[u32], top_k: usize, offsets: &mut [u32], slots: &mut [u32], sources: &mut [u32]) {
    offsets.fill(0);
    for &expert in chosen {
        offsets[expert as usize + 1] += 1;
    }
    for expert in 1..offsets.len() {
        offsets[expert] += offsets[expert - 1];
    }
    // Each expert's beginning moves to its end, and is moved back below.
    for (i, &expert) in chosen.iter().enumerate() {
        let slot = &mut offsets[expert as usize];
        (slots[i], sources[*slot as usize]) = (*slot, (i / top_k) as u32);
        *slot += 1;
    }
    offsets.copy_within(..offsets.len() - 1, 1);
    offsets[0] = 0;
}

/// Adds to a census, `[2, experts]`: how many rows each expert has by `offsets`, and the sum of its probabilities
/// `[t, experts]`, in f64 and in the order of tokens.
///
/// # Panics
/// If a slice is of another length.
pub fn census(probabilities: &[f32], offsets: &[u32], census: &mut [f32]) {
    let experts = offsets.len() - 1;
    let (choices, sums) = census.split_at_mut(experts);
    assert_eq!(sums.len(), experts, "a census of {experts} experts");
    choices.iter_mut().zip(offsets.windows(2)).for_each(|(choices, at)| *choices += (at[1] - at[0]) as f32);
    for (first, sums) in (0..).step_by(LANES).zip(sums.chunks_mut(LANES)) {
        let mut added = [0.0_f64; LANES];
        for row in probabilities.chunks_exact(experts) {
            added.iter_mut().zip(&row[first..first + sums.len()]).for_each(|(sum, p)| *sum += f64::from(*p));
        }
        sums.iter_mut().zip(added).for_each(|(sum, added)| *sum += added as f32);
    }
}

/// The gradient of the logits from that of the weights: `dp_i = dw_i / s - sum_j dw_j w_j / s` for the chosen ones where they
/// were divided by their sum s, else `dw_i`; each expert's price is added where there are some;
/// `dlogits = p (dp - sum p dp)`.
pub fn route_backward(
    args: Route,
    (routed, chosen): (&[f32], &[u32]),
    (dweights, prices): (&[f32], Option<&[f32]>),
    dlogits: &mut [f32],
) {
    let Route { experts, top_k, normalize } = args;
    let tokens = routed.len() / experts;
    assert_eq!((chosen.len(), dweights.len(), dlogits.len()), (tokens * top_k, tokens * top_k, tokens * experts));
    assert!(prices.is_none_or(|prices| prices.len() == experts), "a price for each expert");
    let out = Shared::new(dlogits);
    over_rows(tokens, experts, |rows| {
        for token in rows {
            let (p, picks) = (&routed[token * experts..][..experts], &chosen[token * top_k..][..top_k]);
            let dw = &dweights[token * top_k..][..top_k];
            // SAFETY: every token belongs to one task.
            let d = unsafe { part(&out, &(token..token + 1), experts) };
            let of = |j: usize| p[picks[j] as usize];
            let sum: f32 = if normalize { (0..top_k).map(of).sum() } else { 1.0 };
            let mean: f32 = if normalize { (0..top_k).map(|j| dw[j] * of(j)).sum::<f32>() / sum } else { 0.0 };
            let dp = |j: usize| (dw[j] - mean) / sum;
            let priced: f32 = prices.map_or(0.0, |prices| prices.iter().zip(p).map(|(price, p)| price * p).sum());
            let dot: f32 = (0..top_k).map(|j| dp(j) * of(j)).sum::<f32>() + priced;
            d.iter_mut().zip(p).for_each(|(d, p)| *d = -p * dot);
            for j in 0..top_k {
                d[picks[j] as usize] += of(j) * dp(j);
            }
            if let Some(prices) = prices {
                d.iter_mut().zip(p).zip(prices).for_each(|((d, p), price)| *d += p * price);
            }
        }
    });
}

/// `y[t] = sum_j weights[t, j] rows[slots[t, j]]`, rows of `width` elements, added in the order of j. Without weights each
/// counts once.
pub fn combine(rows: Data<'_>, slots: &[u32], weights: Option<&[f32]>, y: DataMut<'_>, width: usize) {
    let tokens = y.len() / width.max(1);
    let top_k = slots.len() / tokens.max(1);
    alike!((rows: Data, y: DataMut) => {
        let y = Shared::new(y);
        over_rows(tokens, width * top_k, |range| {
            for token in range {
                // SAFETY: every token belongs to one task.
                let y = unsafe { part(&y, &(token..token + 1), width) };
                let of = |j: usize| {
                    let slot = slots[token * top_k + j] as usize;
                    (weights.map_or(1.0, |w| w[token * top_k + j]), &rows[slot * width..][..width])
                };
                sum_rows(top_k, of, y);
            }
        });
    });
}

/// `y = sum_j weight_j row_j`, in f32 and in the order of j, rounded once.
fn sum_rows<'a, X: Element, Y: Element>(count: usize, of: impl Fn(usize) -> (f32, &'a [X]), y: &mut [Y]) {
    const PIECE: usize = 256;
    let level = level();
    let mut sums = [0.0_f32; PIECE];
    for start in (0..y.len()).step_by(PIECE) {
        let piece = start..(start + PIECE).min(y.len());
        let sums = &mut sums[..piece.len()];
        sums.fill(0.0);
        for j in 0..count {
            let (weight, row) = of(j);
            add_weighted(level, weight, &row[piece.clone()], sums);
        }
        put_row(level, sums, &mut y[piece]);
    }
}

simd! {
    fn add_weighted<X: Element>(weight: f32, from: &[X], to: &mut [f32]) {
        for (x, y) in from.iter().zip(to) {
            *y += weight * x.get();
        }
    }
}

simd! {
    fn put_row<Y: Element>(from: &[f32], to: &mut [Y]) {
        for (x, y) in from.iter().zip(to) {
            *y = Y::put(*x);
        }
    }
}

/// The gradients of [`combine`]: `drows[slots[t, j]] = weights[t, j] dy[t]` and
/// `dweights[t, j] = rows[slots[t, j]] . dy[t]`.
pub fn combine_backward(
    (dy, rows): (Data<'_>, Data<'_>),
    (slots, weights): (&[u32], &[f32]),
    (drows, dweights): (DataMut<'_>, &mut [f32]),
    width: usize,
) {
    let tokens = dy.len() / width.max(1);
    let top_k = slots.len() / tokens.max(1);
    let dweights = Shared::new(dweights);
    alike!((dy: Data, rows: Data, drows: DataMut) => {
        let drows = Shared::new(drows);
        over_rows(tokens, width * top_k, |range| {
            for token in range {
                let dy = &dy[token * width..][..width];
                // SAFETY: every token belongs to one task, and every slot to one token.
                let dw = unsafe { part(&dweights, &(token..token + 1), top_k) };
                for j in 0..top_k {
                    let slot = slots[token * top_k + j] as usize;
                    // SAFETY: as above.
                    let drow = unsafe { part(&drows, &(slot..slot + 1), width) };
                    dw[j] = scale_and_dot(weights[token * top_k + j], dy, &rows[slot * width..][..width], drow);
                }
            }
        });
    });
}

/// Sums of a dot product that go side by side, whatever the processor.
const LANES: usize = 16;

/// `out = weight dy`; gives `row . dy`.
fn scale_and_dot<X: Element, Y: Element, Z: Element>(weight: f32, dy: &[X], row: &[Y], out: &mut [Z]) -> f32 {
    let mut sums = [0.0_f32; LANES];
    scale_and_sum(level(), weight, dy, row, out, &mut sums);
    sums.iter().sum()
}

simd! {
    fn scale_and_sum<X: Element, Y: Element, Z: Element>(
        weight: f32,
        dy: &[X],
        row: &[Y],
        out: &mut [Z],
        sums: &mut [f32; LANES]
    ) {
        let whole = dy.len() / LANES * LANES;
        let parts = dy[..whole].chunks_exact(LANES).zip(row.chunks_exact(LANES)).zip(out.chunks_exact_mut(LANES));
        for ((dy, row), out) in parts {
            for lane in 0..LANES {
                sums[lane] += dy[lane].get() * row[lane].get();
                out[lane] = Z::put(weight * dy[lane].get());
            }
        }
        for at in whole..dy.len() {
            sums[at - whole] += dy[at].get() * row[at].get();
            out[at] = Z::put(weight * dy[at].get());
        }
    }
}

/// One product of each expert's rows with its matrix: `alpha a[rows of e] b[e]`.
#[derive(Debug, Clone, Copy)]
pub struct Stack<'a> {
    /// Factor.
    pub alpha: f32,
    /// Sorted rows, `[rows, k]`.
    pub a: Data<'a>,
    /// A matrix an expert: `[experts, n, k]` if `trans`, else `[experts, k, n]`.
    pub b: Data<'a>,
    /// The matrices are read transposed.
    pub trans: bool,
    /// Length of the reduction.
    pub k: usize,
}

impl Stack<'_> {
    fn of(&self, expert: usize, rows: &Range<usize>, n: usize) -> Product<'_> {
        let (k, size) = (self.k, n * self.k);
        let b = slice(self.b, expert * size..(expert + 1) * size);
        let b = if self.trans { Mat::transposed(b, k) } else { Mat::new(b, n) };
        Product { alpha: self.alpha, a: Mat::new(slice(self.a, rows.start * k..rows.end * k), k), b, k }
    }
}

fn slice(data: Data<'_>, range: Range<usize>) -> Data<'_> {
    match data {
        Data::F32(data) => Data::F32(&data[range]),
        Data::Bf16(data) => Data::Bf16(&data[range]),
        Data::F16(data) => Data::F16(&data[range]),
    }
}

/// Writes of several tasks into disjoint parts of one slice of either type.
enum Parts {
    F32(Shared<f32>),
    Bf16(Shared<bf16>),
    F16(Shared<f16>),
}

impl Parts {
    fn new(c: DataMut<'_>) -> Self {
        match c {
            DataMut::F32(c) => Self::F32(Shared::new(c)),
            DataMut::Bf16(c) => Self::Bf16(Shared::new(c)),
            DataMut::F16(c) => Self::F16(Shared::new(c)),
        }
    }

    /// # Safety
    /// No two tasks ask for overlapping ranges.
    unsafe fn part(&self, range: Range<usize>) -> DataMut<'_> {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Self::F32(c) => DataMut::F32(c.slice(range.start, range.len())),
                Self::Bf16(c) => DataMut::Bf16(c.slice(range.start, range.len())),
                Self::F16(c) => DataMut::F16(c.slice(range.start, range.len())),
            }
        }
    }
}

/// The rows of each expert.
fn ranges(offsets: &[u32]) -> impl IndexedParallelIterator<Item = (usize, Range<usize>)> + '_ {
    offsets.par_windows(2).enumerate().map(|(expert, at)| (expert, at[0] as usize..at[1] as usize))
}

/// `c[rows of e] = beta c + first + second`, c `[rows, n]`.
///
/// # Panics
/// If a slice is shorter than its shape.
pub fn grouped(offsets: &[u32], n: usize, beta: f32, first: &Stack<'_>, second: Option<&Stack<'_>>, c: DataMut<'_>) {
    let parts = Parts::new(c);
    ranges(offsets).with_max_len(1).filter(|(_, rows)| !rows.is_empty()).for_each(|(expert, rows)| {
        let product = first.of(expert, &rows, n);
        let second = second.map(|second| second.of(expert, &rows, n));
        let args = Gemm { m: rows.len(), n, product, second, beta, bias: None };
        // SAFETY: experts have disjoint rows.
        gemm(&args, unsafe { parts.part(rows.start * n..rows.end * n) }, n);
    });
}

/// `c[e] += alpha a[rows of e]' b[rows of e]`, a `[rows, m]`, b `[rows, n]`, c `[experts, m, n]`.
///
/// # Panics
/// If a slice is shorter than its shape.
pub fn grouped_outer(offsets: &[u32], (m, n): (usize, usize), alpha: f32, (a, b): (Data<'_>, Data<'_>), c: &mut [f32]) {
    let c = Shared::new(c);
    ranges(offsets).with_max_len(1).filter(|(_, rows)| !rows.is_empty()).for_each(|(expert, rows)| {
        let a = Mat::transposed(slice(a, rows.start * m..rows.end * m), m);
        let b = Mat::new(slice(b, rows.start * n..rows.end * n), n);
        let product = Product { alpha, a, b, k: rows.len() };
        let args = Gemm { m, n, product, second: None, beta: 1.0, bias: None };
        // SAFETY: every expert has a matrix of its own.
        gemm(&args, DataMut::F32(unsafe { c.slice(expert * m * n, m * n) }), n);
    });
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// `out = y + sigmoid(gate) z`, rows of `width` elements with a gate each.
pub fn add_gated(y: Data<'_>, z: Data<'_>, gate: Data<'_>, out: DataMut<'_>, width: usize) {
    let rows = gate.len();
    alike!((y: Data, z: Data, gate: Data, out: DataMut) => {
        let out = Shared::new(out);
        over_rows(rows, width, |range| {
            for row in range {
                let (s, at) = (sigmoid(gate[row].get()), row * width..(row + 1) * width);
                // SAFETY: every row belongs to one task.
                let out = unsafe { part(&out, &(row..row + 1), width) };
                for ((out, y), z) in out.iter_mut().zip(&y[at.clone()]).zip(&z[at]) {
                    *out = Element::put(y.get() + s * z.get());
                }
            }
        });
    });
}

/// The gradients of [`add_gated`]'s z and gate from that of its result.
pub fn add_gated_backward(
    d: Data<'_>,
    (z, gate): (Data<'_>, Data<'_>),
    (dz, dgate): (DataMut<'_>, DataMut<'_>),
    width: usize,
) {
    let rows = gate.len();
    alike!((d: Data, z: Data, gate: Data, dz: DataMut, dgate: DataMut) => {
        let (dz, dgate) = (Shared::new(dz), Shared::new(dgate));
        over_rows(rows, width, |range| {
            for row in range {
                let (s, at) = (sigmoid(gate[row].get()), row * width..(row + 1) * width);
                // SAFETY: every row belongs to one task.
                let (dz, dgate) = unsafe { (part(&dz, &(row..row + 1), width), part(&dgate, &(row..row + 1), 1)) };
                let dot = scale_and_dot(s, &d[at.clone()], &z[at], dz);
                dgate[0] = Element::put(s * (1.0 - s) * dot);
            }
        });
    });
}
