//! The fast way through a byte-level tokenizer, taken only if `tokenizer.json` is exactly of a form
//! known here. Whatever is not recognised is encoded by the `tokenizers` crate; ids are the same.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ahash::AHashMap;
use serde::Deserialize;
use serde::de::{Error as _, IgnoredAny, SeqAccess, Visitor};
use serde_json::{Value, json};
use tokenizers::AddedToken;
use unicode_normalization_alignments::UnicodeNormalization;

use super::bpe::Bpe;
use super::scan::{GPT2, LLAMA3, Pattern, QWEN2};

/// A recognised tokenizer.
#[derive(Clone)]
pub(super) struct Fast {
    nfc: bool,
    pattern: Pattern,
    bpe: Arc<Bpe>,
    added: AddedTokens,
}

#[derive(Deserialize)]
struct Spec<'a> {
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    #[serde(borrow)]
    model: ModelSpec<'a>,
}

#[derive(Deserialize)]
struct ModelSpec<'a> {
    #[serde(rename = "type")]
    kind: Option<&'a str>,
    dropout: Option<f64>,
    continuing_subword_prefix: Option<&'a str>,
    end_of_word_suffix: Option<&'a str>,
    unk_token: Option<&'a str>,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    #[serde(borrow)]
    vocab: AHashMap<Text<'a>, u32>,
    #[serde(borrow)]
    merges: Vec<MergeSpec<'a>>,
}

/// A text that is borrowed from the file unless it is written with escapes.
#[derive(Deserialize, PartialEq, Eq, Hash)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl std::borrow::Borrow<str> for Text<'_> {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// A merge: `["left", "right"]`, or `"left right"` in older files.
enum MergeSpec<'a> {
    Pair(Text<'a>, Text<'a>),
    Joined(Cow<'a, str>),
}

impl<'de: 'a, 'a> Deserialize<'de> for MergeSpec<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MergeVisitor)
    }
}

struct MergeVisitor;

impl<'de> Visitor<'de> for MergeVisitor {
    type Value = MergeSpec<'de>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a merge")
    }

    fn visit_borrowed_str<E>(self, joined: &'de str) -> Result<Self::Value, E> {
        Ok(MergeSpec::Joined(Cow::Borrowed(joined)))
    }

    fn visit_str<E>(self, joined: &str) -> Result<Self::Value, E> {
        Ok(MergeSpec::Joined(Cow::Owned(joined.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut pair: A) -> Result<Self::Value, A::Error> {
        match (pair.next_element()?, pair.next_element()?, pair.next_element::<IgnoredAny>()?) {
            (Some(left), Some(right), None) => Ok(MergeSpec::Pair(left, right)),
            _ => Err(A::Error::custom("a merge has two sides")),
        }
    }
}

impl Fast {
    /// The fast form of `tokenizer_json`, or `None` if any part of it isn't known.
    pub(super) fn recognise(tokenizer_json: &[u8]) -> Option<Self> {
        let spec: Spec<'_> = serde_json::from_slice(tokenizer_json).ok()?;
        let nfc = match &spec.normalizer {
            None => false,
            Some(n) if *n == json!({"type": "NFC"}) => true,
            Some(_) => return None,
        };
        let pattern = pattern_of(spec.pre_tokenizer.as_ref()?)?;
        let bpe = bpe_of(&spec.model)?;
        Some(Self { nfc, pattern, bpe: Arc::new(bpe), added: AddedTokens::default() })
    }

    /// Takes over the added tokens; false if one of them asks for more than a plain match.
    pub(super) fn set_added<'t>(&mut self, tokens: impl Iterator<Item = (u32, &'t AddedToken)>) -> bool {
        self.added = AddedTokens::default();
        for (id, token) in tokens {
            if token.single_word || token.lstrip || token.rstrip || token.content.is_empty() {
                return false;
            }
            match (token.normalized, self.nfc) {
                (false, _) => self.added.verbatim.insert(token.content.as_bytes(), id),
                (true, false) => self.added.normalized.insert(token.content.as_bytes(), id),
                (true, true) => self.added.normalized.insert(nfc(&token.content).as_bytes(), id),
            }
        }
        true
    }

    /// Appends the ids of `text`.
    pub(super) fn encode(&self, text: &str, out: &mut Vec<u32>) {
        self.added.verbatim.split(text, out, |piece, out| {
            let piece = if self.nfc { nfc(piece) } else { Cow::Borrowed(piece) };
            self.added.normalized.split(&piece, out, |piece, out| {
                self.bpe.encode_words(out, |word| self.pattern.for_each_word(piece, word));
            });
        });
    }
}

fn pattern_of(pre_tokenizer: &Value) -> Option<Pattern> {
    let kind = |v: &Value, kind: &str| v["type"] == kind;
    let byte_level = |v: &Value, regex: bool| {
        kind(v, "ByteLevel") && v["add_prefix_space"] == false && v["use_regex"].as_bool().unwrap_or(true) == regex
    };
    if byte_level(pre_tokenizer, true) {
        return Some(Pattern::Gpt2);
    }
    let [first, second] = pre_tokenizer["pretokenizers"].as_array()?.as_slice() else { return None };
    if !kind(pre_tokenizer, "Sequence") {
        return None;
    }
    if kind(first, "Digits") && first["individual_digits"] == true && byte_level(second, true) {
        return Some(Pattern::DigitsGpt2);
    }
    let isolated = kind(first, "Split") && first["behavior"] == "Isolated" && first["invert"] == false;
    if !isolated || !byte_level(second, false) {
        return None;
    }
    match first["pattern"]["Regex"].as_str()? {
        GPT2 => Some(Pattern::Gpt2),
        QWEN2 => Some(Pattern::Cl100k { digits: 1 }),
        LLAMA3 => Some(Pattern::Cl100k { digits: 3 }),
        _ => None,
    }
}

fn bpe_of(model: &ModelSpec<'_>) -> Option<Bpe> {
    static IDENTITIES: AtomicU64 = AtomicU64::new(1);
    let plain = model.kind.is_none_or(|kind| kind == "BPE")
        && model.dropout.is_none_or(|p| p == 0.0)
        && model.continuing_subword_prefix.is_none_or(str::is_empty)
        && model.end_of_word_suffix.is_none_or(str::is_empty)
        && !model.byte_fallback;
    if !plain {
        return None;
    }
    let alphabet = alphabet();
    let mut bytes = [0; 256];
    for (byte, c) in (0..=255u8).zip(alphabet) {
        let id = model.vocab.get(c.encode_utf8(&mut [0; 4]) as &str).copied();
        bytes[usize::from(byte)] = id.or_else(|| id_of_missing(byte, model))?;
    }
    let mut merges = AHashMap::with_capacity(model.merges.len());
    let mut merged = String::new();
    for (rank, merge) in model.merges.iter().enumerate() {
        let (left, right) = match merge {
            MergeSpec::Pair(left, right) => (left.0.as_ref(), right.0.as_ref()),
            MergeSpec::Joined(joined) => joined.split_once(' ')?,
        };
        merged.clear();
        merged.extend([left, right]);
        let (left, right) = (*model.vocab.get(left)?, *model.vocab.get(right)?);
        let id = *model.vocab.get(merged.as_str())?;
        merges.insert(u64::from(left) << 32 | u64::from(right), (u32::try_from(rank).ok()?, id));
    }
    let mut whole = AHashMap::new();
    if model.ignore_merges {
        let inverse: AHashMap<char, u8> = (0..=255).map(|byte| (alphabet[usize::from(byte)], byte)).collect();
        let in_bytes = |token: &str| token.chars().map(|c| inverse.get(&c).copied()).collect::<Option<Box<[u8]>>>();
        whole.extend(model.vocab.iter().filter_map(|(token, id)| Some((in_bytes(&token.0)?, *id))));
    }
    Some(Bpe { bytes, merges, whole, identity: IDENTITIES.fetch_add(1, Ordering::Relaxed) })
}

/// The unknown token stands for a byte that the vocabulary lacks. Bytes that no UTF-8 text has may
/// be missing without one.
fn id_of_missing(byte: u8, model: &ModelSpec<'_>) -> Option<u32> {
    match model.unk_token {
        Some(unk) if !model.fuse_unk => model.vocab.get(unk).copied(),
        _ => matches!(byte, 0xc0 | 0xc1 | 0xf5..=0xff).then_some(0),
    }
}

/// The character that stands for each byte in a byte-level vocabulary (GPT-2): printable Latin-1
/// for itself, the rest in order from U+0100 on.
fn alphabet() -> [char; 256] {
    let mut next = 0x100;
    std::array::from_fn(|byte| match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => char::from(byte as u8),
        _ => {
            next += 1;
            char::from_u32(next - 1).expect("at most U+0143")
        }
    })
}

/// `text` in normal form C.
fn nfc(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_stable) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.nfc().map(|(c, _)| c).collect())
}

/// Whether `c` stands for itself in normal form C whatever surrounds it, as long as all of the
/// text is made of such characters. Only the common blocks: the rest is normalised in full.
fn is_stable(c: char) -> bool {
    matches!(u32::from(c),
        0..0x300 // Latin
        | 0x410..=0x482 | 0x48a..=0x4ff // Cyrillic
        | 0x2010..=0x2027 | 0x2030..=0x205e // dashes, quotes, dots
        | 0x3000..=0x3029 | 0x3041..=0x3096 | 0x30a0..=0x30fe // CJK punctuation, kana
        | 0x4e00..=0x9fff // Han
        | 0xac00..=0xd7a3 // Hangul syllables
        | 0xff01..=0xff60 // full-width forms
        | 0x1f300..=0x1faff // emoji
    )
}

/// Tokens that are cut out of the text before anything else: those that match the text as it
/// stands, then those that match the normalised text.
#[derive(Clone, Default)]
struct AddedTokens {
    verbatim: Matcher,
    normalized: Matcher,
}

/// A token's text and id.
type Token = (Box<[u8]>, u32);

/// Finds the leftmost of a set of strings, and of those the longest.
#[derive(Clone, Default)]
struct Matcher {
    by_first: AHashMap<u8, Vec<Token>>,
    is_first: Option<Box<[bool; 256]>>,
}

impl Matcher {
    fn insert(&mut self, token: &[u8], id: u32) {
        let Some(&first) = token.first() else { return };
        self.is_first.get_or_insert_with(|| Box::new([false; 256]))[usize::from(first)] = true;
        let tokens = self.by_first.entry(first).or_default();
        tokens.push((token.into(), id));
        tokens.sort_by_key(|(token, _)| std::cmp::Reverse(token.len()));
    }

    fn split(&self, text: &str, out: &mut Vec<u32>, mut piece: impl FnMut(&str, &mut Vec<u32>)) {
        let (mut start, mut at) = (0, 0);
        while let Some((begin, len, id)) = self.find(text.as_bytes(), at) {
            if begin > start {
                piece(&text[start..begin], out);
            }
            out.push(id);
            at = begin + len;
            start = at;
        }
        if start < text.len() {
            piece(&text[start..], out);
        }
    }

    fn find(&self, text: &[u8], from: usize) -> Option<(usize, usize, u32)> {
        let is_first = self.is_first.as_deref()?;
        (from..text.len()).filter(|&at| is_first[usize::from(text[at])]).find_map(|at| {
            let (token, id) = self.by_first[&text[at]].iter().find(|(token, _)| text[at..].starts_with(token))?;
            Some((at, token.len(), *id))
        })
    }
}
