//! A row of what was measured: the one shape from which every log, table and curve is made.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

/// When something was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct When {
    /// Optimiser steps done.
    pub step: u64,
    /// Epochs done, a fraction.
    pub epoch: f64,
}

/// A row of `log_history`: named numbers at a step. In JSON its keys are sorted, and a number that is not finite is
/// `null` (read back as NaN), so that every reader can read it.
#[derive(Debug, Clone, PartialEq)]
pub struct LogRow {
    /// When it was measured.
    pub when: When,
    values: BTreeMap<String, f64>,
}

/// What an evaluation measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evaluation {
    /// Of the labels, or of answers.
    pub found: Found,
    /// Rows evaluated.
    pub samples: u64,
    /// Batches they made, over all ranks at once.
    pub batches: u64,
    /// Time it took.
    pub runtime: Duration,
}

/// The numbers of an evaluation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Found {
    /// How well the labels were predicted.
    Labels {
        /// Mean loss a label token.
        loss: f64,
        /// Share of label tokens predicted right, in the mean over rows, if it was asked for.
        accuracy: Option<f64>,
    },
    /// How alike answers were to those expected, in the mean over rows, in percent: in the order of
    /// [`ferrotune_similarity::NAMES`].
    Answers([f64; 4]),
}

impl Evaluation {
    /// The loss, where that is what was measured.
    #[must_use]
    pub fn loss(&self) -> Option<f64> {
        match self.found {
            Found::Labels { loss, .. } => Some(loss),
            Found::Answers(_) => None,
        }
    }
}

/// What a whole run measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// Mean of the losses of all steps.
    pub train_loss: f64,
    /// Floating-point operations of the run.
    pub total_flos: f64,
    /// Rows gone through, [`crate::clock::RunShape::samples`].
    pub samples: f64,
    /// Optimiser steps of the run.
    pub steps: u64,
    /// Time of this session.
    pub runtime: Duration,
}

impl LogRow {
    /// A row of training: mean loss since the last row, norm of the last step's gradient before clipping, rate used
    /// in the last step.
    #[must_use]
    pub fn step(when: When, loss: f64, grad_norm: f64, learning_rate: f64) -> Self {
        Self::new(when, [("loss", loss), ("grad_norm", grad_norm), ("learning_rate", learning_rate)])
    }

    /// The same with the last step's loss on the balance of experts, before its weight, where it is part of `loss`.
    #[must_use]
    pub fn with_router_loss(mut self, aux_loss: Option<f64>) -> Self {
        aux_loss.into_iter().for_each(|loss| self.set("aux_loss".into(), loss));
        self
    }

    /// A row of an evaluation; `dataset` names it where several are evaluated one by one.
    #[must_use]
    pub fn evaluation(when: When, dataset: Option<&str>, measured: &Evaluation) -> Self {
        Self::measured(when, "eval", dataset, measured)
    }

    /// A row of answers that are written down, and how long their model was made ready for them, where that wasn't done by a
    /// training.
    #[must_use]
    pub fn prediction(dataset: Option<&str>, measured: &Evaluation, preparation: Option<Duration>) -> Self {
        let mut row = Self::measured(When { step: 0, epoch: 0.0 }, "predict", dataset, measured);
        if let Some(took) = preparation {
            let prefix = prefix("predict", dataset);
            row.set(format!("{prefix}_model_preparation_time"), round(took.as_secs_f64(), 4));
        }
        row
    }

    fn measured(when: When, split: &str, dataset: Option<&str>, measured: &Evaluation) -> Self {
        let prefix = prefix(split, dataset);
        let mut row = Self::new(when, []);
        match measured.found {
            Found::Labels { loss, accuracy } => {
                row.set(format!("{prefix}_loss"), loss);
                accuracy.into_iter().for_each(|accuracy| row.set(format!("{prefix}_accuracy"), accuracy));
            }
            Found::Answers(numbers) => {
                for (name, number) in ferrotune_similarity::NAMES.iter().zip(numbers) {
                    row.set(format!("{prefix}_{name}"), number);
                }
            }
        }
        row.set_speed(&prefix, measured.runtime, measured.samples as f64, measured.batches);
        row
    }

    /// The last row of a run.
    #[must_use]
    pub fn summary(when: When, measured: &Summary) -> Self {
        let mut row = Self::new(when, [("total_flos", measured.total_flos), ("train_loss", measured.train_loss)]);
        row.set_speed("train", measured.runtime, measured.samples, measured.steps);
        row
    }

    /// The number of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<f64> {
        self.values.get(name).copied()
    }

    /// Names and numbers, sorted by name, without step and epoch.
    pub fn values(&self) -> impl Iterator<Item = (&str, f64)> {
        self.values.iter().map(|(name, value)| (name.as_str(), *value))
    }

    fn new<const N: usize>(when: When, values: [(&str, f64); N]) -> Self {
        Self { when, values: values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect() }
    }

    fn set(&mut self, name: String, value: f64) {
        self.values.insert(name, value);
    }

    /// Rates are of the exact time, which itself is rounded, as transformers does.
    fn set_speed(&mut self, prefix: &str, runtime: Duration, samples: f64, steps: u64) {
        let seconds = runtime.as_secs_f64();
        self.set(format!("{prefix}_runtime"), round(seconds, 4));
        if seconds > 0.0 {
            self.set(format!("{prefix}_samples_per_second"), round(samples / seconds, 3));
            self.set(format!("{prefix}_steps_per_second"), round(steps as f64 / seconds, 3));
        }
    }
}

fn prefix(split: &str, dataset: Option<&str>) -> String {
    dataset.map_or_else(|| split.to_owned(), |name| format!("{split}_{name}"))
}

/// The nearest number with so many decimals; a tie goes to the even digit.
pub(super) fn round(value: f64, decimals: usize) -> f64 {
    format!("{value:.decimals$}").parse().expect("a formatted number is a number")
}

impl Serialize for LogRow {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields: BTreeMap<&str, Value> = self.values().map(|(name, value)| (name, value.into())).collect();
        fields.insert("epoch", self.when.epoch.into());
        fields.insert("step", self.when.step.into());
        fields.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for LogRow {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut fields = BTreeMap::<String, Value>::deserialize(deserializer)?;
        let mut take =
            |name: &str| fields.remove(name).ok_or_else(|| D::Error::custom(format!("a row without {name}")));
        let step = take("step")?.as_u64().ok_or_else(|| D::Error::custom("step is not a count"))?;
        let epoch = number(&take("epoch")?).ok_or_else(|| D::Error::custom("epoch is not a number"))?;
        let mut values = BTreeMap::new();
        for (name, value) in fields {
            let value = number(&value).ok_or_else(|| D::Error::custom(format!("{name} is not a number")))?;
            values.insert(name, value);
        }
        Ok(Self { when: When { step, epoch }, values })
    }
}

fn number(value: &Value) -> Option<f64> {
    if value.is_null() { Some(f64::NAN) } else { value.as_f64() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::json::line;

    const WHEN: When = When { step: 4, epoch: 1.0 / 3.0 };

    fn json(row: &LogRow) -> String {
        String::from_utf8(line(row)).expect("JSON is UTF-8")
    }

    #[test]
    fn keys_are_those_of_transformers_sorted() {
        let row = LogRow::step(WHEN, 7.5, 0.25, 5e-5);
        assert_eq!(
            json(&row),
            r#"{"epoch": 0.3333333333333333, "grad_norm": 0.25, "learning_rate": 5e-05, "loss": 7.5, "step": 4}"#
        );
        let measured = Evaluation {
            found: Found::Labels { loss: 6.5, accuracy: Some(0.5) },
            samples: 7,
            batches: 4,
            runtime: Duration::from_micros(101_602),
        };
        assert_eq!(
            json(&LogRow::evaluation(WHEN, None, &measured)),
            r#"{"epoch": 0.3333333333333333, "eval_accuracy": 0.5, "eval_loss": 6.5, "eval_runtime": 0.1016, "#
                .to_owned()
                + r#""eval_samples_per_second": 68.896, "eval_steps_per_second": 39.369, "step": 4}"#
        );
        assert_eq!(LogRow::evaluation(WHEN, Some("law"), &measured).get("eval_law_loss"), Some(6.5));
    }

    #[test]
    fn answers_have_llamafactorys_names() {
        let runtime = Duration::from_millis(500);
        let measured = Evaluation { found: Found::Answers([30.5, 12.25, 28.0, 9.0]), samples: 7, batches: 4, runtime };
        assert_eq!(
            json(&LogRow::evaluation(WHEN, None, &measured)),
            r#"{"epoch": 0.3333333333333333, "eval_bleu-4": 9.0, "eval_rouge-1": 30.5, "eval_rouge-2": 12.25, "#
                .to_owned()
                + r#""eval_rouge-l": 28.0, "eval_runtime": 0.5, "eval_samples_per_second": 14.0, "#
                + r#""eval_steps_per_second": 8.0, "step": 4}"#
        );
        let names = |row: LogRow| row.values().map(|(name, _)| name.to_owned()).collect::<Vec<_>>();
        let row = LogRow::prediction(None, &measured, Some(Duration::from_millis(2)));
        assert_eq!(row.get("predict_model_preparation_time"), Some(0.002));
        assert_eq!(
            names(row),
            [
                "predict_bleu-4",
                "predict_model_preparation_time",
                "predict_rouge-1",
                "predict_rouge-2",
                "predict_rouge-l",
                "predict_runtime",
                "predict_samples_per_second",
                "predict_steps_per_second"
            ]
        );
        assert_eq!(LogRow::prediction(Some("law"), &measured, None).get("predict_law_rouge-l"), Some(28.0));
    }

    #[test]
    fn a_run_of_no_time_has_no_speed() {
        let measured = Summary { train_loss: 1.0, total_flos: 0.0, samples: 8.0, steps: 4, runtime: Duration::ZERO };
        let row = LogRow::summary(WHEN, &measured);
        assert_eq!(row.get("train_runtime"), Some(0.0));
        assert_eq!(row.get("train_steps_per_second"), None);
    }

    #[test]
    fn numbers_that_are_not_finite_stay_readable() {
        let row = LogRow::step(WHEN, f64::NAN, f64::INFINITY, 0.1);
        let text = json(&row);
        assert!(text.contains(r#""grad_norm": null"#) && text.contains(r#""loss": null"#), "{text}");
        let back: LogRow = serde_json::from_str(&text).expect("JSON");
        assert!(back.get("loss").expect("kept").is_nan());
        assert_eq!(back.get("learning_rate"), Some(0.1));
    }

    #[test]
    fn rows_of_another_shape_are_refused() {
        let error = |text: &str| serde_json::from_str::<LogRow>(text).expect_err("refused").to_string();
        assert!(error(r#"{"epoch":1}"#).starts_with("a row without step"));
        assert!(error(r#"{"epoch":1,"step":-1}"#).starts_with("step is not a count"));
        assert!(error(r#"{"epoch":1,"step":1,"loss":"low"}"#).starts_with("loss is not a number"));
    }

    #[test]
    fn ties_go_to_the_even_digit() {
        assert_eq!([round(0.125, 2), round(0.375, 2), round(8.333_333, 2)], [0.12, 0.38, 8.33]);
    }
}
