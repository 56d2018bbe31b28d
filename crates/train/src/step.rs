//! One optimiser step, as a stranger would write it down: count, forward and backward for each micro-batch, reduce,
//! look, clip, update.
//!
//! The loss and its gradient are divided by the label tokens of the whole step, over all micro-batches and ranks, counted
//! before the first backward pass. So the same data gives the same curve however it is split.

use crate::engine::{Engine, Update};
use crate::{Error, Result};
use ferrotune_config::plan::{AdamWPlan, LoraPlus};
use ferrotune_data::rows::Row;
use ferrotune_model::{Batch, LossOptions, Model, NoiseSettings, Sequence};
use ferrotune_tensor::{Kind, Segment, Tape, Tensor};
use std::rc::Rc;

/// What stays the same over the steps of a run.
#[derive(Debug, Clone)]
pub struct StepOptions {
    /// Optimiser.
    pub optimizer: AdamWPlan,
    /// Largest gradient norm; 0 for no limit.
    pub max_norm: f64,
    /// Label smoothing.
    pub smoothing: f32,
    /// NEFTune's alpha; 0 for none.
    pub embedding_alpha: f32,
    /// Seed of dropout and noise.
    pub seed: u64,
    /// LoRA+.
    pub plus: Option<LoraPlus>,
    /// Recompute blocks in the backward pass.
    pub recompute: bool,
}

/// A row of a micro-batch and what makes its randomness its own.
#[derive(Clone, Copy)]
pub struct Sample<'a> {
    /// Tokens and labels.
    pub row: Row<'a>,
    /// Its place in the data set.
    pub index: usize,
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// Mean loss over the step's label tokens.
    pub loss: f64,
    /// Norm of all gradients before clipping.
    pub grad_norm: f64,
    /// Tokens that went through the model.
    pub tokens: u64,
    /// Tokens that had a loss.
    pub label_tokens: u64,
    /// False if no token of the step had a label: nothing was updated.
    pub updated: bool,
}

/// Runs the `step`-th step (from 1) over `micro_batches` at learning rate `rate`.
///
/// # Errors
/// If the loss or a gradient isn't finite (nothing is updated then), if memory runs out, or if a rank is lost.
pub fn step(
    model: &Model,
    engine: &Engine,
    options: &StepOptions,
    micro_batches: &[Vec<Sample<'_>>],
    step: u64,
    rate: f64,
) -> Result<Outcome> {
    let count = |row: &Row<'_>| row.labels.iter().filter(|&&l| l >= 0).count() as u64;
    let samples = || micro_batches.iter().flatten();
    let mut sums = [
        samples().map(|s| count(&s.row)).sum::<u64>() as f64,
        samples().map(|s| s.row.input_ids.len()).sum::<usize>() as f64,
    ];
    engine.comm().sum(&mut sums)?;
    let [labels, tokens] = sums;
    let mut outcome =
        Outcome { loss: 0.0, grad_norm: 0.0, tokens: tokens as u64, label_tokens: labels as u64, updated: false };
    if labels == 0.0 {
        return Ok(outcome);
    }
    engine.zero_grads();
    let loss = LossOptions { scale: (1.0 / labels) as f32, smoothing: options.smoothing };
    let noise = NoiseSettings { seed: options.seed, step, embedding_alpha: options.embedding_alpha };
    for micro_batch in micro_batches {
        outcome.loss += f64::from(accumulate(model, engine, micro_batch, loss, noise, options.recompute)?);
    }
    let mut total = [outcome.loss];
    engine.comm().sum(&mut total)?;
    outcome.loss = total[0];
    outcome.grad_norm = engine.reduce_grads()?;
    if !(outcome.loss.is_finite() && outcome.grad_norm.is_finite()) {
        return Err(not_finite(model, engine, micro_batches, &outcome, step));
    }
    let update = Update { rate, step, max_norm: options.max_norm, plus: options.plus };
    engine.update(&options.optimizer, &update, outcome.grad_norm);
    engine.device().check()?;
    outcome.updated = true;
    Ok(outcome)
}

/// Adds one micro-batch's gradients and returns its share of the loss.
fn accumulate(
    model: &Model,
    engine: &Engine,
    samples: &[Sample<'_>],
    loss: LossOptions,
    noise: NoiseSettings,
    recompute: bool,
) -> Result<f32> {
    let batch = batch(model, engine, samples, Some(noise));
    let wanted = |segment: Segment| recompute && model.is_block(segment);
    let tape = Tape::new(engine.device(), engine, &wanted);
    let root = model.loss(&tape, &batch, loss);
    let one = Tensor::from_f32(engine.device(), &[1.0], [1], Kind::ActGrad);
    let value = root.value.clone();
    tape.backward(&root, one, None);
    engine.device().check()?;
    Ok(value.item())
}

/// Lays samples end to end on the engine's device.
pub(crate) fn batch(model: &Model, engine: &Engine, samples: &[Sample<'_>], noise: Option<NoiseSettings>) -> Rc<Batch> {
    let sequences: Vec<Sequence<'_>> = samples.iter().map(sequence).collect();
    Rc::new(Batch::new(engine.device(), model.config(), &sequences, noise))
}

fn sequence<'a>(sample: &'a Sample<'_>) -> Sequence<'a> {
    let Row { input_ids, labels, segments, isolated, .. } = sample.row;
    // Data sets of over four billion rows repeat their noise, which harms nothing.
    Sequence { input_ids, labels, segments, isolated, sample: sample.index as u32 }
}

/// Names the first part of the model that went wrong, and the rows that make it do so by themselves.
fn not_finite(
    model: &Model,
    engine: &Engine,
    micro_batches: &[Vec<Sample<'_>>],
    outcome: &Outcome,
    step: u64,
) -> Error {
    let (loss, grad_norm) = (outcome.loss, outcome.grad_norm);
    let error = |place, rows| Error::NotFinite { step, loss, grad_norm, place, rows, datasets: Vec::new() };
    if let Some(name) = engine.first_bad_weight() {
        return error(format!("the weight {name}"), Vec::new());
    }
    let mut place = None;
    let mut rows = Vec::new();
    for sample in micro_batches.iter().flatten() {
        let alone = batch(model, engine, std::slice::from_ref(sample), None);
        let tape = Tape::forward_only(engine.device(), engine);
        let (part, _) = model.first_bad_part(&tape, &alone, model.span(), None);
        if let Some(part) = part {
            place.get_or_insert_with(|| format!("the output of {part}"));
            rows.push(sample.row.source);
        }
    }
    if rows.is_empty() {
        // Each row's forward pass is sound by itself, so the trouble is in a gradient.
        rows = micro_batches.iter().flatten().map(|s| s.row.source).collect();
        place = place.or_else(|| engine.first_bad_gradient().map(|name| format!("the gradient of {name}")));
    }
    error(place.unwrap_or_else(|| "the loss itself".to_owned()), rows)
}
