//! ShareGPT rows: a list of turns, roles and texts under tags the dataset can rename.

use super::Row;
use super::turns::{self, Last};
use crate::conversation::{Conversation, Message};
use crate::registry::DatasetEntry;
use crate::report::Reject;

pub(super) fn conversation(entry: &DatasetEntry, row: &mut Row<'_>, last: Last) -> Result<Conversation, Reject> {
    let tags = &entry.tags;
    let (turns, system) = turns::turns(entry, row)?;
    let mut messages = Vec::with_capacity(turns.len());
    for turn in turns {
        let role = turns::role(tags, row, turn)?;
        let content = turns::content_text(tags, row, turn, role)?;
        messages.push((turn.number, Message::new(role, content)));
    }
    let tools = row.tools(entry.columns.tools.as_deref(), false)?;
    turns::alternating(row, messages, (system, tools), last)
}
