//! Measures how fast the ranks compute a model, before its weights are read: a few blocks and the head are run with stand-ins
//! for weights, and an update is timed.
//!
//! All ranks measure at the same time, since that is how they will work, and then tell each other, so that all of them
//! reckon with the same numbers. A slow rank holds up every other one, so it is the slowest that counts.

use super::Rates;
use crate::Result;
use ferrotune_dist::Comm;
use ferrotune_model::{Batch, LossOptions, Model, NoiseSettings, Sequence};
use ferrotune_tensor::{DType, Device, Host, Kind, Param, Phase, Segment, Tape, Tensor, ops};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Tokens of the first try, and tries with the last number of tokens.
const FEWEST: usize = 32;
const TRIES: u32 = 5;
/// Parameters of a timed update, unless fewer are trained: more than a cache holds.
const UPDATED: usize = 1 << 23;
/// Bytes of weights of the blocks that are run, or of one block that has more, or of all that have fewer: in a step, too, a
/// block finds the weights of another in the cache.
const BLOCKS: usize = 1 << 27;
/// Matrices of more elements are zeros: they cost the same whatever is in them, and filling them doesn't.
const FILLED: usize = 1 << 20;

/// Rates of the slowest rank at micro-batches of `lengths` tokens. A part of a step is run with more and more of them, up to
/// all, and then with more and more blocks, until a run takes a twelfth of `patience`; so measuring takes about that long, and
/// less for a small model.
///
/// # Errors
/// If memory runs out or a rank is lost.
pub fn measure_rates(
    model: &Model,
    device: &Device,
    lengths: &[usize],
    comm: &dyn Comm,
    patience: Duration,
) -> Result<Rates> {
    // Two parts, each of which is run once more than it is tried.
    let long_enough = patience / (2 * (TRIES + 1));
    let head = model.segments() - 1;
    comm.barrier()?;
    let parts = [(head, most_blocks(model)), (head + 1, 1)];
    let [blocks, head] = parts.map(|part| rate(model, device, part, (lengths, long_enough)));
    let mine = [blocks?, head?, update_rate(model, device)?];
    let bytes: Vec<u8> = mine.iter().flat_map(|rate| rate.to_le_bytes()).collect();
    let told = comm.exchange(&bytes)?;
    let least = |i: usize| told.iter().filter_map(|bytes| number(bytes, i)).fold(f64::INFINITY, f64::min);
    // What reading weights takes is in the rates of the parts that read them.
    Ok(Rates { blocks: least(0), head: least(1), update: least(2), reads: f64::INFINITY })
}

/// The `i`th f64 of a peer's message.
fn number(bytes: &[u8], i: usize) -> Option<f64> {
    let number = f64::from_le_bytes(*bytes.get(8 * i..)?.first_chunk()?);
    (number.is_finite() && number > 0.0).then_some(number)
}

/// How many blocks are run at the most; the last ones are, which train wherever any does.
fn most_blocks(model: &Model) -> usize {
    let last = Segment(model.segments() - 2);
    let own = model.parameters().iter().map(|p| &p.param).filter(|param| param.segments.contains(&last));
    let bytes: usize = own.map(|param| param.dtype.bytes(param.shape.numel())).sum();
    (BLOCKS / bytes.max(1)).min(model.segments() - 2).max(1)
}

/// Floating-point operations a second of the `most` segments before `end`, or fewer, forward and backward.
fn rate(
    model: &Model,
    device: &Device,
    (end, most): (usize, usize),
    (lengths, long_enough): (&[usize], Duration),
) -> Result<f64> {
    let all: usize = lengths.iter().sum::<usize>().max(2);
    let stand_in = StandIn { device: device.clone(), held: RefCell::default() };
    let (mut tokens, mut segments) = (FEWEST.min(all), 1);
    // The first run of anything also makes the weights, and touches memory for the first time.
    pass(model, &stand_in, &(end - 1..end), &first_of(lengths, tokens))?;
    loop {
        let (span, rows) = (end - segments..end, first_of(lengths, tokens));
        let (flops, spent) = pass(model, &stand_in, &span, &rows)?;
        if spent < long_enough && tokens < all {
            tokens = (2 * tokens).min(all);
            continue;
        }
        if spent < long_enough && segments < most {
            segments = (2 * segments).min(most);
            pass(model, &stand_in, &(end - segments..end), &rows)?;
            continue;
        }
        let mut tries = vec![spent];
        // Of a large part even the fewest tokens take long.
        while tries.len() < TRIES as usize && tries.iter().sum::<Duration>() < long_enough * TRIES {
            tries.push(pass(model, &stand_in, &span, &rows)?.1);
        }
        return Ok(flops / median(tries).as_secs_f64());
    }
}

/// The first `tokens` tokens of rows of `lengths` tokens, or one row of so many. A row of one token has no label, which
/// would leave the head without work.
fn first_of(lengths: &[usize], tokens: usize) -> Vec<usize> {
    let (mut left, mut rows) = (tokens, Vec::new());
    for length in lengths.iter().copied().filter(|length| *length > 1) {
        let row = length.min(left);
        left -= row;
        rows.extend((row > 1).then_some(row));
    }
    if rows.is_empty() { vec![tokens] } else { rows }
}

/// The middle one: a step is neither as quick as the quickest try nor as slow as one that something came between.
fn median(mut tries: Vec<Duration>) -> Duration {
    tries.sort();
    tries[tries.len() / 2]
}

/// Runs segments forward and backward; their operations and their time.
fn pass(model: &Model, host: &StandIn, span: &Range<usize>, rows: &[usize]) -> Result<(f64, Duration)> {
    let device = &host.device;
    let longest = rows.iter().copied().max().unwrap_or(0);
    let (ids, labels) = (vec![0; longest], vec![0; longest]);
    let whole: Vec<[u32; 1]> = rows.iter().map(|len| [*len as u32]).collect();
    let mut sequences = Vec::with_capacity(rows.len());
    for (sample, (&len, segments)) in (0..).zip(rows.iter().zip(&whole)) {
        sequences.push(Sequence { input_ids: &ids[..len], labels: &labels[..len], segments, isolated: false, sample });
    }
    // Dropout takes its time, too.
    let noise = NoiseSettings { seed: 1, step: 1, embedding_alpha: 0.0 };
    let batch = Rc::new(Batch::new(device, model.config(), &sequences, Some(noise)));
    let stream = device.empty([rows.iter().sum(), model.config().hidden_size], model.activations(), Kind::Act);
    stream.zero();
    device.synchronize()?;
    let (start, before) = (Instant::now(), device.track().flops);
    let keep_all = |_: Segment| false;
    let tape = Tape::new(device, host, &keep_all);
    let input = tape.leaf(stream);
    let options = LossOptions { scale: 1.0, smoothing: 0.0 };
    let output = model.forward(&tape, &batch, span.clone(), Some(input.clone()), options);
    let seed = output.value.empty_like(Kind::ActGrad);
    seed.zero();
    tape.backward(&output, seed, Some(&input));
    device.synchronize()?;
    Ok((device.track().flops - before, start.elapsed()))
}

/// Trained parameters a second, of which a step clears the gradient, adds up its squares and makes the update.
fn update_rate(model: &Model, device: &Device) -> Result<f64> {
    let trained = || model.parameters().iter().map(|p| &p.param).filter(|param| param.trainable);
    let count = trained().map(|param| param.shape.numel()).sum::<usize>().clamp(1, UPDATED);
    let dtype = trained().next().map_or(DType::F32, |param| param.dtype);
    let make = |dtype, kind| {
        let tensor = device.empty([count], dtype, kind);
        tensor.zero();
        tensor
    };
    let weights = make(dtype, Kind::Weight);
    let master = (dtype != DType::F32).then(|| make(DType::F32, Kind::Optim));
    let [gradient, m, v] = [Kind::Grad, Kind::Optim, Kind::Optim].map(|kind| make(DType::F32, kind));
    let (beta1, beta2) = (0.9, 0.999);
    let step = ops::AdamW { rate: 1e-3, beta1, beta2, eps: 1e-8, weight_decay: 0.0, step: 1, grad_scale: 1.0 };
    let mut tries = Vec::new();
    for _ in 0..TRIES {
        let start = Instant::now();
        gradient.zero();
        ops::sum_of_squares(device, std::slice::from_ref(&gradient));
        ops::adamw(&weights, master.as_ref(), (&gradient, None), (&m, &v), &step);
        device.synchronize()?;
        tries.push(start.elapsed());
    }
    Ok(count as f64 / median(tries).as_secs_f64())
}

/// Weights and gradients of the segments that are timed, whatever is in them.
struct StandIn {
    device: Device,
    held: RefCell<HashMap<(usize, bool), Tensor>>,
}

impl StandIn {
    fn hold(&self, param: &Param, gradient: bool) -> Tensor {
        let mut held = self.held.borrow_mut();
        let make = || {
            let (dtype, kind) = if gradient { (DType::F32, Kind::Grad) } else { (param.dtype, Kind::Weight) };
            let tensor = self.device.empty(param.shape, dtype, kind);
            tensor.zero();
            if !gradient && param.shape.numel() <= FILLED {
                // What sends rows one way or another, as a router does, is among these.
                let values = self.device.empty(param.shape, DType::F32, Kind::Work);
                ops::fill_uniform(&values, 0.1, 0, param.id as u64);
                ops::cast(&tensor, &values);
            }
            tensor
        };
        held.entry((param.id, gradient)).or_insert_with(make).clone()
    }
}

impl Host for StandIn {
    fn weight(&self, param: &Param) -> Tensor {
        self.hold(param, false)
    }

    fn grad(&self, param: &Param) -> Tensor {
        self.hold(param, true)
    }

    fn trains(&self, _: Segment) -> bool {
        true
    }

    fn enter(&self, _: Segment, _: Phase) {}

    fn leave(&self, _: Segment, _: Phase) {}
}
