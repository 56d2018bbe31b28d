//! The optimiser's step over flat ranges, Loshchilov and Hutter 2019, <https://arxiv.org/abs/1711.05101>, and what is asked
//! of gradients before it.

use crate::cpu;
use crate::cuda::kernels::squares_workspace;
use crate::device::On;
use crate::{DType, Device, Kind, Profile, Tensor};

pub use crate::cpu::AdamW;

/// Updates `weight` (f32, or bf16 with `master` in f32) from `grad` and the moments, all flat and of one length.
pub fn adamw(weight: &Tensor, master: Option<&Tensor>, grad: &Tensor, moments: (&Tensor, &Tensor), step: &AdamW) {
    let (m, v) = moments;
    assert!([grad, m, v].iter().all(|x| x.numel() == weight.numel()), "ranges of one length");
    match weight.runs_on() {
        None => {}
        Some(On::Cpu) => {
            let state = cpu::AdamWState { m: m.f32_mut(), v: v.f32_mut(), master: master.map(Tensor::f32_mut) };
            cpu::adamw(step, weight.data_mut(), grad.f32(), state);
        }
        Some(On::Cuda(gpu)) => gpu.adamw(weight, master, grad, [m, v], step),
    }
}

/// Sum of the squares of all elements of all `parts`, which lie on `device`: in f64, in a fixed order. A GPU is waited for once.
pub fn sum_of_squares(device: &Device, parts: &[Tensor]) -> f64 {
    assert!(parts.iter().all(|x| x.device().is(device)), "gradients of one device");
    if device.profile() == Profile::Cpu {
        return parts.iter().map(|x| if x.executes() { cpu::sum_of_squares(x.data()) } else { 0.0 }).sum();
    }
    let sum = device.zeros([1], DType::F64, Kind::Work);
    for x in parts {
        let work = device.empty([squares_workspace(x.numel())], DType::F64, Kind::Work);
        if let Some(On::Cuda(gpu)) = x.runs_on() {
            gpu.add_squares(&sum, x, &work);
        }
    }
    let mut value = 0.0;
    sum.with_bytes(|bytes| value = bytes.try_into().map_or(f64::NAN, f64::from_le_bytes));
    value
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
