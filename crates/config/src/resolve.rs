//! From what the user wrote to what it means: defaults, and every check that concerns several keys.
//!
//! One function a part of the [`Plan`]; each fills in its struct and reports what contradicts, so that
//! all errors of a recipe come at once. LLaMA-Factory's rules are those of its `hparams/parser.py`,
//! transformers' those of `training_args.py`.

mod data;
mod deepspeed;
mod model;
mod output;
mod parallel;
mod predict;
mod schedule;
mod train;

use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::plan::{DataPlan, Plan};
use crate::recipe::Recipe;
use crate::settings::Settings;

/// What the recipe is resolved for. It decides which keys are needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Training, evaluation, or both.
    Train,
    /// Saying what a training would take; its data may be elsewhere.
    Plan,
    /// Encoding rows and showing them.
    Data,
    /// Talking to a model.
    Chat,
    /// Merging adapters into a model.
    Export,
}

impl Plan {
    /// Resolves a recipe for one verb; returns the plan, and notes about keys that were read otherwise
    /// than the user may think.
    ///
    /// # Errors
    /// Every unknown, mistyped, unsupported, missing and contradicting key, in the order of the recipe.
    pub fn resolve(recipe: &Recipe, verb: Verb) -> Result<(Self, Vec<Diagnostic>), Diagnostics> {
        let mut settings = Settings::new(recipe);
        let s = &mut settings;
        let stage = model::stage(s, verb);
        let plan = Self {
            stage,
            model: model::model(s, verb),
            tuning: model::tuning(s),
            data: data::data(s, stage, verb),
            train: train::train(s),
            parallel: parallel::parallel(s),
            eval: train::eval(s, verb),
            output: output::output(s, verb),
            generation: output::generation(s),
            export: output::export(s, verb),
        };
        train::check_best_checkpoint(s, &plan);
        predict::check(s, &plan, verb);
        let notes = settings.finish()?;
        Ok((plan, notes))
    }
}

impl DataPlan {
    /// Which rows a recipe names, although something else in it may be wrong: where they lie and what kind they are. How they
    /// become ids is not to be taken from this plan. Nothing if it names none, or if a key that says so is wrong itself.
    #[must_use]
    pub fn of_faulty(recipe: &Recipe, verb: Verb) -> Option<Self> {
        let mut settings = Settings::new(recipe);
        let s = &mut settings;
        if PLACES.iter().any(|key| s.is_unclear(key)) {
            return None;
        }
        let stage = model::stage(s, verb);
        let plan = data::data(s, stage, verb);
        (!plan.datasets.is_empty() || !plan.eval_datasets.is_empty()).then_some(plan)
    }
}

/// Keys that say which rows there are.
const PLACES: [&str; 8] = [
    "stage",
    "dataset_dir",
    "dataset",
    "eval_dataset",
    "max_samples",
    "do_train",
    "do_predict",
    "predict_with_generate",
];

/// Whether the run trains: as written, or, if nothing says what is to be done, because `train` was typed.
fn trains(s: &Settings<'_>, verb: Verb) -> bool {
    let says_otherwise = s.is_set("do_train") || s.bool("do_eval") || s.bool("do_predict");
    !matches!(verb, Verb::Train | Verb::Data) || s.bool("do_train") || !says_otherwise
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Stage;

    #[test]
    fn which_rows_are_meant_is_known_unless_the_keys_that_say_so_are_wrong() {
        let of = |text: &str| DataPlan::of_faulty(&Recipe::parse("r.yaml", text.as_bytes()).unwrap(), Verb::Train);
        let faulty = of("lerning_rate: 1\ncutoff_len: many\nstage: kto\ndataset: a, b\ndataset_dir: there\n").unwrap();
        assert_eq!((faulty.stage, faulty.dir.to_str(), faulty.datasets.len()), (Stage::Feedback, Some("there"), 2));
        for unclear in
            ["dataset: a\ndataset: b\n", "dataset: a\nstage: sfd\n", "dataset: a\nmax_samples: few\n", "stage: sft\n"]
        {
            assert_eq!(of(unclear), None, "{unclear}");
        }
        let many: String = (0..200).map(|i| format!("k{i}: 1\n")).collect();
        assert_eq!(of(&(many + "dataset: a\n")), None);
    }
}
