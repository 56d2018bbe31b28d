//! Generation over a cache of keys and values: a conversation, or many prompts at once.
//!
//! Ids in, ids out; text and templates are the data crate's, and nothing is printed here.
#![forbid(unsafe_code)]

mod batch;
mod generator;
mod sampler;
mod stream;

pub use batch::{Answer, Request};
pub use generator::{Generator, InferError, Stop};
pub use sampler::Sampler;
pub use stream::TextStream;
