//! Safetensors: fixtures, round trips, shards, ranges, broken files.

use std::fs;
use std::path::Path;

use crate::common::{Random, dump, fixture, overwrite};
use ferrotune_checkpoint::{
    Dtype, Error, FolderWriter, OutTensor, SafetensorsFile, SaveModel, ShardedSafetensors, TensorSource,
    TokenizerFiles, open_model, write_model,
};
use serde_json::{Value, json};

fn write_file(dir: &Path, header: &str, data: &[u8]) -> std::path::PathBuf {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    let path = dir.join("x.safetensors");
    fs::write(&path, bytes).unwrap();
    path
}

fn refusal(dir: &Path, header: &str, data: &[u8]) -> String {
    SafetensorsFile::open(&write_file(dir, header, data)).unwrap_err().to_string()
}

#[test]
fn a_file_written_by_the_reference_is_written_back_byte_for_byte() {
    let path = fixture("models/tiny-qwen3/model.safetensors");
    let file = SafetensorsFile::open(&path).unwrap();
    let names = file.names();
    assert!(names.contains(&"model.layers.1.self_attn.q_norm.weight".to_owned()));
    let contents: Vec<_> = names.iter().map(|name| file.read_f32(name).unwrap()).collect();
    let tensors = names
        .iter()
        .zip(&contents)
        .map(|(name, values)| OutTensor::f32(name, file.info(name).unwrap().shape, Dtype::F32, values));
    let dir = tempfile::tempdir().unwrap();
    let folder = FolderWriter::new(dir.path()).unwrap();
    folder.tensors("m.safetensors", tensors.collect()).unwrap();
    assert!(fs::read(dir.path().join("m.safetensors")).unwrap() == fs::read(path).unwrap());
}

#[test]
fn every_pair_of_types_converts_in_any_range() {
    let dir = tempfile::tempdir().unwrap();
    let folder = FolderWriter::new(dir.path()).unwrap();
    // More than one chunk of the reader, and not a multiple of anything.
    let n = (1 << 18) + 4099;
    let values = Random(7).floats(n);
    let kinds = [Dtype::F32, Dtype::F16, Dtype::Bf16];
    let tensors = kinds.map(|kind| OutTensor::f32(kind.name(), [n], kind, &values));
    folder.tensors("x.safetensors", tensors.into()).unwrap();
    let file = SafetensorsFile::open(&dir.path().join("x.safetensors")).unwrap();
    for from in kinds {
        let stored = file.read_f32(from.name()).unwrap();
        for to in kinds {
            let mut expected = vec![0; n * to.block().1];
            ferrotune_checkpoint::encode(to, &stored, &mut expected);
            for range in [0..n, 1..2, 5..5, 4095..4097, 262_143..262_147, 3..n - 1] {
                let size = to.block().1;
                let mut got = vec![0xaa; range.len() * size];
                file.read_range(from.name(), range.clone(), to, &mut got).unwrap();
                let expected = &expected[range.start * size..range.end * size];
                assert!(got == expected, "{from:?} to {to:?} in {range:?}");
            }
        }
    }
}

#[test]
fn what_does_not_fit_or_convert_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let folder = FolderWriter::new(dir.path()).unwrap();
    let ids = OutTensor::bytes("ids", [2], Dtype::I64, &[0; 16]);
    folder.tensors("x.safetensors", vec![ids]).unwrap();
    let file = SafetensorsFile::open(&dir.path().join("x.safetensors")).unwrap();
    file.read("ids", Dtype::I64, &mut [0; 16]).unwrap();
    let told = |result: ferrotune_checkpoint::Result<()>| result.unwrap_err().to_string();
    assert_eq!(
        told(file.read("ids", Dtype::F32, &mut [0; 8])),
        "tensor 'ids' is stored as I64, which can't be read as F32; get the model in F32, F16 or BF16"
    );
    assert_eq!(told(file.read("ids", Dtype::I64, &mut [0; 15])), "tensor 'ids': 15 bytes asked for where 16 fit");
    assert_eq!(
        told(file.read_range("ids", 1..3, Dtype::I64, &mut [0; 16])),
        "tensor 'ids': 3 elements asked for where 2 fit"
    );
    assert!(told(file.read("no", Dtype::F32, &mut [])).ends_with("has no tensor 'no'"));
}

#[test]
fn hostile_headers_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let tensor = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    let data = [0u8; 8];
    let cases = [
        ("{", "header"),
        ("\u{feff}{}", "header"),
        (&tensor("F32", "[3]", "[0,8]"), "header"),
        (&tensor("F32", "[2]", "[4,12]"), "header"),
        (&tensor("F32", "[2]", "[8,0]"), "header"),
        (&tensor("F32", "[-2]", "[0,8]"), "header"),
        (&tensor("Q9", "[2]", "[0,8]"), "header"),
        (&tensor("F32", "[4294967296,4294967296,4]", "[0,8]"), "header"),
        (&tensor("F32", "[1]", "[0,4]"), "4 bytes follow"),
        (
            r#"{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}"#,
            "header",
        ),
        (
            r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}"#,
            "header",
        ),
    ];
    for (header, expected) in cases {
        let message = refusal(dir.path(), header, &data);
        assert!(message.contains(expected), "{header}: {message}");
        assert!(message.contains("x.safetensors"), "{message}");
    }
    let deep = "[".repeat(100_000);
    assert!(refusal(dir.path(), &deep, &data).contains("header"));
    let short = refusal(dir.path(), &tensor("F32", "[4]", "[0,16]"), &data);
    assert!(short.contains("is incomplete: 79 bytes are announced, it has 71"), "{short}");
    fs::write(dir.path().join("x.safetensors"), u64::MAX.to_le_bytes()).unwrap();
    let error = SafetensorsFile::open(&dir.path().join("x.safetensors")).unwrap_err();
    assert!(error.to_string().contains("its header would be"), "{error}");
    fs::write(dir.path().join("x.safetensors"), [1, 2, 3]).unwrap();
    let error = SafetensorsFile::open(&dir.path().join("x.safetensors")).unwrap_err();
    assert!(matches!(error, Error::Short { expected: 8, actual: 3, .. }), "{error}");
}

#[test]
fn a_file_shortened_while_open_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    fs::copy(fixture("models/tiny-llama/model.safetensors"), &path).unwrap();
    let file = SafetensorsFile::open(&path).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(20_000).unwrap();
    let failed = file.names().iter().filter(|name| file.read_f32(name).is_err()).count();
    assert!(failed > 0);
}

#[test]
fn broken_files_never_panic() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    let folder = FolderWriter::new(dir.path()).unwrap();
    let values = Random(3).floats(60);
    let tensors = vec![
        OutTensor::f32("a.weight", [4, 10], Dtype::F32, &values[..40]),
        OutTensor::f32("b.weight", [20], Dtype::Bf16, &values[40..]),
    ];
    folder.tensors("m.safetensors", tensors).unwrap();
    let whole = fs::read(&path).unwrap();
    for len in 0..whole.len() {
        overwrite(&path, &whole[..len]);
        assert!(SafetensorsFile::open(&path).is_err(), "cut to {len}");
    }
    let mut random = Random(11);
    let header = whole.len() - 40 * 4 - 20 * 2;
    for _ in 0..3000 {
        let mut broken = whole.clone();
        for _ in 0..=random.below(3) {
            broken[random.below(header)] = random.next() as u8;
        }
        overwrite(&path, &broken);
        if let Ok(file) = SafetensorsFile::open(&path) {
            for name in file.names() {
                let info = file.info(&name).unwrap();
                if info.dtype.converts_to(Dtype::F32) {
                    assert_eq!(file.read_f32(&name).unwrap().len(), info.elements());
                }
            }
        }
    }
}

#[test]
fn a_model_in_shards_reads_like_the_model() {
    let source = open_model(&fixture("models/tiny-llama")).unwrap();
    let expected = dump(&*source.tensors);
    let dir = tempfile::tempdir().unwrap();
    let folder = FolderWriter::new(dir.path()).unwrap();
    let save = SaveModel {
        config: &source.config,
        generation_config: source.generation_config.as_ref(),
        tokenizer: &source.tokenizer,
        dtype: Dtype::F32,
        shard_bytes: 200_000,
    };
    let tensors = expected.iter().map(|(name, shape, values)| OutTensor::f32(name, shape.clone(), Dtype::F32, values));
    write_model(&folder, &save, tensors.collect()).unwrap();
    let index = crate::common::read_json(&dir.path().join("model.safetensors.index.json"));
    let bytes: usize = expected.iter().map(|(_, _, values)| values.len() * 4).sum();
    assert_eq!(index["metadata"]["total_size"], bytes);
    assert_eq!(index["metadata"]["total_parameters"], bytes / 4);
    let shards: std::collections::BTreeSet<_> =
        index["weight_map"].as_object().unwrap().values().map(|v| v.as_str().unwrap()).collect();
    assert!(shards.len() >= 4);
    assert!(shards.contains(format!("model-00001-of-{:05}.safetensors", shards.len()).as_str()));
    for shard in &shards {
        let file = SafetensorsFile::open(&dir.path().join(shard)).unwrap();
        let size: usize = file.names().iter().map(|n| file.info(n).unwrap().elements() * 4).sum();
        assert!(size <= 200_000 || file.names().len() == 1);
    }
    let again = open_model(dir.path()).unwrap();
    assert!(dump(&*again.tensors) == expected);
    assert_eq!(again.config, source.config);
    assert_eq!(again.generation_config, source.generation_config);
    assert_eq!(again.tokenizer, source.tokenizer);

    fs::remove_file(dir.path().join(shards.first().unwrap())).unwrap();
    let error = open_model(dir.path()).err().unwrap().to_string();
    assert!(error.contains("names shards that are not there: model-00001-of-"), "{error}");
}

#[test]
fn the_config_tells_the_written_type() {
    let tokenizer = TokenizerFiles {
        tokenizer_json: b"{}".to_vec(),
        tokenizer_config: json!({}),
        chat_template: Some("hi".into()),
        extra: vec![("merges.txt".into(), b"a b".to_vec())],
    };
    let written = |config: Value| {
        let dir = tempfile::tempdir().unwrap();
        let save = SaveModel {
            config: &config,
            generation_config: None,
            tokenizer: &tokenizer,
            dtype: Dtype::Bf16,
            shard_bytes: u64::MAX,
        };
        let tensor = OutTensor::f32("a", [1], Dtype::Bf16, &[1.0]);
        write_model(&FolderWriter::new(dir.path()).unwrap(), &save, vec![tensor]).unwrap();
        assert_eq!(fs::read(dir.path().join("chat_template.jinja")).unwrap(), b"hi");
        assert_eq!(fs::read(dir.path().join("merges.txt")).unwrap(), b"a b");
        crate::common::read_json(&dir.path().join("config.json"))
    };
    assert_eq!(written(json!({"dtype": "float32"})), json!({"dtype": "bfloat16"}));
    assert_eq!(written(json!({"torch_dtype": "float16"})), json!({"torch_dtype": "bfloat16"}));
    assert_eq!(written(json!({"a": 1})), json!({"a": 1, "torch_dtype": "bfloat16"}));
}

#[test]
fn a_hostile_index_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let index = dir.path().join("model.safetensors.index.json");
    for (text, expected) in [
        ("[]", "expected a JSON object"),
        ("{}", "expected an object 'weight_map'"),
        (r#"{"weight_map": {}}"#, "is empty"),
        (r#"{"weight_map": {"a": 1}}"#, "expected a file name"),
        (r#"{"weight_map": {"a": "../x"}}"#, "expected a file name"),
        (r#"{"weight_map": {"a": "/etc/passwd"}}"#, "expected a file name"),
        (r#"{"weight_map": {"a": "x", "b": "y"}}"#, "not there: x, y"),
    ] {
        fs::write(&index, text).unwrap();
        let error = ShardedSafetensors::open(&index).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn what_cannot_be_stored_is_refused_and_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let folder = FolderWriter::new(dir.path()).unwrap();
    let bad = |tensors| folder.tensors("x.safetensors", tensors).unwrap_err().to_string();
    let twice = ["a", "a"].map(|name| OutTensor::bytes(name, [1], Dtype::U8, &[0]));
    assert!(bad(twice.into()).contains("two tensors are named 'a'"));
    let short = OutTensor::bytes("a", [2], Dtype::F32, &[0; 4]);
    assert!(bad(vec![short]).contains("4 bytes asked for where 8 fit"));
    let quantised = OutTensor::bytes("a", [32], Dtype::Q4_0, &[0; 18]);
    assert!(bad(vec![quantised]).contains("no place in a safetensors file"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
