//! Alpaca rows: a question and an answer in columns, with earlier turns as pairs; or a question with two answers, or with one
//! and what is thought of it.

use serde_json::Value;

use super::Row;
use crate::conversation::{Conversation, Message, Role};
use crate::registry::DatasetEntry;
use crate::report::{Fault, Reject};

/// Everything before the answer.
pub(super) fn prompt(entry: &DatasetEntry, row: &mut Row<'_>) -> Result<Conversation, Reject> {
    let columns = &entry.columns;
    let mut messages = history(entry, row)?;
    let question = question(entry, row)?;
    messages.push(Message::new(Role::User, question));
    Ok(Conversation {
        messages,
        system: row.column_text(columns.system.as_deref())?,
        tools: row.tools(columns.tools.as_deref(), false)?,
    })
}

/// The answer in the column that the registry calls `name`.
pub(super) fn answer(row: &mut Row<'_>, name: &str, column: Option<&str>) -> Result<Message, Reject> {
    let Some(column) = column else {
        return row.reject(Fault::NoAnswer, format!("the dataset's `columns` map no `{name}`"));
    };
    let Some(answer) = row.get(Some(column)) else {
        let absent = if row.columns.contains_key(column) { "is null" } else { "is missing" };
        return row.reject(Fault::NoAnswer, format!("`{column}` {absent}"));
    };
    let answer = row.text(answer, || format!("`{column}`"))?;
    Ok(Message::new(Role::Assistant, answer))
}

/// The text of stage pt.
pub(super) fn text(entry: &DatasetEntry, row: &mut Row<'_>) -> Result<String, Reject> {
    if let Some(first) = history(entry, row)?.into_iter().next() {
        return Ok(first.content);
    }
    let columns = &entry.columns;
    if row.get(columns.prompt.as_deref()).is_none() && row.get(columns.query.as_deref()).is_none() {
        return match &columns.prompt {
            Some(prompt) => row.reject(Fault::NoText, format!("`{prompt}` is missing or null")),
            None => row.reject(Fault::NoText, "the dataset's `columns` map no `prompt`"),
        };
    }
    question(entry, row)
}

/// Prompt and query, the empty ones left out, a line each.
fn question(entry: &DatasetEntry, row: &mut Row<'_>) -> Result<String, Reject> {
    let mut question = row.column_text(entry.columns.prompt.as_deref())?;
    let query = row.column_text(entry.columns.query.as_deref())?;
    if !question.is_empty() && !query.is_empty() {
        question.push('\n');
    }
    question.push_str(&query);
    Ok(question)
}

fn history(entry: &DatasetEntry, row: &mut Row<'_>) -> Result<Vec<Message>, Reject> {
    let Some(column) = entry.columns.history.as_deref() else { return Ok(Vec::new()) };
    let pairs = match row.get(Some(column)) {
        None => return Ok(Vec::new()),
        Some(Value::Array(pairs)) => pairs,
        Some(other) => {
            // LLaMA-Factory reads a history only if it is a list.
            row.quirks.history_ignored |= !super::is_empty(other);
            return Ok(Vec::new());
        }
    };
    let mut messages = Vec::with_capacity(2 * pairs.len() + 2);
    for (i, pair) in pairs.iter().enumerate() {
        let Some([question, answer]) = pair.as_array().map(Vec::as_slice) else {
            return row.reject(Fault::History, format!("`{column}[{i}]` must be a question and its answer"));
        };
        for (role, side, value) in [(Role::User, 0, question), (Role::Assistant, 1, answer)] {
            let text = row.text(value, || format!("`{column}[{i}][{side}]`"))?;
            messages.push(Message::new(role, text));
        }
    }
    Ok(messages)
}
