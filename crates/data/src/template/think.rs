//! Blocks of reasoning in answers.
//!
//! | `enable_thinking` | a block in the data | an answer without one |
//! |---|---|---|
//! | `Some(true)` | stays, with a loss | gets an empty block, with a loss |
//! | `None` | stays, with a loss | gets an empty block at the end of the prompt |
//! | `Some(false)` | is removed | gets an empty block at the end of the prompt |
//!
//! When only the last answer is trained on, blocks of earlier answers are removed and not replaced,
//! unless `preserve_thinking` is set.

use std::borrow::Cow;

use super::{Class, Template};

impl Template {
    /// `content` without its blocks of reasoning, and without the empty lines they leave in front.
    pub(super) fn without_thought<'a>(&self, content: &'a str) -> Cow<'a, str> {
        let (open, close) = (&self.thought.0, &self.thought.1);
        let Some((start, end)) = block(content, open, close) else {
            return Cow::Borrowed(content.trim_start_matches('\n'));
        };
        let mut out = content[..start].to_owned();
        let mut rest = &content[end..];
        while let Some((start, end)) = block(rest, open, close) {
            out.push_str(&rest[..start]);
            rest = &rest[end..];
        }
        out.push_str(rest);
        Cow::Owned(out.trim_start_matches('\n').to_owned())
    }

    /// Whether `content` has neither mark of a block.
    pub(super) fn lacks_thought(&self, content: &str) -> bool {
        !content.contains(self.thought.0.trim()) && !content.contains(self.thought.1.trim())
    }

    /// A block with nothing in it.
    pub(super) fn empty_thought(&self) -> String {
        match self.class {
            Class::ReasoningClosed => self.thought.1.clone(),
            _ => format!("{}{}", self.thought.0, self.thought.1),
        }
    }
}

/// Where the first block of `text` begins and ends, marks included.
pub(super) fn block(text: &str, open: &str, close: &str) -> Option<(usize, usize)> {
    let start = text.find(open)?;
    let inside = start + open.len();
    let end = inside + text[inside..].find(close)? + close.len();
    Some((start, end))
}
