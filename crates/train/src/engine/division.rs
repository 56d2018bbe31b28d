//! How a run is divided over ranks, as the engine needs to know it.

use ferrotune_config::plan::ParallelPlan;
use ferrotune_dist::{Layout, Mesh, Solo};
use ferrotune_model::{Model, Parameter};
use ferrotune_tensor::ops::expert_share;
use std::ops::Range;
use std::rc::Rc;

/// What the ranks of a shard group hold in parts instead of whole. Each level contains those before it, but for `Experts`:
/// of all levels it alone leaves experts where they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub enum Sharding {
    /// Nothing.
    Whole,
    /// Moments and precise copies (ZeRO stage 1).
    Optimizer,
    /// The experts of each block, by number, with their adapters, gradients and all (expert parallelism): rows come to them.
    Experts,
    /// Gradients of the model's own weights too (stage 2). Adapters are small and stay whole.
    Gradients,
    /// The model's own weights too (stage 3), frozen ones above all.
    Weights,
}

/// What lies in the host's memory instead of the device's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offload {
    /// Optimiser states; the update happens there.
    pub optimizer: bool,
    /// Weights that aren't adapters; a block's are brought over when it is entered.
    pub weights: bool,
}

impl Offload {
    /// As a recipe says.
    pub fn of(plan: &ParallelPlan) -> Self {
        Self { optimizer: plan.offload_optimizer, weights: plan.offload_parameters }
    }
}

/// How a run is divided.
#[derive(Clone)]
pub struct Division {
    /// The ranks.
    pub mesh: Mesh,
    /// What a shard group holds in parts.
    pub sharding: Sharding,
    /// The segments of each stage, in order; together all of the model's.
    pub spans: Vec<Range<usize>>,
    /// Gathers and reductions run beside the computation.
    pub overlap: bool,
    /// What lies in host memory.
    pub offload: Offload,
}

impl Division {
    /// One rank does all.
    pub fn solo(model: &Model) -> Self {
        Self::replicas(Mesh::new(Rc::new(Solo::default()), Layout::SOLO), model)
    }

    /// The ranks of `mesh`, without shards and stages, each hold all.
    pub fn replicas(mesh: Mesh, model: &Model) -> Self {
        let (sharding, overlap) = (Sharding::Whole, true);
        Self { mesh, sharding, spans: vec![model.span()], overlap, offload: Offload::default() }
    }

    /// The segments of this rank.
    pub fn span(&self) -> Range<usize> {
        self.spans[self.mesh.place().stage].clone()
    }

    /// Whether each rank of a shard group has experts of its own.
    pub fn spreads_experts(&self) -> bool {
        self.sharding == Sharding::Experts && self.mesh.layout().shards > 1
    }

    /// The elements of a parameter that rank `shard` of a shard group takes part in at all: those of its own experts where
    /// experts are spread, else all.
    pub(super) fn takes_part_in(&self, parameter: &Parameter, shard: usize) -> Range<usize> {
        let all = parameter.param.shape.numel();
        match parameter.experts().filter(|_| self.spreads_experts()) {
            None => 0..all,
            Some(experts) => {
                let (share, one) = (expert_share(experts, self.mesh.layout().shards, shard), all / experts);
                share.start * one..share.end * one
            }
        }
    }

    /// Whether this rank computes the first segment.
    pub fn is_first(&self) -> bool {
        self.mesh.place().stage == 0
    }

    /// Whether this rank computes the loss.
    pub fn is_last(&self) -> bool {
        self.mesh.place().stage + 1 == self.spans.len()
    }
}
