//! Generation: one sequence at a time over a cache of keys and values.
//!
//! Ids in, ids out; text and templates are the data crate's, and nothing is printed here.
#![forbid(unsafe_code)]

mod generator;
mod sampler;
mod stream;

pub use generator::{Generator, InferError, Stop};
pub use sampler::Sampler;
pub use stream::TextStream;
