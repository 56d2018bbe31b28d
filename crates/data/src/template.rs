//! How a conversation is written out for a model: a prefix, then a piece of text a turn.
//!
//! A template is a row of `table`; a model's own chat template is taken apart into the same
//! fields (`derive`). Each text of a slot is tokenised by itself, content included, so token
//! boundaries fall where the slots' do: that is part of the format.

mod derive;
mod jinja;
mod modelfile;
mod resolve;
mod table;
mod think;
mod write;

use crate::clock::Moment;
use crate::tools::ToolFormat;

pub(crate) use write::{Context, History, check_turns};

pub use modelfile::Modelfile;
pub use resolve::{Resolved, TemplateOptions};
pub(crate) use table::Row as TableRow;

/// A piece of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slot<S> {
    /// Text in which `{{content}}` and `{{idx}}` (the number of the exchange) are filled in.
    Text(S),
    /// One token, by name.
    Token(S),
    /// The bos token, if the model has one.
    Bos,
    /// The eos token.
    Eos,
}

/// What a template does beside filling slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// Nothing.
    Plain,
    /// The system prompt is part of the first user turn (Llama 2, Mistral, Gemma).
    SystemInUser,
    /// Answers have a block of reasoning (see `think`).
    Reasoning,
    /// [`Class::Reasoning`], but an empty block is only its closing mark (GLM 4.7).
    ReasoningClosed,
}

/// How tools are described in the system prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ToolText {
    /// In the words of a format.
    Format(ToolFormat),
    /// As the dataset writes them, between two marks.
    Around(&'static str, &'static str),
}

/// All templates as they are written down.
pub(crate) fn table() -> &'static [TableRow] {
    table::TABLE
}

/// A template with the recipe's choices applied, for one tokenizer.
#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    pub(crate) name: String,
    pub(crate) class: Class,
    pub(crate) prefix: Vec<Slot<String>>,
    pub(crate) system: Vec<Slot<String>>,
    pub(crate) user: Vec<Slot<String>>,
    pub(crate) assistant: Vec<Slot<String>>,
    pub(crate) function: Vec<Slot<String>>,
    pub(crate) observation: Vec<Slot<String>>,
    pub(crate) calls: ToolFormat,
    pub(crate) tools: ToolText,
    pub(crate) default_system: String,
    /// They end an answer beside the eos token.
    pub(crate) stop_words: Vec<String>,
    /// Marks around reasoning.
    pub(crate) thought: (String, String),
    /// Marks around a call inside a function turn.
    pub(crate) call: (String, String),
    /// The eos token isn't part of an answer: it comes once, at the very end, and the first token
    /// of a following prompt stands in for it.
    pub(crate) efficient_eos: bool,
    /// The first stop word becomes the eos token.
    pub(crate) replace_eos: bool,
    /// The model's own chat template is replaced by this template on saving.
    pub(crate) replace_chat_template: bool,
    /// See `think`.
    pub(crate) enable_thinking: Option<bool>,
    /// Reasoning of earlier turns stays even when they aren't trained on.
    pub(crate) preserve_thinking: bool,
    /// Only last answers are trained on, so earlier ones lose their reasoning unless it is preserved.
    pub(crate) mask_history: bool,
    /// Today, for tool formats that write the date.
    pub(crate) now: Moment,
}

impl Template {
    /// Name in the table; empty for one derived from the model's chat template.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether answers have a block of reasoning.
    pub fn is_reasoning(&self) -> bool {
        matches!(self.class, Class::Reasoning | Class::ReasoningClosed)
    }

    /// Whether the eos token is left to the end of the row (see the field's description).
    pub fn efficient_eos(&self) -> bool {
        self.efficient_eos
    }

    /// Names of all templates, in order.
    pub fn names() -> impl Iterator<Item = &'static str> {
        table::TABLE.iter().map(|row| row.name)
    }
}
