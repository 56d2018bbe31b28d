//! Files of models, adapters and snapshots: against fixtures, in round trips, and broken.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod adapter;
mod common;
mod folder;
mod gguf;
mod gguf_tokenizer;
mod lint;
mod safetensors;
mod snapshot;
