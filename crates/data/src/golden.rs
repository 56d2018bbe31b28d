//! Token ids, labels and renderings against those of the real LLaMA-Factory and `transformers`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use ferrotune_config::plan::{Stage, TemplateChoice};
use serde_json::Value;

use crate::chat_template::{ChatTemplate, Rendering};
use crate::clock::Moment;
use crate::convert::Converter;
use crate::encode::{EncodeOptions, Encoder, TextEncoder};
use crate::registry::Registry;
use crate::template::{Template, TemplateOptions};
use crate::tokenizer::{SpecialToken, Tokenizer};

/// The day the goldens were made on: one tool format writes it.
const MADE: Moment = Moment { unix_seconds: 1_795_392_000 };

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

pub(crate) fn tokenizer(name: &str) -> Tokenizer {
    let dir = fixtures().join("tokenizers").join(name);
    let json = std::fs::read(dir.join("tokenizer.json")).unwrap_or_else(|_| {
        let file = std::fs::File::open(dir.join("tokenizer.json.zst")).unwrap();
        zstd::decode_all(file).unwrap()
    });
    let config = serde_json::from_slice(&std::fs::read(dir.join("tokenizer_config.json")).unwrap()).unwrap();
    let chat_template = std::fs::read_to_string(dir.join("chat_template.jinja")).ok();
    Tokenizer::from_parts(&json, &config, chat_template).unwrap()
}

fn goldens(kind: &str) -> Vec<Value> {
    let mut paths: Vec<_> =
        std::fs::read_dir(fixtures().join(kind)).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()).collect()
}

fn template_options(golden: &Value) -> TemplateOptions {
    let args = &golden["args"];
    let choice = match golden["template"].as_str() {
        Some(name) => TemplateChoice::Named(name.to_owned()),
        None => TemplateChoice::Model,
    };
    TemplateOptions {
        choice,
        tool_format: args["tool_format"].as_str().map(str::to_owned),
        default_system: args["default_system"].as_str().map(str::to_owned),
        enable_thinking: args.get("enable_thinking").map_or(Some(true), Value::as_bool),
        preserve_thinking: args["preserve_thinking"] == true,
        train_on_prompt: args["train_on_prompt"] == true,
        now: MADE,
    }
}

fn encode_options(golden: &Value) -> EncodeOptions {
    let args = &golden["args"];
    EncodeOptions {
        cutoff_len: args["cutoff_len"].as_u64().unwrap_or(2048) as usize,
        train_on_prompt: args["train_on_prompt"] == true,
        mask_history: args["mask_history"] == true,
    }
}

/// The dataset entry of a golden, through a real registry file.
fn registry(golden: &Value) -> (tempfile::TempDir, Registry) {
    let dir = tempfile::tempdir().unwrap();
    let mut entry = golden["dataset_info"].clone();
    entry["file_name"] = "rows.json".into();
    std::fs::write(dir.path().join("dataset_info.json"), serde_json::json!({ "rows": entry }).to_string()).unwrap();
    let registry = Registry::open(dir.path()).unwrap();
    (dir, registry)
}

fn rows(golden: &Value) -> impl Iterator<Item = &Value> {
    let most = golden["args"]["max_samples"].as_u64().unwrap_or(u64::MAX) as usize;
    golden["rows"].as_array().unwrap().iter().take(most)
}

/// `(ids, labels)` of each kept row of an sft golden, and why others were dropped.
fn encode_sft(golden: &Value, tokenizer: &Tokenizer, template: &Template) -> (Vec<(Value, Value)>, Vec<String>) {
    let (_dir, registry) = registry(golden);
    let entry = registry.entry("rows", Stage::Sft).unwrap();
    let converter = Converter::new(&entry);
    let options = encode_options(golden);
    let encoder = Encoder::new(tokenizer, template, &options);
    let (mut kept, mut dropped) = (Vec::new(), Vec::new());
    for row in rows(golden) {
        match converter.conversation(row, 1) {
            Err(reject) => dropped.push(format!("{}: {}", reject.fault, reject.detail)),
            Ok((conversation, _)) => match encoder.encode(&conversation) {
                Ok(row) => kept.push((row.input_ids.into(), row.labels.into())),
                Err(reason) => dropped.push(reason.to_string()),
            },
        }
    }
    (kept, dropped)
}

fn encode_pt(golden: &Value, tokenizer: &Tokenizer, template: &Template) -> Vec<Value> {
    let (_dir, registry) = registry(golden);
    let entry = registry.entry("rows", Stage::Pretrain).unwrap();
    let converter = Converter::new(&entry);
    let texts: Vec<_> = rows(golden).map(|row| converter.text(row, 1).unwrap().0).collect();
    let packing = golden["args"]["packing"] != false;
    let encoder = TextEncoder::new(tokenizer, template, encode_options(golden).cutoff_len, packing);
    encoder.encode_group(texts.iter().map(String::as_str)).unwrap().rows.into_iter().map(Value::from).collect()
}

fn check_tokens(golden: &Value, tokenizer: &Tokenizer, template: &Template, faults: &mut Vec<String>) {
    let id = &golden["id"];
    let mut check = |what: &str, got: Value| {
        if got != golden[what] {
            faults.push(format!("{id}: {what} is {got}, not {}", golden[what]));
        }
    };
    let special = tokenizer.special();
    let text = |token: &Option<SpecialToken>| token.as_ref().map(|token| token.text.clone()).into();
    let number = |token: &Option<SpecialToken>| token.as_ref().map(|token| token.id).into();
    check("eos_token", text(&special.eos));
    check("eos_token_id", number(&special.eos));
    check("pad_token", text(&special.pad));
    check("pad_token_id", number(&special.pad));
    check("bos_token_id", number(&special.bos));
    check("vocab_len_after", tokenizer.len().into());
    let mut stop_ids = template.stop_ids(tokenizer);
    stop_ids.sort_unstable();
    check("stop_token_ids", stop_ids.into());
}

#[test]
fn ids_and_labels_are_those_of_llama_factory() {
    let (mut checked, mut later, mut faults) = (0, 0, Vec::new());
    let mut tokenizers: HashMap<String, Tokenizer> = HashMap::new();
    for golden in goldens("encode") {
        let id = golden["id"].as_str().unwrap();
        let stage = golden["stage"].as_str().unwrap();
        if matches!(stage, "rm" | "kto") {
            later += 1;
            continue;
        }
        checked += 1;
        let name = golden["tokenizer"].as_str().unwrap();
        let mut tokenizer = tokenizers.entry(name.to_owned()).or_insert_with(|| tokenizer(name)).clone();
        let template = Template::resolve(&template_options(&golden), &mut tokenizer).unwrap().template;
        if let Some(error) = golden["error"].as_str() {
            // Where LLaMA-Factory ends the run, the row is dropped and says the same.
            let (_, dropped) = encode_sft(&golden, &tokenizer, &template);
            if !(error.contains("function message") && dropped.iter().any(|reason| reason.contains("function call"))) {
                faults.push(format!("{id}: `{error}`, but {dropped:?}"));
            }
            continue;
        }
        check_tokens(&golden, &tokenizer, &template, &mut faults);
        let expected = golden["outputs"].as_array().unwrap();
        let got: Vec<(Value, Option<Value>)> = match stage {
            "pt" => encode_pt(&golden, &tokenizer, &template).into_iter().map(|ids| (ids, None)).collect(),
            _ => encode_sft(&golden, &tokenizer, &template).0.into_iter().map(|(i, l)| (i, Some(l))).collect(),
        };
        if got.len() != expected.len() {
            faults.push(format!("{id}: {} rows, not {}", got.len(), expected.len()));
        }
        for (n, ((ids, labels), expected)) in got.iter().zip(expected).enumerate() {
            let list: Vec<u32> = serde_json::from_value(ids.clone()).unwrap();
            if *ids != expected["input_ids"] {
                let text = tokenizer.decode(&list, false).unwrap();
                faults.push(format!("{id} row {n}: ids of {text:?}, not of {}", expected["rendered"]));
            } else if labels.as_ref().is_some_and(|labels| *labels != expected["labels"]) {
                faults.push(format!("{id} row {n}: labels\n {labels:?}\n {}", expected["labels"]));
            } else if tokenizer.decode(&list, false).unwrap() != expected["rendered"] {
                faults.push(format!("{id} row {n}: decoded text differs"));
            }
        }
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
    assert_eq!((checked, later), (120, 7));
}

#[test]
fn chat_templates_render_as_in_transformers() {
    let mut checked = 0;
    let mut faults = Vec::new();
    let tokenizers = ["qwen3", "smollm2"].map(|name| (name, tokenizer(name)));
    for golden in goldens("chat_template") {
        checked += 1;
        let name = golden["tokenizer"].as_str().unwrap();
        let tokenizer = &tokenizers.iter().find(|(known, _)| *known == name).unwrap().1;
        let chat = ChatTemplate::parse(tokenizer.chat_template().unwrap()).unwrap();
        let rendering = Rendering {
            tools: Some(&golden["tools"]),
            add_generation_prompt: golden["add_generation_prompt"] == true,
            extra: golden["kwargs"].as_object(),
            ..Rendering::new(&golden["messages"], tokenizer.special(), MADE)
        };
        match chat.render(&rendering) {
            Ok(text) if text == golden["rendered"] => {
                if Value::from(tokenizer.encode(&text).unwrap()) != golden["input_ids"] {
                    faults.push(format!("{}: ids", golden["id"]));
                }
            }
            Ok(text) => faults.push(format!("{}:\n {text:?}\n {}", golden["id"], golden["rendered"])),
            Err(error) => faults.push(format!("{}: {error}", golden["id"])),
        }
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
    assert_eq!(checked, 48);
}
