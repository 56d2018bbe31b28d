//! What a run will take: the very training step, run on the `meta` device, for the longest batch in the data.

use crate::engine::{Division, Engine};
use crate::step::{Sample, StepOptions, Work, step};
use crate::{Error, Result};
use ferrotune_config::plan::Recompute;
use ferrotune_data::rows::Row;
use ferrotune_model::Model;
use ferrotune_tensor::{Device, Track, cpu};

/// Counts a step over `lengths`, one row each, in one micro-batch.
pub fn predict(model: &Model, options: &StepOptions, division: Division, lengths: &[usize]) -> Result<Track> {
    let device = Device::meta();
    let stages = division.spans.len();
    let engine = Engine::new(&device, model, division, options.plus.is_some());
    let rows: Vec<Flat> = lengths.iter().map(|&len| Flat::new(len)).collect();
    let samples: Vec<Sample<'_>> =
        rows.iter().enumerate().map(|(index, row)| Sample { row: row.row(), index }).collect();
    // As many micro-batches as a pipe holds at once; and a second step, for which gathers begin ahead.
    let micro_batches = vec![samples; stages];
    for number in 1..=2 {
        step(model, &engine, options, &Work { step: number, rate: 0.0, micro_batches: &micro_batches, stop: false })?;
    }
    Ok(device.track())
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
    /// The step as it will be run.
    pub predicted: Track,
    /// Bytes that the kernels' own buffers take, outside the count.
    pub constant: u64,
    /// Bytes that could be had.
    pub available: Option<u64>,
}

/// Decides on recomputation for the longest batch, `lengths`; `available` bytes can be had, if that is known.
///
/// # Errors
/// If the step doesn't fit even with recomputation.
pub fn decide(
    model: &Model,
    options: &StepOptions,
    wish: Recompute,
    lengths: &[usize],
    available: Option<u64>,
) -> Result<MemoryPlan> {
    let constant = (cpu::scratch_bytes_per_thread() * rayon::current_num_threads()) as u64;
    let plan = |recompute| -> Result<MemoryPlan> {
        let predicted = predict(model, &StepOptions { recompute, ..options.clone() }, Division::solo(model), lengths)?;
        Ok(MemoryPlan { recompute, predicted, constant, available })
    };
    let fits = |plan: &MemoryPlan| available.is_none_or(|available| plan.predicted.peak + constant <= available);
    let first = plan(wish == Recompute::On)?;
    if fits(&first) {
        return Ok(first);
    }
    let last = if wish == Recompute::Auto { plan(true)? } else { first };
    if fits(&last) {
        return Ok(last);
    }
    let needed = last.predicted.peak + constant;
    Err(Error::DoesNotFit { needed, available: available.unwrap_or_default(), recompute: last.recompute })
}
