//! Recipes as users have them: LLaMA-Factory's examples, this project's, and those of the reference runs.

use std::fs;
use std::path::{Path, PathBuf};

use ferrotune_config::plan::{
    AdamWPlan, BadRows, DataPlan, EvalPlan, ExportFormat, ExportPlan, FreezePlan, GenerationPlan, Interval, LoraPlan,
    LoraPlus, LoraTargets, Mix, ModelPlan, OutputPlan, Packing, ParallelPlan, Plan, Precision, Recompute, Resume,
    RunLength, Schedule, ScheduleKind, Stage, Strategy, TemplateChoice, TrackersPlan, TrainPlan, Tuning, ValSize,
    Warmup,
};
use ferrotune_config::{Recipe, Verb};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn load(path: &Path) -> (Plan, Vec<String>) {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let recipe = Recipe::parse(&path.to_string_lossy(), &bytes).unwrap_or_else(|e| panic!("{e}"));
    let (plan, notes) = Plan::resolve(&recipe, Verb::Train).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    (plan, notes.into_iter().map(|note| note.message).collect())
}

fn reference_run(name: &str) -> Plan {
    load(&root().join("fixtures/train").join(name).join("train.yaml")).0
}

fn expected_lora_example() -> Plan {
    Plan {
        stage: Stage::Sft,
        model: ModelPlan {
            source: "Qwen/Qwen3-4B-Instruct-2507".into(),
            revision: "main".into(),
            cache_dir: None,
            hugging_face_token: None,
            modelscope_token: None,
            adapters: vec![],
            precision: Precision::Bf16,
            rope_scaling: None,
            recompute: Recompute::Auto,
            add_tokens: vec![],
            add_special_tokens: vec![],
            resize_vocab: false,
            split_special_tokens: false,
            from_scratch: false,
        },
        tuning: Tuning::Lora(LoraPlan {
            rank: 8,
            alpha: 16.0,
            dropout: 0.0,
            targets: LoraTargets::All,
            additional_targets: vec![],
            rslora: false,
            dora: false,
            plus: None,
            create_new: false,
        }),
        data: DataPlan {
            stage: Stage::Sft,
            dir: "data".into(),
            datasets: vec!["identity".into(), "alpaca_en_demo".into()],
            eval_datasets: vec![],
            eval_each: false,
            generate: false,
            template: TemplateChoice::Named("qwen3_nothink".into()),
            cutoff_len: 2048,
            train_on_prompt: false,
            mask_history: false,
            default_system: None,
            enable_thinking: Some(true),
            preserve_thinking: false,
            tool_format: None,
            split_special_tokens: false,
            max_samples: Some(1000),
            val_size: ValSize::None,
            packing: Packing::Off,
            mix: Mix::Concat,
            mix_probabilities: None,
            stream: None,
            fetched: std::collections::BTreeMap::new(),
            seed: 42,
            overwrite_cache: false,
            cache_dir: None,
            workers: Some(16),
            bad_rows: BadRows::Report,
        },
        train: expected_training(),
        parallel: ParallelPlan::default(),
        eval: EvalPlan {
            every: Interval::Never,
            batch: 8,
            on_start: false,
            early_stopping: None,
            load_best: false,
            metric: "eval_loss".into(),
            greater_is_better: false,
            accuracy: false,
            generate: false,
        },
        output: OutputPlan {
            dir: "saves/qwen3-4b/lora/sft".into(),
            overwrite: true,
            resume: Resume::Never,
            log: Interval::Steps(10),
            logging_first_step: false,
            save: Interval::Steps(500),
            save_total_limit: None,
            save_only_model: false,
            sample_prompts: Vec::new(),
            plot_loss: true,
            trackers: TrackersPlan::default(),
            shard_bytes: 5_000_000_000,
            train: true,
            evaluate: false,
            predict: false,
            profile: None,
        },
        generation: GenerationPlan {
            do_sample: true,
            temperature: 0.95,
            top_p: 0.7,
            top_k: 50,
            max_new_tokens: 1024,
            repetition_penalty: 1.0,
            skip_special_tokens: true,
            seed: 42,
        },
        export: ExportPlan {
            dir: None,
            shard_bytes: 5_000_000_000,
            precision: None,
            format: ExportFormat::Safetensors,
            upload: None,
        },
    }
}

fn expected_training() -> TrainPlan {
    TrainPlan {
        micro_batch: 1,
        accumulation: 8,
        length: RunLength::Epochs(3.0),
        schedule: Schedule {
            learning_rate: 1e-4,
            kind: ScheduleKind::Cosine { num_cycles: 0.5 },
            warmup: Warmup::Ratio(0.1),
        },
        optimizer: AdamWPlan { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 },
        max_grad_norm: 1.0,
        label_smoothing: 0.0,
        router_aux_loss: None,
        neftune_alpha: None,
        seed: 42,
        data_seed: 42,
        shuffle: true,
        drop_last: false,
        pure_bf16: false,
    }
}

#[test]
fn the_lora_example_means_what_it_means_in_llama_factory() {
    let (plan, notes) = load(&root().join("fixtures/recipes/qwen3_lora_sft.yaml"));
    assert_eq!(plan, expected_lora_example());
    assert_eq!(
        notes,
        [
            "`trust_remote_code` has no effect: no code of a model is ever run; the supported architectures are built in",
            "`dataloader_num_workers` has no effect: rows are read from a memory map by the training process itself",
            "`warmup_ratio` is an old spelling",
            "`ddp_timeout` has no effect: no clock ends a collective, and no dead rank is waited for: one of which nothing is \
             heard for `peer_timeout` seconds ends the run",
        ]
    );
}

#[test]
fn the_full_example_differs_where_it_says_so() {
    let (plan, notes) = load(&root().join("fixtures/recipes/qwen3_full_sft.yaml"));
    let mut expected = expected_lora_example();
    expected.tuning = Tuning::Full;
    expected.parallel.strategy = Some(Strategy::Zero3);
    expected.train.accumulation = 2;
    expected.train.schedule.learning_rate = 1e-5;
    expected.output.dir = "saves/qwen3-4b/full/sft".into();
    assert_eq!(plan, expected);
    assert!(notes.iter().any(|note| note.ends_with("it is taken for LLaMA-Factory's file of that name")));
}

#[test]
fn every_reference_run_resolves() {
    let mut count = 0;
    for entry in fs::read_dir(root().join("fixtures/train")).unwrap() {
        let recipe = entry.unwrap().path().join("train.yaml");
        if !recipe.is_file() {
            continue;
        }
        let (plan, _) = load(&recipe);
        assert!(matches!(plan.train.length, RunLength::Steps(12) | RunLength::Epochs(3.0)), "{}", recipe.display());
        assert!(!plan.train.shuffle && plan.output.save == Interval::Never, "{}", recipe.display());
        count += 1;
    }
    assert!(count >= 10, "only {count} reference runs found");
}

#[test]
fn reference_runs_differ_as_their_names_say() {
    assert_eq!(
        reference_run("llama_freeze").tuning,
        Tuning::Freeze(FreezePlan { layers: 1, modules: vec![], extra_modules: vec![] })
    );
    assert_eq!(reference_run("llama_full").tuning, Tuning::Full);
    let Tuning::Lora(dora) = reference_run("qwen3_dora").tuning else { panic!() };
    assert!(dora.dora && !dora.rslora);
    let Tuning::Lora(plus) = reference_run("qwen3_loraplus").tuning else { panic!() };
    assert_eq!(plus.plus, Some(LoraPlus { ratio: 16.0 }));
    assert_eq!(reference_run("qwen3_packing").data.packing, Packing::On);
    assert_eq!(reference_run("qwen3_neat_packing").data.packing, Packing::Neat);
    let pretrain = reference_run("qwen3_pt_lora");
    assert_eq!((pretrain.stage, pretrain.data.packing), (Stage::Pretrain, Packing::On));
    assert!(reference_run("qwen3_lora_multiturn_maskhistory").data.mask_history);
    assert_eq!(reference_run("qwen3_lora_epochs").train.length, RunLength::Epochs(3.0));
    let eval = reference_run("qwen3_lora_eval");
    assert_eq!((eval.eval.every, eval.eval.batch, eval.output.evaluate), (Interval::Steps(4), 2, true));
}

/// `warmup_ratio: 0.0` beside `warmup_steps: 3`: transformers let the ratio win, and the learning rates
/// of the reference run begin at the peak.
#[test]
fn an_old_warmup_ratio_wins_even_if_it_is_zero() {
    let path = root().join("fixtures/train/qwen3_lora_qv_linear_wd_clip/train.yaml");
    let (plan, notes) = load(&path);
    assert_eq!(plan.train.schedule.warmup, Warmup::Ratio(0.0));
    assert_eq!(plan.train.optimizer.weight_decay, 0.1);
    assert!(
        notes.iter().any(|note| note == "`warmup_steps` is not used: `warmup_ratio: 0` is written too"),
        "{notes:?}"
    );
    let Tuning::Lora(lora) = plan.tuning else { panic!() };
    assert_eq!(lora.targets, LoraTargets::Modules(vec!["q_proj".into(), "v_proj".into()]));
}

#[test]
fn the_projects_own_examples_resolve() {
    let mut count = 0;
    for entry in fs::read_dir(root().join("examples")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            load(&path);
            count += 1;
        }
    }
    assert!(count > 0);
}
