//! What can go wrong with files of a model, an adapter or a snapshot.
//!
//! Every message says which file, what was expected there, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A file that can't be read, used or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried: "open", "read", "write" ...
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
    /// A file ends before what its own header announces.
    #[error("{path} is incomplete: {expected} bytes are announced, it has {actual}; download or copy it again")]
    Short {
        /// The file.
        path: PathBuf,
        /// Bytes that the header announces, in the whole file.
        expected: u64,
        /// Bytes there are.
        actual: u64,
    },
    /// A git clone without git-lfs leaves pointers instead of weights.
    #[error("{path} is a git-lfs pointer, not the file itself; run `git lfs pull` in its folder")]
    LfsPointer {
        /// The file.
        path: PathBuf,
    },
    /// Not a safetensors file, or a broken one.
    #[error("{path} is not a valid safetensors file: {reason}; download or copy it again")]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A JSON file that can't be used.
    #[error("{path}: {reason}")]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column where the syntax is.
        reason: String,
    },
    /// Not a GGUF file, or a broken one.
    #[error("{path} is not a usable GGUF file: {reason}")]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong, and the cure.
        reason: String,
    },
    /// A GGUF whose model this program doesn't know.
    #[error("{path} holds a model of architecture '{found}'; supported are {supported}")]
    Architecture {
        /// The file.
        path: PathBuf,
        /// `general.architecture`.
        found: String,
        /// The known ones.
        supported: &'static str,
    },
    /// A GGUF tokenizer that can't be expressed.
    #[error("{path}: the tokenizer inside can't be used: {reason}")]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong, and the cure.
        reason: String,
    },
    /// A folder that lacks a file.
    #[error("{folder} has no {expected}{help}")]
    Missing {
        /// The folder.
        folder: PathBuf,
        /// What should be there.
        expected: String,
        /// What is there instead and what to do, from "; " on, or nothing.
        help: String,
    },
    /// A sharded model of which parts are absent.
    #[error("{index} names shards that are not there: {}; download or copy them", .missing.join(", "))]
    MissingShards {
        /// The index file.
        index: PathBuf,
        /// Names of the absent files.
        missing: Vec<String>,
    },
    /// A tensor that the file doesn't hold.
    #[error("{path} has no tensor '{name}'")]
    UnknownTensor {
        /// The file or folder.
        path: PathBuf,
        /// The name asked for.
        name: String,
    },
    /// A tensor stored in a type that can't be read as asked.
    #[error("tensor '{name}' is stored as {from}, which can't be read as {to}; get the model in F32, F16 or BF16")]
    Conversion {
        /// The tensor.
        name: String,
        /// The stored type.
        from: &'static str,
        /// The type asked for.
        to: &'static str,
    },
    /// A destination or a range that doesn't fit the tensor (a mistake of the caller).
    #[error("tensor '{name}': {actual} {unit} asked for where {expected} fit")]
    Extent {
        /// The tensor.
        name: String,
        /// "bytes" or "elements".
        unit: &'static str,
        /// What fits.
        expected: usize,
        /// What was given.
        actual: usize,
    },
    /// An adapter that can't be used.
    #[error("adapter {path}: {reason}")]
    Adapter {
        /// Its folder.
        path: PathBuf,
        /// What is wrong, and the cure.
        reason: String,
    },
    /// An adapter made for another model.
    #[error("adapter {path} was made for another model: {}", .mismatches.join("; "))]
    OtherModel {
        /// Its folder.
        path: PathBuf,
        /// Module, shapes there, shapes here.
        mismatches: Vec<String>,
    },
    /// A folder that isn't a whole snapshot.
    #[error("{path} is not a whole checkpoint: {reason}")]
    Snapshot {
        /// The folder.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// Something that can't be stored as asked (a mistake of the caller).
    #[error("cannot write {path}: {reason}")]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
}

/// Turns an [`io::Error`] into an [`Error`] that says what was tried on which file.
pub(crate) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Io { action, path, source }
}
