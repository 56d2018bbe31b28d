//! The real SmolLM2-135M-Instruct against transformers: log-probabilities of texts, and greedy continuations of chats.
//!
//! Needs the 90 MB GGUF that the quickstart fetches: `FERROTUNE_SMOLLM2_GGUF=path cargo test -p ferrotune-train --test
//! smollm2 --release -- --ignored`.

#![expect(clippy::unwrap_used, reason = "a test fails where a value is missing")]

use ferrotune_checkpoint::open_model;
use ferrotune_config::plan::GenerationPlan;
use ferrotune_infer::{Generator, Sampler};
use ferrotune_model::{Batch, Config, Model, Sequence};
use ferrotune_tensor::{DType, Device, Kind, Tape, Tensor};
use ferrotune_train::engine::{Division, Engine};
use serde_json::Value;
use std::ops::ControlFlow;
use std::path::Path;
use std::rc::Rc;

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let top = logits.iter().copied().fold(f32::MIN, f32::max);
    let sum: f64 = logits.iter().map(|&l| f64::from(l - top).exp()).sum();
    logits.iter().map(|&l| f64::from(l - top) - sum.ln()).collect()
}

#[test]
#[ignore = "needs the SmolLM2 GGUF; see the head of this file"]
fn log_probabilities_and_greedy_tokens() {
    let path = std::env::var("FERROTUNE_SMOLLM2_GGUF").expect("FERROTUNE_SMOLLM2_GGUF names the file");
    let files = open_model(Path::new(&path)).unwrap();
    let device = Device::cpu();
    let model = Model::new(&Config::from_json(&files.config).unwrap(), DType::F32, None, false).unwrap();
    let engine = Engine::new(&device, &model, Division::solo(&model), false);
    engine.load(&*files.tensors, &[], None, 1).unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/smollm2/forward.json");
    let golden: Value = serde_json::from_slice(&std::fs::read(fixture).unwrap()).unwrap();
    for text in golden["forward"].as_array().unwrap() {
        let tokens = ids(&text["input_ids"]);
        let (labels, segments) = (vec![-100; tokens.len()], [tokens.len() as u32]);
        let sequence =
            Sequence { input_ids: &tokens, labels: &labels, segments: &segments, isolated: false, sample: 0 };
        let batch = Rc::new(Batch::new(&device, model.config(), &[sequence], None));
        let rows: Vec<u32> = (0..tokens.len() as u32).collect();
        let tape = Tape::forward_only(&device, &engine);
        let logits = model.logits(&tape, &batch, &Tensor::from_u32(&device, &rows, Kind::Input)).to_f32();
        for (place, row) in logits.chunks_exact(model.config().vocab_size).enumerate() {
            let ours = log_softmax(row);
            let best = ids(&text["top5_ids"][place]);
            for (id, theirs) in best.iter().zip(text["top5_logprobs"][place].as_array().unwrap()) {
                let gap = (ours[*id as usize] - theirs.as_f64().unwrap()).abs();
                assert!(gap < 2e-4, "{}: token {id} at {place} differs by {gap}", text["text"]);
            }
        }
    }
    for chat in golden["greedy"].as_array().unwrap() {
        let mut generator = Generator::new(&model, &engine, &device, 512);
        let plan = GenerationPlan {
            do_sample: false,
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            max_new_tokens: 24,
            repetition_penalty: 1.0,
            skip_special_tokens: false,
            seed: 0,
        };
        let prompt = ids(&chat["input_ids"]);
        let hear = |_| ControlFlow::Continue(());
        let (answer, _) = generator.generate(&prompt, &[], &mut Sampler::new(plan), hear).unwrap();
        let want = ids(&chat["new_ids"]);
        let gaps: Vec<f64> = chat["top2_gap"].as_array().unwrap().iter().map(|g| g.as_f64().unwrap()).collect();
        for (i, (got, want)) in answer.iter().zip(&want).enumerate() {
            if got != want {
                assert!(gaps[i] < 0.01, "token {i} is {got}, not {want}, with a gap of {}", gaps[i]);
                break;
            }
        }
    }
}
