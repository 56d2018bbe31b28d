//! How models are told of tools and how they call them: one variant of [`ToolFormat`] a family.
//!
//! Both directions are text in a prompt, so every space counts; the wording is each family's own.

mod call;
mod gemma4;
mod prompt;

use serde_json::Value;

use crate::clock::Moment;
use crate::encode::{DropReason, EncodeError};
use crate::pyjson;

/// A family's way of writing tools and calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ToolFormat {
    /// `Action:` and `Action Input:` lines.
    Default,
    /// Gemma 4.
    Gemma4,
    /// ChatGLM 3 and GLM-4: one call a turn.
    Glm4,
    /// GLM-4.5 and later.
    Glm4Moe,
    /// Liquid LFM2.
    Lfm2,
    /// Ling 2.
    Ling,
    /// Llama 3.1 and later.
    Llama3,
    /// MiniMax M1.
    MiniMax1,
    /// MiniMax M2.
    MiniMax2,
    /// Mistral 7B v0.3 and later.
    Mistral,
    /// Qwen 2.5 and 3.
    Qwen,
    /// Qwen 3.5.
    Qwen35,
    /// Seed OSS.
    SeedOss,
}

/// One call of a tool.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Call {
    pub(crate) name: Value,
    pub(crate) arguments: Value,
}

/// Names as recipes write them.
pub(crate) const NAMES: [(&str, ToolFormat); 13] = [
    ("default", ToolFormat::Default),
    ("gemma4", ToolFormat::Gemma4),
    ("glm4", ToolFormat::Glm4),
    ("glm4_moe", ToolFormat::Glm4Moe),
    ("lfm2", ToolFormat::Lfm2),
    ("ling", ToolFormat::Ling),
    ("llama3", ToolFormat::Llama3),
    ("minimax1", ToolFormat::MiniMax1),
    ("minimax2", ToolFormat::MiniMax2),
    ("mistral", ToolFormat::Mistral),
    ("qwen", ToolFormat::Qwen),
    ("qwen3_5", ToolFormat::Qwen35),
    ("seed_oss", ToolFormat::SeedOss),
];

impl ToolFormat {
    /// The format that recipes call `name`.
    ///
    /// # Errors
    /// If there is none; the error lists all names.
    pub fn named(name: &str) -> Result<Self, EncodeError> {
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, format)| *format).ok_or_else(|| {
            let known: Vec<_> = NAMES.iter().map(|(known, _)| *known).collect();
            EncodeError::UnknownToolFormat { name: name.to_owned(), known: known.join(", ") }
        })
    }

    /// The part of the system prompt that describes `tools`, a JSON list; an empty list is no text.
    ///
    /// # Errors
    /// If it isn't a JSON list of descriptions.
    pub fn describe(self, tools: &str, now: Moment) -> Result<String, DropReason> {
        let tools = pyjson::parse(tools).map_err(|e| bad_tools(format!("it isn't JSON: {e}")))?;
        let Value::Array(tools) = tools else {
            return Err(bad_tools("a list of tool descriptions was expected"));
        };
        if tools.is_empty() {
            return Ok(String::new());
        }
        prompt::describe(self, &tools, now)
    }

    /// How a call looks, for the reference.
    pub(crate) fn example(self) -> Result<String, DropReason> {
        self.write_calls(&[Call { name: "f".into(), arguments: serde_json::json!({"a": "x"}) }])
    }

    /// The answer that makes `calls`.
    pub(crate) fn write_calls(self, calls: &[Call]) -> Result<String, DropReason> {
        call::write(self, calls)
    }
}

/// The calls in a function turn: one JSON object with `name` and `arguments`, or a list of them.
pub(crate) fn parse_calls(json: &str) -> Result<Vec<Call>, DropReason> {
    let parsed = pyjson::parse(json).map_err(|e| bad_call(format!("it isn't JSON: {e}")))?;
    let calls = match parsed {
        Value::Array(calls) => calls,
        single => vec![single],
    };
    let part = |call: &Value, key: &str| {
        call.get(key).cloned().ok_or_else(|| bad_call(format!("`{key}` is missing in {}", shorten(call))))
    };
    calls.iter().map(|c| Ok(Call { name: part(c, "name")?, arguments: part(c, "arguments")? })).collect()
}

fn bad_tools(problem: impl Into<String>) -> DropReason {
    DropReason::Tools { problem: problem.into() }
}

fn bad_call(problem: impl Into<String>) -> DropReason {
    DropReason::Call { problem: problem.into() }
}

/// The beginning of a value, for a message.
fn shorten(value: &Value) -> String {
    const SHOWN: usize = 80;
    let text = pyjson::dumps(value, None);
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
