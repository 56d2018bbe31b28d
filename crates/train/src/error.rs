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
    /// A schedule's options contradict each other.
    #[error("lr_scheduler_type {kind}: {reason}")]
    Schedule {
        /// The schedule, as recipes spell it.
        kind: &'static str,
        /// What is wrong, and what would be right.
        reason: String,
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

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Wraps an operating-system error with what was tried on which path.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io {
            action,
            path: path.to_path_buf(),
            source,
        }
    }
}
