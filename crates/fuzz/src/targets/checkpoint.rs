//! Files of models: GGUF, safetensors, adapters.

use std::path::Path;
use std::sync::OnceLock;

use ferrotune_checkpoint::gguf::{Array, Gguf, Value, write_gguf};
use ferrotune_checkpoint::{
    Adapter, Dtype, FolderWriter, OutTensor, SafetensorsFile, ShardedSafetensors, TensorSource,
};

use super::Target;

pub(super) const TARGETS: &[Target] = &[
    Target {
        name: "gguf",
        run: gguf,
        most_bytes: 64 << 20,
        words: &["GGUF", "llama", "qwen3", "general.architecture", "tokenizer.ggml.tokens", "tokenizer.chat_template"],
        seeds: || vec![gguf_seed("llama"), gguf_seed("qwen3")],
    },
    Target {
        name: "safetensors",
        run: safetensors,
        most_bytes: 64 << 20,
        words: &[
            "{",
            "}",
            "[",
            "]",
            ",",
            "\"",
            ":",
            "dtype",
            "F32",
            "BF16",
            "I64",
            "shape",
            "data_offsets",
            "__metadata__",
            "-1",
        ],
        seeds: || vec![safetensors_seed()],
    },
    Target {
        name: "adapter",
        run: adapter,
        most_bytes: 64 << 20,
        words: &[
            "{",
            "}",
            "[",
            "]",
            ",",
            "\"",
            ":",
            "null",
            "1e999",
            "r",
            "lora_alpha",
            "target_modules",
            "use_dora",
            "-1",
            "modules_to_save",
            "rank_pattern",
            "peft_type",
        ],
        seeds: || {
            vec![
                br#"{"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "bias": "none", "task_type": "CAUSAL_LM"}"#.to_vec(),
                LORA.to_vec(),
                br#"{"weight_map": {"a": "model.safetensors"}}"#.to_vec(),
            ]
        },
    },
    Target {
        name: "adapter_weights",
        run: adapter_weights,
        most_bytes: 64 << 20,
        words: &[
            "[",
            "]",
            "F32",
            "BF16",
            "shape",
            "data_offsets",
            "base_model.model.",
            "lora_A",
            "lora_B",
            "lora_embedding_A",
            "lora_magnitude_vector",
            "embed_tokens",
            "lm_head",
            ".weight",
        ],
        seeds: || vec![lora_seed()],
    },
];

/// What PEFT writes beside the weights of [`lora_seed`].
const LORA: &[u8] = br#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none", "task_type": "CAUSAL_LM"}"#;

fn gguf_seed(architecture: &str) -> Vec<u8> {
    let key = |key: &str| format!("{architecture}.{key}");
    let tokens = ["<|endoftext|>", "a", "b"].map(String::from).to_vec();
    let metadata = [
        ("general.architecture".to_owned(), architecture.into()),
        (key("block_count"), Value::U32(1)),
        (key("context_length"), Value::U32(64)),
        (key("embedding_length"), Value::U32(64)),
        (key("feed_forward_length"), Value::U32(64)),
        (key("attention.head_count"), Value::U32(4)),
        (key("attention.head_count_kv"), Value::U32(2)),
        (key("attention.layer_norm_rms_epsilon"), Value::F32(1e-5)),
        (key("rope.freq_base"), Value::F32(1e4)),
        ("tokenizer.ggml.model".to_owned(), "gpt2".into()),
        ("tokenizer.ggml.pre".to_owned(), "gpt-2".into()),
        ("tokenizer.ggml.tokens".to_owned(), Value::Array(Array::String(tokens))),
        ("tokenizer.ggml.token_type".to_owned(), Value::Array(Array::I32(vec![3, 1, 1]))),
        ("tokenizer.ggml.merges".to_owned(), Value::Array(Array::String(vec!["a b".to_owned()]))),
        ("tokenizer.ggml.eos_token_id".to_owned(), Value::U32(0)),
    ];
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
    let (norm, embedding) = ([0.0; 64], [0.0; 3 * 64]);
    let tensors = || {
        vec![
            OutTensor::f32("output_norm.weight", [64], Dtype::F32, &norm),
            OutTensor::f32("token_embd.weight", [3, 64], Dtype::F32, &embedding),
        ]
    };
    in_folder(|dir| {
        let folder = FolderWriter::new(dir).ok()?;
        write_gguf(&folder, "m.gguf", &metadata, tensors()).ok()?;
        std::fs::read(dir.join("m.gguf")).ok()
    })
    .unwrap_or_default()
}

/// A pair of one module, as PEFT names it.
fn lora_seed() -> Vec<u8> {
    in_folder(|dir| {
        let folder = FolderWriter::new(dir).ok()?;
        let values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
        let name = |part: &str| format!("base_model.model.model.layers.0.self_attn.q_proj.{part}.weight");
        let tensors = vec![
            OutTensor::f32(name("lora_A"), [2, 4], Dtype::F32, &values),
            OutTensor::f32(name("lora_B"), [4, 2], Dtype::F32, &values),
        ];
        folder.tensors("m.safetensors", tensors).ok()?;
        std::fs::read(dir.join("m.safetensors")).ok()
    })
    .unwrap_or_default()
}

fn safetensors_seed() -> Vec<u8> {
    in_folder(|dir| {
        let folder = FolderWriter::new(dir).ok()?;
        let values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let tensors = vec![
            OutTensor::f32("a", [2, 3], Dtype::F32, &values),
            OutTensor::f32("b.weight", [6], Dtype::Bf16, &values),
        ];
        folder.tensors("m.safetensors", tensors).ok()?;
        std::fs::read(dir.join("m.safetensors")).ok()
    })
    .unwrap_or_default()
}

fn in_folder<T>(work: impl FnOnce(&Path) -> Option<T>) -> Option<T> {
    work(tempfile::tempdir().ok()?.path())
}

/// Runs `work` on a file of this name and content, alone in a folder.
fn on_file(name: &str, input: &[u8], work: impl FnOnce(&Path) -> String) -> String {
    let said = in_folder(|dir| {
        let path = dir.join(name);
        std::fs::write(&path, input).ok()?;
        Some(work(&path).replace(&*dir.to_string_lossy(), ""))
    });
    said.unwrap_or_default()
}

fn gguf(input: &[u8]) -> String {
    on_file("m.gguf", input, |path| match Gguf::open(path) {
        Err(error) => error.to_string(),
        Ok(file) => {
            let tokenizer = match file.tokenizer() {
                Ok((_, notes)) => notes.len().to_string(),
                Err(error) => error.to_string(),
            };
            match file.into_model() {
                Ok(model) => tokenizer + &contents(&*model.tensors),
                Err(error) => tokenizer + &error.to_string(),
            }
        }
    })
}

fn safetensors(input: &[u8]) -> String {
    on_file("m.safetensors", input, |path| match SafetensorsFile::open(path) {
        Err(error) => error.to_string(),
        Ok(file) => contents(&file),
    })
}

/// Reads every tensor of a source.
fn contents(source: &dyn TensorSource) -> String {
    let read = |name: String| match source.read_f32(&name) {
        Ok(_) => "read".to_owned(),
        Err(error) => error.to_string(),
    };
    source.names().into_iter().take(64).map(read).collect()
}

/// The two JSON files that lie beside weights.
fn adapter(input: &[u8]) -> String {
    on_file("adapter_config.json", input, |path| {
        // Made once: each is written through to the disk, which takes longer than all that is looked at here.
        static SOUND: OnceLock<(Vec<u8>, Vec<u8>)> = OnceLock::new();
        let (lora, model) = SOUND.get_or_init(|| (lora_seed(), safetensors_seed()));
        let folder = path.parent().unwrap_or(Path::new("."));
        let index = folder.join("model.safetensors.index.json");
        // Beside weights that are sound.
        let written = std::fs::write(folder.join("adapter_model.safetensors"), lora)
            .and_then(|()| std::fs::write(folder.join("model.safetensors"), model))
            .and_then(|()| std::fs::write(&index, input));
        if let Err(error) = written {
            return error.to_string();
        }
        let sharded = ShardedSafetensors::open(&index).map_or_else(|error| error.to_string(), |files| contents(&files));
        read_adapter(folder) + &sharded
    })
}

/// An adapter's weights beside a configuration that is sound.
fn adapter_weights(input: &[u8]) -> String {
    on_file("adapter_model.safetensors", input, |path| {
        let folder = path.parent().unwrap_or(Path::new("."));
        match std::fs::write(folder.join("adapter_config.json"), LORA) {
            Ok(()) => read_adapter(folder),
            Err(error) => error.to_string(),
        }
    })
}

fn read_adapter(folder: &Path) -> String {
    Adapter::read(folder)
        .map_or_else(|error| error.to_string(), |adapter| format!("{} {}", adapter.modules.len(), adapter.saved.len()))
}
