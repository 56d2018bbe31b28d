//! What a rank does in one step, in order: computing, beginning transfers, waiting for them. All ranks of a stage do the
//! same, so there is one program a stage.

use super::demand::{FULLEST, UPDATED};
use super::links::Axis;
use super::traffic::{LABELS, NORM, VOTES, choices, counts, losses, tied_ends, uses};
use super::{Candidate, Demand, Group, GroupKind, Rows, Trips};
use crate::engine::{Offload, Sharding};
use ferrotune_tensor::Phase;
use std::collections::BTreeMap;
use std::ops::Range;

/// One thing that a rank does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Op {
    /// Computes for so many seconds.
    Compute(f64),
    /// Stands still while so many bytes come from the host's memory, or go there: copies are made in the order of computing.
    Fetch(u64),
    /// Hands a transfer, by its number, to the communication thread.
    Begin(usize),
    /// Stands still until a transfer has ended.
    Wait(usize),
}

/// One thing that the communication thread does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Transfer {
    /// An all-gather or a reduce-scatter of so many bytes: the same steps, the other way round.
    Half(Axis, u64),
    /// An all-reduce of so many bytes.
    Whole(Axis, u64),
    /// Of so many bytes the parts that belong to the other ranks of the shard group, one to each.
    Spread(u64),
    /// A message of so many bytes to another stage.
    Send(usize, u64),
    /// The next message of another stage.
    Receive(usize),
}

/// One stage's part of a step.
#[derive(Debug, Default)]
pub(super) struct Program {
    pub(super) ops: Vec<Op>,
    pub(super) transfers: Vec<Transfer>,
    /// The last reduction of a micro-batch's gradient, by group, not yet waited for.
    parts: BTreeMap<usize, usize>,
    /// What else is to land before the update.
    flying: Vec<usize>,
    /// Messages to other stages.
    sent: Vec<usize>,
}

/// A segment of a micro-batch in one direction.
#[derive(Debug, Clone, Copy)]
struct Visit {
    segment: usize,
    phase: Phase,
    /// First and last of its pass over the stage.
    first: bool,
    last: bool,
    /// Of the step's last micro-batch.
    closing: bool,
    /// Of a pass that only counts what routers choose.
    counting: bool,
}

/// Puts a stage's program together.
pub(super) struct Builder<'a> {
    demand: &'a Demand,
    candidate: &'a Candidate,
    stage: usize,
    span: Range<usize>,
    overlap: bool,
    offload: Offload,
    program: Program,
}

impl<'a> Builder<'a> {
    pub(super) fn new(demand: &'a Demand, candidate: &'a Candidate, stage: usize, overlap: bool) -> Self {
        let span = candidate.spans[stage].clone();
        let offload = Offload::default();
        Self { demand, candidate, stage, span, overlap, offload, program: Program::default() }
    }

    /// The same with a part of the memory in the host.
    pub(super) fn offloading(self, offload: Offload) -> Self {
        Self { offload, ..self }
    }

    /// The program of a step of `micro_batches` on each rank.
    pub(super) fn build(mut self, micro_batches: usize) -> Program {
        self.sum(LABELS);
        let visits = self.visits(micro_batches);
        if self.demand.counted_experts == 0 {
            self.run(&visits);
        } else {
            // The backward pass waits for the counts; a rank's only micro-batch is counted on its way forward.
            let split = if micro_batches > 1 { 0 } else { visits.partition_point(|v| v.phase == Phase::Forward) };
            self.run(&self.counting_visits(micro_batches));
            self.run(&visits[..split]);
            let choices = self.begin(Transfer::Whole(Axis::World, choices(self.demand)));
            self.wait(choices);
            self.run(&visits[split..]);
        }
        self.finish(micro_batches);
        self.program
    }

    fn run(&mut self, visits: &[Visit]) {
        let mut begun = Vec::new();
        for (i, visit) in visits.iter().enumerate() {
            if visit.first {
                self.receive(visit.phase);
            }
            let needed = if begun.is_empty() { self.begin_gathers(visit) } else { begun };
            // The next block's weights come while this one computes.
            let next = visits.get(i + 1).filter(|next| self.overlap && self.adjoins(visit, next));
            begun = next.map_or_else(Vec::new, |next| self.begin_gathers(next));
            self.fetch(visit);
            needed.into_iter().for_each(|transfer| self.wait(transfer));
            self.compute(visit);
            self.leave(visit);
        }
    }

    /// The passes that only count.
    fn counting_visits(&self, micro_batches: usize) -> Vec<Visit> {
        let mut visits = Vec::new();
        if self.demand.counts_first(micro_batches) {
            (0..micro_batches).for_each(|_| self.pass(&mut visits, Phase::Forward, false));
        }
        visits.into_iter().map(|visit| Visit { counting: true, ..visit }).collect()
    }

    /// Whether a visit is passed by: nobody counts in the head.
    fn passed_by(&self, visit: &Visit) -> bool {
        visit.counting && visit.segment + 1 == self.demand.segments.len()
    }

    /// Whether the weights of both visits may be whole at the same time: blocks of one pass.
    fn adjoins(&self, visit: &Visit, next: &Visit) -> bool {
        let block = |visit: &Visit| visit.segment > 0 && visit.segment + 1 < self.demand.segments.len();
        !next.first && block(visit) && block(next)
    }

    /// One forward and one backward in turn, after as many forwards as there are stages behind this one (1F1B).
    fn visits(&self, micro_batches: usize) -> Vec<Visit> {
        let ahead = (self.candidate.layout.stages - 1 - self.stage).min(micro_batches);
        let mut visits = Vec::new();
        (0..ahead).for_each(|_| self.pass(&mut visits, Phase::Forward, false));
        for i in 0..micro_batches {
            if ahead + i < micro_batches {
                self.pass(&mut visits, Phase::Forward, false);
            }
            self.pass(&mut visits, Phase::Backward, i + 1 == micro_batches);
        }
        visits
    }

    fn pass(&self, visits: &mut Vec<Visit>, phase: Phase, closing: bool) {
        let first = visits.len();
        let visit = |segment| Visit { segment, phase, first: false, last: false, closing, counting: false };
        match phase {
            Phase::Forward => visits.extend(self.span.clone().map(visit)),
            Phase::Backward => {
                let start = self.span.start.max(self.demand.backward_from());
                visits.extend((start..self.span.end).rev().map(visit));
            }
        }
        if let [begin, ..] = &mut visits[first..] {
            begin.first = true;
        }
        if let [.., end] = &mut visits[first..] {
            end.last = true;
        }
    }

    fn groups(&self) -> impl Iterator<Item = &'a Group> + use<'a> {
        let (demand, span) = (self.demand, self.span.clone());
        demand.groups.iter().filter(move |group| uses(group, &span) > 0)
    }

    fn begin(&mut self, transfer: Transfer) -> usize {
        self.program.transfers.push(transfer);
        let number = self.program.transfers.len() - 1;
        self.program.ops.push(Op::Begin(number));
        number
    }

    fn wait(&mut self, transfer: usize) {
        self.program.ops.push(Op::Wait(transfer));
    }

    /// A sum of a few numbers, which is an all-gather.
    fn sum(&mut self, (axis, numbers): (Axis, u64)) {
        let ranks = axis.len(self.candidate.layout) as u64;
        let sum = self.begin(Transfer::Half(axis, 8 * numbers * ranks));
        self.wait(sum);
    }

    fn begin_gathers(&mut self, visit: &Visit) -> Vec<usize> {
        if self.candidate.sharded < Sharding::Weights || self.passed_by(visit) {
            return Vec::new();
        }
        let shards = self.candidate.layout.shards;
        let now = (visit.segment, visit.phase);
        let read = |group: &&Group| group.kind != GroupKind::Adapter && group.visits.contains(&now);
        let bytes: Vec<u64> = self.groups().filter(read).map(|group| group.padded(shards)).collect();
        bytes.into_iter().map(|bytes| self.begin(Transfer::Half(Axis::Shard, bytes))).collect()
    }

    /// The rank's own part of the weights of a visit, where they lie in the host.
    fn fetch(&mut self, visit: &Visit) {
        if !self.offload.weights || self.passed_by(visit) {
            return;
        }
        let now = (visit.segment, visit.phase);
        let read = |group: &&Group| group.kind != GroupKind::Adapter && group.visits.contains(&now);
        let bytes = self.groups().filter(read).map(|group| self.candidate.weights_held(group)).sum();
        self.program.ops.push(Op::Fetch(bytes));
    }

    /// Waits for the activation of the stage before, or for the gradient of the stage behind.
    fn receive(&mut self, phase: Phase) {
        let from = match phase {
            Phase::Forward => self.stage.checked_sub(1),
            Phase::Backward => Some(self.stage + 1).filter(|stage| *stage < self.candidate.layout.stages),
        };
        if let Some(from) = from {
            let message = self.begin(Transfer::Receive(from));
            self.wait(message);
        }
    }

    fn compute(&mut self, visit: &Visit) {
        let cost = &self.demand.segments[visit.segment];
        let spread = self.candidate.sharded == Sharding::Experts && cost.rows.experts > 0 && !self.passed_by(visit);
        if spread {
            self.spread(&cost.rows, cost.rows.trips[usize::from(visit.phase == Phase::Backward)]);
        }
        let seconds = match visit.phase {
            Phase::Forward if visit.counting => self.demand.census(visit.segment),
            Phase::Forward => cost.forward,
            Phase::Backward => cost.backward,
        };
        let fullest = if spread { 1.0 + (FULLEST - 1.0) * cost.rows.share } else { 1.0 };
        self.program.ops.push(Op::Compute(seconds * fullest));
    }

    /// The rows of a visit, which somebody waits for each time.
    fn spread(&mut self, rows: &Rows, trips: Trips) {
        let ranks = self.candidate.layout.shards as u64;
        let mut transfers = Vec::new();
        for _ in 0..trips.forward {
            transfers.push(Transfer::Half(Axis::Shard, counts(rows) * ranks));
            transfers.extend([rows.bytes, rows.keys, rows.bytes].map(Transfer::Spread));
        }
        transfers.extend((0..trips.gradients + trips.back).map(|_| Transfer::Spread(rows.bytes)));
        for transfer in transfers {
            let begun = self.begin(transfer);
            self.wait(begun);
        }
    }

    fn leave(&mut self, visit: &Visit) {
        let demand = self.demand;
        for (number, group) in demand.groups.iter().enumerate() {
            if visit.phase == Phase::Backward && group.segments.contains(&visit.segment) {
                self.reduce(visit, number, group);
            }
        }
        if visit.last {
            self.send(visit.phase);
        }
    }

    fn send(&mut self, phase: Phase) {
        let to = match phase {
            Phase::Forward => Some(self.stage + 1).filter(|stage| *stage < self.candidate.layout.stages),
            Phase::Backward => self.stage.checked_sub(1).filter(|_| self.demand.backward_from() < self.span.start),
        };
        if let Some(to) = to {
            let message = self.begin(Transfer::Send(to, self.demand.border));
            self.program.sent.push(message);
        }
    }

    /// Begins what has to land before the update.
    fn begin_flying(&mut self, transfer: Transfer) {
        let number = self.begin(transfer);
        self.program.flying.push(number);
    }

    fn land(&mut self) {
        let flying = std::mem::take(&mut self.program.flying);
        let parts = std::mem::take(&mut self.program.parts);
        flying.into_iter().chain(parts.into_values()).for_each(|transfer| self.wait(transfer));
    }

    /// Whether the group's gradient is scattered in each micro-batch.
    fn each_time(&self, group: &Group) -> bool {
        group.kind == GroupKind::Trained && self.candidate.sharded >= Sharding::Gradients
    }

    /// The reduction of a group when a backward visit that adds to its gradient is left.
    fn reduce(&mut self, visit: &Visit, number: usize, group: &Group) {
        if group.kind == GroupKind::Frozen {
            return;
        }
        let first = group.segments.iter().find(|segment| self.span.contains(segment));
        if self.each_time(group) {
            if let Some(before) = self.program.parts.remove(&number) {
                self.wait(before);
            }
            let part = self.begin(Transfer::Half(Axis::Shard, group.gradient(self.candidate.layout.shards)));
            self.program.parts.insert(number, part);
        } else if visit.closing && first == Some(&visit.segment) && !tied_ends(group, self.candidate) {
            self.reduce_whole(group);
        }
        if !self.overlap {
            self.land();
        }
    }

    fn reduce_whole(&mut self, group: &Group) {
        let layout = self.candidate.layout;
        if self.candidate.spreads(group) {
            let gradient = group.share(layout.shards, 0) / group.element * 4;
            return self.begin_flying(Transfer::Whole(Axis::Replica, gradient));
        }
        let gradient = group.gradient(layout.shards);
        self.begin_flying(Transfer::Half(Axis::Shard, gradient));
        self.begin_flying(Transfer::Whole(Axis::Replica, gradient / layout.shards as u64));
    }

    /// What is left to reduce, norm and losses, the update, and the new weights.
    fn finish(&mut self, micro_batches: usize) {
        let (layout, sharded) = (self.candidate.layout, self.candidate.sharded);
        let shards = layout.shards;
        std::mem::take(&mut self.program.sent).into_iter().for_each(|message| self.wait(message));
        let trained: Vec<&Group> = self.groups().filter(|group| group.kind != GroupKind::Frozen).collect();
        for group in trained.iter().filter(|group| tied_ends(group, self.candidate)) {
            let gradient = group.gradient(shards);
            let held = if self.each_time(group) { gradient / shards as u64 } else { gradient };
            self.begin_flying(Transfer::Whole(Axis::Ends, held));
            self.land();
            if !self.each_time(group) {
                self.reduce_whole(group);
            }
        }
        self.land();
        for group in &trained {
            if self.each_time(group) {
                self.begin_flying(Transfer::Whole(Axis::Replica, group.gradient(shards) / shards as u64));
            }
        }
        self.land();
        self.sum(NORM);
        let told = losses(micro_batches as u64) * layout.world() as u64;
        let told = self.begin(Transfer::Half(Axis::World, told));
        self.wait(told);
        let all: u64 = self.demand.groups.iter().map(|group| group.gradient(1)).sum();
        for group in trained {
            let share = group.gradient(1) as f64 / all as f64 / shards as f64;
            self.program.ops.push(Op::Compute(self.demand.update * share));
            if self.offload.optimizer {
                // The gradient goes there and weights come back, and the host's memory moves what a card's would.
                let parameters = group.padded(shards) / shards as u64 / group.element;
                self.program.ops.push(Op::Fetch(parameters * (4 + 2 * group.element + UPDATED as u64)));
            }
            let stays =
                self.candidate.spreads(group) || group.kind == GroupKind::Trained && sharded == Sharding::Weights;
            if !stays {
                self.begin_flying(Transfer::Half(Axis::Shard, group.padded(shards)));
            }
        }
        self.land();
        self.sum(VOTES);
    }
}
