//! Which characters are letters, numbers, spaces or none of these: the sets that pre-tokenizer
//! patterns are made of, as one table. Letters and numbers are read from the tables of the regular
//! expression library, so a scanner and a pattern can't disagree.

use std::sync::OnceLock;

use regex_syntax::hir::{Class as HirClass, HirKind};

/// Past the end of the text.
pub(super) const END: u8 = 0;
/// `\p{L}`.
pub(super) const LETTER: u8 = 1;
/// `\p{N}`.
pub(super) const NUMBER: u8 = 2;
/// `\s` except line ends.
pub(super) const SPACE: u8 = 4;
/// `\r` and `\n`, which are `\s` too.
pub(super) const NEWLINE: u8 = 8;
/// Everything else: `[^\s\p{L}\p{N}]`.
pub(super) const OTHER: u8 = 16;

/// Text with the class of each of its characters.
#[derive(Clone, Copy)]
pub(super) struct Classified<'a> {
    pub(super) bytes: &'a [u8],
    table: &'static [u8],
}

impl<'a> Classified<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { bytes: text.as_bytes(), table: table() }
    }

    /// Class and length in bytes of the character that begins at byte `at`.
    #[inline]
    pub(super) fn at(&self, at: usize) -> (u8, usize) {
        let Some(&first) = self.bytes.get(at) else { return (END, 0) };
        if first < 0x80 {
            return (self.table[usize::from(first)], 1);
        }
        let (code, len) = decode(&self.bytes[at..], first);
        (self.table[code], len)
    }

    /// End of the run of characters from byte `at` whose class is in `set`.
    #[inline]
    pub(super) fn run(&self, mut at: usize, set: u8) -> usize {
        loop {
            let (class, len) = self.at(at);
            if class & set == 0 {
                return at;
            }
            at += len;
        }
    }
}

/// The character at the start of `bytes`, which are UTF-8 and begin with the non-ASCII `first`.
#[inline]
fn decode(bytes: &[u8], first: u8) -> (usize, usize) {
    let bits = |i: usize| usize::from(bytes[i] & 0x3f);
    let first = usize::from(first);
    if first < 0xe0 {
        ((first & 0x1f) << 6 | bits(1), 2)
    } else if first < 0xf0 {
        ((first & 0x0f) << 12 | bits(1) << 6 | bits(2), 3)
    } else {
        ((first & 0x07) << 18 | bits(1) << 12 | bits(2) << 6 | bits(3), 4)
    }
}

fn table() -> &'static [u8] {
    static TABLE: OnceLock<Box<[u8]>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut table = vec![OTHER; char::MAX as usize + 1].into_boxed_slice();
        for (pattern, class) in [(r"\p{L}", LETTER), (r"\p{N}", NUMBER)] {
            let hir = regex_syntax::parse(pattern).expect("the pattern is a general category");
            let HirKind::Class(HirClass::Unicode(set)) = hir.kind() else {
                unreachable!("a general category parses to a class of characters")
            };
            for range in set.iter() {
                table[range.start() as usize..=range.end() as usize].fill(class);
            }
        }
        for c in ('\0'..=char::MAX).filter(|c| c.is_whitespace()) {
            table[c as usize] = if matches!(c, '\r' | '\n') { NEWLINE } else { SPACE };
        }
        table
    })
}
