//! What a run measures, writes and tells, when, and what comes of it afterwards.

use super::Precision;
use std::path::PathBuf;

/// Something that happens at intervals of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Interval {
    /// Never.
    Never,
    /// Every n optimiser steps.
    Steps(u64),
    /// Every so large a share of all steps, above 0 and below 1, rounded up.
    Share(f64),
    /// At each epoch's end.
    Epoch,
}

impl Interval {
    /// The interval in a run of `total` steps; shares become steps, rounded up as transformers does.
    #[must_use]
    pub fn within(self, total: u64) -> Self {
        match self {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss,
                reason = "a number of steps"
            )]
            Self::Share(share) => Self::Steps((total as f64 * share).ceil() as u64),
            other => other,
        }
    }
}

/// Evaluation during training.
#[derive(Debug, Clone, PartialEq)]
pub struct EvalPlan {
    /// When.
    pub every: Interval,
    /// Rows in a batch.
    pub batch: usize,
    /// Evaluate before the first step too.
    pub on_start: bool,
    /// End the run after so many evaluations without progress.
    pub early_stopping: Option<u64>,
    /// Go back to the best checkpoint at the end.
    pub load_best: bool,
    /// Which number is compared (`eval_loss` by default).
    pub metric: String,
    /// More of it is better.
    pub greater_is_better: bool,
    /// Report the share of label tokens predicted right.
    pub accuracy: bool,
    /// Answer the rows and report how alike the answers are to those expected, instead of the loss.
    pub generate: bool,
}

/// What is written where, and when.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputPlan {
    /// Folder of the run.
    pub dir: PathBuf,
    /// Begin anew even if the folder holds a run.
    pub overwrite: bool,
    /// Where to go on.
    pub resume: Resume,
    /// When a line is logged; in steps or as a share of them.
    pub log: Interval,
    /// Log the first step too.
    pub logging_first_step: bool,
    /// When a checkpoint is written.
    pub save: Interval,
    /// How many checkpoints stay.
    pub save_total_limit: Option<usize>,
    /// Checkpoints without optimiser states; they can't resume.
    pub save_only_model: bool,
    /// Prompts that are answered before and after the training.
    pub sample_prompts: Vec<String>,
    /// Draw `training_loss.png`.
    pub plot_loss: bool,
    /// Who is told of the run beside its own files.
    pub trackers: TrackersPlan,
    /// Largest file of a saved full model, in bytes.
    pub shard_bytes: u64,
    /// Train (`do_train`).
    pub train: bool,
    /// Evaluate at the end (`do_eval`).
    pub evaluate: bool,
    /// Write an answer to each row for evaluation into a file, at the very end (`do_predict`).
    pub predict: bool,
    /// Write down what each rank did when.
    pub profile: Option<ProfilePlan>,
}

/// Who is told of the run beside its own files. What isn't set, the environment of the trackers' own programs may say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrackersPlan {
    /// The run's name.
    pub run_name: Option<String>,
    /// TensorBoard's event files, in this folder or a new one of the output folder.
    pub tensorboard: Option<Option<PathBuf>>,
    /// MLflow's file store.
    pub mlflow: bool,
    /// A run of Weights & Biases.
    pub wandb: bool,
    /// A run of SwanLab.
    pub swanlab: Option<SwanlabPlan>,
}

/// A run of SwanLab.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SwanlabPlan {
    /// The project; set by `use_swanlab`, not by `report_to`.
    pub project: Option<String>,
    /// The workspace.
    pub workspace: Option<String>,
    /// The run's name.
    pub run_name: Option<String>,
    /// Whether it is written.
    pub mode: SwanlabMode,
    /// Folder of all runs.
    pub folder: Option<String>,
}

/// How SwanLab's run is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SwanlabMode {
    /// As the environment says.
    #[default]
    Unset,
    /// In a folder, which `swanlab sync` uploads.
    Kept,
    /// Not at all.
    Disabled,
}

/// Which steps' time is written down, in rounds as PyTorch's profiler has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProfilePlan {
    /// Folder.
    pub dir: PathBuf,
    /// Steps of a round that are left out at its beginning.
    pub skip: u64,
    /// Steps of a round that are looked at, at least one.
    pub active: u64,
    /// Rounds; `None` means until the end.
    pub rounds: Option<u64>,
}

/// Where a run goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resume {
    /// From the last whole checkpoint in the folder, if there is one.
    Auto,
    /// From this checkpoint.
    From(PathBuf),
    /// From the beginning.
    Never,
}

/// How text is generated.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationPlan {
    /// Sample; otherwise take the likeliest token.
    pub do_sample: bool,
    /// Softmax temperature.
    pub temperature: f64,
    /// Nucleus.
    pub top_p: f64,
    /// Keep the k likeliest; 0 keeps all.
    pub top_k: usize,
    /// Most tokens of an answer.
    pub max_new_tokens: usize,
    /// Divides the logits of tokens seen before.
    pub repetition_penalty: f64,
    /// Leave special tokens out of the text.
    pub skip_special_tokens: bool,
    /// Seed of the sampler.
    pub seed: u64,
}

/// What `export` writes.
#[derive(Debug, Clone, PartialEq)]
pub struct ExportPlan {
    /// Folder.
    pub dir: Option<PathBuf>,
    /// Largest file, in bytes.
    pub shard_bytes: u64,
    /// Dtype of the merged weights; `None` means the model's own.
    pub precision: Option<Precision>,
    /// What is written.
    pub format: ExportFormat,
    /// Where it is uploaded to.
    pub upload: Option<UploadPlan>,
}

/// The form of a merged model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportFormat {
    /// A Hugging Face folder.
    Safetensors,
    /// One file for llama.cpp; types of its weights, or those of [`ExportPlan::precision`].
    Gguf(Option<GgufType>),
}

/// Types of the weights of a GGUF file, by llama.cpp's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants are llama.cpp's names")]
pub enum GgufType {
    F32,
    F16,
    Bf16,
    Q8_0,
    Q4_0,
    Q4KM,
}

/// Where a merged model is uploaded to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadPlan {
    /// `user/name` on the hub.
    pub repository: String,
    /// If it must be made, only its owner sees it.
    pub private: bool,
}
