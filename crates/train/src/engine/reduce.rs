//! From gradients to updated weights: reduction over the ranks, norm, update.
//!
//! ```text
//! whole gradients --reduce-scatter over shards--> own part --all-reduce over replicas--> own part
//!                                                                                       norm, clip, update
//! whole weights  <--all-gather over shards-------------------------------------------- own part
//! ```
//!
//! A group's reduction begins when the last backward visit that adds to it is left: once in an optimiser step, or, where
//! gradients are held in parts, once in each micro-batch. Groups of one rank take the same way, on which
//! each collective is then the identity. Experts that lie on one rank of a shard group alone are reduced over replicas only.

use super::Engine;
use super::group::{Group, RateClass, Training};
use crate::Result;
use ferrotune_config::plan::{AdamWPlan, LoraPlus};
use ferrotune_tensor::{DType, Device, Kind, Param, Segment, Tensor, ops};

/// The numbers of one optimiser step.
#[derive(Debug, Clone, Copy)]
pub struct Update {
    /// Learning rate.
    pub rate: f64,
    /// Steps taken, this one included.
    pub step: u64,
    /// What the loss was multiplied by, and so the gradients are.
    pub scale: f64,
    /// LoRA+.
    pub plus: Option<LoraPlus>,
}

impl Engine {
    /// Where a parameter's gradient is added, in f32.
    pub(super) fn open_gradient(&self, param: &Param) -> Tensor {
        let place = self.place(param);
        let group = &self.groups[place.group];
        let training = group.training.as_ref().expect("ops ask only for the gradients of parameters that train");
        let whole = if group.cut.grads {
            training.open.borrow_mut().get_or_insert_with(|| self.no_gradient(group)).clone()
        } else {
            training.grads.clone()
        };
        whole.view(4 * place.start, place.shape(param), DType::F32)
    }

    fn no_gradient(&self, group: &Group) -> Tensor {
        self.device.zeros([group.elements], DType::F32, Kind::Grad)
    }

    fn trained(&self) -> impl Iterator<Item = (&Group, &Training)> {
        self.groups.iter().filter_map(|group| group.training.as_ref().map(|training| (group, training)))
    }

    /// Sets all gradients to zero.
    pub fn zero_grads(&self) {
        self.trained().for_each(|(_, training)| training.grads.zero());
    }

    /// A micro-batch begins; after the backward pass of the `last` one of a step, gradients are complete.
    pub fn begin_micro_batch(&self, last: bool) {
        self.last_micro_batch.set(last);
    }

    /// The backward visit of a segment is over: begins the reductions that nothing is added to any more.
    pub(super) fn reduce(&self, segment: Segment) {
        for &number in &self.by_segment[segment.0] {
            let group = &self.groups[number];
            let Some(training) = &group.training else { continue };
            if group.cut.grads {
                self.add_part(number, group, training);
            } else if self.last_micro_batch.get() && group.class.segments[0] == segment && !group.class.twin {
                self.reduce_whole(group, training);
            }
            if !self.division.overlap {
                self.land();
            }
        }
    }

    /// Sums a micro-batch's gradients over the shard group; what is this rank's is added to what it has.
    fn add_part(&self, number: usize, group: &Group, training: &Training) {
        self.land_parts(Some(number));
        // Absent gradients are zeros: whether a collective takes place may not depend on data.
        let whole = training.open.borrow_mut().take().unwrap_or_else(|| self.no_gradient(group));
        let part = group.own_of(&whole);
        let ticket = self.division.mesh.shard.reduce_scatter(&whole, &part);
        drop(whole);
        self.parts.borrow_mut().push((number, part, ticket));
    }

    /// Waits for parts on their way, of one group or of all, and adds them.
    fn land_parts(&self, of: Option<usize>) {
        let parts = std::mem::take(&mut *self.parts.borrow_mut());
        let (landing, flying): (Vec<_>, Vec<_>) =
            parts.into_iter().partition(|(number, ..)| of.is_none_or(|of| of == *number));
        *self.parts.borrow_mut() = flying;
        for (number, part, ticket) in landing {
            self.heed(ticket.wait());
            if let Some(training) = &self.groups[number].training {
                ops::add_into(&training.grads, &part);
            }
        }
    }

    fn reduce_whole(&self, group: &Group, training: &Training) {
        let (mesh, own) = (&self.division.mesh, group.own_of(&training.grads));
        let mut flying = self.flying.borrow_mut();
        // Rows of all ranks of the shard group have come to the experts that lie on one of them.
        if !group.apart {
            flying.push(mesh.shard.reduce_scatter(&training.grads, &own));
        }
        flying.push(mesh.replica.all_reduce(&own));
    }

    /// Waits for all that is on its way.
    fn land(&self) {
        let tickets = std::mem::take(&mut *self.flying.borrow_mut());
        tickets.into_iter().for_each(|ticket| self.heed(ticket.wait()));
        self.land_parts(None);
    }

    /// Ends the reductions of a step and adds the squares of this rank's part of all gradients to `squares`, `[1]` in f64.
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn reduce_grads(&self, squares: &Tensor) -> Result<()> {
        let mesh = &self.division.mesh;
        for (group, training) in self.trained().filter(|(group, _)| group.class.twin) {
            self.heed(mesh.ends.all_reduce(&training.grads).wait());
            self.reduce_whole(group, training);
        }
        self.land();
        for (_, training) in self.trained().filter(|(group, _)| group.cut.grads) {
            self.flying.borrow_mut().push(mesh.replica.all_reduce(&training.grads));
        }
        self.land();
        self.check()?;
        // A tied embedding is counted by the first stage alone.
        let counted = self.trained().filter(|(group, _)| !group.class.twin || self.division.is_first());
        let grads: Vec<_> = counted.map(|(group, training)| group.own_of(&training.grads)).collect();
        ops::add_squares(squares, &grads);
        Ok(())
    }

    /// One step of AdamW with gradients times `clip`, as [`ops::clip_factor`] gives it: none where it isn't finite.
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn update(&self, plan: &AdamWPlan, update: &Update, clip: &Tensor) -> Result<()> {
        for (group, training) in self.trained() {
            let Some(trained) = group.class.trained else { continue };
            let ratio = match (trained.rate, update.plus) {
                (RateClass::LoraB, Some(plus)) => plus.ratio,
                _ => 1.0,
            };
            let step = ops::AdamW {
                rate: update.rate * ratio,
                beta1: plan.beta1,
                beta2: plan.beta2,
                eps: plan.eps,
                weight_decay: if trained.decays { plan.weight_decay } else { 0.0 },
                step: update.step,
                grad_scale: (1.0 / update.scale) as f32,
            };
            update_part(group, training, &step, clip);
            self.spread(group);
        }
        self.land();
        self.check()
    }

    /// Begins to make the weights whole again of which each rank has updated its part.
    pub(super) fn spread(&self, group: &Group) {
        if !group.cut.weights && !group.apart {
            let ticket = self.division.mesh.shard.all_gather(&group.own_of(&group.weights), &group.weights);
            self.flying.borrow_mut().push(ticket);
        }
    }

    /// Waits for all [`spread`](Self::spread)s.
    pub(super) fn settle(&self) -> Result<()> {
        self.land();
        self.check()
    }
}

/// Updates this rank's part where its moments lie.
fn update_part(group: &Group, training: &Training, step: &ops::AdamW, clip: &Tensor) {
    let at = training.m.device();
    let (weights, grads) = (group.own_of(&group.weights), group.own_of(&training.grads));
    let (there, gradients, clip) = (brought(at, &weights), brought(at, &grads), brought(at, clip));
    ops::adamw(&there, training.master.as_ref(), (&gradients, Some(&clip)), (&training.m, &training.v), step);
    if !there.same_bytes(&weights) {
        ops::copy(&weights, &there);
    }
}

/// The tensor on device `at`: itself, or a copy.
pub(super) fn brought(at: &Device, tensor: &Tensor) -> Tensor {
    if tensor.device().is(at) {
        return tensor.clone();
    }
    let copy = at.empty(tensor.shape(), tensor.dtype(), Kind::Work);
    ops::copy(&copy, tensor);
    copy
}
