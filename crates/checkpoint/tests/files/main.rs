//! Files of models, adapters and snapshots: against fixtures, in round trips, and broken.

mod adapter;
mod common;
mod folder;
mod gguf;
mod gguf_tokenizer;
mod safetensors;
mod snapshot;
