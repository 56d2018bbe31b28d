//! What DeepSpeed's and FSDP's configurations make of a plan, and what is said of them.

use crate::plan::{ParallelPlan, Plan, Strategy};
use crate::{Recipe, Verb};

const BASE: &str = "model_name_or_path: m\ndataset: d\noutput_dir: o\ndo_train: true\nbf16: true\n";

/// What a recipe with these lines makes of the split, and the notes; or the errors.
fn split(more: &str) -> Result<(ParallelPlan, Vec<String>), Vec<String>> {
    let recipe = Recipe::parse("r.yaml", format!("{BASE}{more}").as_bytes()).unwrap();
    let resolved = Plan::resolve(&recipe, Verb::Train);
    let told = |list: Vec<crate::Diagnostic>| list.into_iter().map(|d| d.render(false)).collect::<Vec<_>>();
    resolved.map(|(plan, notes)| (plan.parallel, told(notes))).map_err(|errors| told(errors.0))
}

fn written(json: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ds.json");
    std::fs::write(&path, json).unwrap();
    (folder, format!("deepspeed: {}\n", path.display()))
}

/// The shape of LLaMA-Factory's files, by stage.
fn shipped(stage: u8, more: &str) -> String {
    format!(
        r#"{{"train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto", "zero_allow_untested_optimizer": true,
            "fp16": {{"enabled": "auto", "loss_scale": 0, "initial_scale_power": 16}}, "bf16": {{"enabled": "auto"}},
            "zero_optimization": {{"stage": {stage}, "overlap_comm": false, "reduce_bucket_size": "auto"{more}}}}}"#
    )
}

#[test]
fn shipped_files_are_obeyed() {
    let offload = r#", "offload_optimizer": {"device": "cpu", "pin_memory": true}, "offload_param": {"device": "cpu"}"#;
    let hpz = r#", "zero_hpz_partition_size": 8"#;
    let cases = [
        (0, "", Strategy::Replicate, false),
        (2, "", Strategy::Zero2, false),
        (3, "", Strategy::Zero3, false),
        (3, offload, Strategy::Zero3, true),
        (3, hpz, Strategy::Hybrid { shards: Some(8) }, false),
    ];
    for (stage, more, strategy, offloads) in cases {
        let (_folder, line) = written(&shipped(stage, more));
        let (plan, notes) = split(&line).unwrap();
        assert_eq!((plan.strategy, plan.overlap), (Some(strategy), false));
        assert_eq!([plan.offload_optimizer, plan.offload_parameters], [offloads; 2]);
        assert_eq!(notes.len(), 1, "{notes:?}");
        assert!(notes[0].contains("without effect in DeepSpeed: zero_allow_untested_optimizer"), "{notes:?}");
    }
}

#[test]
fn what_contradicts_or_is_not_there_is_told_with_its_line() {
    let json = "{\n\"zero_optimization\": {\"stage\": 3, \"stag3_prefetch_bucket_size\": 1},\n\
                \"train_micro_batch_size_per_gpu\": 4,\n\"fp16\": {\"enabled\": true},\n\
                \"tensor_parallel\": {\"autotp_size\": 2}\n}";
    let (_folder, line) = written(json);
    let errors = split(&line).unwrap_err();
    assert_eq!(errors.len(), 4, "{errors:?}");
    let has =
        |what: &str, line: &str| errors.iter().any(|e| e.contains(what) && e.contains(&format!("ds.json:{line}:")));
    assert!(has("unknown key `zero_optimization.stag3_prefetch_bucket_size`", "2"), "{errors:?}");
    assert!(errors[0].contains("did you mean `zero_optimization.stage3_prefetch_bucket_size`?"), "{errors:?}");
    assert!(has("contradicts the recipe's `per_device_train_batch_size: ", "3"), "{errors:?}");
    assert!(has("contradicts the recipe's `fp16: ", "4"), "{errors:?}");
    assert!(has("autotp_size: 2", "5"), "{errors:?}");
    let (plan, notes) = split("deepspeed: examples/deepspeed/ds_z3_config.json\n").unwrap();
    assert_eq!((plan.strategy, notes.len()), (Some(Strategy::Zero3), 1), "{notes:?}");
    assert!(split("deepspeed: nowhere.json\n").unwrap_err()[0].contains("cannot read nowhere.json"));
    let (_folder, line) = written("{broken");
    assert!(!split(&line).unwrap_err().is_empty());
    assert!(split("deepspeed: {zero_optimization: {stage: 9}}\n").unwrap_err()[0].contains("`stage: 9` is no stage"));
}

#[test]
fn what_would_change_the_result_must_say_what_the_recipe_says() {
    let told = |json: &str| {
        let (_folder, line) = written(json);
        split(&format!("learning_rate: 1e-4\nwarmup_steps: 5\nlr_scheduler_type: cosine\n{line}"))
    };
    let agrees = r#"{"train_batch_size": 16, "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "betas": [0.9, 0.999]}},
        "scheduler": {"type": "WarmupCosineLR", "params": {"warmup_min_lr": 0.0, "warmup_max_lr": 0.0001,
        "warmup_num_steps": 5, "total_num_steps": "auto", "warmup_type": "linear"}}}"#;
    let (plan, notes) = told(agrees).unwrap();
    assert_eq!((plan.rows_of_a_step, notes.len()), (Some(16), 0), "{notes:?}");
    let auto = r#"{"optimizer": {"params": {"betas": "auto"}}, "scheduler": {"type": "auto", "params": {"warmup_type": "auto"}}}"#;
    assert_eq!(told(auto).unwrap().0.rows_of_a_step, None);
    for (json, what) in [
        (
            r#"{"optimizer": {"params": {"betas": [0.8, 0.999]}}}"#,
            "`optimizer.params.betas: [0.8, 0.999]` of DeepSpeed contradicts the recipe's `adam_beta1: 0.9, adam_beta2: 0.999`",
        ),
        (r#"{"optimizer": {"params": {"betas": 0.9}}}"#, "contradicts the recipe's `adam_beta1"),
        (
            r#"{"scheduler": {"type": "WarmupLR"}}"#,
            "`scheduler.type: WarmupLR` of DeepSpeed contradicts the recipe's `lr_scheduler_type: cosine`",
        ),
        (r#"{"scheduler": {"type": "OneCycle"}}"#, "scheduler `OneCycle` of DeepSpeed is not supported"),
        (r#"{"scheduler": {"params": {"warmup_max_lr": 1.0}}}"#, "contradicts the recipe's `learning_rate: 0.0001`"),
        (
            r#"{"scheduler": {"params": {"warmup_min_lr": 1e-6}}}"#,
            "`scheduler.params.warmup_min_lr: 1e-6` of DeepSpeed is not supported",
        ),
        (r#"{"scheduler": {"params": {"warmup_type": "log"}}}"#, "write `linear`"),
        (r#"{"scheduler": {"params": {"cycle_min_lr": 1}}}"#, "unknown key `scheduler.params.cycle_min_lr`"),
        (r#"{"train_batch_size": -4}"#, "`-4` is no number of rows"),
        (r#"{"fp8": {"enabled": true}}"#, "fp8 is not supported"),
    ] {
        let errors = told(json).expect_err(json);
        assert!(errors.len() == 1 && errors[0].contains(what), "{json}: {errors:?}");
    }
    for (name, what) in [("ds_z2_autotp_config.json", "tensor parallelism"), ("ds_z3_fp8_config.json", "fp8")] {
        let errors = split(&format!("deepspeed: examples/deepspeed/{name}\n")).unwrap_err();
        assert!(errors[0].contains(&format!("asks for {what}, which is not supported")), "{errors:?}");
    }
}

#[test]
fn fsdp_says_the_same_in_its_own_words() {
    let of = |lines: &str| split(lines).unwrap().0;
    assert_eq!(of("fsdp: full_shard auto_wrap\n").strategy, Some(Strategy::Zero3));
    assert_eq!(of("fsdp: [shard_grad_op, offload]\n").strategy, Some(Strategy::Zero2));
    assert!(of("fsdp: [shard_grad_op, offload]\n").offload_parameters);
    assert_eq!(of("fsdp: hybrid_shard\n").strategy, Some(Strategy::Hybrid { shards: None }));
    let config = "fsdp: full_shard\nfsdp_config: {fsdp_version: 2, fsdp_reshard_after_forward: false}\n";
    assert_eq!(of(config).strategy, Some(Strategy::Zero2));
    assert!(split("fsdp: half_shard\n").unwrap_err()[0].contains("`half_shard` is not known"));
}

#[test]
fn two_ways_to_say_it_are_one_too_many() {
    let errors = split("strategy: zero2\ndeepspeed: {zero_optimization: {stage: 3}}\n").unwrap_err();
    assert!(errors[0].contains("`strategy` and `deepspeed` both say how the run is split"), "{errors:?}");
    assert!(split("pipeline_stages: 2\n").unwrap_err()[0].contains("belongs to `strategy: pipeline`"));
    assert!(split("strategy: pipeline\noffload_parameters: true\n").is_err());
    let (plan, notes) = split("ddp_timeout: 180000000\n").unwrap();
    assert_eq!(plan.peer_timeout.as_secs(), 10);
    assert!(notes[0].contains("no dead rank is waited for"), "{notes:?}");
}
