//! From dataset files to token ids and labels.
//!
//! [`prepare`] is the whole way: registry, readers, converters, mix and split, template and
//! tokenizer, packing, and a memory-mapped cache. Ids are `u32` and labels `i32`; tensors are
//! other crates' business.

pub mod chat_template;
pub mod clock;
pub mod conversation;
mod convert;
mod digest;
pub mod encode;
pub mod error;
mod mix;
mod numpy;
mod pack;
pub mod parity;
pub mod preference;
pub mod prepare;
mod pyjson;
mod read;
pub mod reference;
pub mod registry;
pub mod report;
pub mod rows;
pub mod sampler;
pub mod schema;
pub mod serving;
mod split;
pub mod stream;
pub mod template;
pub mod tokenizer;
pub mod tools;
