//! Products and attention on any device: values compared with those reckoned in f64, and how fast they come.

use crate::facts::{Outcome, Trial, What};
use crate::gpus::Told;
use ferrotune_tensor::ops::{self, Heads, Linear, Spans};
use ferrotune_tensor::{DType, Device, Host, Kind, Param, ParamInfo, Phase, Segment, Tape, Tensor, Var};
use std::ops::Range;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Side of the first product, and of the largest.
const FIRST: usize = 128;
const LARGEST: usize = 4096;
/// Side from which a product tells what a GPU can; a processor is busy with less.
const TELLING: usize = 2048;
const TELLING_ON_CPU: usize = 512;
/// Tokens of the first attention, of the longest, and from which it tells.
const FEWEST: usize = 64;
const LONGEST: usize = 4096;
const TELLING_TOKENS: usize = 2048;
/// Heads like those of an 8B model.
const HEADS: Heads = Heads { heads: 8, kv_heads: 2, head_dim: 128, window: None };
/// Values that are compared.
const COMPARED: usize = 48;

/// Tries all kinds of work, each for about `patience`.
pub fn all(device: &Device, gpu: Option<usize>, patience: Duration, tell: &mut dyn FnMut(Told)) {
    for dtype in [DType::Bf16, DType::F32] {
        let what = What::Product { gpu, dtype: dtype.to_string() };
        one(what, tell, || product(device, dtype, patience));
    }
    one(What::Attention { gpu }, tell, || attention(device, patience));
    one(What::AttentionGradients { gpu }, tell, || attention_gradients(device, patience));
}

fn one(what: What, tell: &mut dyn FnMut(Told), run: impl FnOnce() -> (String, Outcome)) {
    tell(Told::Begin(what.clone()));
    let (size, outcome) = run();
    tell(Told::Done(Trial { what, size, outcome }));
}

/// Work of one size.
struct Made {
    /// Gives one of its outputs.
    work: Box<dyn Fn(usize) -> Tensor>,
    /// How many there are.
    outputs: usize,
    /// What is wrong with the values of all.
    wrong: Check,
}

/// Runs work of growing size, as long as it is quick.
fn grown(
    device: &Device,
    patience: Duration,
    (first, largest): (usize, usize),
    make: &dyn Fn(usize) -> Made,
) -> (usize, Outcome) {
    let mut size = first;
    loop {
        let Made { work, outputs, wrong } = make(size);
        // The first run loads kernels and asks for algorithms.
        let values: Vec<Vec<f32>> = (0..outputs).map(|output| work(output).to_f32()).collect();
        if let Err(fault) = device.check() {
            return (size, Outcome::Failed(fault.to_string()));
        }
        if let Some(wrong) = wrong(&values) {
            return (size, Outcome::Wrong(wrong));
        }
        let before = device.track().flops;
        let Ok(once) = timed(device, 1, &*work) else { return (size, failed(device)) };
        let operations = device.track().flops - before;
        // Eight times the operations, at least, of the next size must fit into the time.
        if size < largest && once * 10 < patience {
            size *= 2;
            continue;
        }
        let repeats = (patience.as_secs_f64() / once.as_secs_f64().max(1e-6)).clamp(1.0, 1000.0) as u32;
        let mut least = once;
        for _ in 0..3 {
            let Ok(time) = timed(device, repeats.div_ceil(3), &*work) else { return (size, failed(device)) };
            least = least.min(time);
        }
        let rate = operations / least.as_secs_f64().max(1e-9);
        return (size, Outcome::Right { rate, telling: true });
    }
}

/// Looks at values and says what is wrong with them.
type Check = Box<dyn Fn(&[Vec<f32>]) -> Option<String>>;

/// Time of one of several runs.
fn timed(device: &Device, repeats: u32, work: &dyn Fn(usize) -> Tensor) -> Result<Duration, ()> {
    let begun = Instant::now();
    for _ in 0..repeats {
        work(0);
    }
    device.synchronize().map_err(drop)?;
    Ok(begun.elapsed() / repeats)
}

fn failed(device: &Device) -> Outcome {
    Outcome::Failed(device.check().err().map_or_else(|| "it didn't end".to_owned(), |fault| fault.to_string()))
}

/// `y = x W'`, as a linear layer makes it.
fn product(device: &Device, dtype: DType, patience: Duration) -> (String, Outcome) {
    let make = |n: usize| {
        let info = ParamInfo {
            id: 0,
            name: "w".into(),
            shape: [n, n].into(),
            dtype,
            trainable: false,
            segments: vec![Segment(0)],
        };
        let layer = Linear { weight: Param::new(info), bias: None, lora: None };
        let (x, w) = (values(device, [n, n], dtype, 1), values(device, [n, n], dtype, 2));
        let (a, b) = (x.to_f32(), w.to_f32());
        let (host, device) = (Held { weight: w }, device.clone());
        let work = move |_| {
            let tape = Tape::forward_only(&device, &host);
            ops::linear(&tape, &layer, &Var::constant(x.clone()), None).value
        };
        let wrong = move |got: &[Vec<f32>]| {
            let wanted = |i: usize, j: usize| -> f64 {
                let pairs = a[i * n..][..n].iter().zip(&b[j * n..][..n]);
                pairs.map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
            };
            compared(&got[0], (0..n, n), dtype, &wanted, &|_| (n as f64).sqrt() / 3.0)
        };
        Made { work: Box::new(work), outputs: 1, wrong: Box::new(wrong) }
    };
    let (n, outcome) = grown(device, patience, (FIRST, LARGEST), &make);
    let enough = if device.gpu().is_some() { TELLING } else { TELLING_ON_CPU };
    (format!("{n} x {n} x {n}"), telling(outcome, n >= enough))
}

/// Causal attention of one sequence.
fn attention(device: &Device, patience: Duration) -> (String, Outcome) {
    let Heads { heads, kv_heads, head_dim, .. } = HEADS;
    let make = |tokens: usize| {
        let of = |heads: usize, seed| values(device, [tokens, heads * head_dim], DType::Bf16, seed);
        let (q, k, v) = (of(heads, 3), of(kv_heads, 4), of(kv_heads, 5));
        let (qs, ks, vs) = (q.to_f32(), k.to_f32(), v.to_f32());
        let spans = Rc::new(Spans::causal(vec![0, tokens as u32]));
        let (host, device) = (Held { weight: q.clone() }, device.clone());
        let work = move |_| {
            let tape = Tape::forward_only(&device, &host);
            let [q, k, v] = [&q, &k, &v].map(|tensor| Var::constant(tensor.clone()));
            ops::attention(&tape, &q, &k, &v, &spans, HEADS).value
        };
        let wrong = move |got: &[Vec<f32>]| {
            let wanted = |token: usize, column: usize| attended((&qs, &ks, &vs), token, column);
            // A mean of more and more values is smaller and smaller.
            compared(&got[0], (0..tokens, heads * head_dim), DType::Bf16, &wanted, &|token| {
                1.0 / (token as f64 + 1.0).sqrt()
            })
        };
        Made { work: Box::new(work), outputs: 1, wrong: Box::new(wrong) }
    };
    let (tokens, outcome) = grown(device, patience, (FEWEST, LONGEST), &make);
    let telling_size = device.gpu().is_none() || tokens >= TELLING_TOKENS;
    (format!("{tokens} tokens, {heads} heads of {head_dim}"), telling(outcome, telling_size))
}

/// `softmax(q k' / sqrt(d)) v` of one token and column, in f64.
fn attended((q, k, v): (&[f32], &[f32], &[f32]), token: usize, column: usize) -> f64 {
    let Heads { heads, kv_heads, head_dim, .. } = HEADS;
    let (head, within) = (column / head_dim, column % head_dim);
    let of_kv = head / (heads / kv_heads) * head_dim;
    let query = &q[(token * heads + head) * head_dim..][..head_dim];
    let row = |of: &[f32], at: usize, i: usize| f64::from(of[at * kv_heads * head_dim + of_kv + i]);
    let score = |at: usize| {
        let sum: f64 = query.iter().enumerate().map(|(i, q)| f64::from(*q) * row(k, at, i)).sum();
        sum / (head_dim as f64).sqrt()
    };
    let scores: Vec<f64> = (0..=token).map(score).collect();
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let (mut sum, mut mean) = (0.0, 0.0);
    for (at, score) in scores.iter().enumerate() {
        let weight = (score - most).exp();
        sum += weight;
        mean += weight * row(v, at, within);
    }
    mean / sum
}

/// Scores of tokens with tokens that gradients are reckoned from in f64: all of short sequences, of long ones those of the last tokens.
const RECKONED: usize = 1 << 15;
/// What the gradients of attention are called.
const GRADIENTS: [&str; 3] = ["queries", "keys", "values"];

/// Forward and backward pass of causal attention of one sequence.
fn attention_gradients(device: &Device, patience: Duration) -> (String, Outcome) {
    let Heads { heads, kv_heads, head_dim, .. } = HEADS;
    let make = |tokens: usize| {
        let of = |heads: usize, seed| values(device, [tokens, heads * head_dim], DType::Bf16, seed);
        let inputs = [of(heads, 3), of(kv_heads, 4), of(kv_heads, 5)];
        let seed = of(heads, 6);
        let last = (RECKONED / tokens).clamp(1, tokens);
        let reckoned = Reckoned::new(inputs.each_ref().map(Tensor::to_f32), seed.to_f32(), tokens - last);
        let spans = Rc::new(Spans::causal(vec![0, tokens as u32]));
        let (host, on) = (Held { weight: seed.clone() }, device.clone());
        let work = move |output: usize| {
            let tape = Tape::new(&on, &host, &|_| false);
            let leaves = inputs.each_ref().map(|input| tape.leaf(input.clone()));
            let [q, k, v] = &leaves;
            let attended = ops::attention(&tape, q, k, v, &spans, HEADS);
            // A tape gives one gradient; all are computed.
            tape.backward(&attended, seed.clone(), leaves.get(output)).unwrap_or_else(|| seed.clone())
        };
        let wrong = move |got: &[Vec<f32>]| reckoned.compared(got);
        Made { work: Box::new(work), outputs: GRADIENTS.len(), wrong: Box::new(wrong) }
    };
    let (tokens, outcome) = grown(device, patience, (FEWEST, LONGEST), &make);
    let telling_size = device.gpu().is_none() || tokens >= TELLING_TOKENS;
    (format!("{tokens} tokens, {heads} heads of {head_dim}"), telling(outcome, telling_size))
}

/// Gradients of causal attention in f64, of tokens from `first` on: keys and values of these have gradients of these queries only.
struct Reckoned {
    inputs: [Vec<f32>; 3],
    /// The gradient of the output.
    seed: Vec<f32>,
    first: usize,
    tokens: usize,
    /// Probabilities, and gradients of scores, by head, query and key.
    scores: Vec<Vec<[Vec<f64>; 2]>>,
}

impl Reckoned {
    fn new(inputs: [Vec<f32>; 3], seed: Vec<f32>, first: usize) -> Self {
        let tokens = seed.len() / (HEADS.heads * HEADS.head_dim);
        let of_head = |head| (first..tokens).map(|query| scores(&inputs, &seed, head, query)).collect();
        let scores = (0..HEADS.heads).map(of_head).collect();
        Self { inputs, seed, first, tokens, scores }
    }

    /// What is wrong with the gradients of queries, keys and values.
    fn compared(&self, got: &[Vec<f32>]) -> Option<String> {
        let Heads { heads, kv_heads, head_dim, .. } = HEADS;
        let rows = || self.first..self.tokens;
        let of_queries = |i, column| self.of_queries(i, column);
        let of_keys = |j, column| self.of_key(j, column, 1);
        let of_values = |j, column| self.of_key(j, column, 0);
        // Of values in (-1, 1), whose variance is 1/3: a score's gradient is a product of `head_dim` pairs by a probability.
        let (pair, group) = ((head_dim as f64).sqrt() / 3.0, (heads / kv_heads) as f64);
        let of_score = pair / (3.0 * head_dim as f64).sqrt();
        let seen = |j: usize| (group * (j..self.tokens).map(|i| ((i + 1) as f64).powi(-2)).sum::<f64>()).sqrt();
        // Heads, what is wanted of a row and column, and the size of a row's.
        type Of<'a> = (usize, &'a dyn Fn(usize, usize) -> f64, &'a dyn Fn(usize) -> f64);
        let all: [Of<'_>; 3] = [
            (heads, &of_queries, &|i| of_score / ((i + 1) as f64).sqrt()),
            (kv_heads, &of_keys, &|j| of_score * seen(j)),
            (kv_heads, &of_values, &|j| seen(j) / 3f64.sqrt()),
        ];
        GRADIENTS.iter().zip(got).zip(all).find_map(|((name, got), (heads, wanted, size))| {
            let wrong = compared(got, (rows(), heads * head_dim), DType::Bf16, wanted, size)?;
            Some(format!("{name}: {wrong}"))
        })
    }

    fn of_queries(&self, i: usize, column: usize) -> f64 {
        let Heads { heads, kv_heads, head_dim, .. } = HEADS;
        let (head, within) = (column / head_dim, column % head_dim);
        let at = head / (heads / kv_heads) * head_dim + within;
        let [_, of_scores] = &self.scores[head][i - self.first];
        let keys = of_scores.iter().enumerate();
        keys.map(|(j, of_score)| of_score * f64::from(self.inputs[1][j * kv_heads * head_dim + at])).sum::<f64>()
            / (head_dim as f64).sqrt()
    }

    /// Of a value (`kind` 0) or a key (1).
    fn of_key(&self, j: usize, column: usize, kind: usize) -> f64 {
        let Heads { heads, kv_heads, head_dim, .. } = HEADS;
        let (group, within) = (heads / kv_heads, column % head_dim);
        let (with, factor) = [(&self.seed, 1.0), (&self.inputs[0], 1.0 / (head_dim as f64).sqrt())][kind];
        let first = column / head_dim * group;
        let pairs = (first..first + group).flat_map(|head| (j..self.tokens).map(move |i| (head, i)));
        let one = |(head, i): (usize, usize)| {
            self.scores[head][i - self.first][kind][j] * f64::from(with[(i * heads + head) * head_dim + within])
        };
        pairs.map(one).sum::<f64>() * factor
    }
}

/// `p = softmax(q k' / sqrt(d))` of a head and query, and the gradients of what the softmax is taken of, `p (g v' - g o)`, where `o`
/// is the output and `g` its gradient.
fn scores([q, k, v]: &[Vec<f32>; 3], g: &[f32], head: usize, query: usize) -> [Vec<f64>; 2] {
    let Heads { heads, kv_heads, head_dim, .. } = HEADS;
    let of_kv = head / (heads / kv_heads) * head_dim;
    let own = |of: &[f32]| of[(query * heads + head) * head_dim..][..head_dim].to_vec();
    let products = |own: &[f32], of: &[f32]| -> Vec<f64> {
        let one = |j: usize| {
            let row = &of[j * kv_heads * head_dim + of_kv..][..head_dim];
            own.iter().zip(row).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        (0..=query).map(one).collect()
    };
    let scale = (head_dim as f64).sqrt();
    let scaled: Vec<f64> = products(&own(q), k).iter().map(|score| score / scale).collect();
    let most = scaled.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scaled.iter().map(|score| (score - most).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let p: Vec<f64> = weights.iter().map(|weight| weight / sum).collect();
    let of_p = products(&own(g), v);
    let mean: f64 = p.iter().zip(&of_p).map(|(p, of_p)| p * of_p).sum();
    let of_scores = p.iter().zip(&of_p).map(|(p, of_p)| p * (of_p - mean)).collect();
    [p, of_scores]
}

fn telling(outcome: Outcome, enough: bool) -> Outcome {
    match outcome {
        Outcome::Right { rate, telling } => Outcome::Right { rate, telling: telling && enough },
        other => other,
    }
}

/// Compares some values of some rows, which are the last of a matrix: corners, and others all over them. `size` is how large values
/// of a row are, which an error is measured by.
fn compared(
    got: &[f32],
    (rows, columns): (Range<usize>, usize),
    dtype: DType,
    wanted: &dyn Fn(usize, usize) -> f64,
    size: &dyn Fn(usize) -> f64,
) -> Option<String> {
    if got.len() != rows.end * columns {
        return Some(format!("{} values came of {}", got.len(), rows.end * columns));
    }
    if let Some(i) = got.iter().position(|value| !value.is_finite()) {
        return Some(format!("row {}, column {} is {}", i / columns, i % columns, got[i]));
    }
    // bf16 keeps 8 bits, and so do the operands; f32 sums of many terms lose some of their 24.
    let bound = |row| size(row) * if dtype == DType::F32 { 1e-4 } else { 2e-2 };
    let (top, bottom) = (rows.start, rows.end - 1);
    let corners = [(top, 0), (top, columns - 1), (bottom, 0), (bottom, columns - 1)];
    let others = (1..COMPARED).map(|i| (top + i * 7919 % rows.len(), i * 104_729 % columns));
    let wrong = |&(i, j): &(usize, usize)| (f64::from(got[i * columns + j]) - wanted(i, j)).abs() > bound(i);
    let (i, j) = corners.into_iter().chain(others).find(wrong)?;
    Some(format!("row {i}, column {j} is {}, and not {:.5}", got[i * columns + j], wanted(i, j)))
}

/// Values in (-1, 1), which are the same on every device.
fn values<const N: usize>(device: &Device, shape: [usize; N], dtype: DType, seed: u64) -> Tensor {
    let (numel, mut state) = (shape.iter().product::<usize>(), seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let made: Vec<f32> = (0..numel).map(|_| next()).collect();
    let tensor = device.empty(&shape[..], dtype, Kind::Work);
    tensor.write_f32(&made);
    tensor
}

/// The one weight of a product.
struct Held {
    weight: Tensor,
}

impl Host for Held {
    fn weight(&self, _: &Param) -> Tensor {
        self.weight.clone()
    }

    fn grad(&self, _: &Param) -> Tensor {
        self.weight.clone()
    }

    fn trains(&self, _: Segment) -> bool {
        false
    }

    fn enter(&self, _: Segment, _: Phase) {}

    fn leave(&self, _: Segment, _: Phase) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_gives_what_f64_does() {
        let mut told = Vec::new();
        all(&Device::cpu(), None, Duration::from_millis(30), &mut |line| told.push(line));
        let done: Vec<&Trial> =
            told.iter().filter_map(|line| if let Told::Done(trial) = line { Some(trial) } else { None }).collect();
        assert_eq!((told.len(), done.len()), (8, 4), "each is announced");
        assert!(
            done.iter().all(|trial| matches!(trial.outcome, Outcome::Right { rate, .. } if rate > 1e6)),
            "{done:?}"
        );
    }

    #[test]
    fn values_that_are_off_are_named() {
        let wanted = |i: usize, j: usize| (i * 10 + j) as f64;
        let mut got: Vec<f32> = (0..30).map(|i| wanted(i / 10, i % 10) as f32).collect();
        let look = |got: &[f32], dtype| compared(got, (0..3, 10), dtype, &wanted, &|_| 1.0);
        assert_eq!(look(&got, DType::F32), None);
        got[29] += 0.01;
        assert_eq!(look(&got, DType::Bf16), None, "bf16 is rounded");
        assert!(look(&got, DType::F32).unwrap().starts_with("row 2, column 9 is 29.01, and not 29"));
        got[4] = f32::NAN;
        assert_eq!(look(&got, DType::Bf16).unwrap(), "row 0, column 4 is NaN");
        assert_eq!(look(&got[..5], DType::F32).unwrap(), "5 values came of 30");
    }

    /// Each gradient by itself: a value that is off is named, and what f64 gives is the difference quotient of the forward pass.
    #[test]
    fn gradients_that_are_off_are_named() {
        let Heads { heads, kv_heads, head_dim, .. } = HEADS;
        let device = Device::cpu();
        let of = |heads: usize, seed| values(&device, [9, heads * head_dim], DType::F32, seed).to_f32();
        let inputs = [of(heads, 3), of(kv_heads, 4), of(kv_heads, 5)];
        let seed = of(heads, 6);
        let reckoned = Reckoned::new(inputs.clone(), seed.clone(), 0);
        let width = [heads, kv_heads, kv_heads].map(|heads| heads * head_dim);
        let wanted = |which: usize, row, column| match which {
            0 => reckoned.of_queries(row, column),
            1 => reckoned.of_key(row, column, 1),
            _ => reckoned.of_key(row, column, 0),
        };
        let loss = |inputs: &[Vec<f32>; 3]| -> f64 {
            let [q, k, v] = inputs;
            let one = |i: usize| attended((q, k, v), i / width[0], i % width[0]) * f64::from(seed[i]);
            (0..9 * width[0]).map(one).sum()
        };
        for (which, width) in width.into_iter().enumerate() {
            for (row, column) in [(4, 3), (8, width - 1)] {
                let moved = |by: f32| {
                    let mut moved = inputs.clone();
                    moved[which][row * width + column] += by;
                    // What f32 keeps of it.
                    (loss(&moved), f64::from(moved[which][row * width + column]))
                };
                let ((high, above), (low, below)) = (moved(0.01), moved(-0.01));
                let (slope, want) = ((high - low) / (above - below), wanted(which, row, column));
                assert!((slope - want).abs() < 1e-4, "{which} {row} {column}: {slope} {want}");
            }
        }
        let right = |which: usize| -> Vec<f32> {
            let width = width[which];
            (0..9 * width).map(|i| wanted(which, i / width, i % width) as f32).collect()
        };
        let sound = [right(0), right(1), right(2)];
        assert_eq!(reckoned.compared(&sound), None);
        for (which, name) in GRADIENTS.into_iter().enumerate() {
            let mut got = sound.clone();
            got[which].last_mut().map(|last| *last += 0.1).unwrap();
            let told = reckoned.compared(&got).unwrap();
            assert!(told.starts_with(&format!("{name}: row 8, column {} is ", width[which] - 1)), "{told}");
        }
    }
}
