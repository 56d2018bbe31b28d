//! The optimiser's step over flat ranges, Loshchilov and Hutter 2019, <https://arxiv.org/abs/1711.05101>, and what is asked
//! of gradients before it.

use crate::cpu;
use crate::cuda::kernels::squares_workspace;
use crate::device::On;
use crate::{DType, Device, Kind, Profile, Tensor};

pub use crate::cpu::AdamW;

/// Updates `weight` (f32, or bf16 with `master` in f32) from the gradient and the moments, all flat and of one length. The
/// gradient may have a further factor, `[1]`, as [`clip_factor`] makes it: where that isn't finite, everything stays as it is.
pub fn adamw(
    weight: &Tensor,
    master: Option<&Tensor>,
    (grad, factor): (&Tensor, Option<&Tensor>),
    (m, v): (&Tensor, &Tensor),
    step: &AdamW,
) {
    assert!([grad, m, v].iter().all(|x| x.numel() == weight.numel()), "ranges of one length");
    match weight.runs_on() {
        None => {}
        Some(On::Cpu) => {
            let factor = factor.map_or(1.0, |factor| factor.f32()[0]);
            if !factor.is_finite() {
                return;
            }
            let step = AdamW { grad_scale: step.grad_scale * factor, ..*step };
            let state = cpu::AdamWState { m: m.f32_mut(), v: v.f32_mut(), master: master.map(Tensor::f32_mut) };
            cpu::adamw(&step, weight.data_mut(), grad.f32(), state);
        }
        Some(On::Cuda(gpu)) => gpu.adamw([weight, grad], master, [m, v], (step, factor)),
    }
}

/// Adds the squares of all elements of all `parts` to `sum`, `[1]` in f64, in a fixed order; all lie on one device.
pub fn add_squares(sum: &Tensor, parts: &[Tensor]) {
    let device = sum.device();
    assert!(parts.iter().all(|x| x.device().is(device)), "gradients of one device");
    for x in parts {
        let floats = if device.profile() == Profile::Cuda { squares_workspace(x.numel()) } else { 0 };
        let work = device.empty([floats], DType::F64, Kind::Work);
        match x.runs_on() {
            None => {}
            Some(On::Cpu) => sum.f64_mut()[0] += cpu::sum_of_squares(x.data()),
            Some(On::Cuda(gpu)) => gpu.add_squares(sum, x, &work),
        }
    }
}

/// Adds all of `parts`, f64, to `sum`, `[1]` in f64, in a fixed order.
pub fn add_all(sum: &Tensor, parts: &Tensor) {
    assert!(sum.device().is(parts.device()), "numbers of one device");
    match sum.runs_on() {
        None => {}
        Some(On::Cpu) => parts.f64_mut().iter().for_each(|part| sum.f64_mut()[0] += part),
        Some(On::Cuda(gpu)) => gpu.add_all(sum, parts),
    }
}

/// Sum of the squares of all elements of all `parts`, which lie on `device`. A GPU is waited for.
pub fn sum_of_squares(device: &Device, parts: &[Tensor]) -> f64 {
    let sum = device.zeros([1], DType::F64, Kind::Work);
    add_squares(&sum, parts);
    let mut value = 0.0;
    sum.with_bytes(|bytes| value = bytes.try_into().map_or(f64::NAN, f64::from_le_bytes));
    value
}

/// What brings gradients to a norm of at most `most` (0: any norm), as torch's `clip_grad_norm_` does: `[1]` in f32, NaN where
/// the norm or one of the `losses` isn't finite. `squares`, `[1]` in f64, is the sum of the gradients' squares, whose root times
/// `scale` is the norm. Nobody waits for it.
pub fn clip_factor(squares: &Tensor, losses: &Tensor, scale: f64, most: f64) -> Tensor {
    let factor = squares.device().empty([1], DType::F32, Kind::Work);
    match factor.runs_on() {
        None => {}
        Some(On::Cpu) => {
            let norm = squares.f64_mut()[0].sqrt() * scale;
            let sound = norm.is_finite() && cpu::all_finite(losses.data());
            let wanted = if most > 0.0 { (most / (norm + 1e-6)).min(1.0) } else { 1.0 };
            factor.f32_mut()[0] = if sound { wanted as f32 } else { f32::NAN };
        }
        Some(On::Cuda(gpu)) => gpu.clip_factor(&factor, squares, losses, (scale, most)),
    }
    factor
}

/// Whether no element is infinite or NaN. A GPU is waited for.
pub fn all_finite(x: &Tensor) -> bool {
    match x.runs_on() {
        None => true,
        Some(On::Cpu) => cpu::all_finite(x.data()),
        // Squares of f32 don't overflow in f64.
        Some(On::Cuda(_)) => sum_of_squares(x.device(), std::slice::from_ref(x)).is_finite(),
    }
}
