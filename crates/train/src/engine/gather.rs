//! The engine as the tape's host: which bytes a parameter is at this moment.
//!
//! Where weights are held in parts, or in host memory, a visit of a segment brings its groups together and lets go of
//! them at its end. The first visits find out by themselves which groups they need (a frozen embedding isn't needed
//! in the backward pass); from then on a block's gather begins while the block before it computes. Never across the
//! borders of embedding and head, where two of the largest groups would be whole at once.

use super::Engine;
use super::group::{Group, Live};
use ferrotune_dist::Activity;
use ferrotune_dist::trace::Lane;
use ferrotune_model::Stages;
use ferrotune_tensor::ops::ExpertRanks;
use ferrotune_tensor::{Host, Kind, Param, Phase, Segment, Tensor, ops};
use std::ops::Range;

impl Engine {
    /// The whole of a group's weights; brings them together if they aren't.
    fn whole(&self, group: &Group) -> Tensor {
        if !self.visits(group) {
            return group.weights.clone();
        }
        let mut live = group.live.borrow_mut();
        let held = match std::mem::replace(&mut *live, Live::Absent) {
            Live::Absent => {
                let visit = self.visit.get();
                let mut asked = group.asked.borrow_mut();
                if !asked.contains(&visit) {
                    asked.push(visit);
                }
                self.bring(group)
            }
            held => held,
        };
        let whole = match held {
            Live::Coming(whole, ticket) => {
                self.heed(ticket.wait());
                whole
            }
            Live::Here(whole) => whole,
            Live::Absent => unreachable!("what was absent was brought"),
        };
        *live = Live::Here(whole.clone());
        whole
    }

    /// Whether the group is whole on this device only while a segment is visited.
    fn visits(&self, group: &Group) -> bool {
        group.cut.weights || !group.weights.device().is(&self.device)
    }

    /// Begins to bring a group together.
    fn bring(&self, group: &Group) -> Live {
        let whole = self.device.empty([group.elements], group.class.dtype, Kind::Gathered);
        let part = group.own_of(&whole);
        if group.cut.weights {
            ops::copy(&part, &group.weights);
            let ticket = self.division.mesh.shard.all_gather(&part, &whole);
            return Live::Coming(whole, ticket);
        }
        ops::copy(&whole, &group.weights);
        Live::Here(whole)
    }

    /// Begins the gathers that a visit is known to need.
    fn prefetch(&self, visit: (Segment, Phase)) {
        for group in self.of_segment(visit.0).filter(|g| g.cut.weights) {
            let mut live = group.live.borrow_mut();
            if matches!(*live, Live::Absent) && group.asked.borrow().contains(&visit) {
                *live = self.bring(group);
            }
        }
    }

    fn of_segment(&self, segment: Segment) -> impl Iterator<Item = &Group> {
        self.by_segment[segment.0].iter().map(|&g| &self.groups[g])
    }

    /// The visit that comes next, if it is one whose weights may be whole beside this one's: both are blocks.
    fn next_block(&self, segment: Segment, phase: Phase) -> Option<Segment> {
        let next = match phase {
            Phase::Forward => segment.0 + 1,
            Phase::Backward => segment.0.checked_sub(1)?,
        };
        let block = |s: usize| s > 0 && s + 1 < self.trains.len() && self.division.span().contains(&s);
        (block(segment.0) && block(next)).then_some(Segment(next))
    }
}

impl Host for Engine {
    fn weight(&self, param: &Param) -> Tensor {
        let place = self.place(param);
        let group = &self.groups[place.group];
        self.whole(group).view(param.dtype.bytes(place.start), place.shape(param), param.dtype)
    }

    fn grad(&self, param: &Param) -> Tensor {
        self.open_gradient(param)
    }

    fn expert_ranks(&self) -> Option<&dyn ExpertRanks> {
        self.division.spreads_experts().then_some(self)
    }

    fn trains(&self, segment: Segment) -> bool {
        self.trains[segment.0]
    }

    fn enter(&self, segment: Segment, phase: Phase) {
        let world = &self.division.mesh.world;
        self.entered.set(world.pulse().trace().begin());
        world.pulse().does(match phase {
            Phase::Forward => Activity::Forward,
            Phase::Backward => Activity::Backward,
        });
        if let Some(error) = world.ended() {
            self.heed(Err(error));
        }
        self.visit.set((segment, phase));
        if self.division.overlap {
            self.prefetch((segment, phase));
            if let Some(next) = self.next_block(segment, phase) {
                self.prefetch((next, phase));
            }
        }
    }

    fn leave(&self, segment: Segment, phase: Phase) {
        if !self.device.executes() {
            let peak = self.device.track().peak;
            if peak > self.fullest.get().0 {
                self.fullest.set((peak, Some((segment, phase))));
            }
        }
        for group in self.of_segment(segment).filter(|g| self.visits(g)) {
            match std::mem::replace(&mut *group.live.borrow_mut(), Live::Absent) {
                Live::Absent => {}
                Live::Coming(_, ticket) => self.heed(ticket.wait()),
                Live::Here(whole) => {
                    assert!(
                        whole.is_unique(),
                        "an op kept a weight of {segment:?} that lives only while it is visited"
                    );
                }
            }
        }
        if phase == Phase::Backward {
            self.reduce(segment);
        }
        let trace = self.comm().pulse().trace();
        trace.end(self.entered.take(), Lane::Computing, 0, || self.visit_name(segment, phase));
    }
}

/// A rank that walks through the model alone, though it shares optimiser states with others: each of them generates from
/// other prompts. Only where all weights lie on each rank.
pub struct Alone<'a>(pub &'a Engine);

impl Host for Alone<'_> {
    fn weight(&self, param: &Param) -> Tensor {
        self.0.weight(param)
    }

    fn grad(&self, param: &Param) -> Tensor {
        self.0.grad(param)
    }

    fn trains(&self, segment: Segment) -> bool {
        self.0.trains(segment)
    }

    fn enter(&self, segment: Segment, phase: Phase) {
        self.0.enter(segment, phase);
    }

    fn leave(&self, segment: Segment, phase: Phase) {
        self.0.leave(segment, phase);
    }
}

impl Stages for Alone<'_> {
    fn here(&self) -> Range<usize> {
        self.0.here()
    }

    fn receive(&self, stream: &Tensor) {
        self.0.receive(stream);
    }

    fn hand_on(&self, stream: &Tensor) {
        self.0.hand_on(stream);
    }

    fn share(&self, _logits: &Tensor) {}
}

impl Stages for Engine {
    fn here(&self) -> Range<usize> {
        self.division.span()
    }

    fn receive(&self, stream: &Tensor) {
        let pipe = &self.division.mesh.pipe;
        self.heed(pipe.recv(stream, pipe.rank() - 1).wait());
    }

    fn hand_on(&self, stream: &Tensor) {
        let pipe = &self.division.mesh.pipe;
        self.heed(pipe.send(stream, pipe.rank() + 1).wait());
    }

    fn share(&self, logits: &Tensor) {
        let mesh = &self.division.mesh;
        self.heed(mesh.pipe.broadcast(logits, mesh.pipe.world() - 1).wait());
        // Processors of two kinds round differently; what follows from a token must follow on all ranks.
        self.heed(mesh.shard.broadcast(logits, 0).wait());
    }
}
