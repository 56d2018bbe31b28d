//! One file a verb.

mod chat;
mod data;
pub(crate) mod elsewhere;
mod export;
mod info;
mod status;
mod train;

pub(crate) use chat::chat;
pub(crate) use data::data;
pub(crate) use export::export;
pub(crate) use info::{env, help, version};
pub(crate) use status::status;
pub(crate) use train::train;
