//! One optimiser step, as a stranger would write it down: count, forward and backward for each micro-batch, reduce,
//! look, clip, update.
//!
//! The loss and its gradient are divided by the label tokens of the whole step, over all micro-batches and ranks, counted
//! before the first backward pass. So the same data gives the same curve however it is split.

use crate::engine::{Engine, Update};
use crate::gauge::Gauge;
use crate::passes::{Passes, pass_on, receive};
use crate::router_loss::{RouterLoss, router_aux_loss};
use crate::scale::LossScale;
use crate::{Error, Result};
use ferrotune_config::plan::{AdamWPlan, LoraPlus, Plan, Tuning};
use ferrotune_data::rows::Row;
use ferrotune_dist::Activity;
use ferrotune_dist::trace::Lane;
use ferrotune_model::{Batch, Config, LossOptions, Model, NoiseSettings, Sequence};
use ferrotune_tensor::ops::Balance;
use ferrotune_tensor::{Fault, Tape};
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
    /// Weight of the loss on the balance of experts; 0 for none.
    pub router_aux_loss: f64,
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

/// One step's own: which it is, at what rate, and on what.
pub struct Work<'a> {
    /// Its number, from 1.
    pub step: u64,
    /// Learning rate.
    pub rate: f64,
    /// This rank's micro-batches: as many on each rank, empty ones among them where rows don't come out even. All stages
    /// of a pipe are given the same.
    pub micro_batches: &'a [Vec<Sample<'a>>],
    /// The scale of the loss, where gradients are in half precision.
    pub scale: Option<LossScale>,
    /// What this rank has to say at the step's end.
    pub votes: &'a dyn Fn() -> Votes,
}

/// What a rank says to all others once a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Votes {
    /// It was asked to end the run after this step.
    pub stop: bool,
    /// It has written its part of a checkpoint that all are writing.
    pub ready: bool,
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// Mean loss over the step's label tokens, with what the balance of experts adds.
    pub loss: f64,
    /// The loss on the balance of experts before its weight, where it counts.
    pub router_loss: Option<f64>,
    /// Norm of all gradients before clipping.
    pub grad_norm: f64,
    /// Tokens that went through the model.
    pub tokens: u64,
    /// Tokens that had a loss.
    pub label_tokens: u64,
    /// False if no token of the step had a label, or if a gradient overflowed: nothing was updated.
    pub updated: bool,
    /// A gradient was beyond half precision, with the scale that the loss had.
    pub overflowed: bool,
    /// Some rank was asked to end the run after this step.
    pub stop: bool,
    /// All ranks have written their parts of a checkpoint.
    pub ready: bool,
}

/// Runs one step.
///
/// # Errors
/// If the loss or a gradient isn't finite and a smaller scale of the loss can't help (nothing is updated then), if memory runs out, or if a rank is lost.
pub fn step(model: &Model, engine: &Engine, options: &StepOptions, work: &Work<'_>) -> Result<Outcome> {
    let mut outcome = counted(engine, work)?;
    if outcome.label_tokens == 0 {
        tally(engine, work, &mut outcome)?;
        return Ok(outcome);
    }
    engine.zero_grads();
    let scale = work.scale.map_or(1.0, |scale| f64::from(scale.scale));
    let loss = LossOptions { scale: (scale / outcome.label_tokens as f64) as f32, smoothing: options.smoothing };
    let noise = NoiseSettings { seed: options.seed, step: work.step, embedding_alpha: options.embedding_alpha };
    let router = RouterLoss::new(model, engine, options.router_aux_loss * scale, outcome.tokens as f64);
    let passes = Passes { model, engine, loss, noise, recompute: options.recompute, router: router.as_ref() };
    let (mesh, pulse) = (&engine.division().mesh, engine.comm().pulse());
    let gauge = Gauge::new(engine.device(), mesh, work.micro_batches.len());
    passes.run(work.micro_batches, &gauge)?;
    pulse.does(Activity::Updating);
    let span = pulse.trace().begin();
    engine.reduce_grads(&gauge.squares())?;
    // Nothing is updated where this isn't finite; hosts are told when all of the step has been begun.
    let clip = gauge.clip(mesh, 1.0 / scale, options.max_norm)?;
    engine.check()?;
    let taken = work.step - work.scale.map_or(0, |scale| scale.skipped);
    let update = Update { rate: work.rate, step: taken, scale, plus: options.plus };
    engine.update(&options.optimizer, &update, &clip).map_err(|error| match error {
        Error::Device(fault @ Fault::OutOfMemory { .. }) => Error::HalfUpdated(fault),
        other => other,
    })?;
    let (loss, squares) = gauge.read();
    engine.check()?;
    (outcome.loss, outcome.grad_norm) = (loss / scale, squares.sqrt() / scale);
    if let Some((value, weighted)) = router.as_ref().map(RouterLoss::value) {
        outcome.router_loss = Some(value);
        outcome.loss += weighted / scale;
    }
    tally(engine, work, &mut outcome)?;
    pulse.trace().end(span, Lane::Computing, 0, || "update");
    if !outcome.grad_norm.is_finite() && work.scale.is_some_and(|scale| scale.may_shrink()) {
        outcome.overflowed = true;
        return Ok(outcome);
    }
    if !(outcome.loss.is_finite() && outcome.grad_norm.is_finite()) {
        return Err(not_finite(model, engine, work, &outcome)?);
    }
    outcome.updated = true;
    Ok(outcome)
}

/// The outcome of a step that has yet to be made: its tokens, over all ranks.
fn counted(engine: &Engine, work: &Work<'_>) -> Result<Outcome> {
    let count = |row: &Row<'_>| row.labels.iter().filter(|&&l| l >= 0).count() as u64;
    let samples = || work.micro_batches.iter().flatten();
    let mut sums = [
        samples().map(|s| count(&s.row)).sum::<u64>() as f64,
        samples().map(|s| s.row.input_ids.len() as u64).sum::<u64>() as f64,
    ];
    let world = engine.comm();
    world.pulse().step(work.step);
    world.sum(&mut sums)?;
    // The stages of a pipe see the same rows, and each has counted them.
    let [labels, tokens] = sums.map(|sum| sum / engine.division().spans.len() as f64);
    Ok(Outcome {
        loss: 0.0,
        router_loss: None,
        grad_norm: 0.0,
        tokens: tokens as u64,
        label_tokens: labels as u64,
        updated: false,
        overflowed: false,
        stop: false,
        ready: false,
    })
}

/// Counts the votes of all ranks.
fn tally(engine: &Engine, work: &Work<'_>, outcome: &mut Outcome) -> Result<()> {
    let votes = (work.votes)();
    let mut sums = [votes.stop, votes.ready].map(|vote| f64::from(u8::from(vote)));
    engine.comm().sum(&mut sums)?;
    outcome.stop = sums[0] > 0.0;
    outcome.ready = sums[1] >= engine.comm().world() as f64;
    Ok(())
}

/// Lays samples end to end on the engine's device.
pub(crate) fn batch(
    model: &Model,
    engine: &Engine,
    samples: &[Sample<'_>],
    noise: Option<NoiseSettings>,
    balance: Option<Rc<Balance>>,
) -> Rc<Batch> {
    let sequences: Vec<Sequence<'_>> = samples.iter().map(sequence).collect();
    let batch = Batch::new(engine.device(), model.config(), &sequences, noise);
    Rc::new(Batch { balance, ..batch })
}

fn sequence<'a>(sample: &'a Sample<'_>) -> Sequence<'a> {
    let Row { input_ids, labels, segments, isolated, .. } = sample.row;
    // Data sets of over four billion rows repeat their noise, which harms nothing.
    Sequence { input_ids, labels, segments, isolated, sample: sample.index as u32 }
}

/// What one rank found when it looked for the cause of a number that isn't finite.
#[derive(Default, serde::Serialize, serde::Deserialize)]
struct Findings {
    weight: Option<String>,
    part: Option<String>,
    rows: Vec<(u32, u64)>,
    gradient: Option<String>,
}

/// Names the first part of the model that went wrong, and the rows that make it do so by themselves. All ranks look, each
/// at its own, and tell each other.
fn not_finite(model: &Model, engine: &Engine, work: &Work<'_>, outcome: &Outcome) -> Result<Error> {
    let mut mine = Findings { weight: engine.first_bad_weight().map(str::to_owned), ..Findings::default() };
    let found = |mine: &Findings| -> Result<Vec<Findings>> {
        let told = engine.comm().exchange(&serde_json::to_vec(mine).unwrap_or_default())?;
        Ok(told.iter().map(|bytes| serde_json::from_slice(bytes).unwrap_or_default()).collect())
    };
    let Outcome { loss, grad_norm, .. } = *outcome;
    let error = |place, rows| Error::NotFinite { step: work.step, loss, grad_norm, place, rows, datasets: Vec::new() };
    if let Some(name) = found(&mine)?.into_iter().find_map(|f| f.weight) {
        return Ok(error(format!("the weight {name}"), Vec::new()));
    }
    look_at_rows(model, engine, work, &mut mine)?;
    let all = found(&mine)?;
    let part = all.iter().find_map(|f| f.part.as_ref());
    if let Some(part) = part {
        return Ok(error(format!("the output of {part}"), rows_of(&all)));
    }
    // Each row's forward pass is sound by itself, so the trouble is in a gradient.
    mine.rows = work.micro_batches.iter().flatten().map(|s| s.row.source).collect();
    mine.gradient = engine.first_bad_gradient().map(str::to_owned);
    let all = found(&mine)?;
    let name = all.iter().find_map(|f| f.gradient.as_ref());
    let place = name.map_or_else(|| "the loss itself".to_owned(), |name| format!("the gradient of {name}"));
    Ok(error(place, rows_of(&all)))
}

/// All rows found, each once: the stages of a pipe find the same ones.
fn rows_of(all: &[Findings]) -> Vec<(u32, u64)> {
    let mut rows = Vec::new();
    for row in all.iter().flat_map(|f| f.rows.iter().copied()) {
        if !rows.contains(&row) {
            rows.push(row);
        }
    }
    rows
}

/// Runs each row forward by itself. As many passes on each rank as the rank with the most rows has.
fn look_at_rows(model: &Model, engine: &Engine, work: &Work<'_>, mine: &mut Findings) -> Result<()> {
    let samples: Vec<Sample<'_>> = work.micro_batches.iter().flatten().copied().collect();
    let counts = engine.comm().exchange(&(samples.len() as u64).to_le_bytes())?;
    let most = counts.iter().filter_map(|bytes| Some(u64::from_le_bytes(bytes.as_slice().try_into().ok()?))).max();
    for number in 0..most.unwrap_or(0) as usize {
        let sample = samples.get(number);
        let alone = batch(model, engine, sample.map_or(&[], std::slice::from_ref), None, None);
        let tape = Tape::forward_only(engine.device(), engine);
        let input = receive(model, engine, &alone)?.map(ferrotune_tensor::Var::constant);
        let (part, output) = model.first_bad_part(&tape, &alone, engine.division().span(), input);
        if !engine.division().is_last() {
            pass_on(engine, &output).wait()?;
        }
        if let (Some(part), Some(sample)) = (part, sample) {
            mine.part.get_or_insert(part);
            mine.rows.push(sample.row.source);
        }
    }
    Ok(())
}

/// Options of the steps of a plan with a model.
pub fn step_options(plan: &Plan, config: &Config, recompute: bool) -> StepOptions {
    let plus = match &plan.tuning {
        Tuning::Lora(lora) => lora.plus,
        _ => None,
    };
    StepOptions {
        optimizer: plan.train.optimizer,
        max_norm: plan.train.max_grad_norm,
        smoothing: plan.train.label_smoothing as f32,
        router_aux_loss: router_aux_loss(plan, config),
        embedding_alpha: plan.train.neftune_alpha.unwrap_or(0.0) as f32,
        seed: plan.train.seed,
        plus,
        recompute,
    }
}
