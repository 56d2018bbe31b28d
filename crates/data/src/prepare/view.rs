//! Encoded rows for people and for other programs: as text, and as JSON lines.

use ferrotune_config::plan::{DataPlan, Packing, Stage};
use serde::Serialize;

use crate::encode::{EncodeError, IGNORE};
use crate::rows::{Row, Rows};
use crate::tokenizer::Tokenizer;

/// A stretch of a row that is trained on, or isn't.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Its text, special tokens included.
    pub text: String,
    /// Whether its tokens carry labels.
    pub trained: bool,
}

/// The text of a row in stretches, to be shown in two colours.
///
/// # Errors
/// If the tokenizer can't decode the ids.
pub fn spans(row: &Row<'_>, tokenizer: &Tokenizer) -> Result<Vec<Span>, EncodeError> {
    let mut spans = Vec::new();
    let mut ids = row.input_ids;
    for labels in row.labels.chunk_by(|a, b| (*a == IGNORE) == (*b == IGNORE)) {
        let (stretch, rest) = ids.split_at(labels.len());
        ids = rest;
        spans.push(Span { text: tokenizer.decode(stretch, false)?, trained: labels[0] != IGNORE });
    }
    Ok(spans)
}

/// A row as `ferrotune data --format jsonl` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct JsonLine {
    /// Place among the rows, from 0.
    pub index: usize,
    /// Token ids. A packed row is padded to `cutoff_len`, as LLaMA-Factory pads it.
    pub input_ids: Vec<u32>,
    /// Labels, -100 where there is no loss.
    pub labels: Vec<i32>,
    /// The ids as text.
    pub text: String,
}

/// The rows of a set in order, as `ferrotune data --format jsonl` prints them.
pub fn json_lines<'a>(
    rows: &'a Rows,
    plan: &DataPlan,
    tokenizer: &'a Tokenizer,
) -> impl Iterator<Item = Result<JsonLine, EncodeError>> + 'a {
    let packed = plan.stage == Stage::Sft && plan.packing != Packing::Off;
    let len = if packed { plan.cutoff_len } else { 0 };
    let special = tokenizer.special();
    let pad = special.pad.as_ref().or(special.eos.as_ref()).map_or(0, |token| token.id);
    rows.iter().enumerate().map(move |(index, row)| {
        let mut input_ids = row.input_ids.to_vec();
        let mut labels = row.labels.to_vec();
        let padded = len.max(input_ids.len());
        input_ids.resize(padded, pad);
        labels.resize(padded, IGNORE);
        let text = tokenizer.decode(&input_ids, false)?;
        Ok(JsonLine { index, input_ids, labels, text })
    })
}
