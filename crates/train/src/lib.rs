//! Training: the schedule of rates, what is measured on the way, and the files a run leaves behind.
#![forbid(unsafe_code)]

pub mod clock;
pub mod engine;
pub mod error;
pub mod report;
pub mod schedule;
pub mod track;

#[cfg(test)]
mod fixtures;

pub use error::{Error, Result};
