//! jieba's dictionary and the probabilities of its hidden Markov model, as `fixtures/similarity/make.py` writes them down.
//!
//! Kept compressed in the program (1.6 MB) and opened at the first text. Words are ranges of one sorted text, in which a
//! prefix is a range: half the memory of a map, and there in the time it takes to read them once.

use std::ops::Range;
use std::sync::LazyLock;

/// States of the model: a character begins, is inside, ends, or is a word.
pub(crate) const STATES: usize = 4;

/// Words with their counts.
pub(crate) struct Dictionary {
    text: String,
    /// Each word's place in the text, and its count; in the order of the words' bytes.
    words: Vec<(Range<u32>, u32)>,
    /// The sum of all counts.
    total: f64,
    /// How likely a state is to show a character, by the character's place behind the first; logarithms.
    emissions: Vec<[Option<f64>; STATES]>,
}

/// First of the characters that the model knows, and last.
pub(crate) const HAN: std::ops::RangeInclusive<char> = '\u{4e00}'..='\u{9fd5}';

static DICTIONARY: LazyLock<Dictionary> = LazyLock::new(|| {
    let text = zstd::decode_all(&include_bytes!("jieba.zst")[..]).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    text.and_then(Dictionary::read).expect("the dictionary is part of the program; tests read all of it")
});

impl Dictionary {
    /// The one there is.
    pub(crate) fn get() -> &'static Self {
        &DICTIONARY
    }

    fn read(text: String) -> Option<Self> {
        let mut words = Vec::with_capacity(350_000);
        let (total, rest) = text.split_once('\n')?;
        let total = total.parse().ok()?;
        let mut at = text.len() - rest.len();
        let (counts, states) = rest.split_once("\n\n")?;
        for line in counts.split('\n') {
            let (word, count) = line.rsplit_once(' ')?;
            let start = u32::try_from(at).ok()?;
            words.push((start..start + u32::try_from(word.len()).ok()?, count.parse().ok()?));
            at += line.len() + 1;
        }
        let mut emissions = vec![[None; STATES]; HAN.count()];
        for line in states.lines() {
            let mut fields = line.split(' ');
            let char = fields.next()?.chars().next()?;
            let row = emissions.get_mut(place(char)?)?;
            for cell in row {
                *cell = match fields.next()? {
                    "-" => None,
                    number => Some(number.parse().ok()?),
                };
            }
        }
        Some(Self { text, words, total, emissions })
    }

    fn word(&self, at: usize) -> &[u8] {
        let range = &self.words[at].0;
        &self.text.as_bytes()[range.start as usize..range.end as usize]
    }

    /// Logarithm of the sum of all counts.
    pub(crate) fn log_total(&self) -> f64 {
        self.total.ln()
    }

    /// How likely each state is to show a character; nothing where it never was seen to.
    pub(crate) fn emissions(&self, char: char) -> [Option<f64>; STATES] {
        place(char).and_then(|place| self.emissions.get(place)).copied().unwrap_or_default()
    }

    /// Hears of each beginning of `chars` that a word of the dictionary begins with: its length, and its own count if it
    /// is a word.
    pub(crate) fn beginnings(&self, chars: &[char], mut hear: impl FnMut(usize, Option<u32>)) {
        let (mut range, mut depth) = (0..self.words.len(), 0);
        for (length, char) in (1..).zip(chars) {
            let mut buffer = [0; 4];
            let next = char.encode_utf8(&mut buffer).as_bytes();
            let tail = |at: usize| &self.word(at)[depth..];
            let start = partition(range.clone(), |at| tail(at) < next);
            range = start..partition(start..range.end, |at| tail(at) < next || tail(at).starts_with(next));
            if range.is_empty() {
                return;
            }
            depth += next.len();
            let whole = self.word(range.start).len() == depth;
            hear(length, whole.then(|| self.words[range.start].1));
        }
    }

    /// Whether `chars` are a word.
    pub(crate) fn has(&self, chars: &[char]) -> bool {
        let mut found = false;
        self.beginnings(chars, |length, count| found = length == chars.len() && count.is_some());
        found
    }
}

/// A character's place behind the first that the model knows.
fn place(char: char) -> Option<usize> {
    HAN.contains(&char).then(|| char as usize - *HAN.start() as usize)
}

/// The first place of `range` at which `before` no longer holds.
fn partition(range: Range<usize>, before: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (range.start, range.end);
    while low < high {
        let middle = low + (high - low) / 2;
        if before(middle) { low = middle + 1 } else { high = middle }
    }
    low
}
