//! OpenAI rows: messages as the chat API takes them, with `tool_calls` and `tool` messages.
//!
//! LLaMA-Factory adds the line "detailed thinking off" to the system prompt of rows without tools,
//! which belongs to one model family only. The ids must be the same as there, so it is added here
//! too, but the report says so and how to do without.

use serde_json::Value;

use super::turns::{self, Last, Turn};
use super::{Row, is_empty};
use crate::conversation::{Conversation, Message, Role};
use crate::pyjson;
use crate::registry::{DatasetEntry, kind};
use crate::report::{Fault, Reject};

/// What stands between the results of tools called at once.
const BETWEEN_RESULTS: &str = "\n</tool_response>\n<tool_response>\n";
const HINT: &str = "detailed thinking off";
const OPPOSITE_HINT: &str = "detailed thinking on";

pub(super) fn conversation(entry: &DatasetEntry, row: &mut Row<'_>, last: Last) -> Result<Conversation, Reject> {
    let (turns, system) = turns::turns(entry, row)?;
    let mut messages = Vec::with_capacity(turns.len());
    let mut results: Option<(usize, String)> = None;
    for turn in turns {
        let role = turns::role(&entry.tags, row, turn)?;
        let (role, content) = message(entry, row, turn, role)?;
        if role == Role::Observation {
            results = Some(match results {
                None => (turn.number, content),
                Some((number, before)) => (number, before + BETWEEN_RESULTS + &content),
            });
            continue;
        }
        if let Some((number, results)) = results.take() {
            messages.push((number, Message::new(Role::Observation, results)));
        }
        messages.push((turn.number, Message::new(role, content)));
    }
    // Results at the end have no answer to train on; LLaMA-Factory leaves them out.
    row.quirks.trailing_results |= results.is_some();
    let tools = row.tools(entry.columns.tools.as_deref(), true)?;
    let system = hinted(row, system, !tools.is_empty());
    turns::alternating(row, messages, (system, tools), last)
}

fn message<'a>(entry: &DatasetEntry, row: &mut Row<'a>, turn: Turn<'a>, role: Role) -> Result<(Role, String), Reject> {
    if role.is_response()
        && let Some(calls) = turn.fields.get("tool_calls").filter(|calls| !is_empty(calls))
    {
        row.quirks.text_beside_calls |= turns::content(&entry.tags, turn).is_some_and(|content| !is_empty(content));
        return Ok((Role::Function, tool_calls(row, turn.number, calls)?));
    }
    if let Some(Value::Array(parts)) = turns::content(&entry.tags, turn)
        && role != Role::Observation
    {
        return Ok((role, text_parts(row, turn.number, parts)?));
    }
    Ok((role, turns::content_text(&entry.tags, row, turn, role)?.into_owned()))
}

fn tool_calls(row: &mut Row<'_>, number: usize, calls: &Value) -> Result<String, Reject> {
    let Value::Array(calls) = calls else {
        return row.reject(Fault::ToolCalls, format!("`tool_calls` of turn {number} is {}, not a list", kind(calls)));
    };
    let mut functions = Vec::with_capacity(calls.len());
    for call in calls {
        match call.get("function") {
            Some(function @ Value::Object(_)) => {
                row.quirks.calls_as_text |= function.get("arguments").is_some_and(Value::is_string);
                functions.push(function.clone());
            }
            _ => {
                let detail = format!("a tool call of turn {number} has no `function` object");
                return row.reject(Fault::ToolCalls, detail);
            }
        }
    }
    Ok(pyjson::dumps(&Value::Array(functions), None))
}

/// Content written as a list of parts, all of them text.
fn text_parts(row: &mut Row<'_>, number: usize, parts: &[Value]) -> Result<String, Reject> {
    let mut text = String::new();
    for part in parts {
        match (part.get("type").and_then(Value::as_str), part.get("text").and_then(Value::as_str)) {
            (Some("text"), Some(part)) => text.push_str(part),
            (Some(other), _) if other != "text" => {
                return row.reject(Fault::Media, format!("turn {number} has a part of type `{other}`"));
            }
            _ => return row.reject(Fault::NotText, format!("turn {number} has a part without text")),
        }
    }
    row.quirks.parts_joined += 1;
    Ok(text)
}

fn hinted(row: &mut Row<'_>, mut system: String, has_tools: bool) -> String {
    match (system.is_empty(), has_tools) {
        (true, true) => {}
        (false, true) => system.push('\n'),
        (false, false) if system.contains(HINT) || system.contains(OPPOSITE_HINT) => {}
        (empty, false) => {
            if !empty {
                system.push('\n');
            }
            system.push_str(HINT);
            row.quirks.thinking_hint = true;
        }
    }
    system
}
