//! What several tests need: fixtures, random bytes, GGUF files made of tokenizers.

use std::path::{Path, PathBuf};

use ferrotune_checkpoint::gguf::{Array, Value, write_gguf};
use ferrotune_checkpoint::{Dtype, FolderWriter, OutTensor, TensorSource};
use serde_json::Value as Json;

/// A path under `fixtures/`.
pub(crate) fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(path)
}

pub(crate) fn read_json(path: &Path) -> Json {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Marsaglia's xorshift, so that random cases are the same everywhere.
pub(crate) struct Random(pub(crate) u32);

impl Random {
    pub(crate) fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.next() as usize % n
    }

    pub(crate) fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next() as u8).collect()
    }

    pub(crate) fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.next() as f32 / u32::MAX as f32 - 0.5).collect()
    }
}

/// Metadata of a byte-level BPE tokenizer, out of a `tokenizer.json`.
pub(crate) fn bpe_metadata(tokenizer: &Json, pre: &str) -> Vec<(&'static str, Value)> {
    let mut tokens: Vec<(u64, String)> = (tokenizer["model"]["vocab"].as_object().unwrap().iter())
        .map(|(token, id)| (id.as_u64().unwrap(), token.clone()))
        .collect();
    let added = tokenizer["added_tokens"].as_array().unwrap();
    for token in added {
        let pair = (token["id"].as_u64().unwrap(), token["content"].as_str().unwrap().to_owned());
        if !tokens.contains(&pair) {
            tokens.push(pair);
        }
    }
    tokens.sort();
    let kind = |id: u64| match added.iter().find(|t| t["id"] == id) {
        Some(token) if token["special"] == true => 3,
        Some(_) => 4,
        None => 1,
    };
    let kinds = tokens.iter().map(|(id, _)| kind(*id)).collect();
    let merges = tokenizer["model"]["merges"].as_array().unwrap().iter().map(|merge| match merge {
        Json::String(merge) => merge.clone(),
        pair => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
    });
    vec![
        ("tokenizer.ggml.model", "gpt2".into()),
        ("tokenizer.ggml.pre", pre.into()),
        ("tokenizer.ggml.tokens", Value::Array(Array::String(tokens.into_iter().map(|(_, token)| token).collect()))),
        ("tokenizer.ggml.token_type", Value::Array(Array::I32(kinds))),
        ("tokenizer.ggml.merges", Value::Array(Array::String(merges.collect()))),
    ]
}

/// Metadata of a small model of an architecture: 2 blocks, width 64, 4 query and 2 key heads.
pub(crate) fn model_metadata(architecture: &str) -> Vec<(String, Value)> {
    let key = |key: &str| format!("{architecture}.{key}");
    vec![
        ("general.architecture".into(), architecture.into()),
        (key("block_count"), Value::U32(2)),
        (key("context_length"), Value::U32(2048)),
        (key("embedding_length"), Value::U32(64)),
        (key("feed_forward_length"), Value::U32(128)),
        (key("attention.head_count"), Value::U32(4)),
        (key("attention.head_count_kv"), Value::U32(2)),
        (key("attention.layer_norm_rms_epsilon"), Value::F32(1e-5)),
        (key("rope.freq_base"), Value::F32(100_000.0)),
    ]
}

/// A tokenizer of three tokens.
pub(crate) fn toy_tokenizer() -> Vec<(&'static str, Value)> {
    let tokens = ["<|endoftext|>", "a", "b"].map(String::from).to_vec();
    vec![
        ("tokenizer.ggml.model", "gpt2".into()),
        ("tokenizer.ggml.pre", "gpt-2".into()),
        ("tokenizer.ggml.tokens", Value::Array(Array::String(tokens))),
        ("tokenizer.ggml.token_type", Value::Array(Array::I32(vec![3, 1, 1]))),
        ("tokenizer.ggml.merges", Value::Array(Array::String(vec![]))),
        ("tokenizer.ggml.eos_token_id", Value::U32(0)),
    ]
}

/// A tensor to be written: its name, its shape (outermost dimension first), its type, its bytes.
pub(crate) type GgufTensor<'a> = (&'a str, &'a [usize], Dtype, &'a [u8]);

/// Writes `model.gguf` into a folder.
pub(crate) fn gguf_in(dir: &Path, metadata: &[(impl AsRef<str>, Value)], tensors: &[GgufTensor<'_>]) -> PathBuf {
    let metadata: Vec<_> = metadata.iter().map(|(k, v)| (k.as_ref(), v.clone())).collect();
    let tensors = tensors.iter().map(|&(name, shape, dtype, bytes)| OutTensor::bytes(name, shape, dtype, bytes));
    write_gguf(&FolderWriter::new(dir).unwrap(), "model.gguf", &metadata, tensors.collect()).unwrap();
    dir.join("model.gguf")
}

/// Everything a source says and holds, for comparing.
pub(crate) fn dump(source: &dyn TensorSource) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let tensor = |name: String| {
        let shape = source.info(&name).unwrap().shape;
        let values = source.read_f32(&name).unwrap();
        (name, shape, values)
    };
    source.names().into_iter().map(tensor).collect()
}

/// Replaces a file's content in place. Truncating it first, as `fs::write` does, makes ext4 flush
/// it when it is closed, thousands of times in some tests.
pub(crate) fn overwrite(path: &Path, bytes: &[u8]) {
    let mut file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    std::io::Write::write_all(&mut file, bytes).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
}
