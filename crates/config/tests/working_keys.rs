//! A key that is said to work changes the plan; one that is said not to doesn't.

use std::collections::BTreeSet;

use ferrotune_config::keys::{self, State};
use ferrotune_config::plan::Plan;
use ferrotune_config::{Recipe, Verb};

const BASE: &str = "model_name_or_path: m\ndataset: d\noutput_dir: o\ndo_train: true\n";

/// A value other than the default for every working key; what it needs beside itself after `;`.
const OTHER: &[(&str, &str)] = &[
    ("model_name_or_path", "other"),
    ("adapter_name_or_path", "a,b"),
    ("cache_dir", "c"),
    ("resize_vocab", "true"),
    ("split_special_tokens", "true"),
    ("add_tokens", "<x>"),
    ("add_special_tokens", "<x>"),
    ("model_revision", "v2"),
    ("rope_scaling", "yarn"),
    ("disable_gradient_checkpointing", "true"),
    ("train_from_scratch", "true"),
    ("infer_dtype", "bfloat16"),
    ("hf_hub_token", "t"),
    ("ms_hub_token", "t"),
    ("stage", "pt"),
    ("finetuning_type", "full"),
    ("pure_bf16", "true"),
    ("lora_rank", "4"),
    ("lora_alpha", "4"),
    ("lora_dropout", "0.1"),
    ("lora_target", "[q_proj, v_proj]"),
    ("additional_target", "embed_tokens"),
    ("loraplus_lr_ratio", "16"),
    ("use_rslora", "true"),
    ("use_dora", "true"),
    ("create_new_adapter", "true"),
    ("freeze_trainable_layers", "-1; finetuning_type: freeze"),
    ("freeze_trainable_modules", "mlp; finetuning_type: freeze"),
    ("freeze_extra_modules", "lm_head; finetuning_type: freeze"),
    ("neftune_noise_alpha", "5"),
    ("dataset", "d,e"),
    ("eval_dataset", "e"),
    ("dataset_dir", "elsewhere"),
    ("template", "qwen3"),
    ("cutoff_len", "512"),
    ("max_samples", "10"),
    ("val_size", "0.1"),
    ("train_on_prompt", "true"),
    ("mask_history", "true"),
    ("default_system", "be kind"),
    ("enable_thinking", "null"),
    ("preserve_thinking", "true"),
    ("tool_format", "qwen"),
    ("packing", "true"),
    ("neat_packing", "true"),
    ("mix_strategy", "interleave_once"),
    ("interleave_probs", "1.0; mix_strategy: interleave_over"),
    ("eval_on_each_dataset", "true"),
    ("overwrite_cache", "true"),
    ("preprocessing_num_workers", "2"),
    ("tokenized_path", "t"),
    ("streaming", "true; max_steps: 9"),
    ("buffer_size", "9; max_steps: 9; streaming: true"),
    ("on_bad_row", "error"),
    ("do_train", "false; do_eval: true; val_size: 2"),
    ("per_device_train_batch_size", "2"),
    ("gradient_accumulation_steps", "2"),
    ("num_train_epochs", "0.5"),
    ("max_steps", "7"),
    ("learning_rate", "1e-3"),
    ("lr_scheduler_type", "inverse_sqrt"),
    ("lr_scheduler_kwargs", "{num_cycles: 2}; lr_scheduler_type: cosine"),
    ("warmup_steps", "10"),
    ("warmup_ratio", "0.1"),
    ("optim", "adamw_hf"),
    ("weight_decay", "0.1"),
    ("adam_beta1", "0.8"),
    ("adam_beta2", "0.95"),
    ("adam_epsilon", "1e-6"),
    ("max_grad_norm", "0"),
    ("label_smoothing_factor", "0.1"),
    ("moe_aux_loss_coef", "0.001"),
    ("bf16", "true"),
    ("fp16", "true"),
    ("use_cpu", "true"),
    ("gradient_checkpointing", "false"),
    ("seed", "1"),
    ("data_seed", "1"),
    ("disable_shuffling", "true"),
    ("train_sampling_strategy", "sequential"),
    ("dataloader_drop_last", "true"),
    ("do_eval", "true; val_size: 2"),
    ("eval_strategy", "epoch; val_size: 2"),
    ("eval_steps", "5; eval_strategy: steps; val_size: 2"),
    ("per_device_eval_batch_size", "2"),
    ("eval_on_start", "true; val_size: 2"),
    ("load_best_model_at_end", "true; eval_strategy: steps; val_size: 2"),
    ("metric_for_best_model", "accuracy; compute_accuracy: true"),
    ("greater_is_better", "true"),
    ("early_stopping_steps", "3; eval_strategy: steps; val_size: 2"),
    ("compute_accuracy", "true"),
    ("do_predict", "true; predict_with_generate: true; val_size: 2"),
    ("predict_with_generate", "true; val_size: 2"),
    ("output_dir", "p"),
    ("overwrite_output_dir", "true"),
    ("resume_from_checkpoint", "o/checkpoint-5"),
    ("logging_steps", "1"),
    ("logging_strategy", "steps"),
    ("logging_first_step", "true"),
    ("save_strategy", "epoch"),
    ("save_steps", "50"),
    ("save_total_limit", "2"),
    ("save_only_model", "true"),
    ("sample_prompts", "[Who are you?]"),
    ("plot_loss", "true"),
    ("report_to", "tensorboard"),
    ("logging_dir", "l; report_to: tensorboard"),
    ("run_name", "r; report_to: wandb"),
    ("use_swanlab", "true"),
    ("swanlab_project", "p; use_swanlab: true"),
    ("swanlab_workspace", "w; use_swanlab: true"),
    ("swanlab_run_name", "r; use_swanlab: true"),
    ("swanlab_mode", "disabled; use_swanlab: true"),
    ("swanlab_logdir", "l; use_swanlab: true"),
    ("do_sample", "false"),
    ("temperature", "0.5"),
    ("top_p", "0.9"),
    ("top_k", "0"),
    ("max_new_tokens", "64"),
    ("repetition_penalty", "1.1"),
    ("skip_special_tokens", "false"),
    ("strategy", "zero3"),
    ("shard_size", "2; strategy: hybrid"),
    ("pipeline_stages", "2; strategy: pipeline"),
    ("offload_optimizer", "true"),
    ("offload_parameters", "true"),
    ("overlap_communication", "false"),
    ("max_tokens_per_micro_batch", "4096"),
    ("rehearse_longest_batch", "false"),
    ("auto_find_batch_size", "true"),
    ("peer_timeout", "5"),
    ("rendezvous_timeout", "60"),
    ("deepspeed", "{zero_optimization: {stage: 2}}"),
    ("fsdp", "full_shard"),
    ("fsdp_config", "{fsdp_offload_params: true}; fsdp: full_shard"),
    ("save_on_each_node", "true"),
    ("enable_torch_profiler", "true"),
    ("profiler_output_dir", "p; enable_torch_profiler: true"),
    ("profiler_wait_steps", "3; enable_torch_profiler: true"),
    ("profiler_warmup_steps", "3; enable_torch_profiler: true"),
    ("profiler_active_steps", "3; enable_torch_profiler: true"),
    ("profiler_repeat", "0; enable_torch_profiler: true"),
    ("export_dir", "e"),
    ("export_size", "2"),
    ("export_format", "gguf"),
    ("export_gguf_type", "q8_0; export_format: gguf"),
    ("export_hub_model_id", "me/mine"),
    ("hub_private_repo", "true; export_hub_model_id: me/mine"),
];

/// Keys whose only other working values mean the same.
const SAME: &[&str] = &["optim", "logging_strategy"];

fn resolve(recipe: &str) -> Plan {
    let recipe = Recipe::parse("r.yaml", recipe.as_bytes()).unwrap_or_else(|e| panic!("{e}"));
    Plan::resolve(&recipe, Verb::Train).unwrap_or_else(|e| panic!("{e}")).0
}

fn with(name: &str, value: &str) -> (Plan, Plan) {
    let (value, others) = value.split_once(';').unwrap_or((value, ""));
    let mut base: String =
        BASE.lines().filter(|l| !l.starts_with(&format!("{name}:"))).map(|l| format!("{l}\n")).collect();
    for other in others.split(';').filter(|other| !other.is_empty()) {
        base += &format!("{}\n", other.trim());
    }
    let changed = resolve(&format!("{base}{name}: {value}\n"));
    // A key of the base itself is compared with what the base says.
    let from_base = BASE.lines().find(|line| line.starts_with(&format!("{name}:"))).unwrap_or_default();
    (resolve(&format!("{base}{from_base}\n")), changed)
}

#[test]
fn every_working_key_changes_the_plan() {
    let tried: BTreeSet<_> = OTHER.iter().map(|(name, _)| *name).collect();
    let working: BTreeSet<_> =
        keys::all().filter(|key| matches!(key.state, State::Works(_) | State::Old(..))).map(|key| key.name).collect();
    assert_eq!(tried, working, "each working key needs a line here");
    for (name, value) in OTHER {
        let (before, after) = with(name, value);
        assert_eq!(before == after, SAME.contains(name), "{name}: {value}");
    }
}

#[test]
fn defaults_written_out_change_nothing_and_say_nothing() {
    let base = resolve(BASE);
    for key in keys::all() {
        if BASE.contains(&format!("{}:", key.name)) || matches!(key.state, State::Alias(_)) {
            continue;
        }
        let text = format!("{BASE}{}: {}\n", key.name, key.default);
        let recipe = Recipe::parse("r.yaml", text.as_bytes()).unwrap();
        let (plan, notes) = Plan::resolve(&recipe, Verb::Train).unwrap_or_else(|e| panic!("{e}"));
        if key.name == "enable_thinking" || key.default != "null" || !matches!(key.state, State::Works(_)) {
            assert!(notes.is_empty(), "{}: {notes:?}", key.name);
        }
        assert_eq!(plan, base, "{}", key.name);
    }
}

#[test]
fn keys_without_effect_leave_the_plan_alone_with_a_note() {
    let base = resolve(BASE);
    for key in keys::all().filter(|key| matches!(key.state, State::NoEffect(_))) {
        let value = match (key.kind, key.default) {
            (keys::Kind::Bool, "true") => "false",
            (keys::Kind::Bool, _) => "true",
            _ => "7",
        };
        let text = format!("{BASE}{}: {value}\n", key.name);
        let recipe = Recipe::parse("r.yaml", text.as_bytes()).unwrap();
        let (plan, notes) = Plan::resolve(&recipe, Verb::Train).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(plan, base, "{}", key.name);
        assert_eq!(notes.len(), 1, "{}: {notes:?}", key.name);
        assert!(notes[0].message.starts_with(&format!("`{}` has no effect: ", key.name)), "{}", notes[0]);
    }
}

#[test]
fn unsupported_keys_are_errors_with_a_cure() {
    for key in keys::all() {
        let State::Unsupported(instead) = key.state else {
            continue;
        };
        let value = match (key.kind, key.default) {
            (keys::Kind::Bool, "true") => "false",
            (keys::Kind::Bool, _) => "true",
            (keys::Kind::Map, _) => "{a: 1}",
            _ => "7",
        };
        let text = format!("{BASE}{}: {value}\n", key.name);
        let recipe = Recipe::parse("r.yaml", text.as_bytes()).unwrap();
        let errors = Plan::resolve(&recipe, Verb::Train).expect_err(key.name).0;
        assert_eq!(errors.len(), 1, "{}: {errors:?}", key.name);
        assert_eq!(errors[0].message, format!("`{}` is not supported", key.name));
        assert_eq!(errors[0].help.as_deref(), Some(instead));
        assert_eq!(errors[0].span.as_ref().map(|span| (span.line, span.column)), Some((5, 1)));
    }
}
