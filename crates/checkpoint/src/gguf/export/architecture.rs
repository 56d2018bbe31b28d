//! A model's shape as metadata: the other way of [`super::super::config`].

use super::mix::FileType;
use crate::gguf::config::llama3_factors;
use crate::gguf::value::Value;
use crate::region::HeadOrder;

/// Version of the block formats, as ggml has it.
const QUANTISATION_VERSION: u32 = 2;

/// A decoder's shape and switches, as far as a GGUF file tells them.
#[derive(Debug, Clone, PartialEq)]
pub struct Architecture {
    /// `model_type` of config.json.
    pub model_type: String,
    /// Rows of the embedding.
    pub vocabulary: usize,
    /// Blocks.
    pub blocks: usize,
    /// Longest sequence the model was made for.
    pub context: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width inside the MLP.
    pub inner: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Added to the mean square in RMSNorm.
    pub eps: f32,
    /// Base of the rotary frequencies.
    pub theta: f64,
    /// Position scaling.
    pub scaling: Scaling,
    /// Each block's sliding window.
    pub windows: Vec<Option<usize>>,
    /// Experts in place of the MLP.
    pub experts: Option<Experts>,
}

/// Position scaling.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scaling {
    /// None.
    None,
    /// Positions divided by a factor.
    Linear {
        /// Stretch.
        factor: f64,
    },
    /// The base grows with the sequence.
    Dynamic,
    /// YaRN.
    Yarn {
        /// Stretch.
        factor: f64,
        /// Positions of pretraining.
        original: usize,
        /// Rotations above which a dimension is kept.
        beta_fast: f64,
        /// Rotations below which it is divided.
        beta_slow: f64,
        /// It is as llama.cpp computes it: the ramp's ends whole, attention sharper by `0.1 ln(factor) + 1`.
        is_usual: bool,
    },
    /// Llama 3's rule on wavelengths.
    Llama3 {
        /// Stretch.
        factor: f64,
        /// Positions of pretraining.
        original: usize,
        /// Wavelengths above `original / low` are divided.
        low: f64,
        /// Wavelengths below `original / high` are kept.
        high: f64,
    },
}

/// A mixture of experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Experts {
    /// Experts of a block.
    pub count: usize,
    /// Experts that see a token.
    pub used: usize,
    /// Width inside an expert.
    pub inner: usize,
    /// Width inside the expert that sees every token.
    pub shared: Option<usize>,
    /// A token's weights are divided by their sum.
    pub normalize: bool,
    /// Every block has experts.
    pub everywhere: bool,
}

impl Architecture {
    /// `general.architecture`.
    pub(super) fn name(&self) -> Option<&'static str> {
        Some(match self.model_type.as_str() {
            "llama" | "mistral" | "mixtral" => "llama",
            "qwen2" => "qwen2",
            "qwen3" => "qwen3",
            "qwen2_moe" => "qwen2moe",
            "qwen3_moe" => "qwen3moe",
            _ => return None,
        })
    }

    /// Whether llama.cpp computes it as a Llama.
    pub(super) fn is_llama(&self) -> bool {
        self.name() == Some("llama")
    }

    /// What llama.cpp can't compute, or does otherwise.
    pub(super) fn check(&self, notes: &mut Vec<String>) -> Result<(), String> {
        let name =
            self.name().ok_or_else(|| format!("llama.cpp's layout of '{}' is not known here", self.model_type))?;
        match self.scaling {
            Scaling::Llama3 { .. } if name != "llama" => {
                return Err(format!(
                    "llama.cpp knows Llama 3's position scaling for Llama only, not for {name}; retrain with rope_scaling: yarn"
                ));
            }
            Scaling::Yarn { is_usual: false, .. } => {
                return Err(
                    "its YaRN scaling has an attention_factor or a truncate that llama.cpp can't be told".into()
                );
            }
            Scaling::Dynamic => notes.push(format!(
                "llama.cpp has no dynamic position scaling: beyond {} tokens it answers otherwise than the trainer",
                self.context
            )),
            _ => {}
        }
        if let Some(window) = self.windows.iter().flatten().min().filter(|window| **window < self.context) {
            notes.push(format!(
                "llama.cpp lets {name} see further back than its window of {window} tokens; keep contexts within it"
            ));
        }
        let Some(experts) = &self.experts else { return Ok(()) };
        if !experts.everywhere {
            return Err(format!(
                "some blocks have an MLP in place of experts, which llama.cpp doesn't know for {name}"
            ));
        }
        if experts.normalize == (name == "qwen2moe") {
            return Err(format!(
                "norm_topk_prob is {}, and llama.cpp always computes {name} as if it were {}",
                experts.normalize, !experts.normalize
            ));
        }
        if name == "qwen2moe" && experts.shared.is_none() {
            return Err("llama.cpp wants a shared expert in qwen2moe".into());
        }
        Ok(())
    }

    /// The keys in the order of llama.cpp's converter.
    pub(super) fn metadata(&self, model: &str, kind: FileType) -> Vec<(String, Value)> {
        let name = self.name().unwrap_or_default();
        let count = |n: usize| Value::U32(u32::try_from(n).unwrap_or(u32::MAX));
        let mut keys: Vec<(String, Value)> = vec![
            ("general.architecture".into(), name.into()),
            ("general.type".into(), "model".into()),
            ("general.name".into(), model.into()),
        ];
        let mut own = |key: &str, value: Value| keys.push((format!("{name}.{key}"), value));
        own("block_count", count(self.blocks));
        own("context_length", count(self.context));
        own("embedding_length", count(self.hidden));
        own("feed_forward_length", count(self.inner));
        own("attention.head_count", count(self.heads));
        own("attention.head_count_kv", count(self.kv_heads));
        self.scaling_keys(&mut own);
        own("rope.freq_base", Value::F32(self.theta as f32));
        own("attention.layer_norm_rms_epsilon", Value::F32(self.eps));
        if let Some(window) =
            self.windows.first().copied().flatten().filter(|_| self.windows.iter().all(Option::is_some))
        {
            own("attention.sliding_window", count(window));
        }
        if let Some(experts) = &self.experts {
            own("expert_count", count(experts.count));
            own("expert_used_count", count(experts.used));
            // Mixtral's is the width of its MLP.
            if name != "llama" {
                own("expert_feed_forward_length", count(experts.inner));
            }
            if let Some(shared) = experts.shared {
                own("expert_shared_feed_forward_length", count(shared));
            }
        }
        own("attention.key_length", count(self.head_dim));
        own("attention.value_length", count(self.head_dim));
        own("rope.dimension_count", count(self.head_dim));
        own("vocab_size", count(self.vocabulary));
        keys.push(("general.file_type".into(), Value::U32(kind.number())));
        keys.push(("general.quantization_version".into(), Value::U32(QUANTISATION_VERSION)));
        keys
    }

    fn scaling_keys(&self, own: &mut dyn FnMut(&str, Value)) {
        match self.scaling {
            Scaling::None | Scaling::Dynamic => {}
            Scaling::Linear { factor } => {
                own("rope.scaling.type", "linear".into());
                own("rope.scaling.factor", Value::F32(factor as f32));
            }
            Scaling::Yarn { factor, original, beta_fast, beta_slow, .. } => {
                own("rope.scaling.type", "yarn".into());
                own("rope.scaling.factor", Value::F32(factor as f32));
                own("rope.scaling.original_context_length", Value::U32(original as u32));
                own("rope.scaling.yarn_beta_fast", Value::F32(beta_fast as f32));
                own("rope.scaling.yarn_beta_slow", Value::F32(beta_slow as f32));
            }
            // The factors are a tensor; this is for readers that want the rule back.
            Scaling::Llama3 { original, .. } => {
                own("rope.scaling.original_context_length", Value::U32(original as u32))
            }
        }
    }

    /// Divisors of the rotary frequencies, where a tensor of the file holds them.
    pub(super) fn rope_factors(&self) -> Option<Vec<f32>> {
        let Scaling::Llama3 { factor, original, low, high } = self.scaling else { return None };
        let factors = llama3_factors(self.head_dim, self.theta, factor, (original as f64, low, high));
        Some(factors.map(|factor| factor as f32).collect())
    }

    /// The order of rows of query and key projections, where it isn't Hugging Face's.
    pub(super) fn order(&self, name: &str, shape: &[usize]) -> Option<HeadOrder> {
        let is_turned = self.is_llama() && (name.contains(".q_proj.") || name.contains(".k_proj."));
        is_turned.then(|| HeadOrder { head_dim: self.head_dim, row: shape[1..].iter().product() })
    }
}
