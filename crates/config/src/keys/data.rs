//! Which rows, and how they become tokens and labels.

use super::Kind::{Any, Bool, Choice, Float, Floats, Int, List, Path, Text};
use super::{Choices, Key, Range, no_effect, unsupported, works};

const MIX: Choices = Choices {
    here: &["concat", "interleave_under", "interleave_over", "interleave_once"],
    elsewhere: &[],
    instead: "",
};
pub(super) const BEAMS: &str = "remove it: answers are sampled, or greedy with `do_sample: false`";
const BAD_ROW: Choices = Choices { here: &["report", "error"], elsewhere: &[], instead: "" };

pub(super) const KEYS: &[Key] = &[
    works("dataset", List, "null", "names in `dataset_info.json`, in order"),
    works("eval_dataset", List, "null", "names in `dataset_info.json`, for evaluation"),
    works("dataset_dir", Path, "data", "folder that holds `dataset_info.json`"),
    works(
        "template",
        Text,
        "null",
        "how a conversation is written out (docs/templates.md); `auto` or not set: the model's own chat template",
    ),
    works("cutoff_len", Int(1), "2048", "longest row in tokens"),
    works("max_samples", Int(1), "null", "the first n rows of each dataset"),
    works("val_size", Float(Range::NotNegative), "0.0", "rows held out for evaluation: a share below 1, or a number"),
    works("train_on_prompt", Bool, "false", "a loss on the prompt's tokens too"),
    works("mask_history", Bool, "false", "no loss on turns before the last"),
    works("default_system", Text, "null", "system prompt of rows without one"),
    works(
        "enable_thinking",
        Bool,
        "true",
        "reasoning blocks: true, with a loss; false, empty and in the prompt; null, completed without a loss",
    ),
    works("preserve_thinking", Bool, "false", "keep the reasoning of earlier turns even when history is masked"),
    works("tool_format", Text, "null", "how tools are written out, other than the template's way"),
    works("packing", Bool, "null", "several rows in one sequence; on for `stage: pt` if not set"),
    works("neat_packing", Bool, "false", "packing in which rows don't see each other"),
    works("mix_strategy", Choice(&MIX), "concat", "how several datasets become one"),
    works("interleave_probs", Floats, "null", "shares of the datasets when they are interleaved; they sum to 1"),
    works("eval_on_each_dataset", Bool, "false", "evaluate on each evaluation dataset by itself"),
    works("overwrite_cache", Bool, "false", "encode again even if the cache holds the result"),
    works("preprocessing_num_workers", Int(1), "null", "threads that encode; all cores if not set"),
    works(
        "tokenized_path",
        Path,
        "null",
        "where encoded rows are cached; unlike LLaMA-Factory's, never used for other rows or options than it was made of",
    ),
    works(
        "on_bad_row",
        Choice(&BAD_ROW),
        "report",
        "ferrotune's own: a row that can't be used is reported and left out, or ends the run",
    ),
    no_effect(
        "preprocessing_batch_size",
        Int(1),
        "1000",
        "rows are packed in groups of 1000, as with the default; nothing else depends on it",
    ),
    works(
        "streaming",
        Bool,
        "false",
        "rows in the order of a shuffle buffer; training starts while they are still being encoded. Needs `max_steps`",
    ),
    works("buffer_size", Int(1), "16384", "rows that `streaming` draws the next one from"),
    unsupported(
        "ignore_pad_token_for_loss",
        Bool,
        "true",
        "remove it: nothing is padded, so padding can't have a loss",
    ),
    no_effect(
        "data_shared_file_system",
        Bool,
        "false",
        "the cache is found by its content wherever it lies, and whether nodes share a disk is looked up",
    ),
    no_effect("media_dir", Any, "null", "only text models are trained"),
    unsupported("eval_num_beams", Int(1), "1", BEAMS),
];
