//! `kernels/dora.cu`.

use super::{a_block_a_row, blocks, name, over_columns, size};
use crate::Tensor;
use crate::cuda::gpu::{Gpu, Shape};
use crate::cuda::images::Image;

impl Gpu {
    /// The Euclidean norm of each row of an f32 matrix.
    pub(crate) fn row_norms(&self, x: &Tensor, norms: &Tensor) {
        let (rows, width) = (x.shape().rows(), x.shape().last());
        let args = [norms.into(), x.into(), size(width)];
        self.launch(Image::Dora, "row_norms", a_block_a_row(rows, 256), &args);
    }

    /// `to = a / b`.
    pub(crate) fn quotients(&self, to: &Tensor, a: &Tensor, b: &Tensor) {
        let n = to.numel();
        let shape = Shape::new([blocks(n.div_ceil(256)), 1, 1], [256, 1, 1]);
        self.launch(Image::Dora, "quotients", shape, &[to.into(), a.into(), b.into(), size(n)]);
    }

    /// `y = x factors (+ bias)`, a factor a column.
    pub(crate) fn scale_columns(&self, x: &Tensor, factors: &Tensor, bias: Option<&Tensor>, y: &Tensor) {
        let (rows, width) = (x.shape().rows(), x.shape().last());
        let Some(pair) = self.pairs(x, bias.unwrap_or(x)) else {
            return self.lacks(format!("a bias of another type than {}", x.dtype()));
        };
        let args = [x.into(), factors.into(), bias.into(), y.into(), size(rows), size(width)];
        let shape = over_columns(width, rows.min(1024));
        self.launch(Image::Dora, &format!("scale_columns_{pair}"), shape, &args);
    }

    /// `x[row] *= factors[row]`, in f32.
    pub(crate) fn scale_rows(&self, x: &Tensor, factors: &Tensor) {
        let (rows, width) = (x.shape().rows(), x.shape().last());
        let args = [x.into(), factors.into(), size(rows), size(width)];
        self.launch(Image::Dora, "scale_rows_f32", a_block_a_row(rows, 256), &args);
    }

    /// `sums[c] += (sum over rows of x y) / norms[c]`, with `column_parts_workspace`.
    pub(crate) fn add_column_dots(&self, [x, y]: [&Tensor; 2], norms: &Tensor, sums: &Tensor, work: &Tensor) {
        let (rows, width) = (x.shape().rows(), x.shape().last());
        let (step, parts) = Self::parts_of(rows);
        let args = [work.into(), x.into(), y.into(), size(rows), size(width), size(step)];
        self.launch(Image::Dora, &format!("column_dots_{}", name(x)), over_columns(width, parts), &args);
        let args = [sums.into(), work.into(), norms.into(), size(parts), size(width)];
        self.launch(Image::Dora, "add_parts_divided", over_columns(width, 1), &args);
    }
}
