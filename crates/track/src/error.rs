//! What can go wrong with a tracker. None of it ends a run.

use std::path::{Path, PathBuf};

/// Why a tracker doesn't get what it should.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused a file operation.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file could not be replaced.
    #[error(transparent)]
    Checkpoint(#[from] ferrotune_checkpoint::Error),
    /// A variable says what can't be done.
    #[error("{variable}={value}: {problem}")]
    Variable {
        /// Its name.
        variable: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it, and what to write instead.
        problem: &'static str,
    },
}

/// A result of this crate.
pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// For `map_err` on a file operation.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}
