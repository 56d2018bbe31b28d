//! Checkpoints: what a run leaves behind to be served, and to be gone on from by any number of ranks.
//!
//! Every rank writes the stretches of trained weights and moments that are its own into a file of its own; rank 0 writes the
//! model's files and the logs besides. Where nodes have disks of their own, each has the files of its ranks, and the first
//! rank there takes care of the folder. What is written is copied at the border of a step; threads do the rest while
//! the run goes on, and at the border of a later step, when all are done, the checkpoint gets its name.

mod agree;
mod disks;
mod gguf;
mod model;
mod parts;
mod restore;
mod store;

pub use gguf::GgufModel;
pub use model::{Copied, ModelFiles, Saver, intended_adapter, named_dtype};
pub use restore::{Found, split_before};
pub use store::{Pending, Snapshots};

use crate::plan::Candidate;
use crate::resume::Pacing;
use crate::scale::LossScale;
use crate::schedule::PlateauState;
use crate::track::{BestState, LossMeter};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// What a checkpoint holds of the run besides weights and logs.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RunState {
    /// Steps done.
    pub step: u64,
    /// Mean losses.
    pub losses: LossMeter,
    /// The best evaluation.
    pub best: BestState,
    /// The folder of its checkpoint, if that isn't the run's own.
    pub best_in: Option<PathBuf>,
    /// ReduceOnPlateau's memory.
    pub plateau: Option<PlateauState>,
    /// Tokens trained on.
    pub tokens: u64,
    /// Floating-point operations.
    pub flops: f64,
    /// Seconds spent.
    pub seconds: f64,
    /// Rows of the training set: another number means other data.
    pub rows: u64,
    /// The recipe with its overrides, without access tokens.
    pub recipe: String,
    /// What decides which rows a step trains on, and at what rate.
    pub pace: Pacing,
    /// How it was split over its ranks: as many split it alike when it goes on, whatever they measure then.
    pub split: Option<Candidate>,
    /// The scale of the loss, in half precision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale: Option<LossScale>,
}

/// The run's state, beside its tensors.
const RUN: &str = "ferrotune_state.json";

/// Most ranks that a checkpoint may be of.
const MAX_WORLD: usize = parts::MAX_RANKS;

/// What the file [`RUN`] holds.
#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    /// Names the save; every part of it bears this name.
    save: String,
    /// Ranks of the run.
    world: usize,
    /// Those that hold a part of the state; replicas of others hold none.
    parts: Vec<usize>,
    run: RunState,
}

/// Whether `folder` holds a finished model or adapter, but no checkpoint to go on from.
pub fn holds_model(folder: &Path) -> bool {
    ["adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json"]
        .iter()
        .any(|name| folder.join(name).exists())
}
