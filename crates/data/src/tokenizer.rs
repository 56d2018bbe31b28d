//! Text to ids and back, with the special tokens a model's files name.
//!
//! The `tokenizers` crate is the reference and does everything but the hot path: a tokenizer of a
//! known byte-level form is encoded by `fast`, several times as fast, with identical ids.

mod bpe;
mod fast;
mod scan;
mod unicode;

use std::panic::catch_unwind;

use serde_json::Value;
use tokenizers::AddedToken;

use crate::encode::EncodeError;
use fast::Fast;

/// A special token of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecialToken {
    /// As it is written.
    pub text: String,
    /// Its id.
    pub id: u32,
}

/// The special tokens with a role; each may be missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Begins a text.
    pub bos: Option<SpecialToken>,
    /// Ends a text or a turn.
    pub eos: Option<SpecialToken>,
    /// Fills up rows.
    pub pad: Option<SpecialToken>,
    /// Stands for what the vocabulary lacks.
    pub unk: Option<SpecialToken>,
}

/// A model's tokenizer.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    fast: Option<Fast>,
    /// Cleared by added tokens that ask for more than the fast way does.
    plain_added: bool,
    /// Tokens right after loading.
    loaded_len: usize,
    special: SpecialTokens,
    /// Ids of special tokens without a role.
    additional: Vec<u32>,
    add_bos: bool,
    chat_template: Option<String>,
    /// Of the files and all tokens added since: the same digest, the same ids.
    digest: crate::digest::Digest,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("len", &self.len())
            .field("fast", &self.is_fast())
            .field("special", &self.special)
            .finish_non_exhaustive()
    }
}

/// Reads `tokenizer.json` with the `tokenizers` crate, which panics on some damage (a decoder that is cut short).
fn read_reference(json: &[u8]) -> Result<tokenizers::Tokenizer, EncodeError> {
    match catch_unwind(|| tokenizers::Tokenizer::from_bytes(json)) {
        Ok(read) => read.map_err(|source| EncodeError::TokenizerJson { problem: source.to_string() }),
        Err(_) => Err(EncodeError::TokenizerJson { problem: "it is damaged or cut short".to_owned() }),
    }
}

impl Tokenizer {
    /// A tokenizer of the files `tokenizer.json` and `tokenizer_config.json` and, if the model has
    /// one, `chat_template.jinja` (a template inside `tokenizer_config` is the second choice).
    ///
    /// # Errors
    /// If `tokenizer_json` is no tokenizer, or `tokenizer_config` no object.
    pub fn from_parts(
        tokenizer_json: &[u8],
        tokenizer_config: &Value,
        chat_template: Option<String>,
    ) -> Result<Self, EncodeError> {
        if !tokenizer_config.is_object() {
            return Err(EncodeError::TokenizerConfig { problem: "it is no JSON object".to_owned() });
        }
        let (inner, fast) = rayon::join(|| read_reference(tokenizer_json), || Fast::recognise(tokenizer_json));
        let mut inner = inner?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|source| EncodeError::TokenizerJson { problem: source.to_string() })?;
        let mut tokenizer = Self {
            inner,
            fast,
            plain_added: true,
            loaded_len: 0,
            special: SpecialTokens::default(),
            additional: Vec::new(),
            add_bos: adds_bos(tokenizer_config),
            chat_template: chat_template.or_else(|| config_template(tokenizer_config)),
            digest: crate::digest::of_parts([tokenizer_json, tokenizer_config.to_string().as_bytes()]),
        };
        tokenizer.add_configured(tokenizer_config);
        tokenizer.loaded_len = tokenizer.len();
        tokenizer.special = SpecialTokens {
            bos: tokenizer.configured(tokenizer_config, "bos_token"),
            eos: tokenizer.configured(tokenizer_config, "eos_token"),
            pad: tokenizer.configured(tokenizer_config, "pad_token"),
            unk: tokenizer.configured(tokenizer_config, "unk_token"),
        };
        let additional = additional(tokenizer_config).filter_map(|token| tokenizer.token_to_id(token_text(token)?));
        tokenizer.additional = additional.collect();
        Ok(tokenizer)
    }

    /// Tokens that `tokenizer_config.json` names beyond those of `tokenizer.json`.
    fn add_configured(&mut self, config: &Value) {
        let mut tokens: Vec<(u64, AddedToken)> = Vec::new();
        if let Some(decoder) = config["added_tokens_decoder"].as_object() {
            tokens
                .extend(decoder.iter().filter_map(|(id, token)| Some((id.parse().ok()?, added_token(token, false)?))));
            tokens.sort_by_key(|(id, _)| *id);
        }
        const ROLES: [&str; 7] =
            ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
        let named = ROLES.iter().map(|role| &config[*role]).chain(additional(config));
        tokens.extend(named.filter_map(|token| Some((u64::MAX, added_token(token, true)?))));
        let known = self.inner.get_added_tokens_decoder();
        let is_new = |token: &AddedToken| !known.values().any(|k| k.content == token.content);
        let new: Vec<_> = tokens.into_iter().map(|(_, token)| token).filter(is_new).collect();
        self.insert(&new);
    }

    fn insert(&mut self, tokens: &[AddedToken]) {
        // A token that is there with another way of matching is kept in both by the reference.
        let known = self.inner.get_added_tokens_decoder();
        let clashes =
            |new: &AddedToken| known.values().any(|old| old.content == new.content && old.normalized != new.normalized);
        let clash = tokens.iter().any(clashes);
        self.inner.add_tokens(tokens);
        let written = format!("{tokens:?}");
        self.digest = crate::digest::of_parts([self.digest.as_slice(), written.as_bytes()]);
        let added = self.inner.get_added_tokens_decoder();
        let simple = self.fast.as_mut().is_none_or(|fast| fast.set_added(added.iter().map(|(id, t)| (*id, t))));
        self.plain_added &= simple && !clash;
    }

    fn configured(&self, config: &Value, role: &str) -> Option<SpecialToken> {
        let text = token_text(&config[role])?.to_owned();
        let id = self.inner.token_to_id(&text)?;
        Some(SpecialToken { text, id })
    }

    /// Ids of `text`, without special tokens around it. Special tokens written inside `text` become
    /// their ids, unless [`Tokenizer::set_split_special_tokens`] says otherwise.
    ///
    /// # Errors
    /// If the tokenizer can't represent the text (no byte-level one fails).
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        self.encode_into(text, &mut ids)?;
        Ok(ids)
    }

    /// [`Tokenizer::encode`], appending to `ids`.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_into(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), EncodeError> {
        match self.fast() {
            Some(fast) => fast.encode(text, ids),
            None => ids.extend_from_slice(self.encode_slowly(text, false)?.get_ids()),
        }
        Ok(())
    }

    /// Ids of `text` by the reference implementation; what [`Tokenizer::encode`] must equal.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_reference(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        Ok(self.encode_slowly(text, false)?.get_ids().to_vec())
    }

    /// What the tokenizer puts around a text by itself: the ids of the empty text with special
    /// tokens, decoded.
    pub(crate) fn surrounding_text(&self) -> Result<String, EncodeError> {
        self.decode(self.encode_slowly("", true)?.get_ids(), false)
    }

    fn encode_slowly(&self, text: &str, special: bool) -> Result<tokenizers::Encoding, EncodeError> {
        self.inner.encode_fast(text, special).map_err(|source| EncodeError::Tokenize { problem: source.to_string() })
    }

    /// Text of `ids`; bytes that are no UTF-8 become U+FFFD. Unknown ids are left out.
    ///
    /// # Errors
    /// If the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, EncodeError> {
        self.inner
            .decode(ids, skip_special_tokens)
            .map_err(|source| EncodeError::Tokenize { problem: source.to_string() })
    }

    /// Number of tokens, added ones included: the least size of an embedding.
    pub fn len(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Whether the vocabulary is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Id of a token as the vocabulary writes it.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// A token as the vocabulary writes it.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The special tokens with a role.
    pub fn special(&self) -> &SpecialTokens {
        &self.special
    }

    /// Ids of the special tokens that the model's files name without a role.
    pub(crate) fn additional(&self) -> &[u32] {
        &self.additional
    }

    /// Whether plain text is to begin with the bos token (`add_bos_token` of the model's files).
    pub fn adds_bos(&self) -> bool {
        self.add_bos
    }

    /// The model's own chat template, in Jinja.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// Whether encoding takes the fast way.
    pub fn is_fast(&self) -> bool {
        self.fast().is_some()
    }

    fn fast(&self) -> Option<&Fast> {
        self.fast.as_ref().filter(|_| self.plain_added && !self.inner.get_encode_special_tokens())
    }

    /// A name for everything that decides which ids a text becomes, special tokens' choice aside.
    pub(crate) fn digest(&self) -> crate::digest::Digest {
        self.digest
    }

    /// Adds ordinary tokens (`special` false) or special ones and says how many are new to the
    /// vocabulary; the model's embedding must grow by as many.
    pub fn add_tokens(&mut self, tokens: &[String], special: bool) -> usize {
        let before = self.len();
        let tokens: Vec<_> = tokens.iter().map(|t| AddedToken::from(t.as_str(), special)).collect();
        self.insert(&tokens);
        self.len() - before
    }

    /// Whether tokens joined since it was made from its files.
    pub fn has_grown(&self) -> bool {
        self.len() != self.loaded_len
    }

    /// `tokenizer.json` as it stands, with all tokens that were added.
    ///
    /// # Errors
    /// If it can't be written out.
    pub fn to_json(&self) -> Result<String, EncodeError> {
        self.inner.to_string(true).map_err(|source| EncodeError::TokenizerJson { problem: source.to_string() })
    }

    /// Makes `text` the end of a turn; it joins the vocabulary if it isn't there. Says whether it
    /// is new.
    pub(crate) fn set_eos(&mut self, text: &str) -> bool {
        let added = self.add_tokens(&[text.to_owned()], true) > 0;
        self.special.eos = self.inner.token_to_id(text).map(|id| SpecialToken { text: text.to_owned(), id });
        added
    }

    /// Fills rows with the eos token if there is no pad token.
    pub(crate) fn pad_with_eos(&mut self) {
        if self.special.pad.is_none() {
            self.special.pad.clone_from(&self.special.eos);
        }
    }

    /// Encodes special tokens written in a text as ordinary text (`split_special_tokens`), those of
    /// the template's own text too.
    pub fn set_split_special_tokens(&mut self, split: bool) {
        self.inner.set_encode_special_tokens(split);
    }
}

/// A token of `tokenizer_config.json`: text, or an object with flags.
fn added_token(token: &Value, special: bool) -> Option<AddedToken> {
    let text = token_text(token)?;
    let flag = |name: &str, default: bool| token[name].as_bool().unwrap_or(default);
    let special = flag("special", special) || special;
    Some(
        AddedToken::from(text, special)
            .single_word(flag("single_word", false))
            .lstrip(flag("lstrip", false))
            .rstrip(flag("rstrip", false))
            .normalized(flag("normalized", !special)),
    )
}

/// Special tokens without a role, by the old key or by transformers 5's.
fn additional(config: &Value) -> impl Iterator<Item = &Value> {
    ["additional_special_tokens", "extra_special_tokens"]
        .into_iter()
        .flat_map(move |key| config[key].as_array())
        .flatten()
}

fn token_text(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token["content"].as_str()).filter(|text| !text.is_empty())
}

/// `add_bos_token`, or what the tokenizer's class does when it isn't said.
fn adds_bos(config: &Value) -> bool {
    const CLASSES_WITH_BOS: [&str; 4] = ["LlamaTokenizer", "GemmaTokenizer", "CodeLlamaTokenizer", "CohereTokenizer"];
    config["add_bos_token"].as_bool().unwrap_or_else(|| {
        let class = config["tokenizer_class"].as_str().unwrap_or_default();
        CLASSES_WITH_BOS.contains(&class.trim_end_matches("Fast"))
    })
}

/// The template inside `tokenizer_config.json`: a text, or a list of named ones of which `default`
/// counts.
fn config_template(config: &Value) -> Option<String> {
    match &config["chat_template"] {
        Value::String(template) => Some(template.clone()),
        Value::Array(named) => {
            let default = named.iter().find(|entry| entry["name"] == "default")?;
            default["template"].as_str().map(str::to_owned)
        }
        _ => None,
    }
}
