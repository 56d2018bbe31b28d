//! data

pub mod chat_template;
pub mod clock;
pub mod conversation;
mod convert;
mod digest;
pub mod encode;
pub mod error;
#[cfg(test)]
mod golden;
mod mix;
mod numpy;
mod pack;
pub mod prepare;
mod pyjson;
mod read;
pub mod registry;
pub mod report;
pub mod rows;
pub mod sampler;
mod split;
pub mod template;
pub mod tokenizer;
pub mod tools;
