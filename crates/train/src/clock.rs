//! Where a run stands: steps, epochs, time left, tokens a second.
//!
//! Nothing here reads a clock; callers pass the time since the session began, so that every number can be tested. A
//! resumed session knows what earlier ones took, and judges its pace by itself alone.

use std::collections::VecDeque;
use std::time::Duration;

use ferrotune_config::plan::RunLength;

/// Steps over which the present pace is judged.
const RECENT_STEPS: usize = 20;

/// How micro-batches make optimiser steps, and steps a run. The last step of an epoch may hold fewer micro-batches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RunShape {
    /// Micro-batches of an epoch on each rank.
    pub micro_batches: u64,
    /// Micro-batches of an optimiser step.
    pub accumulation: u64,
    /// When the run ends.
    pub length: RunLength,
}

impl RunShape {
    /// Optimiser steps of an epoch, at least one.
    #[must_use]
    pub fn steps_per_epoch(&self) -> u64 {
        self.micro_batches.div_ceil(self.accumulation.max(1)).max(1)
    }

    /// Optimiser steps of the run.
    #[must_use]
    pub fn total_steps(&self) -> u64 {
        match self.length {
            RunLength::Steps(steps) => steps,
            RunLength::Epochs(epochs) => (epochs * self.steps_per_epoch() as f64).ceil() as u64,
        }
    }

    /// Epochs begun by the end of the run (`num_train_epochs` of a trainer state).
    #[must_use]
    pub fn epochs(&self) -> u64 {
        match self.length {
            RunLength::Steps(steps) => steps.div_ceil(self.steps_per_epoch()),
            RunLength::Epochs(epochs) => epochs.ceil() as u64,
        }
    }

    /// Epochs done after `step` optimiser steps, in micro-batches: `2.25` is a quarter of the third.
    #[must_use]
    pub fn epoch_after(&self, step: u64) -> f64 {
        if step == 0 || self.micro_batches == 0 {
            return 0.0;
        }
        let whole = (step - 1) / self.steps_per_epoch();
        let steps_within = step - whole * self.steps_per_epoch();
        let micro_batches = (steps_within * self.accumulation).min(self.micro_batches);
        whole as f64 + micro_batches as f64 / self.micro_batches as f64
    }

    /// Rows the run goes through, as reported speeds count them: `rows` in the data, `batch` in a full step over all
    /// ranks.
    #[must_use]
    pub fn samples(&self, rows: u64, batch: u64) -> f64 {
        match self.length {
            RunLength::Steps(steps) => steps as f64 * batch as f64,
            RunLength::Epochs(epochs) => rows as f64 * epochs,
        }
    }
}

/// Numbers for a progress bar and for `trainer_log.jsonl`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Optimiser steps done.
    pub step: u64,
    /// Optimiser steps of the run.
    pub total_steps: u64,
    /// Time spent, earlier sessions included.
    pub elapsed: Duration,
    /// Time left at this session's pace.
    pub remaining: Duration,
    /// Tokens trained on, earlier sessions included.
    pub tokens: u64,
    /// Tokens a second over this session.
    pub tokens_per_second: f64,
    /// Tokens a second over the last steps.
    pub recent_tokens_per_second: f64,
}

/// Measures the pace of a session.
#[derive(Debug, Clone)]
pub struct Pace {
    total_steps: u64,
    first_step: u64,
    earlier: Duration,
    earlier_tokens: u64,
    step: u64,
    now: Duration,
    tokens: u64,
    recent: VecDeque<(Duration, u64)>,
}

impl Pace {
    /// A session that begins after `done` of `total_steps` steps, in which earlier sessions spent `elapsed` on
    /// `tokens` tokens.
    #[must_use]
    pub fn new(total_steps: u64, done: u64, elapsed: Duration, tokens: u64) -> Self {
        Self {
            total_steps,
            first_step: done,
            earlier: elapsed,
            earlier_tokens: tokens,
            step: done,
            now: Duration::ZERO,
            tokens: 0,
            recent: VecDeque::from([(Duration::ZERO, 0)]),
        }
    }

    /// Counts a finished step of `tokens` tokens; `now` is the time since the session began.
    pub fn step(&mut self, now: Duration, tokens: u64) {
        self.step += 1;
        self.tokens += tokens;
        self.now = self.now.max(now);
        if self.recent.len() > RECENT_STEPS {
            self.recent.pop_front();
        }
        self.recent.push_back((self.now, self.tokens));
    }

    /// Where the run stands at `now`, the time since the session began.
    #[must_use]
    pub fn progress(&self, now: Duration) -> Progress {
        let done = self.step - self.first_step;
        let left = self.total_steps.saturating_sub(self.step);
        let per_step = if done == 0 { 0.0 } else { now.as_secs_f64() / done as f64 };
        let (since, tokens_then) = self.recent.front().copied().unwrap_or_default();
        Progress {
            step: self.step,
            total_steps: self.total_steps,
            elapsed: self.earlier + now,
            remaining: Duration::try_from_secs_f64(per_step * left as f64).unwrap_or(Duration::MAX),
            tokens: self.earlier_tokens + self.tokens,
            tokens_per_second: per_second(self.tokens, now),
            recent_tokens_per_second: per_second(self.tokens - tokens_then, self.now.saturating_sub(since)),
        }
    }
}

fn per_second(count: u64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { count as f64 / time.as_secs_f64() }
}

/// `0:04:09`, `1 day, 2:00:00`: whole seconds as LLaMA-Factory's log writes them.
#[must_use]
pub fn clock_text(time: Duration) -> String {
    let seconds = time.as_secs();
    let (days, hours, minutes, seconds) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    match days {
        0 => format!("{hours}:{minutes:02}:{seconds:02}"),
        1 => format!("1 day, {hours}:{minutes:02}:{seconds:02}"),
        _ => format!("{days} days, {hours}:{minutes:02}:{seconds:02}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    #[test]
    fn epochs_of_whole_runs_are_identical() {
        for case in fixtures::train_cases() {
            let recipe = case.recipe();
            let state = case.json("trainer_state.json");
            let history = state["log_history"].as_array().expect("a list");
            // What the logs don't say is how many micro-batches an epoch has; the first epoch value tells.
            let accumulation: u64 = recipe["gradient_accumulation_steps"].parse().expect("a count");
            let first = history[0]["epoch"].as_f64().expect("a share");
            let micro_batches = (accumulation as f64 / first).round() as u64;
            let length = match recipe["max_steps"].parse::<i64>().expect("a count") {
                -1 => RunLength::Epochs(recipe["num_train_epochs"].parse().expect("a number")),
                steps => RunLength::Steps(steps.unsigned_abs()),
            };
            let shape = RunShape { micro_batches, accumulation, length };
            assert_eq!(Some(shape.total_steps()), state["max_steps"].as_u64(), "{}", case.name());
            assert_eq!(Some(shape.epochs()), state["num_train_epochs"].as_u64(), "{}", case.name());
            for row in history {
                let step = row["step"].as_u64().expect("a count");
                assert_eq!(Some(shape.epoch_after(step)), row["epoch"].as_f64(), "{} {step}", case.name());
            }
        }
    }

    #[test]
    fn a_short_last_step_ends_the_epoch() {
        let shape = RunShape { micro_batches: 10, accumulation: 4, length: RunLength::Epochs(2.5) };
        let epochs: Vec<f64> = (0..=7).map(|step| shape.epoch_after(step)).collect();
        assert_eq!(epochs, [0.0, 0.4, 0.8, 1.0, 1.4, 1.8, 2.0, 2.4]);
        assert_eq!((shape.total_steps(), shape.epochs()), (8, 3));
        assert_eq!(shape.samples(19, 8), 47.5);
    }

    #[test]
    fn an_empty_epoch_divides_by_nothing() {
        let shape = RunShape { micro_batches: 0, accumulation: 0, length: RunLength::Epochs(1.0) };
        assert_eq!((shape.steps_per_epoch(), shape.total_steps(), shape.epoch_after(3)), (1, 1, 0.0));
    }

    #[test]
    fn a_resumed_session_judges_by_its_own_pace() {
        let mut pace = Pace::new(10, 4, Duration::from_secs(100), 5000);
        let start = pace.progress(Duration::from_secs(1));
        assert_eq!((start.step, start.remaining, start.tokens_per_second), (4, Duration::ZERO, 0.0));
        pace.step(Duration::from_secs(2), 300);
        pace.step(Duration::from_secs(4), 500);
        let progress = pace.progress(Duration::from_secs(4));
        assert_eq!((progress.step, progress.elapsed), (6, Duration::from_secs(104)));
        assert_eq!(progress.remaining, Duration::from_secs(8));
        assert_eq!((progress.tokens, progress.tokens_per_second), (5800, 200.0));
    }

    #[test]
    fn the_present_pace_forgets_a_slow_start() {
        let mut pace = Pace::new(100, 0, Duration::ZERO, 0);
        pace.step(Duration::from_secs(50), 10);
        for second in 51..=75 {
            pace.step(Duration::from_secs(second), 10);
        }
        let progress = pace.progress(Duration::from_secs(75));
        assert_eq!(progress.recent_tokens_per_second, 10.0);
        assert_eq!(progress.tokens_per_second, 260.0 / 75.0);
    }

    #[test]
    fn times_read_as_in_the_log() {
        let text = |seconds| clock_text(Duration::from_secs(seconds));
        assert_eq!(text(0), "0:00:00");
        assert_eq!(text(3_661), "1:01:01");
        assert_eq!(text(86_399), "23:59:59");
        assert_eq!(text(90_061), "1 day, 1:01:01");
        assert_eq!(text(200_000), "2 days, 7:33:20");
        assert_eq!(clock_text(Duration::from_millis(1_999)), "0:00:01");
    }
}
