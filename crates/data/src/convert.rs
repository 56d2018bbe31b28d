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

use crate::conversation::{Conversation, Message, Role};
use crate::pyjson;
use crate::read::not_an_object;
use crate::registry::{DatasetEntry, Formatting, kind};
use crate::report::{Fault, Quirks, Reject};
use turns::Last;

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
        let mut row = self.begin(row, line)?;
        let conversation = self.answered(&mut row)?;
        Ok((conversation, row.quirks))
    }

    /// The same of a row that is asked of a model: a row without an answer has an empty one.
    pub(crate) fn asked(&self, row: &Value, line: u64) -> Result<(Conversation, Quirks), Reject> {
        let mut row = self.begin(row, line)?;
        let response = self.entry.columns.response.as_deref();
        if self.entry.formatting == Formatting::Alpaca && row.get(response).is_none() {
            let mut conversation = alpaca::prompt(self.entry, &mut row)?;
            conversation.messages.push(Message::new(Role::Assistant, ""));
            return Ok((conversation, row.quirks));
        }
        let conversation = self.answered(&mut row)?;
        Ok((conversation, row.quirks))
    }

    /// The same prompt with the answer that is preferred and with the one that isn't.
    pub(crate) fn pair(&self, row: &Value, line: u64) -> Result<([Conversation; 2], Quirks), Reject> {
        let mut row = self.begin(row, line)?;
        let (entry, columns) = (self.entry, &self.entry.columns);
        let prompt = match entry.formatting {
            Formatting::Alpaca => alpaca::prompt(entry, &mut row),
            Formatting::ShareGpt => sharegpt::conversation(entry, &mut row, Last::Question),
            Formatting::OpenAi => openai::conversation(entry, &mut row, Last::Question),
        }?;
        let mut answer = |name, column: &Option<String>| match entry.formatting {
            Formatting::Alpaca => alpaca::answer(&mut row, name, column.as_deref()),
            _ => turns::answer(entry, &mut row, name, column.as_deref()),
        };
        let answers = [answer("chosen", &columns.chosen)?, answer("rejected", &columns.rejected)?];
        let with = |answer| {
            let mut conversation = prompt.clone();
            conversation.messages.push(answer);
            conversation
        };
        Ok((answers.map(with), row.quirks))
    }

    /// The training example of a row, and whether its answer is wanted. An empty one isn't, whatever the row says of it:
    /// LLaMA-Factory can't tell it from none.
    pub(crate) fn feedback(&self, row: &Value, line: u64) -> Result<((Conversation, bool), Quirks), Reject> {
        let mut row = self.begin(row, line)?;
        let conversation = self.answered(&mut row)?;
        let column = self.entry.columns.kto_tag.as_deref();
        let name = column.unwrap_or("kto_tag");
        let wanted = match row.get(column) {
            Some(Value::Bool(wanted)) => *wanted,
            Some(other) => {
                return row.reject(Fault::NoTag, format!("`{name}` is {}, neither true nor false", kind(other)));
            }
            None => return row.reject(Fault::NoTag, format!("`{name}` is missing or null")),
        };
        let says_something = conversation.messages.last().is_some_and(|answer| !answer.content.is_empty());
        row.quirks.empty_wanted |= wanted && !says_something;
        Ok(((conversation, wanted && says_something), row.quirks))
    }

    fn begin<'r>(&self, row: &'r Value, line: u64) -> Result<Row<'r>, Reject> {
        let row = Row::new(row, line)?;
        self.refuse_media(&row)?;
        Ok(row)
    }

    fn answered(&self, row: &mut Row<'_>) -> Result<Conversation, Reject> {
        let entry = self.entry;
        match entry.formatting {
            Formatting::Alpaca => {
                let mut conversation = alpaca::prompt(entry, row)?;
                conversation.messages.push(alpaca::answer(row, "response", entry.columns.response.as_deref())?);
                Ok(conversation)
            }
            Formatting::ShareGpt => sharegpt::conversation(entry, row, Last::Answer),
            Formatting::OpenAi => openai::conversation(entry, row, Last::Answer),
        }
    }

    /// The plain text of a row for stage pt: that of the first turn, as LLaMA-Factory takes it.
    pub(crate) fn text(&self, row: &Value, line: u64) -> Result<(String, Quirks), Reject> {
        if self.entry.formatting == Formatting::Alpaca {
            let mut row = self.begin(row, line)?;
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
            Value::String(text) => match pyjson::whole(text) {
                None => Ok(Cow::Borrowed(text)),
                Some(digits) => {
                    self.quirks.numbers_as_text += 1;
                    Ok(Cow::Borrowed(digits))
                }
            },
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
