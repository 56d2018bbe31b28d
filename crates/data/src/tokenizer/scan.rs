//! Pre-tokenizers by hand: the split patterns of common byte-level tokenizers as scanners.
//!
//! A regular expression with look-ahead spends most of the time of encoding. Each scanner follows
//! its pattern alternative by alternative; `tests` and `tests/tokenizer_fuzz.rs` hold them equal.

use super::unicode::{Classified, LETTER, NEWLINE, NUMBER, OTHER, SPACE};

/// How text is cut into words before merging.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pattern {
    /// GPT-2.
    Gpt2,
    /// Each digit by itself, then as GPT-2 between digits (SmolLM2, StarCoder2).
    DigitsGpt2,
    /// Qwen2 and Qwen3 with 1 digit, Llama 3 with up to 3 digits a word.
    Cl100k { digits: usize },
}

pub(super) const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
pub(super) const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(super) const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl Pattern {
    /// Calls `word` for each word of `text`, in order; together they are the whole text.
    pub(super) fn for_each_word(self, text: &str, mut word: impl FnMut(&[u8])) {
        match self {
            Self::Gpt2 => scan(text, gpt2, &mut word),
            Self::Cl100k { digits } => scan(text, |t, at| cl100k(t, at, digits), &mut word),
            Self::DigitsGpt2 => {
                let mut start = 0;
                // The same predicate as the `Digits` pre-tokenizer's, which isn't exactly \p{N}.
                for (at, digit) in text.match_indices(char::is_numeric) {
                    scan(&text[start..at], gpt2, &mut word);
                    word(digit.as_bytes());
                    start = at + digit.len();
                }
                scan(&text[start..], gpt2, &mut word);
            }
        }
    }
}

#[inline]
fn scan(text: &str, next_end: impl Fn(Classified<'_>, usize) -> usize, word: &mut impl FnMut(&[u8])) {
    let classified = Classified::new(text);
    let mut start = 0;
    while start < text.len() {
        let end = next_end(classified, start);
        word(&classified.bytes[start..end]);
        start = end;
    }
}

#[inline]
fn gpt2(text: Classified<'_>, start: usize) -> usize {
    let byte = text.bytes[start];
    if byte == b'\''
        && let Some(end) = contraction(text.bytes, start, false)
    {
        return end;
    }
    let body = if byte == b' ' { start + 1 } else { start };
    let (class, len) = text.at(body);
    if class & (LETTER | NUMBER | OTHER) != 0 {
        return text.run(body + len, class);
    }
    spaces(text, start).before_word
}

#[inline]
fn cl100k(text: Classified<'_>, start: usize, digits: usize) -> usize {
    let byte = text.bytes[start];
    let (class, len) = text.at(start);
    if class == LETTER {
        return text.run(start + len, LETTER);
    }
    if byte == b'\''
        && let Some(end) = contraction(text.bytes, start, true)
    {
        return end;
    }
    let (next_class, next_len) = text.at(start + len);
    if class & (SPACE | OTHER) != 0 && next_class == LETTER {
        return text.run(start + len + next_len, LETTER);
    }
    if class == NUMBER {
        return (1..digits).fold(start + len, |end, _| match text.at(end) {
            (NUMBER, len) => end + len,
            _ => end,
        });
    }
    if class == OTHER || (byte == b' ' && next_class == OTHER) {
        return text.run(text.run(start + len, OTHER), NEWLINE);
    }
    let run = spaces(text, start);
    run.after_newline.unwrap_or(run.before_word)
}

/// A run of white space.
struct Spaces {
    /// End of `\s*[\r\n]+`.
    after_newline: Option<usize>,
    /// End of `\s+(?!\S)|\s+`: a word that follows keeps the last space.
    before_word: usize,
}

#[inline]
fn spaces(text: Classified<'_>, start: usize) -> Spaces {
    let (mut end, mut last, mut after_newline) = (start, start, None);
    loop {
        let (class, len) = text.at(end);
        if class & (SPACE | NEWLINE) == 0 {
            break;
        }
        last = end;
        end += len;
        if class == NEWLINE {
            after_newline = Some(end);
        }
    }
    let before_word = if end == text.bytes.len() || last == start { end } else { last };
    Spaces { after_newline, before_word }
}

/// End of an English contraction that begins with the apostrophe at `start`.
fn contraction(bytes: &[u8], start: usize, ignore_case: bool) -> Option<usize> {
    let lower = |at: usize| bytes.get(at).map(|b| if ignore_case { b.to_ascii_lowercase() } else { *b });
    match (lower(start + 1)?, lower(start + 2)) {
        (b's' | b't' | b'm' | b'd', _) => Some(start + 2),
        (b'r' | b'v', Some(b'e')) | (b'l', Some(b'l')) => Some(start + 3),
        // U+017F, the long s, is an `s` when case is ignored.
        (0xc5, Some(0xbf)) if ignore_case => Some(start + 3),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(pattern: Pattern, text: &str) -> Vec<String> {
        let mut out = Vec::new();
        pattern.for_each_word(text, |w| out.push(String::from_utf8(w.to_vec()).unwrap()));
        out
    }

    #[test]
    fn words_are_cut_as_the_patterns_say() {
        let qwen = Pattern::Cl100k { digits: 1 };
        assert_eq!(
            words(qwen, "It's  12 a\r\n\n b!!\n"),
            ["It", "'s", " ", " ", "1", "2", " a", "\r\n\n", " b", "!!\n"]
        );
        assert_eq!(words(qwen, "I'LL don'\u{17f}  "), ["I", "'LL", " don", "'\u{17f}", "  "]);
        assert_eq!(words(Pattern::Cl100k { digits: 3 }, "12345"), ["123", "45"]);
        assert_eq!(words(Pattern::Gpt2, "I'LL  a 12½ -- \n"), ["I", "'", "LL", " ", " a", " 12½", " --", " \n"]);
        assert_eq!(words(Pattern::DigitsGpt2, "a 12 b"), ["a", " ", "1", "2", " b"]);
        assert!(words(qwen, "").is_empty());
    }
}
