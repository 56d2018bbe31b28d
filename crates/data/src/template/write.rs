//! Turns to ids.

use std::borrow::Cow;

use super::think::block;
use super::{Class, Slot, Template, ToolText};
use crate::conversation::{Conversation, Message, Role};
use crate::encode::{DropReason, EncodeError};
use crate::tokenizer::Tokenizer;
use crate::tools::parse_calls;

/// What the writer needs beside the turns.
pub(crate) struct Context<'a> {
    pub(crate) tokenizer: &'a Tokenizer,
    /// The reasoning of every answer but the last.
    pub(crate) history: History,
}

/// What becomes of the reasoning of earlier answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum History {
    /// As that of the last one: answers without reasoning get an empty block.
    Completed,
    /// It is removed.
    Dropped,
    /// It stays as it is.
    Kept,
}

impl Template {
    /// Ids of each turn of `conversation`, which alternates between prompts and answers. If it ends
    /// with a prompt, that is the beginning of an answer: it ends where the answer is to begin.
    pub(crate) fn write_turns(
        &self,
        conversation: &Conversation,
        context: &Context<'_>,
    ) -> Result<Vec<Vec<u32>>, DropReason> {
        let messages = &conversation.messages;
        // With an odd number the last answer is still to come, and all of these are history.
        let last_answer = messages.len() - usize::from(messages.len().is_multiple_of(2) && !messages.is_empty());
        let mut turns: Vec<Vec<u32>> = Vec::with_capacity(messages.len());
        for (i, message) in messages.iter().enumerate() {
            let is_answer = i % 2 == 1;
            let is_history = is_answer && i != last_answer;
            let content = self.visible(&message.content, is_answer, is_history, context);
            let mut ids = Vec::new();
            self.write_turn(&mut ids, i, message.role, &content, (conversation, context))?;
            let completed = is_answer && self.is_reasoning() && !(is_history && context.history != History::Completed);
            if completed && self.lacks_thought(&content) {
                let thought = encode(context.tokenizer, &self.empty_thought())?;
                match turns.last_mut() {
                    Some(prompt) if self.enable_thinking != Some(true) => prompt.extend(thought),
                    _ => drop(ids.splice(0..0, thought)),
                }
            }
            turns.push(ids);
        }
        if self.is_reasoning() && self.enable_thinking != Some(true) && !messages.len().is_multiple_of(2) {
            let thought = encode(context.tokenizer, &self.empty_thought())?;
            turns.last_mut().expect("there is a prompt").extend(thought);
        }
        Ok(turns)
    }

    /// The content of a turn as far as it is to be seen.
    fn visible<'c>(&self, content: &'c str, is_answer: bool, is_history: bool, context: &Context<'_>) -> Cow<'c, str> {
        let removed = match context.history {
            History::Dropped if is_history => true,
            History::Kept if is_history => false,
            _ => self.enable_thinking == Some(false),
        };
        if is_answer && self.is_reasoning() && removed { self.without_thought(content) } else { Cow::Borrowed(content) }
    }

    fn write_turn(
        &self,
        ids: &mut Vec<u32>,
        index: usize,
        role: Role,
        content: &str,
        (conversation, context): (&Conversation, &Context<'_>),
    ) -> Result<(), DropReason> {
        let mut writer = Writer { tokenizer: context.tokenizer, text: String::new(), ids };
        let mut in_user = String::new();
        if index == 0 {
            writer.slots(&self.prefix, "", "")?;
            if let Some(system) = self.system_text(conversation)? {
                match self.class {
                    Class::SystemInUser => in_user = self.first_filled(&self.system, &system),
                    _ => writer.slots(&self.system, &system, "")?,
                }
            }
        }
        match role {
            Role::User if in_user.is_empty() => writer.slots(&self.user, content, &(index / 2).to_string()),
            Role::User => writer.slots(&self.user, &(in_user + content), &(index / 2).to_string()),
            Role::Assistant => writer.slots(&self.assistant, content, ""),
            Role::Observation => writer.slots(&self.observation, content, ""),
            Role::Function => writer.slots(&self.function, &self.calls_text(content)?, ""),
        }
    }

    /// System prompt and tools in one text; `None` if there is neither.
    fn system_text(&self, conversation: &Conversation) -> Result<Option<String>, DropReason> {
        let given = &conversation.system;
        let system = if given.is_empty() { &self.default_system } else { given };
        if conversation.tools.is_empty() {
            return Ok((!system.is_empty()).then(|| system.clone()));
        }
        let tools = match self.tools {
            ToolText::Format(format) => format.describe(&conversation.tools, self.now)?,
            ToolText::Around(before, after) => format!("{before}{}{after}", conversation.tools),
        };
        Ok(Some(format!("{system}{tools}")))
    }

    /// The first slot with its content: where the system prompt joins the first user turn, the rest
    /// of its slots can't be placed.
    fn first_filled(&self, slots: &[Slot<String>], content: &str) -> String {
        match slots.first() {
            Some(Slot::Text(text)) => text.replacen("{{content}}", content, 1),
            _ => String::new(),
        }
    }

    /// A function turn in the words of the format: the JSON of calls is rewritten; reasoning, or
    /// whatever stands around marked calls, goes before it.
    fn calls_text(&self, content: &str) -> Result<String, DropReason> {
        if self.class == Class::SystemInUser {
            return self.calls.write_calls(&parse_calls(content)?);
        }
        if let Some((start, end)) = block(content, &self.call.0, &self.call.1) {
            let before = content.replace(&content[start..end], "");
            let json = &content[start + self.call.0.len()..end - self.call.1.len()];
            return Ok(before + &self.calls.write_calls(&parse_calls(json)?)?);
        }
        match block(content, &self.thought.0, &self.thought.1) {
            Some((start, end)) => {
                let thought = &content[start..end];
                let calls = parse_calls(&content.replace(thought, ""))?;
                Ok(format!("{thought}{}", self.calls.write_calls(&calls)?))
            }
            None => self.calls.write_calls(&parse_calls(content)?),
        }
    }
}

/// Whether prompts and answers alternate, as [`Template::write_turns`] needs them.
pub(crate) fn check_turns(messages: &[Message], answer_last: bool) -> Result<(), DropReason> {
    let wrong = |turn: usize, problem| Err(DropReason::Turns { turn, problem, answer_last });
    for (i, message) in messages.iter().enumerate() {
        if message.role.is_response() != (i % 2 == 1) {
            return wrong(i + 1, if i % 2 == 1 { "is no answer" } else { "is an answer" });
        }
    }
    match (messages.len(), answer_last) {
        (0, _) => wrong(1, "is missing"),
        (n, true) if n % 2 == 1 => wrong(n, "has no answer"),
        (n, false) if n % 2 == 0 => wrong(n, "is an answer"),
        _ => Ok(()),
    }
}

fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, DropReason> {
    tokenizer.encode(text).map_err(failed)
}

#[expect(clippy::needless_pass_by_value, reason = "map_err gives the error away")]
fn failed(error: EncodeError) -> DropReason {
    DropReason::Tokenize { problem: error.to_string() }
}

/// Fills slots and appends their ids.
struct Writer<'a> {
    tokenizer: &'a Tokenizer,
    /// Reused from slot to slot.
    text: String,
    ids: &'a mut Vec<u32>,
}

impl Writer<'_> {
    fn slots(&mut self, slots: &[Slot<String>], content: &str, index: &str) -> Result<(), DropReason> {
        let special = self.tokenizer.special();
        for slot in slots {
            match slot {
                Slot::Text(text) => {
                    fill(&mut self.text, text, content, index);
                    self.tokenizer.encode_into(&self.text, self.ids).map_err(failed)?;
                }
                Slot::Token(token) => {
                    let unk = || special.unk.as_ref().map(|unk| unk.id);
                    self.ids.extend(self.tokenizer.token_to_id(token).or_else(unk));
                }
                Slot::Bos => self.ids.extend(special.bos.as_ref().map(|bos| bos.id)),
                Slot::Eos => self.ids.extend(special.eos.as_ref().map(|eos| eos.id)),
            }
        }
        Ok(())
    }
}

/// Writes `slot` with its first `{{content}}` and its first `{{idx}}` filled in. Both are looked
/// for in the slot only: content that holds such a mark stays as it is.
fn fill(out: &mut String, slot: &str, content: &str, index: &str) {
    const CONTENT: &str = "{{content}}";
    const INDEX: &str = "{{idx}}";
    out.clear();
    let mut numbered = index.is_empty();
    let mut push = |out: &mut String, piece: &str| match piece.split_once(INDEX) {
        Some((before, after)) if !numbered => {
            numbered = true;
            out.extend([before, index, after]);
        }
        _ => out.push_str(piece),
    };
    match slot.split_once(CONTENT) {
        Some((before, after)) => {
            push(out, before);
            out.push_str(content);
            push(out, after);
        }
        None => push(out, slot),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_in_content_are_left_alone() {
        let mut out = String::new();
        fill(&mut out, "[{{idx}}] {{content}}|{{content}}", "a {{idx}} {{content}}", "3");
        assert_eq!(out, "[3] a {{idx}} {{content}}|{{content}}");
        fill(&mut out, "{{content}} {{idx}}", "x", "0");
        assert_eq!(out, "x 0");
    }
}
