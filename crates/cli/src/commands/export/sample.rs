//! Rows on which an exported model is compared with what it was made of.

use crate::failure::Failure;
use crate::prepare::{self, Answering};
use ferrotune_config::Verb;
use ferrotune_config::plan::{Plan, Precision, Stage};
use ferrotune_data::conversation::{Conversation, Message, Role};
use ferrotune_data::prepare::conversations;
use ferrotune_data::serving::trained_prompt;
use ferrotune_infer::Generator;
use ferrotune_tensor::Device;
use std::path::Path;

/// How many.
const SAMPLES: usize = 8;
/// Tokens of each of them.
const SAMPLE_TOKENS: usize = 256;

/// Rows, and the logits behind them before anything was rounded: those of the base with the adapters, in f32.
pub(super) struct Sample {
    rows: Vec<Vec<u32>>,
    logits: Vec<Vec<f32>>,
}

impl Sample {
    pub(super) fn of(plan: &Plan, open: &Answering) -> Result<Self, Failure> {
        let rows = sample_rows(plan, open)?;
        let logits = logits(open, &rows)?;
        Ok(Self { rows, logits })
    }

    /// How many rows there are.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// The largest difference to the logits of the model at `path`, a folder or a file, and the largest of the logits.
    pub(super) fn drift(&self, path: &Path) -> Result<(f32, f32), Failure> {
        // Nothing is written by a template any more, and the model's own may be one that can't be taken apart.
        let words = [format!("model_name_or_path={}", path.display()), "template=empty".to_owned()];
        let mut merged = prepare::resolve(&words, Verb::Chat)?;
        merged.plan.model.precision = Precision::F32;
        let found = logits(&prepare::open_for_answers(&merged, &Device::cpu())?, &self.rows)?;
        let pairs = || self.logits.iter().flatten().zip(found.iter().flatten());
        // A number that isn't finite is as far away as can be; f32::max would pass over it.
        let drift = pairs().map(|(a, b)| (a - b).abs()).fold(0.0, |max, d| if d > max || d.is_nan() { d } else { max });
        Ok((drift, self.logits.iter().flatten().fold(0.0, |max, logit| max.max(logit.abs()))))
    }
}

/// Conversations of the recipe, and one of ours.
pub(super) fn sample_conversations(plan: &Plan) -> Vec<Conversation> {
    let messages =
        vec![Message::new(Role::User, "Hello, who are you?"), Message::new(Role::Assistant, "An assistant.")];
    let ours = Conversation { messages, ..Conversation::default() };
    let of_recipe = plan.data.stage == Stage::Sft && !plan.data.datasets.is_empty();
    // The rows needn't be at hand where a model is exported.
    let mut found = if of_recipe { conversations(&plan.data, SAMPLES).unwrap_or_default() } else { Vec::new() };
    found.push(ours);
    found.truncate(SAMPLES);
    found
}

/// Prompts of the recipe's rows, or one of ours where it names none.
fn sample_rows(plan: &Plan, open: &Answering) -> Result<Vec<Vec<u32>>, Failure> {
    let mut rows = Vec::new();
    for conversation in &sample_conversations(plan) {
        let mut ids = trained_prompt(&open.tokenizer, &open.template, conversation)?;
        ids.truncate(SAMPLE_TOKENS);
        rows.extend((!ids.is_empty()).then_some(ids));
    }
    Ok(rows)
}

fn logits(open: &Answering, rows: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, Failure> {
    let mut generator = Generator::new(&open.model, &open.engine, open.engine.device(), SAMPLE_TOKENS);
    rows.iter().map(|row| Ok(generator.logits(row)?)).collect()
}
