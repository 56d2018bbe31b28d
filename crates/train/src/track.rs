//! What is remembered between log rows and evaluations: the mean loss, the best evaluation, the checkpoints to keep.
//!
//! All of it is small and plain, and belongs to a snapshot: a resumed run must log the same means and stop at the
//! same evaluation.

use ferrotune_config::plan::EvalPlan;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::report::state::{CallbackState, EarlyStoppingArgs, EarlyStoppingAttributes};
use crate::report::{LogRow, TrainerState};

/// Mean losses: since the last log row, and over the run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct LossMeter {
    window: f64,
    window_steps: u64,
    total: f64,
    total_steps: u64,
}

impl LossMeter {
    /// Counts the loss of an optimiser step.
    pub fn add(&mut self, loss: f64) {
        self.window += loss;
        self.window_steps += 1;
    }

    /// The mean since the last call, for a log row; `None` if no step was made since.
    pub fn take(&mut self) -> Option<f64> {
        let mean = (self.window_steps > 0).then(|| self.window / self.window_steps as f64);
        self.total += self.window;
        self.total_steps += self.window_steps;
        (self.window, self.window_steps) = (0.0, 0);
        mean
    }

    /// The mean over all steps of the run (`train_loss`); 0 before the first.
    #[must_use]
    pub fn mean(&self) -> f64 {
        (self.total + self.window) / (self.total_steps + self.window_steps).max(1) as f64
    }
}

/// Follows the metric that decides on the best checkpoint and on stopping early.
#[derive(Debug, Clone, PartialEq)]
pub struct BestTracker {
    metric: String,
    greater_is_better: bool,
    patience: Option<u64>,
    state: BestState,
}

/// What a snapshot holds of a [`BestTracker`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct BestState {
    /// The best number so far and its step.
    pub best: Option<Best>,
    /// Evaluations without progress since.
    pub stale: u64,
}

/// The best evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Its number.
    pub value: f64,
    /// Optimiser steps done before it.
    pub step: u64,
}

/// What an evaluation means for the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// It is the best so far.
    pub improved: bool,
    /// The run has been without progress for as long as it may.
    pub stop: bool,
}

impl BestTracker {
    /// The tracker of a plan; `None` where neither the best checkpoint nor early stopping is asked for.
    #[must_use]
    pub fn new(plan: &EvalPlan) -> Option<Self> {
        if !plan.load_best && plan.early_stopping.is_none() {
            return None;
        }
        let metric = match plan.metric.strip_prefix("eval_") {
            Some(_) => plan.metric.clone(),
            None => format!("eval_{}", plan.metric),
        };
        Some(Self {
            metric,
            greater_is_better: plan.greater_is_better,
            patience: plan.early_stopping,
            state: BestState::default(),
        })
    }

    /// Judges an evaluation at `step`, one row a dataset. Only a strictly better number is progress; one that isn't
    /// finite never is.
    ///
    /// # Errors
    /// [`Error::NoSuchMetric`] if no row has the metric.
    pub fn observe(&mut self, step: u64, rows: &[LogRow]) -> Result<Verdict> {
        let Some(value) = rows.iter().find_map(|row| row.get(&self.metric)) else {
            let available = rows.iter().flat_map(LogRow::values).map(|(name, _)| name.to_owned()).collect();
            return Err(Error::NoSuchMetric { metric: self.metric.clone(), available });
        };
        let improved = value.is_finite()
            && self.state.best.is_none_or(|best| match self.greater_is_better {
                true => value > best.value,
                false => value < best.value,
            });
        if improved {
            self.state = BestState { best: Some(Best { value, step }), stale: 0 };
        } else {
            self.state.stale += 1;
        }
        Ok(Verdict { improved, stop: self.exhausted() })
    }

    /// Whether patience is at its end.
    #[must_use]
    pub fn exhausted(&self) -> bool {
        self.patience.is_some_and(|patience| self.state.stale >= patience)
    }

    /// For a snapshot.
    #[must_use]
    pub fn state(&self) -> BestState {
        self.state
    }

    /// From a snapshot.
    pub fn restore(&mut self, state: BestState) {
        self.state = state;
    }

    /// Puts what is known into a trainer state. The best checkpoint's folder is the caller's to add, once it is there.
    pub fn describe(&self, state: &mut TrainerState) {
        state.best_metric = self.state.best.map(|best| best.value);
        state.best_global_step = self.state.best.map(|best| best.step);
        state.stateful_callbacks.early_stopping = self.patience.map(|patience| CallbackState {
            args: EarlyStoppingArgs { early_stopping_patience: patience, early_stopping_threshold: 0.0 },
            attributes: EarlyStoppingAttributes { early_stopping_patience_counter: self.state.stale },
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ferrotune_config::plan::Interval;

    use super::*;
    use crate::fixtures;
    use crate::report::{Evaluation, Found, When};

    fn plan() -> EvalPlan {
        EvalPlan {
            every: Interval::Steps(1),
            batch: 1,
            on_start: false,
            early_stopping: Some(2),
            load_best: true,
            metric: "loss".into(),
            greater_is_better: false,
            accuracy: true,
            generate: false,
        }
    }

    fn evaluation(loss: f64) -> [LogRow; 1] {
        let runtime = Duration::from_secs(1);
        let found = Found::Labels { loss, accuracy: Some(1.0 - loss) };
        let measured = Evaluation { found, samples: 1, batches: 1, runtime };
        [LogRow::evaluation(When { step: 0, epoch: 0.0 }, None, &measured)]
    }

    #[test]
    fn the_mean_over_a_run_is_transformers_train_loss() {
        for case in fixtures::train_cases() {
            let state = TrainerState::read(&case.path("")).expect("a state");
            let mut meter = LossMeter::default();
            for (_, loss) in state.curve("loss") {
                meter.add(loss);
                assert_eq!(meter.take(), Some(loss));
            }
            assert_eq!([meter.mean()], [state.curve("train_loss")[0].1], "{}", case.name());
        }
    }

    #[test]
    fn a_row_holds_the_mean_since_the_last() {
        let mut meter = LossMeter::default();
        assert_eq!((meter.take(), meter.mean()), (None, 0.0));
        for loss in [4.0, 2.0, 3.0] {
            meter.add(loss);
        }
        assert_eq!(meter.take(), Some(3.0));
        meter.add(1.0);
        assert_eq!(meter.mean(), 2.5);
        let text = serde_json::to_string(&meter).expect("plain numbers");
        let mut resumed: LossMeter = serde_json::from_str(&text).expect("its own text");
        assert_eq!((resumed.take(), resumed.mean()), (Some(1.0), 2.5));
    }

    #[test]
    fn patience_counts_evaluations_without_progress() {
        let mut tracker = BestTracker::new(&plan()).expect("it is asked for");
        let mut verdicts = Vec::new();
        for (step, loss) in [(10, 0.5), (20, 0.5), (30, 0.4), (40, f64::NAN), (50, 0.6)] {
            let verdict = tracker.observe(step, &evaluation(loss)).expect("it has a loss");
            verdicts.push((verdict.improved, verdict.stop));
        }
        assert_eq!(verdicts, [(true, false), (false, false), (true, false), (false, false), (false, true)]);
        let state = BestState { best: Some(Best { value: 0.4, step: 30 }), stale: 2 };
        assert_eq!(tracker.state(), state);

        let mut resumed = BestTracker::new(&plan()).expect("it is asked for");
        resumed.restore(state);
        assert_eq!(resumed, tracker);
    }

    #[test]
    fn a_trainer_state_tells_of_it_as_transformers_does() {
        let mut tracker = BestTracker::new(&plan()).expect("it is asked for");
        for (step, loss) in [(10, 0.5), (20, 0.75)] {
            tracker.observe(step, &evaluation(loss)).expect("it has a loss");
        }
        let mut state = TrainerState::default();
        tracker.describe(&mut state);
        let json = serde_json::to_value(&state).expect("it serialises");
        assert_eq!((json["best_metric"].as_f64(), json["best_global_step"].as_u64()), (Some(0.5), Some(10)));
        assert_eq!(
            json["stateful_callbacks"]["EarlyStoppingCallback"].to_string(),
            r#"{"args":{"early_stopping_patience":2,"early_stopping_threshold":0.0},"#.to_owned()
                + r#""attributes":{"early_stopping_patience_counter":1}}"#
        );
        let back: TrainerState = serde_json::from_value(json).expect("its own text");
        assert_eq!(back, state);
    }

    #[test]
    fn more_may_be_better() {
        let plan = EvalPlan { metric: "eval_accuracy".into(), greater_is_better: true, early_stopping: None, ..plan() };
        let mut tracker = BestTracker::new(&plan).expect("the best is kept");
        for (loss, improved) in [(0.5, true), (0.6, false), (0.2, true)] {
            let verdict = tracker.observe(1, &evaluation(loss)).expect("it has an accuracy");
            assert_eq!(verdict, Verdict { improved, stop: false });
        }
    }

    #[test]
    fn nothing_is_followed_unasked() {
        assert!(BestTracker::new(&EvalPlan { load_best: false, early_stopping: None, ..plan() }).is_none());
    }

    #[test]
    fn an_unmeasured_metric_is_named_with_those_there_are() {
        let mut tracker = BestTracker::new(&EvalPlan { metric: "rouge".into(), ..plan() }).expect("asked for");
        let error = tracker.observe(1, &evaluation(0.5)).expect_err("it isn't measured").to_string();
        assert_eq!(
            error,
            "metric_for_best_model: eval_rouge was not measured; this run measures eval_accuracy, eval_loss, \
             eval_runtime, eval_samples_per_second, eval_steps_per_second"
        );
    }
}
