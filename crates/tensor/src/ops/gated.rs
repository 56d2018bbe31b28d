//! A gated sum: `out = y + sigmoid(gate) z`, a gate a row: how Qwen2-MoE adds the expert that sees every token.
//!
//! y, z, out `[t, width]` and gate `[t, 1]` in one dtype, computed in f32. With s = sigmoid(gate): dy = dout, dz = s dout,
//! dgate = s (1 - s) (z . dout).

use crate::cpu;
use crate::device::On;
use crate::{Kind, Tape, Var};

/// Adds `z` to `y` through its gate.
pub fn add_gated(t: &Tape<'_>, y: &Var, z: &Var, gate: &Var) -> Var {
    assert_eq!(y.value.shape(), z.value.shape(), "terms of a gated sum");
    let width = y.value.shape().last();
    let out = y.value.empty_like(Kind::Act);
    match out.runs_on() {
        None => {}
        Some(On::Cpu) => cpu::add_gated(y.value.data(), z.value.data(), gate.value.data(), out.data_mut(), width),
        Some(On::Cuda(gpu)) => gpu.add_gated([&y.value, &z.value, &gate.value], &out),
    }
    let (ids, needs) = ([y.id(), z.id(), gate.id()], [y, z, gate].iter().any(|var| var.needs_grad()));
    let (z, gate) = (z.value.clone(), gate.value.clone());
    t.op(out, needs, move |g, d| {
        let (dz, dgate) = (z.empty_like(Kind::ActGrad), gate.empty_like(Kind::ActGrad));
        match d.runs_on() {
            None => {}
            Some(On::Cpu) => {
                let to = (dz.data_mut(), dgate.data_mut());
                cpu::add_gated_backward(d.data(), (z.data(), gate.data()), to, width);
            }
            Some(On::Cuda(gpu)) => gpu.add_gated_backward([&d, &z, &gate], [&dz, &dgate]),
        }
        for (id, gradient) in ids.into_iter().zip([d, dz, dgate]) {
            if let Some(id) = id {
                g.put(id, gradient);
            }
        }
    })
}
