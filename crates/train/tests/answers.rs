//! Answers to rows: the same whatever stands beside a prompt, and on any number of ranks.

#![expect(clippy::unwrap_used, reason = "a test fails where a value is missing")]

use ferrotune_checkpoint::{OpenModel, open_model};
use ferrotune_config::plan::{GenerationPlan, Plan, Recompute};
use ferrotune_config::{Recipe, Verb};
use ferrotune_data::prepare::{Prepared, prepare};
use ferrotune_data::tokenizer::Tokenizer;
use ferrotune_dist::{Comm, Layout, threads};
use ferrotune_infer::{Generator, Request, Sampler};
use ferrotune_model::{Capacity, Config, Model};
use ferrotune_tensor::{DType, Device};
use ferrotune_train::engine::{Division, Engine, Offload, Sharding};
use ferrotune_train::plan::Candidate;
use ferrotune_train::report::Found;
use ferrotune_train::save::Copied;
use ferrotune_train::{
    Answering, Load, Predicted, Room, Shape, Stacked, answer, evaluated_rows, plan_memory, step_options, widest_answers,
};
use serde_json::Value;
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
        // Few rows are multiplied in another order than many, which in bf16 moves logits enough to draw another token. (Where
        // every product takes the same way, drawn answers are alike in bf16, too.)
        let ways: &[bool] = if dtype == DType::F32 { &[false, true] } else { &[false] };
        for &do_sample in ways {
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
fn rows() -> Vec<Value> {
    let row = |i: usize| match i {
        4 => serde_json::json!({"instruction": "unanswered"}),
        _ => {
            serde_json::json!({"instruction": format!("say {}", "word ".repeat(i * 5 % 23)), "output": format!("answer {i}。好的")})
        }
    };
    (0..11).map(row).collect()
}

/// Rows of the same length, which together are wider than a pass.
fn wide_rows() -> Vec<Value> {
    (0..7).map(|i| serde_json::json!({"instruction": "word ".repeat(150), "output": format!("{i}")})).collect()
}

/// A folder of rows, as a recipe names it.
fn folder_of(rows: &[Value]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("d.json"), serde_json::to_vec(rows).unwrap()).unwrap();
    std::fs::write(dir.path().join("dataset_info.json"), r#"{"d": {"file_name": "d.json"}}"#).unwrap();
    dir
}

/// Its rows, as they are answered.
fn prepared(dir: &Path) -> (Plan, Tokenizer, Prepared) {
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

fn shape(model: &Model, (layout, sharded): (Layout, Sharding)) -> Shape {
    let (segments, stages) = (model.segments(), layout.stages);
    let spans = (0..stages).map(|i| i * segments / stages..(i + 1) * segments / stages).collect();
    Shape { candidate: Candidate { layout, sharded, spans }, overlap: true, offload: Offload::default() }
}

/// What a rank answers, and the most bytes that its device held meanwhile.
fn answered(comm: Rc<dyn Comm>, dir: &Path, model: &str, split: (Layout, Sharding)) -> (Predicted, u64) {
    let (plan, tokenizer, prepared) = prepared(dir);
    let files = open_model(&folder(model)).unwrap();
    let model = Model::new(&Config::from_json(&files.config).unwrap(), DType::F32, None, false).unwrap();
    let division = shape(&model, split).division(comm);
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
    (found, engine.device().track().peak)
}

#[test]
fn every_row_is_answered_once_on_any_number_of_ranks() {
    let dir = folder_of(&rows());
    let with = |model: &str, [shards, stages, replicas]: [usize; 3], sharding| {
        let layout = Layout { shards, stages, replicas };
        threads::run(layout.world(), |comm| answered(comm, dir.path(), model, (layout, sharding)).0)
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

/// Keys, values and the widest pass are counted beforehand, for the rank that has most.
#[test]
fn memory_of_answers_is_foretold() {
    let dir = folder_of(&wide_rows());
    let (plan, _, prepared) = prepared(dir.path());
    let sets = evaluated_rows(prepared.eval.iter().map(|(_, rows)| rows), &plan);
    let answers = widest_answers(&sets, &plan);
    assert!(answers.is_some_and(|answers| answers.at_once == 3 && answers.tokens > 160), "{answers:?}");
    let splits = [
        ("tiny-qwen3", [1, 1, 1], Sharding::Whole),
        ("tiny-qwen3", [1, 1, 3], Sharding::Whole),
        ("tiny-qwen3", [2, 1, 1], Sharding::Weights),
        ("tiny-qwen3", [1, 2, 1], Sharding::Whole),
        ("tiny-qwen3moe", [2, 1, 1], Sharding::Experts),
    ];
    for (name, [shards, stages, replicas], sharding) in splits {
        let split = (Layout { shards, stages, replicas }, sharding);
        let ranks = threads::run(split.0.world(), |comm| answered(comm, dir.path(), name, split).1);
        let seen = ranks.into_iter().max().unwrap() as f64;
        let config = Config::from_json(&open_model(&folder(name)).unwrap().config).unwrap();
        let model = Model::new(&config, DType::F32, None, false).unwrap();
        let foretold = |answers| {
            let load = Load {
                model: &model,
                options: &step_options(&plan, &config, false),
                recompute: Recompute::Off,
                lengths: &[],
                evaluated: &[],
                answers,
                micro_batches: 1,
                copied: Copied::default(),
            };
            plan_memory(&load, &shape(&model, split), false, Room::Shared(None)).unwrap().predicted.peak as f64
        };
        let (with, without) = (foretold(answers), foretold(None));
        assert!((0.95..=1.0).contains(&(seen / with)), "{name}, {split:?}: {seen} seen, {with} foretold");
        assert!(without < 0.8 * with, "{name}, {split:?}: answers hardly count: {without} of {with}");
    }
}
