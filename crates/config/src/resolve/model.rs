//! Which model, and which of its parameters train.

use super::Verb;
use crate::plan::{
    FreezePlan, LoraPlan, LoraPlus, LoraTargets, ModelPlan, Precision, Recompute, RopeScaling, Stage, Tuning,
};
use crate::settings::Settings;

pub(super) fn stage(s: &mut Settings<'_>, verb: Verb) -> Stage {
    let name = s.text("stage");
    let stage = match name.as_str() {
        "pt" => Stage::Pretrain,
        "rm" | "dpo" => Stage::Pairwise,
        "kto" => Stage::Feedback,
        _ => Stage::Sft,
    };
    if matches!(stage, Stage::Pairwise | Stage::Feedback) && verb != Verb::Data {
        s.error(
            "stage",
            format!("`stage: {name}` is not trained; `ferrotune data` shows how its rows are encoded"),
            "write `stage: sft` (conversations) or `stage: pt` (plain text)",
        );
    }
    stage
}

pub(super) fn model(s: &mut Settings<'_>, verb: Verb) -> ModelPlan {
    if s.lacks("model_name_or_path") {
        s.error(
            "model_name_or_path",
            "`model_name_or_path` is missing",
            "add `model_name_or_path: smollm2-135m-instruct`, a folder, a `.gguf` file or a hub id",
        );
    }
    if s.is_set("adapter_name_or_path") && s.text("finetuning_type") != "lora" {
        s.error(
            "adapter_name_or_path",
            "an adapter can only be loaded with `finetuning_type: lora`",
            "write `finetuning_type: lora`, or merge the adapter with `ferrotune export` first",
        );
    }
    ModelPlan {
        source: s.text("model_name_or_path"),
        revision: s.text("model_revision"),
        cache_dir: s.opt_path("cache_dir"),
        hugging_face_token: s.opt_text("hf_hub_token"),
        modelscope_token: s.opt_text("ms_hub_token"),
        adapters: s.list("adapter_name_or_path"),
        precision: precision(s, verb),
        rope_scaling: s.opt_text("rope_scaling").map(|name| match name.as_str() {
            "linear" => RopeScaling::Linear,
            "dynamic" => RopeScaling::Dynamic,
            "yarn" => RopeScaling::Yarn,
            _ => RopeScaling::Llama3,
        }),
        recompute: recompute(s),
        add_tokens: s.list("add_tokens"),
        add_special_tokens: s.list("add_special_tokens"),
        resize_vocab: s.bool("resize_vocab"),
        split_special_tokens: s.bool("split_special_tokens"),
        from_scratch: s.bool("train_from_scratch"),
    }
}

fn precision(s: &mut Settings<'_>, verb: Verb) -> Precision {
    let brain = s.bool("bf16") || s.bool("pure_bf16");
    if s.bool("fp16") && brain {
        let other = if s.bool("bf16") { "bf16" } else { "pure_bf16" };
        s.error("fp16", format!("`fp16` and `{other}` are both on"), "remove `fp16`: bf16 needs no loss scaling");
    }
    let trained = match (brain, s.bool("fp16")) {
        (true, _) => Precision::Bf16,
        (false, true) => Precision::F16,
        (false, false) => Precision::F32,
    };
    match verb {
        Verb::Train | Verb::Plan | Verb::Data => trained,
        Verb::Chat | Verb::Export => infer_precision(s).unwrap_or(trained),
    }
}

/// `infer_dtype`; `None` for `auto`.
pub(super) fn infer_precision(s: &Settings<'_>) -> Option<Precision> {
    match s.text("infer_dtype").as_str() {
        "bfloat16" => Some(Precision::Bf16),
        "float16" => Some(Precision::F16),
        "float32" => Some(Precision::F32),
        _ => None,
    }
}

fn recompute(s: &mut Settings<'_>) -> Recompute {
    let disabled = s.bool("disable_gradient_checkpointing");
    match s.opt_bool("gradient_checkpointing") {
        Some(true) if disabled => {
            s.error(
                "disable_gradient_checkpointing",
                "`gradient_checkpointing` and `disable_gradient_checkpointing` are both on",
                "remove one of the two",
            );
            Recompute::On
        }
        Some(true) => Recompute::On,
        Some(false) => Recompute::Off,
        None if disabled => Recompute::Off,
        None => Recompute::Auto,
    }
}

pub(super) fn tuning(s: &mut Settings<'_>) -> Tuning {
    let kind = s.text("finetuning_type");
    if kind != "lora" {
        for name in ["loraplus_lr_ratio", "use_rslora", "use_dora"] {
            if s.is_set(name) && s.opt_bool(name) != Some(false) {
                s.error(
                    name,
                    format!("`{name}` is only for `finetuning_type: lora`"),
                    "remove it, or write `finetuning_type: lora`",
                );
            }
        }
        if s.is_set("lora_rank") || s.is_set("lora_target") {
            let name = if s.is_set("lora_rank") { "lora_rank" } else { "lora_target" };
            s.note(name, format!("the keys of LoRA have no effect with `finetuning_type: {kind}`"), "");
        }
    }
    match kind.as_str() {
        "freeze" => Tuning::Freeze(freeze(s)),
        "full" => Tuning::Full,
        _ => Tuning::Lora(lora(s)),
    }
}

/// Modules that one word of `lora_target` means.
fn attention(target: String) -> Vec<String> {
    match target.as_str() {
        "attention" => ["q_proj", "k_proj", "v_proj", "o_proj"].map(String::from).to_vec(),
        _ => vec![target],
    }
}

fn lora(s: &mut Settings<'_>) -> LoraPlan {
    let rank = s.count("lora_rank");
    // LLaMA-Factory takes 0 for "not set", too.
    let alpha = s.opt_float("lora_alpha").filter(|alpha| *alpha != 0.0);
    if s.bool("pure_bf16") {
        s.note("pure_bf16", "adapters are trained in 32 bits with `pure_bf16` too", "write `bf16: true`");
    }
    if s.bool("create_new_adapter") && !s.is_set("adapter_name_or_path") {
        s.note("create_new_adapter", "`create_new_adapter` has no effect without `adapter_name_or_path`", "");
    }
    let targets = s.list("lora_target");
    if s.lacks("lora_target") {
        s.error("lora_target", "`lora_target` names no module", "write `lora_target: all`");
    }
    let adapts_all = targets.iter().any(|target| target == "all");
    LoraPlan {
        rank,
        #[expect(clippy::cast_precision_loss, reason = "a rank is small")]
        alpha: alpha.unwrap_or(2.0 * rank as f64),
        dropout: s.float("lora_dropout"),
        targets: if adapts_all {
            LoraTargets::All
        } else {
            LoraTargets::Modules(targets.into_iter().flat_map(attention).collect())
        },
        additional_targets: s.list("additional_target"),
        rslora: s.bool("use_rslora"),
        dora: s.bool("use_dora"),
        plus: s.opt_float("loraplus_lr_ratio").map(|ratio| LoraPlus { ratio }),
        create_new: s.bool("create_new_adapter"),
    }
}

fn freeze(s: &mut Settings<'_>) -> FreezePlan {
    let modules = s.list("freeze_trainable_modules");
    let plan = FreezePlan {
        layers: s.int("freeze_trainable_layers"),
        modules: if modules.iter().any(|name| name == "all") { Vec::new() } else { modules },
        extra_modules: s.list("freeze_extra_modules"),
    };
    if plan.layers == 0 && plan.extra_modules.is_empty() {
        s.error(
            "freeze_trainable_layers",
            "nothing would train: no block and no extra module",
            "write how many blocks train, such as `freeze_trainable_layers: 2`",
        );
    }
    plan
}
