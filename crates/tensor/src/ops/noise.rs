//! Dropout and embedding noise without state: every random number is a function of (seed, step, site, sample, place,
//! column), so that it is the same when a block is recomputed, on any rank and in any micro-batch.

use super::linear::Lora;
use crate::cpu;
use crate::cuda::kernels::NoiseSource;
use crate::device::On;
use crate::{Kind, Tape, Tensor, Var};
use std::rc::Rc;

/// Keys of one batch's randomness.
#[derive(Debug)]
pub struct Noise {
    /// Of the run.
    pub seed: u64,
    /// Optimiser step.
    pub step: u64,
    /// Row of the data set that each token belongs to, `[t]`.
    pub samples: Tensor,
    /// Place of each token in its row, `[t]`.
    pub positions: Tensor,
    /// Number of tokens in each token's row, `[t]`.
    pub lengths: Tensor,
    /// NEFTune's alpha; 0 for none.
    pub embedding_alpha: f32,
}

impl Noise {
    fn key(&self, site: usize) -> cpu::NoiseKey<'_> {
        let (samples, positions) = (self.samples.u32(), self.positions.u32());
        cpu::NoiseKey { seed: self.seed, step: self.step, site: site as u32, samples, positions }
    }

    pub(super) fn source(&self, site: usize) -> NoiseSource<'_> {
        let (samples, positions) = (&self.samples, &self.positions);
        NoiseSource { seed: self.seed, step: self.step, site: site as u32, samples, positions }
    }
}

/// Site of the embedding's noise; adapters use their parameter's id.
const EMBEDDING_SITE: usize = u32::MAX as usize;

/// The adapter's input with dropout applied: itself where there is none.
pub(crate) fn dropped(x: &Tensor, lora: &Lora, noise: Option<&Noise>) -> Tensor {
    let Some(noise) = noise.filter(|_| lora.dropout > 0.0) else { return x.clone() };
    let y = x.empty_like(Kind::Work);
    match y.runs_on() {
        None => {}
        Some(On::Cpu) => cpu::dropout(x.data(), y.data_mut(), x.shape().last(), lora.dropout, &noise.key(lora.a.id)),
        Some(On::Cuda(gpu)) => gpu.dropout(x, &y, lora.dropout, &noise.source(lora.a.id)),
    }
    y
}

/// NEFTune, Jain et al. 2023, <https://arxiv.org/abs/2310.05914>: adds uniform noise within alpha / sqrt(length * width) to
/// each row of an embedding `x` `[t, width]`.
pub fn embedding_noise(t: &Tape<'_>, x: Var, noise: &Rc<Noise>) -> Var {
    let (id, needs) = (x.id(), x.needs_grad());
    match x.value.runs_on() {
        None => {}
        Some(On::Cpu) => {
            let (lengths, width, key) = (noise.lengths.u32(), x.value.shape().last(), noise.key(EMBEDDING_SITE));
            cpu::add_embedding_noise(x.value.data_mut(), width, noise.embedding_alpha, lengths, &key);
        }
        Some(On::Cuda(gpu)) => {
            let source = noise.source(EMBEDDING_SITE);
            gpu.add_embedding_noise(&x.value, noise.embedding_alpha, &noise.lengths, &source);
        }
    }
    t.op(x.value, needs, move |g, dy| {
        if let Some(id) = id {
            g.put(id, dy);
        }
    })
}

/// Fills `x` with uniform values within `bound`, a function of (seed, stream). A GPU's are made here too: it is done once.
pub fn fill_uniform(x: &Tensor, bound: f32, seed: u64, stream: u64) {
    match x.runs_on() {
        None => {}
        Some(On::Cpu) => cpu::fill_uniform(x.f32_mut(), -bound, bound, seed, stream),
        Some(On::Cuda(_)) => {
            let mut values = vec![0f32; x.numel()];
            cpu::fill_uniform(&mut values, -bound, bound, seed, stream);
            x.write_f32(&values);
        }
    }
}
