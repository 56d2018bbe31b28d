//! The ways in which a run can be split over its ranks.

use super::balance::{Load, balance};
use super::traffic::uses;
use super::{Cost, Demand, Group, GroupKind};
use crate::engine::{Division, Sharding};
use ferrotune_dist::Layout;
use std::fmt;
use std::ops::Range;

/// One way to split a run.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Candidate {
    /// Ranks along each axis.
    pub layout: Layout,
    /// What the shard groups share.
    pub sharded: Sharding,
    /// Each stage's segments, in order; one span of all segments without a pipeline.
    pub spans: Vec<Range<usize>>,
}

impl Candidate {
    /// The split that a rank is part of.
    pub fn of(division: &Division) -> Self {
        let (layout, sharded) = (division.mesh.layout(), division.sharding);
        Self { layout, sharded, spans: division.spans.clone() }
    }

    /// Whether it is a split of so many segments, with so many experts a block, over so many ranks; one that was read may be
    /// anything.
    pub fn is_sound(&self, world: usize, segments: usize, experts: usize) -> bool {
        let Layout { shards, stages, replicas } = self.layout;
        let ranks = shards.checked_mul(stages).and_then(|ranks| ranks.checked_mul(replicas));
        let mut end = 0;
        let follows = self.spans.iter().all(|span| {
            let follows = span.start == end && span.end > span.start;
            end = span.end;
            follows
        });
        let spread = self.sharded != Sharding::Experts || (stages == 1 && shards <= experts);
        ranks == Some(world) && self.spans.len() == stages && follows && end == segments && spread
    }

    /// Micro-batches that each rank sees of a step's `all`.
    pub fn micro_batches(&self, all: usize) -> usize {
        all.div_ceil(self.layout.data_ranks())
    }

    /// Bytes that the fullest rank holds between the ops of a step of `all` micro-batches: weights, gradients, optimiser
    /// states, and what is kept for the backward pass. What ops work with and what is gathered comes on top; the step on
    /// the `meta` device knows it.
    pub fn least_bytes(&self, demand: &Demand, all: usize) -> u64 {
        let stages = self.spans.len();
        let stage = |(stage, span): (usize, &Range<usize>)| {
            let groups = demand.groups.iter().filter(|group| uses(group, span) > 0);
            let kept: u64 = demand.segments[span.clone()].iter().map(|cost| cost.held).sum();
            let flying = self.micro_batches(all).min(stages - stage) as u64;
            groups.map(|group| self.group_bytes(group)).sum::<u64>() + kept * flying
        };
        self.spans.iter().enumerate().map(stage).max().unwrap_or(0)
    }

    /// Whether each rank of a shard group has its own part of `group`'s experts.
    pub(super) fn spreads(&self, group: &Group) -> bool {
        self.sharded == Sharding::Experts && self.layout.shards > 1 && !group.stacks.is_empty()
    }

    /// Bytes of a group's weights that a rank holds.
    pub(super) fn weights_held(&self, group: &Group) -> u64 {
        let shards = self.layout.shards;
        if self.spreads(group) {
            // The first rank has no fewer experts than others.
            return group.share(shards, 0);
        }
        let whole = group.padded(shards);
        if group.kind != GroupKind::Adapter && self.sharded >= Sharding::Weights {
            whole / shards as u64
        } else {
            whole
        }
    }

    fn group_bytes(&self, group: &Group) -> u64 {
        let shards = self.layout.shards;
        if self.spreads(group) {
            let weights = self.weights_held(group);
            let states = if group.element == 4 { 3 } else { 4 };
            return weights + if group.kind == GroupKind::Frozen { 0 } else { states * weights / group.element * 4 };
        }
        let part = |bytes: u64, from: Sharding| if self.sharded >= from { bytes / shards as u64 } else { bytes };
        let (weights, gradient) = (group.padded(shards), group.gradient(shards));
        // Two moments, and the f32 copy of weights that aren't f32.
        let states = if group.element == 4 { 2 } else { 3 } * gradient;
        match group.kind {
            GroupKind::Frozen => part(weights, Sharding::Weights),
            GroupKind::Adapter => weights + gradient + part(states, Sharding::Optimizer),
            GroupKind::Trained => {
                let states = part(states, Sharding::Optimizer);
                part(weights, Sharding::Weights) + part(gradient, Sharding::Gradients) + states
            }
        }
    }
}

impl fmt::Display for Candidate {
    /// As recipes name it, with the lengths of its axes: `hybrid 8x2`, `pipeline 8 x replicate 2`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Layout { shards, stages, replicas } = self.layout;
        match (stages, self.sharded) {
            (1, Sharding::Weights) if replicas > 1 => write!(f, "hybrid {shards}x{replicas}"),
            (1, Sharding::Whole) => f.write_str("replicate"),
            (1, Sharding::Optimizer) => f.write_str("zero1"),
            (1, Sharding::Gradients) => f.write_str("zero2"),
            (1, Sharding::Weights) => f.write_str("zero3"),
            (1, Sharding::Experts) if replicas > 1 => write!(f, "expert {shards}x{replicas}"),
            (1, Sharding::Experts) => write!(f, "expert {shards}"),
            _ if layout_is_one_pipe(self.layout) => write!(f, "pipeline {stages}"),
            (_, Sharding::Whole) => write!(f, "pipeline {stages} x replicate {}", shards * replicas),
            (_, sharded) => write!(f, "pipeline {stages} x {sharded:?} {shards} x replicate {replicas}"),
        }
    }
}

fn layout_is_one_pipe(layout: Layout) -> bool {
    layout.shards * layout.replicas == 1
}

/// All splits of `demand` over `world` ranks, `per_node` of them on a node, that are worth a look, the plainest first. Shard
/// groups of `hybrid` and `expert` lie inside a node or are whole nodes; each rank has an expert; stages of a pipeline are
/// balanced by time within `capacity` bytes a rank, or by time alone where nothing fits.
pub fn candidates(demand: &Demand, world: usize, per_node: usize, all: usize, capacity: Option<u64>) -> Vec<Candidate> {
    let segments = demand.segments.len();
    let plain = |shards, sharded| Candidate {
        layout: Layout { shards, stages: 1, replicas: world / shards },
        sharded,
        spans: vec![0..segments; 1],
    };
    let mut found = vec![plain(1, Sharding::Whole)];
    if world == 1 {
        return found;
    }
    let whole = [Sharding::Optimizer, Sharding::Gradients, Sharding::Weights];
    found.extend(whole.map(|sharded| plain(world, sharded)));
    let divisors = || (2..=world).filter(|n| world.is_multiple_of(*n));
    let aligned = |n: &usize| per_node.is_multiple_of(*n) || n.is_multiple_of(per_node);
    found.extend(divisors().filter(|n| *n < world).filter(aligned).map(|n| plain(n, Sharding::Weights)));
    let experts = demand.experts().unwrap_or(0);
    found.extend(divisors().filter(|n| *n <= experts).filter(aligned).map(|n| plain(n, Sharding::Experts)));
    for stages in divisors().filter(|stages| *stages + 2 <= segments) {
        let layout = Layout { shards: 1, stages, replicas: world / stages };
        let micro_batches = all.div_ceil(layout.data_ranks());
        let spans = balance_of(demand, stages, micro_batches, capacity);
        let spans = spans.or_else(|| balance_of(demand, stages, micro_batches, None));
        found.extend(spans.map(|spans| Candidate { layout, sharded: Sharding::Whole, spans }));
    }
    found
}

/// The segments of each of `stages` stages, balanced by [`balance`] with the times and bytes of `demand`.
pub fn balance_of(
    demand: &Demand,
    stages: usize,
    micro_batches: usize,
    capacity: Option<u64>,
) -> Option<Vec<Range<usize>>> {
    let counts_first = demand.counts_first(micro_batches);
    let load = |(segment, cost): (usize, &Cost)| Load {
        seconds: cost.forward + cost.backward + if counts_first { demand.census(segment) } else { 0.0 },
        resident: demand.resident(segment),
        held: cost.held,
    };
    let loads: Vec<Load> = demand.segments.iter().enumerate().map(load).collect();
    balance(&loads, stages, micro_batches, capacity)
}
