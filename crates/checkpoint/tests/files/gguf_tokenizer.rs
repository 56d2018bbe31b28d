//! Tokenizers inside GGUF files: ids identical to those of the models' own `tokenizer.json`.

use ferrotune_checkpoint::TokenizerFiles;
use ferrotune_checkpoint::gguf::{Array, Gguf, Value};
use serde_json::json;
use tokenizers::Tokenizer;

use crate::common::{Random, bpe_metadata, fixture, gguf_in, read_json};

type Metadata = Vec<(&'static str, Value)>;

fn build(metadata: Metadata) -> Result<(TokenizerFiles, Vec<String>), String> {
    let dir = tempfile::tempdir().unwrap();
    let mut all = vec![("general.architecture", Value::from("llama")), ("llama.context_length", Value::U32(8192))];
    all.extend(metadata);
    let file = Gguf::open(&gguf_in(dir.path(), &all, &[])).unwrap();
    file.tokenizer().map_err(|e| e.to_string())
}

/// Texts of all kinds: words, digits, scripts, spaces, marks, and the tokenizer's own markers.
fn texts(tokenizer: &Tokenizer) -> Vec<String> {
    let mut pieces: Vec<String> = [
        "the",
        " quick",
        "Brown",
        "don't",
        "I'LL",
        " we've",
        "12",
        "3",
        "2026",
        "½",
        "²",
        "٣",
        "é",
        "e\u{301}",
        "ß",
        "日本",
        "語",
        "한국어",
        "नमस्ते",
        "שלום",
        "🦀",
        "👩‍👩‍👧",
        " ",
        "  ",
        "    ",
        "\t",
        "\n",
        "\n\n",
        "\r\n",
        "\u{a0}",
        "\u{200b}",
        "\u{3000}",
        ".",
        ",",
        "!?",
        "...",
        "->",
        "{}",
        "\"",
        "<",
        "|>",
        "_",
        "#",
        "x=1;",
        "http://a.b/c",
        "\u{0}",
        "\u{7f}",
        "\u{fffd}",
        "\u{10ffff}",
    ]
    .map(String::from)
    .into();
    let mut added: Vec<_> = tokenizer.get_added_tokens_decoder().into_iter().collect();
    added.sort_by_key(|(id, _)| *id);
    pieces.extend(added.into_iter().map(|(_, token)| token.content));
    let mut random = Random(2026);
    let mut text = || (0..random.below(24)).map(|_| pieces[random.below(pieces.len())].as_str()).collect();
    (0..3000).map(|_| text()).collect()
}

/// Compares a tokenizer with a normative one, in both directions.
pub(crate) fn same_ids(made: &[u8], normative: &[u8]) {
    let made = Tokenizer::from_bytes(made).unwrap();
    let normative = Tokenizer::from_bytes(normative).unwrap();
    let mut tokens = 0;
    for text in texts(&normative) {
        let expected = normative.encode(text.as_str(), true).unwrap();
        let got = made.encode(text.as_str(), true).unwrap();
        assert_eq!(got.get_ids(), expected.get_ids(), "{text:?}");
        for skip in [false, true] {
            let expected = normative.decode(expected.get_ids(), skip).unwrap();
            assert_eq!(made.decode(got.get_ids(), skip).unwrap(), expected, "{text:?}");
        }
        tokens += got.len();
    }
    assert!(tokens > 30_000, "the comparison saw only {tokens} tokens");
}

#[test]
fn smollm2_is_exactly_the_normative_tokenizer() {
    let normative = std::fs::read(fixture("tokenizers/smollm2/tokenizer.json")).unwrap();
    let json = serde_json::from_slice(&normative).unwrap();
    let mut metadata = bpe_metadata(&json, "smollm");
    for (key, id) in [
        ("tokenizer.ggml.bos_token_id", 1),
        ("tokenizer.ggml.eos_token_id", 2),
        ("tokenizer.ggml.unknown_token_id", 0),
        ("tokenizer.ggml.padding_token_id", 2),
    ] {
        metadata.push((key, Value::U32(id)));
    }
    metadata.push(("tokenizer.ggml.add_bos_token", Value::Bool(false)));
    let (files, notes) = build(metadata).unwrap();
    assert_eq!(notes, Vec::<String>::new());
    same_ids(&files.tokenizer_json, &normative);
    assert_eq!(files.tokenizer_config, read_json(&fixture("tokenizers/smollm2/tokenizer_config.json")));
    // GPT-2's way of cutting alone takes a space with a number: the name matters.
    let (wrong, _) = build(bpe_metadata(&json, "gpt-2")).unwrap();
    let ids = |json: &[u8]| Tokenizer::from_bytes(json).unwrap().encode("a  1", false).unwrap().get_ids().to_vec();
    assert_ne!(ids(&wrong.tokenizer_json), ids(&files.tokenizer_json));
}

#[test]
fn qwen3_is_exactly_the_normative_tokenizer() {
    let packed = std::fs::File::open(fixture("tokenizers/qwen3/tokenizer.json.zst")).unwrap();
    let normative = zstd::decode_all(packed).unwrap();
    let mut metadata = bpe_metadata(&serde_json::from_slice(&normative).unwrap(), "qwen2");
    // Rows of the embedding beyond the vocabulary, as llama.cpp's converter names them.
    for (_, value) in &mut metadata {
        match value {
            Value::Array(Array::I32(kinds)) => kinds.resize(151_936, 5),
            Value::Array(Array::String(tokens)) if tokens[0] == "!" => {
                tokens.extend((tokens.len()..151_936).map(|id| format!("[PAD{id}]")));
            }
            _ => {}
        }
    }
    let (files, notes) = build(metadata).unwrap();
    assert_eq!(notes, Vec::<String>::new());
    same_ids(&files.tokenizer_json, &normative);
    let size = |json: &[u8]| Tokenizer::from_bytes(json).unwrap().get_vocab_size(true);
    assert_eq!(size(&files.tokenizer_json), size(&normative), "padding is no part of the vocabulary");
}

#[test]
fn llama3_groups_digits_by_three_and_starts_with_bos() {
    let path = fixture("tokenizers/tiny-llama3/tokenizer.json");
    let mut metadata = bpe_metadata(&read_json(&path), "llama-bpe");
    metadata.push(("tokenizer.ggml.bos_token_id", Value::U32(1000)));
    let (files, _) = build(metadata).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&files.tokenizer_json).unwrap();
    assert_eq!(json["model"]["ignore_merges"], true);
    let regex = json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"].as_str().unwrap();
    assert!(regex.contains(r"\p{N}{1,3}"));
    let tokenizer = Tokenizer::from_bytes(&files.tokenizer_json).unwrap();
    assert_eq!(tokenizer.encode("a", true).unwrap().get_ids()[0], 1000);
    assert_ne!(tokenizer.encode("a", false).unwrap().get_ids()[0], 1000);
    assert_eq!(files.tokenizer_config["add_bos_token"], true);
}

/// SentencePiece's kind: pieces of `ab`, bytes, markers.
fn pieces() -> Metadata {
    let mut tokens =
        ["<unk>", "<s>", "</s>", "\u{2581}", "a", "b", "\u{2581}a", "ab", "\u{2581}ab"].map(String::from).to_vec();
    let mut kinds = vec![2, 3, 3, 1, 1, 1, 1, 1, 1];
    let mut scores = vec![0.0, 0.0, 0.0, -5.0, -6.0, -7.0, -1.0, -2.0, -3.0];
    for byte in 0..=255u8 {
        tokens.push(format!("<0x{byte:02X}>"));
        kinds.push(6);
        scores.push(0.0);
    }
    vec![
        ("tokenizer.ggml.model", "llama".into()),
        ("tokenizer.ggml.tokens", Value::Array(Array::String(tokens))),
        ("tokenizer.ggml.token_type", Value::Array(Array::I32(kinds))),
        ("tokenizer.ggml.scores", Value::Array(Array::F32(scores))),
        ("tokenizer.ggml.bos_token_id", Value::U32(1)),
        ("tokenizer.ggml.eos_token_id", Value::U32(2)),
        ("tokenizer.ggml.unknown_token_id", Value::U32(0)),
    ]
}

#[test]
fn sentencepiece_merges_by_score_and_falls_back_to_bytes() {
    let (files, notes) = build(pieces()).unwrap();
    assert_eq!(notes, Vec::<String>::new());
    let tokenizer = Tokenizer::from_bytes(&files.tokenizer_json).unwrap();
    let ids = |text: &str| tokenizer.encode(text, true).unwrap().get_ids().to_vec();
    // "▁ab ab": "▁a" has the best score and merges before "ab"; then "▁a" + "b".
    assert_eq!(ids("ab ab"), [1, 8, 8]);
    assert_eq!(ids("é"), [1, 3, 9 + 0xc3, 9 + 0xa9]);
    assert_eq!(ids("</s>"), [1, 2]);
    let decoded = tokenizer.decode(&ids("ab é\nab"), true).unwrap();
    assert_eq!(decoded, "ab é\nab");
}

#[test]
fn wrong_special_tokens_are_corrected_with_a_note() {
    let base = |eos: u32, template: &str| -> Metadata {
        let tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a"].map(String::from).to_vec();
        vec![
            ("tokenizer.ggml.model", "gpt2".into()),
            ("tokenizer.ggml.pre", "gpt-2".into()),
            ("tokenizer.ggml.tokens", Value::Array(Array::String(tokens))),
            ("tokenizer.ggml.token_type", Value::Array(Array::I32(vec![3, 1, 1, 1]))),
            ("tokenizer.ggml.merges", Value::Array(Array::String(vec![]))),
            ("tokenizer.ggml.eos_token_id", Value::U32(eos)),
            ("tokenizer.ggml.padding_token_id", Value::U32(99)),
            ("tokenizer.chat_template", template.into()),
        ]
    };
    let chatml = "{{'<|im_start|>user\n' + message['content'] + '<|im_end|>'}}";
    let (files, notes) = build(base(0, chatml)).unwrap();
    assert_eq!(
        notes,
        [
            "tokenizer.ggml.padding_token_id is 99, beyond the vocabulary; it is ignored",
            "the end token is <|im_end|>, as the chat template shows, not <|endoftext|> as the file says",
        ]
    );
    assert_eq!(files.tokenizer_config["eos_token"], "<|im_end|>");
    assert_eq!(files.tokenizer_config["pad_token"], "<|im_end|>");
    let tokenizer = Tokenizer::from_bytes(&files.tokenizer_json).unwrap();
    let ids = tokenizer.encode("<|im_start|>a<|im_end|>", false).unwrap().get_ids().to_vec();
    assert_eq!(ids, [1, 3, 2], "markers of the template are tokens though the file calls them text");
    let kept = build(base(0, "{{ '<|im_end|>' + eos_token }}")).unwrap().0;
    assert_eq!(kept.tokenizer_config["eos_token"], "<|endoftext|>");
    let kept = build(base(2, chatml)).unwrap();
    assert_eq!((kept.0.tokenizer_config["eos_token"].clone(), kept.1.len()), (json!("<|im_end|>"), 1));
}

#[test]
fn what_cannot_be_expressed_is_refused() {
    let toy = |key: &str, value: Option<Value>| {
        let mut metadata = crate::common::toy_tokenizer();
        metadata.retain(|(k, _)| *k != key);
        if let Some(value) = value {
            let key: &'static str = Box::leak(key.to_owned().into_boxed_str());
            metadata.push((key, value));
        }
        build(metadata)
    };
    let strings = |v: &[&str]| Some(Value::Array(Array::String(v.iter().map(|s| s.to_string()).collect())));
    let cases = [
        ("tokenizer.ggml.model", Some("bert".into()), "its kind is 'bert'; gpt2 and llama"),
        ("tokenizer.ggml.model", None, "the file holds none"),
        ("tokenizer.ggml.pre", Some("martian".into()), "pre-tokenizer 'martian' is unknown"),
        ("tokenizer.ggml.tokens", None, "lacks 'tokenizer.ggml.tokens'"),
        ("tokenizer.ggml.tokens", strings(&["a", "b", "a"]), "the token 'a' comes twice"),
        ("tokenizer.ggml.tokens", strings(&["a", "b"]), "2 tokens and 3 token types"),
        ("tokenizer.ggml.merges", None, "lacks 'tokenizer.ggml.merges'"),
        ("tokenizer.ggml.merges", strings(&["a b"]), "the merge 'a b' is not of two tokens"),
        ("tokenizer.ggml.merges", strings(&[""]), "the merge '' is not of two tokens"),
        ("tokenizer.ggml.merges", strings(&["é"]), "the merge 'é' is not of two tokens"),
    ];
    for (key, value, expected) in cases {
        let message = toy(key, value).unwrap_err();
        assert!(message.contains(expected) && message.contains("model.gguf"), "{message}");
    }
    let (_, notes) = toy("tokenizer.ggml.pre", None).unwrap();
    assert!(notes[0].contains("doesn't say how text is cut"), "{notes:?}");
}
