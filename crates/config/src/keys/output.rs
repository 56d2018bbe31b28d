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
const SWANLAB: Choices = Choices { here: &["cloud", "local", "offline", "disabled"], elsewhere: &[], instead: "" };
const TRACKIO: &str = "used by Trackio, which is not supported";
const LARK: &str = "no messages are sent; `status.json` says how a run is";
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
    works(
        "report_to",
        List,
        "none",
        "trackers that are told of the run: `tensorboard`, `mlflow`, `wandb`, `swanlab`, `all` of these, or `none`",
    ),
    works("logging_dir", Path, "null", "where event files go; a new folder below `runs` in `output_dir` if not set"),
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
    works("run_name", Text, "null", "the run's name in trackers"),
    no_effect("project", Text, "huggingface", TRACKIO),
    no_effect("trackio_space_id", Text, "trackio", TRACKIO),
    no_effect("trackio_bucket_id", Text, "null", TRACKIO),
    no_effect("trackio_static_space_id", Text, "null", TRACKIO),
    works("use_swanlab", Bool, "false", "write a run of SwanLab, which `swanlab sync` uploads"),
    works("swanlab_project", Text, "llamafactory", "its project"),
    works("swanlab_workspace", Text, "null", "its workspace"),
    works("swanlab_run_name", Text, "null", "its name"),
    works("swanlab_mode", Choice(&SWANLAB), "cloud", "`disabled` writes nothing; all others write a folder"),
    no_effect("swanlab_api_key", Text, "null", "nothing is uploaded; `swanlab login` keeps the key for `swanlab sync`"),
    works("swanlab_logdir", Text, "null", "folder of its runs; `swanlog` if not set"),
    no_effect("swanlab_lark_webhook_url", Text, "null", LARK),
    no_effect("swanlab_lark_secret", Text, "null", LARK),
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
