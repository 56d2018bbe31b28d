//! Training rows that are used while they are still being encoded.
//!
//! What a run must know before its first step is its length in steps, the longest row it may meet, its evaluation sets
//! and its first rows. A streamed run states the first (`max_steps`), `cutoff_len` bounds the second, and evaluation
//! sets are encoded first. How many rows there are, and of how many tokens, it needs when an epoch ends, and then all
//! are there. So it begins with the first few thousand rows; a run that isn't streamed shuffles all rows, and waits. Of
//! several processes of a machine one encodes, and the others read along.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use ferrotune_config::plan::{DataPlan, Packing};

use super::datasets::Dataset;
use super::{Prepared, Progress, Start, TRAIN, Work, prepared};
use crate::clock::Moment;
use crate::error::DataError;
use crate::report::Report;
use crate::rows::{self, Cached, Growing, Rows, Whole};
use crate::tokenizer::Tokenizer;

/// Rows that are still being encoded.
#[derive(Debug, Clone)]
pub struct Coming {
    rows: Arc<Growing>,
    report: Arc<Mutex<Option<Report>>>,
}

impl Coming {
    /// What happened to the data, once all of it is encoded.
    pub fn report(&self) -> Option<Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Rows encoded so far, over all sets.
    pub fn rows(&self) -> usize {
        self.rows.seen().rows
    }
}

/// [`super::prepare`], but of streamed data it returns as soon as there are rows to train on; a thread encodes the others.
///
/// # Errors
/// As [`super::prepare`], for what goes wrong until then; what goes wrong later, [`Rows::wait`] tells.
pub fn begin(plan: &DataPlan, tokenizer: &mut Tokenizer, observer: &dyn Progress) -> Result<Prepared, DataError> {
    if plan.stream.is_none() {
        return super::prepare(plan, tokenizer, observer);
    }
    early(plan, tokenizer, |work, datasets, notes, readers| {
        work.pool.install(|| work.run(&(), Some(readers)).encode(datasets, notes))
    })
}

/// [`begin`] in a process beside the one that called it: that one encodes, this one reads along.
///
/// # Errors
/// As [`begin`].
pub fn follow(plan: &DataPlan, tokenizer: &mut Tokenizer) -> Result<Prepared, DataError> {
    // What the other has encoded anew needn't be encoded once more.
    let plan = DataPlan { overwrite_cache: false, ..plan.clone() };
    if plan.stream.is_none() {
        return super::prepare(&plan, tokenizer, &());
    }
    early(&plan, tokenizer, |work, _, _, readers| rows::follow(&work.path, &work.key, TRAIN, &readers))
}

/// What is known as soon as there are rows to train on; a thread does `bring`, which brings all of them.
fn early(
    plan: &DataPlan,
    tokenizer: &mut Tokenizer,
    bring: impl FnOnce(&Work, Vec<Dataset>, Vec<String>, Arc<Growing>) -> Result<Cached, DataError> + Send + 'static,
) -> Result<Prepared, DataError> {
    let Start { work, datasets, notes, new_tokens, found } = Start::of(Moment::now(), plan, tokenizer)?;
    if let Some(cached) = found {
        return Ok(prepared(work, new_tokens, cached, true));
    }
    let known = notes.clone();
    let (template, path) = (work.template.clone(), work.path.clone());
    let coming = Coming { rows: Arc::new(Growing::new()), report: Arc::default() };
    let theirs = coming.clone();
    let encoding = thread::Builder::new().name("encoding".to_owned()).spawn(move || {
        let result = bring(&work, datasets, notes, Arc::clone(&theirs.rows));
        if let Ok(cached) = &result {
            *theirs.report.lock().unwrap_or_else(PoisonError::into_inner) = Some(cached.report.clone());
        }
        theirs.rows.end(result.as_ref().map(drop).map_err(ToString::to_string));
        result.map(|cached| (work, cached))
    });
    let encoding = encoding.map_err(|error| DataError::Threads { workers: 1, message: error.to_string() })?;
    let Some(mut sets) = coming.rows.wait_settled() else {
        let (work, cached) = encoding.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        return Ok(prepared(work, new_tokens, cached, false));
    };
    let isolated = plan.packing == Packing::Neat;
    let first = sets.pop().map_or(0, |set| set.rows.start);
    let largest_id = u32::try_from(tokenizer.len()).unwrap_or(u32::MAX).saturating_sub(1);
    let whole = |set: Whole| (set.name, Rows::settled(Arc::clone(&coming.rows), set.rows, isolated, set.largest_id));
    Ok(Prepared {
        train: Some(Rows::growing(Arc::clone(&coming.rows), first, isolated, plan.cutoff_len, largest_id)),
        eval: sets.into_iter().map(whole).collect(),
        report: Report { notes: known, ..Report::default() },
        template,
        new_tokens,
        cache: path,
        from_cache: false,
        coming: Some(coming),
    })
}
