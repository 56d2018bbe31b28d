//! Mixtures of experts in place of the MLP: Qwen3-MoE, Qwen2-MoE and Mixtral.
//!
//! The matrices of all experts of a block are one parameter each, `[experts, out, in]`, so that ranks gather and reduce them
//! by structure and never by who was chosen. Files and adapters have them one by one, by the names of [`expert_name`].

use crate::Batch;
use crate::config::Moe;
use crate::decoder::Dense;
use ferrotune_tensor::ops::{self, GroupedLinear, Linear, Noise, Routes};
use ferrotune_tensor::{Param, Tape, Var};
use std::rc::Rc;

/// What stands between the name of a block's experts and that of a matrix; with a number in between for one expert's.
const EXPERTS: &str = ".experts.";

/// The name of one expert's part of a parameter that holds all: `mlp.experts.gate_proj.weight` to
/// `mlp.experts.5.gate_proj.weight`. `None` for a parameter that holds no experts.
pub fn expert_name(all: &str, expert: usize) -> Option<String> {
    let (before, after) = all.split_once(EXPERTS)?;
    Some(format!("{before}{EXPERTS}{expert}.{after}"))
}

/// The other way: `mlp.experts.5.gate_proj.weight` to `mlp.experts.gate_proj.weight` and 5.
pub fn stack_name(one: &str) -> Option<(String, usize)> {
    let (before, after) = one.split_once(EXPERTS)?;
    let (number, after) = after.split_once('.')?;
    Some((format!("{before}{EXPERTS}{after}"), number.parse().ok()?))
}

/// A router, its experts, and the one that sees every token, where there is one.
pub(crate) struct Mixture {
    pub(crate) router: Param,
    pub(crate) route: ops::Route,
    pub(crate) experts: Rc<Experts>,
    pub(crate) shared: Option<Shared>,
}

/// All experts of a block, or those that this rank has of them.
pub(crate) struct Experts {
    pub(crate) gate: GroupedLinear,
    pub(crate) up: GroupedLinear,
    pub(crate) down: GroupedLinear,
}

impl Experts {
    /// What they make of rows that are sorted by expert.
    fn forward(&self, t: &Tape<'_>, rows: &Var, routes: &Rc<Routes>, noise: Option<&Rc<Noise>>) -> Var {
        let of = |layer, x: &Var| ops::grouped_linear(t, layer, x, routes, noise);
        let inner = ops::swiglu(t, &of(&self.gate, rows), &of(&self.up, rows));
        of(&self.down, &inner)
    }

    fn layers(&self) -> [&GroupedLinear; 3] {
        [&self.gate, &self.up, &self.down]
    }

    /// Whether a layer draws dropout.
    pub(crate) fn drops(&self) -> bool {
        self.layers().iter().any(|layer| layer.lora.as_ref().is_some_and(|lora| lora.dropout > 0.0))
    }

    /// Whether anything of them trains.
    pub(crate) fn train(&self) -> bool {
        let trains = |layer: &&GroupedLinear| layer.weight.trainable || layer.lora.is_some();
        self.layers().iter().any(trains)
    }
}

/// Qwen2-MoE's shared expert: `sigmoid(gate(x)) * mlp(x)`.
pub(crate) struct Shared {
    pub(crate) mlp: Dense,
    pub(crate) gate: Linear,
}

impl Mixture {
    pub(crate) fn forward(&self, t: &Tape<'_>, x: &Var, batch: &Batch) -> Var {
        let noise = batch.noise.as_ref();
        let (weights, routes) = ops::route(t, x, &self.router, self.route, batch.balance.as_ref());
        let made = if t.expert_ranks().is_some() {
            let experts = self.experts.clone();
            let drawn = noise.filter(|_| experts.drops());
            ops::spread(t, x, &routes, drawn, Rc::new(move |t, x, routes, noise| experts.forward(t, x, routes, noise)))
        } else {
            self.experts.forward(t, &ops::dispatch(t, x, &routes), &routes, noise)
        };
        let y = ops::combine(t, &made, &weights, &routes);
        match &self.shared {
            None => y,
            Some(shared) => {
                let gate = ops::linear(t, &shared.gate, x, noise);
                ops::add_gated(t, &y, &shared.mlp.forward(t, x, batch), &gate)
            }
        }
    }
}

impl Moe {
    /// How tokens are routed.
    pub(crate) fn route(&self) -> ops::Route {
        ops::Route { experts: self.experts, top_k: self.top_k, normalize: self.normalize }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_one_and_of_all() {
        let all = "model.layers.3.mlp.experts.gate_proj.weight";
        let one = expert_name(all, 17).expect("experts");
        assert_eq!(one, "model.layers.3.mlp.experts.17.gate_proj.weight");
        assert_eq!(stack_name(&one), Some((all.to_owned(), 17)));
        for other in ["model.layers.3.mlp.gate_proj.weight", "model.layers.0.mlp.experts.gate_proj.weight"] {
            assert_eq!(stack_name(other), None, "{other}");
        }
        assert_eq!(expert_name("model.layers.3.mlp.gate_proj.weight", 1), None);
    }
}
