//! The fast way of encoding against the reference: identical ids on thousands of texts made to be
//! awkward, for every fixture tokenizer and for made-up configurations of each known form.

#![expect(clippy::unwrap_used, reason = "a fixture that can't be read fails the test")]

use std::path::{Path, PathBuf};

use ferrotune_data::tokenizer::Tokenizer;
use serde_json::{Value, json};

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }

    fn piece(&mut self) -> &'static str {
        PIECES[self.below(PIECES.len())]
    }
}

/// Pieces that meet the corners of the patterns and of normalisation.
const PIECES: &[&str] = &[
    " ",
    "  ",
    "   ",
    "\n",
    "\r\n",
    "\n\n",
    "\t",
    " \n ",
    "\u{a0}",
    "\u{3000}",
    "\u{2028}",
    "\u{85}",
    "'s",
    "'S",
    "'t",
    "'RE",
    "'ll",
    "'lL",
    "'v",
    "'ve",
    "'\u{17f}",
    "''",
    "'",
    "don't",
    "I'M",
    "a",
    "Z",
    "word",
    "Word",
    "WORD",
    "été",
    "e\u{301}",
    "A\u{30a}",
    "\u{212b}",
    "\u{2126}",
    "n\u{303}o",
    "\u{1100}\u{1161}\u{11a8}",
    "\u{ac00}\u{11a8}",
    "한국어",
    "か\u{3099}",
    "がぎ",
    "カタカナ",
    "中文字符",
    "中",
    "，",
    "。",
    "\u{f900}",
    "русский",
    "и\u{306}",
    "ελληνικά",
    "\u{374}",
    "עברית",
    "العربية",
    "हिन्दी",
    "ไทย",
    "1",
    "12",
    "123",
    "1234567",
    "½",
    "²",
    "Ⅷ",
    "٣",
    "৪",
    "𝟘",
    "一",
    "3.14",
    "-1",
    ".",
    "...",
    "!!",
    "?!\n",
    "(a",
    "[b]",
    "{",
    "}",
    "://",
    "a_b",
    "#",
    "$",
    "€",
    "—",
    "“x”",
    "…",
    "🙂",
    "👩‍👩‍👧",
    "🇫🇷",
    "\u{1f3fd}",
    "\u{200b}",
    "\u{200d}",
    "\u{feff}",
    "\u{0}",
    "\u{7f}",
    "<|im_start|>",
    "<|im_end|>",
    "<|im_",
    "<think>",
    "</think>\n\n",
    "<|endoftext|>",
    "<｜User｜>",
    "<tool_call>",
    "</s>",
    "[INST]",
    "<|eot_id|>",
    "<",
    "<|",
    "|>",
    "supercalifragilistic",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "ſ",
    "K",
];

fn text(random: &mut Random) -> String {
    let mut out = String::new();
    for _ in 0..1 + random.below(14) {
        match random.below(8) {
            0 => out.extend((0..random.below(4)).filter_map(|_| char::from_u32(random.below(0x110000) as u32))),
            1 => out.extend((0..random.below(6)).filter_map(|_| char::from_u32(random.below(0x3400) as u32))),
            2 => out.extend((0..random.below(9)).map(|_| char::from(random.below(0x80) as u8))),
            _ => out.push_str(random.piece()),
        }
    }
    out
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/tokenizers").join(name)
}

fn files(name: &str) -> (Vec<u8>, Value) {
    let dir = folder(name);
    let json = std::fs::read(dir.join("tokenizer.json"))
        .unwrap_or_else(|_| zstd::decode_all(std::fs::File::open(dir.join("tokenizer.json.zst")).unwrap()).unwrap());
    let config = serde_json::from_slice(&std::fs::read(dir.join("tokenizer_config.json")).unwrap()).unwrap();
    (json, config)
}

fn compare(what: &str, tokenizer: &Tokenizer, cases: usize) {
    assert!(tokenizer.is_fast(), "{what} isn't recognised");
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    for _ in 0..cases {
        let text = text(&mut random);
        let (fast, reference) = (tokenizer.encode(&text).unwrap(), tokenizer.encode_reference(&text).unwrap());
        assert_eq!(fast, reference, "{what}: {text:?}");
    }
}

#[test]
fn real_tokenizers_give_the_reference_ids() {
    for name in ["qwen3", "smollm2"] {
        let (json, config) = files(name);
        compare(name, &Tokenizer::from_parts(&json, &config, None).unwrap(), 8000);
    }
}

#[test]
fn every_known_form_gives_the_reference_ids() {
    let (json, config) = files("tiny-qwen");
    let base: Value = serde_json::from_slice(&json).unwrap();
    let byte_level =
        |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
    let split = |pattern: &str| {
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false}, byte_level(false)]})
    };
    let qwen = base["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"].as_str().unwrap().to_owned();
    let digits = json!({"type": "Digits", "individual_digits": true});
    let forms = [
        ("gpt2", byte_level(true)),
        ("digits", json!({"type": "Sequence", "pretokenizers": [digits, byte_level(true)]})),
        ("qwen", split(&qwen)),
        ("llama3", split(&qwen.replacen(r"|\p{N}|", r"|\p{N}{1,3}|", 1))),
    ];
    for (form, pre_tokenizer) in forms {
        for normalizer in [Value::Null, json!({"type": "NFC"})] {
            for ignore_merges in [false, true] {
                let mut spec = base.clone();
                spec["pre_tokenizer"] = pre_tokenizer.clone();
                spec["normalizer"] = normalizer.clone();
                spec["model"]["ignore_merges"] = ignore_merges.into();
                let mut tokenizer = Tokenizer::from_parts(spec.to_string().as_bytes(), &config, None).unwrap();
                let what = format!("{form}, normalizer {normalizer}, ignore_merges {ignore_merges}");
                compare(&what, &tokenizer, 1000);
                tokenizer.add_tokens(&["word".to_owned(), "e\u{301}".to_owned(), "wor".to_owned()], false);
                tokenizer.add_tokens(&["<|im_".to_owned(), "中文".to_owned()], true);
                compare(&format!("{what}, with added tokens"), &tokenizer, 1000);
            }
        }
    }
}

#[test]
fn other_forms_are_left_to_the_reference() {
    let (json, config) = files("tiny-qwen");
    let base: Value = serde_json::from_slice(&json).unwrap();
    let changes: [(&str, Value); 6] = [
        ("/normalizer", json!({"type": "NFKC"})),
        ("/model/dropout", json!(0.1)),
        ("/model/byte_fallback", json!(true)),
        ("/pre_tokenizer/pretokenizers/0/behavior", json!("Removed")),
        ("/pre_tokenizer/pretokenizers/0/pattern/Regex", json!(r"\p{L}+|\P{L}+")),
        ("/added_tokens/0/lstrip", json!(true)),
    ];
    for (path, value) in changes {
        let mut spec = base.clone();
        *spec.pointer_mut(path).unwrap() = value;
        let tokenizer = Tokenizer::from_parts(spec.to_string().as_bytes(), &config, None).unwrap();
        assert!(!tokenizer.is_fast(), "{path}");
        if path != "/model/dropout" {
            assert_eq!(tokenizer.encode("a b").unwrap(), tokenizer.encode_reference("a b").unwrap());
        }
    }
    let mut tokenizer = Tokenizer::from_parts(&json, &config, None).unwrap();
    let whole = tokenizer.encode("<|im_end|>").unwrap();
    tokenizer.set_split_special_tokens(true);
    assert!(!tokenizer.is_fast() && tokenizer.encode("<|im_end|>").unwrap().len() > whole.len());
    tokenizer.set_split_special_tokens(false);
    assert!(tokenizer.is_fast());
}

#[test]
fn damaged_files_are_errors() {
    let (json, config) = files("tiny-qwen");
    for damaged in [&json[..json.len() / 2], b"{}".as_slice(), b"[]", b""] {
        let error = Tokenizer::from_parts(damaged, &config, None).unwrap_err();
        assert!(error.to_string().starts_with("tokenizer.json can't be used: "), "{error}");
    }
    assert!(Tokenizer::from_parts(&json, &json!([]), None).is_err());
}

#[test]
fn a_file_that_is_cut_short_is_refused() {
    let whole = std::fs::read(folder("tiny-qwen").join("tokenizer.json")).expect("a fixture");
    let cuts = [0, 1, whole.len() / 2, whole.len() - 1].map(|len| whole[..len].to_vec());
    for json in cuts.into_iter().chain([br#"{"version": "1.0", "decoder": {"type"#.to_vec()]) {
        let error = Tokenizer::from_parts(&json, &json!({}), None).expect_err("it is cut short").to_string();
        assert!(error.starts_with("tokenizer.json can't be used: "), "{error}");
    }
}
