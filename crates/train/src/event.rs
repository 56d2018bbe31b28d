//! What a run tells its listener while it goes on. The library prints nothing.

use crate::evaluate::Evaluation;
use crate::memory::MemoryPlan;
use std::path::PathBuf;

/// Something happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// The run is about to take its first step.
    Started {
        /// Trained and all parameters.
        parameters: (usize, usize),
        /// Memory as predicted.
        memory: MemoryPlan,
        /// Steps done before (a resumed run).
        done: u64,
        /// Steps in all.
        total: u64,
        /// Epochs in all.
        epochs: f64,
        /// Rows of the training set.
        rows: usize,
        /// Rows in an optimiser step.
        rows_per_step: usize,
    },
    /// A step is over.
    Stepped {
        /// From 1.
        step: u64,
        /// Mean loss of its label tokens.
        loss: f64,
        /// Tokens that went through the model in it.
        tokens: u64,
        /// Tokens a second since the run started or was resumed.
        tokens_per_second: f64,
        /// Seconds left, estimated.
        seconds_left: f64,
    },
    /// A line for the log: transformers' keys.
    Logged(serde_json::Value),
    /// An evaluation is over.
    Evaluated {
        /// After this step; 0 before the first.
        step: u64,
        /// `eval`, or `eval_<name>` for each of several sets.
        name: String,
        /// What was found.
        found: Evaluation,
    },
    /// A checkpoint is whole.
    Saved {
        /// Its folder.
        path: PathBuf,
    },
    /// Something that the user should know and that doesn't end the run.
    Warning(String),
    /// The run goes on from a checkpoint.
    Resumed {
        /// Its folder.
        path: PathBuf,
        /// Its step.
        step: u64,
    },
}
