//! How text is cut before byte-level BPE, by `tokenizer.ggml.pre`.
//!
//! The names are llama.cpp's (`llama-vocab.cpp`); the expressions are those of the models' own
//! `tokenizer.json`. A wrong choice gives other ids without any error, so an unknown name is one.

use serde_json::{Value, json};

/// A way to cut text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct PreTokenizer {
    cut: Cut,
    /// Unicode text is composed (NFC) first.
    compose: bool,
    /// A piece that is in the vocabulary is taken as it is, without merging.
    pub(crate) ignore_merges: bool,
    /// A sequence starts with the bos token unless the file says otherwise.
    pub(crate) adds_bos: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Cut {
    /// GPT-2's expression.
    Gpt2,
    /// Digits one by one, the rest by GPT-2's expression.
    DigitsThenGpt2,
    /// An expression of its own.
    Regex(&'static str),
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const SEED_CODER: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";

const fn plain(cut: Cut) -> PreTokenizer {
    PreTokenizer { cut, compose: false, ignore_merges: false, adds_bos: false }
}

const LLAMA3_WAY: PreTokenizer = PreTokenizer { ignore_merges: true, adds_bos: true, ..plain(Cut::Regex(LLAMA3)) };
const QWEN2_WAY: PreTokenizer = PreTokenizer { compose: true, ..plain(Cut::Regex(QWEN2)) };

/// Names and what they mean.
const TABLE: [(&[&str], PreTokenizer); 7] = [
    (&["llama-bpe", "llama3", "llama-v3", "falcon3", "lfm2"], LLAMA3_WAY),
    (&["smaug-bpe", "dbrx"], plain(Cut::Regex(LLAMA3))),
    (&["qwen2", "deepseek-r1-qwen", "megrez"], QWEN2_WAY),
    (&["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"], plain(Cut::DigitsThenGpt2)),
    (&["gpt-2", "olmo", "phi-2", "exaone4"], plain(Cut::Gpt2)),
    (&["tekken"], PreTokenizer { ignore_merges: true, adds_bos: true, ..plain(Cut::Regex(TEKKEN)) }),
    (&["seed-coder"], plain(Cut::Regex(SEED_CODER))),
];

/// Finds the way of a name; files without one (older than April 2024) get their family's, with a
/// note.
pub(crate) fn find(
    name: Option<&str>,
    architecture: &str,
    vocabulary: usize,
) -> Result<(PreTokenizer, Option<String>), String> {
    if let Some(name) = name.filter(|name| *name != "default") {
        let row = TABLE.iter().find(|(names, _)| names.contains(&name));
        return row.map(|(_, way)| (*way, None)).ok_or_else(|| {
            let known: Vec<_> = TABLE.iter().flat_map(|(names, _)| *names).copied().collect();
            format!(
                "its pre-tokenizer '{name}' is unknown (known are {}); use the model's Hugging \
                 Face folder instead",
                known.join(", ")
            )
        });
    }
    let (way, whose) = match architecture {
        "qwen2" | "qwen3" | "qwen2moe" | "qwen3moe" => (QWEN2_WAY, "Qwen2's"),
        // The size of Llama 3's vocabulary, with some room for added tokens.
        "llama" if (128_000..=128_512).contains(&vocabulary) => (LLAMA3_WAY, "Llama 3's"),
        _ => (plain(Cut::Gpt2), "GPT-2's"),
    };
    let note = format!(
        "the file doesn't say how text is cut before tokenization; {whose} way is taken, which is \
         right for that family and can be wrong for others"
    );
    Ok((way, Some(note)))
}

/// The name of the way in which a `tokenizer.json` with byte-level BPE cuts text. Whether it composes Unicode first has no
/// name: llama.cpp never does.
pub(crate) fn name_of(tokenizer: &Value) -> Result<&'static str, String> {
    let cut = &tokenizer["pre_tokenizer"];
    let steps = cut["pretokenizers"].as_array().map_or_else(|| vec![cut], |steps| steps.iter().collect());
    let is_level = |step: &Value, by_regex: bool| {
        let prefixed = step["add_prefix_space"].as_bool() == Some(true);
        step["type"] == "ByteLevel" && !prefixed && step["use_regex"].as_bool().unwrap_or(true) == by_regex
    };
    let found = match steps[..] {
        [level] if is_level(level, true) => Some(Cut::Gpt2),
        [digits, level] if digits["type"] == "Digits" && is_level(level, true) => {
            (digits["individual_digits"] == true).then_some(Cut::DigitsThenGpt2)
        }
        [split, level] if split["type"] == "Split" && is_level(level, false) => {
            let regex = split["pattern"]["Regex"].as_str();
            let known =
                TABLE.iter().map(|(_, way)| way.cut).find(|cut| matches!(cut, Cut::Regex(text) if regex == Some(text)));
            known.filter(|_| split["behavior"] == "Isolated" && split["invert"] != true)
        }
        _ => None,
    };
    let ignores = tokenizer["model"]["ignore_merges"].as_bool().unwrap_or(false);
    let row = TABLE.iter().find(|(_, way)| Some(way.cut) == found && way.ignore_merges == ignores);
    row.map(|(names, _)| names[0]).ok_or_else(|| {
        format!("llama.cpp has no name for the way in which this tokenizer cuts text ({cut}, ignore_merges: {ignores})")
    })
}

impl PreTokenizer {
    /// `pre_tokenizer` of a `tokenizer.json`.
    pub(crate) fn to_json(self) -> Value {
        let bytes = |use_regex: bool| {
            json!({
                "type": "ByteLevel",
                "add_prefix_space": false,
                "trim_offsets": true,
                "use_regex": use_regex,
            })
        };
        let first = match self.cut {
            Cut::Gpt2 => return bytes(true),
            Cut::DigitsThenGpt2 => json!({"type": "Digits", "individual_digits": true}),
            Cut::Regex(regex) => json!({
                "type": "Split",
                "pattern": {"Regex": regex},
                "behavior": "Isolated",
                "invert": false,
            }),
        };
        let by_regex = self.cut == Cut::DigitsThenGpt2;
        json!({"type": "Sequence", "pretokenizers": [first, bytes(by_regex)]})
    }

    /// `normalizer` of a `tokenizer.json`.
    pub(crate) fn normalizer(self) -> Value {
        match self.compose {
            true => json!({"type": "NFC"}),
            false => Value::Null,
        }
    }
}
