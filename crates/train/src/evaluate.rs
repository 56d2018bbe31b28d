//! Evaluation: the loss on rows that don't train, and how many of their tokens are guessed right.
//!
//! The reported loss is transformers': the mean over each batch's label tokens, then the mean over batches, the last one
//! counting as much as the others even if it holds fewer rows. (The mean over all tokens would be truer; a user compares
//! this number with runs elsewhere.) The accuracy is LLaMA-Factory's: the share of each row's label tokens, in the mean over
//! rows.

use crate::Result;
use crate::engine::Engine;
use crate::passes::{pass_on, receive};
use crate::report::{Evaluation, Found};
use crate::router_loss::RouterLoss;
use crate::step::{Sample, batch};
use ferrotune_data::rows::Rows;
use ferrotune_dist::Activity;
use ferrotune_model::{Batch, LossOptions, Model};
use ferrotune_tensor::{Tape, Var};
use std::ops::Range;
use std::rc::Rc;
use std::time::Instant;

/// How rows are evaluated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EvaluateOptions {
    /// Rows in a batch.
    pub batch_rows: usize,
    /// The weight of the loss on the balance of experts in a batch, which is part of transformers' number.
    pub router_aux_loss: f64,
    /// Count right guesses too, row by row: the head is then applied to each row by itself.
    pub accuracy: bool,
}

/// Evaluates on all of `rows`, batch by batch, batches dealt to the ranks in turn: the same number on any of them.
/// Batches and rows without a label token don't count.
///
/// # Errors
/// If memory runs out or a rank is lost.
pub fn evaluate(model: &Model, engine: &Engine, rows: &Rows, options: EvaluateOptions) -> Result<Evaluation> {
    let EvaluateOptions { batch_rows, router_aux_loss, accuracy } = options;
    let start = Instant::now();
    let division = engine.division();
    let (mine, ranks) = (division.mesh.data_rank(), division.mesh.layout().data_ranks());
    let batches = rows.len().div_ceil(batch_rows);
    // Losses, batches with one, shares of right guesses, rows with one.
    let mut sums = [0f64; 4];
    for round in 0..batches.div_ceil(ranks) {
        engine.comm().pulse().does(Activity::Evaluating);
        let first = ((round * ranks + mine) * batch_rows).min(rows.len());
        let indices = first..(first + batch_rows).min(rows.len());
        let samples: Vec<Sample<'_>> = indices.map(|index| Sample { row: rows.get(index), index }).collect();
        let tokens: usize = samples.iter().map(|sample| sample.row.input_ids.len()).sum();
        let router = RouterLoss::new(model, engine, router_aux_loss, tokens.max(1) as f64);
        let parts = if accuracy {
            evaluate_rows(model, engine, (&samples, batch_rows), router.as_ref())?
        } else {
            vec![evaluate_batch(model, engine, &samples, router.as_ref())?]
        };
        let stats = parts.iter().map(|part| (part.targets.stats(), part.targets.len() as f64));
        let counted: Vec<((f32, f32), f64)> = stats.filter(|(_, count)| *count > 0.0).collect();
        let count: f64 = counted.iter().map(|(_, count)| count).sum();
        if division.is_last() && count > 0.0 {
            let sum: f64 = counted.iter().map(|((sum, _), _)| f64::from(*sum)).sum();
            sums[0] += sum / count + router.map_or(0.0, |router| router.value().1);
            sums[1] += 1.0;
            sums[2] += counted.iter().map(|((_, hits), count)| f64::from(*hits) / count).sum::<f64>();
            sums[3] += counted.len() as f64;
        }
    }
    engine.comm().sum(&mut sums)?;
    let [loss, counted, right, counted_rows] = sums;
    Ok(Evaluation {
        found: Found::Labels { loss: loss / counted, accuracy: accuracy.then(|| right / counted_rows) },
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
    let batch = batch(model, engine, samples, None, router.map(RouterLoss::balance));
    forward(model, engine, &batch, router, engine.division().span())?;
    Ok(batch)
}

/// The same, with the head applied to each row by itself: a batch a row holds its statistics afterwards. There are as many
/// as a batch has rows, whatever it has, so that all ranks bring the head's weights together as often.
fn evaluate_rows(
    model: &Model,
    engine: &Engine,
    (samples, batch_rows): (&[Sample<'_>], usize),
    router: Option<&RouterLoss>,
) -> Result<Vec<Rc<Batch>>> {
    let head = model.segments() - 1;
    let whole = batch(model, engine, samples, None, router.map(RouterLoss::balance));
    let span = engine.division().span();
    let stream = forward(model, engine, &whole, router, span.start..span.end.min(head))?;
    let (mut parts, mut at) = (Vec::new(), 0);
    if !engine.division().is_last() {
        return Ok(parts);
    }
    for number in 0..batch_rows {
        let sample = samples.get(number).map_or(&[][..], std::slice::from_ref);
        let part = batch(model, engine, sample, None, None);
        let tape = Tape::forward_only(engine.device(), engine);
        let rows = Var::constant(stream.value.rows(at, part.tokens()));
        at += part.tokens();
        model.forward(&tape, &part, head..head + 1, Some(rows), LOSS);
        parts.push(part);
    }
    engine.check()?;
    Ok(parts)
}

const LOSS: LossOptions = LossOptions { scale: 1.0, smoothing: 0.0 };

/// The segments of `span` that lie here; `router` is settled.
fn forward(
    model: &Model,
    engine: &Engine,
    batch: &Rc<Batch>,
    router: Option<&RouterLoss>,
    span: Range<usize>,
) -> Result<Var> {
    let division = engine.division();
    let tape = Tape::forward_only(engine.device(), engine);
    let input = receive(model, engine, batch)?.map(Var::constant);
    let output = model.forward(&tape, batch, span, input, LOSS);
    if !division.is_last() {
        pass_on(engine, &output).wait()?;
    }
    if let Some(router) = router {
        router.settle(&*division.mesh.pipe)?;
    }
    engine.check()?;
    Ok(output)
}
