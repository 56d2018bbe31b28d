//! RMSNorm: `y = x / sqrt(mean(x^2) + eps) * w`, Zhang and Sennrich 2019, <https://arxiv.org/abs/1910.07467>.
//!
//! Rows of w's length: of x `[t, hidden]`, or each head of `[t, heads * head_dim]`. Computed in f32; y in x's dtype.
//! With r = 1/sqrt(..), dx = r (w dy - x r^2 mean(w dy x)), dw = sum over rows of dy x r. The output is made again in the
//! backward pass from x and r where a reader saved it.

use crate::device::On;
use crate::{DType, Kind, Param, Profile, Tape, Tensor, Var};
use crate::{cpu, cuda};

/// Normalises rows of `x`.
pub fn rmsnorm(t: &Tape<'_>, x: &Var, weight: &Param, eps: f32) -> Var {
    let w = t.weight(weight);
    let width = w.numel();
    let rows = x.value.numel() / width;
    assert_eq!(rows * width, x.value.numel(), "rows of {width} in {:?}", x.value);
    let y = x.value.empty_like(Kind::Act);
    let rstd = t.device().empty([rows], DType::F32, Kind::Act);
    match y.runs_on() {
        None => {}
        Some(On::Cpu) => cpu::rmsnorm(x.value.data(), w.data(), eps, y.data_mut(), rstd.f32_mut()),
        Some(On::Cuda(gpu)) => gpu.rmsnorm(&x.value, &w, eps, [&y, &rstd]),
    }
    let needs = x.needs_grad() || t.trains(weight);
    let (saved, x_id, param, r) = (x.value.clone(), x.id(), weight.clone(), rstd.clone());
    let var = t.op(y, needs, move |g, dy| {
        let w = g.weight(&param);
        let dw = param.trainable.then(|| g.grad(&param));
        let floats = match g.device().profile() {
            Profile::Cpu => cpu::rmsnorm_backward_workspace(rows, width, dw.is_some()),
            Profile::Cuda => cuda::kernels::rmsnorm_backward_workspace(rows, width, dw.is_some()),
        };
        let work = g.device().empty([floats], DType::F32, Kind::Work);
        let dx = saved.empty_like(Kind::ActGrad);
        match dx.runs_on() {
            None => {}
            Some(On::Cpu) => {
                let args = cpu::RmsNormGrad { x: saved.data(), w: w.data(), rstd: r.f32(), dy: dy.data() };
                cpu::rmsnorm_backward(&args, dx.data_mut(), dw.as_ref().map(Tensor::f32_mut), work.f32_mut());
            }
            Some(On::Cuda(gpu)) => gpu.rmsnorm_backward([&saved, &w, &r, &dy], &dx, dw.as_ref(), &work),
        }
        if let Some(id) = x_id {
            g.put(id, dx);
        }
    });
    let (input, param) = (x.value.clone(), weight.clone());
    t.again(var, move |g| {
        let (w, y) = (g.weight(&param), input.empty_like(Kind::Act));
        match y.runs_on() {
            None => {}
            Some(On::Cpu) => cpu::rmsnorm_apply(input.data(), w.data(), rstd.f32(), y.data_mut()),
            Some(On::Cuda(gpu)) => gpu.rmsnorm_apply(&input, &w, &rstd, &y),
        }
        y
    })
}
