//! What can go wrong while training, with what it takes to put it right.

use std::path::{Path, PathBuf};

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused a file operation.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried: "read", "write", "create".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file of the run is not the JSON it should be.
    #[error("{} is not a {what}: {source}; restore it or start the run anew with overwrite_output_dir: true", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// Where and why parsing ended.
        source: serde_json::Error,
    },
    /// A file of the model, of an adapter or of a checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] ferrotune_checkpoint::Error),
    /// A configuration that is not a model of ours.
    #[error(transparent)]
    Model(#[from] ferrotune_model::ModelError),
    /// Rows could not be answered.
    #[error("{0}; take a smaller per_device_eval_batch_size or max_new_tokens")]
    Answering(ferrotune_infer::InferError),
    /// Rows could not be encoded while the run went on.
    #[error("{0}")]
    Data(String),
    /// A rank is lost or out of step.
    #[error(transparent)]
    Comm(#[from] ferrotune_dist::CommError),
    /// Another rank has an error; it is told there in full.
    #[error("rank {rank} could not {doing}: {reason}")]
    Peer {
        /// Which.
        rank: usize,
        /// What it was about, after "could not".
        doing: &'static str,
        /// Its error.
        reason: String,
    },
    /// The device gave up.
    #[error("{0}{cure}", cure = cure_of_fault(.0))]
    Device(#[from] ferrotune_tensor::Fault),
    /// Memory ran out.
    #[error("{fault}. What cures it: {}", cures.join("; "))]
    OutOfMemory {
        /// What was asked for, and what was held.
        fault: ferrotune_tensor::Fault,
        /// Settings, the one that costs least first; never empty.
        cures: Vec<String>,
    },
    /// Memory ran out while weights were being changed, so that the step can't be made again.
    #[error("{0}, in the middle of an update; go on from the last checkpoint, with more room")]
    HalfUpdated(ferrotune_tensor::Fault),
    /// Tensors that the model's files lack or have with another shape than its configuration says; never empty.
    #[error(
        "the model's files don't hold what its config.json says:{}\nIs a shard missing, or a file of another model?",
        list_of_unfit(.0)
    )]
    Unfit(Vec<UnfitTensor>),
    /// An adapter made for another model.
    #[error(
        "adapter {path} doesn't fit this model: {module} has shape {found:?} there, {expected:?} here; was it trained on another base, or with another lora_rank?"
    )]
    AdapterShape {
        /// The adapter.
        path: String,
        /// Module or tensor.
        module: String,
        /// In the adapter.
        found: Vec<usize>,
        /// In this run.
        expected: Vec<usize>,
    },
    /// An adapter with a tensor that no weight of this run takes.
    #[error(
        "adapter {path} changes {name}, which this run has no weight for; take the adapter's own settings, or create_new_adapter: true"
    )]
    AdapterUnused {
        /// The adapter.
        path: String,
        /// The tensor's weight.
        name: String,
    },
    /// An adapter without a tensor that this run trains.
    #[error(
        "adapter {path} has no {name}, which this run trains; take the adapter's own lora_target, or create_new_adapter: true"
    )]
    AdapterLacks {
        /// The adapter.
        path: String,
        /// The tensor.
        name: String,
    },
    /// The recipe's strategy can't be had with so many ranks.
    #[error(
        "{wish} is not possible with {world} ranks and {segments} blocks: shard_size and pipeline_stages must divide the number \
         of ranks, and a stage needs a block"
    )]
    NoSplit {
        /// What was wished.
        wish: String,
        /// Ranks.
        world: usize,
        /// Blocks of the model.
        segments: usize,
    },
    /// Experts can't be spread over so many ranks.
    #[error(
        "{wish} gives each of {ranks} ranks some of a block's experts, and the model has {}; {}",
        if *experts == 0 { "none".into() } else { experts.to_string() },
        if *experts == 0 { "take another strategy, such as hybrid" } else { "lower shard_size" }
    )]
    TooFewExperts {
        /// What was wished.
        wish: String,
        /// Ranks of a group.
        ranks: usize,
        /// Experts of a block.
        experts: usize,
    },
    /// The loss or a gradient went wrong.
    #[error(
        "step {step}: the loss is {loss} and the gradient norm {grad_norm}; the first value that is not finite is in {place}{}",
        cure_of_not_finite(rows, datasets)
    )]
    NotFinite {
        /// Step, from 1.
        step: u64,
        /// Loss.
        loss: f64,
        /// Gradient norm.
        grad_norm: f64,
        /// Which part of the model.
        place: String,
        /// Which rows, by dataset and place in it from 0; none if the trouble is in a weight.
        rows: Vec<(u32, u64)>,
        /// Names of the datasets.
        datasets: Vec<String>,
    },
    /// More memory than there is, known before the run.
    #[error("the longest batch needs {needed} bytes and {available} can be had; {cure}")]
    DoesNotFit {
        /// Bytes needed.
        needed: u64,
        /// Bytes that could be had.
        available: u64,
        /// What is tried next.
        cure: &'static str,
    },
    /// A checkpoint that this run can't go on from.
    #[error("cannot resume from {}: {reason}", path.display())]
    CannotResume {
        /// The checkpoint.
        path: PathBuf,
        /// Why, and the cure.
        reason: String,
    },
    /// The output folder holds a finished model and no checkpoint.
    #[error("{} already holds a trained model and no checkpoint to resume from; choose another output_dir, or overwrite_output_dir: true", path.display())]
    OutputInUse {
        /// The folder.
        path: PathBuf,
    },
    /// A schedule's options contradict each other.
    #[error("lr_scheduler_type {kind}: {reason}")]
    Schedule {
        /// The schedule, as recipes spell it.
        kind: &'static str,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// Evaluated steps that are never saved, one of which may be the best.
    #[error(
        "load_best_model_at_end needs save_steps to be a multiple of eval_steps; of {total} steps their shares are {save} and {eval} steps: write `eval_steps: {eval}` and a multiple of it as save_steps, or the same share for both"
    )]
    BestNotSaved {
        /// Steps of the run.
        total: u64,
        /// Steps between evaluations.
        eval: u64,
        /// Steps between checkpoints.
        save: u64,
    },
    /// The best model has to be read by ranks that don't see it.
    #[error(
        "load_best_model_at_end needs the best checkpoint's model on every node, and {} isn't one folder for all of them: write save_on_each_node: true, or save_only_model: false",
        path.display()
    )]
    BestElsewhere {
        /// The output folder.
        path: PathBuf,
    },
    /// The number that decides on the best checkpoint was not measured.
    #[error("metric_for_best_model: {metric} was not measured; this run measures {}", available.join(", "))]
    NoSuchMetric {
        /// The name asked for.
        metric: String,
        /// The names there are.
        available: Vec<String>,
    },
    /// The loss picture could not be drawn.
    #[error("cannot draw {}: {reason}", path.display())]
    Chart {
        /// The picture.
        path: PathBuf,
        /// What the drawing library said.
        reason: String,
    },
}

/// A tensor that is missing from a model's files, or of another shape there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnfitTensor {
    /// Its name.
    pub name: String,
    /// What the configuration makes it.
    pub expected: Vec<usize>,
    /// In the files, if it is there.
    pub found: Option<Vec<usize>>,
}

/// The first few tensors, a line each, and how many more there are.
fn list_of_unfit(tensors: &[UnfitTensor]) -> String {
    const SHOWN: usize = 10;
    let line = |tensor: &UnfitTensor| match &tensor.found {
        Some(found) => format!("\n  {} has shape {found:?}, expected {:?}", tensor.name, tensor.expected),
        None => format!("\n  {} is missing, expected with shape {:?}", tensor.name, tensor.expected),
    };
    let lines: String = tensors.iter().take(SHOWN).map(line).collect();
    match tensors.len().saturating_sub(SHOWN) {
        0 => lines,
        more => format!("{lines}\n  and {more} more"),
    }
}

/// What helps where there is no plan to look at.
fn cure_of_fault(fault: &ferrotune_tensor::Fault) -> &'static str {
    match fault {
        ferrotune_tensor::Fault::OutOfMemory { .. } => {
            "; end what else takes memory there, or take a smaller per_device_train_batch_size or cutoff_len, or \
             gradient_checkpointing: true"
        }
        ferrotune_tensor::Fault::NoKernel(_) => "; use_cpu: true computes it on the processor",
        _ => "",
    }
}

fn cure_of_not_finite(rows: &[(u32, u64)], datasets: &[String]) -> String {
    if rows.is_empty() {
        return "; nothing was updated. Get the files of the model again, or lower learning_rate if they are sound"
            .into();
    }
    let rows = name_rows(rows, datasets);
    format!(", with {rows}; nothing was updated. Lower learning_rate, or look at these rows")
}

/// Rows as a user finds them: `rows 3 and 5 of dataset d`, counted from 1.
pub(crate) fn name_rows(rows: &[(u32, u64)], datasets: &[String]) -> String {
    const SHOWN: usize = 8;
    let mut sorted = rows.to_vec();
    sorted.sort_unstable();
    let parts = sorted.chunk_by(|a, b| a.0 == b.0).map(|rows| {
        let dataset = rows[0].0 as usize;
        let name = datasets.get(dataset).map_or_else(|| format!("number {}", dataset + 1), |name| format!("`{name}`"));
        let shown: Vec<String> = rows.iter().take(SHOWN).map(|row| (row.1 + 1).to_string()).collect();
        let more = rows.len() - shown.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("row{} {}{more} of dataset {name}", if rows.len() == 1 { "" } else { "s" }, shown.join(", "))
    });
    parts.collect::<Vec<_>>().join(" and ")
}

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Wraps an operating-system error with what was tried on which path.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_path_buf(), source }
    }
}
