//! Half precision: a scaled loss gives the gradients of an unscaled one, and a step that overflows changes nothing.

#![expect(clippy::unwrap_used, reason = "a test fails where a value is missing")]

use ferrotune_config::plan::{AdamWPlan, LoraPlan, Tuning};
use ferrotune_data::rows::Row;
use ferrotune_dist::{Comm, Layout, Mesh, threads};
use ferrotune_model::{Config, Model};
use ferrotune_tensor::{DType, Device};
use ferrotune_train::engine::{Division, Engine, Offload, Sharding};
use ferrotune_train::{Error, Fresh, LossScale, Outcome, Sample, StepOptions, Votes, Work, step};
use std::rc::Rc;

const IDS: [u32; 9] = [5, 17, 3, 88, 5, 41, 2, 60, 9];
const LABELS: [i32; 9] = [-100, 17, 3, 88, 5, 41, 2, 60, 9];

fn model(dtype: DType) -> Model {
    let json = serde_json::json!({
        "model_type": "qwen3", "hidden_size": 40, "intermediate_size": 56, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 101,
        "max_position_embeddings": 64, "tie_word_embeddings": true,
    });
    let lora = LoraPlan { alpha: 8.0, ..LoraPlan::plain(3) };
    Model::new(&Config::from_json(&json).unwrap(), dtype, Some(&Tuning::Lora(lora)), false).unwrap()
}

/// A run's steps, each with its number and its scale: what they did, and the trained weights after the last.
fn run(dtype: DType, steps: &[(u64, Option<LossScale>)]) -> Vec<(Result<Outcome, String>, Vec<f32>)> {
    let one = |comm: Rc<dyn Comm>| {
        let model = model(dtype);
        let layout = Layout { shards: 1, stages: 1, replicas: 1 };
        let division = Division {
            mesh: Mesh::new(comm, layout),
            sharding: Sharding::Whole,
            spans: std::iter::once(0..5).collect(),
            overlap: false,
            offload: Offload::default(),
        };
        let engine = Engine::new(&Device::cpu(), &model, division, false);
        engine.load(&Fresh::new(&model, 0.2, 7), &[], None, 7).unwrap();
        let options = StepOptions {
            optimizer: AdamWPlan { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 },
            max_norm: 0.01,
            smoothing: 0.0,
            embedding_alpha: 0.0,
            seed: 1,
            plus: None,
            recompute: true,
            router_aux_loss: 0.0,
        };
        let row = Row { input_ids: &IDS, labels: &LABELS, segments: &[9], isolated: false, source: (0, 0) };
        let micro_batches = vec![vec![Sample { row, index: 0 }]; 2];
        let mut told = Vec::new();
        for &(number, scale) in steps {
            let work = Work { step: number, rate: 1e-2, micro_batches: &micro_batches, scale, votes: &Votes::default };
            let outcome = step(&model, &engine, &options, &work).map_err(|error| match error {
                Error::NotFinite { place, .. } => place,
                other => panic!("{other}"),
            });
            let weights = engine.owned().iter().flat_map(|piece| piece.tensor.to_f32()).collect();
            told.push((outcome, weights));
        }
        told
    };
    threads::run(1, one).remove(0)
}

fn scale(scale: f32, skipped: u64) -> Option<LossScale> {
    Some(LossScale { scale, good: 0, skipped })
}

#[test]
fn a_scaled_loss_gives_the_same_step() {
    let exact = &run(DType::F32, &[(1, None)])[0];
    let exact = exact.0.as_ref().unwrap();
    for factor in [1.0, 1024.0, 65536.0] {
        let half = &run(DType::F16, &[(1, scale(factor, 0))])[0];
        let half = half.0.as_ref().unwrap();
        assert!(half.updated && !half.overflowed);
        // Activations and their gradients have 11 bits.
        assert!((half.loss / exact.loss - 1.0).abs() < 2e-3, "{} {}", half.loss, exact.loss);
        assert!((half.grad_norm / exact.grad_norm - 1.0).abs() < 5e-3, "{} {}", half.grad_norm, exact.grad_norm);
    }
}

#[test]
fn an_overflow_changes_nothing_and_isnt_counted() {
    let told = run(DType::F16, &[(1, scale(1e30, 0)), (2, scale(65536.0, 1))]);
    let [(skipped, before), (taken, after)] = &told[..] else { panic!("two steps") };
    let (skipped, taken) = (skipped.as_ref().unwrap(), taken.as_ref().unwrap());
    assert!(skipped.overflowed && !skipped.updated && !skipped.grad_norm.is_finite());
    assert!(taken.updated && before != after);
    let alone = &run(DType::F16, &[(1, scale(65536.0, 0))])[0];
    assert_eq!(after, &alone.1, "to the bit, as if the first step had never been");
    assert_eq!(taken.grad_norm, alone.0.as_ref().unwrap().grad_norm);
}

#[test]
fn where_no_scale_helps_the_cause_is_named() {
    let told = run(DType::F16, &[(1, scale(f32::INFINITY, 0))]);
    assert!(told[0].0.as_ref().unwrap().overflowed, "an infinite scale may shrink");
    let told = run(DType::F32, &[(1, scale(f32::NAN, 0))]);
    assert!(told[0].0.is_err(), "{:?}", told[0].0);
}
