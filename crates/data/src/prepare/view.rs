//! Encoded rows for people and for other programs: as text, and as JSON lines.

use ferrotune_config::plan::{DataPlan, Packing, Stage};
use serde::Serialize;

use crate::encode::{EncodeError, IGNORE};
use crate::preference::{Feedback, Pair, Part};
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

/// A sequence of a row, and what it is in its row; nothing where it is all of it.
pub type Sequence<'a> = (&'static str, Part<'a>);

/// The sequences of a row that are looked at one by one.
pub fn sequences<'a>(row: &Row<'a>, stage: Stage) -> Vec<Sequence<'a>> {
    let whole = || vec![("", Part { input_ids: row.input_ids, labels: row.labels })];
    match stage {
        Stage::Pretrain | Stage::Sft => whole(),
        Stage::Pairwise => {
            Pair::of(row).map_or_else(whole, |pair| vec![("chosen", pair.chosen), ("rejected", pair.rejected)])
        }
        Stage::Feedback => Feedback::of(row).map_or_else(whole, |row| {
            let own = if row.wanted { "wanted" } else { "not wanted" };
            vec![(own, row.own), ("with another row's answer", row.mismatched)]
        }),
    }
}

/// The text of a sequence in stretches, to be shown in two colours.
///
/// # Errors
/// If the tokenizer can't decode the ids.
pub fn spans(part: &Part<'_>, tokenizer: &Tokenizer) -> Result<Vec<Span>, EncodeError> {
    let mut spans = Vec::new();
    let mut ids = part.input_ids;
    for labels in part.labels.chunk_by(|a, b| (*a == IGNORE) == (*b == IGNORE)) {
        let (stretch, rest) = ids.split_at(labels.len());
        ids = rest;
        spans.push(Span { text: tokenizer.decode(stretch, false)?, trained: labels[0] != IGNORE });
    }
    Ok(spans)
}

/// A row as `ferrotune data --format jsonl` prints it, under LLaMA-Factory's names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum JsonLine {
    /// Of stages pt and sft.
    Row {
        /// Place among the rows, from 0.
        index: usize,
        /// Token ids. A packed row is padded to `cutoff_len`, as LLaMA-Factory pads it.
        input_ids: Vec<u32>,
        /// Labels, -100 where there is no loss.
        labels: Vec<i32>,
        /// The ids as text.
        text: String,
    },
    /// Of stages rm and dpo: the same for each answer.
    #[expect(missing_docs, reason = "the fields are those of a row, twice")]
    Pair {
        index: usize,
        chosen_input_ids: Vec<u32>,
        chosen_labels: Vec<i32>,
        chosen_text: String,
        rejected_input_ids: Vec<u32>,
        rejected_labels: Vec<i32>,
        rejected_text: String,
    },
    /// Of stage kto: the same for the row and for its prompt with another row's answer.
    #[expect(missing_docs, reason = "the fields are those of a row, twice, and the tag")]
    Feedback {
        index: usize,
        input_ids: Vec<u32>,
        labels: Vec<i32>,
        text: String,
        kl_input_ids: Vec<u32>,
        kl_labels: Vec<i32>,
        kl_text: String,
        kto_tags: bool,
    },
}

/// The rows of a set in order, as `ferrotune data --format jsonl` prints them.
pub fn json_lines<'a>(
    rows: &'a Rows,
    plan: &DataPlan,
    tokenizer: &'a Tokenizer,
) -> impl Iterator<Item = Result<JsonLine, EncodeError>> + 'a {
    let stage = plan.stage;
    let packed = stage == Stage::Sft && plan.packing != Packing::Off && !plan.generate;
    let len = if packed { plan.cutoff_len } else { 0 };
    rows.iter().enumerate().map(move |(index, row)| json_line(index, &row, (stage, len), tokenizer))
}

fn json_line(
    index: usize,
    row: &Row<'_>,
    (stage, len): (Stage, usize),
    tokenizer: &Tokenizer,
) -> Result<JsonLine, EncodeError> {
    let of = |part: Part<'_>| -> Result<(Vec<u32>, Vec<i32>, String), EncodeError> {
        Ok((part.input_ids.to_vec(), part.labels.to_vec(), tokenizer.decode(part.input_ids, false)?))
    };
    if let (Stage::Pairwise, Some(pair)) = (stage, Pair::of(row)) {
        let (chosen_input_ids, chosen_labels, chosen_text) = of(pair.chosen)?;
        let (rejected_input_ids, rejected_labels, rejected_text) = of(pair.rejected)?;
        return Ok(JsonLine::Pair {
            index,
            chosen_input_ids,
            chosen_labels,
            chosen_text,
            rejected_input_ids,
            rejected_labels,
            rejected_text,
        });
    }
    if let (Stage::Feedback, Some(row)) = (stage, Feedback::of(row)) {
        let (input_ids, labels, text) = of(row.own)?;
        let (kl_input_ids, kl_labels, kl_text) = of(row.mismatched)?;
        let kto_tags = row.wanted;
        return Ok(JsonLine::Feedback { index, input_ids, labels, text, kl_input_ids, kl_labels, kl_text, kto_tags });
    }
    let special = tokenizer.special();
    let pad = special.pad.as_ref().or(special.eos.as_ref()).map_or(0, |token| token.id);
    let (mut input_ids, mut labels) = (row.input_ids.to_vec(), row.labels.to_vec());
    let padded = len.max(input_ids.len());
    input_ids.resize(padded, pad);
    labels.resize(padded, IGNORE);
    let text = tokenizer.decode(&input_ids, false)?;
    Ok(JsonLine::Row { index, input_ids, labels, text })
}
