//! Which rows a step trains on: a pure function of the step's number, so that a run resumes without reading what it
//! has already seen.
//!
//! As transformers counts: a micro-batch is consecutive rows of the epoch's order; ranks take micro-batches in turn,
//! beginning again at the epoch's first where they don't come out even; the last step of an epoch may hold fewer
//! micro-batches, and a new epoch starts a new step.

use ferrotune_config::plan::{RunLength, TrainPlan};
use ferrotune_data::Sampler;

/// The order of a run.
#[derive(Debug, Clone)]
pub struct Order {
    rows: usize,
    micro_batch: usize,
    accumulation: usize,
    rank: usize,
    world: usize,
    /// Micro-batches of an epoch, over all ranks, before wrapping.
    micro_batches: usize,
    steps_per_epoch: u64,
    total_steps: u64,
    epochs: f64,
    sampler: Sampler,
}

impl Order {
    /// The order over `rows` rows, at least one, as `rank` of `world` sees it.
    pub fn new(rows: usize, plan: &TrainPlan, rank: usize, world: usize) -> Self {
        let micro_batches = match rows / plan.micro_batch {
            // One incomplete micro-batch is all there is: leaving it out would leave nothing.
            0 => 1,
            whole if plan.drop_last => whole,
            _ => rows.div_ceil(plan.micro_batch),
        };
        let steps_per_epoch = micro_batches.div_ceil(world).div_ceil(plan.accumulation) as u64;
        let (total_steps, epochs) = match plan.length {
            RunLength::Epochs(epochs) => ((epochs * steps_per_epoch as f64).ceil() as u64, epochs),
            RunLength::Steps(steps) => (steps, steps.div_ceil(steps_per_epoch) as f64),
        };
        let sampler = Sampler::new(rows, plan.data_seed, plan.shuffle);
        let TrainPlan { micro_batch, accumulation, .. } = *plan;
        Self { rows, micro_batch, accumulation, rank, world, micro_batches, steps_per_epoch, total_steps, epochs, sampler }
    }

    /// Optimiser steps of the run.
    pub fn total_steps(&self) -> u64 {
        self.total_steps
    }

    /// Optimiser steps of an epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        self.steps_per_epoch
    }

    /// `num_train_epochs` as transformers reports it: as asked for, or what `max_steps` comes to, rounded up.
    pub fn epochs(&self) -> f64 {
        self.epochs
    }

    /// Epochs done after `steps` steps, as transformers logs them.
    pub fn epoch_after(&self, steps: u64) -> f64 {
        let (whole, part) = (steps / self.steps_per_epoch, steps % self.steps_per_epoch);
        let per_rank = self.micro_batches.div_ceil(self.world) as f64;
        whole as f64 + (part as f64 * self.accumulation as f64 / per_rank).min(1.0)
    }

    /// Whether an epoch ends with step `step` (from 1).
    pub fn ends_epoch(&self, step: u64) -> bool {
        step.is_multiple_of(self.steps_per_epoch)
    }

    /// The rows of step `step` (from 1) on this rank, by micro-batch.
    pub fn step_rows(&self, step: u64) -> Vec<Vec<usize>> {
        let epoch = (step - 1) / self.steps_per_epoch;
        let first = ((step - 1) % self.steps_per_epoch) as usize * self.accumulation;
        let per_rank = self.micro_batches.div_ceil(self.world);
        let last = (first + self.accumulation).min(per_rank);
        (first..last).map(|i| self.micro_batch_rows(epoch, (i * self.world + self.rank) % self.micro_batches)).collect()
    }

    fn micro_batch_rows(&self, epoch: u64, index: usize) -> Vec<usize> {
        let start = index * self.micro_batch;
        (start..(start + self.micro_batch).min(self.rows)).map(|position| self.sampler.row(epoch, position)).collect()
    }
}
