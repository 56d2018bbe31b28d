//! What a run tells TensorBoard, MLflow, Weights & Biases and SwanLab.
//!
//! Their files are written directly, as their own programs write them; `wandb sync` and `swanlab sync` upload the folders of the
//! latter two. Each tracker has a thread of its own and a queue with an end, so that none can stop a run or slow it: what
//! goes wrong is told once and costs only what that tracker would have shown.
#![forbid(unsafe_code)]

mod error;
#[cfg(test)]
mod golden_tests;
mod ids;
mod journal;
mod memory;
mod mlflow;
mod protobuf;
mod python;
mod run;
mod settings;
mod swanlab;
mod tensorboard;
mod wandb;
mod worker;

pub use error::Error;
pub use run::{Ending, Lengths, Run, Sample};
pub use settings::{Mlflow, Settings, Swanlab, TensorBoard, Wandb};
pub use worker::{Said, Trackers};

use error::Result;

/// One of the four.
trait Tracker: Send {
    /// Where a user finds it.
    fn place(&self) -> String;
    /// Takes a row of the log, with the names that transformers gives its numbers; `time` in seconds since 1970.
    fn row(&mut self, time: f64, step: u64, values: &[(String, f64)]) -> Result<()>;
    /// Takes the answers that the model gave at a step.
    fn samples(&mut self, time: f64, step: u64, samples: &[Sample]) -> Result<()>;
    /// Takes the lengths of the rows of the training set.
    fn lengths(&mut self, time: f64, lengths: &Lengths) -> Result<()>;
    /// Takes the end of the run.
    fn end(&mut self, time: f64, ending: &Ending) -> Result<()>;
}

/// The name of a number as TensorBoard, Weights & Biases and SwanLab have it from transformers (`rewrite_logs`): `eval_loss` is
/// `eval/loss`, and everything else belongs to training.
fn slashed(name: &str) -> String {
    ["eval", "test"]
        .iter()
        .find_map(|part| Some(format!("{part}/{}", name.strip_prefix(part)?.strip_prefix('_')?)))
        .unwrap_or_else(|| format!("train/{name}"))
}

/// Numbers of a whole run, which have no curve.
const SINGLE: [&str; 5] =
    ["train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos"];
