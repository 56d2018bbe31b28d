//! Models, adapters and snapshots on disk.
//!
//! Reading: safetensors (one file or shards), GGUF and PEFT adapters behind one trait of named
//! tensors, [`TensorSource`]; names are Hugging Face's everywhere. Writing: Hugging Face folders,
//! PEFT adapters, and snapshots that survive a kill at any instruction. What a tensor means is the
//! model's business.

#![forbid(unsafe_code)]

#[cfg(target_endian = "big")]
compile_error!("model files are little-endian, and their bytes are taken as they are");

mod adapter;
mod dtype;
mod error;
mod file;
mod folder;
pub mod gguf;
pub mod hub;
mod model;
mod region;
mod safetensors;
mod snapshot;
mod source;

pub use adapter::{
    Adapter, AdapterConfig, Finding, HostTensor, LintBase, LintOptions, LintReport, LintSeverity, LoraWeights, Number,
    TargetModules, Vllm, lint, lint_intended,
};
pub use dtype::{Dtype, encode};
pub use error::{Error, Result};
pub use folder::{FolderWriter, StreamError, random, write_atomic};
pub use model::{OpenModel, Origin, TokenizerFiles, open_config, open_model, open_tokenizer};
pub use safetensors::{OutTensor, SafetensorsFile, SaveModel, ShardedSafetensors, write_model};
pub use snapshot::{
    DONE, Draft, FoundSnapshot, Snapshot, SnapshotState, SnapshotWriter, latest_snapshot, list_snapshots,
};
pub use source::{TensorInfo, TensorSource};
