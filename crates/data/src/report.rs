//! What happened to the data: what was read, kept, dropped and cut, and what was never looked at.
//!
//! Nothing is lost without standing here. The report is kept beside the encoded rows, so that a run
//! that finds them in the cache shows the same one.

mod render;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Kinds of reasons for which a row is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "each variant's message says what it is")]
pub enum Fault {
    #[error("can't be read")]
    Unreadable,
    #[error("broken JSON")]
    BrokenJson,
    #[error("invalid UTF-8")]
    NotUtf8,
    #[error("too large")]
    TooLarge,
    #[error("wrong fields")]
    Fields,
    #[error("not an object of columns")]
    NotAnObject,
    #[error("no text")]
    NoText,
    #[error("no answer")]
    NoAnswer,
    #[error("not text")]
    NotText,
    #[error("history is not a list of pairs")]
    History,
    #[error("no turns")]
    NoTurns,
    #[error("not a turn")]
    NotATurn,
    #[error("unknown role")]
    UnknownRole,
    #[error("turns don't alternate")]
    Alternation,
    #[error("the last turn is a question")]
    Unanswered,
    #[error("broken tool calls")]
    ToolCalls,
    #[error("images, videos or audios, which aren't trained on")]
    Media,
    #[error("the template can't write it")]
    Template,
    #[error("longer than a pack")]
    TooLong,
    #[error("no tokens")]
    NoTokens,
    #[error("the last turn is an answer")]
    Answered,
    #[error("no tag")]
    NoTag,
}

impl Fault {
    /// All kinds.
    pub const ALL: [Self; 22] = [
        Self::Unreadable,
        Self::BrokenJson,
        Self::NotUtf8,
        Self::TooLarge,
        Self::Fields,
        Self::NotAnObject,
        Self::NoText,
        Self::NoAnswer,
        Self::NotText,
        Self::History,
        Self::NoTurns,
        Self::NotATurn,
        Self::UnknownRole,
        Self::Alternation,
        Self::Unanswered,
        Self::ToolCalls,
        Self::Media,
        Self::Template,
        Self::TooLong,
        Self::NoTokens,
        Self::Answered,
        Self::NoTag,
    ];
}

/// Why a row is left out, and where it stands in its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reject {
    pub(crate) line: u64,
    pub(crate) fault: Fault,
    pub(crate) detail: String,
}

/// A row that was left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// Its file.
    pub file: PathBuf,
    /// Line at which the fault lies, from 1; the row's number in parquet.
    pub line: u64,
    /// Number of the row in its file, from 1.
    pub row: u64,
    /// Kind of fault.
    pub fault: Fault,
    /// What exactly; may be empty.
    pub detail: String,
}

impl Dropped {
    /// Where the row is: file and line, and its number where that says more.
    pub fn place(&self) -> String {
        let row = if self.row == self.line { String::new() } else { format!(" (row {})", self.row) };
        format!("{}:{}{row}", self.file.display(), self.line)
    }

    /// The fault with its detail.
    pub fn reason(&self) -> String {
        if self.detail.is_empty() { self.fault.to_string() } else { format!("{}: {}", self.fault, self.detail) }
    }
}

/// A column that rows have and that nothing reads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Unmapped {
    /// Its name in the rows.
    pub column: String,
    /// Rows in which it holds something.
    pub rows: u64,
}

/// What was unusual about a row, or about how many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Quirks {
    pub(crate) numbers_as_text: u64,
    pub(crate) json_written: u64,
    pub(crate) parts_joined: u64,
    pub(crate) history_ignored: bool,
    pub(crate) trailing_results: bool,
    pub(crate) thinking_hint: bool,
    pub(crate) text_beside_calls: bool,
    pub(crate) calls_as_text: bool,
    pub(crate) empty_wanted: bool,
}

/// Rows of a dataset with something unusual about them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct QuirkCounts {
    /// A number was written as text.
    pub numbers_as_text: u64,
    /// A structured value was written as JSON text.
    pub json_written: u64,
    /// Content in parts was joined.
    pub parts_joined: u64,
    /// A history that isn't a list was not read.
    pub history_ignored: u64,
    /// Results of tools at the end were left out.
    pub trailing_results: u64,
    /// "detailed thinking off" was added to the system prompt.
    pub thinking_hint: u64,
    /// Text that stands beside tool calls was left out.
    pub text_beside_calls: u64,
    /// Arguments of tool calls are text, and were written as text inside of JSON.
    pub calls_as_text: u64,
    /// An empty answer was tagged as one that is wanted, and counts as one that isn't.
    pub empty_wanted: u64,
}

impl QuirkCounts {
    pub(crate) fn add(&mut self, row: Quirks) {
        self.numbers_as_text += u64::from(row.numbers_as_text > 0);
        self.json_written += u64::from(row.json_written > 0);
        self.parts_joined += u64::from(row.parts_joined > 0);
        self.history_ignored += u64::from(row.history_ignored);
        self.trailing_results += u64::from(row.trailing_results);
        self.thinking_hint += u64::from(row.thinking_hint);
        self.text_beside_calls += u64::from(row.text_beside_calls);
        self.calls_as_text += u64::from(row.calls_as_text);
        self.empty_wanted += u64::from(row.empty_wanted);
    }

    /// What was unusual: in how many rows, what, and whether something else is trained on than a reader of the rows
    /// would think.
    pub fn told(&self) -> Vec<(u64, &'static str, bool)> {
        let all = [
            (self.numbers_as_text, "a number stands where text belongs and was written as text", false),
            (self.json_written, "a structured value was written as JSON text", false),
            (self.parts_joined, "content in parts was joined", false),
            (self.history_ignored, "`history` is not a list and was not read, as in LLaMA-Factory", true),
            (self.trailing_results, "results of tools at the end have no answer and were left out", true),
            (self.text_beside_calls, "text beside `tool_calls` was left out, as in LLaMA-Factory", true),
            (
                self.calls_as_text,
                "`arguments` of a tool call are text and were written as text inside of JSON, as LLaMA-Factory does; \
                 write them as an object to have calls as chat templates and servers write them",
                true,
            ),
            (
                self.empty_wanted,
                "an empty answer is tagged `true` and counts as one that isn't wanted, as in LLaMA-Factory, which can't tell it \
                 from none; write the answer, or tag it `false`",
                true,
            ),
            (
                self.thinking_hint,
                "formatting `openai` adds \"detailed thinking off\" to the system prompt of rows without tools, as \
                 LLaMA-Factory does; `\"formatting\": \"sharegpt\"` with the same columns and tags does not",
                true,
            ),
        ];
        all.into_iter().filter(|(rows, ..)| *rows > 0).collect()
    }
}

/// What happened to one dataset.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DatasetReport {
    /// Its name in the registry.
    pub name: String,
    /// Its files.
    pub files: Vec<PathBuf>,
    /// Rows its files hold.
    pub rows_read: u64,
    /// Rows asked for, after `num_samples`, `max_samples` and mixing; repeated ones counted again.
    pub rows_used: u64,
    /// Of those, rows that were kept.
    pub rows_kept: u64,
    /// Rows that were left out, in the order of their use; a repeated row once.
    pub dropped: Vec<Dropped>,
    /// Columns that rows have and nothing reads, the most frequent first.
    pub unmapped: Vec<Unmapped>,
    /// The `columns` to write into the registry if unmapped columns are named like known ones.
    pub columns_cure: Option<String>,
    /// Unusual rows.
    pub quirks: QuirkCounts,
    /// Columns that the registry's entry names and no row has.
    #[serde(default)]
    pub absent: Vec<Absent>,
    /// What the registry's entry says that has no effect, and the like.
    pub notes: Vec<String>,
}

/// A column that an entry of the registry names and no row has: most likely a slip, which would leave out in silence
/// what it was to bring.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Absent {
    /// Its key in `columns`.
    pub key: String,
    /// As the entry names it.
    pub column: String,
    /// The column of the rows that looks most like it, if one does.
    pub like: Option<String>,
}

impl std::fmt::Display for Absent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`columns.{}` is `{}`, which no row has", self.key, self.column)?;
        self.like.as_ref().map_or(Ok(()), |like| write!(f, "; did you mean `{like}`?"))
    }
}

impl DatasetReport {
    /// Rows left out, by kind of fault.
    pub fn faults(&self) -> BTreeMap<Fault, u64> {
        let mut counts = BTreeMap::new();
        for dropped in &self.dropped {
            *counts.entry(dropped.fault).or_insert(0) += 1;
        }
        counts
    }
}

/// What came out for training or for one evaluation set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetReport {
    /// `train`, `validation` or an evaluation set's name.
    pub name: String,
    /// Rows that went in.
    pub rows_used: u64,
    /// Rows encoded; several of them may be in one of [`SetReport::rows`].
    pub rows_kept: u64,
    /// Rows that came out: sequences, packs or blocks.
    pub rows: u64,
    /// Tokens of all rows.
    pub tokens: u64,
    /// Tokens with a loss.
    pub label_tokens: u64,
    /// Tokens of the longest row.
    pub longest: u64,
    /// Rows that `cutoff_len` cut.
    pub rows_cut: u64,
    /// Tokens that `cutoff_len` cut off.
    pub tokens_cut: u64,
    /// Answers that lost their end-of-sequence token with it.
    pub eos_lost: u64,
    /// Rows of which no token is trained on.
    pub rows_without_labels: u64,
    /// Stage pt: tokens of incomplete blocks at the end of each thousand rows.
    pub tail_tokens: u64,
    /// Sequences (before packing) by length: element i counts lengths in `2^i .. 2^(i+1)`.
    pub lengths: Vec<u64>,
}

impl SetReport {
    /// Share of tokens with a loss.
    pub fn label_share(&self) -> f64 {
        if self.tokens == 0 { 0.0 } else { self.label_tokens as f64 / self.tokens as f64 }
    }

    pub(crate) fn count_length(&mut self, length: usize) {
        let Some(bucket) = length.checked_ilog2() else { return };
        let bucket = bucket as usize;
        if self.lengths.len() <= bucket {
            self.lengths.resize(bucket + 1, 0);
        }
        self.lengths[bucket] += 1;
    }
}

/// What happened to the data of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// By dataset, in the order of the recipe.
    pub datasets: Vec<DatasetReport>,
    /// By set: training first.
    pub sets: Vec<SetReport>,
    /// What concerns the whole run.
    pub notes: Vec<String>,
}
