//! What a run will take: the very training step, run on the `meta` device, for the longest batch in the data, by a rank
//! that only imagines the others.

use crate::engine::{Division, Engine, Offload};
use crate::plan::Candidate;
use crate::step::{Sample, StepOptions, Votes, Work, step};
use crate::{Error, Result};
use ferrotune_config::plan::{ParallelPlan, Recompute};
use ferrotune_data::rows::Row;
use ferrotune_dist::{Comm, Imagined, Mesh, Place};
use ferrotune_model::Model;
use ferrotune_tensor::{Device, Track, cpu};
use std::rc::Rc;

/// How a run is split, before there is anything to split.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    /// Ranks, shards and stages.
    pub candidate: Candidate,
    /// Gathers and reductions run beside the computation.
    pub overlap: bool,
    /// What lies in host memory.
    pub offload: Offload,
}

impl Shape {
    /// The shape of a recipe's wishes and a choice.
    pub fn new(candidate: Candidate, plan: &ParallelPlan) -> Self {
        let offload = Offload { optimizer: plan.offload_optimizer, weights: plan.offload_parameters };
        Self { candidate, overlap: plan.overlap, offload }
    }

    /// The division of the ranks of `world`.
    pub fn division(&self, world: Rc<dyn Comm>) -> Division {
        let Candidate { layout, sharded, spans } = &self.candidate;
        let mesh = Mesh::new(world, *layout);
        let (overlap, offload) = (self.overlap, self.offload);
        Division { mesh, sharding: *sharded, spans: spans.clone(), overlap, offload }
    }
}

/// Bytes of a step over `lengths`, one row each, in every micro-batch: those of the fullest rank, and those that it keeps
/// in host memory beside them.
pub fn predict(model: &Model, options: &StepOptions, shape: &Shape, lengths: &[usize]) -> Result<(Track, u64)> {
    let layout = shape.candidate.layout;
    let mut fullest: Option<(Track, u64)> = None;
    for stage in 0..layout.stages {
        let rank = layout.rank(Place { shard: 0, stage, replica: 0 });
        let found = count(model, options, shape.division(Rc::new(Imagined::new(rank, layout.world()))), lengths)?;
        if fullest.as_ref().is_none_or(|(track, host)| found.0.peak + found.1 > track.peak + host) {
            fullest = Some(found);
        }
    }
    Ok(fullest.unwrap_or_default())
}

fn count(model: &Model, options: &StepOptions, division: Division, lengths: &[usize]) -> Result<(Track, u64)> {
    let device = Device::meta();
    let stages = division.spans.len();
    let engine = Engine::new(&device, model, division, options.plus.is_some());
    let rows: Vec<Flat> = lengths.iter().map(|&len| Flat::new(len)).collect();
    let samples: Vec<Sample<'_>> =
        rows.iter().enumerate().map(|(index, row)| Sample { row: row.row(), index }).collect();
    // As many micro-batches as a pipe holds at once; and a second step, for which gathers begin ahead.
    let micro_batches = vec![samples; stages];
    for number in 1..=2 {
        let work = Work { step: number, rate: 0.0, micro_batches: &micro_batches, votes: &Votes::default };
        step(model, &engine, options, &work)?;
    }
    let host = if engine.host_memory().is(&device) { 0 } else { engine.host_memory().track().peak };
    Ok((device.track(), host))
}

/// A row of so many tokens with a label on each: the most a row of that length can cost.
struct Flat {
    ids: Vec<u32>,
    labels: Vec<i32>,
    segments: [u32; 1],
}

impl Flat {
    fn new(len: usize) -> Self {
        Self { ids: vec![0; len], labels: vec![0; len], segments: [len as u32] }
    }

    fn row(&self) -> Row<'_> {
        Row { input_ids: &self.ids, labels: &self.labels, segments: &self.segments, isolated: false, source: (0, 0) }
    }
}

/// What was decided on recomputation, with the figures behind it.
#[derive(Debug, Clone, PartialEq)]
pub struct MemoryPlan {
    /// Blocks are recomputed in the backward pass.
    pub recompute: bool,
    /// The step as it will be run, on the rank with the most.
    pub predicted: Track,
    /// What that rank keeps in host memory, which on this device is the same memory.
    pub host: u64,
    /// Bytes that the kernels' own buffers take, outside the count.
    pub constant: u64,
    /// Bytes that could be had.
    pub available: Option<u64>,
}

impl MemoryPlan {
    /// All bytes of the fullest rank.
    pub fn needed(&self) -> u64 {
        self.predicted.peak + self.host + self.constant
    }

    /// Whether they can be had.
    pub fn fits(&self) -> bool {
        self.available.is_none_or(|available| self.needed() <= available)
    }

    /// Itself, if it fits.
    ///
    /// # Errors
    /// [`Error::DoesNotFit`].
    pub fn checked(self) -> Result<Self> {
        if self.fits() {
            return Ok(self);
        }
        let (needed, available) = (self.needed(), self.available.unwrap_or_default());
        Err(Error::DoesNotFit { needed, available, recompute: self.recompute })
    }
}

/// Decides on recomputation for the longest batch, `lengths`; `available` bytes can be had, if that is known. The plan
/// that comes out may still not fit.
///
/// # Errors
/// If the step itself can't be run.
pub fn decide(
    model: &Model,
    options: &StepOptions,
    (wish, available): (Recompute, Option<u64>),
    shape: &Shape,
    lengths: &[usize],
) -> Result<MemoryPlan> {
    let constant = (cpu::scratch_bytes_per_thread() * rayon::current_num_threads()) as u64;
    let plan = |recompute| -> Result<MemoryPlan> {
        let (predicted, host) = predict(model, &StepOptions { recompute, ..options.clone() }, shape, lengths)?;
        Ok(MemoryPlan { recompute, predicted, host, constant, available })
    };
    let first = plan(wish == Recompute::On)?;
    if first.fits() || wish != Recompute::Auto { Ok(first) } else { plan(true) }
}
