//! Products and attention on any device: values compared with those reckoned in f64, and how fast they come.

use crate::facts::{Outcome, Trial, What};
use crate::gpus::Told;
use ferrotune_tensor::ops::{self, Heads, Linear, Spans};
use ferrotune_tensor::{DType, Device, Host, Kind, Param, ParamInfo, Phase, Segment, Tape, Tensor, Var};
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
}

fn one(what: What, tell: &mut dyn FnMut(Told), run: impl FnOnce() -> (String, Outcome)) {
    tell(Told::Begin(what.clone()));
    let (size, outcome) = run();
    tell(Told::Done(Trial { what, size, outcome }));
}

/// Runs work of growing size, as long as it is quick: `make(size)` gives operations, the work, and what is wrong with its values.
fn grown(
    device: &Device,
    patience: Duration,
    (first, largest): (usize, usize),
    make: &dyn Fn(usize) -> (Box<dyn Fn() -> Tensor>, Check),
) -> (usize, Outcome) {
    let mut size = first;
    loop {
        let (work, wrong) = make(size);
        // The first run loads kernels and asks for algorithms.
        let output = work();
        let values = output.to_f32();
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
type Check = Box<dyn Fn(&[f32]) -> Option<String>>;

/// Time of one of several runs.
fn timed(device: &Device, repeats: u32, work: &dyn Fn() -> Tensor) -> Result<Duration, ()> {
    let begun = Instant::now();
    for _ in 0..repeats {
        work();
    }
    device.synchronize().map_err(drop)?;
    Ok(begun.elapsed() / repeats)
}

fn failed(device: &Device) -> Outcome {
    Outcome::Failed(device.check().err().map_or_else(|| "it didn't end".to_owned(), |fault| fault.to_string()))
}

/// `y = x W'`, as a linear layer makes it.
fn product(device: &Device, dtype: DType, patience: Duration) -> (String, Outcome) {
    let make = |n: usize| -> (Box<dyn Fn() -> Tensor>, Check) {
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
        let work = move || {
            let tape = Tape::forward_only(&device, &host);
            ops::linear(&tape, &layer, &Var::constant(x.clone()), None).value
        };
        let check = move |got: &[f32]| {
            let wanted = |i: usize, j: usize| -> f64 {
                let pairs = a[i * n..][..n].iter().zip(&b[j * n..][..n]);
                pairs.map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
            };
            compared(got, (n, n), dtype, &wanted, &|_| (n as f64).sqrt() / 3.0)
        };
        (Box::new(work), Box::new(check))
    };
    let (n, outcome) = grown(device, patience, (FIRST, LARGEST), &make);
    let enough = if device.gpu().is_some() { TELLING } else { TELLING_ON_CPU };
    (format!("{n} x {n} x {n}"), telling(outcome, n >= enough))
}

/// Causal attention of one sequence.
fn attention(device: &Device, patience: Duration) -> (String, Outcome) {
    let Heads { heads, kv_heads, head_dim, .. } = HEADS;
    let make = |tokens: usize| -> (Box<dyn Fn() -> Tensor>, Check) {
        let of = |heads: usize, seed| values(device, [tokens, heads * head_dim], DType::Bf16, seed);
        let (q, k, v) = (of(heads, 3), of(kv_heads, 4), of(kv_heads, 5));
        let (qs, ks, vs) = (q.to_f32(), k.to_f32(), v.to_f32());
        let spans = Rc::new(Spans::causal(vec![0, tokens as u32]));
        let (host, device) = (Held { weight: q.clone() }, device.clone());
        let work = move || {
            let tape = Tape::forward_only(&device, &host);
            let [q, k, v] = [&q, &k, &v].map(|tensor| Var::constant(tensor.clone()));
            ops::attention(&tape, &q, &k, &v, &spans, HEADS).value
        };
        let check = move |got: &[f32]| {
            let wanted = |token: usize, column: usize| attended((&qs, &ks, &vs), token, column);
            // A mean of more and more values is smaller and smaller.
            compared(got, (tokens, heads * head_dim), DType::Bf16, &wanted, &|token| 1.0 / (token as f64 + 1.0).sqrt())
        };
        (Box::new(work), Box::new(check))
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

fn telling(outcome: Outcome, enough: bool) -> Outcome {
    match outcome {
        Outcome::Right { rate, telling } => Outcome::Right { rate, telling: telling && enough },
        other => other,
    }
}

/// Compares some values of a matrix: its corners, and others all over it. `size` is how large values of a row are, which an
/// error is measured by.
fn compared(
    got: &[f32],
    (rows, columns): (usize, usize),
    dtype: DType,
    wanted: &dyn Fn(usize, usize) -> f64,
    size: &dyn Fn(usize) -> f64,
) -> Option<String> {
    if got.len() != rows * columns {
        return Some(format!("{} values came of {}", got.len(), rows * columns));
    }
    if let Some(i) = got.iter().position(|value| !value.is_finite()) {
        return Some(format!("row {}, column {} is {}", i / columns, i % columns, got[i]));
    }
    // bf16 keeps 8 bits, and so do the operands; f32 sums of many terms lose some of their 24.
    let bound = |row| size(row) * if dtype == DType::F32 { 1e-4 } else { 2e-2 };
    let corners = [(0, 0), (0, columns - 1), (rows - 1, 0), (rows - 1, columns - 1)];
    let others = (1..COMPARED).map(|i| (i * 7919 % rows, i * 104_729 % columns));
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
        assert_eq!((told.len(), done.len()), (6, 3), "each is announced");
        assert!(
            done.iter().all(|trial| matches!(trial.outcome, Outcome::Right { rate, .. } if rate > 1e6)),
            "{done:?}"
        );
    }

    #[test]
    fn values_that_are_off_are_named() {
        let wanted = |i: usize, j: usize| (i * 10 + j) as f64;
        let mut got: Vec<f32> = (0..30).map(|i| wanted(i / 10, i % 10) as f32).collect();
        let look = |got: &[f32], dtype| compared(got, (3, 10), dtype, &wanted, &|_| 1.0);
        assert_eq!(look(&got, DType::F32), None);
        got[29] += 0.01;
        assert_eq!(look(&got, DType::Bf16), None, "bf16 is rounded");
        assert!(look(&got, DType::F32).unwrap().starts_with("row 2, column 9 is 29.01, and not 29"));
        got[4] = f32::NAN;
        assert_eq!(look(&got, DType::Bf16).unwrap(), "row 0, column 4 is NaN");
        assert_eq!(look(&got[..5], DType::F32).unwrap(), "5 values came of 30");
    }
}
