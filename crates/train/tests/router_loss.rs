//! The loss on the balance of experts against transformers: a whole step is its one batch, however the rows are split.

use ferrotune_checkpoint::{Dtype, SafetensorsFile, TensorSource};
use ferrotune_config::plan::{AdamWPlan, Tuning};
use ferrotune_data::rows::Row;
use ferrotune_model::{Config, Model};
use ferrotune_tensor::{DType, Device};
use ferrotune_train::engine::{Division, Engine};
use ferrotune_train::{Sample, Stacked, StepOptions, Votes, Work, step};
use std::path::Path;

/// As the fixture was made.
const COEFFICIENT: f64 = 0.5;
const LENGTHS: [usize; 2] = [23, 14];

fn options(recompute: bool) -> StepOptions {
    StepOptions {
        optimizer: AdamWPlan { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 },
        max_norm: 0.0,
        smoothing: 0.0,
        router_aux_loss: COEFFICIENT,
        embedding_alpha: 0.0,
        seed: 1,
        plus: None,
        recompute,
    }
}

/// Largest difference over the largest value.
fn gap(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    let scale = want.iter().fold(0f32, |m, v| m.max(v.abs()));
    got.iter().zip(want).fold(0f32, |m, (g, w)| m.max((g - w).abs())) / scale
}

#[test]
fn the_loss_on_the_balance_is_transformers() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
    for name in ["qwen2_moe", "qwen3_moe", "mixtral", "mixtral_window"] {
        let folder = fixtures.join("variants").join(name);
        let expected = SafetensorsFile::open(&fixtures.join(format!("router_loss/{name}.safetensors"))).unwrap();
        let json = std::fs::read(folder.join("config.json")).unwrap();
        let config = Config::from_json(&serde_json::from_slice(&json).unwrap()).unwrap();
        let device = Device::cpu();
        let model = Model::new(&config, DType::F32, Some(&Tuning::Full), false).unwrap();
        let engine = Engine::new(&device, &model, Division::solo(&model), false);
        engine
            .load(&Stacked::new(SafetensorsFile::open(&folder.join("model.safetensors")).unwrap()), &[], None, 1)
            .unwrap();
        let mut ids = vec![0u32; LENGTHS.iter().sum()];
        expected.read("ids", Dtype::I32, bytemuck::cast_slice_mut(&mut ids)).unwrap();
        let mut labels = vec![0i32; ids.len()];
        expected.read("labels", Dtype::I32, bytemuck::cast_slice_mut(&mut labels)).unwrap();
        let segments = LENGTHS.map(|len| [len as u32]);
        let sample = |index: usize, at: std::ops::Range<usize>| {
            let (input_ids, labels) = (&ids[at.clone()], &labels[at]);
            Sample {
                row: Row { input_ids, labels, segments: &segments[index], isolated: false, source: (0, 0) },
                index,
            }
        };
        let [first, second] = [sample(0, 0..LENGTHS[0]), sample(1, LENGTHS[0]..ids.len())];
        for micro_batches in [vec![vec![first, second]], vec![vec![second], vec![first]]] {
            for recompute in [false, true] {
                // A rate of 0 leaves the weights as they are.
                let micro_batches = &micro_batches;
                let work = Work { step: 1, rate: 0.0, micro_batches, scale: None, votes: &Votes::default };
                let outcome = step(&model, &engine, &options(recompute), &work).unwrap();
                let told = [outcome.loss, outcome.router_loss.unwrap()];
                for (got, want) in told.into_iter().zip(["loss", "aux_loss"]) {
                    let want = f64::from(expected.read_f32(want).unwrap()[0]);
                    assert!((got - want).abs() < 1e-5 * want, "{name}: {got} is not {want}");
                }
                let mut compared = 0;
                for parameter in engine.parameters() {
                    let golden = format!("grad.{}", parameter.param.name);
                    if expected.info(&golden).is_some() {
                        let want = expected.read_f32(&golden).unwrap();
                        let gap = gap(&engine.gradient(&parameter.param).unwrap().to_f32(), &want);
                        assert!(gap < 1e-4, "{name}: gradient of {} differs by {gap}", parameter.param.name);
                        compared += 1;
                    }
                }
                assert_eq!(compared, expected.names().len() - 4, "{name}");
            }
        }
    }
}
