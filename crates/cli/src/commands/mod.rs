//! One file a verb.

mod beside;
mod chat;
pub(crate) mod check;
mod data;
pub(crate) mod deploy;
pub(crate) mod doctor;
pub(crate) mod elsewhere;
mod export;
mod info;
pub(crate) mod plan;
mod status;
mod train;
pub(crate) mod verify;

pub(crate) use chat::chat;
pub(crate) use check::check;
pub(crate) use data::data;
pub(crate) use deploy::deploy;
pub(crate) use doctor::{doctor, env, examined};
pub(crate) use export::export;
pub(crate) use info::{SchemaOf, help, schema, version};
pub(crate) use plan::plan;
pub(crate) use status::status;
pub(crate) use train::train;
