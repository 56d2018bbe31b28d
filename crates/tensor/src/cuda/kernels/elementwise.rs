//! `kernels/elementwise.cu`.

use super::name;
use crate::cuda::gpu::{Gpu, Shape};
use crate::cuda::images::Image;
use crate::{DType, Tensor};

impl Gpu {
    /// Blocks of 256 for `n` elements, `each` of them a thread; threads take several once the GPU is full.
    pub(super) fn over(&self, n: usize, each: usize) -> Shape {
        let most = 8 * self.about.multiprocessors as usize;
        Shape::new([super::blocks(n.div_ceil(256 * each).min(most)), 1, 1], [256, 1, 1])
    }

    /// Elements that have 16 bytes.
    fn over_packs(&self, x: &Tensor) -> Shape {
        self.over(x.numel(), 16 / x.dtype().bytes(1))
    }

    /// `x += y`.
    pub(crate) fn add_assign(&self, x: &Tensor, y: &Tensor) {
        if x.dtype() != y.dtype() {
            return self.lacks(format!("a sum of {} and {}", x.dtype(), y.dtype()));
        }
        let kernel = format!("add_{}", name(x));
        self.launch(Image::Elementwise, &kernel, self.over_packs(x), &[x.into(), y.into(), (x.numel() as u64).into()]);
    }

    /// Copies values, rounding where `to` is narrower.
    pub(crate) fn cast(&self, to: &Tensor, from: &Tensor) {
        if to.dtype() == from.dtype() {
            return self.copy(to.address(), from.address(), to.bytes());
        }
        let kernel = format!("cast_{}_{}", name(from), name(to));
        let args = [to.into(), from.into(), (to.numel() as u64).into()];
        self.launch(Image::Elementwise, &kernel, self.over(to.numel(), 4), &args);
    }

    /// `y = silu(gate) up`.
    pub(crate) fn swiglu(&self, gate: &Tensor, up: &Tensor, y: &Tensor) {
        let args = [gate.into(), up.into(), y.into(), (y.numel() as u64).into()];
        self.launch(Image::Elementwise, &format!("swiglu_{}", name(y)), self.over_packs(y), &args);
    }

    /// Its gradients.
    pub(crate) fn swiglu_backward(&self, dy: &Tensor, [gate, up]: [&Tensor; 2], [dgate, dup]: [&Tensor; 2]) {
        let args = [dy.into(), gate.into(), up.into(), dgate.into(), dup.into(), (dy.numel() as u64).into()];
        self.launch(Image::Elementwise, &format!("swiglu_backward_{}", name(dy)), self.over_packs(dy), &args);
    }

    /// Whether there are kernels for pairs of these types, values and weights.
    pub(super) fn pairs(&self, x: &Tensor, weight: &Tensor) -> Option<String> {
        match (x.dtype(), weight.dtype()) {
            (DType::F32, DType::F32)
            | (DType::Bf16, DType::Bf16 | DType::F32)
            | (DType::F16, DType::F16 | DType::F32) => Some(format!("{}_{}", name(x), name(weight))),
            _ => None,
        }
    }
}
