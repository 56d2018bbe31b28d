//! data

pub mod conversation;
mod convert;
mod digest;
pub mod error;
mod mix;
mod numpy;
mod pack;
mod read;
pub mod registry;
pub mod report;
pub mod rows;
pub mod sampler;
mod split;
mod pyjson;
