//! Which parameters train, and the ways to train that this program doesn't have.

use super::Kind::{Any, Bool, Choice, Float, Int, List};
use super::{Choices, Key, Range, no_effect, unsupported, works};

const STAGE: Choices = Choices {
    here: &["sft", "pt", "rm", "dpo", "kto"],
    elsewhere: &["ppo"],
    instead: "write `stage: sft` (conversations) or `stage: pt` (plain text); preference training is not supported",
};
const TYPE: Choices =
    Choices { here: &["lora", "freeze", "full"], elsewhere: &["oft"], instead: "write `finetuning_type: lora`" };
const PREFERENCES: &str = "used by the preference stages only, which are not supported";
const OPTIMISER: &str = "remove it: the optimiser is AdamW";
const OPTIMISER_OPTION: &str = "belongs to an optimiser that is not supported";
const LOSS: &str = "remove it: the loss is cross-entropy (with `label_smoothing_factor`)";
const OFT: &str = "used by `finetuning_type: oft` only, which is not supported";
const PISSA: &str = "remove it: adapters start with random A and zero B, or go on from `adapter_name_or_path`";

pub(super) const KEYS: &[Key] = &[
    works(
        "stage",
        Choice(&STAGE),
        "sft",
        "what the loss is computed on: conversations (`sft`) or plain text (`pt`); of `rm`, `dpo` and `kto` only `ferrotune data` \
         shows the rows",
    ),
    works("finetuning_type", Choice(&TYPE), "lora", "which parameters train"),
    works("pure_bf16", Bool, "false", "`bf16`, and trainable weights of `full` and `freeze` in bfloat16 too"),
    works("lora_rank", Int(1), "8", "rank r of the adapters"),
    works(
        "lora_alpha",
        Float(Range::NotNegative),
        "null",
        "scale of the adapters is alpha / r; twice the rank if not set",
    ),
    works("lora_dropout", Float(Range::Share), "0.0", "probability that an element of an adapter's input is dropped"),
    works(
        "lora_target",
        List,
        "all",
        "modules that get an adapter; `all` means every linear layer but the head, those of experts among them, `attention` those of \
         attention",
    ),
    works("additional_target", List, "null", "modules trained whole and saved beside the adapter"),
    works(
        "loraplus_lr_ratio",
        Float(Range::Positive),
        "null",
        "LoRA+: rate of the B matrices over that of the A matrices",
    ),
    no_effect(
        "loraplus_lr_embedding",
        Float(Range::NotNegative),
        "1e-6",
        "embeddings have no adapters here; `additional_target` trains them whole",
    ),
    works("use_rslora", Bool, "false", "rank-stabilised scale alpha / sqrt(r)"),
    works("use_dora", Bool, "false", "weight-decomposed adapters"),
    works("create_new_adapter", Bool, "false", "merge all given adapters and train a new one"),
    works(
        "freeze_trainable_layers",
        Int(i64::MIN),
        "2",
        "`freeze`: the last n blocks train, or the first n if negative",
    ),
    works("freeze_trainable_modules", List, "all", "`freeze`: modules inside those blocks"),
    works("freeze_extra_modules", List, "null", "`freeze`: modules outside the blocks"),
    works("neftune_noise_alpha", Float(Range::Positive), "null", "NEFTune noise on the embedding"),
];

pub(super) const ELSEWHERE: &[Key] = &[
    unsupported("use_llama_pro", Bool, "false", "write `finetuning_type: freeze` with `freeze_trainable_layers`"),
    unsupported("pissa_init", Bool, "false", PISSA),
    no_effect("pissa_iter", Int(-1), "16", "used by `pissa_init` only, which is not supported"),
    unsupported("pissa_convert", Bool, "false", PISSA),
    no_effect("module_dropout", Any, "0.0", OFT),
    no_effect("oft_rank", Any, "0", OFT),
    no_effect("oft_block_size", Any, "32", OFT),
    no_effect("oft_target", Any, "all", OFT),
    unsupported("use_dft_loss", Bool, "false", LOSS),
    unsupported("use_asft_loss", Bool, "false", LOSS),
    no_effect("asft_alpha", Any, "0.1", "used by `use_asft_loss` only, which is not supported"),
    unsupported("use_eaft_loss", Bool, "false", LOSS),
    no_effect("eaft_alpha", Any, "1.0", "used by `use_eaft_loss` only, which is not supported"),
    no_effect("pref_beta", Any, "0.1", PREFERENCES),
    no_effect("pref_ftx", Any, "0.0", PREFERENCES),
    no_effect("pref_bco_weight", Any, "0.0", PREFERENCES),
    no_effect("pref_loss", Any, "sigmoid", PREFERENCES),
    no_effect("dpo_label_smoothing", Any, "0.0", PREFERENCES),
    no_effect("kto_chosen_weight", Any, "1.0", PREFERENCES),
    no_effect("kto_rejected_weight", Any, "1.0", PREFERENCES),
    no_effect("simpo_gamma", Any, "0.5", PREFERENCES),
    no_effect("ld_alpha", Any, "null", PREFERENCES),
    no_effect("ppo_buffer_size", Any, "1", PREFERENCES),
    no_effect("ppo_epochs", Any, "4", PREFERENCES),
    no_effect("ppo_score_norm", Any, "false", PREFERENCES),
    no_effect("ppo_target", Any, "6.0", PREFERENCES),
    no_effect("ppo_whiten_rewards", Any, "false", PREFERENCES),
    no_effect("ref_model", Any, "null", PREFERENCES),
    no_effect("ref_model_adapters", Any, "null", PREFERENCES),
    no_effect("ref_model_quantization_bit", Any, "null", PREFERENCES),
    no_effect("reward_model", Any, "null", PREFERENCES),
    no_effect("reward_model_adapters", Any, "null", PREFERENCES),
    no_effect("reward_model_quantization_bit", Any, "null", PREFERENCES),
    no_effect("reward_model_type", Any, "lora", PREFERENCES),
    unsupported("use_adam_mini", Bool, "false", OPTIMISER),
    unsupported("use_muon", Bool, "false", OPTIMISER),
    unsupported("use_galore", Bool, "false", OPTIMISER),
    no_effect("galore_target", Any, "all", OPTIMISER_OPTION),
    no_effect("galore_rank", Any, "16", OPTIMISER_OPTION),
    no_effect("galore_update_interval", Any, "200", OPTIMISER_OPTION),
    no_effect("galore_scale", Any, "2.0", OPTIMISER_OPTION),
    no_effect("galore_proj_type", Any, "std", OPTIMISER_OPTION),
    no_effect("galore_layerwise", Any, "false", OPTIMISER_OPTION),
    unsupported("use_apollo", Bool, "false", OPTIMISER),
    no_effect("apollo_target", Any, "all", OPTIMISER_OPTION),
    no_effect("apollo_rank", Any, "16", OPTIMISER_OPTION),
    no_effect("apollo_update_interval", Any, "200", OPTIMISER_OPTION),
    no_effect("apollo_scale", Any, "32.0", OPTIMISER_OPTION),
    no_effect("apollo_proj", Any, "random", OPTIMISER_OPTION),
    no_effect("apollo_proj_type", Any, "std", OPTIMISER_OPTION),
    no_effect("apollo_scale_type", Any, "channel", OPTIMISER_OPTION),
    no_effect("apollo_layerwise", Any, "false", OPTIMISER_OPTION),
    no_effect("apollo_scale_front", Any, "false", OPTIMISER_OPTION),
    unsupported("use_badam", Bool, "false", OPTIMISER),
    no_effect("badam_mode", Any, "layer", OPTIMISER_OPTION),
    no_effect("badam_start_block", Any, "null", OPTIMISER_OPTION),
    no_effect("badam_switch_mode", Any, "ascending", OPTIMISER_OPTION),
    no_effect("badam_switch_interval", Any, "50", OPTIMISER_OPTION),
    no_effect("badam_update_ratio", Any, "0.05", OPTIMISER_OPTION),
    no_effect("badam_mask_mode", Any, "adjacent", OPTIMISER_OPTION),
    no_effect("badam_verbose", Any, "0", OPTIMISER_OPTION),
];
