//! `adapter_config.json` of PEFT's LoRA.
//!
//! Keys, their order (sorted), indentation and defaults are those of PEFT 0.18; keys this program
//! doesn't know are kept as they are, so an adapter that goes on training loses none.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The configuration of a LoRA adapter. A key that is absent from a file has PEFT's default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AdapterConfig {
    /// `alpha` of single modules, by the end of their name.
    pub alpha_pattern: Map<String, Value>,
    /// The model the adapter was trained on.
    pub base_model_name_or_path: Option<String>,
    /// Which biases train: `none`, `all` or `lora_only`.
    pub bias: String,
    /// Weights are stored as [in, out] (GPT-2).
    pub fan_in_fan_out: bool,
    /// The adapter is loaded frozen.
    pub inference_mode: bool,
    /// How A and B were initialised: `true` is PEFT's default, a string a named method.
    pub init_lora_weights: Value,
    /// `alpha`; see [`AdapterConfig::scaling`].
    pub lora_alpha: Number,
    /// B matrices with a bias.
    pub lora_bias: bool,
    /// Probability that an input element is dropped.
    pub lora_dropout: f64,
    /// Modules saved whole.
    pub modules_to_save: Option<Vec<String>>,
    /// `LORA`.
    pub peft_type: String,
    /// The PEFT version that the file conforms to.
    pub peft_version: String,
    /// Rank.
    pub r: usize,
    /// Rank of single modules, by the end of their name.
    pub rank_pattern: Map<String, Value>,
    /// Revision of the base model.
    pub revision: Option<String>,
    /// Modules with an adapter.
    pub target_modules: TargetModules,
    /// `CAUSAL_LM`.
    pub task_type: Option<String>,
    /// Weight-decomposed adaptation.
    pub use_dora: bool,
    /// Scale by `alpha / sqrt(r)`.
    pub use_rslora: bool,
    /// Everything else, as PEFT writes it.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// A number that stays whole if it was written so.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Number {
    /// Without a decimal point.
    Whole(i64),
    /// With one.
    Real(f64),
}

impl Number {
    /// Its value.
    pub fn get(self) -> f64 {
        match self {
            Self::Whole(value) => value as f64,
            Self::Real(value) => value,
        }
    }
}

impl From<f64> for Number {
    fn from(value: f64) -> Self {
        // 2^53: up to there every whole f64 is exact.
        if value.fract() == 0.0 && value.abs() < 9_007_199_254_740_992.0 {
            Self::Whole(value as i64)
        } else {
            Self::Real(value)
        }
    }
}

/// Which modules have an adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TargetModules {
    /// Modules whose name ends in one of these.
    Names(Vec<String>),
    /// A regular expression, or `all-linear`.
    Pattern(String),
    /// Not stated.
    Unset(()),
}

impl Default for AdapterConfig {
    fn default() -> Self {
        Self {
            alpha_pattern: Map::new(),
            base_model_name_or_path: None,
            bias: "none".into(),
            fan_in_fan_out: false,
            inference_mode: true,
            init_lora_weights: true.into(),
            lora_alpha: Number::Whole(8),
            lora_bias: false,
            lora_dropout: 0.0,
            modules_to_save: None,
            peft_type: "LORA".into(),
            peft_version: "0.18.1".into(),
            r: 8,
            rank_pattern: Map::new(),
            revision: None,
            target_modules: TargetModules::Unset(()),
            task_type: Some("CAUSAL_LM".into()),
            use_dora: false,
            use_rslora: false,
            other: Map::new(),
        }
    }
}

/// PEFT 0.18's keys that this program never changes, with their defaults.
fn defaults() -> [(&'static str, Value); 17] {
    [
        ("alora_invocation_tokens", Value::Null),
        ("arrow_config", Value::Null),
        ("auto_mapping", Value::Null),
        ("corda_config", Value::Null),
        ("ensure_weight_tying", false.into()),
        ("eva_config", Value::Null),
        ("exclude_modules", Value::Null),
        ("layer_replication", Value::Null),
        ("layers_pattern", Value::Null),
        ("layers_to_transform", Value::Null),
        ("loftq_config", Map::new().into()),
        ("megatron_config", Value::Null),
        ("megatron_core", "megatron.core".into()),
        ("qalora_group_size", 16.into()),
        ("target_parameters", Value::Null),
        ("trainable_token_indices", Value::Null),
        ("use_qalora", false.into()),
    ]
}

impl AdapterConfig {
    /// The number that `B A x` is multiplied with for a module: `alpha / r`, or `alpha / sqrt(r)`
    /// with rsLoRA; `rank_pattern` and `alpha_pattern` are looked up first.
    pub fn scaling(&self, module: &str) -> f64 {
        let pattern = |patterns: &Map<String, Value>| pattern(patterns, module)?.as_f64();
        let alpha = pattern(&self.alpha_pattern).unwrap_or(self.lora_alpha.get());
        let rank = self.rank(module) as f64;
        match self.use_rslora {
            true => alpha / rank.sqrt(),
            false => alpha / rank,
        }
    }

    /// The rank of a module.
    pub fn rank(&self, module: &str) -> usize {
        let own = pattern(&self.rank_pattern, module).and_then(Value::as_u64);
        own.map_or(self.r, |rank| rank as usize)
    }

    /// The file's text, as PEFT writes it.
    pub fn to_json(&self) -> String {
        let value = serde_json::to_value(self).expect("plain data always serialises");
        let mut map = match value {
            Value::Object(map) => map,
            _ => unreachable!("a struct serialises to an object"),
        };
        for (key, default) in defaults() {
            map.entry(key).or_insert(default);
        }
        map.sort_keys();
        format!("{:#}", Value::Object(map))
    }
}

/// The entry of the first pattern that a module's name ends in, at a dot.
fn pattern<'a>(patterns: &'a Map<String, Value>, module: &str) -> Option<&'a Value> {
    let ends = |key: &str| {
        let rest = module.strip_suffix(key);
        rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    patterns.iter().find(|(key, _)| ends(key)).map(|(_, value)| value)
}

/// The first key of a pattern that isn't a plain name: regular expressions are PEFT's extension.
pub(super) fn irregular_pattern(config: &AdapterConfig) -> Option<&str> {
    let plain = |key: &str| key.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    let keys = config.rank_pattern.keys().chain(config.alpha_pattern.keys());
    keys.map(String::as_str).find(|key| !plain(key))
}

/// Ways to initialise that take something out of the base weights, to which PEFT does it again when it loads. LoRA-GA does, too,
/// but wants a gradient for it: without one PEFT adds the pairs to the weights as they are, and so does everyone.
const CHANGES_BASE: [&str; 4] = ["pissa", "olora", "corda", "loftq"];

/// Keys that give the pairs another meaning than `W + s B A`.
const VARIANTS: [&str; 9] = [
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "monteclora_config",
    // Pairs on parameters instead of layers: all experts of a block in one.
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
];

/// What makes the adapter mean something else than a low-rank update of the model's own weights, and the cure.
pub(super) fn other_meaning(config: &AdapterConfig) -> Option<(String, &'static str)> {
    let init = config.init_lora_weights.as_str().unwrap_or_default();
    if CHANGES_BASE.iter().any(|kind| init.to_ascii_lowercase().starts_with(kind)) {
        let cure = "it adds to weights that this initialisation changed, not to the model's: convert it (LLaMA-Factory's \
                    pissa_convert, PEFT's path_initial_model_for_weight_conversion), or, if model_name_or_path is the changed \
                    model, write true there";
        return Some((format!("init_lora_weights is {init}"), cure));
    }
    let unused = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        _ => false,
    };
    let used = |key: &&&str| config.other.get(**key).is_some_and(|value| !unused(value));
    let cure = "only plain LoRA, rsLoRA and DoRA are supported: merge it with PEFT's merge_and_unload";
    VARIANTS.iter().find(used).map(|key| (format!("{key} is set"), cure))
}
