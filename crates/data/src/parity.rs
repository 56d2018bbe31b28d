//! Training rows beside what a server makes of the same conversations: whether the model will be asked as it was trained,
//! and if not, in what the two differ, token by token.

use crate::conversation::Conversation;
use crate::encode::EncodeError;
use crate::serving::{ServedPrompt, Server, answer_of, served_prompt, trained_row};
use crate::template::Template;
use crate::tokenizer::Tokenizer;
use rayon::iter::{IndexedParallelIterator, IntoParallelRefIterator, ParallelIterator};
use serde::Serialize;
use serde_json::Map;
use std::collections::BTreeMap;

/// A part of a conversation in which training and server differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// What stands before the first question.
    System,
    /// Blocks of reasoning.
    Thinking,
    /// What ends the last answer.
    EndMark,
    /// Anything else: headers of turns, tools, spaces, tokens of the same text.
    Other,
}

impl Part {
    /// In words, behind "differ in".
    pub fn words(self) -> &'static str {
        match self {
            Self::System => "the system prompt",
            Self::Thinking => "the thinking block",
            Self::EndMark => "the end mark",
            Self::Other => "something else",
        }
    }
}

/// One conversation, written twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compared {
    /// In what the two differ; nothing if they are the same.
    pub differs: Vec<Part>,
    /// The row as trained, uncut.
    pub trained: Vec<u32>,
    /// The same by the model's chat template.
    pub served: Vec<u32>,
    /// The server asks as was trained, whatever it would write of a finished answer.
    pub same_prompt: bool,
}

/// Rows compared, summed up.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Parity {
    /// Rows that were compared.
    pub rows: usize,
    /// Of those, rows that are the same, token for token.
    pub identical: usize,
    /// Rows whose prompt is the same.
    pub same_prompts: usize,
    /// Rows that differ, by part; a row may differ in several.
    pub differ: BTreeMap<Part, usize>,
    /// Rows that the model's template refuses, with the first reason.
    pub refused: Option<(usize, String)>,
    /// The model's template knows both with and without reasoning (`enable_thinking`).
    pub hybrid: bool,
    /// The first row of each part, by its place among those given.
    #[serde(skip)]
    pub examples: Vec<(Part, usize)>,
}

/// Marks of a block of reasoning.
const THINK: (&str, &str) = ("<think>", "</think>");

/// Writes conversations both ways.
pub struct Comparison<'a> {
    tokenizer: &'a Tokenizer,
    template: &'a Template,
    server: Server<'a>,
}

impl<'a> Comparison<'a> {
    /// Training's `template` beside the model's own chat template as a server uses it unless told otherwise; `None` if the
    /// model has none.
    ///
    /// # Errors
    /// If the model's template is no Jinja.
    pub fn new(tokenizer: &'a Tokenizer, template: &'a Template) -> Result<Option<Self>, EncodeError> {
        let Some(own) = tokenizer.chat_template() else { return Ok(None) };
        let server = Server::new(tokenizer, own, Map::new())?;
        Ok(Some(Self { tokenizer, template, server }))
    }

    /// One conversation.
    ///
    /// # Errors
    /// If one of the two can't write it.
    pub fn compare(&self, conversation: &Conversation) -> Result<Compared, EncodeError> {
        let row = trained_row(self.tokenizer, self.template, conversation)?;
        let same_prompt = self.server.prompt(conversation)? == row.input_ids[..answer_of(&row).start];
        let trained = self.without_trailing_space(row.input_ids)?;
        let served = self.without_trailing_space(self.server.whole(conversation)?)?;
        let differs = if trained == served { Vec::new() } else { self.parts(conversation, &trained, &served)? };
        Ok(Compared { differs, trained, served, same_prompt })
    }

    /// A line's end behind the last mark is never generated and never asked for.
    fn without_trailing_space(&self, mut ids: Vec<u32>) -> Result<Vec<u32>, EncodeError> {
        while let Some(last) = ids.last() {
            if !self.tokenizer.decode(&[*last], false)?.trim().is_empty() {
                break;
            }
            ids.pop();
        }
        Ok(ids)
    }

    fn parts(&self, conversation: &Conversation, trained: &[u32], served: &[u32]) -> Result<Vec<Part>, EncodeError> {
        let texts = [self.tokenizer.decode(trained, false)?, self.tokenizer.decode(served, false)?];
        let question = conversation.messages.first().map_or("", |message| message.content.trim());
        let answer = conversation.messages.last().map_or("", |message| after_thought(&message.content));
        let cut = |text: &'_ str| -> Option<[String; 3]> {
            let first = text.find(question)?;
            let last = first + text[first..].rfind(answer)?;
            Some([&text[..first], &text[first..last], &text[last + answer.len()..]].map(str::to_owned))
        };
        let [Some(trained), Some(served)] = texts.each_ref().map(|text| cut(text)) else {
            return Ok(vec![Part::Other]);
        };
        let mut found = Vec::new();
        if trained[0] != served[0] {
            found.push(Part::System);
        }
        if trained[1] != served[1] {
            let plain = [&trained[1], &served[1]].map(|body| without_thoughts(body));
            found.push(if plain[0] == plain[1] { Part::Thinking } else { Part::Other });
        }
        if trained[2].trim() != served[2].trim() {
            found.push(Part::EndMark);
        }
        // The same text in other tokens.
        Ok(if found.is_empty() { vec![Part::Other] } else { found })
    }
}

/// What stands behind a block of reasoning.
fn after_thought(content: &str) -> &str {
    content.rsplit_once(THINK.1).map_or(content, |(_, rest)| rest).trim()
}

/// Text without blocks of reasoning, and without the spaces around them.
fn without_thoughts(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once(THINK.0) {
        plain.push_str(before.trim_end());
        plain.push('\n');
        rest = behind.split_once(THINK.1).map_or("", |(_, rest)| rest.trim_start());
    }
    plain.push_str(rest);
    plain.trim_end().to_owned()
}

/// Compares conversations, and finds how a server is to write them.
///
/// # Errors
/// If there is no chat template at all, or the model's is no Jinja.
pub fn parity(
    tokenizer: &Tokenizer,
    template: &Template,
    conversations: &[Conversation],
) -> Result<(Option<Parity>, ServedPrompt), EncodeError> {
    let served = served_prompt(tokenizer, template, conversations)?;
    let Some(comparison) = Comparison::new(tokenizer, template)? else { return Ok((None, served)) };
    let compared: Vec<(usize, Result<Compared, EncodeError>)> =
        conversations.par_iter().enumerate().map(|(i, c)| (i, comparison.compare(c))).collect();
    let hybrid = tokenizer.chat_template().is_some_and(|text| text.contains("enable_thinking"));
    let mut sum = Parity {
        rows: 0,
        identical: 0,
        same_prompts: 0,
        differ: BTreeMap::new(),
        refused: None,
        hybrid,
        examples: Vec::new(),
    };
    for (place, result) in compared {
        match result {
            Ok(found) => sum.add(place, &found),
            Err(reason) => sum.refused.get_or_insert_with(|| (0, reason.to_string())).0 += 1,
        }
    }
    Ok((Some(sum), served))
}

impl Parity {
    fn add(&mut self, place: usize, found: &Compared) {
        self.rows += 1;
        self.identical += usize::from(found.differs.is_empty());
        self.same_prompts += usize::from(found.same_prompt);
        for part in &found.differs {
            *self.differ.entry(*part).or_insert(0) += 1;
            if !self.examples.iter().any(|(known, _)| known == part) {
                self.examples.push((*part, place));
            }
        }
    }
}

/// A stretch of two rows beside each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Tokens of both.
    Both(Vec<u32>),
    /// Tokens that training alone has, and tokens that the server alone has, in the same place.
    Differ(Vec<u32>, Vec<u32>),
}

/// Longest middle part, in tokens, whose common parts are looked for.
const LONGEST: usize = 2000;

/// Two rows of tokens as stretches that they share and stretches that differ.
pub fn changes(trained: &[u32], served: &[u32]) -> Vec<Change> {
    let before = trained.iter().zip(served).take_while(|(a, b)| a == b).count();
    let (a, b) = (&trained[before..], &served[before..]);
    let behind = a.iter().rev().zip(b.iter().rev()).take_while(|(a, b)| a == b).count();
    let (a, b) = (&a[..a.len() - behind], &b[..b.len() - behind]);
    let mut list = Vec::new();
    let both = |list: &mut Vec<Change>, ids: &[u32]| {
        if !ids.is_empty() {
            list.push(Change::Both(ids.to_vec()));
        }
    };
    both(&mut list, &trained[..before]);
    let (mut from_a, mut from_b) = (0, 0);
    for (i, j, length) in common(a, b).into_iter().chain([(a.len(), b.len(), 0)]) {
        if from_a < i || from_b < j {
            list.push(Change::Differ(a[from_a..i].to_vec(), b[from_b..j].to_vec()));
        }
        both(&mut list, &a[i..i + length]);
        (from_a, from_b) = (i + length, j + length);
    }
    both(&mut list, &trained[trained.len() - behind..]);
    list
}

/// The longest common subsequence as stretches: places in both, and lengths.
fn common(a: &[u32], b: &[u32]) -> Vec<(usize, usize, usize)> {
    if a.is_empty() || b.is_empty() || a.len() > LONGEST || b.len() > LONGEST {
        return Vec::new();
    }
    let width = b.len() + 1;
    let mut length = vec![0_u16; (a.len() + 1) * width];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            let at = i * width + j;
            length[at] = if a[i] == b[j] { length[at + width + 1] + 1 } else { length[at + width].max(length[at + 1]) };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut found: Vec<(usize, usize, usize)> = Vec::new();
    while i < a.len() && j < b.len() {
        if a[i] == b[j] {
            match found.last_mut() {
                Some((x, y, run)) if *x + *run == i && *y + *run == j => *run += 1,
                _ => found.push((i, j, 1)),
            }
            (i, j) = (i + 1, j + 1);
        } else if length[(i + 1) * width + j] >= length[i * width + j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_put_together_again_are_the_rows() {
        let rows: [&[u32]; 6] = [&[], &[1], &[1, 2, 3, 4], &[1, 9, 9, 4], &[2, 3], &[4, 3, 2, 1, 2, 3]];
        for a in rows {
            for b in rows {
                let (mut left, mut right) = (Vec::new(), Vec::new());
                for change in changes(a, b) {
                    match change {
                        Change::Both(ids) => {
                            left.extend(&ids);
                            right.extend(&ids);
                        }
                        Change::Differ(trained, served) => {
                            assert_ne!(trained, served);
                            left.extend(trained);
                            right.extend(served);
                        }
                    }
                }
                assert_eq!((left.as_slice(), right.as_slice()), (a, b));
            }
        }
        let inserted = changes(&[1, 2, 5], &[1, 2, 3, 4, 5]);
        let both = |ids: &[u32]| Change::Both(ids.to_vec());
        assert_eq!(inserted, [both(&[1, 2]), Change::Differ(vec![], vec![3, 4]), both(&[5])]);
    }

    #[test]
    fn reasoning_is_told_from_what_stands_around_it() {
        assert_eq!(after_thought("<think>\nso\n</think>\n\nyes"), "yes");
        assert_eq!(after_thought("yes"), "yes");
        let bare = without_thoughts("q<|im_end|>\n<|im_start|>assistant\n");
        for thought in ["<think>\n\n</think>\n\n", "<think>\nwell\n</think>\n\n"] {
            let text = format!("q<|im_end|>\n<|im_start|>assistant\n{thought}");
            assert_eq!(without_thoughts(&text), bare);
        }
    }
}
