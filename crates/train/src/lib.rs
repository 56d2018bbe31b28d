//! Training: the engine that holds weights, gradients and optimiser states; the step; the loop; what is measured on the
//! way, and the files a run leaves behind.
#![forbid(unsafe_code)]

pub mod clock;
mod cures;
mod divide;
pub mod engine;
pub mod error;
mod evaluate;
mod evaluated;
mod event;
mod fit;
mod forecast;
mod gauge;
mod intervals;
mod limit;
mod machine;
mod memory;
mod order;
mod outputs;
mod passes;
pub mod plan;
mod predict;
mod profile;
pub mod report;
mod resume;
mod room;
mod router_loss;
mod run;
pub mod save;
mod scale;
pub mod schedule;
mod sources;
mod stacked;
mod step;
pub mod track;

#[cfg(test)]
mod fixtures;

pub use divide::{Circumstances, Levels, Load, Split, Way, divide, ways};
pub use error::{Error, Result};
pub use evaluate::{EvaluateOptions, evaluate};
pub use evaluated::{Answers, EvaluatedRow, assumed_rows, evaluated_rows, longest_evaluation, widest_answers};
pub use event::{Event, Start};
pub use fit::check_files;
pub use forecast::{
    Cure, Duration, Forecast, RowLengths, Subject, dtype, expected_memory, expected_step, forecast, is_meant, meant,
    measured, middle_batch,
};
pub use limit::{Limit, Longest, rehearse, step_within};
pub use machine::Machine;
pub use memory::{Bytes, MemoryPlan, Shape, plan_memory, predict};
pub use order::{Order, Share, longest_batch};
pub use predict::{Answering, Predicted, Prediction, predict as answer};
pub use room::Room;
pub use router_loss::router_aux_loss;
pub use run::{Finished, Job, run};
pub use scale::LossScale;
pub use sources::{Fresh, Grown};
pub use stacked::Stacked;
pub use step::{Outcome, Sample, StepOptions, Votes, Work, step, step_options};
