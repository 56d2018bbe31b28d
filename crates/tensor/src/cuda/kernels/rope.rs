//! `kernels/rope.cu`.

use super::{name, size};
use crate::Tensor;
use crate::cuda::gpu::{Gpu, Shape};
use crate::cuda::images::Image;

impl Gpu {
    /// Rotates every head of `x` in place; backwards where `back`.
    pub(crate) fn rope(&self, x: &Tensor, [cos, sin]: [&Tensor; 2], head_dim: usize, back: bool) {
        let (rows, heads) = (x.shape().rows(), x.shape().last() / head_dim);
        let shape = Shape::new([size((rows * heads).div_ceil(8)), 1, 1], [32, 8, 1]);
        let sign = if back { -1f32 } else { 1.0 };
        let args = [x.into(), cos.into(), sin.into(), size(rows).into(), size(heads).into(), size(head_dim).into()];
        self.launch(Image::Rope, &format!("rope_{}", name(x)), shape, &[&args[..], &[sign.into()]].concat());
    }
}
