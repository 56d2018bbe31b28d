//! `config.json` out of GGUF metadata.
//!
//! Keys are those of transformers 4 (`rope_theta`, `rope_scaling`, `torch_dtype`), which versions 4
//! and 5 and vLLM read alike.

use serde_json::{Map, Value as Json, json};

use super::header::Header;
use super::value::{Array, Value};

/// Families that can be read, as told to the user.
pub(crate) const SUPPORTED: &str = "llama (Llama, Mistral, SmolLM2, Mixtral), qwen2, qwen3, qwen2moe, qwen3moe";

/// A family, by `general.architecture`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// Llama, SmolLM2, Mistral, Mixtral: one name for all in GGUF.
    Llama,
    Qwen2,
    Qwen3,
    Qwen2Moe,
    Qwen3Moe,
}

impl Family {
    pub(crate) fn of(architecture: &str) -> Option<Self> {
        match architecture {
            "llama" => Some(Self::Llama),
            "qwen2" => Some(Self::Qwen2),
            "qwen3" => Some(Self::Qwen3),
            "qwen2moe" => Some(Self::Qwen2Moe),
            "qwen3moe" => Some(Self::Qwen3Moe),
            _ => None,
        }
    }
}

/// Metadata of one architecture: keys without its prefix.
pub(crate) struct Keys<'a> {
    pub(crate) header: &'a Header,
    pub(crate) architecture: &'a str,
}

impl Keys<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.header.metadata.get(&format!("{}.{key}", self.architecture))
    }

    fn bad(&self, key: &str, expected: &str) -> String {
        match self.get(key) {
            None => format!("it lacks the key '{}.{key}'", self.architecture),
            Some(_) => format!("the key '{}.{key}' is not {expected}", self.architecture),
        }
    }

    /// A positive whole number of at most 2^31. An array of equal ones counts as one.
    fn size(&self, key: &str) -> Result<usize, String> {
        let uniform = |values: Vec<i64>| {
            let first = *values.first()?;
            values.iter().all(|&v| v == first).then(|| u64::try_from(first).ok())?
        };
        let value = self.get(key);
        let number = value.and_then(|v| v.as_u64().or_else(|| v.as_integers().and_then(uniform)));
        (number.filter(|n| (1..=1 << 31).contains(n)).map(|n| n as usize))
            .ok_or_else(|| self.bad(key, "a positive number, the same for all blocks"))
    }

    fn size_or(&self, key: &str, default: usize) -> Result<usize, String> {
        match self.get(key) {
            None => Ok(default),
            Some(_) => self.size(key),
        }
    }

    fn float(&self, key: &str) -> Result<Option<f64>, String> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let number = value.as_f64().filter(|v| v.is_finite() && *v > 0.0);
        number.map(Some).ok_or_else(|| self.bad(key, "a positive number"))
    }
}

/// Sizes that decide how tensors are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Heads {
    pub(crate) query: usize,
    pub(crate) key_value: usize,
    pub(crate) dim: usize,
}

/// Attention heads of a model.
pub(crate) fn heads(keys: &Keys<'_>) -> Result<Heads, String> {
    let hidden = keys.size("embedding_length")?;
    let query = keys.size("attention.head_count")?;
    let dim = match keys.get("attention.key_length") {
        Some(_) => keys.size("attention.key_length")?,
        None if hidden % query == 0 => hidden / query,
        None => return Err(format!("{query} heads don't divide a width of {hidden}")),
    };
    if dim % 2 != 0 {
        return Err(format!("its heads are {dim} wide, an even number is needed"));
    }
    let rotated = keys.size_or("rope.dimension_count", dim)?;
    if rotated != dim {
        return Err(format!("it rotates {rotated} of {dim} dimensions of a head; only all of them is supported"));
    }
    Ok(Heads { query, key_value: keys.size_or("attention.head_count_kv", query)?, dim })
}

/// Makes `config.json`; `freqs` are the values of `rope_freqs.weight` if there is one.
pub(crate) fn config(keys: &Keys<'_>, family: Family, freqs: Option<&[f32]>) -> Result<Json, String> {
    let heads = heads(keys)?;
    let has_experts = keys.get("expert_count").and_then(Value::as_u64).unwrap_or(0) > 0;
    let is_dense = matches!(family, Family::Qwen2 | Family::Qwen3);
    if has_experts && is_dense {
        return Err(format!("it is a mixture of experts by the name of '{}', which has none", keys.architecture));
    }
    let (embedding, _) =
        (keys.header.tensors.get("token_embd.weight")).ok_or("it lacks the tensor 'token_embd.weight'")?;
    let context = keys.size("context_length")?;
    let window = match keys.get("attention.sliding_window").and_then(Value::as_u64) {
        None | Some(0) => None,
        Some(window) => Some(window),
    };
    let (class, kind) = match family {
        Family::Llama if has_experts => ("MixtralForCausalLM", "mixtral"),
        Family::Llama if window.is_some() => ("MistralForCausalLM", "mistral"),
        Family::Llama => ("LlamaForCausalLM", "llama"),
        Family::Qwen2 => ("Qwen2ForCausalLM", "qwen2"),
        Family::Qwen3 => ("Qwen3ForCausalLM", "qwen3"),
        Family::Qwen2Moe => ("Qwen2MoeForCausalLM", "qwen2_moe"),
        Family::Qwen3Moe => ("Qwen3MoeForCausalLM", "qwen3_moe"),
    };
    let theta = keys.float("rope.freq_base")?.unwrap_or(10_000.0);
    let eps = (keys.float("attention.layer_norm_rms_epsilon")?)
        .ok_or_else(|| keys.bad("attention.layer_norm_rms_epsilon", "a number"))?;
    let mut config = json!({
        "architectures": [class],
        "model_type": kind,
        "vocab_size": embedding.first().copied().unwrap_or(0),
        "hidden_size": keys.size("embedding_length")?,
        "intermediate_size": keys.size("feed_forward_length")?,
        "num_hidden_layers": keys.size("block_count")?,
        "num_attention_heads": heads.query,
        "num_key_value_heads": heads.key_value,
        "head_dim": heads.dim,
        "hidden_act": "silu",
        "max_position_embeddings": context,
        "rms_norm_eps": eps,
        "rope_theta": theta,
        "rope_scaling": scaling(keys, heads.dim, theta, freqs)?,
        "tie_word_embeddings": !keys.header.tensors.contains_key("output.weight"),
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "torch_dtype": torch_dtype(keys.header),
        "use_cache": true,
    });
    let map = config.as_object_mut().expect("made as an object above");
    family_keys(map, keys.header, family, window);
    if has_experts || !(is_dense || family == Family::Llama) {
        expert_keys(map, keys, family)?;
    }
    token_ids(map, keys.header);
    Ok(config)
}

/// Keys that only some families have.
fn family_keys(map: &mut Map<String, Json>, header: &Header, family: Family, window: Option<u64>) {
    let has = |name: &str| header.tensors.contains_key(name);
    match family {
        Family::Llama => {
            map.insert("attention_bias".into(), has("blk.0.attn_q.bias").into());
            map.insert("mlp_bias".into(), has("blk.0.ffn_gate.bias").into());
            if let Some(window) = window {
                map.insert("sliding_window".into(), window.into());
            }
        }
        Family::Qwen2 | Family::Qwen3 | Family::Qwen2Moe | Family::Qwen3Moe => {
            if matches!(family, Family::Qwen3 | Family::Qwen3Moe) {
                map.insert("attention_bias".into(), has("blk.0.attn_q.bias").into());
            }
            map.insert("use_sliding_window".into(), window.is_some().into());
            map.insert("sliding_window".into(), window.into());
        }
    }
}

/// Keys of mixtures of experts. Whether weights are divided by their sum isn't in the file: llama.cpp knows it by the family.
fn expert_keys(map: &mut Map<String, Json>, keys: &Keys<'_>, family: Family) -> Result<(), String> {
    let mut set = |key: &str, value: Json| drop(map.insert(key.to_owned(), value));
    let experts = keys.size("expert_count")?;
    set("num_experts_per_tok", keys.size("expert_used_count")?.into());
    if family == Family::Llama {
        set("num_local_experts", experts.into());
        return Ok(());
    }
    set("num_experts", experts.into());
    set("norm_topk_prob", (family == Family::Qwen3Moe).into());
    // The width of `[.., width, hidden]`, where the key isn't there.
    let tensors = &keys.header.tensors;
    let rows = |end: &str| {
        let (shape, _) = tensors.iter().find(|(name, _)| name.ends_with(end))?.1;
        shape.len().checked_sub(2).map(|at| shape[at])
    };
    let width = |key: &str, end: &str| match (keys.get(key), rows(end)) {
        (None, Some(rows)) => Ok(rows),
        _ => keys.size(key),
    };
    set("moe_intermediate_size", width("expert_feed_forward_length", ".ffn_gate_exps.weight")?.into());
    if family == Family::Qwen2Moe {
        let shared = width("expert_shared_feed_forward_length", ".ffn_gate_shexp.weight")?;
        set("shared_expert_intermediate_size", shared.into());
    }
    let blocks = keys.size("block_count")?;
    let is_plain = |block: &usize| tensors.contains_key(&format!("blk.{block}.ffn_gate.weight"));
    // A number of blocks that no file could have would make a list without end.
    let plain: Vec<usize> = (0..blocks.min(tensors.len())).filter(is_plain).collect();
    set("mlp_only_layers", plain.into());
    set("decoder_sparse_step", 1.into());
    Ok(())
}

fn token_ids(map: &mut Map<String, Json>, header: &Header) {
    for (key, gguf) in [
        ("bos_token_id", "tokenizer.ggml.bos_token_id"),
        ("eos_token_id", "tokenizer.ggml.eos_token_id"),
        ("pad_token_id", "tokenizer.ggml.padding_token_id"),
    ] {
        if let Some(id) = header.metadata.get(gguf).and_then(Value::as_u64) {
            map.insert(key.into(), id.into());
        }
    }
}

/// The type a model of this file is written as: its own, or bf16 for quantised weights.
fn torch_dtype(header: &Header) -> &'static str {
    use crate::dtype::Dtype;
    let largest = header.tensors.values().max_by_key(|(_, region)| region.elements);
    match largest.map(|(_, region)| region.dtype) {
        Some(Dtype::F32) => "float32",
        Some(Dtype::F16) => "float16",
        _ => "bfloat16",
    }
}

/// Position scaling: linear and YaRN stand in metadata, Llama 3's in the tensor of frequency
/// factors.
fn scaling(keys: &Keys<'_>, head_dim: usize, theta: f64, freqs: Option<&[f32]>) -> Result<Json, String> {
    if let Some(freqs) = freqs {
        return llama3_scaling(keys, head_dim, theta, freqs);
    }
    let kind = keys.get("rope.scaling.type").and_then(Value::as_str);
    let factor = match keys.float("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        // The name of the linear factor before scaling types existed.
        None => keys.float("rope.scale_linear")?,
    };
    match (kind, factor) {
        (None | Some("none"), None) | (Some("none"), _) => Ok(Json::Null),
        (None | Some("linear"), Some(1.0)) => Ok(Json::Null),
        (None | Some("linear"), Some(factor)) => Ok(json!({
            "rope_type": "linear", "factor": factor
        })),
        (Some("yarn"), Some(factor)) => {
            let mut scaling = json!({"rope_type": "yarn", "factor": factor});
            for (key, gguf) in [
                ("attention_factor", "rope.scaling.attn_factor"),
                ("beta_fast", "rope.scaling.yarn_beta_fast"),
                ("beta_slow", "rope.scaling.yarn_beta_slow"),
            ] {
                if let Some(value) = keys.float(gguf)? {
                    scaling[key] = value.into();
                }
            }
            let original = "rope.scaling.original_context_length";
            scaling["original_max_position_embeddings"] = keys.size(original)?.into();
            Ok(scaling)
        }
        (Some(kind), _) => Err(format!(
            "its position scaling is '{kind}' with factor {factor:?}; linear, yarn (each with a \
             factor) and llama3 are supported"
        )),
    }
}

/// Finds Llama 3's scaling behind its frequency factors: the converter writes only them, and
/// transformers computes them from four numbers of which the model's original context differs.
fn llama3_scaling(keys: &Keys<'_>, head_dim: usize, theta: f64, freqs: &[f32]) -> Result<Json, String> {
    if freqs.iter().all(|&f| f == 1.0) {
        return Ok(Json::Null);
    }
    let factor = freqs.iter().copied().fold(1.0f32, f32::max);
    let stated = keys.size_or("rope.scaling.original_context_length", 8192)?;
    let lengths = std::iter::once(stated).chain((6..=20).map(|bits| 1 << bits));
    for original in lengths {
        let wanted = llama3_factors(head_dim, theta, f64::from(factor), (original as f64, 1.0, 4.0));
        let close = |(want, &have): (f64, &f32)| (want - f64::from(have)).abs() <= 1e-3 * want;
        if freqs.len() == head_dim / 2 && wanted.zip(freqs).all(close) {
            return Ok(json!({
                "rope_type": "llama3",
                "factor": Value::F32(factor).as_f64(),
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": original,
            }));
        }
    }
    Err("the factors in 'rope_freqs.weight' are not those of Llama 3's position scaling".into())
}

/// Divisors of the rotation frequencies (transformers' `_compute_llama3_parameters`) for `original` positions and the factors
/// `low` and `high`, usually 1 and 4.
pub(crate) fn llama3_factors(
    head_dim: usize,
    theta: f64,
    factor: f64,
    (original, low, high): (f64, f64, f64),
) -> impl Iterator<Item = f64> {
    (0..head_dim / 2).map(move |i| {
        let frequency = theta.powf(-2.0 * i as f64 / head_dim as f64);
        let wavelength = 2.0 * std::f64::consts::PI / frequency;
        if wavelength < original / high {
            1.0
        } else if wavelength > original / low {
            factor
        } else {
            let smooth = (original / wavelength - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    })
}

impl From<Vec<String>> for Value {
    fn from(values: Vec<String>) -> Self {
        Self::Array(Array::String(values))
    }
}
