//! The engine: holds weights, gradients and optimiser states in flat groups, and is the tape's host.
//!
//! A group is all parameters that one set of segments reads and that are treated alike: frozen or trained, one dtype,
//! one rate, decayed or not, of experts or of what all tokens pass. It lies in one flat buffer, each parameter at a multiple
//! of 64 bytes, so that ranks share, move and update ranges and never single tensors. What is shared is a [`Division`]; the model knows nothing of it.

mod division;
mod experts;
mod gather;
mod group;
mod load;
mod reduce;
mod state;

pub use division::{Division, Offload, Sharding};
pub use gather::Alone;
pub use load::LoadedAdapter;
pub use reduce::Update;
pub use state::Piece;

use crate::{Error, Result};
use ferrotune_dist::{Comm, CommError, Ticket};
use ferrotune_model::{Model, Parameter};
use ferrotune_tensor::{DType, Device, Param, Phase, Segment, Tensor, ops};
use group::{ALIGN, Class, Group, Place};
use std::cell::{Cell, RefCell};
use std::time::Instant;

/// Weights, gradients and optimiser states of one rank.
pub struct Engine {
    device: Device,
    /// Where offloaded states lie; `device` itself if nothing is offloaded.
    host: Device,
    division: Division,
    parameters: Vec<Parameter>,
    /// `None` for parameters of other stages.
    places: Vec<Option<Place>>,
    groups: Vec<Group>,
    /// Groups that each segment reads.
    by_segment: Vec<Vec<usize>>,
    /// Segments with a trained parameter, on whatever rank.
    trains: Vec<bool>,
    visit: Cell<(Segment, Phase)>,
    /// When it began, if somebody wants to know.
    entered: Cell<Option<Instant>>,
    last_micro_batch: Cell<bool>,
    /// The highest count of a device that only counts, and the visit at whose end it was seen first.
    fullest: Cell<(u64, Option<(Segment, Phase)>)>,
    /// Collectives on the whole of a group.
    flying: RefCell<Vec<Ticket>>,
    /// Sums under way that are to be added to a group's part.
    parts: RefCell<Vec<(usize, Tensor, Ticket)>>,
    /// The first collective that failed; all further work runs through without effect.
    lost: RefCell<Option<CommError>>,
}

impl Engine {
    /// Allocates everything that lives as long as the run. `plus`: B matrices have a rate of their own.
    pub fn new(device: &Device, model: &Model, division: Division, plus: bool) -> Self {
        let offloads = division.offload.optimizer || division.offload.weights;
        let host = if offloads { device.host() } else { device.clone() };
        let parameters = model.parameters().to_vec();
        let mut classes: Vec<(Class, usize)> = Vec::new();
        let mut places = Vec::new();
        let mut trains = vec![false; model.segments()];
        for parameter in &parameters {
            let param = &parameter.param;
            if param.trainable {
                param.segments.iter().for_each(|s| trains[s.0] = true);
            }
            places.push(Class::of(parameter, plus, &division).map(|class| {
                let known = classes.iter().position(|(c, _)| *c == class);
                let group = known.unwrap_or_else(|| {
                    classes.push((class, 0));
                    classes.len() - 1
                });
                let held = division.takes_part_in(parameter, division.mesh.place().shard);
                let bytes = &mut classes[group].1;
                let start = *bytes / param.dtype.bytes(1);
                *bytes += param.dtype.bytes(held.len()).next_multiple_of(ALIGN);
                Place { group, start, first: held.start, len: held.len() }
            }));
        }
        let groups: Vec<Group> =
            classes.into_iter().map(|(class, bytes)| Group::new(device, &host, class, bytes, &division)).collect();
        let reads = |segment: usize| -> Vec<usize> {
            (0..groups.len()).filter(|&g| groups[g].class.segments.contains(&Segment(segment))).collect()
        };
        let by_segment = (0..model.segments()).map(reads).collect();
        Self {
            device: device.clone(),
            host,
            division,
            parameters,
            places,
            groups,
            by_segment,
            trains,
            visit: Cell::new((Segment(0), Phase::Forward)),
            entered: Cell::default(),
            last_micro_batch: Cell::new(true),
            fullest: Cell::default(),
            flying: RefCell::default(),
            parts: RefCell::default(),
            lost: RefCell::default(),
        }
    }

    /// The device that computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Where offloaded states lie: another device's memory, or `device` itself.
    pub fn host_memory(&self) -> &Device {
        &self.host
    }

    /// How the run is divided.
    pub fn division(&self) -> &Division {
        &self.division
    }

    /// All ranks of the run.
    pub fn comm(&self) -> &dyn Comm {
        &*self.division.mesh.world
    }

    /// The model's parameters, those of other stages among them.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Trained and all parameters of the model, in elements.
    pub fn counts(&self) -> (usize, usize) {
        let count = |trained: bool| {
            let of = self.parameters.iter().filter(|p| !trained || p.param.trainable);
            of.map(|p| p.param.shape.numel()).sum()
        };
        (count(true), count(false))
    }

    /// A visit as pictures call it.
    fn visit_name(&self, segment: Segment, phase: Phase) -> String {
        let way = if phase == Phase::Forward { "forward" } else { "backward" };
        match segment.0.checked_sub(1) {
            None => format!("embedding {way}"),
            Some(_) if segment.0 + 1 == self.trains.len() => format!("head {way}"),
            Some(block) => format!("block {block} {way}"),
        }
    }

    /// Whether a gradient goes back to the stage before this one: something trains there.
    pub fn trains_before(&self) -> bool {
        self.trains[..self.division.span().start].iter().any(|&t| t)
    }

    /// In which segment's visit a device that only counts held most; `None` if outside all.
    pub fn fullest(&self) -> Option<(Segment, Phase)> {
        let (peak, moment) = self.fullest.get();
        moment.filter(|_| self.device.track().peak == peak)
    }

    fn place(&self, param: &Param) -> Place {
        self.places[param.id].expect("a stage asks only for parameters of its own segments")
    }

    /// A trained parameter's whole gradient, in f32, where this rank holds it; of experts that are spread over ranks that of
    /// its own.
    pub fn gradient(&self, param: &Param) -> Option<Tensor> {
        let place = self.places[param.id]?;
        let group = &self.groups[place.group];
        let training = group.training.as_ref().filter(|_| !group.cut.grads)?;
        Some(training.grads.view(4 * place.start, place.shape(param), DType::F32))
    }

    /// The elements of a parameter that lie on this rank, flat, and which they are.
    fn part(&self, param: &Param) -> Option<(std::ops::Range<usize>, Tensor)> {
        let place = self.places[param.id]?;
        let group = &self.groups[place.group];
        let (range, start) = place.within(&group.held());
        let view = || group.weights.view(param.dtype.bytes(start), [range.len()], param.dtype);
        (!range.is_empty()).then(|| (range.clone(), view()))
    }

    /// Name of the first parameter, in the model's order, whose gradient holds an infinite value or NaN on this rank.
    pub fn first_bad_gradient(&self) -> Option<&str> {
        let bad = |param: &Param| -> Option<bool> {
            let place = self.places[param.id]?;
            let group = &self.groups[place.group];
            let grads = &group.training.as_ref()?.grads;
            let among = if group.cut.grads { group.own.clone() } else { 0..group.elements };
            let (range, start) = place.within(&among);
            Some(!ops::all_finite(&grads.view(4 * start, [range.len()], DType::F32)))
        };
        self.parameters.iter().map(|p| &p.param).find(|param| bad(param) == Some(true)).map(|p| p.name.as_str())
    }

    /// Name of the first parameter whose data holds an infinite value or NaN on this rank.
    pub fn first_bad_weight(&self) -> Option<&str> {
        let bad = |param: &Param| self.part(param).is_some_and(|(_, part)| !ops::all_finite(&part));
        self.parameters.iter().map(|p| &p.param).find(|param| bad(param)).map(|p| p.name.as_str())
    }

    /// Takes note of a collective's end. After the first that failed, the device runs through without touching data.
    fn heed(&self, result: std::result::Result<(), CommError>) {
        if let Err(error) = result {
            self.device.stop(error.to_string());
            self.lost.borrow_mut().get_or_insert(error);
        }
    }

    /// Lets the devices work again that ran out of memory: what they were asked for since is gone, what they had is as it was.
    pub fn recover(&self) {
        self.device.recover();
        self.host.recover();
    }

    /// What went wrong since the run began: a lost rank, or no memory.
    ///
    /// # Errors
    /// The first of these.
    pub fn check(&self) -> Result<()> {
        if let Some(error) = &*self.lost.borrow() {
            return Err(Error::Comm(error.clone()));
        }
        self.device.check()?;
        Ok(self.host.check()?)
    }
}
