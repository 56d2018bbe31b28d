//! Training: the schedule of rates, what is measured on the way, and the files a run leaves behind.
#![forbid(unsafe_code)]

pub mod clock;
pub mod error;
pub mod report;
pub mod schedule;

#[cfg(test)]
mod fixtures;

pub use error::{Error, Result};
