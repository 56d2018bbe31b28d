//! Models by shape alone: what a step costs depends on nothing else.

use serde_json::{Value, json};

/// A model's shape.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    hidden: usize,
    intermediate: usize,
    pub(crate) layers: usize,
    heads: usize,
    key_value_heads: usize,
    head: usize,
    vocabulary: usize,
    tied: bool,
    /// Experts, those that see a token, and their width.
    experts: Option<[usize; 3]>,
    /// Llama's form and not Qwen3's, whose heads have norms.
    llama: bool,
}

const fn dense(name: &'static str, [hidden, intermediate, layers, heads]: [usize; 4], tied: bool) -> Shape {
    Shape {
        name,
        hidden,
        intermediate,
        layers,
        heads,
        key_value_heads: 8,
        head: 128,
        vocabulary: 151_936,
        tied,
        experts: None,
        llama: false,
    }
}

/// Those of the records, as their config.json has them.
pub(crate) const SHAPES: [Shape; 5] = [
    Shape {
        key_value_heads: 3,
        head: 64,
        vocabulary: 49_152,
        llama: true,
        ..dense("smollm2-135m", [576, 1536, 30, 9], true)
    },
    dense("qwen3-0.6b", [1024, 3072, 28, 16], true),
    dense("qwen3-8b", [4096, 12_288, 36, 32], false),
    Shape { key_value_heads: 4, experts: Some([128, 8, 768]), ..dense("qwen3-30b-a3b", [2048, 6144, 48, 32], false) },
    dense("qwen3-32b", [5120, 25_600, 64, 64], false),
];

impl Shape {
    /// The same form with small numbers, for an interpreter.
    pub(crate) fn reduced(self) -> Self {
        let heads = self.heads / self.key_value_heads;
        let experts = self.experts.map(|_| [4, 2, 24]);
        Self {
            hidden: 96,
            intermediate: 96,
            layers: 2,
            heads,
            key_value_heads: 1,
            head: 16,
            vocabulary: 211,
            experts,
            ..self
        }
    }

    pub(crate) fn with_layers(self, layers: usize) -> Self {
        Self { layers, ..self }
    }

    /// The config.json, for peers as for us.
    pub(crate) fn config(&self) -> Value {
        let mut config = json!({
            "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_size": self.hidden,
            "intermediate_size": self.intermediate, "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads, "head_dim": self.head, "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied, "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0,
            "max_position_embeddings": 40_960, "attention_bias": false, "torch_dtype": "bfloat16",
        });
        if self.llama {
            config["model_type"] = json!("llama");
            config["architectures"] = json!(["LlamaForCausalLM"]);
            config["rms_norm_eps"] = json!(1e-5);
            config["rope_theta"] = json!(100_000.0);
            config["max_position_embeddings"] = json!(8192);
        }
        if let Some([experts, each, width]) = self.experts {
            config["model_type"] = json!("qwen3_moe");
            config["architectures"] = json!(["Qwen3MoeForCausalLM"]);
            config["num_experts"] = json!(experts);
            config["num_experts_per_tok"] = json!(each);
            config["moe_intermediate_size"] = json!(width);
            config["norm_topk_prob"] = json!(true);
            config["decoder_sparse_step"] = json!(1);
            config["mlp_only_layers"] = json!([]);
        }
        config
    }
}
