//! What a run will do, resolved: every default filled in, every cross-check made once.
//!
//! [`Recipe`](crate::Recipe) is what the user wrote; a [`Plan`] is what it means. Components take the
//! sub-struct that concerns them and never look at the recipe; nothing validates again after this.
//! Names here are ferrotune's own: other tools' spellings are translated in `keys.rs` and nowhere else.

mod outputs;

pub use outputs::*;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// A whole run, as resolved from a recipe, its overrides and the defaults.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// What is trained on: plain text or conversations.
    pub stage: Stage,
    /// Which model, in which precision.
    pub model: ModelPlan,
    /// Which parameters train.
    pub tuning: Tuning,
    /// Which rows, and how they become token ids and labels.
    pub data: DataPlan,
    /// Steps, rates, accumulation.
    pub train: TrainPlan,
    /// How the work is split over ranks.
    pub parallel: ParallelPlan,
    /// Evaluation during training.
    pub eval: EvalPlan,
    /// What is written where, and when.
    pub output: OutputPlan,
    /// How text is generated (`chat`, samples after a run).
    pub generation: GenerationPlan,
    /// What `export` writes.
    pub export: ExportPlan,
}

/// What the loss is computed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Plain text in blocks, a loss on every token (`stage: pt`).
    Pretrain,
    /// Conversations, a loss on the assistant's tokens (`stage: sft`).
    Sft,
    /// Prompts with an answer that is preferred and one that isn't (`stage: rm`, `stage: dpo`). Encoded and shown, not
    /// trained on.
    Pairwise,
    /// Answers that are wanted or not (`stage: kto`). Encoded and shown, not trained on.
    Feedback,
}

/// The dtype of frozen weights and activations. Adapter weights, optimiser states, softmax, norms
/// and the loss are in f32 in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// 32-bit everywhere.
    F32,
    /// bfloat16 weights and activations, f32 accumulation.
    Bf16,
    /// IEEE half precision in the same places, and a loss that is scaled so that its gradients don't vanish.
    F16,
}

/// Which model a run starts from.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelPlan {
    /// A folder, a `.gguf` file, a hub id or a name of the catalogue.
    pub source: String,
    /// Branch, tag or commit on the hub.
    pub revision: String,
    /// Where downloads go instead of the shared hub cache.
    pub cache_dir: Option<PathBuf>,
    /// Access token of Hugging Face written in the recipe (the environment's is the caller's business).
    pub hugging_face_token: Option<String>,
    /// The same of ModelScope.
    pub modelscope_token: Option<String>,
    /// Adapter folders, merged in order except the last, which goes on training unless
    /// [`LoraPlan::create_new`] is set.
    pub adapters: Vec<String>,
    /// Weights and activations.
    pub precision: Precision,
    /// Position scaling that the recipe asks for, over the model's own.
    pub rope_scaling: Option<RopeScaling>,
    /// Recompute blocks in the backward pass instead of keeping their activations.
    pub recompute: Recompute,
    /// Ordinary tokens to add to the vocabulary.
    pub add_tokens: Vec<String>,
    /// Special tokens to add to the vocabulary.
    pub add_special_tokens: Vec<String>,
    /// Grow the embedding to the tokenizer's size.
    pub resize_vocab: bool,
    /// Encode special tokens in row text as ordinary text.
    pub split_special_tokens: bool,
    /// Start from random weights of the configuration.
    pub from_scratch: bool,
}

/// When blocks are recomputed in the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recompute {
    /// Keep every activation.
    Off,
    /// Recompute every block.
    On,
    /// If memory demands it.
    Auto,
}

/// Position scaling asked for by the recipe (`rope_scaling`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeScaling {
    /// Positions divided by a factor.
    Linear,
    /// NTK-aware base change beyond the trained length.
    Dynamic,
    /// YaRN.
    Yarn,
    /// Llama 3's piecewise scaling.
    Llama3,
}

/// Which parameters train.
#[derive(Debug, Clone, PartialEq)]
pub enum Tuning {
    /// Low-rank adapters.
    Lora(LoraPlan),
    /// Some blocks or modules.
    Freeze(FreezePlan),
    /// Everything.
    Full,
}

/// Low-rank adaptation, Hu et al. 2021, <https://arxiv.org/abs/2106.09685>.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraPlan {
    /// `r`.
    pub rank: usize,
    /// `alpha`; the update is scaled by `alpha / r`, or by `alpha / sqrt(r)` with `rslora`.
    pub alpha: f64,
    /// Probability that an input element of an adapter is dropped.
    pub dropout: f64,
    /// Modules that get an adapter.
    pub targets: LoraTargets,
    /// Modules trained whole and saved beside the adapter (PEFT's `modules_to_save`).
    pub additional_targets: Vec<String>,
    /// Rank-stabilised scaling.
    pub rslora: bool,
    /// Weight-decomposed adaptation (a trained magnitude a row).
    pub dora: bool,
    /// Higher rate for the B matrices.
    pub plus: Option<LoraPlus>,
    /// Merge all given adapters and train a new one.
    pub create_new: bool,
}

impl LoraPlan {
    /// LLaMA-Factory's adapter of this rank: on every linear layer, alpha twice the rank, and nothing else.
    pub fn plain(rank: usize) -> Self {
        Self {
            rank,
            alpha: 2.0 * rank as f64,
            dropout: 0.0,
            targets: LoraTargets::All,
            additional_targets: Vec::new(),
            rslora: false,
            dora: false,
            plus: None,
            create_new: false,
        }
    }
}

/// Modules that get an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoraTargets {
    /// Every linear layer of the blocks, the head excluded.
    All,
    /// Modules whose name ends in one of these.
    Modules(Vec<String>),
}

/// LoRA+, <https://arxiv.org/abs/2402.12354>.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoraPlus {
    /// Rate of B over rate of A.
    pub ratio: f64,
}

/// Training of some blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FreezePlan {
    /// The last n blocks, or the first n if negative.
    pub layers: i64,
    /// Module names inside those blocks; empty means all.
    pub modules: Vec<String>,
    /// Modules outside the blocks.
    pub extra_modules: Vec<String>,
}

/// Which rows, and how they become token ids and labels.
#[derive(Debug, Clone, PartialEq)]
pub struct DataPlan {
    /// Decides the encoding: blocks of text or conversations.
    pub stage: Stage,
    /// Folder that holds `dataset_info.json`.
    pub dir: PathBuf,
    /// Names in the registry, in order.
    pub datasets: Vec<String>,
    /// Names in the registry, for evaluation.
    pub eval_datasets: Vec<String>,
    /// Evaluate on each of them by itself.
    pub eval_each: bool,
    /// Rows for evaluation are prompts with the answers that are expected (`predict_with_generate`).
    pub generate: bool,
    /// How a conversation is written out.
    pub template: TemplateChoice,
    /// Longest row in tokens.
    pub cutoff_len: usize,
    /// A loss on the prompt's tokens too.
    pub train_on_prompt: bool,
    /// No loss on turns before the last.
    pub mask_history: bool,
    /// System prompt of rows without one; `None` leaves it to the template.
    pub default_system: Option<String>,
    /// Whether reasoning blocks are trained (`Some(true)`), put in the prompt empty
    /// (`Some(false)`), or completed in the prompt without a loss (`None`).
    pub enable_thinking: Option<bool>,
    /// Keep reasoning of earlier turns even when history is masked.
    pub preserve_thinking: bool,
    /// Tool format other than the template's.
    pub tool_format: Option<String>,
    /// Encode special tokens in row text as ordinary text.
    pub split_special_tokens: bool,
    /// The first n rows of each dataset.
    pub max_samples: Option<usize>,
    /// Rows held out of the training set for evaluation.
    pub val_size: ValSize,
    /// Several rows in one.
    pub packing: Packing,
    /// How several datasets become one.
    pub mix: Mix,
    /// Shares of the datasets in an interleaved mix.
    pub mix_probabilities: Option<Vec<f64>>,
    /// Files of datasets that lie on a hub or in a cloud store, by name; whoever brings them here fills it.
    pub fetched: BTreeMap<String, Vec<PathBuf>>,
    /// Rows come in the order of a shuffle buffer of this many, and training doesn't wait for all of them.
    pub stream: Option<usize>,
    /// Seed of the validation split, of sampling, of mixing and of the shuffle buffer.
    pub seed: u64,
    /// Encode again even if the cache holds the result.
    pub overwrite_cache: bool,
    /// Where the cache of encoded rows lies; `None` means beside the dataset.
    pub cache_dir: Option<PathBuf>,
    /// Threads for encoding; `None` means all cores.
    pub workers: Option<usize>,
    /// What a row that can't be used does.
    pub bad_rows: BadRows,
}

/// How a conversation is written out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TemplateChoice {
    /// A row of the template table.
    Named(String),
    /// The model's own chat template (`template` unset).
    Model,
}

/// Rows held out for evaluation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ValSize {
    /// None.
    None,
    /// A share of the rows, in (0, 1).
    Fraction(f64),
    /// A number of rows.
    Count(usize),
}

/// Several rows in one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// One row, one sequence.
    Off,
    /// Packed rows see what stands before them (`packing: true`, as LLaMA-Factory does on sdpa).
    On,
    /// Packed rows don't see each other (`neat_packing: true`).
    Neat,
}

/// How several datasets become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mix {
    /// One after the other.
    Concat,
    /// In turn until the shortest ends.
    InterleaveUnder,
    /// In turn until the longest ends, the others repeated.
    InterleaveOver,
    /// In turn, each row once.
    InterleaveOnce,
}

/// What a row that can't be used does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadRows {
    /// It is left out and reported with file, line and reason.
    Report,
    /// It ends the run (`on_bad_row: error`).
    Stop,
}

/// Steps, rates, accumulation.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainPlan {
    /// Rows in a micro-batch on one rank.
    pub micro_batch: usize,
    /// Micro-batches in an optimiser step on one rank.
    pub accumulation: usize,
    /// When the run ends.
    pub length: RunLength,
    /// Learning-rate schedule and its peak.
    pub schedule: Schedule,
    /// AdamW.
    pub optimizer: AdamWPlan,
    /// Gradients are scaled to this global norm; 0 means never.
    pub max_grad_norm: f64,
    /// Share of the target spread over the vocabulary.
    pub label_smoothing: f64,
    /// Weight of the loss on the balance of experts; `None` for the model's own.
    pub router_aux_loss: Option<f64>,
    /// NEFTune noise on the embedding, <https://arxiv.org/abs/2310.05914>.
    pub neftune_alpha: Option<f64>,
    /// Seed of initialisation, dropout and noise.
    pub seed: u64,
    /// Seed of the order of rows.
    pub data_seed: u64,
    /// Rows in a new order each epoch.
    pub shuffle: bool,
    /// Leave out an epoch's last incomplete micro-batch.
    pub drop_last: bool,
    /// Trainable weights of `full` and `freeze` in the recipe's dtype instead of f32 (`pure_bf16`).
    pub pure_bf16: bool,
}

/// How the work is split over ranks, as far as the recipe says.
#[derive(Debug, Clone, PartialEq)]
pub struct ParallelPlan {
    /// What is split; `None` leaves it to the memory and the links that are found.
    pub strategy: Option<Strategy>,
    /// Compute on the processor even where there is a GPU.
    pub use_cpu: bool,
    /// Optimiser states lie in host memory (`offload_optimizer`).
    pub offload_optimizer: bool,
    /// Shards of weights lie in host memory (`offload_param`).
    pub offload_parameters: bool,
    /// Gathers and reductions run beside the computation.
    pub overlap: bool,
    /// A step's rows are laid into micro-batches of at most so many tokens, instead of so many rows.
    pub max_tokens_per_micro_batch: Option<usize>,
    /// Micro-batches of fewer rows where memory doesn't suffice (`auto_find_batch_size`).
    pub fits_micro_batch: bool,
    /// A GPU runs the longest micro-batch before the first step.
    pub rehearses: bool,
    /// How long nothing may be heard of a rank before it counts as dead.
    pub peer_timeout: Duration,
    /// How long missing ranks are waited for at the start.
    pub join_timeout: Duration,
    /// Each node writes the model's files (`save_on_each_node`).
    pub save_on_each_node: bool,
    /// Rows of a step that DeepSpeed's `train_batch_size` asks for; they must be what the ranks and the recipe make.
    pub rows_of_a_step: Option<usize>,
}

/// What is split over ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// Nothing but the rows.
    Replicate,
    /// Optimiser states.
    Zero1,
    /// Optimiser states and gradients.
    Zero2,
    /// Optimiser states, gradients and weights.
    Zero3,
    /// All of these inside groups of so many ranks (a node's, if not said, or all where a node has one), which are replicas of
    /// each other.
    Hybrid {
        /// Ranks in a group.
        shards: Option<usize>,
    },
    /// The experts of each block inside groups of so many ranks (a node's, if not said, or all where a node has one), which are
    /// replicas of each other; tokens go to the ranks of their experts.
    Expert {
        /// Ranks in a group.
        shards: Option<usize>,
    },
    /// Consecutive blocks on so many consecutive ranks (a node's, if not said), which are replicas of each other.
    Pipeline {
        /// Ranks in a pipe.
        stages: Option<usize>,
    },
}

impl Default for ParallelPlan {
    fn default() -> Self {
        Self {
            strategy: None,
            use_cpu: false,
            offload_optimizer: false,
            offload_parameters: false,
            overlap: true,
            max_tokens_per_micro_batch: None,
            fits_micro_batch: false,
            rehearses: true,
            peer_timeout: Duration::from_secs(10),
            join_timeout: Duration::from_secs(15 * 60),
            save_on_each_node: false,
            rows_of_a_step: None,
        }
    }
}

/// When a run ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RunLength {
    /// After so many passes over the data.
    Epochs(f64),
    /// After so many optimiser steps.
    Steps(u64),
}

/// Learning-rate schedule. The formulas are those of transformers' `optimization.py`.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// Peak rate.
    pub learning_rate: f64,
    /// Shape.
    pub kind: ScheduleKind,
    /// Rise from 0 to the peak.
    pub warmup: Warmup,
}

/// Rise from 0 to the peak rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Warmup {
    /// So many steps.
    Steps(u64),
    /// So large a share of all steps, rounded up.
    Ratio(f64),
}

/// Shape of the schedule, with its own options (`lr_scheduler_kwargs`).
#[derive(Debug, Clone, PartialEq)]
pub enum ScheduleKind {
    /// Straight down to 0.
    Linear,
    /// Half a cosine down to 0; `num_cycles` 0.5 by default.
    Cosine {
        /// Cycles over the run.
        num_cycles: f64,
    },
    /// Cosine with hard restarts.
    CosineWithRestarts {
        /// Restarts + 1.
        num_cycles: f64,
    },
    /// Polynomial decay to `lr_end`.
    Polynomial {
        /// Rate at the end.
        lr_end: f64,
        /// Exponent.
        power: f64,
    },
    /// No warm-up, no decay.
    Constant,
    /// Warm-up, then constant.
    ConstantWithWarmup,
    /// Inverse square root.
    InverseSqrt {
        /// Steps that set the scale; `None` means the warm-up's, or 10,000.
        timescale: Option<u64>,
    },
    /// Cosine that ends at a share of the peak.
    CosineWithMinLr {
        /// Cycles over the run.
        num_cycles: f64,
        /// Share of the peak at the end.
        min_lr_rate: f64,
    },
    /// The same, with a warm-up that starts above 0.
    CosineWarmupWithMinLr {
        /// Cycles over the run.
        num_cycles: f64,
        /// Share of the peak at the end.
        min_lr_rate: f64,
        /// Share of the peak at the start of the warm-up.
        warmup_lr_rate: Option<f64>,
    },
    /// Warm-up, plateau, decay.
    WarmupStableDecay {
        /// Steps of the plateau; `None` means what the others leave.
        num_stable_steps: Option<u64>,
        /// Steps of the decay.
        num_decay_steps: u64,
        /// Shape of the warm-up: linear, cosine or 1-sqrt.
        warmup_type: String,
        /// Shape of the decay: linear, cosine or 1-sqrt.
        decay_type: String,
        /// Share of the peak at the end.
        min_lr_ratio: f64,
        /// Cycles of the cosine.
        num_cycles: f64,
    },
    /// Lower when the evaluation loss no longer falls (torch's options).
    ReduceOnPlateau {
        /// Factor by which the rate falls.
        factor: f64,
        /// Evaluations without progress before it falls.
        patience: u64,
        /// Least relative progress that counts.
        threshold: f64,
        /// Evaluations after a fall that don't count.
        cooldown: u64,
        /// Floor of the rate.
        min_lr: f64,
    },
}

/// AdamW, Loshchilov and Hutter 2019, <https://arxiv.org/abs/1711.05101>.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWPlan {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled decay of weights; never of norms and biases.
    pub weight_decay: f64,
}
