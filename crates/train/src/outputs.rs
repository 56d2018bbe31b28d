//! The files that a run writes beside its model while it goes on and when it ends: logs, results, pictures, the model card.

use crate::Result;
use crate::clock::Progress;
use crate::report::{LogRow, ModelCard, TrainerLog, TrainerState, write_chart, write_results};
use crate::run::Job;
use ferrotune_config::plan::Plan;
use std::path::PathBuf;

/// Open logs of a run.
pub(crate) struct Outputs {
    dir: PathBuf,
    log: TrainerLog,
}

impl Outputs {
    /// Begins the logs, or goes on with them after `done` steps.
    pub(crate) fn open(plan: &Plan, done: u64) -> Result<Self> {
        let dir = plan.output.dir.clone();
        let log = if done > 0 { TrainerLog::resume(&dir, done, false)? } else { TrainerLog::create(&dir, false)? };
        Ok(Self { dir, log })
    }

    pub(crate) fn row(&mut self, row: &LogRow, progress: &Progress) -> Result<()> {
        self.log.append(row, progress)
    }

    /// `train_results.json` or `eval_results.json`, and `all_results.json`.
    pub(crate) fn results(&self, split: &str, row: &LogRow) -> Result<()> {
        write_results(&self.dir, split, row)
    }

    /// Pictures and the model card.
    pub(crate) fn close(self, job: &Job<'_>, state: &TrainerState) -> Result<()> {
        let plan = job.plan;
        if plan.output.plot_loss {
            write_chart(&self.dir, state, "loss")?;
            write_chart(&self.dir, state, "eval_loss")?;
        }
        let name = self.dir.file_name().map_or_else(|| "model".into(), |n| n.to_string_lossy().into_owned());
        let card = ModelCard {
            name: &name,
            base_model: job.saver.base_name,
            datasets: &plan.data.datasets,
            tuning: job.saver.tuning,
            train: &plan.train,
            eval_batch: plan.eval.batch,
            ranks: job.engine.comm().world(),
            state,
            version: env!("CARGO_PKG_VERSION"),
        };
        card.write(&self.dir)
    }
}
