//! Hugging Face folders: what is found, and what is said when it isn't.

use std::fs;
use std::path::Path;

use crate::common::fixture;
use ferrotune_checkpoint::{Origin, open_model, open_tokenizer};
use serde_json::json;

fn refusal(dir: &Path) -> String {
    open_model(dir).err().expect("must be refused").to_string()
}

fn put(dir: &Path, files: &[(&str, &str)]) {
    for (name, content) in files {
        fs::write(dir.join(name), content).unwrap();
    }
}

#[test]
fn a_folder_opens() {
    let path = fixture("models/tiny-qwen3");
    let model = open_model(&path).unwrap();
    assert_eq!(model.config["model_type"], "qwen3");
    assert_eq!(model.generation_config.unwrap()["eos_token_id"], 1002);
    assert_eq!(model.tensors.info("model.norm.weight").unwrap().shape, [64]);
    assert!(model.tokenizer.chat_template.unwrap().contains("<|im_start|>"));
    assert_eq!(model.origin, Origin::Folder(path.clone()));
    assert_eq!(open_tokenizer(&path).unwrap().tokenizer_config["pad_token"], "<|endoftext|>");
}

#[test]
fn a_tokenizer_needs_no_weights_and_finds_its_template() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), &[("tokenizer.json", "{}"), ("merges.txt", "a b")]);
    let files = open_tokenizer(dir.path()).unwrap();
    assert_eq!((files.chat_template, files.tokenizer_config), (None, json!({})));
    assert_eq!(files.extra, [("merges.txt".to_owned(), b"a b".to_vec())]);
    let template = |config: &str| {
        put(dir.path(), &[("tokenizer_config.json", config)]);
        open_tokenizer(dir.path()).unwrap().chat_template
    };
    assert_eq!(template(r#"{"chat_template": "one"}"#).as_deref(), Some("one"));
    let named = r#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}"#;
    assert_eq!(template(named).as_deref(), Some("d"));
    put(dir.path(), &[("chat_template.jinja", "file")]);
    assert_eq!(template(named).as_deref(), Some("file"), "the file goes before the configuration");
}

#[test]
fn what_is_missing_is_named_with_its_cure() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    assert!(refusal(dir).contains("has no config.json; expected a folder with"));
    put(dir, &[("m.gguf", "")]);
    assert!(refusal(dir).contains("it holds m.gguf: give the path of that file"));
    put(dir, &[("adapter_config.json", "{}")]);
    assert!(refusal(dir).contains("name it in adapter_name_or_path"));
    put(dir, &[("config.json", "{}")]);
    assert!(refusal(dir).contains("has no model.safetensors or model.safetensors.index.json"));
    put(dir, &[("pytorch_model.bin", "")]);
    assert!(refusal(dir).contains("safe_serialization=True"));
    put(dir, &[("model-00001-of-00002.safetensors", "")]);
    assert!(refusal(dir).contains("so model.safetensors.index.json is missing"));
    put(dir, &[("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0")]);
    assert!(refusal(dir).contains("run `git lfs pull`"));
    fs::copy(fixture("models/tiny-llama/model.safetensors"), dir.join("model.safetensors")).unwrap();
    assert!(refusal(dir).contains("has no tokenizer.json; download the tokenizer"));
    put(dir, &[("tokenizer.model", "")]);
    assert!(refusal(dir).contains("tokenizer.model alone is not read"));
    put(dir, &[("tokenizer.json", "{}"), ("config.json", "{\n\"a\": x}")]);
    let error = refusal(dir);
    assert!(error.contains("config.json: not valid JSON: expected value at line 2"), "{error}");
    let error = refusal(&dir.join("nowhere"));
    assert!(error.starts_with("cannot open") && error.contains("nowhere"), "{error}");
}
