//! `kernels/optimizer.cu`: AdamW, and sums of squares.

use super::{blocks, name, size};
use crate::Tensor;
use crate::cpu;
use crate::cuda::gpu::{Arg, Gpu, Shape};
use crate::cuda::images::Image;

/// Elements that a part of a sum of squares has.
const PART: usize = 1 << 16;

/// Parts of a sum of squares, an f64 each.
pub(crate) fn squares_workspace(n: usize) -> usize {
    n.div_ceil(PART)
}

impl Gpu {
    /// One step over flat ranges; gradients have a further factor where there is one.
    pub(crate) fn adamw(
        &self,
        [weight, grad]: [&Tensor; 2],
        master: Option<&Tensor>,
        [m, v]: [&Tensor; 2],
        (step, factor): (&cpu::AdamW, Option<&Tensor>),
    ) {
        let mut factors = [0; 64];
        let numbers = step.factors().map(f32::to_ne_bytes).concat();
        factors[..numbers.len()].copy_from_slice(&numbers);
        let (n, clip) = ((weight.numel() as u64).into(), factor.into());
        let args = [weight.into(), master.into(), grad.into(), m.into(), v.into(), n, Arg::Struct(factors), clip];
        self.launch(Image::Optimizer, &format!("adamw_{}", name(weight)), self.over(weight.numel(), 1), &args);
    }

    /// The factor of gradients, NaN where something isn't finite.
    pub(crate) fn clip_factor(&self, factor: &Tensor, squares: &Tensor, losses: &Tensor, (scale, most): (f64, f64)) {
        let args = [factor.into(), squares.into(), scale.into(), most.into(), losses.into(), size(losses.numel())];
        self.launch(Image::Optimizer, "clip_factor", Shape::new([1, 1, 1], [1, 1, 1]), &args);
    }

    /// `sum += ` the squares of x, with [`squares_workspace`].
    pub(crate) fn add_squares(&self, sum: &Tensor, x: &Tensor, work: &Tensor) {
        let parts = squares_workspace(x.numel());
        let args = [work.into(), x.into(), (x.numel() as u64).into()];
        let shape = Shape::new([blocks(parts), 1, 1], [256, 1, 1]);
        self.launch(Image::Optimizer, &format!("squares_{}", name(x)), shape, &args);
        self.add_all(sum, work);
    }

    /// `sum += ` all of `parts`.
    pub(crate) fn add_all(&self, sum: &Tensor, parts: &Tensor) {
        let args = [sum.into(), parts.into(), (parts.numel() as u64).into()];
        let shape = Shape::new([u32::from(parts.numel() > 0), 1, 1], [256, 1, 1]);
        self.launch(Image::Optimizer, "sum_parts", shape, &args);
    }
}
