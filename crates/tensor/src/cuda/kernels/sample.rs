//! `kernels/sample.cu`, and the likeliest token of `kernels/loss.cu`.

use super::size;
use crate::Tensor;
use crate::cuda::gpu::{Gpu, Shape};
use crate::cuda::images::Image;
use crate::ops::Sampling;

impl Gpu {
    /// Penalises the logits of the tokens `seen`; `marks` are zeros, one a token of the vocabulary.
    pub(crate) fn penalise(&self, logits: &Tensor, seen: &Tensor, penalty: f32, marks: &Tensor) {
        let args = [marks.into(), seen.into(), size(seen.numel()), size(logits.numel())];
        self.launch(Image::Sample, "mark_tokens", Shape::new([1, 1, 1], [1024, 1, 1]), &args);
        let args = [logits.into(), marks.into(), (logits.numel() as u64).into(), penalty.into()];
        self.launch(Image::Sample, "penalise", self.over(logits.numel(), 1), &args);
    }

    /// Writes the token that is picked from one row of logits.
    pub(crate) fn sample(&self, logits: &Tensor, state: &Tensor, how: &Sampling, token: &Tensor) {
        let vocab = size(logits.numel());
        if how.temperature <= 0.0 {
            let args = [logits.into(), token.into(), vocab];
            return self.launch(Image::Loss, "argmax", Shape::new([1, 1, 1], [256, 1, 1]), &args);
        }
        let inverse = (1.0 / how.temperature) as f32;
        let args = [logits.into(), state.into(), token.into(), vocab, inverse.into(), size(how.top_k)];
        let args = [&args[..], &[how.top_p.into(), 0f32.into()]].concat();
        self.launch(Image::Sample, "sample", Shape::new([1, 1, 1], [1024, 1, 1]), &args);
    }
}
