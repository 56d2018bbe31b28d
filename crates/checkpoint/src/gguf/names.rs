//! Tensor names of GGUF files, and what they are called in Hugging Face's models.

/// Names inside a block, after `blk.N.` and `model.layers.N.`.
const IN_BLOCK: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// Names of experts in Qwen's mixtures. All experts of a block are one tensor, as `experts.gate_proj`, where Hugging Face has
/// one for each.
const QWEN_EXPERTS: [(&str, &str); 8] = [
    ("ffn_gate_inp", "mlp.gate"),
    ("ffn_gate_exps", "mlp.experts.gate_proj"),
    ("ffn_up_exps", "mlp.experts.up_proj"),
    ("ffn_down_exps", "mlp.experts.down_proj"),
    ("ffn_gate_inp_shexp", "mlp.shared_expert_gate"),
    ("ffn_gate_shexp", "mlp.shared_expert.gate_proj"),
    ("ffn_up_shexp", "mlp.shared_expert.up_proj"),
    ("ffn_down_shexp", "mlp.shared_expert.down_proj"),
];

/// Those of Mixtral.
const MIXTRAL_EXPERTS: [(&str, &str); 4] = [
    ("ffn_gate_inp", "block_sparse_moe.gate"),
    ("ffn_gate_exps", "block_sparse_moe.experts.w1"),
    ("ffn_up_exps", "block_sparse_moe.experts.w3"),
    ("ffn_down_exps", "block_sparse_moe.experts.w2"),
];

/// Names outside the blocks.
const OUTSIDE: [(&str, &str); 3] =
    [("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// The factors by which Llama 3 divides rotation frequencies; part of the configuration in Hugging
/// Face's layout, so no tensor there.
pub(crate) const ROPE_FREQS: &str = "rope_freqs.weight";

/// Hugging Face's name of a tensor, or `None` if this is no tensor of a known family. Mixtral shares its names with Llama but
/// for its experts.
pub(crate) fn to_hugging_face(name: &str, is_llama: bool) -> Option<String> {
    let (stem, kind) = name.rsplit_once('.')?;
    if !matches!(kind, "weight" | "bias") {
        return None;
    }
    let find = |table: &[(&str, &'static str)], stem: &str| {
        table.iter().find(|(gguf, _)| *gguf == stem).map(|(_, name)| *name)
    };
    if let Some(name) = find(&OUTSIDE, stem) {
        return Some(format!("{name}.{kind}"));
    }
    let (block, stem) = stem.strip_prefix("blk.")?.split_once('.')?;
    let block: u32 = block.parse().ok()?;
    let experts = if is_llama { &MIXTRAL_EXPERTS[..] } else { &QWEN_EXPERTS[..] };
    let module = find(&IN_BLOCK, stem).or_else(|| find(experts, stem))?;
    Some(format!("model.layers.{block}.{module}.{kind}"))
}

/// GGUF's name of a tensor that has Hugging Face's, the experts of a block being one tensor; the other way of
/// [`to_hugging_face`].
pub(crate) fn from_hugging_face(name: &str) -> Option<String> {
    let (module, kind) = name.rsplit_once('.').filter(|(_, kind)| matches!(*kind, "weight" | "bias"))?;
    let find = |table: &[(&'static str, &str)], module: &str| {
        table.iter().find(|(_, name)| *name == module).map(|(gguf, _)| *gguf)
    };
    if let Some(stem) = find(&OUTSIDE, module) {
        return Some(format!("{stem}.{kind}"));
    }
    let (block, module) = module.strip_prefix("model.layers.")?.split_once('.')?;
    let block: u32 = block.parse().ok()?;
    let stem = [&IN_BLOCK[..], &QWEN_EXPERTS, &MIXTRAL_EXPERTS].iter().find_map(|table| find(table, module))?;
    Some(format!("blk.{block}.{stem}.{kind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let cases = [
            ("token_embd.weight", Some("model.embed_tokens.weight")),
            ("output.weight", Some("lm_head.weight")),
            ("blk.0.attn_q.weight", Some("model.layers.0.self_attn.q_proj.weight")),
            ("blk.31.attn_k.bias", Some("model.layers.31.self_attn.k_proj.bias")),
            ("blk.7.attn_q_norm.weight", Some("model.layers.7.self_attn.q_norm.weight")),
            ("blk.7.ffn_down.weight", Some("model.layers.7.mlp.down_proj.weight")),
            ("blk.7.ffn_gate_exps.weight", Some("model.layers.7.mlp.experts.gate_proj.weight")),
            ("blk.7.ffn_gate_inp_shexp.weight", Some("model.layers.7.mlp.shared_expert_gate.weight")),
            ("blk.7.ffn_gate_bexps.weight", None),
            ("blk.x.ffn_down.weight", None),
            ("blk.7.ffn_down.scale", None),
            ("rope_freqs.weight", None),
        ];
        for (gguf, expected) in cases {
            assert_eq!(to_hugging_face(gguf, false).as_deref(), expected, "{gguf}");
            assert_eq!(expected.map(from_hugging_face), expected.map(|_| Some(gguf.to_owned())), "{gguf}");
        }
        let mixtral = to_hugging_face("blk.0.ffn_down_exps.weight", true);
        assert_eq!(mixtral.as_deref(), Some("model.layers.0.block_sparse_moe.experts.w2.weight"));
        assert_eq!(mixtral.as_deref().and_then(from_hugging_face).as_deref(), Some("blk.0.ffn_down_exps.weight"));
        assert_eq!(to_hugging_face("blk.0.ffn_gate_shexp.weight", true), None);
        for other in ["model.layers.x.mlp.down_proj.weight", "model.layers.0.mlp.experts.3.up_proj.weight", "lm_head"] {
            assert_eq!(from_hugging_face(other), None, "{other}");
        }
    }
}
