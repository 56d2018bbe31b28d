//! `tokenizer.json` and `tokenizer_config.json` out of GGUF metadata.
//!
//! Special tokens are often wrong in these files: an end token that no turn ends with, a padding
//! token out of range, turn markers that count as ordinary text. What the chat template shows to
//! be wrong is corrected, with a note.

use std::collections::{BTreeMap, HashSet};

use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Value as Json, json};

use super::pretokenizer;
use super::sentencepiece;
use super::value::Value;
use crate::model::TokenizerFiles;

type Metadata = BTreeMap<String, Value>;

/// Tokens that end a turn in some family.
const TURN_ENDS: [&str; 5] = ["<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|end_of_turn|>"];

/// Kinds of tokens (`tokenizer.ggml.token_type`) that matter here.
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;

/// Makes the tokenizer files, with notes on what was corrected.
pub(super) fn build(metadata: &Metadata, architecture: &str) -> Result<(TokenizerFiles, Vec<String>), String> {
    let vocabulary = Vocabulary::read(metadata)?;
    let template = text(metadata, "tokenizer.chat_template");
    let mut notes = Vec::new();
    let special = Special::read(metadata, &vocabulary, template, &mut notes);
    let parts = match text(metadata, "tokenizer.ggml.model") {
        Some("gpt2") => bytes_bpe(metadata, architecture, &vocabulary, &mut notes)?,
        Some("llama") => pieces_bpe(metadata, &vocabulary)?,
        Some(other) => {
            return Err(format!("its kind is '{other}'; gpt2 and llama are supported"));
        }
        None => return Err("the file holds none; use the model's Hugging Face folder".into()),
    };
    let flag = |key: &str| metadata.get(key).and_then(Value::as_bool);
    let bos = flag("tokenizer.ggml.add_bos_token").unwrap_or(parts.adds_bos);
    let eos = flag("tokenizer.ggml.add_eos_token").unwrap_or(false);
    let bos = special.bos.filter(|_| bos);
    let eos = special.eos.filter(|_| eos);
    let document = Document {
        version: "1.0",
        truncation: (),
        padding: (),
        added_tokens: added_tokens(&vocabulary, &special, template),
        normalizer: parts.normalizer,
        pre_tokenizer: parts.pre_tokenizer,
        post_processor: post_processor(&vocabulary, bos, eos),
        decoder: parts.decoder,
        model: Model {
            kind: "BPE",
            dropout: (),
            unk_token: special.unk.map(|id| vocabulary.tokens[id].as_str()),
            continuing_subword_prefix: (),
            end_of_word_suffix: (),
            fuse_unk: parts.byte_fallback,
            byte_fallback: parts.byte_fallback,
            ignore_merges: parts.ignore_merges,
            vocab: Ids(&vocabulary.tokens),
            merges: parts.merges,
        },
    };
    let files = TokenizerFiles {
        tokenizer_json: serde_json::to_vec(&document).map_err(|e| e.to_string())?,
        tokenizer_config: config(metadata, architecture, &vocabulary, &special, bos.is_some()),
        chat_template: template.map(str::to_owned),
        extra: Vec::new(),
    };
    Ok((files, notes))
}

/// The id of a special token as the tokenizer files have it.
pub(super) fn id_of(metadata: &Metadata, files: &TokenizerFiles, key: &str) -> Option<usize> {
    let token = files.tokenizer_config.get(key)?.as_str()?;
    let tokens = metadata.get("tokenizer.ggml.tokens")?.as_strings()?;
    tokens.iter().position(|t| t == token)
}

fn text<'a>(metadata: &'a Metadata, key: &str) -> Option<&'a str> {
    metadata.get(key).and_then(Value::as_str)
}

/// Tokens by id, and their kinds.
struct Vocabulary {
    tokens: Vec<String>,
    kinds: Vec<i64>,
}

impl Vocabulary {
    fn read(metadata: &Metadata) -> Result<Self, String> {
        let tokens = metadata.get("tokenizer.ggml.tokens").and_then(Value::as_strings);
        let mut tokens = tokens.ok_or("it lacks 'tokenizer.ggml.tokens'")?.to_vec();
        let kinds = match metadata.get("tokenizer.ggml.token_type") {
            Some(value) => value.as_integers().ok_or("'token_type' is not a list of numbers")?,
            None => tokens.iter().map(|t| if looks_special(t) { CONTROL } else { 1 }).collect(),
        };
        if kinds.len() != tokens.len() {
            let (kinds, tokens) = (kinds.len(), tokens.len());
            return Err(format!("it has {tokens} tokens and {kinds} token types"));
        }
        // llama.cpp's converter fills the vocabulary up to the embedding's rows.
        let padding = |id: usize| kinds[id] == UNUSED && tokens[id] == format!("[PAD{id}]");
        let used = (0..tokens.len()).rev().find(|&id| !padding(id)).map_or(0, |id| id + 1);
        tokens.truncate(used);
        let mut seen = HashSet::with_capacity(tokens.len());
        for (id, token) in tokens.iter_mut().enumerate() {
            if token.is_empty() {
                *token = format!("[EMPTY_{id}]");
            }
            if !seen.insert(token.clone()) {
                return Err(format!("the token '{token}' comes twice"));
            }
        }
        Ok(Self { tokens, kinds })
    }

    fn id(&self, token: &str) -> Option<usize> {
        self.tokens.iter().position(|t| t == token)
    }
}

/// Whether a token is a marker by its looks.
fn looks_special(token: &str) -> bool {
    token.len() > 4 && token.starts_with("<|") && token.ends_with("|>")
        || matches!(token, "<s>" | "</s>" | "<unk>" | "<pad>")
}

/// Ids of the special tokens; all in range.
struct Special {
    bos: Option<usize>,
    eos: Option<usize>,
    unk: Option<usize>,
    pad: Option<usize>,
}

impl Special {
    fn read(metadata: &Metadata, vocabulary: &Vocabulary, template: Option<&str>, notes: &mut Vec<String>) -> Self {
        let mut id = |name: &str| {
            let key = format!("tokenizer.ggml.{name}_token_id");
            let stated = metadata.get(&key).and_then(Value::as_u64)?;
            let id = usize::try_from(stated).ok().filter(|&id| id < vocabulary.tokens.len());
            if id.is_none() {
                notes.push(format!("{key} is {stated}, beyond the vocabulary; it is ignored"));
            }
            id
        };
        let mut special = Self { bos: id("bos"), eos: id("eos"), unk: id("unknown"), pad: id("padding") };
        if let Some(turn_end) = turn_end(vocabulary, special.eos, template) {
            let name = |id: usize| vocabulary.tokens[id].as_str();
            notes.push(format!(
                "the end token is {}, as the chat template shows, not {} as the file says",
                name(turn_end),
                special.eos.map_or("missing", name),
            ));
            special.eos = Some(turn_end);
        }
        special.pad = special.pad.or(special.eos);
        special
    }

    fn contains(&self, id: usize) -> bool {
        [self.bos, self.eos, self.unk, self.pad].contains(&Some(id))
    }
}

/// The token that the template ends turns with, if the stated end token isn't in the template.
fn turn_end(vocabulary: &Vocabulary, eos: Option<usize>, template: Option<&str>) -> Option<usize> {
    let template = template?;
    let shown = |id: usize| template.contains(&vocabulary.tokens[id]);
    if template.contains("eos_token") || eos.is_some_and(shown) {
        return None;
    }
    let ends = TURN_ENDS.iter().filter(|end| template.contains(**end));
    ends.filter_map(|end| vocabulary.id(end)).next()
}

/// Tokens that are found in text before it is cut.
fn added_tokens(vocabulary: &Vocabulary, special: &Special, template: Option<&str>) -> Vec<AddedToken> {
    let marker = |token: &str| looks_special(token) && template.is_some_and(|template| template.contains(token));
    let mut added = Vec::new();
    for (id, (token, &kind)) in vocabulary.tokens.iter().zip(&vocabulary.kinds).enumerate() {
        let special = matches!(kind, CONTROL | UNKNOWN) || special.contains(id) || marker(token);
        if special || kind == USER_DEFINED {
            added.push(AddedToken {
                id,
                content: token.clone(),
                single_word: false,
                lstrip: false,
                rstrip: false,
                normalized: false,
                special,
            });
        }
    }
    added
}

/// What differs between kinds of tokenizers.
struct Parts<'a> {
    normalizer: Json,
    pre_tokenizer: Json,
    decoder: Json,
    merges: Vec<(&'a str, &'a str)>,
    byte_fallback: bool,
    ignore_merges: bool,
    adds_bos: bool,
}

/// Byte-level BPE with merges.
fn bytes_bpe<'a>(
    metadata: &'a Metadata,
    architecture: &str,
    vocabulary: &Vocabulary,
    notes: &mut Vec<String>,
) -> Result<Parts<'a>, String> {
    let name = text(metadata, "tokenizer.ggml.pre");
    let (way, note) = pretokenizer::find(name, architecture, vocabulary.tokens.len())?;
    notes.extend(note);
    let merges = metadata.get("tokenizer.ggml.merges").and_then(Value::as_strings);
    let merges = merges.ok_or("it lacks 'tokenizer.ggml.merges'")?;
    let known: HashSet<&str> = vocabulary.tokens.iter().map(String::as_str).collect();
    let mut pairs = Vec::with_capacity(merges.len());
    for merge in merges {
        // A piece is never empty, but the first may start with a space.
        let second = merge.char_indices().nth(1).map_or(0, |(at, _)| at);
        let pair = merge[second..].find(' ').map(|at| merge.split_at(second + at));
        let pair = pair.map(|(left, right)| (left, &right[1..]));
        let fits = |&(left, right): &(&str, &str)| {
            known.contains(left) && known.contains(right) && known.contains(format!("{left}{right}").as_str())
        };
        pairs.push(
            pair.filter(fits).ok_or_else(|| format!("the merge '{merge}' is not of two tokens that make a third"))?,
        );
    }
    Ok(Parts {
        normalizer: way.normalizer(),
        pre_tokenizer: way.to_json(),
        decoder: json!({
            "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true,
        }),
        merges: pairs,
        byte_fallback: false,
        ignore_merges: way.ignore_merges,
        adds_bos: way.adds_bos,
    })
}

/// SentencePiece's pieces with scores.
fn pieces_bpe<'a>(metadata: &'a Metadata, vocabulary: &Vocabulary) -> Result<Parts<'a>, String> {
    let tokens = metadata.get("tokenizer.ggml.tokens").and_then(Value::as_strings).unwrap_or(&[]);
    let scores = metadata.get("tokenizer.ggml.scores").and_then(Value::as_floats);
    let scores = scores.ok_or("it lacks 'tokenizer.ggml.scores'")?;
    if scores.len() != tokens.len() {
        let (scores, tokens) = (scores.len(), tokens.len());
        return Err(format!("it has {tokens} tokens and {scores} scores"));
    }
    let used = vocabulary.tokens.len();
    let prefix = metadata.get("tokenizer.ggml.add_space_prefix").and_then(Value::as_bool);
    let prefix = prefix.unwrap_or(true);
    Ok(Parts {
        normalizer: sentencepiece::normalizer(prefix),
        pre_tokenizer: Json::Null,
        decoder: sentencepiece::decoder(prefix),
        merges: sentencepiece::merges(&tokens[..used], &scores[..used]),
        byte_fallback: true,
        ignore_merges: false,
        adds_bos: true,
    })
}

/// Adds the bos and eos tokens around a sequence.
fn post_processor(vocabulary: &Vocabulary, bos: Option<usize>, eos: Option<usize>) -> Json {
    if bos.is_none() && eos.is_none() {
        return Json::Null;
    }
    let token = |id: usize| vocabulary.tokens[id].as_str();
    let around = |sequence: &str, type_id: u32| {
        let special = |id: usize| json!({"SpecialToken": {"id": token(id), "type_id": type_id}});
        let sequence = json!({"Sequence": {"id": sequence, "type_id": type_id}});
        let mut parts: Vec<Json> = bos.map(special).into_iter().collect();
        parts.push(sequence);
        parts.extend(eos.map(special));
        parts
    };
    let mut special_tokens = serde_json::Map::new();
    for id in bos.into_iter().chain(eos) {
        let entry = json!({"id": token(id), "ids": [id], "tokens": [token(id)]});
        special_tokens.insert(token(id).into(), entry);
    }
    let pair = [around("A", 0), around("B", 1)].concat();
    json!({
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": pair,
        "special_tokens": special_tokens,
    })
}

/// `tokenizer_config.json`.
fn config(metadata: &Metadata, architecture: &str, vocabulary: &Vocabulary, special: &Special, adds_bos: bool) -> Json {
    let mut config = json!({"add_prefix_space": false});
    for (key, id) in
        [("bos_token", special.bos), ("eos_token", special.eos), ("pad_token", special.pad), ("unk_token", special.unk)]
    {
        if let Some(id) = id {
            config[key] = vocabulary.tokens[id].as_str().into();
        }
    }
    if adds_bos {
        config["add_bos_token"] = true.into();
    }
    config["clean_up_tokenization_spaces"] = false.into();
    let context = metadata.get(&format!("{architecture}.context_length")).and_then(Value::as_u64);
    if let Some(context) = context {
        config["model_max_length"] = context.into();
    }
    config["tokenizer_class"] = "PreTrainedTokenizerFast".into();
    config
}

/// `tokenizer.json`.
#[derive(serde::Serialize)]
struct Document<'a> {
    version: &'static str,
    truncation: (),
    padding: (),
    added_tokens: Vec<AddedToken>,
    normalizer: Json,
    pre_tokenizer: Json,
    post_processor: Json,
    decoder: Json,
    model: Model<'a>,
}

#[derive(serde::Serialize)]
struct AddedToken {
    id: usize,
    content: String,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: bool,
    special: bool,
}

#[derive(serde::Serialize)]
struct Model<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    dropout: (),
    unk_token: Option<&'a str>,
    continuing_subword_prefix: (),
    end_of_word_suffix: (),
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    vocab: Ids<'a>,
    merges: Vec<(&'a str, &'a str)>,
}

/// Tokens as an object of ids.
struct Ids<'a>(&'a [String]);

impl Serialize for Ids<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (id, token) in self.0.iter().enumerate() {
            map.serialize_entry(token, &id)?;
        }
        map.end()
    }
}
