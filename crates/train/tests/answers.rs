//! Answers to rows: the same whatever stands beside a prompt, and on any number of ranks.

#![expect(clippy::unwrap_used, reason = "a test fails where a value is missing")]

use ferrotune_checkpoint::{OpenModel, open_model};
use ferrotune_config::plan::{GenerationPlan, Plan};
use ferrotune_config::{Recipe, Verb};
use ferrotune_data::prepare::{Prepared, prepare};
use ferrotune_data::tokenizer::Tokenizer;
use ferrotune_dist::{Comm, Layout, Mesh, threads};
use ferrotune_infer::{Generator, Request, Sampler};
use ferrotune_model::{Capacity, Config, Model};
use ferrotune_tensor::{DType, Device};
use ferrotune_train::engine::{Division, Engine, Offload, Sharding};
use ferrotune_train::report::Found;
use ferrotune_train::{Answering, Predicted, Stacked, answer};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::rc::Rc;

fn folder(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(model)
}

fn generation(do_sample: bool) -> GenerationPlan {
    GenerationPlan {
        do_sample,
        temperature: 1.5,
        top_p: 0.95,
        top_k: 40,
        max_new_tokens: 12,
        repetition_penalty: 1.1,
        skip_special_tokens: true,
        seed: 3,
    }
}

fn loaded(files: &OpenModel, dtype: DType) -> (Model, Engine) {
    let model = Model::new(&Config::from_json(&files.config).unwrap(), dtype, None, false).unwrap();
    let engine = Engine::new(&Device::cpu(), &model, Division::solo(&model), false);
    engine.load(&Stacked::new(&*files.tensors), &[], None, 1).unwrap();
    (model, engine)
}

#[test]
fn a_prompt_is_answered_as_if_it_were_alone() {
    for (name, dtype) in [
        ("tiny-qwen3", DType::F32),
        ("tiny-qwen3", DType::Bf16),
        ("tiny-qwen3moe", DType::F32),
        ("tiny-llama-rope3", DType::F32),
    ] {
        let (model, engine) = loaded(&open_model(&folder(name)).unwrap(), dtype);
        let ids = |i: u32, len: u32| (0..len).map(|t| (t * t * 7 + 13 * i + 5) % 200).collect::<Vec<u32>>();
        // One is longer than a pass, one begins like the one before it.
        let mut prompts: Vec<Vec<u32>> =
            [5, 1, 600, 33, 2, 70, 17].iter().zip(0..).map(|(&len, i)| ids(i, len)).collect();
        prompts.push(ids(6, 25));
        for do_sample in [false, true] {
            let plan = generation(do_sample);
            let sampler = |i: usize| Sampler::of_prompt(&plan, i as u64);
            let ends = [7];
            let alone: Vec<Vec<u32>> = prompts
                .iter()
                .enumerate()
                .map(|(i, prompt)| {
                    let mut generator = Generator::new(&model, &engine, engine.device(), 640);
                    let hear = |_| ControlFlow::Continue(());
                    generator.generate(prompt, &ends, &mut sampler(i), hear).unwrap().0
                })
                .collect();
            assert!(alone.iter().any(|answer| answer.len() == 12), "{alone:?}");
            for sequences in [1, 3, 8] {
                let capacity = Capacity { sequences, tokens: 640 };
                let mut generator = Generator::of_several(&model, &engine, engine.device(), capacity);
                let mut answers = vec![Vec::new(); prompts.len()];
                let requests = prompts.iter().enumerate();
                let requests = requests.map(|(i, prompt)| Request { prompt: prompt.clone(), sampler: sampler(i) });
                generator.generate_all(requests, &ends, |i, answer| answers[i] = answer.ids).unwrap();
                assert_eq!(answers, alone, "{name} in {dtype:?}, {sequences} at once, drawn: {do_sample}");
            }
        }
    }
}

/// Rows of a made-up data set, one without an answer.
fn rows(dir: &Path) -> (Plan, Tokenizer, Prepared) {
    let row = |i: usize| match i {
        4 => serde_json::json!({"instruction": "unanswered"}),
        _ => {
            serde_json::json!({"instruction": format!("say {}", "word ".repeat(i * 5 % 23)), "output": format!("answer {i}。好的")})
        }
    };
    let data: Vec<_> = (0..11).map(row).collect();
    std::fs::write(dir.join("d.json"), serde_json::to_vec(&data).unwrap()).unwrap();
    std::fs::write(dir.join("dataset_info.json"), r#"{"d": {"file_name": "d.json"}}"#).unwrap();
    let text = format!(
        "model_name_or_path: m\ndo_predict: true\npredict_with_generate: true\neval_dataset: d\ntemplate: qwen3\n\
         output_dir: o\ndataset_dir: {}\nmax_new_tokens: 9\nper_device_eval_batch_size: 3\n",
        dir.display()
    );
    let plan = Plan::resolve(&Recipe::parse("test.yaml", text.as_bytes()).unwrap(), Verb::Train).unwrap().0;
    let files = open_model(&folder("tiny-qwen3")).unwrap().tokenizer;
    let mut tokenizer =
        Tokenizer::from_parts(&files.tokenizer_json, &files.tokenizer_config, files.chat_template).unwrap();
    let prepared = prepare(&plan.data, &mut tokenizer, &()).unwrap();
    (plan, tokenizer, prepared)
}

fn answered(comm: Rc<dyn Comm>, dir: &Path, model: &str, (layout, sharding): (Layout, Sharding)) -> Predicted {
    let (plan, tokenizer, prepared) = rows(dir);
    let files = open_model(&folder(model)).unwrap();
    let model = Model::new(&Config::from_json(&files.config).unwrap(), DType::F32, None, false).unwrap();
    let segments = model.segments();
    let stages = layout.stages;
    let division = Division {
        mesh: Mesh::new(comm, layout),
        sharding,
        spans: (0..stages).map(|i| i * segments / stages..(i + 1) * segments / stages).collect(),
        overlap: true,
        offload: Offload::default(),
    };
    let engine = Engine::new(&Device::cpu(), &model, division, false);
    engine.load(&Stacked::new(&*files.tensors), &[], None, 1).unwrap();
    let how = Answering {
        tokenizer: &tokenizer,
        template: &prepared.template,
        generation: &plan.generation,
        at_once: plan.eval.batch,
    };
    let mut heard = 0;
    let found = answer(&model, &engine, &prepared.eval[0].1, how, &mut |done, _| heard = done).unwrap();
    assert!(heard >= 2, "{heard}");
    found
}

#[test]
fn every_row_is_answered_once_on_any_number_of_ranks() {
    let dir = tempfile::tempdir().unwrap();
    rows(dir.path());
    let with = |model: &str, [shards, stages, replicas]: [usize; 3], sharding| {
        let layout = Layout { shards, stages, replicas };
        threads::run(layout.world(), |comm| answered(comm, dir.path(), model, (layout, sharding)))
    };
    let on = |layout, sharding| with("tiny-qwen3", layout, sharding);
    let [want] = &on([1, 1, 1], Sharding::Whole)[..] else { panic!("one rank") };
    assert_eq!(want.predictions.len(), 11);
    assert_eq!(want.predictions[4].label, "<think>\n\n</think>\n\n\n", "an empty answer, as the template writes it");
    assert!(want.predictions[5].prompt.starts_with("<|im_start|>user\nsay word"), "{:?}", want.predictions[5]);
    assert!(want.predictions[5].label.ends_with("answer 5。好的\n"), "{:?}", want.predictions[5]);
    let Found::Answers(numbers) = want.evaluation.found else { panic!("answers") };
    assert!(numbers.iter().all(|number| (0.0..100.0).contains(number)), "{numbers:?}");
    let splits = [
        ([1, 1, 3], Sharding::Whole),
        ([2, 1, 1], Sharding::Optimizer),
        ([2, 1, 1], Sharding::Weights),
        ([2, 1, 2], Sharding::Weights),
        ([1, 2, 1], Sharding::Whole),
    ];
    for (layout, sharding) in splits {
        for got in on(layout, sharding) {
            assert_eq!(got.predictions, want.predictions, "{layout:?}, {sharding:?}");
            assert_eq!(got.evaluation.found, want.evaluation.found, "{layout:?}, {sharding:?}");
        }
    }
    // Ranks that have some of the experts walk together.
    let moe = |layout, sharding| with("tiny-qwen3moe", layout, sharding);
    let [want] = &moe([1, 1, 1], Sharding::Whole)[..] else { panic!("one rank") };
    for layout in [[2, 1, 1], [2, 1, 2]] {
        for got in moe(layout, Sharding::Experts) {
            assert_eq!(got.predictions, want.predictions, "experts, {layout:?}");
        }
    }
}
