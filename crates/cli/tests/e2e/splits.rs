//! What users see of a run that is split: answers before and after, what ranks did when, and DeepSpeed's files as LLaMA-Factory
//! ships them.

use crate::common::{Place, Run, trainable};
use crate::many::{PATIENCE, adapter, end, losses, node, port, reach, run, start};
use serde_json::Value;
use std::fs;
use std::time::{Duration, Instant};

/// Lines of what was printed that tell answers.
fn answers(told: &Run) -> Vec<&str> {
    told.out.lines().map(str::trim).filter(|line| line.starts_with("before:") || line.starts_with("after:")).collect()
}

#[test]
fn answers_pass_through_the_stages_of_a_pipe() {
    let steps = "max_steps: 12\nlearning_rate: 0.01\nsample_prompts: [Say 4, Say 7 and 49]\n";
    let one = trainable(steps);
    let want = one.run(&["train", "train.yaml"]).ok();
    assert_eq!(answers(&want).len(), 4, "{}", want.out);
    let splits: [(usize, &[&str]); 3] = [
        (2, &["strategy=pipeline", "pipeline_stages=2"]),
        (4, &["strategy=pipeline", "pipeline_stages=2"]),
        (2, &["strategy=zero3"]),
    ];
    for (ranks, split) in splits {
        let place = trainable(steps);
        let rows = ["per_device_train_batch_size=1", &format!("gradient_accumulation_steps={}", 4 / ranks)];
        let told = run(&place, ranks, &[&rows[..], split].concat());
        assert_eq!(answers(&told[0]), answers(&want), "{split:?} on {ranks} ranks");
        assert!(told[1..].iter().all(|told| answers(told).is_empty()), "the first rank speaks for all");
    }
}

#[test]
fn a_rank_that_dies_while_answers_are_made_is_named() {
    let place = trainable("max_steps: 12\nstrategy: pipeline\npeer_timeout: 3\n");
    // A long list keeps them at it.
    let prompts = format!("sample_prompts=[{}]", vec!["Say something long"; 4000].join(", "));
    let (port, log) = (port(), place.path("told"));
    let first = node(&place, 0, 2, port, &[&prompts]).stderr(fs::File::create(&log).unwrap()).spawn().unwrap();
    let mut second = node(&place, 1, 2, port, &[&prompts]).spawn().unwrap();
    let (told, begun) = (|| fs::read_to_string(&log).unwrap(), Instant::now());
    while !told().contains("strategy: pipeline 2") && begun.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(700));
    second.kill().unwrap();
    second.wait().unwrap();
    let code = end(&place, vec![first])[0].code;
    let told = told();
    assert_eq!(code, Some(75), "{told}");
    assert!(told.contains("error: rank 1 (") && !told.contains("trainable params"), "{told}");
}

#[test]
fn what_ranks_did_when_is_written_down() {
    let place = trainable("max_steps: 4\nenable_torch_profiler: true\nprofiler_active_steps: 2\nstrategy: zero3\n");
    let told = run(&place, 2, &["finetuning_type=full"]);
    assert!(
        told[0].err.contains("what this rank did when is in output/profile/rank-0.steps-3-4.json"),
        "{}",
        told[0].err
    );
    assert!(told[0].err.contains("of the collectives"), "{}", told[0].err);
    for rank in 0..2 {
        let profile: Value = place.json(&format!("output/profile/rank-{rank}.steps-3-4.json"));
        let all = profile["traceEvents"].as_array().unwrap();
        let count = |name: &str| all.iter().filter(|event| event["name"] == name && event["ph"] == "X").count();
        let layers = 2;
        assert!(count("all_gather") >= 2 * 2 * layers && count("reduce_scatter") >= 2 * layers, "{all:?}");
        for name in ["embedding forward", "block 1 forward", "block 1 backward", "head forward", "update"] {
            assert!(count(name) >= 2, "{name}: {}", count(name));
        }
    }
    // Where nothing can be written, the run goes on and says so.
    fs::write(place.path("taken"), "a file").unwrap();
    let told = run(&place, 2, &["finetuning_type=full", "overwrite_output_dir=true", "profiler_output_dir=taken/here"]);
    assert!(told[0].err.contains("no profile was written: cannot make"), "{}", told[0].err);
}

/// LLaMA-Factory's files, value for value.
fn shipped(stage: u8, offload: bool) -> Value {
    let fp16 = serde_json::json!({
        "enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16, "hysteresis": 2,
        "min_loss_scale": 1
    });
    let mut zero = if stage == 3 {
        serde_json::json!({
            "stage": 3, "overlap_comm": false, "contiguous_gradients": true, "sub_group_size": 1e9,
            "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto", "stage3_max_live_parameters": 1e9,
            "stage3_max_reuse_distance": 1e9, "stage3_gather_16bit_weights_on_model_save": true
        })
    } else {
        serde_json::json!({
            "stage": stage, "allgather_partitions": true, "allgather_bucket_size": 5e8, "overlap_comm": false,
            "reduce_scatter": true, "reduce_bucket_size": 5e8, "contiguous_gradients": true, "round_robin_gradients": true
        })
    };
    if offload {
        zero["offload_optimizer"] = serde_json::json!({"device": "cpu", "pin_memory": true});
    }
    if offload && stage == 3 {
        zero["offload_param"] = serde_json::json!({"device": "cpu", "pin_memory": true});
    }
    serde_json::json!({
        "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto", "zero_allow_untested_optimizer": true, "fp16": fp16, "bf16": {"enabled": "auto"},
        "zero_optimization": zero, "comms_config": {"verbose": false},
        "monitor_config": {"enabled": true, "tag": "DeepSpeedMonitor", "csv_monitor": {"enabled": false}}
    })
}

#[test]
fn shipped_deepspeed_files_run_and_say_what_they_do() {
    let place = trainable("max_steps: 2\n");
    for (name, stage, offload, strategy) in [
        ("ds_z0_config.json", 0, false, "replicate"),
        ("ds_z2_config.json", 2, false, "zero2"),
        ("ds_z2_offload_config.json", 2, true, "zero2"),
        ("ds_z3_config.json", 3, false, "zero3"),
        ("ds_z3_offload_config.json", 3, true, "zero3"),
    ] {
        place.write(name, shipped(stage, offload).to_string());
        let told = run(&place, 2, &[&format!("deepspeed={name}"), "overwrite_output_dir=true"]);
        assert!(told[0].err.contains(&format!("strategy: {strategy}\n")), "{name}: {}", told[0].err);
        // What has no effect is named; what has some, and what is `auto`, isn't.
        let note = told[0].err.lines().find(|line| line.contains("without effect in DeepSpeed")).unwrap_or_default();
        for idle in ["zero_allow_untested_optimizer", "fp16.loss_scale", "zero_optimization.contiguous_gradients"] {
            assert!(note.contains(idle), "{name}: {}", told[0].err);
        }
        for heeded in ["stage,", "overlap_comm", "device", "train_batch_size", "enabled,"] {
            assert!(!note.replace("monitor_config.enabled,", "").contains(heeded), "{name}: {heeded} in {note}");
        }
    }
}

#[test]
fn rows_a_step_that_contradict_are_told_before_anything_is_measured() {
    let place = trainable("max_steps: 2\n");
    let (port, rows) = (port(), "deepspeed={train_batch_size: 64, zero_optimization: {stage: 1}}");
    let children = (0..2).map(|number| node(&place, number, 2, port, &[rows]).spawn().unwrap()).collect();
    for told in end(&place, children) {
        assert_eq!(told.code, Some(1), "{}", told.err);
        let want = "`train_batch_size: 64` of DeepSpeed contradicts per_device_train_batch_size 2 x \
                    gradient_accumulation_steps 2 x 2 ranks, which are 8 rows a step";
        assert!(told.error().contains(want), "{}", told.error());
    }
    let told = run(&place, 2, &["deepspeed={train_batch_size: 8, zero_optimization: {stage: 1}}"]);
    assert!(told[0].err.contains("strategy: zero1\n"), "{}", told[0].err);
}

/// One key after the other: obeyed, named as having no effect, or refused.
#[test]
fn every_key_of_a_deepspeed_file_is_answered() {
    let place = trainable("max_steps: 1\nsave_strategy: 'no'\n");
    let answer = |place: &Place, json: &str| {
        place.write("ds.json", json);
        place.run(&["train", "train.yaml", "deepspeed=ds.json", "overwrite_output_dir=true"])
    };
    for (json, what) in [
        (r#"{"fp16": {"enabled": true}}"#, "contradicts the recipe's `fp16: false`"),
        (r#"{"gradient_clipping": 0.001}"#, "contradicts the recipe's `max_grad_norm: 1`"),
        (r#"{"bf16": {"enabled": true}}"#, "contradicts the recipe's `bf16: false`"),
        (r#"{"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}"#, "`device: nvme` is not supported"),
        (r#"{"zero_optimization": {"zero_quantized_weights": true}}"#, "gathers are exact"),
        (r#"{"tensor_parallel": {"autotp_size": 2}}"#, "models are cut by blocks"),
        (r#"{"optimizer": {"type": "OneBitAdam"}}"#, "optimizer `OneBitAdam` is not supported"),
        (r#"{"optimizer": {"params": {"betas": [0.9, 0.95]}}}"#, "contradicts the recipe's `adam_beta1: 0.9"),
        (r#"{"scheduler": {"type": "WarmupDecayLR"}}"#, "contradicts the recipe's `lr_scheduler_type: cosine`"),
        (r#"{"zero_optimisation": {"stage": 3}}"#, "unknown key `zero_optimisation.stage`"),
    ] {
        let told = answer(&place, json);
        assert_eq!(told.code, Some(2), "{json}: {}", told.err);
        assert!(told.err.contains(what) && told.err.contains("ds.json:1:"), "{json}: {}", told.err);
    }
    for idle in [
        r#"{"steps_per_print": 10}"#,
        r#"{"zero_force_ds_cpu_optimizer": false}"#,
        r#"{"zero_optimization": {"stage3_max_live_parameters": 1e9}}"#,
        r#"{"activation_checkpointing": {"partition_activations": true}}"#,
        r#"{"_comment": "mine"}"#,
    ] {
        let told = answer(&place, idle).ok();
        assert!(told.err.contains("without effect in DeepSpeed: "), "{idle}: {}", told.err);
    }
}

#[test]
fn an_evaluation_alone_gives_one_answer_on_any_number_of_ranks() {
    let lines = "do_train: false\ndo_eval: true\nval_size: 7\nper_device_eval_batch_size: 2\n";
    let one = trainable(lines);
    one.run(&["train", "train.yaml"]).ok();
    let loss = |place: &Place| place.json("output/eval_results.json")["eval_loss"].as_f64().unwrap();
    for (ranks, split) in [(2, "strategy=replicate"), (3, "strategy=zero3"), (2, "strategy=pipeline")] {
        let place = trainable(lines);
        let told = run(&place, ranks, &[split]);
        assert!(
            (loss(&place) - loss(&one)).abs() < 1e-5 * loss(&one),
            "{split} on {ranks}: {} {}",
            loss(&place),
            loss(&one)
        );
        assert!(told[0].out.contains("perplexity"), "{}", told[0].out);
        assert!(told[1..].iter().all(|told| told.out.is_empty()), "the first rank speaks for all");
    }
}

/// What ranks measure differs from start to start, and with it what would be fastest; a run that goes on sums as it did.
#[test]
fn a_run_that_goes_on_is_split_as_before_whatever_is_measured_then() {
    let steps = "max_steps: 40\nsave_steps: 4\nfinetuning_type: full\n";
    let calm = trainable(steps);
    run(&calm, 2, &["strategy=pipeline"]);
    let place = trainable(steps);
    let mut children = start(&place, 2, &["strategy=pipeline"]);
    reach(&place, 10);
    children[1].kill().unwrap();
    children.remove(1).wait().unwrap();
    end(&place, children);
    // The recipe leaves it open now; two ranks of so small a model would be replicas.
    let told = run(&place, 2, &[]);
    assert!(told[0].err.contains("strategy: pipeline 2\n"), "{}", told[0].err);
    assert_eq!(losses(&place), losses(&calm));
    assert!(adapter(&place) == adapter(&calm), "the same bits");
    // One that says otherwise is obeyed, and so is another number of ranks.
    let told = run(&place, 2, &["strategy=zero2", "max_steps=44"]);
    assert!(told[0].err.contains("strategy: zero2\n"), "{}", told[0].err);
    let told = run(&place, 3, &["max_steps=48"]);
    assert!(told[0].err.contains("out of a node"), "a table of what was looked at: {}", told[0].err);
}
