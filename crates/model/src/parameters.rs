//! The list of a model's parameters: metadata in one stable order, each with where its first value comes from.
//!
//! Names are Hugging Face's. Data and gradients are the engine's; this list is what it builds its groups from.

use crate::expert_name;
use ferrotune_tensor::{DType, Param, ParamInfo, Segment, Shape};

/// One parameter.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// Name, shape, dtype, whether it trains.
    pub param: Param,
    /// Its first value.
    pub source: Source,
    /// What it is to the optimiser and to an adapter file.
    pub role: Role,
}

/// Where a parameter's first value comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// The model's files, under this name.
    File(String),
    /// Uniform in (-bound, bound).
    Uniform {
        /// Half the width.
        bound: f32,
    },
    /// Zero.
    Zeros,
    /// The norm of each row of `W + scale * B A`: DoRA's magnitude.
    RowNorms {
        /// Id of W.
        weight: usize,
        /// Id of A.
        a: usize,
        /// Id of B.
        b: usize,
        /// alpha / r.
        scale: f32,
    },
}

/// What a parameter is to the optimiser and to an adapter file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Part of the model itself.
    Base,
    /// LoRA's A, `[r, in]`.
    LoraA,
    /// LoRA's B, `[out, r]`.
    LoraB,
    /// DoRA's magnitude, `[out]`.
    Magnitude,
}

impl Parameter {
    /// How many experts' matrices it holds, one behind the other; `None` if it isn't of experts.
    pub fn experts(&self) -> Option<usize> {
        expert_name(&self.param.name, 0).and_then(|_| self.param.shape.dims().first().copied())
    }

    /// Whether weight decay applies: never to biases, norms and magnitudes (transformers' `get_decay_parameter_names`).
    pub fn decays(&self) -> bool {
        let name = &self.param.name;
        !(name.ends_with("bias") || name.contains("norm") || self.role == Role::Magnitude)
    }
}

/// Collects parameters while a model is put together.
#[derive(Debug, Default)]
pub(crate) struct Collector {
    pub(crate) list: Vec<Parameter>,
}

impl Collector {
    pub(crate) fn add(&mut self, new: New<'_>) -> Param {
        let New { name, shape, dtype, trainable, segments, source, role } = new;
        let id = self.list.len();
        let info = ParamInfo { id, name, shape, dtype, trainable, segments: segments.to_vec() };
        let param = Param::new(info);
        self.list.push(Parameter { param: param.clone(), source, role });
        param
    }
}

/// A parameter to be.
pub(crate) struct New<'a> {
    pub(crate) name: String,
    pub(crate) shape: Shape,
    pub(crate) dtype: DType,
    pub(crate) trainable: bool,
    pub(crate) segments: &'a [Segment],
    pub(crate) source: Source,
    pub(crate) role: Role,
}
