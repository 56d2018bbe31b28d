//! What a rank does in one step, in order: computing, beginning transfers, waiting for them. All ranks of a stage do the
//! same, so there is one program a stage.

use super::links::Axis;
use super::traffic::{tied_ends, uses};
use super::{Candidate, Group, GroupKind, Sharded, Work};
use ferrotune_tensor::Phase;
use std::ops::Range;

/// One thing that a rank does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Op {
    /// Computes for so many seconds.
    Compute(f64),
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
    /// A sum of a few numbers over all ranks.
    Sum,
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
    /// The last reduction of a micro-batch's gradients, not yet waited for.
    flying: Option<usize>,
    /// Messages on their way.
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
}

/// Puts a stage's program together.
pub(super) struct Builder<'a> {
    work: &'a Work,
    candidate: &'a Candidate,
    stage: usize,
    span: Range<usize>,
    overlap: bool,
    program: Program,
}

impl<'a> Builder<'a> {
    pub(super) fn new(work: &'a Work, candidate: &'a Candidate, stage: usize, overlap: bool) -> Self {
        let span = candidate.spans[stage].clone();
        Self { work, candidate, stage, span, overlap, program: Program::default() }
    }

    /// The program of a step of `micro_batches` on each rank.
    pub(super) fn build(mut self, micro_batches: usize) -> Program {
        self.sum();
        let visits = self.visits(micro_batches);
        let mut begun = Vec::new();
        for (i, visit) in visits.iter().enumerate() {
            let needed = if begun.is_empty() { self.begin_gathers(visit) } else { begun };
            if visit.first {
                self.receive(visit.phase);
            }
            // The next visit's weights come while this one computes.
            let next = visits.get(i + 1).filter(|_| self.overlap);
            begun = next.map_or_else(Vec::new, |next| self.begin_gathers(next));
            needed.into_iter().for_each(|transfer| self.wait(transfer));
            self.compute(visit);
            self.leave(visit);
        }
        self.finish();
        self.program
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
        let visit = |segment| Visit { segment, phase, first: false, last: false, closing };
        match phase {
            Phase::Forward => visits.extend(self.span.clone().map(visit)),
            Phase::Backward => {
                let start = self.span.start.max(self.work.backward_from());
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
        let (work, span) = (self.work, self.span.clone());
        work.groups.iter().filter(move |group| uses(group, &span) > 0)
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

    fn sum(&mut self) {
        let sum = self.begin(Transfer::Sum);
        self.wait(sum);
    }

    fn begin_gathers(&mut self, visit: &Visit) -> Vec<usize> {
        let sharded = self.candidate.sharded == Sharded::Weights;
        if !sharded || (visit.phase == Phase::Backward && !self.work.reads_again(visit.segment)) {
            return Vec::new();
        }
        let shards = self.candidate.layout.shards;
        let read = |group: &&Group| group.kind != GroupKind::Adapter && group.segments.contains(&visit.segment);
        let bytes: Vec<u64> = self.groups().filter(read).map(|group| group.padded(shards)).collect();
        bytes.into_iter().map(|bytes| self.begin(Transfer::Half(Axis::Shard, bytes))).collect()
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
        let cost = &self.work.segments[visit.segment];
        let seconds = if visit.phase == Phase::Forward { cost.forward } else { cost.backward };
        self.program.ops.push(Op::Compute(seconds));
    }

    fn leave(&mut self, visit: &Visit) {
        if visit.last {
            self.send(visit.phase);
        }
        if visit.phase == Phase::Forward {
            return;
        }
        let read: Vec<&Group> = self.groups().filter(|group| group.segments.contains(&visit.segment)).collect();
        for group in &read {
            if self.each_time(group) {
                let shards = self.candidate.layout.shards;
                let reduction = self.begin(Transfer::Half(Axis::Shard, group.gradient(shards)));
                let before = self.program.flying.replace(reduction);
                before.into_iter().for_each(|before| self.wait(before));
                if !self.overlap {
                    self.wait(reduction);
                }
            }
        }
        if visit.closing && self.overlap {
            let last = |group: &&&Group| group.segments.iter().find(|s| self.span.contains(s)) == Some(&visit.segment);
            let complete: Vec<&Group> = read.iter().filter(last).copied().collect();
            complete.into_iter().for_each(|group| self.reduce(group));
        }
    }

    fn send(&mut self, phase: Phase) {
        let to = match phase {
            Phase::Forward => Some(self.stage + 1).filter(|stage| *stage < self.candidate.layout.stages),
            Phase::Backward => self.stage.checked_sub(1).filter(|_| self.work.backward_from() < self.span.start),
        };
        if let Some(to) = to {
            let message = self.begin(Transfer::Send(to, self.work.border));
            self.program.sent.push(message);
        }
    }

    /// Whether the group's gradient is scattered in each micro-batch.
    fn each_time(&self, group: &Group) -> bool {
        group.kind == GroupKind::Trained && self.candidate.sharded >= Sharded::Gradients
    }

    /// What a trained group's gradient goes through once a step.
    fn reduce(&mut self, group: &Group) {
        if group.kind == GroupKind::Frozen {
            return;
        }
        let layout = self.candidate.layout;
        let gradient = group.gradient(layout.shards);
        if !self.each_time(group) {
            self.begin_sent(Transfer::Half(Axis::Shard, gradient));
        }
        let own = gradient / layout.shards as u64;
        self.begin_sent(Transfer::Whole(Axis::Replica, own));
        if tied_ends(group, self.candidate) {
            self.begin_sent(Transfer::Whole(Axis::Ends, own));
        }
    }

    /// Begins what is waited for at the end of the step.
    fn begin_sent(&mut self, transfer: Transfer) {
        let number = self.begin(transfer);
        self.program.sent.push(number);
    }

    /// Reductions, the norm, the update, and the new weights.
    fn finish(&mut self) {
        let reduced_early = |group: &Group| {
            let first = group.segments.iter().find(|segment| self.span.contains(segment));
            self.overlap && first.is_some_and(|first| *first >= self.work.backward_from())
        };
        let left: Vec<&Group> = self.groups().filter(|group| !reduced_early(group)).collect();
        self.sum();
        left.into_iter().for_each(|group| self.reduce(group));
        let pending = std::mem::take(&mut self.program.sent);
        self.program.flying.take().into_iter().chain(pending).for_each(|transfer| self.wait(transfer));
        self.sum();
        let sharded = self.candidate.sharded;
        let shards = self.candidate.layout.shards;
        let trained = |groups: &mut dyn Iterator<Item = &Group>| groups.map(|group| group.gradient(1)).sum::<u64>();
        let (here, all) = (trained(&mut self.groups()), trained(&mut self.work.groups.iter()));
        if all > 0 {
            let share = here as f64 / all as f64 / shards as f64;
            self.program.ops.push(Op::Compute(self.work.update * share));
        }
        let gathered = |group: &&Group| match group.kind {
            GroupKind::Frozen => false,
            GroupKind::Adapter => true,
            GroupKind::Trained => sharded < Sharded::Weights,
        };
        let weights: Vec<u64> = self.groups().filter(gathered).map(|group| group.padded(shards)).collect();
        let gathers: Vec<usize> =
            weights.into_iter().map(|bytes| self.begin(Transfer::Half(Axis::Shard, bytes))).collect();
        gathers.into_iter().for_each(|gather| self.wait(gather));
    }
}
