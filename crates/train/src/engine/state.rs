//! What a snapshot holds of the engine: trained weights and moments, a parameter at a time, so that they can be read
//! back by another layout or another number of ranks.

use super::Engine;
use ferrotune_tensor::{DType, Param, Tensor};

/// One tensor of the engine's state, in f32.
pub struct NamedState {
    /// `weight.`, `m.` or `v.` before the parameter's name.
    pub name: String,
    /// Its data, a view.
    pub tensor: Tensor,
}

impl Engine {
    /// Trained weights and both moments of each.
    pub fn state(&self) -> Vec<NamedState> {
        let mut all = Vec::new();
        for parameter in self.parameters.iter().filter(|p| p.param.trainable) {
            let param = &parameter.param;
            let mut push = |what: &str, tensor| all.push(NamedState { name: format!("{what}.{}", param.name), tensor });
            push("weight", self.precise_value(param));
            if let Some((m, v)) = self.moments(param) {
                push("m", m);
                push("v", v);
            }
        }
        all
    }

    fn moments(&self, param: &Param) -> Option<(Tensor, Tensor)> {
        let place = self.places[param.id];
        let training = self.groups[place.group].training.as_ref()?;
        let offset = place.offset * 4 / param.dtype.bytes(1);
        let view = |flat: &Tensor| flat.view(offset, param.shape, DType::F32);
        Some((view(&training.m), view(&training.v)))
    }

    /// After the f32 copies of bf16 weights were read back: rounds them into the weights.
    pub fn round_masters(&self) {
        for parameter in self.parameters.iter().filter(|p| p.param.trainable) {
            let (value, precise) = (self.value(&parameter.param), self.precise_value(&parameter.param));
            if value.dtype() != precise.dtype() {
                ferrotune_tensor::ops::cast(&value, &precise);
            }
        }
    }
}
