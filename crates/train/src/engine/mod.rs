//! The engine: holds weights, gradients and optimiser states in flat groups, and is the tape's host.
//!
//! A group is all parameters that one set of segments reads and that are treated alike: frozen or trained, one dtype,
//! one rate, decayed or not. It lies in one flat buffer, each parameter at a multiple of 64 bytes, so that a strategy moves
//! and updates ranges and never single tensors.

mod load;
mod state;

pub use load::LoadedAdapter;
pub use state::NamedState;

use crate::Result;
use ferrotune_config::plan::{AdamWPlan, LoraPlus};
use ferrotune_dist::Comm;
use ferrotune_model::{Model, Parameter, Role};
use ferrotune_tensor::{DType, Device, Host, Kind, Param, Phase, Segment, Tensor, ops};
use std::rc::Rc;

/// Parameters begin at multiples of so many bytes in their group.
const ALIGN: usize = 64;

/// Where a parameter lies.
#[derive(Debug, Clone, Copy)]
struct Place {
    group: usize,
    /// Byte offset in the group's weights.
    offset: usize,
}

/// What makes parameters members of one group.
#[derive(Debug, Clone, PartialEq)]
struct Class {
    segments: Vec<Segment>,
    dtype: DType,
    trained: Option<Trained>,
}

/// How a trained group is updated.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Trained {
    decays: bool,
    rate: RateClass,
}

/// Which rate a group is trained at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RateClass {
    Base,
    /// LoRA+: B matrices.
    LoraB,
}

struct Group {
    class: Class,
    weights: Tensor,
    training: Option<Training>,
}

/// What a trained group holds besides its weights; all `[elements]` in f32.
struct Training {
    grads: Tensor,
    m: Tensor,
    v: Tensor,
    /// f32 copy of bf16 weights.
    master: Option<Tensor>,
}

/// Weights, gradients and optimiser states of one rank.
pub struct Engine {
    device: Device,
    comm: Rc<dyn Comm>,
    parameters: Vec<Parameter>,
    places: Vec<Place>,
    groups: Vec<Group>,
    /// Segments with a trained parameter.
    trains: Vec<bool>,
}

/// The numbers of one optimiser step.
#[derive(Debug, Clone, Copy)]
pub struct Update {
    /// Learning rate.
    pub rate: f64,
    /// Steps taken, this one included.
    pub step: u64,
    /// Largest gradient norm; 0 for no limit.
    pub max_norm: f64,
    /// LoRA+.
    pub plus: Option<LoraPlus>,
}

impl Engine {
    /// Allocates everything that lives as long as the run.
    pub fn new(device: &Device, model: &Model, comm: Rc<dyn Comm>, plus: bool) -> Self {
        let parameters = model.parameters().to_vec();
        let mut classes: Vec<(Class, usize)> = Vec::new();
        let mut places = Vec::new();
        let mut trains = vec![false; model.segments()];
        for parameter in &parameters {
            let class = class_of(parameter, plus);
            let group = match classes.iter().position(|(c, _)| *c == class) {
                Some(group) => group,
                None => {
                    classes.push((class, 0));
                    classes.len() - 1
                }
            };
            let size = &mut classes[group].1;
            places.push(Place { group, offset: *size });
            *size += parameter.param.dtype.bytes(parameter.param.shape.numel()).next_multiple_of(ALIGN);
            if parameter.param.trainable {
                parameter.param.segments.iter().for_each(|s| trains[s.0] = true);
            }
        }
        let groups = classes.into_iter().map(|(class, bytes)| Group::new(device, class, bytes)).collect();
        Self { device: device.clone(), comm, parameters, places, groups, trains }
    }

    /// The device everything lies on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The ranks of the run.
    pub fn comm(&self) -> &dyn Comm {
        &*self.comm
    }

    /// The model's parameters.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Trained and all parameters, in elements.
    pub fn counts(&self) -> (usize, usize) {
        let count = |trained: bool| {
            let of = self.parameters.iter().filter(|p| !trained || p.param.trainable);
            of.map(|p| p.param.shape.numel()).sum()
        };
        (count(true), count(false))
    }

    /// A parameter's data.
    pub fn value(&self, param: &Param) -> Tensor {
        let place = self.places[param.id];
        self.groups[place.group].weights.view(place.offset, param.shape, param.dtype)
    }

    /// The f32 copy of a bf16 parameter that trains, otherwise its data: what is saved.
    pub fn precise_value(&self, param: &Param) -> Tensor {
        let place = self.places[param.id];
        match self.groups[place.group].training.as_ref().and_then(|t| t.master.as_ref()) {
            Some(master) => master.view(place.offset * 4 / param.dtype.bytes(1), param.shape, DType::F32),
            None => self.value(param),
        }
    }

    /// A trained parameter's gradient, in f32.
    pub fn gradient(&self, param: &Param) -> Option<Tensor> {
        let place = self.places[param.id];
        let training = self.groups[place.group].training.as_ref()?;
        Some(training.grads.view(place.offset * 4 / param.dtype.bytes(1), param.shape, DType::F32))
    }

    /// Sets all gradients to zero.
    pub fn zero_grads(&self) {
        self.groups.iter().filter_map(|g| g.training.as_ref()).for_each(|t| t.grads.zero());
    }

    /// Sums gradients over the ranks and returns their global norm.
    pub fn reduce_grads(&self) -> Result<f64> {
        let mut squares = 0.0;
        for training in self.groups.iter().filter_map(|g| g.training.as_ref()) {
            self.comm.all_reduce(&training.grads).wait()?;
            squares += ops::sum_of_squares(&training.grads);
        }
        Ok(squares.sqrt())
    }

    /// Name of the first parameter, in the model's order, whose gradient holds an infinite value or NaN.
    pub fn first_bad_gradient(&self) -> Option<&str> {
        let bad = |p: &&Parameter| self.gradient(&p.param).is_some_and(|g| !ops::all_finite(&g));
        self.parameters.iter().filter(|p| p.param.trainable).find(bad).map(|p| p.param.name.as_str())
    }

    /// Name of the first parameter whose data holds an infinite value or NaN.
    pub fn first_bad_weight(&self) -> Option<&str> {
        let bad = |p: &&Parameter| !ops::all_finite(&self.value(&p.param));
        self.parameters.iter().find(bad).map(|p| p.param.name.as_str())
    }

    /// One step of AdamW with gradients of the global norm `norm`, clipped as torch's `clip_grad_norm_` does.
    pub fn update(&self, plan: &AdamWPlan, update: &Update, norm: f64) {
        let clip = if update.max_norm > 0.0 { (update.max_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
        for group in &self.groups {
            let (Some(trained), Some(training)) = (group.class.trained, &group.training) else { continue };
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
                grad_scale: clip as f32,
            };
            ops::adamw(&group.weights, training.master.as_ref(), &training.grads, (&training.m, &training.v), &step);
        }
    }
}

fn class_of(parameter: &Parameter, plus: bool) -> Class {
    let param = &parameter.param;
    let rate = if plus && parameter.role == Role::LoraB { RateClass::LoraB } else { RateClass::Base };
    let trained = param.trainable.then(|| Trained { decays: parameter.decays(), rate });
    Class { segments: param.segments.clone(), dtype: param.dtype, trained }
}

impl Group {
    fn new(device: &Device, class: Class, bytes: usize) -> Self {
        let elements = bytes / class.dtype.bytes(1);
        let weights = device.zeros([elements], class.dtype, Kind::Weight);
        let flat = |kind| device.zeros([elements], DType::F32, kind);
        let training = class.trained.map(|_| Training {
            grads: flat(Kind::Grad),
            m: flat(Kind::Optim),
            v: flat(Kind::Optim),
            master: (class.dtype != DType::F32).then(|| flat(Kind::Optim)),
        });
        Self { class, weights, training }
    }
}

impl Host for Engine {
    fn weight(&self, param: &Param) -> Tensor {
        self.value(param)
    }

    fn grad(&self, param: &Param) -> Tensor {
        self.gradient(param).expect("ops ask only for the gradients of parameters that train")
    }

    fn trains(&self, segment: Segment) -> bool {
        self.trains[segment.0]
    }

    fn enter(&self, _segment: Segment, _phase: Phase) {}

    fn leave(&self, _segment: Segment, _phase: Phase) {}
}
