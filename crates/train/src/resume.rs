//! Going on with other settings: where a run stands in terms of the new ones, and what changes.
//!
//! Weights and moments fit whatever the settings. A run's position is counted in rows seen; where a step has
//! more or fewer rows than before, it is the last border of a step before those rows, so no row is left out.

use crate::event::Event;
use crate::order::Order;
use crate::report::TrainerState;
use crate::report::state::TRAINER_STATE;
use crate::run::{Finished, Job, order_of};
use crate::save::{Found, RunState, Snapshots, holds_model};
use crate::track::BestState;
use crate::{Error, Result};
use ferrotune_checkpoint::{FoundSnapshot, SnapshotState, list_snapshots};
use ferrotune_config::plan::{Plan, Resume, TrainPlan};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Duration;

/// What decides which rows a step trains on, and at what rate.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pacing {
    /// Ranks whose rows make a step.
    pub ranks: usize,
    /// Rows of a micro-batch.
    pub micro_batch: usize,
    /// Micro-batches of a step on each of `ranks`.
    pub accumulation: usize,
    /// Steps of an epoch.
    pub steps_per_epoch: u64,
    /// Steps of the run.
    pub total_steps: u64,
    /// Peak learning rate.
    pub learning_rate: f64,
}

impl Pacing {
    /// What a plan and its order say, to be compared when the run goes on.
    pub fn of(plan: &TrainPlan, order: &Order) -> Self {
        Self {
            ranks: order.share().of_a_step,
            micro_batch: plan.micro_batch,
            accumulation: plan.accumulation,
            steps_per_epoch: order.shape().steps_per_epoch(),
            total_steps: order.shape().total_steps(),
            learning_rate: plan.schedule.learning_rate,
        }
    }

    /// Rows of a step.
    fn rows(&self) -> u64 {
        (self.ranks * self.micro_batch * self.accumulation) as u64
    }
}

/// The steps of the new settings that have been done when `read` was written.
pub(crate) fn position(read: &RunState, new: &Pacing) -> u64 {
    let old = &read.pace;
    if old.steps_per_epoch == 0 || (old.rows(), old.steps_per_epoch) == (new.rows(), new.steps_per_epoch) {
        return read.step;
    }
    let (epochs, within) = (read.step / old.steps_per_epoch, read.step % old.steps_per_epoch);
    let seen = within * old.rows() / new.rows().max(1);
    epochs * new.steps_per_epoch + seen.min(new.steps_per_epoch)
}

/// What is other than when the checkpoint at `path` was written, a line each.
pub(crate) fn changes(read: &RunState, run: &RunState, path: &Path) -> Vec<String> {
    let (old, new) = (&read.pace, &run.pace);
    let mut lines = Vec::new();
    if read.rows != run.rows {
        lines.push(format!(
            "{} was trained on {} rows, the data now has {}; the order of rows is another",
            path.display(),
            read.rows,
            run.rows
        ));
    }
    if old.steps_per_epoch == 0 {
        return lines;
    }
    if old.rows() != new.rows() {
        let words = |pace: &Pacing| {
            let Pacing { ranks, micro_batch, accumulation, .. } = pace;
            format!("{} ({micro_batch} rows x {accumulation} micro-batches x {ranks} ranks)", pace.rows())
        };
        lines.push(format!(
            "rows of a step: {} until now, {} from here; step {} becomes step {}",
            words(old),
            words(new),
            read.step,
            position(read, new)
        ));
    }
    if old.total_steps != new.total_steps {
        let done = position(read, new);
        lines.push(format!(
            "the run had {} steps and now has {}: {} are left, and the learning rate follows the new length",
            old.total_steps,
            new.total_steps,
            new.total_steps.saturating_sub(done)
        ));
    }
    if old.learning_rate != new.learning_rate {
        lines.push(format!("learning_rate: {:e} until now, {:e} from here", old.learning_rate, new.learning_rate));
    }
    lines
}

/// The checkpoint to go on from.
pub(crate) fn to_resume(plan: &Plan, snapshots: &Snapshots) -> Result<Option<Found>> {
    let dir = &plan.output.dir;
    match &plan.output.resume {
        Resume::Never => Ok(None),
        Resume::From(path) => Ok(Some(snapshots.at(path)?)),
        Resume::Auto => match snapshots.newest()? {
            Some(found) => Ok(Some(found)),
            None => {
                let used = || match holds_model(dir) && !plan.output.overwrite {
                    true => Err(Error::OutputInUse { path: dir.clone() }),
                    false => Ok(()),
                };
                snapshots.first_tells(used).map(|()| None)
            }
        },
    }
}

/// What was read of a run, with the place of its best checkpoint: beside the one at `path` that it goes on from. If it isn't
/// there any more, what comes is compared with nothing earlier.
pub(crate) fn with_best(
    read: RunState,
    path: &Path,
    snapshots: &Snapshots,
    hear: &mut dyn FnMut(Event),
) -> Result<RunState> {
    let Some(best) = read.best.best else { return Ok(read) };
    let elsewhere = path.parent().filter(|folder| *folder != snapshots.dir());
    let best_in = read.best_in.clone().or_else(|| elsewhere.map(Path::to_path_buf));
    let folder = best_in.as_deref().unwrap_or(snapshots.dir()).join(format!("checkpoint-{}", best.step));
    if snapshots.is_seen(&folder)? {
        return Ok(RunState { best_in, ..read });
    }
    if snapshots.is_first() {
        hear(Event::Warning(format!(
            "the best checkpoint so far, {}, is not there any more: load_best_model_at_end takes the best of those to come",
            folder.display()
        )));
    }
    Ok(RunState { best: BestState::default(), best_in: None, ..read })
}

/// Checkpoints in the output folder beyond `step`, where the run stands: they are of a run that this one replaces.
pub(crate) fn replaced(plan: &Plan, snapshots: &Snapshots, step: u64, hear: &mut dyn FnMut(Event)) -> Result<Vec<u64>> {
    let dir = &plan.output.dir;
    let look = || -> Result<Vec<u64>> {
        let state = dir.join(TRAINER_STATE);
        if step == 0 && state.exists() {
            // It would say of this run what was true of the other.
            std::fs::remove_file(&state).map_err(Error::io("remove", &state))?;
        }
        let beyond = |found: &FoundSnapshot| found.state == SnapshotState::Whole && found.step > step;
        Ok(list_snapshots(dir)?.into_iter().filter(beyond).map(|found| found.step).collect())
    };
    let replaced = snapshots.first_tells(look)?;
    // All know of it; one says it.
    if let Some(last) = replaced.last().filter(|_| snapshots.is_first()) {
        hear(Event::Warning(format!(
            "{} holds checkpoints of an earlier run up to step {last}; this run begins after step {step} and replaces them \
             when it saves its own",
            dir.display()
        )));
    }
    Ok(replaced)
}

/// How the run in the output folder ended, if it went to its end and this recipe asks for no more.
pub(crate) fn finished_before(job: &Job<'_>, snapshots: &Snapshots) -> Result<Option<Finished>> {
    let plan = job.plan;
    let dir = &plan.output.dir;
    if plan.output.resume != Resume::Auto {
        return Ok(None);
    }
    let has_checkpoint = snapshots.newest()?.is_some();
    let total = order_of(job).shape().total_steps();
    // The first rank has the logs; what it finds in them goes for all.
    let look = || -> Result<Option<(u64, f64)>> {
        if !has_checkpoint || !dir.join(TRAINER_STATE).exists() {
            return Ok(None);
        }
        let state = TrainerState::read(dir)?;
        let stale = state.stateful_callbacks.early_stopping.as_ref();
        let stale = stale.map_or(0, |c| c.attributes.early_stopping_patience_counter);
        let enough = plan.eval.early_stopping.is_some_and(|patience| stale >= patience);
        let train_loss = state.log_history.iter().rev().find_map(|row| row.get("train_loss"));
        Ok(train_loss.filter(|_| enough || state.global_step >= total).map(|loss| (state.global_step, loss)))
    };
    let found = snapshots.first_tells(look)?;
    Ok(found.map(|(steps, train_loss)| Finished {
        steps,
        total,
        train_loss,
        runtime: Duration::ZERO,
        tokens_per_second: 0.0,
        step: None,
        peak: 0,
        interrupted: false,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(ranks: usize, accumulation: usize, steps_per_epoch: u64, total_steps: u64) -> Pacing {
        Pacing { ranks, micro_batch: 2, accumulation, steps_per_epoch, total_steps, learning_rate: 1e-4 }
    }

    fn run(step: u64, pace: Pacing) -> RunState {
        RunState { step, rows: 64, pace, ..RunState::default() }
    }

    #[test]
    fn the_position_is_that_of_the_rows_seen() {
        // 64 rows; 16 rows a step: 4 steps an epoch; step 6 is row 32 of the second epoch.
        let old = run(6, pace(2, 4, 4, 12));
        assert_eq!(position(&old, &pace(2, 4, 4, 20)), 6, "more epochs change nothing");
        assert_eq!(position(&old, &pace(1, 4, 8, 24)), 12, "half the rows a step: twice the steps");
        assert_eq!(position(&old, &pace(4, 4, 2, 6)), 3, "twice the rows");
        assert_eq!(position(&run(5, pace(2, 4, 4, 12)), &pace(4, 4, 2, 6)), 2, "never beyond what was seen");
        assert_eq!(position(&run(7, RunState::default().pace), &pace(2, 4, 4, 12)), 7, "nothing is known of before");
    }

    #[test]
    fn changes_are_told() {
        let old = run(6, pace(2, 4, 4, 12));
        let told = |new: Pacing| changes(&old, &run(0, new), Path::new("o/checkpoint-6"));
        assert_eq!(told(pace(2, 4, 4, 12)), Vec::<String>::new());
        assert_eq!(
            told(pace(2, 4, 4, 20)),
            ["the run had 12 steps and now has 20: 14 are left, and the learning rate follows the new length"]
        );
        let told = told(Pacing { learning_rate: 2e-4, ..pace(1, 4, 8, 12) });
        assert_eq!(
            told,
            [
                "rows of a step: 16 (2 rows x 4 micro-batches x 2 ranks) until now, 8 (2 rows x 4 micro-batches x 1 ranks) from \
                 here; step 6 becomes step 12",
                "learning_rate: 1e-4 until now, 2e-4 from here"
            ]
        );
    }
}
