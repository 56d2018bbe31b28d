//! Position scalings, windows, biases, head sizes and mixtures of experts that the other models don't have, against
//! transformers' logits.

use ferrotune_checkpoint::{Dtype, SafetensorsFile, TensorSource, open_model};
use ferrotune_model::{Batch, Capacity, Config, KvCache, Model, Sequence};
use ferrotune_tensor::{DType, Device, Kind, Tape, Tensor};
use ferrotune_train::Stacked;
use ferrotune_train::engine::{Division, Engine};
use std::path::Path;
use std::rc::Rc;

/// Largest difference over the largest value.
fn gap(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    let scale = want.iter().fold(0f32, |m, v| m.max(v.abs()));
    got.iter().zip(want).fold(0f32, |m, (g, w)| m.max((g - w).abs())) / scale
}

#[test]
fn every_setting_gives_transformers_logits_at_once_and_token_by_token() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/variants");
    let mut checked = 0;
    for entry in std::fs::read_dir(&fixtures).unwrap() {
        let folder = entry.unwrap().path();
        if !folder.is_dir() {
            continue;
        }
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let json: serde_json::Value =
            serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
        let config = Config::from_json(&json).unwrap_or_else(|e| panic!("{name}: {e}"));
        let device = Device::cpu();
        let model = Model::new(&config, DType::F32, None, false).unwrap();
        let engine = Engine::new(&device, &model, Division::solo(&model), false);
        let weights = Stacked::new(SafetensorsFile::open(&folder.join("model.safetensors")).unwrap());
        engine.load(&weights, &[], None, 1).unwrap();
        let expected = SafetensorsFile::open(&folder.join("expected.safetensors")).unwrap();
        let want = expected.read_f32("logits").unwrap();
        let mut ids = vec![0u32; expected.info("ids").unwrap().elements()];
        expected.read("ids", Dtype::I32, bytemuck::cast_slice_mut(&mut ids)).unwrap();

        let (labels, segments) = (vec![-100; ids.len()], [ids.len() as u32]);
        let sequence = Sequence { input_ids: &ids, labels: &labels, segments: &segments, isolated: false, sample: 0 };
        let batch = Rc::new(Batch::new(&device, &config, &[sequence], None));
        let rows: Vec<u32> = (0..ids.len() as u32).collect();
        let tape = Tape::forward_only(&device, &engine);
        let logits = model.logits(&tape, &batch, &Tensor::from_u32(&device, &rows, Kind::Input)).to_f32();
        assert!(gap(&logits, &want) < 1e-4, "{name}: logits differ by {}", gap(&logits, &want));

        // Dynamic scaling changes its frequencies with the length, so a cache of earlier keys is another computation.
        if name != "dynamic" {
            let capacity = Capacity { sequences: 1, tokens: ids.len() };
            let cache = Rc::new(KvCache::new(&device, &config, DType::F32, model.span(), capacity));
            for (place, id) in ids.iter().enumerate() {
                let batch = Rc::new(Batch::continuing(&device, &config, &[(0, &[*id])], cache.clone()));
                let row = Tensor::from_u32(&device, &[0], Kind::Input);
                let logits = model.logits(&Tape::forward_only(&device, &engine), &batch, &row).to_f32();
                cache.advance(0, 1);
                let want = &want[place * config.vocab_size..(place + 1) * config.vocab_size];
                assert!(gap(&logits, want) < 1e-4, "{name}: token {place} differs by {}", gap(&logits, want));
            }
        }
        checked += 1;
    }
    assert_eq!(checked, 15);
}

#[test]
fn a_folder_without_a_tokenizer_says_so() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/variants/linear");
    let message = open_model(&folder).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(message.contains("tokenizer.json"), "{message}");
}
