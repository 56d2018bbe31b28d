//! A whole run on a GPU that has less memory than anybody planned with: micro-batches shrink, which is told, and the run is the same.

#![expect(clippy::unwrap_used, reason = "a test fails where a value is missing")]

#[expect(dead_code, reason = "shared with tests that need more of it")]
#[path = "../../tensor/tests/devices/gpus.rs"]
mod gpus;

use ferrotune_checkpoint::{OpenModel, open_model};
use ferrotune_config::plan::Plan;
use ferrotune_config::{Recipe, Verb};
use ferrotune_data::prepare::{Prepared, prepare};
use ferrotune_data::tokenizer::Tokenizer;
use ferrotune_model::{Config, Model};
use ferrotune_tensor::cuda::Options;
use ferrotune_tensor::{DType, Device};
use ferrotune_train::engine::{Division, Engine};
use ferrotune_train::save::Saver;
use ferrotune_train::{Error, Event, Job, Limit, Longest, MemoryPlan, Stacked, run};
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// Two steps of four rows, all as long.
fn recipe(folder: &Path, output: &str, more: &str) -> (Plan, String) {
    let text = format!(
        "model_name_or_path: m\nstage: sft\ndo_train: true\nfinetuning_type: lora\nlora_rank: 4\ntemplate: qwen3\ndataset: d\n\
         dataset_dir: {folder}\noutput_dir: {folder}/{output}\nper_device_train_batch_size: 4\nmax_steps: 2\n\
         save_strategy: 'no'\nlearning_rate: 0.01\nlora_dropout: 0.1\nneftune_noise_alpha: 5\n{more}",
        folder = folder.display()
    );
    (Plan::resolve(&Recipe::parse("test.yaml", text.as_bytes()).unwrap(), Verb::Train).unwrap().0, text)
}

struct Case {
    folder: tempfile::TempDir,
    files: OpenModel,
    prepared: Prepared,
}

impl Case {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let row = serde_json::json!({"instruction": "Say 1 and 1", "output": "It is 1."});
        std::fs::write(folder.path().join("d.json"), serde_json::to_vec(&vec![row; 8]).unwrap()).unwrap();
        std::fs::write(folder.path().join("dataset_info.json"), r#"{"d": {"file_name": "d.json"}}"#).unwrap();
        let files =
            open_model(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models/tiny-qwen3")).unwrap();
        let own = files.tokenizer.clone();
        let mut tokenizer =
            Tokenizer::from_parts(&own.tokenizer_json, &own.tokenizer_config, own.chat_template).unwrap();
        let prepared = prepare(&recipe(folder.path(), "", "").0.data, &mut tokenizer, &()).unwrap();
        Self { folder, files, prepared }
    }

    /// A run: its losses and the weights after it, how it ended, and what was warned of.
    fn run(&self, device: &Device, output: &str, more: &str) -> (Vec<f64>, Vec<f32>, Result<(), Error>, Vec<String>) {
        let (plan, text) = recipe(self.folder.path(), output, more);
        let config = Config::from_json(&self.files.config).unwrap();
        let model = Model::new(&config, DType::F32, Some(&plan.tuning), false).unwrap();
        let engine = Engine::new(device, &model, Division::solo(&model), false);
        engine.load(&Stacked::new(&*self.files.tensors), &[], None, plan.train.seed).unwrap();
        let rows = self.prepared.train.as_ref().unwrap();
        let limit = Limit { written: plan.train.micro_batch, rows: None, shrinks: plan.parallel.fits_micro_batch };
        let saver = Saver {
            tuning: &plan.tuning,
            continued: None,
            base: &self.files,
            base_name: "m",
            revision: None,
            tokenizer: &self.files.tokenizer,
            shard_bytes: plan.output.shard_bytes,
        };
        let job = Job {
            plan: &plan,
            model: &model,
            engine: &engine,
            saver,
            train: rows,
            eval: &[],
            answering: None,
            memory: MemoryPlan::default(),
            longest: Longest { lengths: vec![rows.max_len(); plan.train.micro_batch], limit },
            recipe: &text,
            ranks_of_a_step: None,
            stop: &AtomicBool::new(false),
        };
        let (mut losses, mut warned) = (Vec::new(), Vec::new());
        let ended = run(&job, &mut |event| match event {
            Event::Stepped(_, loss) => losses.push(loss),
            Event::Warning(words) => warned.push(words),
            _ => {}
        });
        let weights = engine.owned().iter().flat_map(|piece| piece.tensor.to_f32()).collect();
        (losses, weights, ended.map(drop), warned)
    }
}

#[test]
fn a_run_whose_memory_falls_short_says_so_and_is_the_same() {
    let case = Case::new();
    // Beside the tensors there is the workspace of products.
    let on = |tensors: u64, output: &str, more: &str| {
        let device = gpus::fresh(&format!("memory={}", (32 << 20) + tensors));
        let gpu = gpus::open(&Options { device, separate: true, ..Options::default() });
        let found = case.run(&gpu, output, more);
        (found, gpu.track().peak)
    };
    let mut least = 0;
    // Found by the rehearsal, or by the first step.
    for rehearses in [true, false] {
        let more = format!("auto_find_batch_size: true\nrehearse_longest_batch: {rehearses}\n");
        let ((want, weights, ended, warned), peak) = on(1 << 30, &format!("large-{rehearses}"), &more);
        ended.unwrap();
        assert_eq!((want.len(), warned), (2, Vec::<String>::new()));
        least = peak - 1;
        let ((losses, trained, ended, warned), _) = on(least, &format!("small-{rehearses}"), &more);
        ended.unwrap();
        let told = "memory doesn't suffice for micro-batches as written: auto_find_batch_size gives them 2 rows at most from here \
                    on; steps keep their rows, so the result is the same";
        assert_eq!(warned, [told], "rehearses: {rehearses}");
        assert!(losses.iter().zip(&want).all(|(a, b)| (a - b).abs() <= 1e-5 * b), "{losses:?} {want:?}");
        let largest = weights.iter().fold(0f32, |most, x| most.max(x.abs()));
        assert!(trained.iter().zip(&weights).all(|(a, b)| (a - b).abs() <= 1e-4 * largest));
        assert_eq!((losses.len(), trained.len()), (2, weights.len()));
    }
    // Where nobody asked for it, the run ends, and says what would have helped.
    let ((losses, _, ended, warned), _) = on(least, "refused", "rehearse_longest_batch: false\n");
    let refused = ended.unwrap_err().to_string();
    assert!(refused.contains("auto_find_batch_size: true"), "{refused}");
    assert!(losses.is_empty() && warned.is_empty(), "{losses:?} {warned:?}");
}
