//! Which rows a step trains on: a pure function of the step's number, so that a run resumes without reading what it
//! has already seen.
//!
//! As transformers counts: a micro-batch is consecutive rows of the epoch's order; ranks take micro-batches in turn,
//! beginning again at the epoch's first where they don't come out even; the last step of an epoch may hold fewer
//! micro-batches, and a new epoch starts a new step.

use crate::clock::RunShape;
use ferrotune_config::plan::TrainPlan;
use ferrotune_data::sampler::Sampler;

/// The order of a run.
#[derive(Debug, Clone)]
pub struct Order {
    shape: RunShape,
    rows: usize,
    micro_batch: usize,
    rank: usize,
    world: usize,
    /// Micro-batches of an epoch, over all ranks, before wrapping.
    micro_batches: usize,
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
        let per_rank = micro_batches.div_ceil(world) as u64;
        let shape = RunShape { micro_batches: per_rank, accumulation: plan.accumulation as u64, length: plan.length };
        let sampler = Sampler::new(rows, plan.data_seed, plan.shuffle);
        Self { shape, rows, micro_batch: plan.micro_batch, rank, world, micro_batches, sampler }
    }

    /// Steps and epochs.
    pub fn shape(&self) -> &RunShape {
        &self.shape
    }

    /// Rows of a full step over all ranks.
    pub fn rows_per_step(&self) -> usize {
        self.micro_batch * self.shape.accumulation as usize * self.world
    }

    /// Whether an epoch ends with step `step` (from 1).
    pub fn ends_epoch(&self, step: u64) -> bool {
        step.is_multiple_of(self.shape.steps_per_epoch())
    }

    /// The rows of step `step` (from 1) on this rank, by micro-batch.
    pub fn step_rows(&self, step: u64) -> Vec<Vec<usize>> {
        let steps = self.shape.steps_per_epoch();
        let (epoch, within) = ((step - 1) / steps, (step - 1) % steps);
        let first = within * self.shape.accumulation;
        let last = (first + self.shape.accumulation).min(self.shape.micro_batches);
        let mine = |i: u64| (i as usize * self.world + self.rank) % self.micro_batches;
        (first..last).map(|i| self.micro_batch_rows(epoch, mine(i))).collect()
    }

    fn micro_batch_rows(&self, epoch: u64, index: usize) -> Vec<usize> {
        let start = index * self.micro_batch;
        (start..(start + self.micro_batch).min(self.rows)).map(|position| self.sampler.row(epoch, position)).collect()
    }
}
