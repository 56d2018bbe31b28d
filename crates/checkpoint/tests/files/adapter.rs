//! PEFT adapters: byte-identical to PEFT's own files, and refused when they can't be right.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::common::fixture;
use ferrotune_checkpoint::{
    Adapter, AdapterConfig, Dtype, FolderWriter, HostTensor, LoraWeights, Number, OutTensor, TargetModules, open_model,
};
use serde_json::{Value, json};

/// Every adapter of the fixtures.
fn adapters() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for root in ["model", "train"] {
        for case in fs::read_dir(fixture(root)).unwrap() {
            for part in ["adapter", "init_adapter", "final"] {
                let path = case.as_ref().unwrap().path().join(part);
                if path.join("adapter_config.json").exists() {
                    found.push(path);
                }
            }
        }
    }
    found
}

#[test]
fn adapters_of_peft_are_written_back_byte_for_byte() {
    let found = adapters();
    assert!(found.len() >= 20, "{}", found.len());
    for path in found {
        let adapter = Adapter::read(&path).unwrap();
        let dir = tempfile::tempdir().unwrap();
        adapter.write(&FolderWriter::new(dir.path()).unwrap()).unwrap();
        let same = |file: &str| fs::read(dir.path().join(file)).unwrap() == fs::read(path.join(file)).unwrap();
        assert!(same("adapter_model.safetensors"), "{}", path.display());
        let text = |path: &Path| fs::read_to_string(path.join("adapter_config.json")).unwrap();
        // Fixtures that PEFT itself did not lay out are compared by content.
        if text(&path).starts_with("{\n  \"") {
            assert_eq!(text(dir.path()), text(&path), "{}", path.display());
        }
        let json = |path: &Path| -> Value { serde_json::from_str(&text(path)).unwrap() };
        assert_eq!(json(dir.path()), json(&path), "{}", path.display());
    }
}

#[test]
fn an_adapter_fits_its_own_model_only() {
    let path = fixture("train/qwen3_dora/init_adapter");
    let adapter = Adapter::read(&path).unwrap();
    let module = &adapter.modules["model.layers.0.self_attn.q_proj"];
    assert_eq!(module.a.shape, [8, 64]);
    assert_eq!(module.b.shape, [128, 8]);
    assert_eq!(module.magnitude.as_ref().unwrap().shape, [128]);
    let own = open_model(&fixture("models/tiny-qwen3")).unwrap();
    adapter.check_fits(&path, &*own.tensors).unwrap();
    let other = open_model(&fixture("models/tiny-llama")).unwrap();
    let error = adapter.check_fits(&path, &*other.tensors).unwrap_err().to_string();
    assert!(
        error.contains(
            "was made for another model: 'model.layers.0.self_attn.k_proj.weight' is \
             [32, 64] in the model, [64, 64] in the adapter"
        ),
        "{error}"
    );
    let mut longer = adapter;
    let module = longer.modules["model.layers.0.self_attn.q_proj"].clone();
    longer.modules = BTreeMap::from([("model.layers.9.self_attn.q_proj".to_owned(), module)]);
    let error = longer.check_fits(&path, &*own.tensors).unwrap_err().to_string();
    assert!(error.ends_with("'model.layers.9.self_attn.q_proj.weight' is not in the model"));
}

fn matrix(rows: usize, columns: usize) -> HostTensor {
    HostTensor { shape: vec![rows, columns], data: (0..rows * columns).map(|i| i as f32).collect() }
}

fn sample() -> Adapter {
    let weights = |embedding| LoraWeights { a: matrix(2, 6), b: matrix(4, 2), magnitude: None, embedding };
    Adapter {
        config: AdapterConfig {
            r: 2,
            lora_alpha: Number::from(4.0),
            target_modules: TargetModules::Names(vec!["q_proj".into(), "embed_tokens".into()]),
            modules_to_save: Some(vec!["lm_head".into()]),
            ..AdapterConfig::default()
        },
        modules: BTreeMap::from([
            ("model.layers.0.self_attn.q_proj".into(), weights(false)),
            ("model.embed_tokens".into(), weights(true)),
        ]),
        saved: BTreeMap::from([("lm_head.weight".into(), matrix(6, 4))]),
    }
}

#[test]
fn embeddings_and_saved_modules_have_pefts_names() {
    let dir = tempfile::tempdir().unwrap();
    sample().write(&FolderWriter::new(dir.path()).unwrap()).unwrap();
    let file = dir.path().join("adapter_model.safetensors");
    let names = ferrotune_checkpoint::SafetensorsFile::open(&file).unwrap();
    let names = ferrotune_checkpoint::TensorSource::names(&names);
    let expected = [
        "base_model.model.lm_head.weight",
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "base_model.model.model.embed_tokens.lora_embedding_B",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight",
    ];
    assert_eq!(names, expected);
    let (read, sample) = (Adapter::read(dir.path()).unwrap(), sample());
    assert_eq!((&read.modules, &read.saved), (&sample.modules, &sample.saved));
    assert_eq!(read.config.to_json(), sample.config.to_json());
}

/// A tensor's name, its shape, and the value of all its elements.
type Filled<'a> = (&'a str, &'a [usize], f32);

/// Reads `sample()` with other tensors or another configuration.
fn read_changed(tensors: &[Filled<'_>], config: &Value) -> String {
    let dir = tempfile::tempdir().unwrap();
    let folder = FolderWriter::new(dir.path()).unwrap();
    let data: Vec<_> = tensors.iter().map(|(_, s, v)| vec![*v; s.iter().product()]).collect();
    let tensors = tensors
        .iter()
        .zip(&data)
        .map(|((name, shape, _), data)| OutTensor::f32(format!("base_model.model.{name}"), *shape, Dtype::F32, data));
    folder.tensors("adapter_model.safetensors", tensors.collect()).unwrap();
    let mut full: Value = serde_json::from_str(&sample().config.to_json()).unwrap();
    for (key, value) in config.as_object().unwrap() {
        full[key] = value.clone();
    }
    folder.json("adapter_config.json", &full).unwrap();
    Adapter::read(dir.path()).map_or_else(|e| e.to_string(), |_| "read".into())
}

#[test]
fn what_cannot_be_right_is_refused() {
    let a: Filled<'_> = ("q.lora_A.weight", &[2, 6], 1.0);
    let b: Filled<'_> = ("q.lora_B.weight", &[4, 2], 1.0);
    let m: Filled<'_> = ("q.lora_magnitude_vector", &[4], 1.0);
    let none = json!({});
    let unused =
        json!({"init_lora_weights": "gaussian", "use_qalora": false, "arrow_config": null, "target_parameters": []});
    for harmless in [json!({}), unused] {
        assert_eq!(read_changed(&[a, b], &harmless), "read");
    }
    let embedding: [Filled<'_>; 3] =
        [("e.lora_embedding_A", a.1, 1.0), ("e.lora_embedding_B", b.1, 1.0), ("e.lora_magnitude_vector", &[4], 1.0)];
    let cases: [(&[Filled<'_>], Value, &str); 22] = [
        (&[], none.clone(), "holds no tensor"),
        (&[a], none.clone(), "'q' lacks its tensor 'lora_B.weight'"),
        (&[b], none.clone(), "'q' lacks its tensor 'lora_A.weight'"),
        (&[a, (b.0, &[4, 3], 1.0)], none.clone(), "rank 2 in A and 3 in B"),
        (&[a, b], json!({"r": 4}), "adapter_config.json says 4"),
        (&[a, b], json!({"rank_pattern": {"q": 3}}), "adapter_config.json says 3"),
        (&[a, b], json!({"rank_pattern": {"q.*": 3}}), "has the key 'q.*'"),
        (&[a, (b.0, &[8], 1.0)], none.clone(), "not matrices"),
        (&[a, (b.0, b.1, f32::NAN)], none.clone(), "not finite"),
        (&[a, b, m], none.clone(), "but use_dora is off"),
        (&[a, b], json!({"use_dora": true}), "lacks its tensor 'lora_magnitude_vector'"),
        (&[a, b, (m.0, &[5], 1.0)], json!({"use_dora": true}), "4 rows and a magnitude of shape [5]"),
        (&[("q.lora_A.default.weight", a.1, 1.0)], none, "save_pretrained"),
        (&[a, b], json!({"peft_type": "IA3"}), "peft_type is IA3"),
        (&[a, b], json!({"bias": "all"}), "bias is all"),
        (
            &[a, b],
            json!({"init_lora_weights": "pissa_niter_16"}),
            "init_lora_weights is pissa_niter_16; it adds to weights",
        ),
        (&[a, b], json!({"init_lora_weights": "olora"}), "init_lora_weights is olora"),
        (&[a, b], json!({"alora_invocation_tokens": [7]}), "alora_invocation_tokens is set; only plain LoRA"),
        (&[a, b], json!({"trainable_token_indices": [7]}), "trainable_token_indices is set"),
        (&[a, b], json!({"target_parameters": ["mlp.experts.down_proj"]}), "target_parameters is set"),
        (&embedding, json!({"use_dora": true}), "'e' is an embedding with DoRA"),
        (&[a, b], json!({"r": -1}), "adapter_config.json: "),
    ];
    for (tensors, config, expected) in cases {
        let message = read_changed(tensors, &config);
        assert!(message.contains(expected), "{config}: {message}");
    }
    let dir = tempfile::tempdir().unwrap();
    let missing = |expected: &str| {
        let error = Adapter::read(dir.path()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    missing("has no adapter_config.json; expected the folder of a PEFT adapter");
    fs::write(dir.path().join("adapter_config.json"), "{}").unwrap();
    missing("has no adapter_model.safetensors; the adapter's weights are missing");
    fs::write(dir.path().join("adapter_model.bin"), "").unwrap();
    missing("adapter_model.bin is in PyTorch's pickle format");
}

#[test]
fn what_can_only_be_merged_does_not_go_on_training() {
    let said = |adapter: &Adapter| {
        adapter.check_continues(Path::new("a")).map_or_else(|e| e.to_string(), |()| "goes on".into())
    };
    let mut adapter = sample();
    assert_eq!(
        said(&adapter),
        "adapter a: it has low-rank weights on model.embed_tokens, with which it can't go on training; create_new_adapter: \
         true merges it and trains another"
    );
    adapter.modules.remove("model.embed_tokens");
    assert_eq!(said(&adapter), "goes on");
    adapter.config.alpha_pattern.insert("q_proj".into(), 64.into());
    assert!(said(&adapter).contains("it sets alpha_pattern, "), "{}", said(&adapter));
    adapter.config.rank_pattern.insert("q_proj".into(), 2.into());
    assert!(said(&adapter).contains("it sets rank_pattern, "), "{}", said(&adapter));
}

#[test]
fn unknown_keys_stay() {
    let config: AdapterConfig =
        serde_json::from_value(json!({"r": 4, "lora_alpha": 2.5, "future": [1], "bias": "none"})).unwrap();
    let written: Value = serde_json::from_str(&config.to_json()).unwrap();
    assert_eq!(written["future"], json!([1]));
    assert_eq!(written["lora_alpha"], json!(2.5));
    let keys: Vec<_> = written.as_object().unwrap().keys().collect();
    assert!(keys.is_sorted());
    let peft: Value = crate::common::read_json(&fixture("train/qwen3_dora/final/adapter_config.json"));
    let expected = peft.as_object().unwrap().keys().filter(|key| !keys.contains(key));
    assert_eq!(expected.count(), 0, "all keys of PEFT are written");
}

#[test]
fn scaling_follows_patterns_and_rslora() {
    let mut config = AdapterConfig { r: 4, lora_alpha: Number::Whole(8), ..AdapterConfig::default() };
    config.rank_pattern.insert("q_proj".into(), 16.into());
    config.alpha_pattern.insert("layers.1.self_attn.q_proj".into(), 64.into());
    assert_eq!(config.scaling("model.layers.0.mlp.up_proj"), 2.0);
    assert_eq!(config.scaling("model.layers.0.self_attn.q_proj"), 0.5);
    assert_eq!(config.scaling("model.layers.1.self_attn.q_proj"), 4.0);
    assert_eq!(config.scaling("model.layers.11.self_attn.xq_proj"), 2.0, "whole names only");
    config.use_rslora = true;
    assert_eq!(config.scaling("model.layers.0.mlp.up_proj"), 4.0);
}
