//! Text to words as jieba 0.42.1 cuts it (`jieba.cut`): the likeliest way through the words of its dictionary, single
//! characters that are left over by its hidden Markov model.
//!
//! The crate `jieba-rs` cuts other texts than Python's jieba does: its ranges of characters are wider and it keeps names such
//! as `v1.2-a` whole. Scores are only worth comparing if the words are the same.

use crate::dictionary::{Dictionary, HAN};
use crate::hidden;

/// Words of a text, in order; together they are the text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Words {
    text: String,
    /// Where each word ends.
    ends: Vec<usize>,
}

impl Words {
    /// The words.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| &self.text[start..end])
    }

    fn push(&mut self, word: &[char]) {
        self.text.extend(word);
        self.ends.push(self.text.len());
    }
}

/// Cuts a text into words.
#[must_use]
pub fn words(text: &str) -> Words {
    let chars: Vec<char> = text.chars().collect();
    let mut words = Words::default();
    for part in chars.chunk_by(|a, b| is_cut(*a) == is_cut(*b)) {
        if is_cut(part[0]) { cut(part, &mut words) } else { pass(part, &mut words) }
    }
    words
}

/// Characters that words are looked for among; all others stand alone.
fn is_cut(c: char) -> bool {
    HAN.contains(&c) || c.is_ascii_alphanumeric() || "+#&._%-".contains(c)
}

/// A line's end of two characters is one word, every other character is one.
fn pass(part: &[char], words: &mut Words) {
    let mut rest = part;
    while !rest.is_empty() {
        let length = if rest.starts_with(&['\r', '\n']) { 2 } else { 1 };
        words.push(&rest[..length]);
        rest = &rest[length..];
    }
}

/// The likeliest words; characters that are none are gathered and looked at again.
fn cut(part: &[char], words: &mut Words) {
    let dictionary = Dictionary::get();
    let ends = route(dictionary, part);
    let (mut at, mut single) = (0, 0);
    while at < part.len() {
        let end = ends[at];
        if end - at > 1 {
            leftover(dictionary, &part[single..at], words);
            words.push(&part[at..end]);
            single = end;
        }
        at = end;
    }
    leftover(dictionary, &part[single..], words);
}

/// For each place, where the word that begins there on the likeliest way ends. Of equal ways the longer word wins.
fn route(dictionary: &Dictionary, part: &[char]) -> Vec<usize> {
    let log_total = dictionary.log_total();
    let mut scores = vec![0.0; part.len() + 1];
    let mut ends = vec![0; part.len()];
    for at in (0..part.len()).rev() {
        let (mut best, mut end) = (f64::NEG_INFINITY, 0);
        let mut weigh = |length: usize, count: f64| {
            let score: f64 = count.ln() - log_total + scores[at + length];
            if score >= best {
                (best, end) = (score, at + length);
            }
        };
        let mut found = false;
        dictionary.beginnings(&part[at..], |length, count| {
            if let Some(count) = count {
                weigh(length, f64::from(count));
                found = true;
            }
        });
        if !found {
            weigh(1, 1.0);
        }
        (scores[at], ends[at]) = (best, end);
    }
    ends
}

/// Single characters in a row: by themselves if they are one, or a word that another way was likelier than; else by the model.
fn leftover(dictionary: &Dictionary, part: &[char], words: &mut Words) {
    if part.len() < 2 || dictionary.has(part) {
        part.iter().for_each(|char| words.push(std::slice::from_ref(char)));
        return;
    }
    for stretch in part.chunk_by(|a, b| HAN.contains(a) == HAN.contains(b)) {
        let mut rest = stretch;
        let mut take = |length: usize| {
            words.push(&rest[..length]);
            rest = &rest[length..];
        };
        if HAN.contains(&stretch[0]) { hidden::cut(dictionary, stretch, take) } else { codes(stretch, &mut take) }
    }
}

/// Letters and digits, with a fraction and a percent sign behind them; and what lies between. Hears of each one's length.
fn codes(part: &[char], hear: &mut impl FnMut(usize)) {
    let digits = |from: usize| part[from..].iter().take_while(|c| c.is_ascii_digit()).count();
    let (mut at, mut gap) = (0, 0);
    while at < part.len() {
        let mut end = at + part[at..].iter().take_while(|c| c.is_ascii_alphanumeric()).count();
        if end == at {
            at += 1;
            continue;
        }
        if gap < at {
            hear(at - gap);
        }
        if part.get(end) == Some(&'.') && digits(end + 1) > 0 {
            end += 1 + digits(end + 1);
        }
        end += usize::from(part.get(end) == Some(&'%'));
        hear(end - at);
        (at, gap) = (end, end);
    }
    if gap < at {
        hear(at - gap);
    }
}
