//! `tokenizer.json` as metadata: the other way of [`super::super::tokenizer`].
//!
//! llama.cpp finds the way of cutting text by a name, and a wrong one gives other ids without any error: a tokenizer whose parts
//! have no such name is refused.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value as Json;

use super::Description;
use crate::gguf::pretokenizer;
use crate::gguf::value::{Array, Value};

/// Kinds of tokens (`llama_token_type`).
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// What SentencePiece writes for a space.
const SPACE: char = '\u{2581}';

/// Cures of all that is refused here.
const INSTEAD: &str = "leave out export_format: gguf and serve the safetensors";

type Keys = Vec<(String, Value)>;

/// The tokenizer's keys.
pub(super) fn metadata(description: &Description<'_>, notes: &mut Vec<String>) -> Result<Keys, String> {
    let files = description.tokenizer;
    let json: Json = serde_json::from_slice(&files.tokenizer_json).map_err(|e| format!("tokenizer.json: {e}"))?;
    let model = &json["model"];
    let kind = model["type"].as_str().unwrap_or("BPE");
    if kind != "BPE" {
        return Err(format!("its tokenizer is of the kind {kind}; BPE can be written; {INSTEAD}"));
    }
    let vocabulary = Vocabulary::read(&json, description.architecture.vocabulary)?;
    let mut keys = Keys::new();
    let mut put = |key: &str, value: Value| keys.push((format!("tokenizer.ggml.{key}"), value));
    let pieces = model["byte_fallback"].as_bool() == Some(true);
    let merges = merges(model)?;
    if pieces {
        put("model", "llama".into());
        put("pre", "default".into());
        put("scores", Value::Array(Array::F32(scores(&vocabulary, &merges, notes)?)));
        put("add_space_prefix", Value::Bool(has_prefix(&json, notes)));
    } else {
        let pre = pretokenizer::name_of(&json).map_err(|reason| format!("{reason}; {INSTEAD}"))?;
        put("model", "gpt2".into());
        put("pre", pre.into());
        let merge = |&(left, right): &(&str, &str)| format!("{} {}", visible(left), visible(right));
        put("merges", Value::Array(Array::String(merges.iter().map(merge).collect())));
    }
    put("token_type", Value::Array(Array::I32(vocabulary.kinds(pieces, model["unk_token"].as_str()))));
    for (key, id) in special_ids(description, &vocabulary) {
        put(key, Value::U32(id));
    }
    let (bos, eos) = around(&json["post_processor"], &files.tokenizer_config);
    put("add_bos_token", Value::Bool(bos));
    put("add_eos_token", Value::Bool(eos));
    put("tokens", Value::Array(Array::String(vocabulary.texts(pieces))));
    if let Some(template) = &files.chat_template {
        keys.push(("tokenizer.chat_template".to_owned(), template.as_str().into()));
    }
    Ok(keys)
}

/// A token of the vocabulary.
struct Token {
    text: String,
    /// It is found in text before the text is cut; whether as a special one.
    added: Option<bool>,
}

/// Tokens by id; the embedding may have rows that are no token.
struct Vocabulary {
    tokens: BTreeMap<u32, Token>,
    rows: usize,
}

impl Vocabulary {
    fn read(json: &Json, rows: usize) -> Result<Self, String> {
        let vocabulary = json["model"]["vocab"].as_object().ok_or("tokenizer.json has no vocabulary")?;
        let mut tokens = BTreeMap::new();
        let id_of = |value: &Json| value.as_u64().and_then(|id| u32::try_from(id).ok());
        for (text, id) in vocabulary {
            let id = id_of(id).ok_or_else(|| format!("the id of the token '{text}' in tokenizer.json is no number"))?;
            tokens.insert(id, Token { text: text.clone(), added: None });
        }
        for added in json["added_tokens"].as_array().into_iter().flatten() {
            let (Some(id), Some(text)) = (id_of(&added["id"]), added["content"].as_str()) else {
                return Err("an added token in tokenizer.json has no id or no content".into());
            };
            tokens.insert(id, Token { text: text.to_owned(), added: Some(added["special"].as_bool() == Some(true)) });
        }
        match tokens.last_key_value() {
            None => Err("tokenizer.json has no tokens".into()),
            Some((&last, token)) if last as usize >= rows => Err(format!(
                "the token '{}' has the id {last}, and the embedding has {rows} rows; train with resize_vocab: true",
                token.text
            )),
            Some(_) => Ok(Self { tokens, rows }),
        }
    }

    fn id(&self, text: &str) -> Option<u32> {
        self.tokens.iter().find(|(_, token)| token.text == text).map(|(id, _)| *id)
    }

    /// The rows' texts; those of no token as llama.cpp's converter calls them.
    fn texts(&self, pieces: bool) -> Vec<String> {
        let text = |id: usize| match self.tokens.get(&(id as u32)) {
            None => format!("[PAD{id}]"),
            // It is compared with text, which has no such spaces.
            Some(token) if pieces && token.added == Some(false) => token.text.replace(SPACE, " "),
            Some(token) => token.text.clone(),
        };
        (0..self.rows).map(text).collect()
    }

    fn kinds(&self, pieces: bool, unknown: Option<&str>) -> Vec<i32> {
        let kind = |id: usize| match self.tokens.get(&(id as u32)) {
            None => UNUSED,
            Some(token) if pieces && unknown == Some(token.text.as_str()) => UNKNOWN,
            Some(Token { added: Some(special), .. }) => {
                if *special {
                    CONTROL
                } else {
                    USER_DEFINED
                }
            }
            Some(token) if pieces && byte(&token.text).is_some() => BYTE,
            Some(_) => NORMAL,
        };
        (0..self.rows).map(kind).collect()
    }
}

/// The byte that a piece such as `<0x0A>` stands for.
fn byte(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 2)
}

/// Pairs in order of priority.
fn merges(model: &Json) -> Result<Vec<(&str, &str)>, String> {
    fn pair(merge: &Json) -> Option<(&str, &str)> {
        match merge {
            Json::String(text) => text.split_once(' '),
            Json::Array(parts) => Some((parts.first()?.as_str()?, parts.get(1)?.as_str()?)),
            _ => None,
        }
    }
    let list = model["merges"].as_array().ok_or("tokenizer.json has no merges")?;
    list.iter()
        .map(|merge| pair(merge).ok_or_else(|| format!("the merge {merge} in tokenizer.json is no pair")))
        .collect()
}

/// A piece in a list in which spaces part: GPT-2's alphabet has a letter for the space.
fn visible(piece: &str) -> String {
    piece.replace(' ', "\u{120}")
}

/// Scores by which llama.cpp merges pieces: the earlier a merge, the better the piece that it makes.
fn scores(vocabulary: &Vocabulary, merges: &[(&str, &str)], notes: &mut Vec<String>) -> Result<Vec<f32>, String> {
    let ids: HashMap<&str, u32> = vocabulary.tokens.iter().map(|(id, token)| (token.text.as_str(), *id)).collect();
    // What no merge makes comes behind all that one makes, and is never compared.
    let mut scores = vec![-(merges.len() as f32) - 1.0; vocabulary.rows];
    let mut seen = vec![None; vocabulary.rows];
    let mut is_one_order = true;
    for (rank, (left, right)) in merges.iter().enumerate() {
        let made = format!("{left}{right}");
        let id = *ids.get(made.as_str()).ok_or_else(|| format!("the merge of '{left}' and '{right}' makes no token"))?
            as usize;
        match seen[id].replace(rank) {
            None => scores[id] = -(rank as f32),
            // Two ways to one piece have one score there, so nothing may come between them.
            Some(before) => is_one_order &= before + 1 == rank,
        }
    }
    if !is_one_order {
        notes.push(
            "llama.cpp has one priority for each piece where this tokenizer has one for each merge: rare words may be cut otherwise"
                .to_owned(),
        );
    }
    Ok(scores)
}

/// Whether a space is put before a text.
fn has_prefix(json: &Json, notes: &mut Vec<String>) -> bool {
    let parts = |part: &Json, list: &str| match part[list].as_array() {
        Some(parts) => parts.clone(),
        None => vec![part.clone()],
    };
    if parts(&json["normalizer"], "normalizers").iter().any(|part| part["type"] == "Prepend") {
        return true;
    }
    let cut = parts(&json["pre_tokenizer"], "pretokenizers");
    let Some(space) = cut.iter().find(|part| part["type"] == "Metaspace") else { return false };
    match space["prepend_scheme"].as_str() {
        Some("never") => false,
        Some("first") => {
            notes.push(
                "llama.cpp puts a space before the text behind each special token, this tokenizer only before the very first word"
                    .to_owned(),
            );
            true
        }
        _ => space["add_prefix_space"].as_bool() != Some(false),
    }
}

/// Ids of the special tokens, by the keys that llama.cpp has for them.
fn special_ids(description: &Description<'_>, vocabulary: &Vocabulary) -> Vec<(&'static str, u32)> {
    let config = &description.tokenizer.tokenizer_config;
    let named = |key: &str| {
        let token = &config[key];
        let text = token.as_str().or_else(|| token["content"].as_str())?;
        vocabulary.id(text)
    };
    let eos = description.ends.first().copied().or_else(|| named("eos_token"));
    // An answer ends at any of them; the format has room for one more beside the eos token.
    let turn = description.ends.iter().copied().find(|id| Some(*id) != eos);
    let ids = [
        ("bos_token_id", named("bos_token")),
        ("eos_token_id", eos),
        ("eot_token_id", turn),
        ("unknown_token_id", named("unk_token")),
        ("padding_token_id", named("pad_token")),
    ];
    ids.into_iter().filter_map(|(key, id)| Some((key, id?))).collect()
}

/// Whether the bos token is put before a text, and the eos token behind it.
fn around(post_processor: &Json, config: &Json) -> (bool, bool) {
    let steps = match post_processor["processors"].as_array() {
        Some(steps) => steps.clone(),
        None => vec![post_processor.clone()],
    };
    let Some(template) = steps.into_iter().find(|step| step["type"] == "TemplateProcessing") else {
        return (false, false);
    };
    let is = |part: Option<&Json>, key: &str| {
        let name = &config[key];
        let name = name.as_str().or_else(|| name["content"].as_str());
        part.and_then(|part| part["SpecialToken"]["id"].as_str()).is_some_and(|id| Some(id) == name)
    };
    let single = template["single"].as_array();
    (is(single.and_then(|parts| parts.first()), "bos_token"), is(single.and_then(|parts| parts.last()), "eos_token"))
}
