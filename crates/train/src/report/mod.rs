//! What a run leaves behind for people and other programs, in the files that users of LLaMA-Factory and transformers
//! know. Everything is made from [`LogRow`]s; nothing here prints or measures.

pub mod card;
pub mod chart;
mod json;
pub mod log;
pub mod results;
pub mod row;
pub mod state;
pub mod status;

pub use card::ModelCard;
pub use chart::write_chart;
pub use log::TrainerLog;
pub use results::{PREDICTIONS, write_predictions, write_results};
pub use row::{Evaluation, Found, LogRow, Summary, When};
pub use state::TrainerState;
pub use status::{Phase, RankStatus, Reached, Status, StatusKeeper};
