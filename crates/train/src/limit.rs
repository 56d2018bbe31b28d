//! What is done about memory while a run goes on: the longest micro-batch first, so that memory runs out then or never; and
//! micro-batches of fewer rows where it did and `auto_find_batch_size` wants to go on.
//!
//! A step's rows, its divisor and the randomness of each row don't depend on how they are laid into micro-batches, so fewer
//! rows at a time change nothing of a step but the order in which gradients are added.

use crate::engine::Engine;
use crate::gauge::Gauge;
use crate::memory::{Flat, samples};
use crate::passes::Passes;
use crate::router_loss::RouterLoss;
use crate::step::{Outcome, Sample, StepOptions, Work, step};
use crate::{Error, Result};
use ferrotune_model::{LossOptions, Model, NoiseSettings};
use ferrotune_tensor::Fault;

/// Rows of a micro-batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// As the recipe has them.
    pub written: usize,
    /// At most so many at a time, where that is less.
    pub rows: Option<usize>,
    /// Whether fewer are tried when memory runs out.
    pub shrinks: bool,
}

/// The longest micro-batch that a run may come by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Longest {
    /// Tokens of each of its rows, the longest first.
    pub lengths: Vec<usize>,
    /// How many rows it may have.
    pub limit: Limit,
}

impl Limit {
    /// Says that micro-batches have become smaller than they were `before`.
    pub fn told(&self, before: Self) -> Option<String> {
        let rows = self.rows.filter(|_| *self != before)?;
        let rows = if rows == 1 { "1 row".to_owned() } else { format!("{rows} rows") };
        Some(format!(
            "memory doesn't suffice for micro-batches as written: auto_find_batch_size gives them {rows} at most from here on; \
             steps keep their rows, so the result is the same"
        ))
    }

    /// Micro-batches within the limit: as many on each rank, whatever rows it has.
    fn cut<'a>(&self, micro_batches: &[Vec<Sample<'a>>]) -> Vec<Vec<Sample<'a>>> {
        let Some(rows) = self.rows else { return micro_batches.to_vec() };
        let pieces = |samples: &Vec<Sample<'a>>| {
            let count = samples.len().div_ceil(rows).max(self.pieces());
            let piece = |i: usize| samples.iter().skip(i * rows).take(rows).copied().collect();
            (0..count).map(piece).collect::<Vec<_>>()
        };
        micro_batches.iter().flat_map(pieces).collect()
    }

    /// Micro-batches that one as written is cut into.
    pub fn pieces(&self) -> usize {
        self.rows.map_or(1, |rows| self.written.div_ceil(rows))
    }

    /// Halves `most` rows if that may help after this error, and lets the device work again.
    fn shrink(&mut self, engine: &Engine, error: &Error, most: usize) -> bool {
        // Several ranks don't know of each other's memory while collectives are under way.
        let may = self.shrinks && most > 1 && engine.comm().world() == 1;
        if !may || !matches!(error, Error::Device(Fault::OutOfMemory { .. })) {
            return false;
        }
        self.rows = Some(most.div_ceil(2));
        engine.recover();
        true
    }

    fn within(&self, rows: usize) -> usize {
        self.rows.map_or(rows, |most| most.min(rows))
    }
}

/// One step with micro-batches within `limit`; again with smaller ones where memory runs out before the update and that is
/// wanted.
///
/// # Errors
/// As [`step`].
pub fn step_within(
    model: &Model,
    engine: &Engine,
    options: &StepOptions,
    work: &Work<'_>,
    limit: &mut Limit,
) -> Result<Outcome> {
    loop {
        let micro_batches = limit.cut(work.micro_batches);
        let Work { step: number, rate, scale, votes, .. } = *work;
        let cut = Work { step: number, rate, micro_batches: &micro_batches, scale, votes };
        match step(model, engine, options, &cut) {
            Err(error) if limit.shrink(engine, &error, micro_batches.iter().map(Vec::len).max().unwrap_or(0)) => {}
            other => return other,
        }
    }
}

/// Runs a micro-batch of rows of `lengths`, every token with a label, forward and backward, and forgets it: no weight and no
/// moment changes. A collective.
///
/// # Errors
/// If memory runs out, with `limit` as small as it may get, or a rank is lost.
pub fn rehearse(
    model: &Model,
    engine: &Engine,
    options: &StepOptions,
    lengths: &[usize],
    limit: &mut Limit,
) -> Result<()> {
    loop {
        // The longest come first.
        let rows: Vec<Flat> = lengths.iter().take(limit.within(lengths.len())).map(|&len| Flat::new(len)).collect();
        match once(model, engine, options, &samples(&rows)) {
            Err(error) if limit.shrink(engine, &error, rows.len()) => {}
            other => return other,
        }
    }
}

fn once(model: &Model, engine: &Engine, options: &StepOptions, samples: &[Sample<'_>]) -> Result<()> {
    engine.zero_grads();
    let tokens: usize = samples.iter().map(|sample| sample.row.input_ids.len()).sum();
    let loss = LossOptions { scale: 1.0 / tokens.max(1) as f32, smoothing: options.smoothing };
    let noise = NoiseSettings { seed: options.seed, step: 0, embedding_alpha: options.embedding_alpha };
    let router = RouterLoss::new(model, engine, options.router_aux_loss, tokens.max(1) as f64);
    // As many micro-batches as a pipe holds at once.
    let micro_batches = vec![samples.to_vec(); engine.division().spans.len()];
    let passes = Passes { model, engine, loss, noise, recompute: options.recompute, router: router.as_ref() };
    let mesh = &engine.division().mesh;
    let gauge = Gauge::new(engine.device(), mesh, micro_batches.len());
    passes.run(&micro_batches, &gauge)?;
    engine.reduce_grads(&gauge.squares())?;
    gauge.clip(mesh, 1.0, options.max_norm)?;
    gauge.read();
    engine.check()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_cut_into_as_many_pieces_on_each_rank() {
        let flat = Flat::new(3);
        let all = |rows: &[usize]| -> Vec<Vec<Sample<'_>>> {
            let mut index = 0;
            let mut of = |count: &usize| {
                (0..*count)
                    .map(|_| {
                        index += 1;
                        Sample { row: flat.row(), index }
                    })
                    .collect()
            };
            rows.iter().map(&mut of).collect()
        };
        let cut = |rows, given: &[usize]| {
            let limit = Limit { written: 5, rows, shrinks: true };
            let cut = limit.cut(&all(given));
            let order: Vec<usize> = cut.iter().flatten().map(|sample| sample.index).collect();
            assert!(order.is_sorted() && order.len() == given.iter().sum::<usize>(), "no row is lost or moved");
            cut.iter().map(Vec::len).collect::<Vec<_>>()
        };
        assert_eq!(cut(None, &[5, 3]), [5, 3]);
        assert_eq!(cut(Some(2), &[5, 3, 0]), [2, 2, 1, 2, 1, 0, 0, 0, 0]);
        assert_eq!(cut(Some(1), &[2]), [1, 1, 0, 0, 0]);
        // Micro-batches of a budget of tokens may have more rows than are written.
        assert_eq!(cut(Some(3), &[8]), [3, 3, 2]);
    }
}
