//! `kernels/rows.cu`: rows by index; dropout and noise, which are functions of rows' places.

use super::{a_block_a_row, name, size};
use crate::Tensor;
use crate::cpu;
use crate::cuda::gpu::{Arg, Gpu};
use crate::cuda::images::Image;

/// Where a batch's random numbers come from, on the GPU.
#[derive(Clone, Copy)]
pub(crate) struct NoiseSource<'a> {
    /// Of the run, and the optimiser step.
    pub(crate) seed: u64,
    pub(crate) step: u64,
    pub(crate) site: u32,
    pub(crate) samples: &'a Tensor,
    pub(crate) positions: &'a Tensor,
}

impl NoiseSource<'_> {
    fn arg(&self) -> Arg {
        let [k0, k1] = cpu::step_key(self.seed, self.step);
        let mut bytes = [0; 64];
        let words = [k0, k1, self.site].map(u32::to_ne_bytes).concat();
        let lists = [self.samples, self.positions].map(|list| list.address().to_ne_bytes()).concat();
        bytes[..12].copy_from_slice(&words);
        bytes[16..32].copy_from_slice(&lists);
        Arg::Struct(bytes)
    }
}

impl Gpu {
    /// `to[i] = from[index[i]]`.
    pub(crate) fn gather_rows(&self, from: &Tensor, index: &Tensor, to: &Tensor) {
        self.move_rows("gather_rows", [from, to], index);
    }

    /// `to[index[i]] = from[i]`; no index twice.
    pub(crate) fn scatter_rows(&self, from: &Tensor, index: &Tensor, to: &Tensor) {
        self.move_rows("scatter_rows", [from, to], index);
    }

    fn move_rows(&self, kernel: &str, [from, to]: [&Tensor; 2], index: &Tensor) {
        let same = from.dtype() == to.dtype();
        let narrows = from.dtype() == crate::DType::F32 && matches!(to.dtype(), crate::DType::Bf16 | crate::DType::F16);
        if !(same || narrows) {
            return self.lacks(format!("rows of {} as {}", from.dtype(), to.dtype()));
        }
        let kernel = format!("{kernel}_{}_{}", name(from), name(to));
        let args = [to.into(), from.into(), index.into(), size(to.shape().last())];
        self.launch(Image::Rows, &kernel, a_block_a_row(index.numel(), 256), &args);
    }

    /// `to[index[i]] += from[i]`, in the order of i.
    pub(crate) fn scatter_add_rows(&self, from: &Tensor, index: &Tensor, to: &Tensor) {
        let (rows, width) = (size(index.numel()), size(to.shape().last()));
        let args = [to.into(), from.into(), index.into(), rows, width];
        let kernel = format!("scatter_add_rows_{}", name(from));
        self.launch(Image::Rows, &kernel, a_block_a_row(index.numel(), 256), &args);
    }

    /// `y = x / (1 - p)` where an element is kept, 0 where it is dropped.
    pub(crate) fn dropout(&self, x: &Tensor, y: &Tensor, p: f32, noise: &NoiseSource<'_>) {
        let factor = if p < 1.0 { 1.0 / (1.0 - p) } else { 0.0 };
        let args = [x.into(), y.into(), size(x.shape().last()), p.into(), factor.into(), noise.arg()];
        self.launch(Image::Rows, &format!("dropout_{}", name(x)), a_block_a_row(x.shape().rows(), 256), &args);
    }

    /// Adds uniform noise to the rows of an embedding.
    pub(crate) fn add_embedding_noise(&self, x: &Tensor, alpha: f32, lengths: &Tensor, noise: &NoiseSource<'_>) {
        let args = [x.into(), size(x.shape().last()), alpha.into(), lengths.into(), noise.arg()];
        self.launch(Image::Rows, &format!("embedding_noise_{}", name(x)), a_block_a_row(x.shape().rows(), 256), &args);
    }
}
