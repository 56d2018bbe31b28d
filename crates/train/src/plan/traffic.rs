//! The bytes that a rank sends in one optimiser step, in closed form. `docs/strategies.md` derives these formulas; byte
//! counters of real runs are compared with them.
//!
//! Not counted: heads of messages and what keeps connections alive.

use super::links::{Axis, Links};
use super::{Candidate, Demand, Group, GroupKind, Rows, Trips};
use crate::engine::Sharding;
use ferrotune_dist::{Layout, Place};
use ferrotune_tensor::Phase;
use ferrotune_tensor::ops::expert_share;
use std::ops::Range;

/// The sums of a few f64 in a step, each an all-gather. Label tokens and tokens.
pub(super) const LABELS: (Axis, u64) = (Axis::World, 2);
/// The wish to stop, and the word that a checkpoint is written.
pub(super) const VOTES: (Axis, u64) = (Axis::World, 2);
/// The gradient's squared norm.
pub(super) const NORM: (Axis, u64) = (Axis::World, 1);

/// Bytes that `rank` sends to each rank in a step of `all` micro-batches.
///
/// # Panics
/// If gradients are to be summed over a shard group that shares nothing, which no candidate asks for.
pub fn traffic(demand: &Demand, candidate: &Candidate, all: usize, rank: usize) -> Vec<u64> {
    let (layout, sharded) = (candidate.layout, candidate.sharded);
    assert!(layout.shards == 1 || sharded > Sharding::Whole, "shard groups share something");
    let micro_batches = candidate.micro_batches(all) as u64;
    let counts_first = demand.counts_first(micro_batches as usize);
    let span = &candidate.spans[layout.place(rank).stage];
    let mut sent = Sent { layout, rank, bytes: vec![0; layout.world()] };
    for group in demand.groups.iter().filter(|group| uses(group, span) > 0) {
        if candidate.spreads(group) {
            if group.kind != GroupKind::Frozen {
                let gradient = group.share(layout.shards, layout.place(rank).shard) / group.element * 4;
                sent.sums(Axis::Replica, gradient);
            }
            continue;
        }
        let (weights, gradient) = (group.padded(layout.shards), group.gradient(layout.shards));
        let own = gradient / layout.shards as u64;
        if sharded == Sharding::Weights && group.kind != GroupKind::Adapter {
            let counted = if counts_first { counting_gathers(demand, group, span) } else { 0 };
            sent.gathers(weights, micro_batches * (gathers(group, span) + counted));
        }
        if group.kind == GroupKind::Frozen {
            continue;
        }
        let each_time = group.kind == GroupKind::Trained && sharded >= Sharding::Gradients;
        sent.scatters(gradient, if each_time { micro_batches * uses(group, span) } else { 1 });
        sent.sums(Axis::Replica, own);
        if tied_ends(group, candidate) {
            sent.sums(Axis::Ends, if each_time { own } else { gradient });
        }
        if !(group.kind == GroupKind::Trained && sharded == Sharding::Weights) {
            sent.gathers(weights, 1);
        }
    }
    if sharded == Sharding::Experts {
        for (segment, cost) in demand.segments.iter().enumerate() {
            let backward = u64::from(segment >= demand.backward_from());
            let forward = if counts_first { 2 } else { 1 };
            sent.rows(&cost.rows, [forward * micro_batches, backward * micro_batches]);
        }
    }
    sent.borders(demand, span, [if counts_first { 2 } else { 1 }, 1].map(|passes| passes * micro_batches));
    for (axis, numbers) in [LABELS, NORM, VOTES] {
        sent.add(axis, 8 * numbers * (axis.len(layout) as u64 - 1));
    }
    sent.add(Axis::World, losses(micro_batches) * (layout.world() as u64 - 1));
    sent.sums(Axis::World, choices(demand));
    sent.bytes
}

/// What of `sent` leaves the node of `rank`.
pub fn across(sent: &[u64], rank: usize, links: &Links) -> u64 {
    (0..).zip(sent).filter(|(to, _)| links.crosses(rank, *to)).map(|(_, bytes)| bytes).sum()
}

/// How many segments of `span` read `group`.
pub(super) fn uses(group: &Group, span: &Range<usize>) -> u64 {
    group.segments.iter().filter(|segment| span.contains(segment)).count() as u64
}

/// How often a micro-batch needs a sharded group whole: once for each visit that reads it.
fn gathers(group: &Group, span: &Range<usize>) -> u64 {
    group.visits.iter().filter(|(segment, _)| span.contains(segment)).count() as u64
}

/// How often the same happens when routers are counted: forward, and not for the head.
fn counting_gathers(demand: &Demand, group: &Group, span: &Range<usize>) -> u64 {
    let body = span.start..span.end.min(demand.segments.len() - 1);
    group.visits.iter().filter(|(segment, phase)| body.contains(segment) && *phase == Phase::Forward).count() as u64
}

/// Bytes of what routers chose, and the sums of their probabilities: summed over all ranks.
pub(super) fn choices(demand: &Demand) -> u64 {
    8 * demand.counted_experts
}

/// Bytes of a rank's losses, which all are told.
pub(super) fn losses(micro_batches: u64) -> u64 {
    4 * micro_batches
}

/// Bytes that each rank tells the others before rows go: where each expert's rows begin, and where the last one's end.
pub(super) fn counts(rows: &Rows) -> u64 {
    if rows.experts == 0 { 0 } else { 4 * (rows.experts as u64 + 1) }
}

/// Whether the first and the last stage both hold `group` and have to agree on its gradient.
pub(super) fn tied_ends(group: &Group, candidate: &Candidate) -> bool {
    let held = candidate.spans.iter().filter(|span| uses(group, span) > 0).count();
    held > 1
}

impl Demand {
    /// The first segment that has a backward pass: no gradient is wanted below the first that trains.
    pub(super) fn backward_from(&self) -> usize {
        let trained = self.groups.iter().filter(|group| group.kind != GroupKind::Frozen);
        trained.flat_map(|group| &group.segments).copied().min().unwrap_or(self.segments.len())
    }
}

struct Sent {
    layout: Layout,
    rank: usize,
    bytes: Vec<u64>,
}

impl Sent {
    /// To the next rank along `axis`.
    fn add(&mut self, axis: Axis, bytes: u64) {
        let next = axis.next(self.layout, self.rank);
        if next != self.rank {
            self.bytes[next] += bytes;
        }
    }

    /// An all-gather sends every part but the next rank's own: (n - 1) / n of the whole.
    fn gathers(&mut self, whole: u64, times: u64) {
        let n = self.layout.shards as u64;
        self.add(Axis::Shard, times * whole / n * (n - 1));
    }

    /// A reduce-scatter sends every part but this rank's own: as much.
    fn scatters(&mut self, whole: u64, times: u64) {
        self.gathers(whole, times);
    }

    /// An all-reduce is both, one after the other; parts differ by an f32 where they don't come out even.
    fn sums(&mut self, axis: Axis, whole: u64) {
        let n = axis.len(self.layout) as u64;
        let part = |i: u64| whole / 4 * (i + 1) / n * 4 - whole / 4 * i / n * 4;
        let i = axis.number(self.layout, self.rank) as u64;
        self.add(axis, 2 * whole - part(i) - part((i + 1) % n));
    }

    /// Rows to the ranks of their experts and back, `visits` forward and backward; rows are spread evenly.
    fn rows(&mut self, rows: &Rows, visits: [u64; 2]) {
        let (place, shards) = (self.layout.place(self.rank), self.layout.shards);
        let of = |trips: &dyn Fn(&Trips) -> u64| rows.trips.iter().zip(visits).map(|(t, n)| trips(t) * n).sum::<u64>();
        let (forward, gradients, back) = (of(&|t| t.forward), of(&|t| t.gradients), of(&|t| t.back));
        let share = |bytes: u64, shard: usize| {
            let own = expert_share(rows.experts, shards, shard).len() as u64;
            if rows.experts == 0 { 0 } else { bytes * own / rows.experts as u64 }
        };
        for shard in (0..shards).filter(|shard| *shard != place.shard) {
            let there = share(rows.bytes, shard) * (forward + gradients) + share(rows.keys, shard) * forward;
            let here = share(rows.bytes, place.shard) * (forward + back);
            self.bytes[self.layout.rank(Place { shard, ..place })] += there + here;
        }
        self.add(Axis::Shard, forward * (shards as u64 - 1) * counts(rows));
    }

    /// Activations to the next stage, their gradients to the previous one if anything trains there.
    fn borders(&mut self, demand: &Demand, span: &Range<usize>, [forward, backward]: [u64; 2]) {
        let place = self.layout.place(self.rank);
        let at = |stage: usize| self.layout.rank(Place { stage, ..place });
        if place.stage + 1 < self.layout.stages {
            self.bytes[at(place.stage + 1)] += forward * demand.border;
        }
        if place.stage > 0 && demand.backward_from() < span.start {
            self.bytes[at(place.stage - 1)] += backward * demand.border;
        }
    }
}
