//! Evaluation: the loss on rows that don't train.
//!
//! The reported loss is transformers': the mean over each batch's label tokens, then the mean over batches, the last one
//! counting as much as the others even if it holds fewer rows. (The mean over all tokens would be truer; a user compares
//! this number with runs elsewhere.)

use crate::Result;
use crate::engine::Engine;
use crate::report::Evaluation;
use crate::step::{Sample, batch};
use ferrotune_data::rows::Rows;
use ferrotune_model::{LossOptions, Model};
use ferrotune_tensor::Tape;
use std::time::Instant;

/// Evaluates on all of `rows`, `batch_rows` at a time. Batches without a label token don't count.
///
/// # Errors
/// If memory runs out.
pub fn evaluate(model: &Model, engine: &Engine, rows: &Rows, batch_rows: usize) -> Result<Evaluation> {
    let start = Instant::now();
    let (mut loss, mut batches, mut right, mut labels) = (0.0, 0.0, 0.0, 0.0);
    for first in (0..rows.len()).step_by(batch_rows) {
        let indices = first..(first + batch_rows).min(rows.len());
        let samples: Vec<Sample<'_>> = indices.map(|index| Sample { row: rows.get(index), index }).collect();
        let batch = batch(model, engine, &samples, None);
        let tape = Tape::forward_only(engine.device(), engine);
        model.loss(&tape, &batch, LossOptions { scale: 1.0, smoothing: 0.0 });
        engine.device().check()?;
        let ((sum, hits), count) = (batch.targets.stats(), batch.targets.len() as f64);
        if count > 0.0 {
            loss += f64::from(sum) / count;
            batches += 1.0;
        }
        right += f64::from(hits);
        labels += count;
    }
    Ok(Evaluation {
        loss: loss / batches,
        accuracy: Some(right / labels),
        samples: rows.len() as u64,
        batches: rows.len().div_ceil(batch_rows) as u64,
        runtime: start.elapsed(),
    })
}
