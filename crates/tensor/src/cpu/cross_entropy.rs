//! Cross-entropy of rows of logits, label smoothing as transformers' `LabelSmoother` has it, the gradient in place.

use super::level::simd;
use super::{level, math};
use rayon::prelude::*;

/// Options of [`cross_entropy`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CrossEntropy {
    /// Logits a row.
    pub vocab: usize,
    /// Share e of the target that is spread over the vocabulary.
    pub smoothing: f32,
    /// Factor of the gradient (not of the losses).
    pub scale: f32,
    /// Overwrites the logits with their gradients.
    pub gradient: bool,
}

/// Computes losses of `labels.len()` rows of logits, `[rows, vocab]`.
///
/// `losses` receives for each row `(1 - e) nll + e mean(-log p)`, then nll, negative (-0 included) where the label has
/// the largest logit. With `gradient` the logits become `scale (p - (1 - e) [label] - e / vocab)`; otherwise their
/// contents are unspecified afterwards.
///
/// # Panics
/// If a label is outside the vocabulary.
pub fn cross_entropy(options: &CrossEntropy, logits: &mut [f32], labels: &[i32], losses: &mut [f32]) {
    let (rows, vocab) = (labels.len(), options.vocab);
    assert!(logits.len() == rows * vocab && losses.len() == 2 * rows, "rows of logits");
    let level = level();
    let rows = logits.par_chunks_exact_mut(vocab.max(1)).zip(labels).zip(losses.par_chunks_exact_mut(2));
    rows.for_each(|((z, &label), out)| {
        let label = usize::try_from(label).ok().filter(|&l| l < vocab).expect("labels are token ids");
        out.copy_from_slice(&row(level, z, label, options));
    });
}

/// Logits whose exponentials are summed in f32 before they join an f64 sum.
const BLOCK: usize = 512;

simd! {
    fn row(z: &mut [f32], label: usize, options: &CrossEntropy) -> [f32; 2] {
        let top = math::max(z);
        let chosen = z[label];
        let (mut total, mut plain) = (0f64, 0f64);
        for block in z.chunks_mut(BLOCK) {
            if options.smoothing != 0.0 {
                plain += f64::from(math::sum(block, |x| x));
            }
            for z in block.iter_mut() {
                *z = math::exp::<M>(*z - top);
            }
            total += f64::from(math::sum(block, |x| x));
        }
        let n = z.len() as f64;
        let lse = f64::from(top) + total.ln();
        let e = f64::from(options.smoothing);
        let nll = lse - f64::from(chosen);
        let loss = (1.0 - e) * nll + if e == 0.0 { 0.0 } else { e * (lse - plain / n) };
        if options.gradient {
            let factor = (f64::from(options.scale) / total) as f32;
            let spread = (f64::from(options.scale) * e / n) as f32;
            for z in z.iter_mut() {
                *z = *z * factor - spread;
            }
            z[label] -= options.scale * (1.0 - options.smoothing);
        }
        let nll = nll.max(0.0) as f32;
        [loss as f32, if chosen >= top { -nll } else { nll }]
    }
}
