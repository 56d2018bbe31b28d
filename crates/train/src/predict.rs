//! Answers to rows, and how alike they are to those expected: `predict_with_generate`.
//!
//! Rows are dealt to the ranks that walk through the model by themselves: to each where all weights lie on it, to each
//! replica where they lie on several. Each row is answered once, whatever the number of ranks, and to the same text: what is
//! drawn for it is a function of its number.

use crate::Result;
use crate::engine::{Alone, Engine, Sharding};
use crate::error::Error;
use crate::report::{Evaluation, Found};
use ferrotune_config::plan::GenerationPlan;
use ferrotune_data::encode::IGNORE;
use ferrotune_data::rows::{Row, Rows};
use ferrotune_data::template::Template;
use ferrotune_data::tokenizer::Tokenizer;
use ferrotune_dist::Activity;
use ferrotune_infer::{Answer, Generator, Request, Sampler};
use ferrotune_model::{Capacity, Model, Stages};
use ferrotune_similarity::{Similarity, mean};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// How rows are answered.
#[derive(Clone, Copy)]
pub struct Answering<'a> {
    /// Texts of ids.
    pub tokenizer: &'a Tokenizer,
    /// The template that rows are written in: it knows what ends an answer.
    pub template: &'a Template,
    /// How tokens are picked, and how many.
    pub generation: &'a GenerationPlan,
    /// Rows that a rank answers at the same time.
    pub at_once: usize,
}

/// A row and its answer, as LLaMA-Factory writes them into `generated_predictions.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Prediction {
    /// What the model was asked, with special tokens.
    pub prompt: String,
    /// What it answered.
    pub predict: String,
    /// What it was expected to answer.
    pub label: String,
}

/// All answers to a set of rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Predicted {
    /// In the order of the rows.
    pub predictions: Vec<Prediction>,
    /// How alike they are to those expected.
    pub evaluation: Evaluation,
    /// How long the cache for them was in the making.
    pub preparation: Duration,
}

/// What a rank found out about a row.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Answered {
    row: usize,
    predict: String,
    numbers: [f64; 4],
}

/// A row in its two parts.
struct Question<'a> {
    prompt: &'a [u32],
    expected: &'a [u32],
}

impl<'a> Question<'a> {
    fn of(row: &Row<'a>) -> Self {
        let (prompt, expected) = row.input_ids.split_at(prompt_of(row));
        Self { prompt, expected }
    }
}

/// Tokens of a row before what the model is expected to answer.
pub(crate) fn prompt_of(row: &Row<'_>) -> usize {
    row.labels.iter().take_while(|&&label| label == IGNORE).count()
}

/// Answers all of `rows`; `hear` is told how many of this rank's are answered, and how many it has. All ranks call it, and
/// get all answers.
///
/// # Errors
/// If memory runs out, a token can't be decoded, or a rank is lost.
pub fn predict(
    model: &Model,
    engine: &Engine,
    rows: &Rows,
    how: Answering<'_>,
    hear: &mut dyn FnMut(usize, usize),
) -> Result<Predicted> {
    let start = Instant::now();
    engine.comm().pulse().does(Activity::Evaluating);
    let walk = Walk::of(engine);
    let alone = Alone(engine);
    let stages = walk.stages(engine, &alone);
    let mine: Vec<usize> = (walk.group..rows.len()).step_by(walk.groups).collect();
    let longest = mine.iter().map(|&row| Question::of(&rows.get(row)).prompt.len()).max().unwrap_or(0);
    let capacity = Capacity { sequences: how.at_once.min(mine.len()), tokens: longest + how.generation.max_new_tokens };
    let mut generator = Generator::of_several(model, stages, engine.device(), capacity);
    check(engine)?;
    let preparation = start.elapsed();
    let requests = mine.iter().map(|&row| Request {
        prompt: Question::of(&rows.get(row)).prompt.to_vec(),
        sampler: Sampler::of_prompt(how.generation, row as u64),
    });
    let (mut answered, mut failed) = (Vec::with_capacity(mine.len()), None);
    let generated = generator.generate_all(requests, &how.template.answer_ends(how.tokenizer), |number, answer| {
        match how.judge(mine[number], &rows.get(mine[number]), &answer) {
            Ok(found) => answered.push(found),
            Err(error) => failed = Some(error),
        }
        hear(answered.len(), mine.len());
    });
    // A rank that is lost stops the device, which knows less about it.
    check(engine)?;
    generated.map_err(Error::Answering)?;
    failed.map_or(Ok(()), Err)?;
    let unread = |error: serde_json::Error| Error::Data(format!("answers of several ranks: {error}"));
    let told = if walk.speaks { serde_json::to_vec(&answered).map_err(unread)? } else { Vec::new() };
    let mut all: Vec<Answered> = Vec::with_capacity(rows.len());
    for bytes in engine.comm().exchange(&told)?.iter().filter(|bytes| !bytes.is_empty()) {
        all.extend(serde_json::from_slice::<Vec<Answered>>(bytes).map_err(unread)?);
    }
    all.sort_by_key(|answered| answered.row);
    if !all.iter().map(|answered| answered.row).eq(0..rows.len()) {
        return Err(Error::Data(format!("ranks answered {} of {} rows, or some twice", all.len(), rows.len())));
    }
    how.sum_up(rows, all, (start, preparation), engine.comm().world())
}

/// Whether something went wrong; for want of memory, with what takes it here.
pub(crate) fn check(engine: &Engine) -> Result<()> {
    engine.check().map_err(|error| match error {
        Error::Device(fault) => Error::Answering(fault.into()),
        other => other,
    })
}

/// How this rank takes part.
pub(crate) struct Walk {
    /// Whether it needs no other rank for a pass.
    alone: bool,
    /// Which of the groups that have rows of their own it belongs to.
    group: usize,
    pub(crate) groups: usize,
    /// Whether it tells the others what its group found.
    speaks: bool,
}

impl Walk {
    pub(crate) fn of(engine: &Engine) -> Self {
        let division = engine.division();
        let (mesh, place) = (&division.mesh, division.mesh.place());
        let whole = division.sharding < Sharding::Weights && !division.spreads_experts();
        let alone = whole && division.spans.len() == 1;
        if alone {
            return Self { alone, group: mesh.data_rank(), groups: mesh.layout().data_ranks(), speaks: true };
        }
        let speaks = place.shard == 0 && place.stage == 0;
        Self { alone, group: place.replica, groups: mesh.layout().replicas, speaks }
    }

    /// Whom the rank asks for weights, and hands its part of a pass on to.
    pub(crate) fn stages<'a>(&self, engine: &'a Engine, alone: &'a Alone<'a>) -> &'a dyn Stages {
        if self.alone { alone } else { engine }
    }
}

impl Answering<'_> {
    /// The text of an answer, and how alike it is to the one expected. Special tokens never count for that.
    fn judge(&self, row: usize, of: &Row<'_>, answer: &Answer) -> Result<Answered> {
        let ids: Vec<u32> = answer.ids.iter().copied().chain(answer.end).collect();
        let plain = self.text(&ids, true)?;
        let numbers = Similarity::of(&plain, &self.text(Question::of(of).expected, true)?).values();
        let predict = if self.generation.skip_special_tokens { plain } else { self.text(&ids, false)? };
        Ok(Answered { row, predict, numbers })
    }

    fn text(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        self.tokenizer.decode(ids, skip_special_tokens).map_err(|error| Error::Data(error.to_string()))
    }

    fn sum_up(
        &self,
        rows: &Rows,
        all: Vec<Answered>,
        (start, preparation): (Instant, Duration),
        ranks: usize,
    ) -> Result<Predicted> {
        let numbers = |i: usize| all.iter().map(|answered| answered.numbers[i]).collect::<Vec<f64>>();
        let found = Found::Answers(std::array::from_fn(|i| mean(&numbers(i))));
        let predictions = all.into_iter().map(|Answered { row, predict, .. }| {
            let row = rows.get(row);
            let Question { prompt, expected } = Question::of(&row);
            let label = self.text(expected, self.generation.skip_special_tokens)?;
            Ok(Prediction { prompt: self.text(prompt, false)?, predict, label })
        });
        let predictions: Vec<Prediction> = predictions.collect::<Result<_>>()?;
        let (samples, batches) = (rows.len() as u64, rows.len().div_ceil(self.at_once * ranks) as u64);
        let evaluation = Evaluation { found, samples, batches, runtime: start.elapsed() - preparation };
        Ok(Predicted { predictions, evaluation, preparation })
    }
}
