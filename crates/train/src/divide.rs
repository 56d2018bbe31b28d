//! How a run is split over its ranks: as the recipe says, or the fastest way that fits.

use crate::engine::{Offload, Sharding};
use crate::evaluated::Answers;
use crate::memory::{MemoryPlan, Shape, plan_memory};
use crate::plan::{Candidate, Choice, Demand, Links, Question, Rates, candidates, choose};
use crate::room::Room;
use crate::save::Copied;
use crate::step::StepOptions;
use crate::{Error, Result};
use ferrotune_config::plan::{ParallelPlan, Recompute, Strategy};
use ferrotune_model::Model;
use std::cell::RefCell;

/// What the ranks have found out about themselves, and agreed on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Circumstances<'a> {
    /// Ranks.
    pub world: usize,
    /// Ranks on a node.
    pub per_node: usize,
    /// What the rank with the least memory can have.
    pub room: Room,
    /// Wires.
    pub links: Links,
    /// Speed of a rank.
    pub rates: Rates,
    /// How the run was split before that now goes on.
    pub before: Option<&'a Candidate>,
}

impl Circumstances<'_> {
    /// The wires, and what a recipe sends over the one to the host.
    pub(crate) fn links_of(&self, plan: &ParallelPlan) -> Links {
        Links { offload: Offload::of(plan), ..self.links }
    }

    /// Ranks of a group that shares a model's weights or experts: as many as are asked for, or those of a node; all, where a
    /// node has one.
    fn group(&self, asked: Option<usize>) -> usize {
        asked.unwrap_or(if self.per_node > 1 { self.per_node } else { self.world })
    }
}

/// What is to be split.
#[derive(Clone)]
pub struct Load<'a> {
    /// The model.
    pub model: &'a Model,
    /// Its steps.
    pub options: &'a StepOptions,
    /// Whether blocks may be recomputed.
    pub recompute: Recompute,
    /// Rows of the longest micro-batch, in tokens.
    pub lengths: &'a [usize],
    /// Rows of the longest evaluation batch, in tokens; none if nothing is evaluated while the run goes on.
    pub evaluated: &'a [usize],
    /// What is answered while the run goes on, if anything is.
    pub answers: Option<Answers>,
    /// Micro-batches of a step, over all ranks.
    pub micro_batches: usize,
    /// What is copied to be written.
    pub copied: Copied,
}

/// One way to run: a split, with its blocks recomputed or not.
#[derive(Debug, Clone, PartialEq)]
pub struct Way {
    /// The split, its time and what it sends.
    pub choice: Choice,
    /// What it takes of each rank.
    pub memory: MemoryPlan,
}

/// A run's split.
#[derive(Debug, Clone)]
pub struct Split {
    /// Which.
    pub shape: Shape,
    /// What it takes of each rank.
    pub memory: MemoryPlan,
    /// What else was looked at, if there was a choice: the best first, each with its reason.
    pub ways: Vec<Way>,
}

/// Whether splits that fit without recomputation are looked at with it, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Levels {
    /// No: recomputing never makes a step faster.
    AsNeeded,
    /// Yes, for a table of all.
    All,
}

/// Splits a run. All ranks that are given the same come to the same.
///
/// # Errors
/// If the recipe's wish doesn't fit the number of ranks, or nothing that it allows fits into memory.
pub fn divide(load: &Load<'_>, plan: &ParallelPlan, among: &Circumstances<'_>) -> Result<Split> {
    let ways = ways(load, plan, among, Levels::AsNeeded)?;
    let first = ways.first().ok_or_else(|| Error::NoSplit { wish: words(plan), world: among.world, segments: 0 })?;
    let (shape, memory) = (Shape::new(first.choice.candidate.clone(), plan), first.memory.clone());
    if !memory.fits() {
        let (needed, available) = (memory.needed(), memory.room.device().unwrap_or_default());
        return Err(Error::DoesNotFit { needed, available, cure: cure(load, plan, memory.recompute) });
    }
    Ok(Split { shape, memory, ways })
}

/// Every way to run that the recipe allows: those that fit first, the fastest in front; then the others, the smallest in
/// front.
///
/// # Errors
/// If the recipe's wish doesn't fit the number of ranks.
pub fn ways(load: &Load<'_>, plan: &ParallelPlan, among: &Circumstances<'_>, levels: Levels) -> Result<Vec<Way>> {
    // Measurements differ from start to start; a run that goes on must not sum in another order because of that.
    let (world, segments, experts) = (among.world, load.model.segments(), experts(load.model));
    let sound = |c: &&Candidate| c.is_sound(world, segments, experts) && is_wished(c, plan, among);
    if let Some(before) = among.before.filter(sound) {
        let found = look(load, plan, among, (levels, Some(before)))?;
        if found.first().is_some_and(|way| way.choice.fits) {
            return Ok(found);
        }
    }
    look(load, plan, among, (levels, None))
}

/// Looks at all splits that are wished, or at the one that is given.
fn look(
    load: &Load<'_>,
    plan: &ParallelPlan,
    among: &Circumstances<'_>,
    (levels, given): (Levels, Option<&Candidate>),
) -> Result<Vec<Way>> {
    let Circumstances { world, per_node, room, rates, .. } = *among;
    let links = among.links_of(plan);
    let recomputed: &[bool] = match load.recompute {
        Recompute::Off => &[false],
        Recompute::On => &[true],
        Recompute::Auto => &[false, true],
    };
    let mut found: Vec<Way> = Vec::new();
    for &recompute in recomputed {
        let demand = Demand::of(load.model, load.lengths, recompute, load.options.plus.is_some(), rates)?
            .with_router_loss(load.model, load.options.router_aux_loss);
        let every = || candidates(&demand, world, per_node, load.micro_batches, room.device());
        let all = given.map_or_else(every, |given| vec![given.clone()]);
        let wished: Vec<Candidate> = all.into_iter().filter(|c| is_wished(c, plan, among)).collect();
        if wished.is_empty() {
            let ranks = match plan.strategy {
                Some(Strategy::Expert { shards }) => among.group(shards),
                _ => 0,
            };
            let experts = experts(load.model);
            if experts < ranks {
                return Err(Error::TooFewExperts { wish: words(plan), ranks, experts });
            }
            return Err(Error::NoSplit { wish: words(plan), world, segments: demand.segments.len() - 2 });
        }
        let fits = |c: &Candidate| {
            let same =
                |way: &&Way| way.choice.candidate.layout == c.layout && way.choice.candidate.sharded == c.sharded;
            found.iter().filter(same).any(|way| way.choice.fits)
        };
        let left = wished.into_iter().filter(|c| levels == Levels::All || !fits(c)).collect();
        let memories: RefCell<Vec<(Candidate, MemoryPlan)>> = RefCell::default();
        let needed = |candidate: &Candidate| {
            let memory = plan_memory(load, &Shape::new(candidate.clone(), plan), recompute, room)?;
            let bytes = memory.needed();
            memories.borrow_mut().push((candidate.clone(), memory));
            Ok(bytes)
        };
        let (micro_batches, overlap) = (load.micro_batches, plan.overlap);
        let question = Question { demand: &demand, micro_batches, links: &links, overlap, capacity: room.device() };
        let choices = choose(&question, left, &needed)?;
        let memories = memories.into_inner();
        let way = |choice: Choice| {
            let (_, memory) = memories.iter().find(|(candidate, _)| *candidate == choice.candidate)?;
            Some(Way { choice: Choice { fits: memory.fits(), ..choice }, memory: memory.clone() })
        };
        found.extend(choices.into_iter().filter_map(way));
    }
    found.sort_by(|a, b| a.choice.by_worth(&b.choice));
    Ok(found)
}

/// Experts of each block that has some; 0 of a model without.
fn experts(model: &Model) -> usize {
    let moe = model.config().moe.as_ref().filter(|moe| moe.sparse.contains(&true));
    moe.map_or(0, |moe| moe.experts)
}

/// Whether a candidate is what the recipe asks for. A single rank is every strategy.
pub(crate) fn is_wished(candidate: &Candidate, plan: &ParallelPlan, among: &Circumstances<'_>) -> bool {
    let Circumstances { world, per_node, .. } = *among;
    let layout = candidate.layout;
    if world == 1 {
        return true;
    }
    let flat = |sharded| layout.stages == 1 && candidate.sharded == sharded;
    match plan.strategy {
        // Weights that lie in host memory come over once a visit, which a pipe would do for each micro-batch in flight.
        None => layout.stages == 1 || !plan.offload_parameters,
        Some(Strategy::Replicate) => flat(Sharding::Whole),
        Some(Strategy::Zero1) => flat(Sharding::Optimizer),
        Some(Strategy::Zero2) => flat(Sharding::Gradients),
        Some(Strategy::Zero3) => flat(Sharding::Weights) && layout.replicas == 1,
        Some(Strategy::Hybrid { shards }) => flat(Sharding::Weights) && layout.shards == among.group(shards),
        Some(Strategy::Expert { shards }) => flat(Sharding::Experts) && layout.shards == among.group(shards),
        Some(Strategy::Pipeline { stages }) => layout.stages == stages.unwrap_or(per_node.max(2)),
    }
}

/// What is tried next where a load doesn't fit.
fn cure(load: &Load<'_>, plan: &ParallelPlan, recompute: bool) -> &'static str {
    if !recompute {
        "set gradient_checkpointing: true or auto"
    } else if plan.max_tokens_per_micro_batch.is_some() && load.lengths.len() > 1 {
        "lower max_tokens_per_micro_batch or cutoff_len"
    } else if load.lengths.len() > 1 && !plan.fits_micro_batch {
        "set auto_find_batch_size: true for micro-batches of fewer rows, or lower cutoff_len"
    } else {
        "lower cutoff_len, or ask `ferrotune plan` what else makes it fit"
    }
}

fn words(plan: &ParallelPlan) -> String {
    match plan.strategy {
        None => "any strategy".into(),
        Some(Strategy::Replicate) => "strategy: replicate".into(),
        Some(Strategy::Zero1) => "strategy: zero1".into(),
        Some(Strategy::Zero2) => "strategy: zero2".into(),
        Some(Strategy::Zero3) => "strategy: zero3".into(),
        Some(Strategy::Hybrid { shards }) => {
            shards.map_or("strategy: hybrid".into(), |n| format!("strategy: hybrid with shard_size: {n}"))
        }
        Some(Strategy::Expert { shards }) => {
            shards.map_or("strategy: expert".into(), |n| format!("strategy: expert with shard_size: {n}"))
        }
        Some(Strategy::Pipeline { stages }) => {
            stages.map_or("strategy: pipeline".into(), |n| format!("strategy: pipeline with pipeline_stages: {n}"))
        }
    }
}
