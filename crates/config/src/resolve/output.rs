//! What is written, how text is generated, what is exported.

use super::{Verb, model, train};
use crate::keys::nearest_of;
use crate::plan::{
    ExportFormat, ExportPlan, GenerationPlan, GgufType, Interval, OutputPlan, ProfilePlan, Resume, SwanlabMode,
    SwanlabPlan, TrackersPlan, UploadPlan,
};
use crate::settings::Settings;
use crate::tree::clip;
use std::path::Path;

/// Largest file of a model that a full fine-tune saves: five gigabytes, as hubs like them.
const SHARD_BYTES: u64 = 5_000_000_000;

pub(super) fn output(s: &mut Settings<'_>, verb: Verb) -> OutputPlan {
    if verb == Verb::Train && !s.is_set("output_dir") {
        s.note("output_dir", "`output_dir` is not set: the run is written to `trainer_output`", "add `output_dir`");
    }
    if s.float("logging_steps") == 0.0 {
        s.error(
            "logging_steps",
            "`logging_steps` is 0",
            "write how many steps lie between two lines, 1 for every step",
        );
    }
    let dir = s.opt_path("output_dir").unwrap_or_else(|| "trainer_output".into());
    let evaluates = s.bool("do_eval") || s.text("eval_strategy") != "no";
    let trains = super::trains(s, verb);
    if verb == Verb::Train {
        check_task(s, trains, evaluates);
    }
    OutputPlan {
        overwrite: s.bool("overwrite_output_dir"),
        resume: resume(s),
        log: train::steps(s, "logging_steps"),
        logging_first_step: s.bool("logging_first_step"),
        save: save(s),
        save_total_limit: s.opt_count("save_total_limit"),
        save_only_model: s.bool("save_only_model"),
        sample_prompts: s.list("sample_prompts"),
        plot_loss: s.bool("plot_loss"),
        trackers: trackers(s),
        shard_bytes: SHARD_BYTES,
        train: trains,
        evaluate: evaluates,
        predict: s.bool("do_predict"),
        profile: profile(s, &dir),
        dir,
    }
}

/// What is to be said about `do_train`.
fn check_task(s: &mut Settings<'_>, trains: bool, evaluates: bool) {
    if trains && !s.bool("do_train") {
        s.note("do_train", "`do_train` is not set: `train` trains", "add `do_train: true`");
    } else if !trains && !evaluates && !s.bool("do_predict") {
        s.error("do_train", "the recipe asks for nothing: `do_train` and `do_eval` are off", "write `do_train: true`");
    }
}

fn profile(s: &mut Settings<'_>, output: &Path) -> Option<ProfilePlan> {
    const OPTIONS: [&str; 5] = [
        "profiler_output_dir",
        "profiler_wait_steps",
        "profiler_warmup_steps",
        "profiler_active_steps",
        "profiler_repeat",
    ];
    if !s.bool("enable_torch_profiler") {
        for name in OPTIONS {
            if s.says(name) {
                s.note(name, format!("`{name}` is not used: `enable_torch_profiler` is off"), "");
            }
        }
        return None;
    }
    let steps = |s: &Settings<'_>, name| s.int(name).unsigned_abs();
    Some(ProfilePlan {
        dir: s.opt_path("profiler_output_dir").unwrap_or_else(|| output.join("profile")),
        // Nothing has to warm up here: these steps are left out as well.
        skip: steps(s, "profiler_wait_steps") + steps(s, "profiler_warmup_steps"),
        active: steps(s, "profiler_active_steps"),
        rounds: Some(steps(s, "profiler_repeat")).filter(|&rounds| rounds > 0),
    })
}

fn resume(s: &Settings<'_>) -> Resume {
    match s.opt_text("resume_from_checkpoint").as_deref() {
        Some("true" | "True") => Resume::Auto,
        Some("false" | "False") => Resume::Never,
        Some(path) if !path.is_empty() => Resume::From(path.into()),
        _ if s.bool("overwrite_output_dir") => Resume::Never,
        _ => Resume::Auto,
    }
}

fn save(s: &mut Settings<'_>) -> Interval {
    match s.text("save_strategy").as_str() {
        "epoch" => Interval::Epoch,
        "no" => Interval::Never,
        _ => train::steps(s, "save_steps"),
    }
}

/// Those that `report_to` may name and that are told.
const TRACKERS: [&str; 4] = ["tensorboard", "mlflow", "wandb", "swanlab"];
/// Those that transformers knows beside.
const ELSEWHERE: [&str; 10] =
    ["azure_ml", "clearml", "codecarbon", "comet_ml", "dagshub", "dvclive", "flyte", "kubeflow", "neptune", "trackio"];
/// Keys that only runs of SwanLab use.
const SWANLAB: [&str; 5] =
    ["swanlab_project", "swanlab_workspace", "swanlab_run_name", "swanlab_mode", "swanlab_logdir"];

/// Who is told of the run.
fn trackers(s: &mut Settings<'_>) -> TrackersPlan {
    let names = s.list("report_to");
    for name in &names {
        judge_tracker(s, name);
    }
    let told = |name: &str| names.iter().any(|given| given == name || given == "all");
    for (key, is_used) in [
        ("logging_dir", told("tensorboard")),
        ("run_name", told("mlflow") || told("wandb") || told("swanlab") && !s.bool("use_swanlab")),
    ] {
        if s.says(key) && !is_used {
            s.note(key, format!("`{key}` has no effect: `report_to` names no tracker that takes it"), "");
        }
    }
    for key in SWANLAB {
        if s.says(key) && !s.bool("use_swanlab") {
            s.note(key, format!("`{key}` has no effect: `use_swanlab` is off"), "add `use_swanlab: true`");
        }
    }
    TrackersPlan {
        run_name: s.opt_text("run_name").filter(|name| !name.is_empty()),
        tensorboard: told("tensorboard").then(|| s.opt_path("logging_dir")),
        mlflow: told("mlflow"),
        wandb: told("wandb"),
        swanlab: swanlab(s, told("swanlab")),
    }
}

fn judge_tracker(s: &mut Settings<'_>, name: &str) {
    if ["none", "all"].contains(&name) || TRACKERS.contains(&name) {
        return;
    }
    if ELSEWHERE.contains(&name) {
        return s.note(
            "report_to",
            format!("`report_to: {name}` has no effect: this tracker is not supported"),
            "tensorboard, mlflow, wandb and swanlab are; `trainer_log.jsonl` holds the numbers in any case",
        );
    }
    let meant = nearest_of(name, TRACKERS.into_iter().chain(["none", "all"]));
    let help = meant.map_or_else(
        || "write tensorboard, mlflow, wandb, swanlab, all or none".to_owned(),
        |name| format!("did you mean `{name}`?"),
    );
    s.error("report_to", format!("`{}` is no tracker", clip(name)), &help);
}

/// With `use_swanlab` its own keys say how; with `report_to: swanlab` the environment does.
fn swanlab(s: &Settings<'_>, is_reported: bool) -> Option<SwanlabPlan> {
    if !s.bool("use_swanlab") {
        return is_reported.then(SwanlabPlan::default);
    }
    let mode = if s.text("swanlab_mode") == "disabled" { SwanlabMode::Disabled } else { SwanlabMode::Kept };
    Some(SwanlabPlan {
        project: s.opt_text("swanlab_project"),
        workspace: s.opt_text("swanlab_workspace"),
        run_name: s.opt_text("swanlab_run_name"),
        mode,
        folder: s.opt_text("swanlab_logdir"),
    })
}

pub(super) fn generation(s: &mut Settings<'_>) -> GenerationPlan {
    if s.float("top_p") > 1.0 {
        s.error("top_p", "`top_p` is a share of the probability: at most 1", "write a number up to 1");
    }
    GenerationPlan {
        do_sample: s.bool("do_sample"),
        temperature: s.float("temperature"),
        top_p: s.float("top_p"),
        top_k: s.count("top_k"),
        max_new_tokens: s.count("max_new_tokens"),
        repetition_penalty: s.float("repetition_penalty"),
        skip_special_tokens: s.bool("skip_special_tokens"),
        seed: s.int("seed").unsigned_abs(),
    }
}

pub(super) fn export(s: &mut Settings<'_>, verb: Verb) -> ExportPlan {
    if verb == Verb::Export && s.lacks("export_dir") {
        s.error("export_dir", "`export_dir` is missing", "add `export_dir: folder-of-the-merged-model`");
    }
    ExportPlan {
        dir: s.opt_path("export_dir"),
        shard_bytes: u64::try_from(s.int("export_size")).unwrap_or(1).saturating_mul(1_000_000_000),
        precision: model::infer_precision(s),
        format: export_format(s),
        upload: upload(s),
    }
}

fn export_format(s: &mut Settings<'_>) -> ExportFormat {
    let kind = s.opt_text("export_gguf_type").map(|name| match name.as_str() {
        "f32" => GgufType::F32,
        "f16" => GgufType::F16,
        "bf16" => GgufType::Bf16,
        "q8_0" => GgufType::Q8_0,
        "q4_0" => GgufType::Q4_0,
        _ => GgufType::Q4KM,
    });
    if s.text("export_format") == "gguf" {
        return ExportFormat::Gguf(kind);
    }
    if kind.is_some() {
        s.error(
            "export_gguf_type",
            "`export_gguf_type` is set, and `export_format` is safetensors",
            "add `export_format: gguf`, or remove `export_gguf_type`",
        );
    }
    ExportFormat::Safetensors
}

fn upload(s: &mut Settings<'_>) -> Option<UploadPlan> {
    let repository = s.opt_text("export_hub_model_id");
    if let Some(repository) = &repository
        && !is_repository(repository)
    {
        s.error(
            "export_hub_model_id",
            format!("`export_hub_model_id: {repository}` is no repository of the hub"),
            "write it as `user/name`, of letters, digits, `-`, `_` and `.`",
        );
    }
    if repository.is_none() && s.is_set("hub_private_repo") {
        s.note(
            "hub_private_repo",
            "`hub_private_repo` has no effect: nothing is uploaded",
            "`export_hub_model_id` names the repository to which `export` uploads",
        );
    }
    repository.map(|repository| UploadPlan { repository, private: s.bool("hub_private_repo") })
}

/// Whether a text is the name of a repository as the hub takes it: at most 96 letters, digits, `-`, `_` and `.`, neither first
/// nor last a `-` or `.`, and no two of them in a row (huggingface_hub's `validate_repo_id`), behind the user's.
fn is_repository(id: &str) -> bool {
    let part = |part: &str| {
        let is_plain = part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        let is_bordered = part.starts_with(['-', '.']) || part.ends_with(['-', '.']);
        is_plain && !part.is_empty() && !is_bordered && !part.contains("--") && !part.contains("..")
    };
    let name = id.split_once('/').filter(|(user, name)| part(user) && part(name));
    name.is_some() && id.len() <= 96 && !id.ends_with(".git")
}
