//! Linear layer and cross-entropy in one, over label rows only and in chunks of rows, so that logits never exist whole:
//! `scale * sum over rows of (1 - e) (lse(z) - z[label]) + e (lse(z) - mean(z))` with z = W x in f32 and e the smoothing.
//!
//! x `[t, hidden]`, W `[vocab, hidden]`. The gradient is computed while the loss is (three products instead of four, and W
//! is not needed again), so the loss must be the root of the backward pass: d loss = 1.

use super::elementwise::cast;
use super::matmul::{Term, flipped, matmul, plain};
use crate::cpu;
use crate::device::On;
use crate::{DType, Device, Kind, Param, Tape, Tensor, Var};

/// Rows that have a loss, with their labels, and what is counted over them.
pub struct Targets {
    rows: Tensor,
    labels: Tensor,
    /// Sum of unscaled losses, and number of rows whose likeliest token is the label; f32 `[2]`.
    stats: Tensor,
}

impl Targets {
    /// Uploads rows of the batch and as many labels.
    pub fn new(device: &Device, rows: &[u32], labels: &[i32]) -> Self {
        assert_eq!(rows.len(), labels.len(), "one label a row");
        Self {
            rows: Tensor::from_u32(device, rows, Kind::Input),
            labels: Tensor::from_i32(device, labels, Kind::Input),
            stats: device.zeros([2], DType::F32, Kind::Input),
        }
    }

    /// Number of rows with a loss.
    pub fn len(&self) -> usize {
        self.rows.numel()
    }

    /// Whether no row has a loss.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sum of unscaled, unsmoothed losses, and number of right guesses.
    pub fn stats(&self) -> (f32, f32) {
        match self.stats.to_f32()[..] {
            [sum, right] => (sum, right),
            _ => (0.0, 0.0),
        }
    }
}

/// Options of the loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CrossEntropy {
    /// Factor of the sum.
    pub scale: f32,
    /// Share of the target spread over the vocabulary.
    pub smoothing: f32,
}

/// Most bytes of logits at a time.
const LOGIT_BYTES: usize = 32 << 20;
/// Rows of a chunk below which the product would be slow.
const LEAST_ROWS: usize = 64;

fn chunk_rows(vocab: usize) -> usize {
    (LOGIT_BYTES / (4 * vocab)).next_multiple_of(LEAST_ROWS).max(LEAST_ROWS)
}

/// The loss, `[1]` in f32.
pub fn linear_cross_entropy(t: &Tape<'_>, x: &Var, head: &Param, targets: &Targets, options: CrossEntropy) -> Var {
    let device = t.device();
    let weight = t.weight(head);
    let (vocab, hidden) = (weight.dims()[0], weight.dims()[1]);
    assert_eq!(x.value.shape().last(), hidden, "input of the head");
    let grads_x = t.records() && x.needs_grad();
    let grads_w = t.trains(head);
    let loss = device.zeros([1], DType::F32, Kind::Act);
    let dx = grads_x.then(|| device.zeros(x.value.shape(), x.value.dtype(), Kind::ActGrad));
    let dw = grads_w.then(|| t.grad(head));
    let step = chunk_rows(vocab).min(targets.len().max(1));
    let part = Chunk { x: &x.value, weight: &weight, targets, options, dx: dx.as_ref(), dw: dw.as_ref(), loss: &loss };
    for start in (0..targets.len()).step_by(step) {
        part.run(start, step.min(targets.len() - start), device);
    }
    let id = x.id();
    t.op(loss, grads_x || grads_w, move |g, _one| {
        if let (Some(id), Some(dx)) = (id, dx) {
            g.put(id, dx);
        }
    })
}

struct Chunk<'a> {
    x: &'a Tensor,
    weight: &'a Tensor,
    targets: &'a Targets,
    options: CrossEntropy,
    dx: Option<&'a Tensor>,
    dw: Option<&'a Tensor>,
    loss: &'a Tensor,
}

impl Chunk<'_> {
    fn run(&self, start: usize, rows: usize, device: &Device) {
        let (vocab, hidden) = (self.weight.dims()[0], self.weight.dims()[1]);
        let index = self.targets.rows.rows(start, rows);
        let h = gathered(self.x, &index, device);
        let logits = device.empty([rows, vocab], DType::F32, Kind::Work);
        let losses = device.empty([rows, 2], DType::F32, Kind::Work);
        matmul(&logits, 0.0, Term::new(1.0, plain(&h), flipped(self.weight)), None, None);
        let backward = self.dx.is_some() || self.dw.is_some();
        // Narrow weights want a partner of their type, or the product runs at f32's rate.
        let rounds = backward && self.x.dtype() != DType::F32;
        let rounded = rounds.then(|| device.empty([rows, vocab], self.x.dtype(), Kind::Work));
        let labels = self.targets.labels.rows(start, rows);
        let CrossEntropy { scale, smoothing } = self.options;
        match logits.runs_on() {
            None => {}
            Some(On::Cpu) => {
                let options = cpu::CrossEntropy { vocab, smoothing, scale, gradient: backward };
                cpu::cross_entropy(&options, logits.f32_mut(), labels.i32(), losses.f32_mut());
                self.count(losses.f32());
                if let Some(rounded) = &rounded {
                    cast(rounded, &logits);
                }
            }
            Some(On::Cuda(gpu)) => {
                let dz = backward.then(|| rounded.as_ref().unwrap_or(&logits));
                gpu.cross_entropy([&logits, &labels, &losses], dz, (scale, smoothing));
                gpu.count_losses(&losses, scale, self.loss, &self.targets.stats);
            }
        }
        if !backward {
            return;
        }
        let dz = rounded.unwrap_or(logits);
        if let Some(dw) = self.dw {
            matmul(dw, 1.0, Term::new(1.0, flipped(&dz), plain(&h)), None, None);
        }
        if let Some(dx) = self.dx {
            let dh = device.empty([rows, hidden], self.x.dtype(), Kind::Work);
            matmul(&dh, 0.0, Term::new(1.0, plain(&dz), plain(self.weight)), None, None);
            match dh.runs_on() {
                None => {}
                Some(On::Cpu) => cpu::scatter_rows(dh.data(), index.u32(), dx.data_mut(), hidden),
                Some(On::Cuda(gpu)) => gpu.scatter_rows(&dh, &index, dx),
            }
        }
    }

    /// Adds a chunk's losses, in row order: (smoothed loss, unsmoothed loss or its negative where the guess was right).
    fn count(&self, losses: &[f32]) {
        let (loss, stats) = (self.loss.f32_mut(), self.targets.stats.f32_mut());
        let mut sums = [0f64; 3];
        for row in losses.chunks_exact(2) {
            sums[0] += f64::from(row[0]);
            sums[1] += f64::from(row[1].abs());
            sums[2] += f64::from(u8::from(row[1].is_sign_negative()));
        }
        loss[0] += sums[0] as f32 * self.options.scale;
        stats[0] += sums[1] as f32;
        stats[1] += sums[2] as f32;
    }
}

fn gathered(x: &Tensor, index: &Tensor, device: &Device) -> Tensor {
    let width = x.shape().last();
    let h = device.empty([index.numel(), width], x.dtype(), Kind::Work);
    match h.runs_on() {
        None => {}
        Some(On::Cpu) => cpu::gather_rows(x.data(), index.u32(), h.data_mut(), width),
        Some(On::Cuda(gpu)) => gpu.gather_rows(x, index, &h),
    }
    h
}

/// Logits of the rows `index` of `x`, `[rows, vocab]` in f32; nothing is recorded.
pub fn row_logits(t: &Tape<'_>, x: &Tensor, head: &Param, index: &Tensor) -> Tensor {
    let weight = t.weight(head);
    let h = gathered(x, index, t.device());
    let logits = t.device().empty([index.numel(), weight.dims()[0]], DType::F32, Kind::Act);
    matmul(&logits, 0.0, Term::new(1.0, plain(&h), flipped(&weight)), None, None);
    logits
}
