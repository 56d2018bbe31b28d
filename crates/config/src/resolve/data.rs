//! Which rows, and how they become tokens.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::{Verb, predict, trains};
use crate::plan::{BadRows, DataPlan, Mix, Packing, Stage, TemplateChoice, ValSize};
use crate::settings::Settings;

pub(super) fn data(s: &mut Settings<'_>, stage: Stage, verb: Verb) -> DataPlan {
    check_needed(s, verb);
    check_together(s, stage);
    if s.is_set("tokenized_path") {
        s.note(
            "tokenized_path",
            "`tokenized_path` is where encoded rows are cached",
            "unlike in LLaMA-Factory, changed rows or options are encoded again instead of being ignored",
        );
    }
    let answered = predict::answers_dataset(s, verb);
    DataPlan {
        stage,
        dir: PathBuf::from(s.text("dataset_dir")),
        datasets: if answered { Vec::new() } else { s.list("dataset") },
        eval_datasets: s.list(if answered { "dataset" } else { "eval_dataset" }),
        eval_each: s.bool("eval_on_each_dataset"),
        generate: s.bool("predict_with_generate"),
        template: s
            .opt_text("template")
            .filter(|name| !name.is_empty() && name != "auto")
            .map_or(TemplateChoice::Model, TemplateChoice::Named),
        cutoff_len: s.count("cutoff_len"),
        train_on_prompt: s.bool("train_on_prompt"),
        mask_history: s.bool("mask_history"),
        default_system: s.opt_text("default_system"),
        // An explicit null means something else than nothing.
        enable_thinking: s.opt_bool("enable_thinking").filter(|_| !s.is_null("enable_thinking")),
        preserve_thinking: s.bool("preserve_thinking"),
        tool_format: s.opt_text("tool_format"),
        split_special_tokens: s.bool("split_special_tokens"),
        max_samples: s.opt_count("max_samples"),
        val_size: val_size(s),
        packing: packing(s, stage),
        mix: match s.text("mix_strategy").as_str() {
            "interleave_under" => Mix::InterleaveUnder,
            "interleave_over" => Mix::InterleaveOver,
            "interleave_once" => Mix::InterleaveOnce,
            _ => Mix::Concat,
        },
        mix_probabilities: mix_probabilities(s),
        fetched: BTreeMap::new(),
        stream: stream(s, verb),
        seed: s.int("seed").unsigned_abs(),
        overwrite_cache: s.bool("overwrite_cache"),
        cache_dir: s.opt_path("tokenized_path"),
        workers: s.opt_count("preprocessing_num_workers"),
        bad_rows: if s.text("on_bad_row") == "error" { BadRows::Stop } else { BadRows::Report },
    }
}

fn check_needed(s: &mut Settings<'_>, verb: Verb) {
    if matches!(verb, Verb::Chat | Verb::Export | Verb::Plan) {
        return;
    }
    if trains(s, verb) && s.lacks("dataset") {
        s.error("dataset", "`dataset` is missing", "add `dataset: name`, a name in `dataset_info.json`");
    }
}

/// The cross-checks of LLaMA-Factory's `DataArguments`.
fn check_together(s: &mut Settings<'_>, stage: Stage) {
    if s.float("val_size") > 0.0 && s.is_set("eval_dataset") {
        s.error(
            "val_size",
            "`val_size` and `eval_dataset` exclude each other",
            "hold rows out with `val_size`, or name another set with `eval_dataset`",
        );
    }
    if s.float("val_size") > 0.0 && s.lacks("dataset") {
        s.error("val_size", "`val_size` needs a `dataset` to hold rows out of", "add `dataset`, or remove `val_size`");
    }
    if s.bool("mask_history") && s.bool("train_on_prompt") {
        s.error(
            "mask_history",
            "`mask_history` and `train_on_prompt` exclude each other",
            "keep `mask_history` for a loss on the last answer alone, or `train_on_prompt` for a loss everywhere",
        );
    }
    if stage != Stage::Sft {
        let cure = match stage {
            Stage::Pretrain => "remove it: plain text has a loss on every token",
            _ => "remove it: answers that are compared have a loss by themselves",
        };
        for name in ["neat_packing", "train_on_prompt", "mask_history"] {
            if s.bool(name) {
                s.error(name, format!("`{name}` is only for `stage: sft`"), cure);
            }
        }
    }
    if s.opt_bool("packing") == Some(false) && s.bool("neat_packing") {
        s.note("packing", "`packing: false` has no effect: `neat_packing` packs", "remove one of the two");
    }
}

/// The size of the shuffle buffer, if rows are streamed; with LLaMA-Factory's cross-checks.
fn stream(s: &mut Settings<'_>, verb: Verb) -> Option<usize> {
    if !s.bool("streaming") {
        return None;
    }
    if trains(s, verb) && s.int("max_steps") <= 0 {
        s.error(
            "streaming",
            "`streaming` needs `max_steps`: a stream has no length that is known before",
            "add `max_steps: 1000`, or remove `streaming`: rows are encoded into a file in any case, never held in memory",
        );
    }
    let val_size = s.float("val_size");
    if val_size > 0.0 && val_size < 1.0 {
        let message = format!("`val_size: {val_size}` is a share, and a stream has no length to take it of");
        s.error("val_size", message, "write a number of rows, such as `val_size: 100`");
    }
    if s.opt_count("max_samples").is_some() {
        s.error("max_samples", "`max_samples` and `streaming` exclude each other", "remove one of them");
    }
    Some(s.count("buffer_size"))
}

fn packing(s: &mut Settings<'_>, stage: Stage) -> Packing {
    let packing = match (s.bool("neat_packing"), s.opt_bool("packing")) {
        _ if matches!(stage, Stage::Pairwise | Stage::Feedback) => Packing::Off,
        (true, _) => Packing::Neat,
        (false, Some(true)) => Packing::On,
        (false, Some(false)) => Packing::Off,
        (false, None) if stage == Stage::Pretrain => Packing::On,
        (false, None) => Packing::Off,
    };
    if packing == Packing::On && stage == Stage::Sft {
        s.note(
            "packing",
            "`packing` lets the rows of a pack see each other, as in LLaMA-Factory",
            "write `neat_packing: true` to keep them apart at the same speed",
        );
    }
    if packing != Packing::Off && s.count("cutoff_len") < 2 {
        s.error("cutoff_len", "packing needs a `cutoff_len` of at least 2", "write a larger `cutoff_len`");
    }
    packing
}

fn val_size(s: &mut Settings<'_>) -> ValSize {
    let size = s.float("val_size");
    if size == 0.0 {
        ValSize::None
    } else if size < 1.0 {
        ValSize::Fraction(size)
    } else {
        if size.fract() != 0.0 {
            s.error(
                "val_size",
                format!("`val_size: {size}` is neither a share nor a number of rows"),
                "write a share below 1, such as 0.1, or a whole number of rows",
            );
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "above 1; saturates")]
        ValSize::Count(size as usize)
    }
}

fn mix_probabilities(s: &mut Settings<'_>) -> Option<Vec<f64>> {
    let shares = s.opt_floats("interleave_probs")?;
    let name = "interleave_probs";
    if s.text("mix_strategy") == "concat" {
        s.error(
            name,
            "`interleave_probs` is only for interleaved datasets",
            "write `mix_strategy: interleave_under` or `interleave_over`, or remove it",
        );
    }
    for key in ["dataset", "eval_dataset"] {
        let count = s.list(key).len();
        if count > 0 && count != shares.len() {
            let message = format!("`interleave_probs` has {} numbers, `{key}` {count} names", shares.len());
            s.error(name, message, "write one number a dataset");
        }
    }
    let sum: f64 = shares.iter().sum();
    if (sum - 1.0).abs() > 1e-6 || shares.iter().any(|share| *share < 0.0) {
        s.error(name, format!("the shares in `interleave_probs` sum to {sum}"), "shares are not negative and sum to 1");
    }
    Some(shares)
}
