//! Steps, rates and evaluation.

use super::{Verb, predict, schedule};
use crate::plan::{AdamWPlan, EvalPlan, Interval, Plan, RunLength, ScheduleKind, TrainPlan};
use crate::settings::Settings;

pub(super) fn train(s: &mut Settings<'_>) -> TrainPlan {
    let seed = s.int("seed").unsigned_abs();
    let sampling = s.text("train_sampling_strategy");
    if sampling == "group_by_length" {
        s.note(
            "train_sampling_strategy",
            "rows are not grouped by length: grouping saves padding, and nothing is padded here",
            "",
        );
    }
    TrainPlan {
        micro_batch: s.count("per_device_train_batch_size"),
        accumulation: s.count("gradient_accumulation_steps"),
        length: length(s),
        schedule: schedule::schedule(s),
        optimizer: AdamWPlan {
            beta1: s.float("adam_beta1"),
            beta2: s.float("adam_beta2"),
            eps: s.float("adam_epsilon"),
            weight_decay: s.float("weight_decay"),
        },
        max_grad_norm: s.float("max_grad_norm"),
        label_smoothing: s.float("label_smoothing_factor"),
        router_aux_loss: s.opt_float("moe_aux_loss_coef").filter(|weight| *weight != 0.0),
        neftune_alpha: s.opt_float("neftune_noise_alpha"),
        seed,
        data_seed: s.opt_int("data_seed").map_or(seed, i64::unsigned_abs),
        shuffle: !s.bool("disable_shuffling") && sampling != "sequential",
        drop_last: s.bool("dataloader_drop_last"),
        pure_bf16: s.bool("pure_bf16") && s.text("finetuning_type") != "lora",
    }
}

fn length(s: &mut Settings<'_>) -> RunLength {
    let epochs = s.float("num_train_epochs");
    match u64::try_from(s.int("max_steps")) {
        Ok(steps) if steps > 0 => {
            if s.is_set("num_train_epochs") {
                s.note(
                    "num_train_epochs",
                    format!("`num_train_epochs` is not used: `max_steps: {steps}` ends the run"),
                    "",
                );
            }
            RunLength::Steps(steps)
        }
        _ => RunLength::Epochs(epochs),
    }
}

/// An interval in steps, below 1 a share of all steps; 0 means never.
pub(super) fn steps(s: &mut Settings<'_>, name: &'static str) -> Interval {
    let value = s.float(name);
    if value >= 1.0 && value.fract() != 0.0 {
        s.error(name, format!("`{name}: {value}` is no whole number of steps"), "write a whole number");
    }
    if value > 0.0 && value < 1.0 {
        return Interval::Share(value);
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative; saturates")]
    match value as u64 {
        0 => Interval::Never,
        whole => Interval::Steps(whole),
    }
}

pub(super) fn eval(s: &mut Settings<'_>, verb: Verb) -> EvalPlan {
    let every = match s.text("eval_strategy").as_str() {
        "steps" => {
            let name = if s.opt_float("eval_steps").is_some_and(|n| n > 0.0) { "eval_steps" } else { "logging_steps" };
            steps(s, name)
        }
        "epoch" => Interval::Epoch,
        _ => Interval::Never,
    };
    if verb == Verb::Train {
        check_evaluation(s, every, verb);
    }
    let metric = metric(s);
    EvalPlan {
        every,
        batch: s.count("per_device_eval_batch_size"),
        on_start: s.bool("eval_on_start"),
        early_stopping: s.opt_int("early_stopping_steps").map(i64::unsigned_abs),
        load_best: s.bool("load_best_model_at_end"),
        greater_is_better: s.opt_bool("greater_is_better").unwrap_or(!metric.ends_with("loss")),
        metric,
        accuracy: s.bool("compute_accuracy"),
        generate: s.bool("predict_with_generate"),
    }
}

/// What is evaluated, and what needs evaluations.
fn check_evaluation(s: &mut Settings<'_>, every: Interval, verb: Verb) {
    let has_rows = predict::has_rows(s, verb);
    for name in ["eval_strategy", "do_eval", "eval_on_start"] {
        let wanted = if name == "eval_strategy" { every != Interval::Never } else { s.bool(name) };
        if wanted && !has_rows {
            s.error(
                name,
                format!("`{name}` asks for an evaluation, but there is nothing to evaluate on"),
                "add `val_size: 0.1` or `eval_dataset`",
            );
            break;
        }
    }
    if every != Interval::Never {
        return;
    }
    if has_rows && !s.bool("do_eval") && !s.bool("do_predict") {
        let name = if s.is_set("eval_dataset") { "eval_dataset" } else { "val_size" };
        s.note(name, "nothing is evaluated: `eval_strategy` is `no`", "add `eval_strategy: steps` and `eval_steps`");
    }
    for name in ["early_stopping_steps", "load_best_model_at_end"] {
        if s.is_set(name) && s.opt_bool(name) != Some(false) {
            s.error(
                name,
                format!("`{name}` needs evaluations during training"),
                "add `eval_strategy: steps` and `eval_steps`",
            );
        }
    }
    if s.text("lr_scheduler_type") == "reduce_lr_on_plateau" {
        s.error(
            "lr_scheduler_type",
            "`reduce_lr_on_plateau` needs evaluations during training",
            "add `eval_strategy: steps` and `eval_steps`",
        );
    }
}

/// The number that decides which checkpoint is best, with transformers' prefix.
fn metric(s: &mut Settings<'_>) -> String {
    let key = "metric_for_best_model";
    let written = s.opt_text(key).unwrap_or_else(|| "loss".to_owned());
    let metric = if written.starts_with("eval_") { written } else { format!("eval_{written}") };
    let computes_accuracy = s.bool("compute_accuracy");
    let of_dataset = |name: &String| {
        metric == format!("eval_{name}_loss") || computes_accuracy && metric == format!("eval_{name}_accuracy")
    };
    let by_answers = s.bool("predict_with_generate");
    let exists = metric == "eval_loss" && !by_answers
        || predict::measures(s, &metric)
        || computes_accuracy && metric == "eval_accuracy"
        || !by_answers && s.bool("eval_on_each_dataset") && s.list("eval_dataset").iter().any(of_dataset);
    if exists {
        return metric;
    }
    let is_used = s.bool("load_best_model_at_end")
        || s.opt_int("early_stopping_steps").is_some()
        || s.text("lr_scheduler_type") == "reduce_lr_on_plateau";
    if !is_used {
        if by_answers && s.opt_text(key).is_none() {
            return metric;
        }
        s.note(key, format!("`{key}` is not used: nothing asks for the best checkpoint"), "");
    } else if by_answers {
        s.error(
            key,
            format!("there is no `{metric}`: evaluations are by answers"),
            "write `rouge-1`, `rouge-2`, `rouge-l` or `bleu-4`, or remove `predict_with_generate`",
        );
    } else if metric == "eval_accuracy" {
        s.error(key, "`eval_accuracy` is not computed", "add `compute_accuracy: true`");
    } else {
        s.error(
            key,
            format!("there is no `{metric}`"),
            "write `eval_loss`, `eval_accuracy`, or `eval_NAME_loss` of a dataset with `eval_on_each_dataset: true`",
        );
    }
    "eval_loss".to_owned()
}

fn mixed(s: &mut Settings<'_>, share: f64) {
    let message = format!(
        "`load_best_model_at_end` needs `save_steps` to be a multiple of `eval_steps`: one is {share} of all steps, the \
         other a number of steps"
    );
    s.error("load_best_model_at_end", message, "write both as numbers of steps, or the same share for both");
}

/// The best checkpoint can only be gone back to if it was saved when it was evaluated.
pub(super) fn check_best_checkpoint(s: &mut Settings<'_>, plan: &Plan) {
    let name = "load_best_model_at_end";
    if matches!(plan.train.schedule.kind, ScheduleKind::Constant) && s.is_set("warmup_steps") {
        s.note(
            "warmup_steps",
            "`lr_scheduler_type: constant` has no warm-up",
            "write `lr_scheduler_type: constant_with_warmup`",
        );
    }
    if !plan.eval.load_best {
        return;
    }
    let known = |interval: Interval| match plan.train.length {
        RunLength::Steps(total) => interval.within(total),
        RunLength::Epochs(_) => interval,
    };
    match (known(plan.eval.every), known(plan.output.save)) {
        (Interval::Steps(eval), Interval::Steps(save)) if save % eval != 0 => {
            let message =
                format!("`{name}` needs `save_steps` to be a multiple of `eval_steps`: {save} and {eval} are not");
            s.error(name, message, &format!("write `save_steps: {eval}`"));
        }
        (Interval::Steps(_), Interval::Share(save)) => mixed(s, save),
        (Interval::Share(eval), Interval::Steps(_)) => mixed(s, eval),
        // Whether shares come out as multiples, the run finds out before its first step.
        (Interval::Steps(_), Interval::Steps(_))
        | (Interval::Share(_), Interval::Share(_))
        | (Interval::Epoch, Interval::Epoch)
        | (Interval::Never, _) => {}
        _ => {
            let (eval, save) = (s.text("eval_strategy"), s.text("save_strategy"));
            let message =
                format!("`{name}` needs the same `save_strategy` and `eval_strategy`: they are `{save}` and `{eval}`");
            s.error(name, message, &format!("write `save_strategy: {eval}`"));
        }
    }
}
