//! What ShareGPT and OpenAI rows share: a list of turns with tags, and strict alternation.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::Row;
use crate::conversation::{Conversation, Message, Role};
use crate::pyjson;
use crate::registry::{DatasetEntry, Tags, kind};
use crate::report::{Fault, Reject};

/// A turn as written.
#[derive(Clone, Copy)]
pub(super) struct Turn<'a> {
    /// Its number in the row, from 1.
    pub(super) number: usize,
    /// What stands under the role tag.
    pub(super) role: &'a str,
    pub(super) fields: &'a Map<String, Value>,
}

/// What a role tag stands for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Speaker {
    Turn(Role),
    System,
}

impl Speaker {
    fn answers(self) -> bool {
        matches!(self, Self::Turn(role) if role.is_response())
    }
}

/// The turns of a row, its system prompt (leading turn or column) taken off.
pub(super) fn turns<'a>(entry: &DatasetEntry, row: &mut Row<'a>) -> Result<(Vec<Turn<'a>>, String), Reject> {
    let Some(column) = &entry.columns.messages else {
        return row.reject(Fault::NoTurns, "the dataset's `columns` map no `messages`");
    };
    let list = match row.get(Some(column)) {
        Some(Value::Array(list)) => list,
        Some(other) => {
            return row.reject(Fault::NoTurns, format!("`{column}` is {}, not a list of turns", kind(other)));
        }
        None => return row.reject(Fault::NoTurns, format!("`{column}` is missing or null")),
    };
    let mut turns = Vec::with_capacity(list.len());
    for (i, item) in list.iter().enumerate() {
        turns.push(turn(entry, row, i + 1, item)?);
    }
    let tags = &entry.tags;
    let system = match turns.first() {
        Some(&first) if tags.system_tag.as_deref() == Some(first.role) => {
            turns.remove(0);
            match content(tags, first) {
                None => String::new(),
                Some(value) => row.text(value, || format!("the system prompt of `{column}`"))?.into_owned(),
            }
        }
        _ => row.column_text(entry.columns.system.as_deref())?,
    };
    if turns.is_empty() {
        return row.reject(Fault::NoTurns, format!("`{column}` holds no turns"));
    }
    Ok((turns, system))
}

fn turn<'a>(entry: &DatasetEntry, row: &Row<'a>, number: usize, item: &'a Value) -> Result<Turn<'a>, Reject> {
    let Value::Object(fields) = item else {
        return row.reject(Fault::NotATurn, format!("turn {number} is {}, not an object", kind(item)));
    };
    let Some(role_tag) = &entry.tags.role_tag else {
        return row.reject(Fault::NotATurn, "the dataset's `tags` have no `role_tag`");
    };
    match fields.get(role_tag) {
        Some(Value::String(role)) => Ok(Turn { number, role, fields }),
        Some(other) => row.reject(Fault::NotATurn, format!("`{role_tag}` of turn {number} is {}", kind(other))),
        None => row.reject(Fault::NotATurn, format!("turn {number} has no `{role_tag}`")),
    }
}

/// What a turn says; nothing if it is absent or null.
pub(super) fn content<'a>(tags: &Tags, turn: Turn<'a>) -> Option<&'a Value> {
    turn.fields.get(tags.content_tag.as_deref()?).filter(|value| !value.is_null())
}

/// What a turn says, as text; structured content of tool turns is written as JSON.
pub(super) fn content_text<'a>(
    tags: &Tags,
    row: &mut Row<'a>,
    turn: Turn<'a>,
    role: Role,
) -> Result<Cow<'a, str>, Reject> {
    let Some(tag) = &tags.content_tag else {
        return row.reject(Fault::NotATurn, "the dataset's `tags` have no `content_tag`");
    };
    let number = turn.number;
    match content(tags, turn) {
        None => {
            let absent = if turn.fields.contains_key(tag) { "null" } else { "missing" };
            row.reject(Fault::NotText, format!("`{tag}` of turn {number} is {absent}"))
        }
        Some(value @ (Value::Object(_) | Value::Array(_))) if matches!(role, Role::Function | Role::Observation) => {
            row.quirks.json_written += 1;
            Ok(Cow::Owned(pyjson::dumps(value, None)))
        }
        Some(value) => row.text(value, || format!("`{tag}` of turn {number}")),
    }
}

/// Who speaks under this tag. Of equal tags the last in LLaMA-Factory's order wins.
pub(super) fn speaker(tags: &Tags, role: &str) -> Option<Speaker> {
    [
        (&tags.system_tag, Speaker::System),
        (&tags.function_tag, Speaker::Turn(Role::Function)),
        (&tags.observation_tag, Speaker::Turn(Role::Observation)),
        (&tags.assistant_tag, Speaker::Turn(Role::Assistant)),
        (&tags.user_tag, Speaker::Turn(Role::User)),
    ]
    .into_iter()
    .find_map(|(tag, speaker)| (tag.as_deref() == Some(role)).then_some(speaker))
}

/// The role of a turn, or why it has none.
pub(super) fn role(tags: &Tags, row: &Row<'_>, turn: Turn<'_>) -> Result<Role, Reject> {
    let number = turn.number;
    match speaker(tags, turn.role) {
        Some(Speaker::Turn(role)) => Ok(role),
        Some(Speaker::System) => {
            row.reject(Fault::Alternation, format!("turn {number} is a system prompt; only the first may be"))
        }
        None => {
            let known: Vec<_> =
                [&tags.user_tag, &tags.assistant_tag, &tags.observation_tag, &tags.function_tag, &tags.system_tag]
                    .into_iter()
                    .flatten()
                    .map(|tag| format!("`{tag}`"))
                    .collect();
            row.reject(
                Fault::UnknownRole,
                format!("turn {number} is by `{}`; the dataset's `tags` know {}", turn.role, known.join(", ")),
            )
        }
    }
}

/// What the last turn of a row must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Last {
    /// The answer.
    Answer,
    /// The question: its answers stand in columns.
    Question,
}

/// The answer in the column that the registry calls `name`: a turn by itself.
pub(super) fn answer(
    entry: &DatasetEntry,
    row: &mut Row<'_>,
    name: &str,
    column: Option<&str>,
) -> Result<Message, Reject> {
    let Some(column) = column else {
        return row.reject(Fault::NoAnswer, format!("the dataset's `columns` map no `{name}`"));
    };
    let fields = match row.get(Some(column)) {
        Some(Value::Object(fields)) => fields,
        Some(other) => return row.reject(Fault::NoAnswer, format!("`{column}` is {}, not a turn", kind(other))),
        None => return row.reject(Fault::NoAnswer, format!("`{column}` is missing or null")),
    };
    let tags = &entry.tags;
    let of = |tag: &Option<String>| tag.as_deref().and_then(|tag| fields.get(tag));
    let Some(Value::String(by)) = of(&tags.role_tag) else {
        return row.reject(Fault::NotATurn, format!("`{column}` doesn't say by whom it is"));
    };
    let Some(Speaker::Turn(role)) = speaker(tags, by).filter(|speaker| speaker.answers()) else {
        return row.reject(Fault::Alternation, format!("`{column}` is by `{by}`, and no answer"));
    };
    match of(&tags.content_tag).filter(|value| !value.is_null()) {
        Some(value) => Ok(Message::new(role, row.text(value, || format!("what `{column}` says"))?)),
        None => row.reject(Fault::NotText, format!("`{column}` says nothing")),
    }
}

/// Prompt and response in turn, up to the last that is wanted.
pub(super) fn alternating(
    row: &Row<'_>,
    messages: Vec<(usize, Message)>,
    (system, tools): (String, String),
    last: Last,
) -> Result<Conversation, Reject> {
    for (i, (number, message)) in messages.iter().enumerate() {
        if message.role.is_response() != (i % 2 == 1) {
            let (is, must) = if i % 2 == 0 { ("an answer", "a question") } else { ("a question", "an answer") };
            return row.reject(Fault::Alternation, format!("turn {number} is {is}, not {must}"));
        }
    }
    if messages.is_empty() {
        return row.reject(Fault::NoTurns, "only results of tools");
    }
    match (last, messages.len() % 2) {
        (Last::Answer, 1) => return row.reject(Fault::Unanswered, format!("{} turns", messages.len())),
        (Last::Question, 0) => return row.reject(Fault::Answered, format!("{} turns", messages.len())),
        _ => {}
    }
    Ok(Conversation { messages: messages.into_iter().map(|(_, message)| message).collect(), system, tools })
}
