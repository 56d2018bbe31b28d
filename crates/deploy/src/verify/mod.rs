//! Whether a running server answers as the trained model would: same names, same prompt tokens, same log-probabilities.
//!
//! Greedy text is no judge: two equal models part at the first near-tie. Log-probabilities of given rows are.

mod client;
mod compare;

pub use client::Client;
pub use compare::{Agreement, agreement};

use serde_json::{Map, Value};

use crate::Result;

/// A training row, and what the trainer says of it.
#[derive(Debug, Clone)]
pub struct Row {
    /// The conversation up to its last answer in OpenAI's form, and the ids that training wrote; nothing where a server may
    /// write it otherwise with right (tools).
    pub prompt: Option<(Value, Vec<u32>)>,
    /// Ids of the whole row.
    pub ids: Vec<u32>,
    /// Places in `ids`, above 0, of the tokens that were trained on.
    pub trained: Vec<usize>,
    /// Log-probability of each of them by the trained model.
    pub tuned: Vec<f32>,
    /// The same by the base; nothing if there is none.
    pub base: Option<Vec<f32>>,
}

/// How the server is asked.
#[derive(Debug, Clone)]
pub struct Question<'a> {
    /// The model's name.
    pub name: &'a str,
    /// An adapter is expected behind the name, not a model of its own.
    pub is_adapter: bool,
    /// Variables that clients send with a chat.
    pub kwargs: &'a Map<String, Value>,
    /// Largest mean difference of log-probabilities that rounding explains.
    pub tolerance: f64,
}

/// What was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// Rows that were scored.
    pub rows: usize,
    /// Prompts whose token ids were compared.
    pub prompts: usize,
    /// How far the log-probabilities agree; nothing if it didn't come to that.
    pub agreement: Option<Agreement>,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

/// A way in which a server isn't what was trained.
#[derive(Debug, Clone, PartialEq)]
pub enum Problem {
    /// Nobody there has the name.
    NoSuchName {
        /// The names there are.
        offered: Vec<String>,
    },
    /// The name is the base model's, or the adapter behind it does nothing.
    Untrained {
        /// The server lists the name as a model without a parent.
        listed_as_base: bool,
    },
    /// Prompts are written otherwise.
    Template {
        /// How many of those compared.
        prompts: usize,
        /// Where the first of them differs, in tokens.
        at: usize,
        /// What training wrote from there on.
        trained: Vec<u32>,
        /// What the server writes.
        served: Vec<u32>,
    },
    /// The adapter acts with another weight than in training: its rank or its scaling is wrong.
    Scaling {
        /// Times the right one.
        factor: f64,
    },
    /// Something else differs: other weights, another adapter, coarser numbers.
    Other,
}

/// Asks `client` about the rows. `rescaled` gives the rows' log-probabilities with the adapter's scale multiplied; it is
/// asked only to name what is wrong.
///
/// # Errors
/// If the server can't be asked, or can't score a prompt.
pub fn verify<E: From<crate::Error>>(
    client: &Client,
    question: &Question<'_>,
    rows: &[Row],
    rescaled: &mut dyn FnMut(f64) -> Result<Vec<Vec<f32>>, E>,
    factors: &[f64],
) -> Result<Verdict, E> {
    let mut verdict = Verdict { rows: 0, prompts: 0, agreement: None, problems: Vec::new() };
    let listed = client.models()?;
    let Some(model) = listed.iter().find(|model| model.id == question.name) else {
        verdict.problems.push(Problem::NoSuchName { offered: listed.into_iter().map(|model| model.id).collect() });
        return Ok(verdict);
    };
    verdict.problems.extend(prompts(client, question, rows, &mut verdict.prompts)?);
    let served = rows.iter().map(|row| client.score(question.name, row)).collect::<Result<Vec<_>>>()?;
    verdict.rows = served.len();
    let tuned: Vec<&[f32]> = rows.iter().map(|row| row.tuned.as_slice()).collect();
    let base: Option<Vec<&[f32]>> = rows.iter().map(|row| row.base.as_deref()).collect();
    let found = agreement(&served, &tuned, base.as_deref());
    verdict.agreement = Some(found);
    if found.is_right(question.tolerance) {
        return Ok(verdict);
    }
    if found.mean_to_base.is_some_and(|to_base| to_base <= question.tolerance && to_base < found.mean) {
        let listed_as_base = question.is_adapter && model.parent.is_none();
        verdict.problems.push(Problem::Untrained { listed_as_base });
        return Ok(verdict);
    }
    let mut best = (found.mean, 1.0);
    for &factor in factors.iter().filter(|_| question.is_adapter) {
        let scored = rescaled(factor)?;
        let scored: Vec<&[f32]> = scored.iter().map(Vec::as_slice).collect();
        let mean = agreement(&served, &scored, None).mean;
        if mean < best.0 {
            best = (mean, factor);
        }
    }
    verdict.problems.push(match best {
        (mean, factor) if factor != 1.0 && mean < found.mean / 2.0 => Problem::Scaling { factor },
        _ => Problem::Other,
    });
    Ok(verdict)
}

/// Compares how prompts are written; `compared` counts them.
fn prompts(client: &Client, question: &Question<'_>, rows: &[Row], compared: &mut usize) -> Result<Option<Problem>> {
    let mut first: Option<(usize, Vec<u32>, Vec<u32>)> = None;
    let mut differ = 0;
    for (messages, trained) in rows.iter().filter_map(|row| row.prompt.as_ref()) {
        // A server that can't show its tokens is judged by what it makes of them.
        let Some(served) = client.tokens(question.name, messages, question.kwargs)? else { break };
        *compared += 1;
        if served != *trained {
            differ += 1;
            first.get_or_insert_with(|| {
                let at = served.iter().zip(trained).take_while(|(a, b)| a == b).count();
                (at, trained[at..].to_vec(), served[at..].to_vec())
            });
        }
    }
    Ok(first.map(|(at, trained, served)| Problem::Template { prompts: differ, at, trained, served }))
}
