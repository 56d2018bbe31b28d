//! A model's configuration: `config.json` of a Hugging Face folder, checked once.
//!
//! Llama 2/3.x, Mistral, Qwen2/2.5, Qwen3 and SmolLM2 (a Llama), and the mixtures of experts Qwen3-MoE, Qwen2-MoE and Mixtral
//! are one decoder with a few switches; the switches of a family are a row of [`FAMILIES`].

use crate::ModelError;
use crate::rope::{self, RopeConfig};
use ferrotune_config::plan::RopeScaling;
use serde_json::{Value, json};

/// How a family differs from plain Llama.
struct Family {
    model_type: &'static str,
    /// Bias on q, k and v whatever the file says.
    qkv_bias: bool,
    /// RMSNorm on each head of q and k.
    qk_norm: bool,
    /// `sliding_window` counts only with `use_sliding_window`, and from block `max_window_layers` on.
    optional_window: bool,
    rms_norm_eps: f64,
    /// Experts in place of the MLP.
    experts: Option<&'static MoeNames>,
}

/// How a family of mixtures of experts calls its parts.
#[derive(Debug, PartialEq, Eq)]
pub struct MoeNames {
    /// The module in a block.
    pub module: &'static str,
    /// Gate, up and down projection of an expert.
    pub projections: [&'static str; 3],
}

const QWEN: MoeNames = MoeNames { module: "mlp", projections: ["gate_proj", "up_proj", "down_proj"] };
const MIXTRAL: MoeNames = MoeNames { module: "block_sparse_moe", projections: ["w1", "w3", "w2"] };

const LLAMA: Family = Family {
    model_type: "llama",
    qkv_bias: false,
    qk_norm: false,
    optional_window: false,
    rms_norm_eps: 1e-6,
    experts: None,
};

const FAMILIES: [Family; 7] = [
    LLAMA,
    Family { model_type: "mistral", ..LLAMA },
    Family { model_type: "qwen2", qkv_bias: true, optional_window: true, ..LLAMA },
    Family { model_type: "qwen3", qk_norm: true, optional_window: true, ..LLAMA },
    Family { model_type: "qwen2_moe", qkv_bias: true, optional_window: true, experts: Some(&QWEN), ..LLAMA },
    Family { model_type: "qwen3_moe", qk_norm: true, optional_window: true, experts: Some(&QWEN), ..LLAMA },
    Family { model_type: "mixtral", rms_norm_eps: 1e-5, experts: Some(&MIXTRAL), ..LLAMA },
];

/// A mixture of experts in place of the MLP.
#[derive(Debug, Clone, PartialEq)]
pub struct Moe {
    /// Experts of a block.
    pub experts: usize,
    /// Experts that see a token.
    pub top_k: usize,
    /// Width inside an expert.
    pub intermediate_size: usize,
    /// A token's weights are divided by their sum (`norm_topk_prob`).
    pub normalize: bool,
    /// Width inside the expert that sees every token.
    pub shared: Option<usize>,
    /// Coefficient of the loss on the balance of experts that the file asks for; 0 for none.
    pub router_aux_loss: f64,
    /// The blocks that have experts; the others have an MLP.
    pub sparse: Vec<bool>,
    /// How the parts are called.
    pub names: &'static MoeNames,
}

/// A decoder's shape and switches.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `model_type` of config.json.
    pub model_type: String,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f32,
    /// The head reads the embedding's weights.
    pub tie_word_embeddings: bool,
    /// The head has a copy of its own of tied weights: an adapter changes one of the two.
    pub separate_head: bool,
    /// Bias on q, k, v.
    pub qkv_bias: bool,
    /// Bias on o.
    pub o_bias: bool,
    /// Bias in the MLP.
    pub mlp_bias: bool,
    /// RMSNorm on each head of q and k.
    pub qk_norm: bool,
    /// Keys further back than this are not seen, per block.
    pub sliding_window: Vec<Option<usize>>,
    /// Longest sequence the model was made for.
    pub max_position_embeddings: usize,
    /// Rotary position embedding.
    pub rope: RopeConfig,
    /// Experts.
    pub moe: Option<Moe>,
}

impl Config {
    /// Reads `config.json`.
    pub fn from_json(json: &Value) -> Result<Self, ModelError> {
        let get = Keys { json };
        let model_type = get.text("model_type").unwrap_or_default();
        let Some(family) = FAMILIES.iter().find(|f| f.model_type == model_type) else {
            let supported: Vec<_> = FAMILIES.iter().map(|f| f.model_type).collect();
            return Err(ModelError::UnknownFamily { found: model_type, supported: supported.join(", ") });
        };
        match get.text("hidden_act").as_deref() {
            None | Some("silu" | "swish") => {}
            Some(other) => return Err(bad("hidden_act", other, "silu")),
        }
        let hidden_size = get.need("hidden_size", family)?;
        let num_attention_heads = get.need("num_attention_heads", family)?;
        let num_hidden_layers = get.need("num_hidden_layers", family)?;
        let num_key_value_heads = get.count("num_key_value_heads")?.unwrap_or(num_attention_heads);
        if !num_attention_heads.is_multiple_of(num_key_value_heads) {
            let expected = format!("a divisor of num_attention_heads ({num_attention_heads})");
            return Err(bad("num_key_value_heads", num_key_value_heads, &expected));
        }
        let head_dim = get.count("head_dim")?.unwrap_or(hidden_size / num_attention_heads);
        if !head_dim.is_multiple_of(8) || head_dim > 256 {
            return Err(bad("head_dim", head_dim, "a multiple of 8, at most 256"));
        }
        let max_position_embeddings = get.count("max_position_embeddings")?.unwrap_or(2048);
        let attention_bias = get.flag("attention_bias").unwrap_or(false);
        Ok(Self {
            hidden_size,
            intermediate_size: get.need("intermediate_size", family)?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            vocab_size: get.need("vocab_size", family)?,
            rms_norm_eps: get.number("rms_norm_eps").unwrap_or(family.rms_norm_eps) as f32,
            tie_word_embeddings: get.flag("tie_word_embeddings").unwrap_or(false),
            separate_head: false,
            qkv_bias: family.qkv_bias || attention_bias,
            o_bias: attention_bias,
            mlp_bias: get.flag("mlp_bias").unwrap_or(false),
            qk_norm: family.qk_norm,
            sliding_window: windows(&get, family, num_hidden_layers)?,
            max_position_embeddings,
            rope: RopeConfig::from_json(json, max_position_embeddings)?,
            moe: family.experts.map(|names| moe(&get, family, names, num_hidden_layers)).transpose()?,
            model_type,
        })
    }

    /// Applies a recipe's `rope_scaling` for rows of up to `cutoff` tokens, here and in `json`, the model's config.json: whoever
    /// reads the saved model shall compute what was trained. LLaMA-Factory's rule: nothing if the rows fit, otherwise a whole
    /// factor. Returns the keys that changed, as `--hf-overrides` of a server that has the old file; nothing if none did.
    ///
    /// # Errors
    /// Never for a `json` that this configuration was read from.
    pub fn stretch(&mut self, json: &mut Value, kind: RopeScaling, cutoff: usize) -> Result<Option<Value>, ModelError> {
        let trained = self.max_position_embeddings;
        if cutoff <= trained {
            return Ok(None);
        }
        let factor = cutoff.div_ceil(trained);
        let mut scaling = rope::asked_for(kind, factor, trained);
        // transformers takes the positions of pretraining from here for this one.
        if kind != RopeScaling::Dynamic {
            self.max_position_embeddings = trained * factor;
            json["max_position_embeddings"] = self.max_position_embeddings.into();
        }
        let newer = json.get("rope_parameters").is_some_and(Value::is_object);
        if !newer {
            json["rope_scaling"] = scaling.clone().into();
            json["rope_theta"] = self.rope.theta.into();
        }
        scaling.insert("rope_theta".to_owned(), self.rope.theta.into());
        if newer {
            json["rope_parameters"] = scaling.clone().into();
        }
        self.rope = RopeConfig::from_json(json, trained)?;
        let longest = self.max_position_embeddings;
        Ok(Some(json!({"rope_scaling": scaling, "max_position_embeddings": longest})))
    }

    /// The experts of a block, if it has some.
    pub fn experts(&self, layer: usize) -> Option<&Moe> {
        self.moe.as_ref().filter(|moe| moe.sparse[layer])
    }

    /// Parameters of the blocks' matrices that a token is multiplied with, the head excluded: of experts those that see it.
    pub fn block_parameters(&self) -> usize {
        let qkv = self.hidden_size * self.head_dim * (self.num_attention_heads + 2 * self.num_key_value_heads);
        let o = self.head_dim * self.num_attention_heads * self.hidden_size;
        let mlp = |layer: usize| match self.experts(layer) {
            None => 3 * self.intermediate_size,
            Some(moe) => 3 * (moe.top_k * moe.intermediate_size + moe.shared.unwrap_or(0)) + moe.experts,
        };
        let mlps: usize = (0..self.num_hidden_layers).map(mlp).sum();
        self.num_hidden_layers * (qkv + o) + self.hidden_size * mlps
    }
}

/// The experts of a family that has some.
fn moe(get: &Keys<'_>, family: &Family, names: &'static MoeNames, layers: usize) -> Result<Moe, ModelError> {
    // transformers 5 writes `num_local_experts` for all; before, Qwen's was `num_experts`.
    let experts = match get.count("num_experts")? {
        Some(count) => count,
        None => get.need("num_local_experts", family)?,
    };
    let top_k = get.need("num_experts_per_tok", family)?;
    if experts > MOST_EXPERTS {
        return Err(bad("num_experts", experts, &format!("at most {MOST_EXPERTS} experts")));
    }
    if top_k > experts {
        return Err(bad("num_experts_per_tok", top_k, &format!("at most the number of experts ({experts})")));
    }
    let is_mixtral = *names == MIXTRAL;
    let width = if is_mixtral { "intermediate_size" } else { "moe_intermediate_size" };
    let has_shared = family.model_type == "qwen2_moe";
    let shared = has_shared.then(|| get.need("shared_expert_intermediate_size", family)).transpose()?;
    let step = get.count("decoder_sparse_step")?.unwrap_or(1);
    let plain = get.json.get("mlp_only_layers").and_then(Value::as_array);
    let is_plain = |layer: usize| plain.is_some_and(|list| list.iter().any(|n| n.as_u64() == Some(layer as u64)));
    let is_sparse = |layer: usize| !is_plain(layer) && (layer + 1).is_multiple_of(step);
    Ok(Moe {
        experts,
        top_k,
        intermediate_size: get.need(width, family)?,
        normalize: is_mixtral || get.flag("norm_topk_prob").unwrap_or(false),
        shared,
        // transformers adds the loss where the file asks for the routers' logits, and never otherwise.
        router_aux_loss: match get.flag("output_router_logits") {
            Some(true) => get.coefficient("router_aux_loss_coef")?.unwrap_or(0.001),
            _ => 0.0,
        },
        sparse: (0..layers).map(is_sparse).collect(),
        names,
    })
}

/// Each block's window. `layer_types` decides where it stands; otherwise the family's own rule.
fn windows(get: &Keys<'_>, family: &Family, layers: usize) -> Result<Vec<Option<usize>>, ModelError> {
    // transformers writes 0 for a window that isn't used.
    let none = family.model_type == "llama" || get.number("sliding_window") == Some(0.0);
    let window = if none { None } else { get.count("sliding_window")? };
    let used = !family.optional_window || get.flag("use_sliding_window").unwrap_or(false);
    let Some(window) = window.filter(|_| used) else { return Ok(vec![None; layers]) };
    if let Some(types) = get.json.get("layer_types").and_then(Value::as_array) {
        if types.len() != layers {
            return Err(bad("layer_types", types.len(), &format!("{layers} entries")));
        }
        return Ok(types.iter().map(|t| (t == "sliding_attention").then_some(window)).collect());
    }
    let first = if family.optional_window { get.count("max_window_layers")?.unwrap_or(28) } else { 0 };
    Ok((0..layers).map(|i| (i >= first).then_some(window)).collect())
}

fn bad(key: &str, found: impl std::fmt::Display, expected: &str) -> ModelError {
    ModelError::BadValue { key: key.into(), found: found.to_string(), expected: expected.into() }
}

/// Sizes beyond this are damage, not models; it also keeps products of sizes far from overflow.
const LARGEST: u64 = 1 << 24;

/// The same of experts, whose matrices are one parameter with two more sizes.
const MOST_EXPERTS: usize = 1 << 12;

struct Keys<'a> {
    json: &'a Value,
}

impl Keys<'_> {
    fn text(&self, key: &str) -> Option<String> {
        self.json.get(key)?.as_str().map(str::to_owned)
    }

    fn flag(&self, key: &str) -> Option<bool> {
        self.json.get(key)?.as_bool()
    }

    fn number(&self, key: &str) -> Option<f64> {
        self.json.get(key)?.as_f64()
    }

    /// A factor of 0 and above, if the key is there and not null.
    fn coefficient(&self, key: &str) -> Result<Option<f64>, ModelError> {
        match self.json.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64() {
                Some(x) if x.is_finite() && x >= 0.0 => Ok(Some(x)),
                _ => Err(bad(key, value, "a number of 0 and above")),
            },
        }
    }

    /// A positive whole number, if the key is there and not null.
    fn count(&self, key: &str) -> Result<Option<usize>, ModelError> {
        match self.json.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_u64() {
                Some(n) if (1..=LARGEST).contains(&n) => Ok(Some(n as usize)),
                _ => Err(bad(key, value, &format!("a whole number from 1 to {LARGEST}"))),
            },
        }
    }

    fn need(&self, key: &'static str, family: &Family) -> Result<usize, ModelError> {
        self.count(key)?.ok_or_else(|| ModelError::MissingKey { key, family: family.model_type.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scaling;

    fn tiny() -> Value {
        json!({"model_type": "qwen2", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
               "num_attention_heads": 4, "vocab_size": 100, "sliding_window": 32, "use_sliding_window": true, "max_window_layers": 2})
    }

    /// What a recipe asks for is read back from the file, whichever of the two forms it has.
    #[test]
    fn a_stretched_model_is_written_and_read_again() {
        let newer =
            json!({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}, "max_position_embeddings": 1024});
        let older = json!({"rope_theta": 5e5, "rope_scaling": null, "max_position_embeddings": 1024});
        for keys in [newer, older] {
            for kind in [RopeScaling::Linear, RopeScaling::Dynamic, RopeScaling::Yarn, RopeScaling::Llama3] {
                let mut json = tiny();
                keys.as_object().unwrap().iter().for_each(|(key, value)| json[key] = value.clone());
                let base = json.clone();
                let mut config = Config::from_json(&json).unwrap();
                assert_eq!(config.clone().stretch(&mut json, kind, 1024).unwrap(), None);
                assert_eq!(json, base, "rows that fit change nothing");
                let overrides = config.stretch(&mut json, kind, 3000).unwrap().unwrap();
                assert_eq!(Config::from_json(&json).unwrap(), config, "{json}");
                let longest = if kind == RopeScaling::Dynamic { 1024 } else { 3072 };
                assert_eq!((config.max_position_embeddings, config.rope.theta), (longest, 5e5));
                let expected = match kind {
                    RopeScaling::Linear => Scaling::Linear { factor: 3.0 },
                    RopeScaling::Dynamic => Scaling::Dynamic { factor: 3.0, original: 1024 },
                    RopeScaling::Llama3 => Scaling::Llama3 { factor: 3.0, original: 1024, low: 1.0, high: 4.0 },
                    RopeScaling::Yarn => Scaling::Yarn {
                        factor: 3.0,
                        original: 1024,
                        beta_fast: 32.0,
                        beta_slow: 1.0,
                        attention_factor: 0.1 * 3f64.ln() + 1.0,
                        truncate: true,
                    },
                };
                assert_eq!(config.rope.scaling, expected);
                let mut served = base.clone();
                served.as_object_mut().unwrap().remove("rope_parameters");
                overrides.as_object().unwrap().iter().for_each(|(key, value)| served[key] = value.clone());
                assert_eq!(Config::from_json(&served).unwrap(), config, "{served}");
            }
        }
    }

    #[test]
    fn families_fill_in_what_the_file_leaves_out() {
        let config = Config::from_json(&tiny()).unwrap();
        assert_eq!((config.num_key_value_heads, config.head_dim, config.qkv_bias, config.o_bias), (4, 16, true, false));
        assert_eq!(config.sliding_window, [None, None, Some(32)]);
        let mut json = tiny();
        json["use_sliding_window"] = false.into();
        assert_eq!(Config::from_json(&json).unwrap().sliding_window, [None; 3]);
    }

    #[test]
    fn experts_are_checked() {
        let mut json = tiny();
        for (key, value) in
            [("model_type", json!("qwen2_moe")), ("num_experts", json!(4)), ("num_experts_per_tok", json!(2))]
        {
            json[key] = value;
        }
        json["moe_intermediate_size"] = 16.into();
        let with = |changes: &[(&str, Value)]| {
            let mut json = json.clone();
            changes.iter().for_each(|(key, value)| json[*key] = value.clone());
            Config::from_json(&json)
        };
        let message = |changes: &[(&str, Value)]| with(changes).unwrap_err().to_string();
        let shared = ("shared_expert_intermediate_size", json!(24));
        // Without it the file's shared expert would be left out in silence.
        assert_eq!(
            message(&[]),
            "config.json has no `shared_expert_intermediate_size`, which a `qwen2_moe` model needs"
        );
        assert_eq!(
            message(&[shared.clone(), ("num_experts_per_tok", json!(5))]),
            "config.json: `num_experts_per_tok` is 5, expected at most the number of experts (4)"
        );
        // Three sizes of 2^24 don't multiply.
        assert_eq!(
            message(&[shared.clone(), ("num_experts", json!(1 << 24))]),
            "config.json: `num_experts` is 16777216, expected at most 4096 experts"
        );
        let moe =
            |changes: &[(&str, Value)]| with(&[std::slice::from_ref(&shared), changes].concat()).unwrap().moe.unwrap();
        assert_eq!(moe(&[]).sparse, [true; 3]);
        assert_eq!(moe(&[("decoder_sparse_step", json!(2))]).sparse, [false, true, false]);
        assert_eq!(moe(&[("mlp_only_layers", json!([0, 7]))]).sparse, [false, true, true]);
        // transformers adds the loss on the balance of experts where the file asks for the routers' logits.
        let asked = ("output_router_logits", json!(true));
        assert_eq!(moe(&[("router_aux_loss_coef", json!(0.02))]).router_aux_loss, 0.0);
        assert_eq!(moe(&[asked.clone(), ("router_aux_loss_coef", json!(0.02))]).router_aux_loss, 0.02);
        assert_eq!(moe(std::slice::from_ref(&asked)).router_aux_loss, 0.001);
        assert_eq!(
            message(&[shared.clone(), asked, ("router_aux_loss_coef", json!(-1.0))]),
            "config.json: `router_aux_loss_coef` is -1.0, expected a number of 0 and above"
        );
    }

    #[test]
    fn what_cannot_be_is_named() {
        let message = |key: &str, value: Value| {
            let mut json = tiny();
            json[key] = value;
            Config::from_json(&json).unwrap_err().to_string()
        };
        assert_eq!(
            message("model_type", json!("gpt2")),
            "model type `gpt2` is not supported; supported are llama, mistral, qwen2, qwen3, qwen2_moe, qwen3_moe, mixtral"
        );
        assert_eq!(
            message("hidden_size", json!(null)),
            "config.json has no `hidden_size`, which a `qwen2` model needs"
        );
        assert_eq!(
            message("hidden_size", json!(-3)),
            "config.json: `hidden_size` is -3, expected a whole number from 1 to 16777216"
        );
        assert_eq!(
            message("num_key_value_heads", json!(3)),
            "config.json: `num_key_value_heads` is 3, expected a divisor of num_attention_heads (4)"
        );
        assert_eq!(message("hidden_act", json!("gelu")), "config.json: `hidden_act` is gelu, expected silu");
    }
}
