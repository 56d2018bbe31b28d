//! Models of every family and position scaling written as GGUF, read again, and compared with transformers' logits; what
//! llama.cpp computes otherwise is refused or told.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use ferrotune_checkpoint::gguf::FileType;
use ferrotune_checkpoint::{Dtype, FolderWriter, SafetensorsFile, TensorSource, TokenizerFiles, open_model};
use ferrotune_model::{Batch, Config, Model, Parameter, Sequence};
use ferrotune_tensor::{DType, Device, Host, Kind, Tape, Tensor};
use ferrotune_train::engine::{Division, Engine};
use ferrotune_train::save::GgufModel;
use ferrotune_train::{Fresh, Stacked};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::rc::Rc;

fn fixture(variant: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/variants").join(variant)
}

/// A tokenizer of a few tokens.
fn tokenizer() -> TokenizerFiles {
    let tokenizer = json!({
        "added_tokens": [{"id": 2, "content": "<|endoftext|>", "special": true}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []},
    });
    TokenizerFiles {
        tokenizer_json: tokenizer.to_string().into_bytes(),
        tokenizer_config: json!({"eos_token": "<|endoftext|>"}),
        chat_template: None,
        extra: Vec::new(),
    }
}

fn engine(config: &Config, weights: &dyn TensorSource) -> (Model, Engine) {
    let model = Model::new(config, DType::F32, None, false).unwrap();
    let engine = Engine::new(&Device::cpu(), &model, Division::solo(&model), false);
    engine.load(weights, &[], None, 1).unwrap();
    (model, engine)
}

fn config_of(json: &Value) -> Config {
    Config::from_json(json).unwrap()
}

fn variant(name: &str) -> (Model, Engine) {
    let json: Value = serde_json::from_slice(&std::fs::read(fixture(name).join("config.json")).unwrap()).unwrap();
    let weights = Stacked::new(SafetensorsFile::open(&fixture(name).join("model.safetensors")).unwrap());
    engine(&config_of(&json), &weights)
}

/// Largest difference to transformers' logits, as a part of the largest of them.
fn gap(name: &str, model: &Model, engine: &Engine) -> f32 {
    let expected = SafetensorsFile::open(&fixture(name).join("expected.safetensors")).unwrap();
    let want = expected.read_f32("logits").unwrap();
    let mut ids = vec![0u32; expected.info("ids").unwrap().elements()];
    expected.read("ids", Dtype::I32, bytemuck::cast_slice_mut(&mut ids)).unwrap();
    let (labels, segments) = (vec![-100; ids.len()], [ids.len() as u32]);
    let sequence = Sequence { input_ids: &ids, labels: &labels, segments: &segments, isolated: false, sample: 0 };
    let device = Device::cpu();
    let batch = Rc::new(Batch::new(&device, model.config(), &[sequence], None));
    let rows: Vec<u32> = (0..ids.len() as u32).collect();
    let tape = Tape::forward_only(&device, engine);
    let found = model.logits(&tape, &batch, &Tensor::from_u32(&device, &rows, Kind::Input)).to_f32();
    assert_eq!(found.len(), want.len(), "{name}");
    let scale = want.iter().fold(0f32, |m, v| m.max(v.abs()));
    found.iter().zip(&want).fold(0f32, |m, (g, w)| m.max((g - w).abs())) / scale
}

/// Writes a model, and gives back the file and what was noted, or why it can't be.
fn write(dir: &Path, model: &Model, engine: &Engine, kind: FileType) -> Result<(PathBuf, Vec<String>), String> {
    let tokenizer = tokenizer();
    let gguf = GgufModel { name: "m", model, engine, tokenizer: &tokenizer, ends: &[2], kind };
    let draft = gguf.draft()?;
    let notes = draft.notes.clone();
    gguf.write(draft, &FolderWriter::new(dir).unwrap(), "m.gguf").map_err(|error| error.to_string())?;
    Ok((dir.join("m.gguf"), notes))
}

#[test]
fn every_variant_comes_back_with_transformers_logits() {
    let dir = tempfile::tempdir().unwrap();
    let variants = [
        "bias",
        "linear",
        "llama3",
        "mistral_headdim",
        "mistral_window",
        "mixtral",
        "mixtral_window",
        "qwen2_window",
        "qwen3_tied",
        "yarn",
        "yarn_qwen2",
        "dynamic",
    ];
    let mut compared = 0;
    for name in variants {
        let (model, engine) = variant(name);
        let (path, notes) =
            write(dir.path(), &model, &engine, FileType::F32).unwrap_or_else(|why| panic!("{name}: {why}"));
        let noted = match name {
            "dynamic" => Some("no dynamic position scaling"),
            _ if model.config().sliding_window.iter().any(Option::is_some) => Some("see further back than its window"),
            _ => None,
        };
        match noted {
            Some(part) => assert!(notes.len() == 1 && notes[0].contains(part), "{name}: {notes:?}"),
            None => assert!(notes.is_empty(), "{name}: {notes:?}"),
        }
        let read = open_model(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        // What the format can't say is not compared.
        if noted.is_some() {
            continue;
        }
        let (model, engine) = self::engine(&config_of(&read.config), &Stacked::new(&*read.tensors));
        let gap = gap(name, &model, &engine);
        assert!(gap < 1e-4, "{name}: logits differ by {gap}");
        compared += 1;
    }
    assert_eq!(compared, 7);
}

/// Mixtures of experts in all blocks, of random weights.
#[test]
fn experts_come_back_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["qwen2_moe", "qwen3_moe"] {
        let mut json: Value =
            serde_json::from_slice(&std::fs::read(fixture(name).join("config.json")).unwrap()).unwrap();
        json["mlp_only_layers"] = json!([]);
        json["decoder_sparse_step"] = 1.into();
        json["norm_topk_prob"] = (name == "qwen3_moe").into();
        let config = config_of(&json);
        let bare = Model::new(&config, DType::F32, None, false).unwrap();
        let (model, engine) = engine(&config, &Fresh::new(&bare, 0.1, 7));
        let (path, notes) =
            write(dir.path(), &model, &engine, FileType::F32).unwrap_or_else(|why| panic!("{name}: {why}"));
        assert!(notes.is_empty(), "{notes:?}");
        let read = open_model(&path).unwrap();
        let (again, loaded) = self::engine(&config_of(&read.config), &Stacked::new(&*read.tensors));
        assert_eq!(again.config().moe, model.config().moe, "{name}");
        for (before, after) in engine.parameters().iter().zip(loaded.parameters()) {
            let value = |engine: &Engine, parameter: &Parameter| Host::weight(engine, &parameter.param).to_f32();
            assert_eq!(before.param.name, after.param.name);
            assert_eq!(value(&engine, before), value(&loaded, after), "{name}: {}", before.param.name);
        }
    }
}

#[test]
fn what_llama_cpp_would_compute_otherwise_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |name: &str, change: &dyn Fn(&mut Value), expected: &str| {
        let mut json: Value =
            serde_json::from_slice(&std::fs::read(fixture(name).join("config.json")).unwrap()).unwrap();
        change(&mut json);
        let config = config_of(&json);
        let bare = Model::new(&config, DType::F32, None, false).unwrap();
        let (model, engine) = engine(&config, &Fresh::new(&bare, 0.1, 7));
        let reason = write(dir.path(), &model, &engine, FileType::F32).unwrap_err();
        assert!(reason.contains(expected), "{name}: {reason}");
    };
    refused("qwen3_headdim", &|_| {}, "no place for the bias 'model.layers.0.self_attn.o_proj.bias' in qwen3");
    refused("qwen2_moe", &|_| {}, "some blocks have an MLP");
    refused("qwen3_moe", &|json| json["decoder_sparse_step"] = 1.into(), "norm_topk_prob is false");
    let everywhere = |json: &mut Value| {
        json["mlp_only_layers"] = json!([]);
        json["norm_topk_prob"] = true.into();
    };
    refused("qwen2_moe", &everywhere, "norm_topk_prob is true");
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                        "original_max_position_embeddings": 64, "rope_theta": 10000.0});
    refused("yarn_qwen2", &|json| json["rope_parameters"] = llama3.clone(), "for Llama only, not for qwen2");
    refused("yarn", &|json| json["rope_parameters"]["attention_factor"] = 3.0.into(), "attention_factor");
}

/// Types by the rules of llama-quant, for rows that fill a block of 256 and for rows that don't.
#[test]
fn quantised_files_have_llama_cpps_types_and_stay_near() {
    let dir = tempfile::tempdir().unwrap();
    let (model, engine) = variant("bias");
    for (kind, matrix, head, most) in [
        (FileType::F16, Dtype::F16, Dtype::F16, 1e-2),
        (FileType::Bf16, Dtype::Bf16, Dtype::Bf16, 5e-2),
        (FileType::Q8_0, Dtype::Q8_0, Dtype::Q8_0, 5e-2),
        // 64 elements a row: Q6_K falls back to Q8_0, Q4_K to Q5_0.
        (FileType::Q4_0, Dtype::Q4_0, Dtype::Q8_0, 1.0),
        (FileType::Q4KM, Dtype::Q5_0, Dtype::Q8_0, 0.5),
    ] {
        let (path, _) = write(dir.path(), &model, &engine, kind).unwrap();
        let read = open_model(&path).unwrap();
        let dtype = |name: &str| read.tensors.info(name).unwrap().dtype;
        assert_eq!(dtype("model.layers.0.self_attn.q_proj.weight"), matrix, "{kind:?}");
        assert_eq!(dtype("model.layers.0.input_layernorm.weight"), Dtype::F32, "{kind:?}");
        assert_eq!(dtype("model.layers.0.self_attn.q_proj.bias"), Dtype::F32, "{kind:?}");
        let embedding =
            if read.tensors.info("lm_head.weight").is_some() { "lm_head.weight" } else { "model.embed_tokens.weight" };
        assert_eq!(dtype(embedding), head, "{kind:?}");
        let (model, engine) = self::engine(&config_of(&read.config), &Stacked::new(&*read.tensors));
        let gap = gap("bias", &model, &engine);
        assert!(gap < most, "{kind:?}: logits differ by {gap}");
    }
}

#[test]
fn weights_that_a_type_cannot_hold_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (model, engine) = variant("linear");
    let spoil = |value: f32| {
        let matrix = |p: &&Parameter| p.param.name.ends_with("q_proj.weight");
        let parameter = &engine.parameters().iter().find(matrix).unwrap().param;
        let tensor = Host::weight(&engine, parameter);
        let mut values = tensor.to_f32();
        values[3] = value;
        tensor.write_f32(&values);
    };
    spoil(1e6);
    let reason = write(dir.path(), &model, &engine, FileType::Q8_0).unwrap_err();
    assert!(
        reason.contains("holds 1000000 at element 3, which") && reason.contains("export_gguf_type: bf16"),
        "{reason}"
    );
    write(dir.path(), &model, &engine, FileType::Bf16).unwrap();
    spoil(f32::NAN);
    let reason = write(dir.path(), &model, &engine, FileType::F32).unwrap_err();
    assert!(reason.contains("holds NaN") && reason.contains("the model is damaged"), "{reason}");
}
