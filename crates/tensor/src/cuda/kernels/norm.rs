//! `kernels/norm.cu`: RMSNorm, and sums over rows.

use super::{blocks, name, over_columns, size};
use crate::Tensor;
use crate::cuda::gpu::{Gpu, Shape};
use crate::cuda::images::Image;

/// Rows that a part of a sum over rows has: at most 128 parts, of at least 32 rows.
fn step(rows: usize) -> usize {
    rows.div_ceil(128).max(32)
}

/// Elements of workspace of a sum over rows.
pub(crate) fn column_parts_workspace(rows: usize, width: usize) -> usize {
    rows.div_ceil(step(rows)) * width
}

/// Elements of workspace of RMSNorm's gradient.
pub(crate) fn rmsnorm_backward_workspace(rows: usize, width: usize, weight: bool) -> usize {
    if weight { column_parts_workspace(rows, width) } else { 0 }
}

/// A warp a row where rows are short, else a block.
fn shape(rows: usize, width: usize) -> Shape {
    match width {
        0..=512 => Shape::new([blocks(rows.div_ceil(8)), 1, 1], [32, 8, 1]),
        _ => super::a_block_a_row(rows, if width <= 2048 { 256 } else { 512 }),
    }
}

impl Gpu {
    fn norm(&self, kernel: &str, x: &Tensor, weight: &Tensor, args: &[crate::cuda::gpu::Arg]) {
        let (width, rows) = (weight.numel(), x.numel() / weight.numel());
        let Some(pair) = self.pairs(x, weight) else {
            return self.lacks(format!("RMSNorm of {} with weights of {}", x.dtype(), weight.dtype()));
        };
        let args = [args, &[size(rows), size(width)]].concat();
        self.launch(Image::Norm, &format!("{kernel}_{pair}"), shape(rows, width), &args);
    }

    /// `y` and the reciprocal roots.
    pub(crate) fn rmsnorm(&self, x: &Tensor, weight: &Tensor, eps: f32, [y, rstd]: [&Tensor; 2]) {
        self.norm("rmsnorm", x, weight, &[x.into(), weight.into(), eps.into(), y.into(), rstd.into()]);
    }

    /// `y` again.
    pub(crate) fn rmsnorm_apply(&self, x: &Tensor, weight: &Tensor, rstd: &Tensor, y: &Tensor) {
        self.norm("rmsnorm_apply", x, weight, &[x.into(), weight.into(), rstd.into(), y.into()]);
    }

    /// The gradient of x, and of the weight where it is wanted, with [`rmsnorm_backward_workspace`].
    pub(crate) fn rmsnorm_backward(
        &self,
        [x, weight, rstd, dy]: [&Tensor; 4],
        dx: &Tensor,
        dw: Option<&Tensor>,
        work: &Tensor,
    ) {
        self.norm("rmsnorm_backward", x, weight, &[x.into(), weight.into(), rstd.into(), dy.into(), dx.into()]);
        let Some(dw) = dw else { return };
        let (width, rows) = (weight.numel(), x.numel() / weight.numel());
        let kernel = format!("rmsnorm_weight_parts_{}", name(x));
        let args = [work.into(), x.into(), dy.into(), rstd.into(), size(rows), size(width)];
        let parts = rows.div_ceil(step(rows));
        let args = [&args[..], &[size(step(rows))]].concat();
        self.launch(Image::Norm, &kernel, over_columns(width, parts), &args);
        self.add_parts(dw, work, parts, width);
    }

    /// `sums[c] += sum over rows of x[row, c]`, with [`column_parts_workspace`].
    pub(crate) fn add_column_sums(&self, sums: &Tensor, x: &Tensor, work: &Tensor) {
        let (rows, width) = (x.shape().rows(), x.shape().last());
        let parts = rows.div_ceil(step(rows));
        let args = [work.into(), x.into(), size(rows), size(width), size(step(rows))];
        self.launch(Image::Norm, &format!("column_parts_{}", name(x)), over_columns(width, parts), &args);
        self.add_parts(sums, work, parts, width);
    }

    /// Rows of a part, and how many parts there are.
    pub(super) fn parts_of(rows: usize) -> (usize, usize) {
        (step(rows), rows.div_ceil(step(rows)))
    }

    /// `sums += ` the parts, in order.
    pub(super) fn add_parts(&self, sums: &Tensor, parts: &Tensor, count: usize, width: usize) {
        let args = [sums.into(), parts.into(), size(count), size(width)];
        self.launch(Image::Norm, "add_parts", over_columns(width, 1), &args);
    }
}
