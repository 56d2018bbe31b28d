//! Each head normalised and then rotated, as Qwen3 has queries and keys: `rope(rmsnorm(x))`, the norm's output rounded to x's dtype
//! in between.
//!
//! x `[t, heads * head_dim]`, w `[head_dim]`. On a GPU one kernel reads x once, and in the backward pass dy once; the processor runs
//! the two ops, whose bytes are the same.

use super::rmsnorm::rmsnorm;
use super::rope::{Rotary, rope};
use crate::cuda::kernels::{norm_rope_backward_workspace, norm_rope_takes};
use crate::device::On;
use crate::{DType, Kind, Param, Profile, Tape, Var};

/// Normalises every head of `x`, then rotates it.
pub fn norm_rope(t: &Tape<'_>, x: &Var, weight: &Param, eps: f32, rotary: &Rotary) -> Var {
    let w = t.weight(weight);
    let (head_dim, rows) = (w.numel(), x.value.shape().rows());
    if t.device().profile() == Profile::Cpu || !norm_rope_takes(head_dim) {
        return rope(t, rmsnorm(t, x, weight, eps), rotary, head_dim);
    }
    rotary.check(rows, head_dim);
    let heads = x.value.numel() / head_dim;
    let y = x.value.empty_like(Kind::Act);
    let rstd = t.device().empty([heads], DType::F32, Kind::Act);
    if let Some(On::Cuda(gpu)) = y.runs_on() {
        gpu.norm_rope([&x.value, &w], eps, rotary.tables(), [&y, &rstd]);
    }
    let needs = x.needs_grad() || t.trains(weight);
    let (saved, id, param, rotary) = (x.value.clone(), x.id(), weight.clone(), rotary.clone());
    t.op(y, needs, move |g, dy| {
        let w = g.weight(&param);
        let dw = param.trainable.then(|| g.grad(&param));
        let floats = norm_rope_backward_workspace(heads, head_dim, dw.is_some());
        let work = g.device().empty([floats], DType::F32, Kind::Work);
        let dx = saved.empty_like(Kind::ActGrad);
        if let Some(On::Cuda(gpu)) = dx.runs_on() {
            gpu.norm_rope_backward([&saved, &w, &rstd, &dy], rotary.tables(), &dx, (dw.as_ref(), &work));
        }
        if let Some(id) = id {
            g.put(id, dx);
        }
    })
}
