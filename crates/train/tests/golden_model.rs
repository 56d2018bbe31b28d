//! Logits, losses and gradients of tiny models against what transformers and PEFT computed (f32, 1e-4 relative).

#![expect(clippy::unwrap_used, reason = "a test fails where a value is missing")]

use ferrotune_checkpoint::{Adapter, Dtype, SafetensorsFile, TensorSource};
use ferrotune_config::plan::{LoraPlan, LoraTargets, Tuning};
use ferrotune_model::{ATTENTION_LINEARS, Batch, Config, LossOptions, Model, Sequence};
use ferrotune_tensor::{DType, Device, Kind, Segment, Tape, Tensor};
use ferrotune_train::Stacked;
use ferrotune_train::engine::{Division, Engine, LoadedAdapter};
use std::path::{Path, PathBuf};
use std::rc::Rc;

const MODELS: [&str; 6] =
    ["tiny-llama", "tiny-llama-rope3", "tiny-qwen2", "tiny-qwen3", "tiny-qwen3-untied", "tiny-qwen3moe"];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

fn open(path: &Path) -> SafetensorsFile {
    SafetensorsFile::open(path).unwrap()
}

fn integers(source: &dyn TensorSource, name: &str) -> Vec<i64> {
    let info = source.info(name).unwrap();
    let mut values = vec![0i64; info.elements()];
    source.read(name, Dtype::I64, bytemuck::cast_slice_mut(&mut values)).unwrap();
    values
}

/// The rows of a golden batch without their padding: ids, labels, and their places in the padded `[2, 32]`.
struct Rows {
    ids: Vec<Vec<u32>>,
    labels: Vec<Vec<i32>>,
    places: Vec<usize>,
}

fn rows(golden: &dyn TensorSource) -> Rows {
    let [ids, labels, mask] = ["input_ids", "labels", "attention_mask"].map(|n| integers(golden, n));
    let width = golden.info("input_ids").unwrap().shape[1];
    let mut rows = Rows { ids: vec![Vec::new(); 2], labels: vec![Vec::new(); 2], places: Vec::new() };
    for i in (0..ids.len()).filter(|&i| mask[i] == 1) {
        rows.ids[i / width].push(ids[i] as u32);
        rows.labels[i / width].push(labels[i] as i32);
        rows.places.push(i);
    }
    rows
}

fn batch(device: &Device, config: &Config, rows: &Rows) -> Rc<Batch> {
    let lens: Vec<[u32; 1]> = rows.ids.iter().map(|r| [r.len() as u32]).collect();
    let sequence = |i: usize| Sequence {
        input_ids: &rows.ids[i],
        labels: &rows.labels[i],
        segments: &lens[i],
        isolated: false,
        sample: 0,
    };
    let sequences: Vec<Sequence<'_>> = (0..rows.ids.len()).map(sequence).collect();
    Rc::new(Batch::new(device, config, &sequences, None))
}

/// Largest difference over the largest value.
fn gap(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    let scale = want.iter().fold(0f32, |m, v| m.max(v.abs()));
    got.iter().zip(want).fold(0f32, |m, (g, w)| m.max((g - w).abs())) / scale
}

/// LLaMA-Factory's `lora_target: all`, which of a mixture of experts takes the attention.
fn lora(name: &str) -> Tuning {
    let attention = LoraTargets::Modules(ATTENTION_LINEARS.map(String::from).to_vec());
    Tuning::Lora(LoraPlan {
        targets: if name.ends_with("moe") { attention } else { LoraTargets::All },
        ..LoraPlan::plain(8)
    })
}

struct Setup {
    device: Device,
    model: Model,
    engine: Engine,
    golden: SafetensorsFile,
    folder: PathBuf,
}

fn setup(name: &str, tuning: &Tuning, adapter: bool) -> Setup {
    let folder = fixtures().join("model").join(name);
    let files = fixtures().join("models").join(name);
    let json = std::fs::read(files.join("config.json")).unwrap();
    let config = Config::from_json(&serde_json::from_slice(&json).unwrap()).unwrap();
    let device = Device::cpu();
    let model = Model::new(&config, DType::F32, Some(tuning), false).unwrap();
    let engine = Engine::new(&device, &model, Division::solo(&model), false);
    let weights = Stacked::new(open(&files.join("model.safetensors")));
    if adapter {
        let read = Adapter::read(&folder.join("adapter")).unwrap();
        let given = LoadedAdapter { path: "adapter".into(), adapter: read };
        engine.load(&weights, &[], Some(&given), 1).unwrap();
    } else {
        engine.load(&weights, &[], None, 1).unwrap();
    }
    let golden = open(&folder.join("forward.safetensors"));
    Setup { device, model, engine, golden, folder }
}

fn check(setup: &Setup, prefix: &str, recompute: bool) {
    let Setup { device, model, engine, golden, .. } = setup;
    let rows = rows(golden);
    let batch = batch(device, model.config(), &rows);
    let all: Vec<u32> = (0..rows.places.len() as u32).collect();
    let forward = Tape::forward_only(device, engine);
    let logits = model.logits(&forward, &batch, &Tensor::from_u32(device, &all, Kind::Input)).to_f32();
    let padded = golden.read_f32(&format!("{prefix}_logits")).unwrap();
    let vocab = model.config().vocab_size;
    let want: Vec<f32> = rows.places.iter().flat_map(|&p| padded[p * vocab..(p + 1) * vocab].to_vec()).collect();
    assert!(gap(&logits, &want) < 1e-4, "logits differ by {}", gap(&logits, &want));

    engine.zero_grads();
    let again = |segment: Segment| recompute && model.is_block(segment);
    let tape = Tape::new(device, engine, &again);
    let loss = model.loss(&tape, &batch, LossOptions { scale: 1.0 / batch.targets.len() as f32, smoothing: 0.0 });
    let want = golden.read_f32(&format!("{prefix}_loss")).unwrap()[0];
    let got = loss.value.item();
    assert!((got - want).abs() < 1e-4 * want, "loss {got}, golden {want}");
    tape.backward(&loss, Tensor::from_f32(device, &[1.0], [1], Kind::ActGrad), None);
}

#[test]
fn gradients_of_adapters_agree_with_peft() {
    for name in MODELS {
        for recompute in [false, true] {
            let setup = setup(name, &lora(name), true);
            check(&setup, "lora", recompute);
            let grads = open(&setup.folder.join("lora_grads.safetensors"));
            let trained: Vec<_> = setup.engine.parameters().iter().filter(|p| p.param.trainable).collect();
            assert_eq!(trained.len(), grads.names().len(), "{name}");
            for parameter in trained {
                let want = grads.read_f32(&format!("base_model.model.{}", parameter.param.name)).unwrap();
                let gap = gap(&setup.engine.gradient(&parameter.param).unwrap().to_f32(), &want);
                assert!(gap < 1e-4, "{name}: gradient of {} differs by {gap}", parameter.param.name);
            }
        }
    }
}

#[test]
fn full_gradients_agree_with_transformers() {
    for name in MODELS {
        let setup = setup(name, &Tuning::Full, false);
        check(&setup, "base", false);
        let grads = open(&setup.folder.join("full_grads_layer0.safetensors"));
        let mut compared = 0;
        // Gradients of fused experts are cut as their weights are.
        let grads = Stacked::new(grads);
        for parameter in setup.engine.parameters() {
            let golden = format!("full_grad.{}", parameter.param.name);
            if grads.info(&golden).is_some() {
                let want = grads.read_f32(&golden).unwrap();
                let gap = gap(&setup.engine.gradient(&parameter.param).unwrap().to_f32(), &want);
                assert!(gap < 1e-4, "{name}: gradient of {} differs by {gap}", parameter.param.name);
                compared += 1;
            }
        }
        let experts = grads.names().iter().filter(|name| name.ends_with("experts.gate_up_proj")).count();
        assert_eq!(
            (compared, experts),
            if name.ends_with("moe") { (13, 1) } else { (grads.names().len(), 0) },
            "{name}"
        );
    }
}
