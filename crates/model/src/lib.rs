//! Models: families, layers, adapters and losses, written forward only over the tape.
//!
//! A model knows no rank, no file and no device feature: parameters are metadata, and the tape's host says where
//! their data lies.
#![forbid(unsafe_code)]

mod batch;
mod config;
mod decoder;
mod error;
mod experts;
mod kv_cache;
mod parameters;
mod rope;
mod stages;
mod tuning;

pub use batch::{Batch, NoiseSettings, Sequence};
pub use config::{Config, Moe};
pub use decoder::{ExpertTraining, LossOptions, Model};
pub use error::{ModelError, Unmet};
pub use experts::{expert_name, stack_name};
pub use kv_cache::{Capacity, KvCache};
pub use parameters::{Parameter, Role, Source};
pub use rope::{RopeConfig, Scaling};
pub use stages::Stages;
pub use tuning::{ATTENTION_LINEARS, Trainables};
