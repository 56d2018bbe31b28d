//! Rows of any format become conversations.
//!
//! What LLaMA-Factory keeps is kept with the same text, and what it drops is dropped; where it
//! would end in a Python error, the row is dropped and reported instead. Two things are taken more
//! kindly: a number where text stands is written as text, and structured values where JSON text
//! stands are written as JSON. Both are counted in [`Quirks`] and shown in the report.

mod alpaca;
mod openai;
mod sharegpt;
mod turns;

use std::borrow::Cow;

use serde_json::{Map, Value};

use crate::conversation::Conversation;
use crate::pyjson;
use crate::read::not_an_object;
use crate::registry::{DatasetEntry, Formatting, kind};
use crate::report::{Fault, Quirks, Reject};

/// Turns the rows of one dataset into conversations.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Converter<'a> {
    entry: &'a DatasetEntry,
}

/// A row on its way, and what was unusual about it.
struct Row<'a> {
    columns: &'a Map<String, Value>,
    line: u64,
    quirks: Quirks,
}

impl<'a> Converter<'a> {
    pub(crate) fn new(entry: &'a DatasetEntry) -> Self {
        Self { entry }
    }

    /// The training example of a row that begins at `line`.
    pub(crate) fn conversation(&self, row: &Value, line: u64) -> Result<(Conversation, Quirks), Reject> {
        let mut row = Row::new(row, line)?;
        self.refuse_media(&row)?;
        let conversation = match self.entry.formatting {
            Formatting::Alpaca => alpaca::conversation(self.entry, &mut row),
            Formatting::ShareGpt => sharegpt::conversation(self.entry, &mut row),
            Formatting::OpenAi => openai::conversation(self.entry, &mut row),
        }?;
        Ok((conversation, row.quirks))
    }

    /// The plain text of a row for stage pt: that of the first turn, as LLaMA-Factory takes it.
    pub(crate) fn text(&self, row: &Value, line: u64) -> Result<(String, Quirks), Reject> {
        if self.entry.formatting == Formatting::Alpaca {
            let mut row = Row::new(row, line)?;
            self.refuse_media(&row)?;
            let text = alpaca::text(self.entry, &mut row)?;
            return Ok((text, row.quirks));
        }
        let (conversation, quirks) = self.conversation(row, line)?;
        let first = conversation.messages.into_iter().next();
        Ok((first.expect("a converted row has at least two turns").content, quirks))
    }

    fn refuse_media(&self, row: &Row<'_>) -> Result<(), Reject> {
        let columns = &self.entry.columns;
        for column in [&columns.images, &columns.videos, &columns.audios].into_iter().flatten() {
            if row.get(Some(column)).is_some_and(|value| !is_empty(value)) {
                return row.reject(Fault::Media, format!("column `{column}`"));
            }
        }
        Ok(())
    }
}

/// Whether a value says nothing.
pub(crate) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

impl<'a> Row<'a> {
    fn new(row: &'a Value, line: u64) -> Result<Self, Reject> {
        match row {
            Value::Object(columns) => Ok(Self { columns, line, quirks: Quirks::default() }),
            other => Err(not_an_object(line, other)),
        }
    }

    fn reject<T>(&self, fault: Fault, detail: impl Into<String>) -> Result<T, Reject> {
        Err(Reject { line: self.line, fault, detail: detail.into() })
    }

    /// The value of a mapped column; nothing if it is unmapped, absent or null.
    fn get(&self, column: Option<&str>) -> Option<&'a Value> {
        self.columns.get(column?).filter(|value| !value.is_null())
    }

    /// A value that must be text; `what` names it in a report.
    fn text(&mut self, value: &'a Value, what: impl FnOnce() -> String) -> Result<Cow<'a, str>, Reject> {
        match value {
            Value::String(text) => Ok(Cow::Borrowed(text)),
            Value::Number(number) => {
                self.quirks.numbers_as_text += 1;
                Ok(Cow::Owned(number.to_string()))
            }
            other => self.reject(Fault::NotText, format!("{} is {}", what(), kind(other))),
        }
    }

    /// The text of a mapped column, empty if there is none.
    fn column_text(&mut self, column: Option<&str>) -> Result<String, Reject> {
        match (column, self.get(column)) {
            (Some(column), Some(value)) => Ok(self.text(value, || format!("`{column}`"))?.into_owned()),
            _ => Ok(String::new()),
        }
    }

    /// Tools as JSON text: as they stand, or written out if they are structured. An empty list
    /// is `written_empty` or nothing.
    fn tools(&mut self, column: Option<&str>, written_empty: bool) -> Result<String, Reject> {
        match self.get(column) {
            Some(value @ (Value::Array(_) | Value::Object(_))) if written_empty || !is_empty(value) => {
                self.quirks.json_written += 1;
                Ok(pyjson::dumps(value, None))
            }
            Some(Value::Array(_) | Value::Object(_)) => Ok(String::new()),
            _ => self.column_text(column),
        }
    }
}

#[cfg(test)]
mod tests;
