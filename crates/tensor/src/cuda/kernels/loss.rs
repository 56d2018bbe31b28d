//! `kernels/loss.cu`.

use super::{a_block_a_row, name, size};
use crate::Tensor;
use crate::cuda::gpu::{Gpu, Shape};
use crate::cuda::images::Image;

impl Gpu {
    /// Losses of rows of logits, `[rows, 2]`, and where it is wanted the gradient, in `dz`'s type, which may be the logits.
    pub(crate) fn cross_entropy(
        &self,
        [logits, labels, losses]: [&Tensor; 3],
        dz: Option<&Tensor>,
        (scale, smoothing): (f32, f32),
    ) {
        let (rows, vocab) = (logits.shape().rows(), logits.shape().last());
        let kernel = format!("cross_entropy_{}", name(dz.unwrap_or(logits)));
        let args = [logits.into(), dz.into(), labels.into(), losses.into(), size(vocab), scale.into()];
        let args = [&args[..], &[smoothing.into()]].concat();
        self.launch(Image::Loss, &kernel, a_block_a_row(rows, 256), &args);
    }

    /// Adds the losses of a chunk to the loss and to its counts.
    pub(crate) fn count_losses(&self, losses: &Tensor, scale: f32, loss: &Tensor, stats: &Tensor) {
        let args = [losses.into(), size(losses.shape().rows()), scale.into(), loss.into(), stats.into()];
        self.launch(Image::Loss, "count_losses", Shape::new([1, 1, 1], [32, 1, 1]), &args);
    }
}
