//! The optimiser's step over flat ranges, Loshchilov and Hutter 2019, <https://arxiv.org/abs/1711.05101>, and what is asked
//! of gradients before it.

use crate::Tensor;
use crate::cpu;

pub use crate::cpu::AdamW;

/// Updates `weight` (f32, or bf16 with `master` in f32) from `grad` and the moments, all flat and of one length.
pub fn adamw(weight: &Tensor, master: Option<&Tensor>, grad: &Tensor, moments: (&Tensor, &Tensor), step: &AdamW) {
    let (m, v) = moments;
    assert!([grad, m, v].iter().all(|x| x.numel() == weight.numel()), "ranges of one length");
    if weight.executes() {
        let state = cpu::AdamWState { m: m.f32_mut(), v: v.f32_mut(), master: master.map(Tensor::f32_mut) };
        cpu::adamw(step, weight.data_mut(), grad.f32(), state);
    }
}

/// Sum of squares in f64, in a fixed order.
pub fn sum_of_squares(x: &Tensor) -> f64 {
    if x.executes() { cpu::sum_of_squares(x.data()) } else { 0.0 }
}

/// Whether no element is infinite or NaN.
pub fn all_finite(x: &Tensor) -> bool {
    !x.executes() || cpu::all_finite(x.data())
}
