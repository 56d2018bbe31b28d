//! Evaluation: the loss on rows that don't train.
//!
//! The reported loss is transformers': the mean over each batch's label tokens, then the mean over batches, the last one
//! counting as much as the others even if it holds fewer rows. (The mean over all tokens would be truer; a user compares
//! this number with runs elsewhere.)

use crate::Result;
use crate::engine::Engine;
use crate::passes::{pass_on, receive};
use crate::report::Evaluation;
use crate::router_loss::RouterLoss;
use crate::step::{Sample, batch};
use ferrotune_data::rows::Rows;
use ferrotune_dist::Activity;
use ferrotune_model::{Batch, LossOptions, Model};
use ferrotune_tensor::{Tape, Var};
use std::rc::Rc;
use std::time::Instant;

/// Evaluates on all of `rows`, `batch_rows` at a time, batches dealt to the ranks in turn: the same number on any of them.
/// Batches without a label token don't count. `router_aux_loss` is the weight of the loss on the balance of experts in a
/// batch, which is part of transformers' number.
///
/// # Errors
/// If memory runs out or a rank is lost.
pub fn evaluate(
    model: &Model,
    engine: &Engine,
    rows: &Rows,
    batch_rows: usize,
    router_aux_loss: f64,
) -> Result<Evaluation> {
    let start = Instant::now();
    let division = engine.division();
    let (mine, ranks) = (division.mesh.data_rank(), division.mesh.layout().data_ranks());
    let batches = rows.len().div_ceil(batch_rows);
    // Losses, batches with one, right guesses, label tokens.
    let mut sums = [0f64; 4];
    for round in 0..batches.div_ceil(ranks) {
        engine.comm().pulse().does(Activity::Evaluating);
        let first = ((round * ranks + mine) * batch_rows).min(rows.len());
        let indices = first..(first + batch_rows).min(rows.len());
        let samples: Vec<Sample<'_>> = indices.map(|index| Sample { row: rows.get(index), index }).collect();
        let tokens: usize = samples.iter().map(|sample| sample.row.input_ids.len()).sum();
        let router = RouterLoss::new(model, engine, router_aux_loss, tokens.max(1) as f64);
        let batch = evaluate_batch(model, engine, &samples, router.as_ref())?;
        let ((sum, hits), count) = (batch.targets.stats(), batch.targets.len() as f64);
        if division.is_last() && count > 0.0 {
            sums[0] += f64::from(sum) / count + router.map_or(0.0, |router| router.value().1);
            sums[1] += 1.0;
            sums[2] += f64::from(hits);
            sums[3] += count;
        }
    }
    engine.comm().sum(&mut sums)?;
    let [loss, counted, right, labels] = sums;
    Ok(Evaluation {
        loss: loss / counted,
        accuracy: Some(right / labels),
        samples: rows.len() as u64,
        batches: batches as u64,
        runtime: start.elapsed(),
    })
}

/// One batch forward, whose statistics it holds afterwards; `router` is settled.
pub(crate) fn evaluate_batch(
    model: &Model,
    engine: &Engine,
    samples: &[Sample<'_>],
    router: Option<&RouterLoss>,
) -> Result<Rc<Batch>> {
    let division = engine.division();
    let batch = batch(model, engine, samples, None, router.map(RouterLoss::balance));
    let tape = Tape::forward_only(engine.device(), engine);
    let input = receive(model, engine, &batch)?.map(Var::constant);
    let output = model.forward(&tape, &batch, division.span(), input, LossOptions { scale: 1.0, smoothing: 0.0 });
    if !division.is_last() {
        pass_on(engine, &output).wait()?;
    }
    if let Some(router) = router {
        router.settle(&*division.mesh.pipe)?;
    }
    engine.check()?;
    Ok(batch)
}
