//! Which parameters train: a recipe's choice checked against the modules that the model has.

use crate::{Config, ModelError, Unmet};
use ferrotune_config::plan::{LoraPlan, LoraTargets, Tuning};
use std::collections::BTreeSet;

/// Linear modules of attention, by the names that recipes use, in the order of the block.
pub const ATTENTION_LINEARS: [&str; 4] = ["q_proj", "k_proj", "v_proj", "o_proj"];
/// Those of an MLP.
const MLP_LINEARS: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];
/// The gate of the expert that sees every token.
const SHARED_GATE: &str = "shared_expert_gate";
/// In the names of modules that are those of all experts of a block.
const EXPERTS: &str = ".experts.";

/// A recipe's choice, resolved for one model.
#[derive(Debug, Clone)]
pub struct Trainables {
    choice: Choice,
}

#[derive(Debug, Clone)]
enum Choice {
    None,
    All,
    /// Parameter names that contain one of these.
    Containing(Vec<String>),
    Lora {
        plan: LoraPlan,
        targets: Vec<String>,
    },
}

impl Trainables {
    /// Nothing trains: evaluation and generation.
    pub fn none() -> Self {
        Self { choice: Choice::None }
    }

    /// Checks `tuning` against the model. `names`: all parameter names of the base model.
    ///
    /// # Errors
    /// Everything that the model doesn't have, at once.
    pub fn resolve(tuning: &Tuning, config: &Config, names: &[String]) -> Result<Self, ModelError> {
        let mut unmet = Vec::new();
        let choice = match tuning {
            Tuning::Full => Choice::All,
            Tuning::Freeze(plan) => {
                let layers = config.num_hidden_layers;
                let count = plan.layers.unsigned_abs() as usize;
                if count > layers {
                    unmet.push(Unmet::Layers { asked: plan.layers, layers });
                }
                let count = count.min(layers);
                let range = if plan.layers >= 0 { layers - count..layers } else { 0..count };
                let inside = module_names(names, true);
                let outside = module_names(names, false);
                unmet.extend(unknown("freeze_trainable_modules", &plan.modules, &inside));
                unmet.extend(unknown("freeze_extra_modules", &plan.extra_modules, &outside));
                let module = |m: &String| if m == "all" { String::new() } else { m.clone() };
                let modules: Vec<String> = if plan.modules.is_empty() {
                    vec![String::new()]
                } else {
                    plan.modules.iter().map(module).collect()
                };
                let within = range.flat_map(|i| modules.iter().map(move |m| format!(".{i}.{m}")));
                Choice::Containing(within.chain(plan.extra_modules.iter().cloned()).collect())
            }
            Tuning::Lora(plan) => {
                let linears = linear_names(config);
                let available = last_parts(&linears);
                let targets = match &plan.targets {
                    // What decides where a token goes, or how much counts, is adapted only if it is named.
                    LoraTargets::All => available.iter().filter(|name| *name != SHARED_GATE).cloned().collect(),
                    LoraTargets::Modules(modules) => modules.clone(),
                };
                let missing = |target: &&String| !linears.iter().any(|name| matches_suffix(name, target));
                unmet.extend(targets.iter().filter(missing).map(|name| Unmet::Module {
                    key: "lora_target",
                    name: name.clone(),
                    available: available.join(", "),
                }));
                unmet.extend(not_saved_whole(&plan.additional_targets, names));
                let is_whole = |name: &&String| name.contains(EXPERTS) && ends_with_one(name, &plan.additional_targets);
                unmet.extend(linears.iter().find(is_whole).map(|name| Unmet::ExpertsWhole { name: name.clone() }));
                let experts = linears.iter().find(|name| name.contains(EXPERTS) && adapts(name, &targets, plan));
                if let Some(name) = experts.filter(|_| plan.dora) {
                    unmet.push(Unmet::DoraOfExperts { name: name.clone() });
                }
                if unmet.is_empty() && !linears.iter().any(|name| adapts(name, &targets, plan)) {
                    unmet.push(Unmet::NoAdapter { targets: targets.join(", ") });
                }
                Choice::Lora { plan: plan.clone(), targets }
            }
        };
        if unmet.is_empty() { Ok(Self { choice }) } else { Err(ModelError::Unmet(unmet)) }
    }

    /// Whether the base parameter `name` trains.
    pub fn trains(&self, name: &str) -> bool {
        match &self.choice {
            Choice::None => false,
            Choice::All => true,
            Choice::Containing(parts) => parts.iter().any(|part| name.contains(part.as_str())),
            Choice::Lora { plan, .. } => {
                module_of(name).is_some_and(|module| ends_with_one(module, &plan.additional_targets))
            }
        }
    }

    /// The adapter settings of the linear module `name`, if it gets one.
    pub fn lora(&self, name: &str) -> Option<&LoraPlan> {
        match &self.choice {
            Choice::Lora { plan, targets } if adapts(name, targets, plan) => Some(plan),
            _ => None,
        }
    }

    /// Whether the weights shared by embedding and head must become two: one of them trains under LoRA (PEFT trains
    /// a copy of the named module and leaves the other as it is).
    pub fn unties(&self) -> bool {
        matches!(&self.choice, Choice::Lora { plan, .. }
            if ["model.embed_tokens", "lm_head"].iter().any(|module| ends_with_one(module, &plan.additional_targets)))
    }
}

/// Whether a linear module gets an adapter. One that trains whole gets none: PEFT would not load it.
fn adapts(name: &str, targets: &[String], plan: &LoraPlan) -> bool {
    targets.iter().any(|target| matches_suffix(name, target)) && !ends_with_one(name, &plan.additional_targets)
}

/// PEFT's rule for names in a list: the whole name or its end after a dot.
fn matches_suffix(name: &str, target: &str) -> bool {
    name.strip_suffix(target).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// PEFT's rule for `modules_to_save`, wider than that for targets: any end of the name, so that `norm` is also
/// `input_layernorm` and `q_norm`. An adapter that left those out would not load there.
fn ends_with_one(module: &str, targets: &[String]) -> bool {
    targets.iter().any(|target| module.ends_with(target.as_str()))
}

/// Those of `targets` that are no module with weights of its own.
fn not_saved_whole(targets: &[String], names: &[String]) -> Vec<Unmet> {
    // A head that shares the embedding's weights can be trained too: PEFT gives it a copy of its own.
    let modules: Vec<&str> = names.iter().filter_map(|name| module_of(name)).chain(["lm_head"]).collect();
    let missing = targets.iter().filter(|target| !modules.iter().any(|module| module.ends_with(target.as_str())));
    let last = modules.iter().map(|module| module.rsplit_once('.').map_or(*module, |(_, last)| last));
    let available = last.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", ");
    let unmet =
        |name: &String| Unmet::Module { key: "additional_target", name: name.clone(), available: available.clone() };
    missing.map(unmet).collect()
}

/// The module that owns a parameter.
fn module_of(parameter: &str) -> Option<&str> {
    parameter.rsplit_once('.').map(|(module, _)| module)
}

/// The linear modules of all blocks; those of all experts of a block are one.
fn linear_names(config: &Config) -> Vec<String> {
    let of_block = |i: usize| {
        let block = format!("model.layers.{i}");
        let attention = ATTENTION_LINEARS.map(|linear| format!("{block}.self_attn.{linear}"));
        let dense = |path: &str| MLP_LINEARS.map(|linear| format!("{path}.{linear}"));
        let mut names = attention.to_vec();
        match config.experts(i) {
            None => names.extend(dense(&format!("{block}.mlp"))),
            Some(moe) => {
                let path = format!("{block}.{}", moe.names.module);
                names.extend(moe.names.projections.map(|linear| format!("{path}{EXPERTS}{linear}")));
                if moe.shared.is_some() {
                    names.extend(dense(&format!("{path}.shared_expert")));
                    names.push(format!("{path}.{SHARED_GATE}"));
                }
            }
        }
        names
    };
    (0..config.num_hidden_layers).flat_map(of_block).collect()
}

/// The last parts of names, each once, in order.
fn last_parts(names: &[String]) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    for name in names {
        let last = name.rsplit('.').next().unwrap_or(name);
        if !parts.iter().any(|part| part == last) {
            parts.push(last.to_owned());
        }
    }
    parts
}

/// Every name by which a module outside the blocks can be called, or one inside them from its block on: what follows the
/// block's number, as in LLaMA-Factory.
fn module_names(names: &[String], inside: bool) -> Vec<String> {
    let mut modules = Vec::new();
    for name in names.iter().filter(|n| n.contains(".layers.") == inside) {
        let path: Vec<&str> =
            name.split('.').filter(|p| !matches!(*p, "weight" | "bias" | "model" | "layers")).collect();
        let path: Vec<&str> = path.into_iter().filter(|p| p.parse::<usize>().is_err()).collect();
        for start in 0..if inside { path.len().min(1) } else { path.len() } {
            for end in start + 1..=path.len() {
                modules.push(path[start..end].join("."));
            }
        }
    }
    modules.sort_unstable();
    modules.dedup();
    modules
}

fn unknown(key: &'static str, asked: &[String], available: &[String]) -> Vec<Unmet> {
    let missing = asked.iter().filter(|name| *name != "all" && !available.contains(name));
    let simple = available.iter().map(String::as_str).filter(|m| !m.contains('.')).collect::<Vec<_>>().join(", ");
    missing.map(|name| Unmet::Module { key, name: name.clone(), available: simple.clone() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NAMES: [&str; 6] = [
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.0.input_layernorm.weight",
        "model.norm.weight",
    ];

    fn with_additional(target: &str) -> Result<Trainables, ModelError> {
        with_targets(LoraTargets::All, target)
    }

    fn with_targets(targets: LoraTargets, additional: &str) -> Result<Trainables, ModelError> {
        let config = json!({"model_type": "qwen3", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1,
                            "num_attention_heads": 4, "vocab_size": 100, "tie_word_embeddings": true});
        let plan = LoraPlan { targets, additional_targets: vec![additional.to_owned()], ..LoraPlan::plain(8) };
        Trainables::resolve(&Tuning::Lora(plan), &Config::from_json(&config).unwrap(), &NAMES.map(String::from))
    }

    fn trained(target: &str) -> Vec<&'static str> {
        let trainables = with_additional(target).unwrap();
        NAMES.into_iter().chain(["lm_head.weight"]).filter(|name| trainables.trains(name)).collect()
    }

    #[test]
    fn modules_trained_whole_are_all_that_peft_would_look_for_in_the_adapter() {
        assert_eq!(trained("norm"), [NAMES[2], NAMES[4], NAMES[5]]);
        assert_eq!(trained("model.norm"), [NAMES[5]]);
        assert_eq!(trained("head"), ["lm_head.weight"]);
        for (target, unties) in [("head", true), ("model.embed_tokens", true), ("norm", false)] {
            assert_eq!(with_additional(target).unwrap().unties(), unties, "{target}");
        }
    }

    #[test]
    fn a_module_that_trains_whole_gets_no_adapter() {
        let trainables = with_additional("up_proj").unwrap();
        assert!(trainables.trains(NAMES[3]) && trainables.lora("model.layers.0.mlp.up_proj").is_none());
        assert!(trainables.lora("model.layers.0.mlp.down_proj").is_some());
        let none_left = with_targets(LoraTargets::Modules(vec!["up_proj".into()]), "up_proj").unwrap_err();
        assert_eq!(
            none_left.to_string(),
            "additional_target trains every module of lora_target (up_proj) whole, which leaves none for an adapter; name \
             another in lora_target"
        );
    }

    #[test]
    fn modules_without_weights_of_their_own_are_refused() {
        for target in ["mlp", "all", "embed"] {
            assert_eq!(
                with_additional(target).unwrap_err().to_string(),
                format!(
                    "additional_target names `{target}`, which this model doesn't have; its modules are embed_tokens, \
                     input_layernorm, lm_head, norm, q_norm, q_proj, up_proj"
                )
            );
        }
    }
}
