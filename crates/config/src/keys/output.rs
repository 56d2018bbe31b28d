//! What is written where, and when.

use super::Kind::{Any, Bool, Choice, Float, Int, List, Path, Text};
use super::{Choices, Key, Range, no_effect, unsupported, works};

const SAVE: Choices = Choices {
    here: &["no", "steps", "epoch"],
    elsewhere: &["best"],
    instead: "write `load_best_model_at_end: true` with the same `save_strategy` and `eval_strategy`: the best checkpoint is always kept",
};
const LOGGING: Choices = Choices {
    here: &["steps"],
    elsewhere: &["no", "epoch"],
    instead: "write `logging_steps`, with a large number for few lines",
};
const TRACKERS: &str = "used by trackers that are not supported";
const HUB: &str = "upload `output_dir` yourself: it is laid out as the hub wants it; a merged model is uploaded by `export_hub_model_id`";
const HUB_OPTION: &str = "used by `push_to_hub` only, which is not supported";
const TERMINAL: &str = "a terminal gets a progress bar, a file gets lines";

pub(super) const KEYS: &[Key] = &[
    works("output_dir", Path, "trainer_output", "folder of the run"),
    works(
        "overwrite_output_dir",
        Bool,
        "false",
        "begin anew even if the folder holds a run; otherwise the run goes on",
    ),
    works(
        "resume_from_checkpoint",
        Path,
        "null",
        "a `checkpoint-N` folder to go on from; `true` means the last in `output_dir`",
    ),
    works(
        "logging_steps",
        Float(Range::NotNegative),
        "500",
        "steps between lines of the log; below 1 a share of all steps",
    ),
    works("logging_strategy", Choice(&LOGGING), "steps", "when a line is logged"),
    works("logging_first_step", Bool, "false", "log the first step too"),
    works("save_strategy", Choice(&SAVE), "steps", "when a checkpoint is written"),
    works(
        "save_steps",
        Float(Range::NotNegative),
        "500",
        "steps between checkpoints; below 1 a share of all steps; 0 means none",
    ),
    works("save_total_limit", Int(1), "null", "how many checkpoints stay"),
    works("save_only_model", Bool, "false", "checkpoints without optimiser states; they can't resume"),
    works("sample_prompts", List, "null", "prompts that are answered before and after the training"),
    works("plot_loss", Bool, "false", "draw `training_loss.png`"),
    works("report_to", List, "none", "`tensorboard` writes event files; other trackers get a note"),
    works("logging_dir", Path, "null", "where the event files go; `runs` in `output_dir` if not set"),
    no_effect("save_safetensors", Bool, "true", "weights are always written as safetensors"),
    no_effect("logging_nan_inf_filter", Bool, "true", "a loss that is not finite stops the run and names the rows"),
    no_effect("include_num_input_tokens_seen", Text, "no", "tokens are always counted"),
    no_effect("include_tokens_per_second", Bool, "false", "tokens per second are always reported"),
    no_effect(
        "include_effective_tokens_per_second",
        Bool,
        "false",
        "tokens per second are always reported, and no padding is among them",
    ),
    no_effect("log_level", Text, "passive", TERMINAL),
    no_effect("log_level_replica", Text, "warning", TERMINAL),
    no_effect("log_on_each_node", Bool, "true", "one process writes the log"),
    no_effect("disable_tqdm", Bool, "null", TERMINAL),
    works(
        "save_on_each_node",
        Bool,
        "false",
        "the first process of each node writes the model's files, too, where nodes have disks of their own",
    ),
    no_effect("enable_jit_checkpoint", Bool, "false", "a killed run goes on from its last checkpoint in any case"),
    no_effect("restore_callback_states_from_checkpoint", Bool, "false", "a checkpoint always restores the whole run"),
    no_effect("run_name", Text, "null", TRACKERS),
    no_effect("project", Text, "huggingface", TRACKERS),
    no_effect("trackio_space_id", Text, "trackio", TRACKERS),
    no_effect("trackio_bucket_id", Text, "null", TRACKERS),
    no_effect("trackio_static_space_id", Text, "null", TRACKERS),
    no_effect(
        "use_swanlab",
        Bool,
        "false",
        "SwanLab is not supported; `report_to: tensorboard` and `trainer_log.jsonl` hold the numbers",
    ),
    no_effect("swanlab_project", Text, "llamafactory", TRACKERS),
    no_effect("swanlab_workspace", Text, "null", TRACKERS),
    no_effect("swanlab_run_name", Text, "null", TRACKERS),
    no_effect("swanlab_mode", Text, "cloud", TRACKERS),
    no_effect("swanlab_api_key", Text, "null", TRACKERS),
    no_effect("swanlab_logdir", Text, "null", TRACKERS),
    no_effect("swanlab_lark_webhook_url", Text, "null", TRACKERS),
    no_effect("swanlab_lark_secret", Text, "null", TRACKERS),
    unsupported("push_to_hub", Bool, "false", HUB),
    no_effect("hub_model_id", Text, "null", HUB_OPTION),
    no_effect("hub_strategy", Text, "every_save", HUB_OPTION),
    no_effect("hub_token", Text, "null", HUB_OPTION),
    works("hub_private_repo", Bool, "null", "a repository that `export_hub_model_id` makes is seen by its owner only"),
    no_effect("hub_always_push", Bool, "false", HUB_OPTION),
    no_effect("hub_revision", Text, "null", HUB_OPTION),
    no_effect("push_to_hub_model_id", Any, "null", HUB_OPTION),
    no_effect("push_to_hub_organization", Any, "null", HUB_OPTION),
    no_effect("push_to_hub_token", Any, "null", HUB_OPTION),
];
