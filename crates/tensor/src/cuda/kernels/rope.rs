//! `kernels/rope.cu`: rotary positions, alone and behind the norm of each head.

use super::{blocks, name, size};
use crate::Tensor;
use crate::cuda::gpu::{Gpu, Shape};
use crate::cuda::images::Image;

/// Widest head of the fused kernel: four pairs a lane.
const WIDEST: usize = 256;
/// Most blocks of the fused gradient, each of which writes a part of the weight's.
const PARTS: usize = 1024;

/// Whether norm and rotation of such heads are one kernel.
pub(crate) fn norm_rope_takes(head_dim: usize) -> bool {
    head_dim.is_multiple_of(2) && head_dim <= WIDEST
}

/// Heads of a block of the gradient, whose eight warps take them in turn: as few as the parts allow.
fn step(heads: usize) -> usize {
    heads.div_ceil(PARTS).next_multiple_of(8).max(8)
}

/// Elements of workspace of the fused gradient over so many heads of all tokens.
pub(crate) fn norm_rope_backward_workspace(heads: usize, head_dim: usize, weight: bool) -> usize {
    if weight { heads.div_ceil(step(heads)) * head_dim } else { 0 }
}

impl Gpu {
    /// Normalises every head of `x` and rotates it into `y`; the reciprocal roots.
    pub(crate) fn norm_rope(
        &self,
        [x, weight]: [&Tensor; 2],
        eps: f32,
        [cos, sin]: [&Tensor; 2],
        [y, rstd]: [&Tensor; 2],
    ) {
        let Some(pair) = self.pairs(x, weight) else {
            return self.lacks(format!("RMSNorm of {} with weights of {}", x.dtype(), weight.dtype()));
        };
        let (rows, head_dim) = (x.shape().rows(), weight.numel());
        let heads = x.shape().last() / head_dim;
        let shape = Shape::new([blocks((rows * heads).div_ceil(8)), 1, 1], [32, 8, 1]);
        let args = [x.into(), weight.into(), eps.into(), cos.into(), sin.into(), y.into(), rstd.into()];
        let args = [&args[..], &[rows, heads, head_dim].map(size)].concat();
        self.launch(Image::Rope, &format!("norm_rope_{pair}"), shape, &args);
    }

    /// The gradient of x, and of the weight where it is wanted, with [`norm_rope_backward_workspace`].
    pub(crate) fn norm_rope_backward(
        &self,
        [x, weight, rstd, dy]: [&Tensor; 4],
        [cos, sin]: [&Tensor; 2],
        dx: &Tensor,
        (dw, work): (Option<&Tensor>, &Tensor),
    ) {
        let Some(pair) = self.pairs(x, weight) else {
            return self.lacks(format!("RMSNorm of {} with weights of {}", x.dtype(), weight.dtype()));
        };
        let (rows, head_dim) = (x.shape().rows(), weight.numel());
        let heads = x.shape().last() / head_dim;
        let (all, each) = (rows * heads, step(rows * heads));
        let parts = dw.map(|_| work);
        let args = [x.into(), weight.into(), rstd.into(), cos.into(), sin.into(), dy.into(), dx.into(), parts.into()];
        let args = [&args[..], &[rows, heads, head_dim, each].map(size)].concat();
        let shape = Shape::new([blocks(all.div_ceil(each)), 1, 1], [32, 8, 1]);
        self.launch(Image::Rope, &format!("norm_rope_backward_{pair}"), shape, &args);
        if let Some(dw) = dw {
            self.add_parts(dw, work, all.div_ceil(each), head_dim);
        }
    }

    /// Rotates every head of `x` in place; backwards where `back`.
    pub(crate) fn rope(&self, x: &Tensor, [cos, sin]: [&Tensor; 2], head_dim: usize, back: bool) {
        let (rows, heads) = (x.shape().rows(), x.shape().last() / head_dim);
        let shape = Shape::new([blocks((rows * heads).div_ceil(8)), 1, 1], [32, 8, 1]);
        let sign = if back { -1f32 } else { 1.0 };
        let args = [x.into(), cos.into(), sin.into(), size(rows), size(heads), size(head_dim)];
        self.launch(Image::Rope, &format!("rope_{}", name(x)), shape, &[&args[..], &[sign.into()]].concat());
    }
}
