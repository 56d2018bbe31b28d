//! Rows that a run evaluates or answers while its states are in memory: how long they are, and what of them takes most.

use crate::engine::{Alone, Engine};
use crate::order::longest_batch;
use crate::predict::{Walk, check, prompt_of};
use crate::{Error, Result};
use ferrotune_config::plan::{Interval, Plan, ValSize};
use ferrotune_data::rows::Rows;
use ferrotune_infer::Generator;
use ferrotune_model::{Capacity, Model};

/// A row for evaluation, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EvaluatedRow {
    /// All of them.
    pub tokens: usize,
    /// Those that the model is asked with, where rows are answered; 0 where they aren't.
    pub prompt: usize,
}

impl EvaluatedRow {
    /// What a shorter `cutoff_len` leaves of it.
    pub(crate) fn cut(self, most: usize) -> Self {
        Self { tokens: self.tokens.min(most), prompt: self.prompt.min(most) }
    }
}

/// Answers to the rows of a set, as far as they decide on memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answers {
    /// Rows of the set.
    pub rows: usize,
    /// Rows that a rank answers at the same time.
    pub at_once: usize,
    /// Tokens of the longest prompt with its answer.
    pub tokens: usize,
}

/// The rows of each set. Only where they are answered are they read.
pub fn evaluated_rows<'a>(sets: impl IntoIterator<Item = &'a Rows>, plan: &Plan) -> Vec<Vec<EvaluatedRow>> {
    let prompt = |rows: &Rows, i| if plan.eval.generate { prompt_of(&rows.get(i)) } else { 0 };
    let row = |rows: &Rows, i| EvaluatedRow { tokens: rows.size(i).0, prompt: prompt(rows, i) };
    sets.into_iter().map(|rows| (0..rows.len()).map(|i| row(rows, i)).collect()).collect()
}

/// Rows that stand for those of a recipe whose data isn't here: a batch as long as they may be.
pub fn assumed_rows(plan: &Plan) -> Vec<Vec<EvaluatedRow>> {
    let data = &plan.data;
    if data.eval_datasets.is_empty() && matches!(data.val_size, ValSize::None) {
        return Vec::new();
    }
    vec![vec![EvaluatedRow { tokens: data.cutoff_len, prompt: data.cutoff_len }; plan.eval.batch]]
}

fn evaluates(plan: &Plan) -> bool {
    let output = &plan.output;
    plan.eval.on_start || plan.eval.every != Interval::Never || output.evaluate || output.predict
}

/// Tokens of the rows of the longest batch whose loss is taken while the run's states are in memory.
pub fn longest_evaluation(sets: &[Vec<EvaluatedRow>], plan: &Plan) -> Vec<usize> {
    if !evaluates(plan) || plan.eval.generate {
        return Vec::new();
    }
    longest_batch(sets.iter().flatten().map(|row| row.tokens).collect(), plan.eval.batch, None)
}

/// The answers that take most, if rows are answered while the run's states are in memory.
pub fn widest_answers(sets: &[Vec<EvaluatedRow>], plan: &Plan) -> Option<Answers> {
    if !evaluates(plan) || !plan.eval.generate {
        return None;
    }
    let of = |rows: &Vec<EvaluatedRow>| {
        let longest = rows.iter().map(|row| row.prompt).max()?;
        let tokens = longest + plan.generation.max_new_tokens;
        Some(Answers { rows: rows.len(), at_once: plan.eval.batch, tokens })
    };
    sets.iter().filter_map(of).max_by_key(|answers| answers.at_once.min(answers.rows) * answers.tokens)
}

impl Answers {
    /// The room that a rank makes for them where `groups` of ranks share the rows out.
    pub(crate) fn capacity(self, groups: usize) -> Capacity {
        Capacity { sequences: self.at_once.min(self.rows.div_ceil(groups)), tokens: self.tokens }
    }

    /// Does on a device that counts what answering does that takes most.
    pub(crate) fn rehearse(self, model: &Model, engine: &Engine) -> Result<()> {
        let walk = Walk::of(engine);
        let alone = Alone(engine);
        let (stages, capacity) = (walk.stages(engine, &alone), self.capacity(walk.groups));
        let mut generator = Generator::of_several(model, stages, engine.device(), capacity);
        check(engine)?;
        generator.rehearse().map_err(Error::Answering)
    }
}
