//! Loading a model onto a GPU passes through pinned memory piece by piece: the host never holds more than a few of them, however
//! large a tensor is. Counted are this program's own allocations; what stands for the GPU's memory isn't among them.

#![expect(clippy::unwrap_used, reason = "a test fails where a value is missing")]

#[expect(dead_code, reason = "shared with tests that need more of it")]
#[path = "../../tensor/tests/devices/gpus.rs"]
mod gpus;

use ferrotune_checkpoint::SafetensorsFile;
use ferrotune_model::{Config, Model, Source, expert_name};
use ferrotune_tensor::DType;
use ferrotune_train::Stacked;
use ferrotune_train::engine::{Division, Engine};
use std::alloc::{GlobalAlloc, Layout, System};
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts bytes, and the most there were.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator with counters beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(live, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A file of zeros in f32 that has the model's tensors, experts one by one; no disk stands behind it.
fn sparse(model: &Model, path: &Path) -> u64 {
    let (mut header, mut end) = (serde_json::Map::new(), 0u64);
    let mut add = |name: &str, shape: &[usize]| {
        let begin = end;
        end += 4 * shape.iter().product::<usize>() as u64;
        header
            .insert(name.to_owned(), serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}));
    };
    for parameter in model.parameters() {
        let Source::File(name) = &parameter.source else { continue };
        match parameter.param.shape.dims() {
            [experts, one @ ..] if one.len() == 2 => {
                (0..*experts).for_each(|expert| add(&expert_name(name, expert).unwrap(), one));
            }
            shape => add(name, shape),
        }
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut file = File::create(path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&header).unwrap();
    file.set_len(8 + header.len() as u64 + end).unwrap();
    end
}

#[test]
fn a_model_streams_through_pinned_memory() {
    let config = Config::from_json(&serde_json::json!({
        "model_type": "qwen3_moe", "hidden_size": 1024, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 128, "vocab_size": 40_000,
        "max_position_embeddings": 64, "tie_word_embeddings": true, "moe_intermediate_size": 1024, "num_experts": 12,
        "num_experts_per_tok": 2, "decoder_sparse_step": 1, "norm_topk_prob": true, "mlp_only_layers": [],
    }))
    .unwrap();
    let model = Model::new(&config, DType::Bf16, None, false).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let bytes = sparse(&model, &path);
    assert!(bytes > 300 << 20, "{bytes}");
    let gpu = gpus::pooled("gpu=H200");
    let engine = Engine::new(&gpu, &model, Division::solo(&model), false);
    let files = Stacked::new(SafetensorsFile::open(&path).unwrap());
    let before = LIVE.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    engine.load(&files, &[], None, 1).unwrap();
    gpu.check().unwrap();
    let held = MOST.load(Ordering::Relaxed) - before;
    assert!(held < 32 << 20, "{held} bytes of host memory for {bytes} bytes of files");
}
