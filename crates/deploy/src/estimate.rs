//! How many GPUs a model needs, and how long its sequences may be: weights and the cache of keys and values against the
//! memory of a known card.

use ferrotune_model::{Config, Scaling};
use serde_json::Value;

use crate::{Error, Result};

/// Share of a card's memory that vLLM takes (`--gpu-memory-utilization`, its default).
const UTILISATION: f64 = 0.9;
/// GiB of a card for activations, CUDA's context and captured graphs: an allowance.
const ALLOWANCE: f64 = 3.0;
/// Bytes of an element of weights and cache: vLLM serves in 16 bits.
const ELEMENT: f64 = 2.0;
/// GPUs of one machine.
const MOST: usize = 8;
/// A shorter room than this is worth another GPU, where the model can take more.
const COMFORT: usize = 32_768;
const GIB: f64 = (1u64 << 30) as f64;

/// What a model takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Demand {
    /// Elements of all weights.
    pub weights: u64,
    /// Elements of the adapters' weights, as often as vLLM holds them.
    pub adapters: u64,
    /// Blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Longest sequence the model was made for.
    pub longest: usize,
    /// Longest that vLLM lets itself be asked for.
    pub limit: usize,
}

impl Demand {
    /// The demand of a model of `config`, read from `json`, with so many elements of weights and adapters.
    pub fn new((config, json): (&Config, &Value), weights: u64, adapters: u64) -> Self {
        Self {
            weights,
            adapters,
            layers: config.num_hidden_layers,
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            longest: config.max_position_embeddings,
            limit: limit(config, json),
        }
    }

    /// GiB on each of `gpus`, without the cache.
    fn fixed(&self, gpus: usize) -> f64 {
        (self.weights + self.adapters) as f64 * ELEMENT / gpus as f64 / GIB + ALLOWANCE
    }

    /// GiB on each of `gpus` for the keys and values of a token: a head is never cut.
    fn token(&self, gpus: usize) -> f64 {
        let heads = self.kv_heads.div_ceil(gpus).max(1);
        2.0 * (self.layers * heads * self.head_dim) as f64 * ELEMENT / GIB
    }
}

/// Positions above which vLLM doesn't start (`_get_and_verify_max_len` of its config): those of the model, times the factor of
/// scalings that don't have it in them yet. Of YaRN version 0.11 multiplies those of pretraining, 0.32 nothing.
fn limit(config: &Config, json: &Value) -> usize {
    let positions = config.max_position_embeddings;
    let scaled = match config.rope.scaling {
        Scaling::Linear { factor } | Scaling::Dynamic { factor, .. } => positions as f64 * factor,
        Scaling::Yarn { factor, original, .. } => original as f64 * factor,
        Scaling::None | Scaling::Llama3 { .. } => 0.0,
    };
    let allowed = json["model_max_length"].as_u64().map_or(0, |length| length as usize);
    positions.max(scaled as usize).max(allowed)
}

/// What the user asks for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted {
    /// So many GPUs.
    pub gpus: Option<usize>,
    /// Sequences this long.
    pub max_model_len: Option<usize>,
}

/// What is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sizing {
    /// GPUs, all of one tensor-parallel group.
    pub gpus: usize,
    /// Longest sequence.
    pub max_model_len: usize,
    /// Tokens that the cache holds, of all sequences.
    pub cache_tokens: usize,
    /// GiB of weights on each GPU.
    pub weights_gib: f64,
}

/// The fewest GPUs that hold the model and a sequence of the wanted length, or of a comfortable one; the length is then as
/// much as the model and the memory allow.
///
/// # Errors
/// If heads can't be dealt out to the GPUs asked for, if the model has no such positions, or the memory doesn't do.
pub fn size(demand: &Demand, gpu: (&str, f64), wanted: Wanted) -> Result<Sizing> {
    if let Some(asked) = wanted.max_model_len.filter(|asked| *asked > demand.limit) {
        return Err(Error::TooLong { asked, limit: demand.limit });
    }
    let room = gpu.1 * UTILISATION;
    let length = wanted.max_model_len.unwrap_or(demand.longest.min(COMFORT));
    let tokens = |gpus: usize| ((room - demand.fixed(gpus)) / demand.token(gpus)).max(0.0) as usize;
    let divides = |gpus: &usize| demand.heads.is_multiple_of(*gpus);
    let gpus = match wanted.gpus {
        Some(gpus) if gpus == 0 || !divides(&gpus) => return Err(Error::Heads { heads: demand.heads, gpus }),
        Some(gpus) => gpus,
        None => {
            let counts = || (0..).map(|power| 1 << power).take_while(|gpus| *gpus <= MOST).filter(divides);
            let last = counts().last().unwrap_or(1);
            counts().find(|gpus| tokens(*gpus) >= length).unwrap_or(last)
        }
    };
    let cache_tokens = tokens(gpus);
    // Without a wish, anything that serves a short conversation is better than a refusal.
    let least = wanted.max_model_len.unwrap_or(length.min(2048));
    if cache_tokens < least {
        let needed = demand.fixed(gpus) + demand.token(gpus) * least as f64;
        return Err(Error::TooLarge { needed, gpus, gpu: gpu.0.to_owned(), room });
    }
    Ok(Sizing {
        gpus,
        max_model_len: wanted.max_model_len.unwrap_or(demand.longest.min(cache_tokens)),
        cache_tokens,
        weights_gib: demand.weights as f64 * ELEMENT / gpus as f64 / GIB,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Qwen3-32B: 32.76 thousand million weights, 64 blocks, 8 key heads of 128.
    const QWEN3_32B: Demand = Demand {
        weights: 32_762_123_264,
        adapters: 2 * 67_108_864,
        layers: 64,
        heads: 64,
        kv_heads: 8,
        head_dim: 128,
        longest: 40_960,
        limit: 40_960,
    };

    #[test]
    fn a_32b_model_takes_two_l20s_as_in_the_seed() {
        let sizing = size(&QWEN3_32B, ("L20", 45.0), Wanted::default()).unwrap();
        assert_eq!((sizing.gpus, sizing.max_model_len), (2, 40_960));
        assert!((sizing.weights_gib - 30.5).abs() < 0.1, "{sizing:?}");
        // By hand: 40.5 GiB a card, 30.51 of weights, 0.12 of adapters, 3 of allowance; 128 KiB a token.
        assert!((55_000..57_500).contains(&sizing.cache_tokens), "{sizing:?}");
        let seed = Wanted { max_model_len: Some(36_000), gpus: Some(2) };
        assert_eq!(size(&QWEN3_32B, ("L20", 45.0), seed).unwrap().max_model_len, 36_000);
        assert_eq!(size(&QWEN3_32B, ("H200", 140.4), Wanted::default()).unwrap().gpus, 1);
    }

    #[test]
    fn what_does_not_fit_is_told() {
        let one = Wanted { gpus: Some(1), ..Wanted::default() };
        let error = size(&QWEN3_32B, ("L20", 45.0), one).unwrap_err().to_string();
        assert!(error.starts_with("the model needs 64.8 GiB a GPU on 1 of L20, 40.5 GiB are there"), "{error}");
        let three = Wanted { gpus: Some(3), ..Wanted::default() };
        assert!(matches!(size(&QWEN3_32B, ("L20", 45.0), three), Err(Error::Heads { heads: 64, gpus: 3 })));
        let long = Wanted { max_model_len: Some(10_000_000), ..Wanted::default() };
        let stretched = Demand { limit: 10_000_000, ..QWEN3_32B };
        assert!(matches!(size(&stretched, ("L20", 45.0), long), Err(Error::TooLarge { gpus: 8, .. })));
        let error = size(&QWEN3_32B, ("L20", 45.0), long).unwrap_err().to_string();
        assert!(error.starts_with("--max-model-len 10000000: vLLM doesn't start above 40960"), "{error}");
    }

    #[test]
    fn positions_end_where_vllm_says() {
        let of = |more: Value| {
            let mut json = json!({
                "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 256,
                "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024,
            });
            json.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            Demand::new((&Config::from_json(&json).unwrap(), &json), 1, 1).limit
        };
        assert_eq!(of(json!({})), 1024);
        assert_eq!(of(json!({"model_max_length": 4096})), 4096);
        assert_eq!(of(json!({"rope_scaling": {"rope_type": "linear", "factor": 2.0}})), 2048);
        let yarn = |positions: usize| {
            json!({"max_position_embeddings": positions, "rope_scaling": {
                "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024,
            }})
        };
        assert_eq!((of(yarn(1024)), of(yarn(4096))), (4096, 4096));
        let llama3 = json!({"max_position_embeddings": 8192, "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 1024,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        }});
        assert_eq!(of(llama3), 8192);
    }

    #[test]
    fn key_heads_are_never_cut() {
        let few = Demand { kv_heads: 2, ..QWEN3_32B };
        assert_eq!(few.token(2), few.token(8));
    }
}
