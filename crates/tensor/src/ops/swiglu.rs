//! SwiGLU: `y = silu(gate) * up`, silu(x) = x / (1 + exp(-x)), Shazeer 2020, <https://arxiv.org/abs/2002.05202>.
//!
//! All `[t, intermediate]` in one dtype, computed in f32. dup = dy silu(gate), dgate = dy up s (1 + gate (1 - s)) with
//! s = sigmoid(gate). The output is made again in the backward pass where a reader saved it.

use crate::cpu;
use crate::device::On;
use crate::{Kind, Tape, Tensor, Var};

/// Joins the two halves of the MLP.
pub fn swiglu(t: &Tape<'_>, gate: &Var, up: &Var) -> Var {
    assert_eq!(gate.value.shape(), up.value.shape(), "halves of a SwiGLU");
    let y = forward(&gate.value, &up.value);
    let (g_value, u_value) = (gate.value.clone(), up.value.clone());
    let (g_id, u_id) = (gate.id(), up.id());
    let var = t.op(y, gate.needs_grad() || up.needs_grad(), move |g, dy| {
        let (dg, du) = (g_value.empty_like(Kind::ActGrad), u_value.empty_like(Kind::ActGrad));
        match dg.runs_on() {
            None => {}
            Some(On::Cpu) => {
                cpu::swiglu_backward(dy.data(), g_value.data(), u_value.data(), dg.data_mut(), du.data_mut());
            }
            Some(On::Cuda(gpu)) => gpu.swiglu_backward(&dy, [&g_value, &u_value], [&dg, &du]),
        }
        if let Some(id) = g_id {
            g.put(id, dg);
        }
        if let Some(id) = u_id {
            g.put(id, du);
        }
    });
    let (gate, up) = (gate.value.clone(), up.value.clone());
    t.again(var, move |_| forward(&gate, &up))
}

fn forward(gate: &Tensor, up: &Tensor) -> Tensor {
    let y = gate.empty_like(Kind::Act);
    match y.runs_on() {
        None => {}
        Some(On::Cpu) => cpu::swiglu(gate.data(), up.data(), y.data_mut()),
        Some(On::Cuda(gpu)) => gpu.swiglu(gate, up, &y),
    }
    y
}
