//! What a snapshot holds of the engine: trained weights and moments, as stretches of parameters, so that they can be read
//! back by another layout or another number of ranks; and whole parameters brought to one rank, to be saved.

use super::Engine;
use super::group::{Group, Training};
use super::reduce::brought;
use crate::Result;
use ferrotune_dist::{Layout, Place};
use ferrotune_tensor::{DType, Device, Kind, Param, Tensor, ops};
use std::ops::Range;

/// A stretch of one tensor of a run's state that lies on this rank.
pub struct Piece {
    /// `weight.`, `m.` or `v.` before the parameter's name.
    pub name: String,
    /// Shape of the whole.
    pub shape: Vec<usize>,
    /// Which of its elements.
    pub range: Range<usize>,
    /// These elements, in f32; a view.
    pub tensor: Tensor,
}

impl Engine {
    /// What this rank saves: over all ranks, every element exactly once.
    pub fn owned(&self) -> Vec<Piece> {
        let keeper = self.division.mesh.place().replica == 0;
        self.pieces(|group| keeper && (!group.class.twin || self.division.is_first()))
    }

    /// What this rank reads when a run goes on. [`took_state`](Self::took_state) must follow on all ranks.
    pub fn wanted(&self) -> Vec<Piece> {
        self.pieces(|_| true)
    }

    fn pieces(&self, wanted: impl Fn(&Group) -> bool) -> Vec<Piece> {
        let mut all = Vec::new();
        for parameter in self.parameters.iter().filter(|p| p.param.trainable) {
            let param = &parameter.param;
            let Some(place) = self.places[param.id] else { continue };
            let group = &self.groups[place.group];
            let (Some(training), true) = (&group.training, wanted(group)) else { continue };
            let (range, start) = place.within(&group.own);
            if range.is_empty() {
                continue;
            }
            for (what, flat) in
                [("weight", precise(group, training)), ("m", training.m.clone()), ("v", training.v.clone())]
            {
                let tensor = flat.view(4 * start, [range.len()], flat.dtype());
                let name = format!("{what}.{}", param.name);
                all.push(Piece { name, shape: param.shape.dims().to_vec(), range: range.clone(), tensor });
            }
        }
        all
    }

    /// After the pieces that this rank [`wanted`](Self::wanted) were read: rounds precise copies into the weights and
    /// makes these whole. A collective.
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn took_state(&self) -> Result<()> {
        for group in self.groups.iter() {
            let Some(training) = &group.training else { continue };
            if let Some(master) = &training.master {
                ops::cast(&group.own_of(&group.weights), master);
            }
            self.spread(group);
        }
        self.settle()
    }

    /// The whole value of the parameter with this number, as it is saved, on rank 0; `None` on the others. A collective:
    /// all ranks ask for the same parameters in the same order.
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn gather(&self, parameter: usize) -> Result<Option<Tensor>> {
        let param = &self.parameters[parameter].param;
        let mesh = &self.division.mesh;
        let Place { shard, stage, replica } = mesh.place();
        let first = param.segments[0].0;
        let holder = self.division.spans.iter().position(|span| span.contains(&first)).unwrap_or(0);
        if replica > 0 {
            return Ok(None);
        }
        let value = if stage == holder { self.collect(param)? } else { None };
        if holder == 0 || shard > 0 {
            return Ok(value);
        }
        match (stage, value) {
            (0, _) => {
                let dtype = if param.trainable { DType::F32 } else { param.dtype };
                let whole = self.toward_files().empty(param.shape, dtype, Kind::Work);
                mesh.pipe.recv(&whole, holder).wait()?;
                Ok(Some(whole))
            }
            (_, Some(value)) => {
                mesh.pipe.send(&self.leaving(&value), 0).wait()?;
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    /// What is saved of a parameter that lies whole on this rank.
    ///
    /// # Panics
    /// If it doesn't.
    pub fn precise_value(&self, param: &Param) -> Tensor {
        let value = self.collect(param).ok().flatten();
        value.expect("one rank holds all")
    }

    /// Where values are brought together that go to files: from GPUs over the hosts' memory, which they must pass anyway, so that
    /// nothing of it needs room on the first rank's GPU.
    fn toward_files(&self) -> Device {
        if self.device.gpu().is_some() { self.device.host() } else { self.device.clone() }
    }

    /// A value on its way there.
    fn leaving(&self, value: &Tensor) -> Tensor {
        if value.device().gpu().is_some() { brought(&self.toward_files(), value) } else { value.clone() }
    }

    /// A parameter's parts brought together on the first rank of the shard group.
    fn collect(&self, param: &Param) -> Result<Option<Tensor>> {
        let place = self.place(param);
        let group = &self.groups[place.group];
        let master = group.training.as_ref().and_then(|t| t.master.clone());
        let flat = master.unwrap_or_else(|| group.weights.clone());
        let (mesh, part) = (&self.division.mesh, group.own.len());
        let Layout { shards, .. } = mesh.layout();
        let whole_here = flat.numel() == group.elements && !group.apart;
        let among = if whole_here { 0..group.elements } else { group.own.clone() };
        let (range, start) = place.within(&among);
        let mine = (!range.is_empty()).then(|| flat.view(flat.dtype().bytes(start), [range.len()], flat.dtype()));
        if mesh.place().shard > 0 {
            if let Some(mine) = mine.filter(|_| !whole_here) {
                mesh.shard.send(&self.leaving(&mine), 0).wait()?;
            }
            return Ok(None);
        }
        if whole_here {
            return Ok(mine.map(|value| value.reshape(param.shape)));
        }
        let whole = self.toward_files().empty([param.shape.numel()], flat.dtype(), Kind::Work);
        for from in 0..shards {
            let range = match group.apart {
                true => self.division.takes_part_in(&self.parameters[param.id], from),
                false => place.within(&(from * part..(from + 1) * part)).0,
            };
            if range.is_empty() {
                continue;
            }
            let to = whole.view(flat.dtype().bytes(range.start), [range.len()], flat.dtype());
            match mine.as_ref().filter(|_| from == 0) {
                Some(mine) => ops::copy(&to, mine),
                None => mesh.shard.recv(&to, from).wait()?,
            }
        }
        Ok(Some(whole.reshape(param.shape)))
    }
}

/// This rank's part in f32: its own copy where the weights are rounded, else the weights.
fn precise(group: &Group, training: &Training) -> Tensor {
    training.master.clone().unwrap_or_else(|| group.own_of(&group.weights))
}
