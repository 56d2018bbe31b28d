//! Answers to the rows for evaluation: `predict_with_generate` and `do_predict`, with LLaMA-Factory's cross-checks.

use super::{Verb, trains};
use crate::plan::{Plan, ScheduleKind, Stage};
use crate::settings::Settings;

/// The numbers of an evaluation by answers, behind `eval_` or `eval_NAME_`.
const NUMBERS: [&str; 4] = ["rouge-1", "rouge-2", "rouge-l", "bleu-4"];

/// Whether a recipe that trains nothing names rows to be answered as `dataset`: they are taken for `eval_dataset`.
pub(super) fn answers_dataset(s: &Settings<'_>, verb: Verb) -> bool {
    let held_out = s.is_set("eval_dataset") || s.float("val_size") > 0.0;
    s.bool("do_predict") && !trains(s, verb) && !held_out && s.is_set("dataset")
}

/// Whether there are rows to answer.
pub(super) fn has_rows(s: &Settings<'_>, verb: Verb) -> bool {
    s.is_set("eval_dataset") || s.float("val_size") > 0.0 || answers_dataset(s, verb)
}

/// Whether a number of this name comes of answers to rows.
pub(super) fn measures(s: &Settings<'_>, metric: &str) -> bool {
    let Some(rest) = metric.strip_prefix("eval_").filter(|_| s.bool("predict_with_generate")) else { return false };
    let each = s.bool("eval_on_each_dataset");
    NUMBERS.iter().any(|number| {
        let of_set = |name: &String| rest == format!("{name}_{number}");
        rest == *number || each && s.list("eval_dataset").iter().any(of_set)
    })
}

pub(super) fn check(s: &mut Settings<'_>, plan: &Plan, verb: Verb) {
    if s.bool("do_predict") && !s.bool("predict_with_generate") {
        let cure = "add `predict_with_generate: true`";
        s.error("do_predict", "`do_predict` writes generated answers, and `predict_with_generate` is off", cure);
    }
    if !s.bool("predict_with_generate") {
        return;
    }
    let name = "predict_with_generate";
    if plan.stage != Stage::Sft {
        let message = format!("`{name}` is only for `stage: sft`");
        s.error(name, message, "remove it: without conversations nothing is asked");
    }
    if s.bool("compute_accuracy") {
        let cure = "remove one of the two: answers have no accuracy of tokens";
        s.error(name, format!("`{name}` and `compute_accuracy` exclude each other"), cure);
    }
    if !has_rows(s, verb) && matches!(verb, Verb::Train | Verb::Data) {
        let message = format!("`{name}` asks for answers, but there are no rows to answer");
        s.error(name, message, "add `eval_dataset`, or `val_size: 0.1`");
    }
    if matches!(plan.train.schedule.kind, ScheduleKind::ReduceOnPlateau { .. }) {
        let cure = "choose another `lr_scheduler_type`, or evaluate by the loss";
        s.error(name, "`reduce_lr_on_plateau` follows the loss, which answers don't have", cure);
    }
    if answers_dataset(s, verb) {
        s.note("dataset", "nothing is trained: the rows of `dataset` are answered", "write `eval_dataset` for them");
    }
}
