//! What a run takes and how long it lasts, before it begins and from its configuration alone: every way to run it, the one
//! that the recipe means, and, if that doesn't fit, the single changes that make it fit. Each of them is tried by running
//! its step on `meta`, none is guessed.

use crate::divide::{Circumstances, Levels, Load, Split, Way, is_wished, ways};
use crate::evaluated::{Answers, EvaluatedRow, longest_evaluation, widest_answers};
use crate::machine::Machine;
use crate::memory::{MemoryPlan, plan_memory};
use crate::order::{Order, Share, longest_batch, longest_met};
use crate::plan::{Demand, Rates, measure_rates, simulate};
use crate::room::Room;
use crate::save::Copied;
use crate::step::step_options;
use crate::{Result, StepOptions};
use ferrotune_config::plan::{ParallelPlan, Plan, Precision, Recompute};
use ferrotune_model::{Config, Model};
use ferrotune_tensor::{DType, Device};
use serde_json::Value;

/// Steps and micro-batches whose lengths stand for all of a run's.
const SAMPLED_STEPS: u64 = 16;
const SAMPLED_BATCHES: usize = 32;

/// How long rows are.
#[derive(Debug, Clone, PartialEq)]
pub enum RowLengths {
    /// Each row's tokens.
    Known(Vec<usize>),
    /// The data isn't there: all of so many tokens.
    Assumed(usize),
}

/// A run, as far as it decides on memory, traffic and time.
#[derive(Debug, Clone)]
pub struct Subject<'a> {
    /// The model's shape.
    pub config: &'a Config,
    /// Its config.json.
    pub json: &'a Value,
    /// What the recipe says.
    pub plan: Plan,
    /// Its rows.
    pub rows: RowLengths,
    /// Each set of rows that it is evaluated on.
    pub evaluated: Vec<Vec<EvaluatedRow>>,
    /// Where it runs.
    pub machine: Machine,
}

/// How long a run lasts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Duration {
    /// A step in the mean.
    pub step: f64,
    /// Optimiser steps, if the rows or the recipe say how many.
    pub steps: Option<u64>,
    /// Tokens of a step in the mean, over all ranks.
    pub tokens: f64,
}

/// All that is known of a run before it begins.
#[derive(Debug, Clone, PartialEq)]
pub struct Forecast {
    /// Parameters of the model and its adapters, and those that train.
    pub parameters: (usize, usize),
    /// Rows of the longest micro-batch, in tokens.
    pub longest: Vec<usize>,
    /// Micro-batches of a step on each rank that sees rows of its own, if nothing else is shared.
    pub micro_batches: usize,
    /// Every split and level of recomputation, best first.
    pub ways: Vec<Way>,
    /// The way that the recipe means, which may not fit.
    pub meant: Way,
    /// The time of a run on that way.
    pub duration: Duration,
    /// What would make it fit, the fastest first; nothing if it fits.
    pub cures: Vec<Cure>,
}

/// One change of a recipe, and what comes of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Cure {
    /// In the words of a recipe or of the command line.
    pub change: String,
    /// The way it runs then.
    pub way: Way,
}

/// Element type of a precision.
pub fn dtype(precision: Precision) -> DType {
    match precision {
        Precision::F32 => DType::F32,
        Precision::Bf16 => DType::Bf16,
        Precision::F16 => DType::F16,
    }
}

/// Looks at a run from all sides.
///
/// # Errors
/// If the model can't be put together as the recipe says, or its strategy is impossible with so many ranks.
pub fn forecast(subject: &Subject<'_>) -> Result<Forecast> {
    let run = Run::new(subject)?;
    let (among, parallel) = (subject.machine.circumstances(subject.config.moe.is_some()), &subject.plan.parallel);
    let mine = ways(&run.load(subject.plan.model.recompute), parallel, &among, Levels::AsNeeded)?;
    let any = ParallelPlan { strategy: None, ..parallel.clone() };
    let all = ways(&run.load(Recompute::Auto), &any, &among, Levels::All)?;
    let meant = mine.into_iter().next().unwrap_or_else(|| all[0].clone());
    let duration = run.duration(subject, &meant)?;
    let cures = if meant.choice.fits { Vec::new() } else { crate::cures::cures(subject)? };
    let count = |trained: bool| {
        let parameters = run.model.parameters().iter().filter(|p| !trained || p.param.trainable);
        parameters.map(|p| p.param.shape.numel()).sum()
    };
    Ok(Forecast {
        parameters: (count(false), count(true)),
        micro_batches: subject.plan.train.accumulation,
        longest: run.lengths,
        ways: all,
        meant,
        duration,
        cures,
    })
}

/// The best way that the recipe allows, which may not fit.
///
/// # Errors
/// As [`forecast`].
pub fn meant(subject: &Subject<'_>) -> Result<Option<Way>> {
    let run = Run::new(subject)?;
    let among = subject.machine.circumstances(subject.config.moe.is_some());
    let found = ways(&run.load(subject.plan.model.recompute), &subject.plan.parallel, &among, Levels::AsNeeded)?;
    Ok(found.into_iter().next())
}

/// The same, if it fits.
///
/// # Errors
/// As [`forecast`].
pub(crate) fn fitting(subject: &Subject<'_>) -> Result<Option<Way>> {
    Ok(meant(subject)?.filter(|way| way.choice.fits))
}

/// A subject's model and steps.
struct Run {
    model: Model,
    options: StepOptions,
    lengths: Vec<usize>,
    evaluated: Vec<usize>,
    answers: Option<Answers>,
    micro_batches: usize,
    copied: Copied,
}

impl Run {
    fn new(subject: &Subject<'_>) -> Result<Self> {
        let plan = &subject.plan;
        let model = Model::new(subject.config, dtype(plan.model.precision), Some(&plan.tuning), plan.train.pure_bf16)?;
        let budget = plan.parallel.max_tokens_per_micro_batch;
        let lengths = match &subject.rows {
            RowLengths::Known(lengths) => longest_batch(lengths.clone(), plan.train.micro_batch, budget),
            RowLengths::Assumed(tokens) => {
                // As many rows as a micro-batch holds.
                let rows = budget.map_or(plan.train.micro_batch, |budget| budget.div_ceil(*tokens).max(1));
                longest_batch(vec![*tokens; rows], plan.train.micro_batch, budget)
            }
        };
        let among = subject.machine.circumstances(false);
        let copied = Copied::of(plan, subject.json, model.parameters());
        let options = step_options(plan, subject.config, false);
        let evaluated = longest_evaluation(&subject.evaluated, plan);
        let answers = widest_answers(&subject.evaluated, plan);
        let micro_batches = plan.train.accumulation * among.world;
        Ok(Self { model, options, lengths, evaluated, answers, micro_batches, copied })
    }

    fn load(&self, recompute: Recompute) -> Load<'_> {
        Load {
            model: &self.model,
            options: &self.options,
            recompute,
            lengths: &self.lengths,
            evaluated: &self.evaluated,
            answers: self.answers,
            micro_batches: self.micro_batches,
            copied: self.copied,
        }
    }

    /// The time of a run: micro-batches of its own order, or the longest one where rows aren't known.
    fn duration(&self, subject: &Subject<'_>, way: &Way) -> Result<Duration> {
        let among = subject.machine.circumstances(subject.config.moe.is_some());
        let layout = way.choice.candidate.layout;
        let typical = match &subject.rows {
            RowLengths::Known(rows) => {
                typical(rows, &subject.plan, Share { rank: 0, ranks: layout.data_ranks(), of_a_step: among.world })
            }
            RowLengths::Assumed(_) => Typical {
                batches: vec![self.lengths.clone()],
                of_a_step: self.micro_batches.div_ceil(layout.data_ranks()) as f64,
                steps: match subject.plan.train.length {
                    ferrotune_config::plan::RunLength::Steps(steps) => Some(steps),
                    ferrotune_config::plan::RunLength::Epochs(_) => None,
                },
            },
        };
        let load = self.load(subject.plan.model.recompute);
        let step = typical.seconds(&load, &among, &subject.plan.parallel, way)?;
        let tokens: usize = typical.batches.iter().flatten().sum();
        let tokens = tokens as f64 / typical.batches.len().max(1) as f64 * typical.of_a_step;
        Ok(Duration { step, steps: typical.steps, tokens: tokens * layout.data_ranks() as f64 })
    }
}

/// Micro-batches that stand for all of a run's.
struct Typical {
    /// Their rows' lengths.
    batches: Vec<Vec<usize>>,
    /// How many of them a rank has in a step, in the mean.
    of_a_step: f64,
    /// Steps of the run.
    steps: Option<u64>,
}

/// Micro-batches of steps all over a run, as a rank sees them.
fn typical(rows: &[usize], plan: &Plan, share: Share) -> Typical {
    let order = Order::new(rows.len(), &plan.train, plan.parallel.max_tokens_per_micro_batch, share);
    let steps = order.shape().total_steps().max(1);
    let looked_at = steps.min(SAMPLED_STEPS);
    let number = |i: u64| 1 + i * steps / looked_at;
    // Only rows that are still coming can fail to come, and these are here.
    let of = |i: u64| order.step_rows(number(i), |row| rows[row]).ok();
    let all: Vec<Vec<Vec<usize>>> = (0..looked_at).filter_map(of).collect();
    let of_a_step = all.iter().map(Vec::len).sum::<usize>() as f64 / all.len().max(1) as f64;
    let every = all.iter().map(Vec::len).sum::<usize>().div_ceil(SAMPLED_BATCHES).max(1);
    let lengths = |batch: Vec<usize>| batch.into_iter().map(|row| rows[row]).collect();
    let batches = all.into_iter().flatten().step_by(every).map(lengths).collect();
    Typical { batches, of_a_step, steps: Some(steps) }
}

impl Typical {
    /// The mean step's seconds on a way.
    fn seconds(&self, load: &Load<'_>, among: &Circumstances<'_>, plan: &ParallelPlan, way: &Way) -> Result<f64> {
        let (plus, rates, recompute) = (load.options.plus.is_some(), among.rates, way.memory.recompute);
        let filled = self.batches.iter().filter(|lengths| lengths.iter().any(|tokens| *tokens > 1));
        let of = |lengths: &[usize]| -> Result<Demand> {
            let demand = Demand::of(load.model, lengths, recompute, plus, rates)?;
            Ok(demand.with_router_loss(load.model, load.options.router_aux_loss))
        };
        let demands: Vec<Demand> = filled.map(|lengths| of(lengths)).collect::<Result<_>>()?;
        let demand = match Demand::mean(&demands) {
            Some(demand) => demand,
            None => of(load.lengths)?,
        };
        let candidate = &way.choice.candidate;
        let (ranks, links) = (candidate.layout.data_ranks(), among.links_of(plan));
        let of = |each: usize| simulate(&demand, candidate, each * ranks, &links, plan.overlap).step;
        // The last step of an epoch may hold fewer micro-batches.
        let few = (self.of_a_step as usize).max(1);
        let (low, part) = (of(few), (self.of_a_step - few as f64).max(0.0));
        Ok(if part > 0.0 { low + part * (of(few + 1) - low) } else { low })
    }
}

/// Seconds of a mean step of a run over `rows`, of so many tokens each, on a way; `ranks_of_a_step` ranks' rows make a step.
///
/// # Errors
/// If a step can't be counted.
pub fn expected_step(
    load: &Load<'_>,
    plan: &Plan,
    (rows, ranks_of_a_step): (&[usize], usize),
    among: &Circumstances<'_>,
    way: &Way,
) -> Result<f64> {
    let ranks = way.choice.candidate.layout.data_ranks();
    let typical = typical(rows, plan, Share { rank: 0, ranks, of_a_step: ranks_of_a_step });
    typical.seconds(load, among, &plan.parallel, way)
}

/// Bytes of the fullest rank of a run over `rows`, of so many tokens each, that is split in a way: those of the longest
/// micro-batch that comes in it, where [`divide`](crate::divide::divide) reckons with the longest that could.
///
/// # Errors
/// If a step can't be counted.
pub fn expected_memory(
    load: &Load<'_>,
    plan: &Plan,
    (rows, ranks_of_a_step): (&[usize], usize),
    room: Room,
    split: &Split,
) -> Result<MemoryPlan> {
    if rows.is_empty() {
        return Ok(split.memory.clone());
    }
    let met = longest_met(rows, &plan.train, plan.parallel.max_tokens_per_micro_batch, ranks_of_a_step);
    let tokens = |lengths: &[usize]| lengths.iter().sum::<usize>();
    if tokens(&met) >= tokens(load.lengths) {
        return Ok(split.memory.clone());
    }
    plan_memory(&Load { lengths: &met, ..load.clone() }, &split.shape, split.memory.recompute, room)
}

/// A micro-batch in the middle of those of a run over `rows`, of so many tokens each: what a rank is measured with.
pub fn middle_batch(rows: &[usize], plan: &Plan) -> Option<Vec<usize>> {
    middle(typical(rows, plan, Share::ALL).batches)
}

/// Whether a way is one that the recipe itself allows.
pub fn is_meant(way: &Way, plan: &Plan, machine: &Machine) -> bool {
    let level = match plan.model.recompute {
        Recompute::Off => !way.memory.recompute,
        Recompute::On => way.memory.recompute,
        Recompute::Auto => true,
    };
    level && is_wished(&way.choice.candidate, &plan.parallel, &machine.circumstances(false))
}

/// This machine's processors as the ranks of a run: `per_node` processes on each of `nodes` machines like it, which share its
/// cores and its `available` bytes. One block, the head and an update are timed at a micro-batch of the middle length, for
/// up to `patience`. Wires aren't measured: inside a machine sockets, between machines a card of `network` bits a second.
///
/// # Errors
/// If the model can't be put together, or memory runs out.
pub fn measured(
    subject: &Subject<'_>,
    [nodes, per_node]: [usize; 2],
    network: f64,
    available: Option<u64>,
    patience: std::time::Duration,
) -> Result<Machine> {
    let placeholder = Machine::at_hand(nodes, per_node, network, available);
    let run = Run::new(&Subject { machine: Machine::Measured(placeholder), ..subject.clone() })?;
    let batch = match &subject.rows {
        RowLengths::Known(rows) => middle_batch(rows, &subject.plan),
        RowLengths::Assumed(_) => None,
    };
    let lengths = batch.unwrap_or_else(|| run.lengths.clone());
    let solo = ferrotune_dist::Solo::default();
    let rates = measure_rates(&run.model, &Device::cpu(), &lengths, &solo, patience)?;
    // Processes of a machine share its cores.
    let share = per_node as f64;
    let rates = Rates { blocks: rates.blocks / share, head: rates.head / share, update: rates.update / share, ..rates };
    Ok(Machine::Measured(Circumstances { rates, ..placeholder }))
}

/// The micro-batch of which as many are longer as are shorter.
fn middle(mut batches: Vec<Vec<usize>>) -> Option<Vec<usize>> {
    batches.sort_by_key(|lengths| lengths.iter().sum::<usize>());
    let middle = batches.len() / 2;
    batches.into_iter().nth(middle)
}
