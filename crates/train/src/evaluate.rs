//! Evaluation: the loss on rows that don't train.
//!
//! The reported loss is transformers': the mean over each batch's label tokens, averaged over batches by their rows. (Over
//! all tokens at once would be truer; a user compares this number with runs elsewhere.)

use crate::Result;
use crate::engine::Engine;
use crate::step::{Sample, batch};
use ferrotune_data::Rows;
use ferrotune_model::{LossOptions, Model};
use ferrotune_tensor::Tape;

/// What an evaluation found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evaluation {
    /// Mean loss, transformers' way.
    pub loss: f64,
    /// Share of label tokens that were the likeliest.
    pub accuracy: f64,
    /// Mean loss over all label tokens at once; `exp` of it is the perplexity.
    pub token_loss: f64,
    /// Rows.
    pub rows: usize,
    /// Batches.
    pub batches: usize,
    /// Tokens that went through the model.
    pub tokens: u64,
}

/// Evaluates on all of `rows`, `batch_rows` at a time.
pub fn evaluate(model: &Model, engine: &Engine, rows: &Rows, batch_rows: usize) -> Result<Evaluation> {
    let mut found = Evaluation { loss: 0.0, accuracy: 0.0, token_loss: 0.0, rows: rows.len(), batches: 0, tokens: 0 };
    let (mut labels, mut weight) = (0.0, 0.0);
    for start in (0..rows.len()).step_by(batch_rows) {
        let indices = start..(start + batch_rows).min(rows.len());
        let samples: Vec<Sample<'_>> = indices.map(|index| Sample { row: rows.get(index), index }).collect();
        let batch = batch(model, engine, &samples, None);
        let tape = Tape::forward_only(engine.device(), engine);
        model.loss(&tape, &batch, LossOptions { scale: 1.0, smoothing: 0.0 });
        engine.device().check()?;
        let (sum, right) = batch.targets.stats();
        let count = batch.targets.len() as f64;
        found.batches += 1;
        found.tokens += batch.tokens() as u64;
        if count > 0.0 {
            found.loss += f64::from(sum) / count * samples.len() as f64;
            weight += samples.len() as f64;
        }
        found.token_loss += f64::from(sum);
        found.accuracy += f64::from(right);
        labels += count;
    }
    found.loss /= weight;
    found.token_loss /= labels;
    found.accuracy /= labels;
    Ok(found)
}
