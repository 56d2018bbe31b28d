//! How a run is split over its ranks: as the recipe says, or the fastest way that fits.

use crate::engine::Sharding;
use crate::memory::{MemoryPlan, Shape, decide};
use crate::plan::{Candidate, Choice, Demand, Links, Question, Rates, best, candidates, choose};
use crate::step::StepOptions;
use crate::{Error, Result};
use ferrotune_config::plan::{ParallelPlan, Recompute, Strategy};
use ferrotune_model::Model;
use ferrotune_tensor::Profile;
use std::cell::RefCell;

/// What the ranks have found out about themselves, and agreed on.
#[derive(Debug, Clone, Copy)]
pub struct Circumstances<'a> {
    /// Ranks.
    pub world: usize,
    /// Ranks on a node.
    pub per_node: usize,
    /// Bytes that the rank with the least memory can have.
    pub available: Option<u64>,
    /// Wires.
    pub links: Links,
    /// Speed of a rank.
    pub rates: Rates,
    /// How the run was split before that now goes on.
    pub before: Option<&'a Candidate>,
}

/// What is to be split.
pub struct Load<'a> {
    /// The model.
    pub model: &'a Model,
    /// Its steps.
    pub options: &'a StepOptions,
    /// Whether blocks may be recomputed.
    pub recompute: Recompute,
    /// Rows of the longest micro-batch, in tokens.
    pub lengths: &'a [usize],
    /// Micro-batches of a step, over all ranks.
    pub micro_batches: usize,
    /// Bytes of the model's files in a checkpoint; `None` if none is written while the run goes on.
    pub saved: Option<u64>,
    /// What the ranks' devices are.
    pub profile: Profile,
}

/// A run's split.
#[derive(Debug, Clone)]
pub struct Split {
    /// Which.
    pub shape: Shape,
    /// What it takes of each rank.
    pub memory: MemoryPlan,
    /// What else was looked at, if there was a choice: the best first, each with its reason.
    pub choices: Vec<Choice>,
}

/// Splits a run. All ranks that are given the same come to the same.
///
/// # Errors
/// If the recipe's wish doesn't fit the number of ranks, or nothing that it allows fits into memory.
pub fn divide(load: &Load<'_>, plan: &ParallelPlan, among: &Circumstances<'_>) -> Result<Split> {
    let Circumstances { world, per_node, available, links, rates, before } = *among;
    let recompute = load.recompute == Recompute::On;
    let demand = Demand::of(load.model, load.lengths, recompute, load.options.plus.is_some(), rates)?;
    let all = candidates(&demand, world, per_node, load.micro_batches, available);
    let allowed: Vec<Candidate> = all.into_iter().filter(|c| is_wished(c, plan, among)).collect();
    if allowed.is_empty() {
        return Err(Error::NoSplit { wish: words(plan), world, segments: demand.segments.len() - 2 });
    }
    // Measurements differ from start to start; a run that goes on must not sum in another order because of that.
    let before = before.filter(|c| c.is_sound(world, demand.segments.len()) && is_wished(c, plan, among));
    let fits = |c: &&Candidate| -> bool {
        let memory = decide(load, &Shape::new((*c).clone(), plan), available);
        memory.is_ok_and(|memory| available.is_none_or(|available| memory.needed() <= available))
    };
    let allowed = before.filter(fits).map_or(allowed, |before| vec![before.clone()]);
    // What was predicted once needn't be again.
    let seen: RefCell<Vec<(Candidate, MemoryPlan)>> = RefCell::default();
    let needed = |candidate: &Candidate| {
        let shape = Shape::new(candidate.clone(), plan);
        let memory = decide(load, &shape, available)?;
        let bytes = memory.needed();
        seen.borrow_mut().push((candidate.clone(), memory));
        Ok(bytes)
    };
    let question = Question {
        demand: &demand,
        micro_batches: load.micro_batches,
        links: &links,
        overlap: plan.overlap,
        capacity: available,
    };
    let choices = choose(&question, allowed, &needed)?;
    let taken = best(&choices).or(choices.first()).map(|choice| choice.candidate.clone());
    let found = seen.into_inner().into_iter().find(|(candidate, _)| Some(candidate) == taken.as_ref());
    let (candidate, memory) = found.ok_or(Error::NoSplit { wish: words(plan), world, segments: 0 })?;
    let memory = memory.checked()?;
    Ok(Split { shape: Shape::new(candidate, plan), memory, choices })
}

/// Whether a candidate is what the recipe asks for. A single rank is every strategy.
fn is_wished(candidate: &Candidate, plan: &ParallelPlan, among: &Circumstances<'_>) -> bool {
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
        Some(Strategy::Hybrid { shards }) => flat(Sharding::Weights) && layout.shards == shards.unwrap_or(per_node),
        Some(Strategy::Pipeline { stages }) => layout.stages == stages.unwrap_or(per_node.max(2)),
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
        Some(Strategy::Pipeline { stages }) => {
            stages.map_or("strategy: pipeline".into(), |n| format!("strategy: pipeline with pipeline_stages: {n}"))
        }
    }
}
