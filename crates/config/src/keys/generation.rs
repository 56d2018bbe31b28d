//! How text is generated, and what `export` writes.

use super::Kind::{Any, Bool, Choice, Float, Int, Path, Text};
use super::data::BEAMS;
use super::{Choices, Key, Range, no_effect, unsupported, works};

const FORMATS: Choices = Choices { here: &["safetensors", "gguf"], elsewhere: &[], instead: "" };
const GGUF_TYPES: Choices =
    Choices { here: &["f32", "f16", "bf16", "q8_0", "q4_0", "q4_k_m"], elsewhere: &[], instead: "" };

const GPTQ: &str = "export in full precision and quantise with the tool of your server, or write `export_format: gguf` with `export_gguf_type: q4_k_m`";

pub(super) const KEYS: &[Key] = &[
    works("do_sample", Bool, "true", "draw tokens at random; otherwise always take the likeliest"),
    works("temperature", Float(Range::Positive), "0.95", "softmax temperature"),
    works(
        "top_p",
        Float(Range::Positive),
        "0.7",
        "draw among the likeliest tokens that hold this share of the probability",
    ),
    works("top_k", Int(0), "50", "draw among the k likeliest tokens; 0 means all"),
    works("max_new_tokens", Int(1), "1024", "most tokens of an answer"),
    works("repetition_penalty", Float(Range::Positive), "1.0", "divides the logits of tokens seen before"),
    works("skip_special_tokens", Bool, "true", "leave special tokens out of the text"),
    unsupported("num_beams", Int(1), "1", BEAMS),
    no_effect("length_penalty", Float(Range::Any), "1.0", "used by beam search only, which is not supported"),
    no_effect("max_length", Int(1), "1024", "`max_new_tokens` limits the answer, as in LLaMA-Factory"),
];

pub(super) const EXPORT: &[Key] = &[
    works("export_dir", Path, "null", "folder of the merged model (required by `export`)"),
    works("export_size", Int(1), "5", "largest file, in gigabytes (10^9 bytes); a `gguf` is one file"),
    works(
        "export_format",
        Choice(&FORMATS),
        "safetensors",
        "`gguf` writes one file for llama.cpp and Ollama instead of a Hugging Face folder",
    ),
    works(
        "export_gguf_type",
        Choice(&GGUF_TYPES),
        "null",
        "types of the weights in a `gguf`; if not set, 16 or 32 bits as `infer_dtype` or the model itself has them",
    ),
    no_effect("export_device", Text, "cpu", "merging is done on the processor"),
    unsupported("export_quantization_bit", Int(1), "null", GPTQ),
    no_effect(
        "export_quantization_dataset",
        Any,
        "null",
        "used by `export_quantization_bit` only, which is not supported",
    ),
    no_effect(
        "export_quantization_nsamples",
        Any,
        "128",
        "used by `export_quantization_bit` only, which is not supported",
    ),
    no_effect(
        "export_quantization_maxlen",
        Any,
        "1024",
        "used by `export_quantization_bit` only, which is not supported",
    ),
    no_effect("export_legacy_format", Bool, "false", "weights are always written as safetensors"),
    works(
        "export_hub_model_id",
        Text,
        "null",
        "repository on the Hugging Face hub, `user/name`, to which `export_dir` is uploaded; made if it isn't there",
    ),
];
