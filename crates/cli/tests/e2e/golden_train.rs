//! Whole runs against LLaMA-Factory's: every step's loss, gradient norm and rate, the final weights, the files' keys.

use crate::common::{Place, fixtures, history, read_json, tensors};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// Losses and norms, relative. The goldens are f32 runs of another program; what is measured is about 1e-7.
const CLOSE: f64 = 1e-5;
/// Weights, of the largest.
const WEIGHTS: f32 = 1e-4;

fn close(got: &Value, want: &Value, what: &str) {
    let (got, want) = (got.as_f64().unwrap(), want.as_f64().unwrap());
    assert!((got - want).abs() <= CLOSE * want.abs(), "{what}: {got}, golden {want}");
}

fn keys(value: &Value) -> Vec<&String> {
    value.as_object().unwrap().keys().collect()
}

fn check_history(case: &str, got: &Value, want: &Value) {
    for (name, values) in
        [("loss", &["loss", "grad_norm"][..]), ("eval_loss", &["eval_loss"]), ("train_loss", &["train_loss"])]
    {
        let (got, want) = (history(got, name), history(want, name));
        assert_eq!(got.len(), want.len(), "{case}: rows with {name}");
        for (got, want) in got.iter().zip(&want) {
            let what = format!("{case}, step {}, {name}", want["step"]);
            assert_eq!(keys(got), keys(want), "{what}");
            assert_eq!([&got["step"], &got["epoch"]], [&want["step"], &want["epoch"]], "{what}");
            assert_eq!(got.get("learning_rate"), want.get("learning_rate"), "{what}");
            for &value in values {
                close(&got[value], &want[value], &format!("{what}: {value}"));
            }
        }
    }
}

fn check_weights(case: &str, golden: &Path, ours: &Path) {
    let file = ["adapter_model.safetensors", "model.safetensors"].into_iter().find(|f| golden.join(f).exists());
    let (want, got) = (tensors(&golden.join(file.unwrap())), tensors(&ours.join(file.unwrap())));
    assert!(want.keys().eq(got.keys()), "{case}: names of the final tensors");
    let largest = want.values().flatten().fold(0f32, |m, v| m.max(v.abs()));
    for (name, want) in &want {
        let gap = want.iter().zip(&got[name]).fold(0f32, |m, (w, g)| m.max((w - g).abs()));
        assert_eq!(want.len(), got[name].len(), "{case}: {name}");
        assert!(gap <= WEIGHTS * largest, "{case}: {name} differs by {gap}, the largest weight is {largest}");
    }
}

fn log_keys(path: &Path) -> Vec<Vec<String>> {
    let text = fs::read_to_string(path).unwrap();
    let line = |line| keys(&serde_json::from_str::<Value>(line).unwrap()).into_iter().cloned().collect();
    text.lines().map(line).collect()
}

fn check(case: &str) {
    if case == "qwen3_lora_ddp2" {
        // Two ranks of two rows took rows 0 to 3 in the first step, and so on: one process with four takes the same, and two
        // processes are what the golden is of.
        check_as(case, &["per_device_train_batch_size=4"], &[]);
        return check_as(case, &[], &[("FORCE_TORCHRUN", "1"), ("NPROC_PER_NODE", "2")]);
    }
    check_as(case, &[], &[]);
}

pub(crate) fn check_as(case: &str, more: &[&str], environment: &[(&str, &str)]) {
    let place = Place::new();
    let folder = fixtures().join("train").join(case);
    let (output, cache) = (place.path("output"), place.path("cache"));
    let output_dir = format!("output_dir={}", output.display());
    let tokenized = format!("tokenized_path={}", cache.display());
    let mut args = vec!["train", "train.yaml", &output_dir, &tokenized];
    args.extend(more);
    let mut command = place.command(&args);
    place.read(command.current_dir(&folder).envs(environment.iter().copied()).output().unwrap()).ok();
    let state = read_json(&output.join("trainer_state.json"));
    let golden = read_json(&folder.join("trainer_state.json"));
    assert_eq!(golden["log_history"], read_json(&folder.join("steps.json")), "{case}: the golden agrees with itself");
    check_history(case, &state, &golden);
    assert_eq!(keys(&state), keys(&golden), "{case}: trainer_state.json");
    for exact in ["global_step", "max_steps", "num_train_epochs", "epoch"] {
        assert_eq!(state[exact], golden[exact], "{case}: {exact}");
    }
    check_weights(case, &folder.join("final"), &output);
    let log = "trainer_log.jsonl";
    assert_eq!(log_keys(&output.join(log)), log_keys(&folder.join(log)), "{case}: keys of {log}");
    let results = read_json(&folder.join("all_results.json"));
    assert_eq!(keys(&read_json(&output.join("all_results.json"))), keys(&results), "{case}: all_results.json");
    let of_training = |key: &&String| !key.starts_with("eval_");
    let want: Vec<_> = keys(&results).into_iter().filter(of_training).collect();
    assert_eq!(keys(&read_json(&output.join("train_results.json"))), want, "{case}: train_results.json");
}

/// A test a case, and one that none is forgotten.
macro_rules! cases {
    ($($name:ident)+) => {
        $(#[test] fn $name() { check(stringify!($name)); })+

        #[test]
        fn every_case_has_a_test() {
            let folders = fs::read_dir(fixtures().join("train")).unwrap().map(|entry| entry.unwrap().path());
            let mut names: Vec<_> = folders.filter(|path| path.is_dir()).collect();
            names.sort();
            let names: Vec<_> = names.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
            assert_eq!(names, [$(stringify!($name)),+]);
        }
    };
}

cases! {
    llama3rope_lora llama_freeze llama_full qwen2_lora qwen3_dora qwen3_lora_bs1acc2 qwen3_lora_bs2
    qwen3_lora_bs2acc4_partial qwen3_lora_ddp2 qwen3_lora_epochs qwen3_lora_eval qwen3_lora_multiturn_maskhistory
    qwen3_lora_qv_linear_wd_clip qwen3_loraplus qwen3_neat_packing qwen3_packing qwen3_pt_lora qwen3_rslora
    qwen3moe_lora
}
