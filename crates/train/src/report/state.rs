//! `trainer_state.json`: the state of a run as transformers writes it, which plots, notebooks and other trainers read.
//!
//! Fields stand in the order of the file, which is alphabetical. Numbers keep their full precision.

use std::fs;
use std::path::Path;

use ferrotune_checkpoint::write_atomic;
use serde::{Deserialize, Serialize};

use super::json;
use super::row::LogRow;
use crate::error::{Error, Result};

/// The file's name.
pub const TRAINER_STATE: &str = "trainer_state.json";

/// Interval that transformers writes where nothing happens at an interval.
const UNUSED_INTERVAL: u64 = 500;

/// Where a run stands and what it measured so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainerState {
    /// Step of the best evaluation, where best ones are kept.
    pub best_global_step: Option<u64>,
    /// Its number.
    pub best_metric: Option<f64>,
    /// Its checkpoint.
    pub best_model_checkpoint: Option<String>,
    /// Epochs done, a fraction.
    pub epoch: f64,
    /// Steps between evaluations.
    pub eval_steps: u64,
    /// Optimiser steps done.
    pub global_step: u64,
    /// Always false: there is no search over hyper-parameters.
    pub is_hyper_param_search: bool,
    /// Always true: the first rank writes the file.
    pub is_local_process_zero: bool,
    /// Always true: the first rank writes the file.
    pub is_world_process_zero: bool,
    /// Everything logged, in order.
    pub log_history: Vec<LogRow>,
    /// Steps between rows of the log.
    pub logging_steps: u64,
    /// Optimiser steps of the run.
    pub max_steps: u64,
    /// Tokens trained on, where they are counted.
    pub num_input_tokens_seen: u64,
    /// Epochs of the run, rounded up.
    pub num_train_epochs: u64,
    /// Steps between checkpoints.
    pub save_steps: u64,
    /// Switches of transformers' callbacks.
    pub stateful_callbacks: StatefulCallbacks,
    /// Floating-point operations so far.
    pub total_flos: f64,
    /// Rows of a micro-batch on one rank.
    pub train_batch_size: u64,
    /// Always null: there is no search over hyper-parameters.
    pub trial_name: Option<String>,
    /// Always null: there is no search over hyper-parameters.
    pub trial_params: Option<serde_json::Value>,
}

impl Default for TrainerState {
    fn default() -> Self {
        Self {
            best_global_step: None,
            best_metric: None,
            best_model_checkpoint: None,
            epoch: 0.0,
            eval_steps: UNUSED_INTERVAL,
            global_step: 0,
            is_hyper_param_search: false,
            is_local_process_zero: true,
            is_world_process_zero: true,
            log_history: Vec::new(),
            logging_steps: UNUSED_INTERVAL,
            max_steps: 0,
            num_input_tokens_seen: 0,
            num_train_epochs: 0,
            save_steps: UNUSED_INTERVAL,
            stateful_callbacks: StatefulCallbacks::default(),
            total_flos: 0.0,
            train_batch_size: 0,
            trial_name: None,
            trial_params: None,
        }
    }
}

/// What transformers' callbacks write of themselves.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StatefulCallbacks {
    /// Present where the run may stop early.
    #[serde(rename = "EarlyStoppingCallback", skip_serializing_if = "Option::is_none")]
    pub early_stopping: Option<CallbackState<EarlyStoppingArgs, EarlyStoppingAttributes>>,
    /// The flow of the loop.
    #[serde(rename = "TrainerControl")]
    pub control: CallbackState<ControlArgs, ControlAttributes>,
}

/// A callback's options and what it remembers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CallbackState<A, B> {
    /// Options.
    pub args: A,
    /// Memory.
    pub attributes: B,
}

/// Options of early stopping.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EarlyStoppingArgs {
    /// Evaluations without progress that end the run.
    pub early_stopping_patience: u64,
    /// Least progress that counts: any.
    pub early_stopping_threshold: f64,
}

/// Memory of early stopping.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EarlyStoppingAttributes {
    /// Evaluations without progress so far.
    pub early_stopping_patience_counter: u64,
}

/// Switches that transformers sets within a step; between steps all are off.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ControlArgs {
    /// End this epoch.
    pub should_epoch_stop: bool,
    /// Evaluate after this step.
    pub should_evaluate: bool,
    /// Log after this step.
    pub should_log: bool,
    /// Save after this step.
    pub should_save: bool,
    /// End the run.
    pub should_training_stop: bool,
}

/// The loop's flow remembers nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ControlAttributes {}

impl TrainerState {
    /// Writes `trainer_state.json` into `folder`.
    ///
    /// # Errors
    /// [`Error::Io`] if the file can't be written; an earlier one is then left as it was.
    pub fn write(&self, folder: &Path) -> Result<()> {
        Ok(write_atomic(&folder.join(TRAINER_STATE), &self.bytes())?)
    }

    /// The file's content.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut text = json::indented(self, 2);
        text.push(b'\n');
        text
    }

    /// Reads `trainer_state.json` of `folder`; keys that older versions lack get their defaults.
    ///
    /// # Errors
    /// [`Error::Io`] if the file can't be read, [`Error::Json`] if it is none.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(TRAINER_STATE);
        let text = fs::read(&path).map_err(Error::io("read", &path))?;
        Self::parse(&text, &path)
    }

    /// As [`read`](Self::read), from what the file at `path` holds.
    ///
    /// # Errors
    /// If it isn't one.
    pub fn parse(text: &[u8], path: &Path) -> Result<Self> {
        serde_json::from_slice(text).map_err(|source| Error::Json { path: path.into(), what: "trainer state", source })
    }

    /// Steps and numbers of the rows that have `name`, for a curve.
    #[must_use]
    pub fn curve(&self, name: &str) -> Vec<(u64, f64)> {
        self.log_history.iter().filter_map(|row| Some((row.when.step, row.get(name)?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    #[test]
    fn states_of_whole_runs_come_back_byte_for_byte() {
        for case in fixtures::train_cases() {
            let folder = case.path("");
            let state = TrainerState::read(&folder).expect("transformers' own file");
            assert_eq!(state.global_step, state.max_steps, "{}", case.name());
            let written = tempfile::tempdir().expect("a folder");
            state.write(written.path()).expect("writable");
            let text = fs::read_to_string(written.path().join(TRAINER_STATE)).expect("written");
            assert_eq!(text, case.text(TRAINER_STATE), "{}", case.name());
        }
    }

    #[test]
    fn a_new_state_has_the_keys_of_transformers() {
        let ours = serde_json::to_value(TrainerState::default()).expect("it serialises");
        let theirs = fixtures::train_case("qwen3_lora_eval").json(TRAINER_STATE);
        let keys = |value: &serde_json::Value| -> Vec<String> {
            value.as_object().expect("an object").keys().cloned().collect()
        };
        assert_eq!(keys(&ours), keys(&theirs));
        assert_eq!(ours["stateful_callbacks"], theirs["stateful_callbacks"]);
    }

    #[test]
    fn curves_take_the_rows_that_have_the_number() {
        let state = TrainerState::read(&fixtures::train_case("qwen3_lora_eval").path("")).expect("a state");
        let steps: Vec<u64> = state.curve("eval_loss").iter().map(|(step, _)| *step).collect();
        assert_eq!(steps, [4, 8, 12]);
        assert_eq!(state.curve("loss").len(), 12);
        assert!(state.curve("reward").is_empty());
    }

    #[test]
    fn broken_files_are_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let error = TrainerState::read(folder.path()).expect_err("there is none").to_string();
        assert!(error.starts_with("cannot read ") && error.contains(TRAINER_STATE), "{error}");
        fs::write(folder.path().join(TRAINER_STATE), r#"{"log_history": [{"step": 1}]}"#).expect("writable");
        let error = TrainerState::read(folder.path()).expect_err("a row lacks its epoch").to_string();
        assert!(error.contains("is not a trainer state: a row without epoch at line 1"), "{error}");
    }
}
