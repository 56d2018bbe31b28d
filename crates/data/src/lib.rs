//! data

pub mod conversation;
