//! Training: the engine that holds weights, gradients and optimiser states; the step; the loop; what is measured on the
//! way, and the files a run leaves behind.
#![forbid(unsafe_code)]

pub mod clock;
mod divide;
pub mod engine;
pub mod error;
mod evaluate;
mod event;
mod fit;
mod intervals;
mod memory;
mod order;
mod outputs;
mod passes;
pub mod plan;
mod profile;
pub mod report;
mod resume;
mod run;
pub mod save;
pub mod schedule;
mod sources;
mod stacked;
mod step;
pub mod track;

#[cfg(test)]
mod fixtures;

pub use divide::{Circumstances, Load, Split, divide};
pub use error::{Error, Result};
pub use evaluate::evaluate;
pub use event::{Event, Start};
pub use fit::check_files;
pub use memory::{Bytes, MemoryPlan, Shape, decide, predict};
pub use order::{Order, Share};
pub use run::{Finished, Job, longest_batch, run, step_options};
pub use sources::{Fresh, Grown};
pub use stacked::Stacked;
pub use step::{Outcome, Sample, StepOptions, Votes, Work, step};
