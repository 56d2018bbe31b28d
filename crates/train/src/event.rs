//! What a run tells its listener while it goes on. The library prints nothing.

use crate::clock::Progress;
use crate::memory::MemoryPlan;
use crate::report::{Evaluation, LogRow};
use std::path::PathBuf;

/// Something happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// The run is about to take its first step.
    Started(Start),
    /// A step is over, with the mean loss of its label tokens.
    Stepped(Progress, f64),
    /// A row for the log.
    Logged(LogRow),
    /// An evaluation is over.
    Evaluated {
        /// Steps done.
        step: u64,
        /// The set's name, where several are evaluated one by one.
        name: Option<String>,
        /// What was found.
        found: Evaluation,
    },
    /// A checkpoint is whole.
    Saved(PathBuf),
    /// What this rank did in some steps is written down.
    Profiled {
        /// Where.
        path: PathBuf,
        /// Share of its collectives' time that its computing didn't wait for; none if there were no collectives.
        hidden: Option<f64>,
    },
    /// The run goes on from a checkpoint.
    Resumed(PathBuf),
    /// The output folder holds this run already, done to its end; nothing is changed.
    AlreadyFinished {
        /// Steps done.
        steps: u64,
    },
    /// Something that the user should know and that doesn't end the run.
    Warning(String),
}

/// A run as it begins.
#[derive(Debug, Clone)]
pub struct Start {
    /// Trained parameters.
    pub trainable: usize,
    /// All parameters.
    pub parameters: usize,
    /// Memory as predicted.
    pub memory: MemoryPlan,
    /// Steps done before.
    pub done: u64,
    /// Steps in all.
    pub total: u64,
    /// Epochs in all.
    pub epochs: f64,
    /// Rows of the training set; nothing if they are still being encoded.
    pub rows: Option<usize>,
    /// Rows in a full optimiser step.
    pub rows_per_step: usize,
}
