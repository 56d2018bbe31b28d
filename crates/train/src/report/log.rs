//! `trainer_log.jsonl`: a line for each row of the log, with the keys that LLaMA-Factory's board and users' scripts
//! know.
//!
//! A line goes out in one write, so a killed run leaves at most one torn line, at the end; resuming drops it together
//! with the lines of steps that will be made again.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use ferrotune_checkpoint::write_atomic;
use serde::{Deserialize, Serialize};

use super::json;
use super::row::{LogRow, round};
use crate::clock::{Progress, clock_text};
use crate::error::{Error, Result};

/// The file's name.
pub const TRAINER_LOG: &str = "trainer_log.jsonl";

/// An open `trainer_log.jsonl`.
#[derive(Debug)]
pub struct TrainerLog {
    path: PathBuf,
    file: File,
    throughput: bool,
}

/// A line. Fields stand in the order of the file.
#[derive(Debug, Serialize)]
struct Line {
    current_steps: u64,
    total_steps: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    loss: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    eval_loss: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lr: Option<f64>,
    epoch: f64,
    percentage: f64,
    elapsed_time: String,
    remaining_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    throughput: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    total_tokens: Option<u64>,
}

/// The only thing that resuming asks of a line.
#[derive(Deserialize)]
struct LineStep {
    current_steps: u64,
}

impl TrainerLog {
    /// Begins the log of a new run in `folder`, in place of an older one. With `throughput`, lines also have tokens
    /// a second and tokens so far.
    ///
    /// # Errors
    /// [`Error::Io`] if the file can't be written.
    pub fn create(folder: &Path, throughput: bool) -> Result<Self> {
        let path = folder.join(TRAINER_LOG);
        let file = File::create(&path).map_err(Error::io("create", &path))?;
        Ok(Self { path, file, throughput })
    }

    /// Goes on with the log in `folder` after `step` optimiser steps: later lines, and torn ones, are dropped.
    ///
    /// # Errors
    /// [`Error::Io`] if the file can't be read or written. A missing file is begun anew.
    pub fn resume(folder: &Path, step: u64, throughput: bool) -> Result<Self> {
        let path = folder.join(TRAINER_LOG);
        let old = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        let kept: Vec<u8> =
            old.split_inclusive(|&byte| byte == b'\n').filter(|line| holds(line, step)).flatten().copied().collect();
        write_atomic(&path, &kept)?;
        let file = OpenOptions::new().append(true).open(&path).map_err(Error::io("write", &path))?;
        Ok(Self { path, file, throughput })
    }

    /// Adds a row.
    ///
    /// # Errors
    /// [`Error::Io`] if the line can't be written.
    pub fn append(&mut self, row: &LogRow, progress: &Progress) -> Result<()> {
        let line = Line {
            current_steps: row.when.step,
            total_steps: progress.total_steps,
            loss: row.get("loss"),
            eval_loss: row.get("eval_loss"),
            lr: row.get("learning_rate"),
            epoch: row.when.epoch,
            percentage: percentage(row.when.step, progress.total_steps),
            elapsed_time: clock_text(progress.elapsed),
            remaining_time: clock_text(progress.remaining),
            throughput: self.throughput.then(|| round(progress.tokens_per_second, 2)),
            total_tokens: self.throughput.then_some(progress.tokens),
        };
        let mut bytes = json::line(&line);
        bytes.push(b'\n');
        self.file.write_all(&bytes).map_err(Error::io("write", &self.path))
    }
}

/// Whether a line is whole and of a step not beyond `step`.
fn holds(line: &[u8], step: u64) -> bool {
    line.ends_with(b"\n") && serde_json::from_slice::<LineStep>(line).is_ok_and(|line| line.current_steps <= step)
}

fn percentage(step: u64, total: u64) -> f64 {
    if total == 0 { 100.0 } else { round(step as f64 / total as f64 * 100.0, 2) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::fixtures;
    use crate::report::row::When;
    use crate::report::state::TrainerState;

    fn progress(total_steps: u64, elapsed: u64, remaining: u64) -> Progress {
        Progress {
            step: 0,
            total_steps,
            elapsed: Duration::from_secs(elapsed),
            remaining: Duration::from_secs(remaining),
            tokens: 12_345,
            tokens_per_second: 151.987_6,
            recent_tokens_per_second: 0.0,
        }
    }

    fn seconds(line: &serde_json::Value, key: &str) -> u64 {
        let text = line[key].as_str().expect("a time");
        text.split(':').fold(0, |sum, part| sum * 60 + part.parse::<u64>().expect("a number"))
    }

    #[test]
    fn logs_of_whole_runs_come_out_line_for_line() {
        for case in fixtures::train_cases() {
            let state = TrainerState::read(&case.path("")).expect("a state");
            let folder = tempfile::tempdir().expect("a folder");
            let mut log = TrainerLog::create(folder.path(), false).expect("writable");
            let theirs = case.text(TRAINER_LOG);
            for (row, line) in state.log_history.iter().zip(theirs.lines()) {
                let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
                let times = progress(state.max_steps, seconds(&line, "elapsed_time"), seconds(&line, "remaining_time"));
                log.append(row, &times).expect("writable");
            }
            let ours = fs::read_to_string(folder.path().join(TRAINER_LOG)).expect("written");
            assert_eq!(ours, theirs, "{}", case.name());
        }
    }

    fn row(step: u64) -> LogRow {
        LogRow::step(When { step, epoch: step as f64 / 8.0 }, 2.5, 1.0, 5e-4)
    }

    #[test]
    fn throughput_is_written_where_it_is_wanted() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut log = TrainerLog::create(folder.path(), true).expect("writable");
        log.append(&row(1), &progress(0, 3_600, 86_400)).expect("writable");
        assert_eq!(
            fs::read_to_string(folder.path().join(TRAINER_LOG)).expect("written"),
            "{\"current_steps\": 1, \"total_steps\": 0, \"loss\": 2.5, \"lr\": 0.0005, \"epoch\": 0.125, \
             \"percentage\": 100.0, \"elapsed_time\": \"1:00:00\", \"remaining_time\": \"1 day, 0:00:00\", \
             \"throughput\": 151.99, \"total_tokens\": 12345}\n"
        );
    }

    #[test]
    fn resuming_drops_later_and_torn_lines() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(TRAINER_LOG);
        let mut log = TrainerLog::create(folder.path(), false).expect("writable");
        for step in 1..=6 {
            log.append(&row(step), &progress(8, 0, 0)).expect("writable");
        }
        let whole = fs::read_to_string(&path).expect("written");
        let torn = [whole.as_bytes(), b"\xff\xfe\n{\"current_steps\": 2, \"tot"].concat();
        fs::write(&path, torn).expect("writable");

        let mut log = TrainerLog::resume(folder.path(), 4, false).expect("readable");
        for step in 5..=6 {
            log.append(&row(step), &progress(8, 0, 0)).expect("writable");
        }
        assert_eq!(fs::read_to_string(&path).expect("written"), whole);
    }

    #[test]
    fn resuming_without_a_log_begins_one() {
        let folder = tempfile::tempdir().expect("a folder");
        TrainerLog::resume(folder.path(), 9, false)
            .expect("writable")
            .append(&row(10), &progress(12, 0, 0))
            .expect("writable");
        let text = fs::read_to_string(folder.path().join(TRAINER_LOG)).expect("written");
        assert!(text.starts_with("{\"current_steps\": 10,"), "{text}");
    }
}
