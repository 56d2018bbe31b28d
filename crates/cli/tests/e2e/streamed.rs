//! Streamed runs: they train while rows are still being encoded, and kills change nothing.

use crate::common::{Place, curve, tensors, trainable};
use serde_json::json;
use std::fmt::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Takes far longer to encode than a few steps last.
const ROWS: usize = 1_000_000;

fn streamed(rows: usize, more: &str) -> Place {
    let place = trainable(&format!("streaming: true\nbuffer_size: 500\nmax_steps: 8\nsave_steps: 1\n{more}"));
    let mut text = String::new();
    for i in 0..rows {
        let row = json!({"instruction": format!("Say {i} and {}", i * i), "output": format!("It is {i}.")});
        writeln!(text, "{row}").unwrap();
    }
    place.write("data/d.jsonl", text);
    place.write("data/dataset_info.json", json!({"d": {"file_name": "d.jsonl"}}).to_string());
    place
}

fn outcome(place: &Place) -> (Vec<f64>, Vec<Vec<f32>>) {
    let losses = curve(&place.json("output/trainer_state.json"), "loss");
    (losses, tensors(&place.path("output/adapter_model.safetensors")).into_values().collect())
}

#[test]
fn training_begins_before_encoding_ends_and_goes_on_after_a_kill() {
    let calm = streamed(ROWS, "");
    let run = calm.run(&["train", "train.yaml"]).ok();
    assert!(run.err.contains("rows are encoded while the run goes on"), "{}", run.err);
    let told = run.err.split(" rows were encoded when the run ended").next().unwrap_or_default();
    let seen: String = told.rsplit("note: ").next().unwrap_or_default().chars().filter(char::is_ascii_digit).collect();
    let seen: usize = seen.parse().unwrap_or_else(|_| panic!("{}", run.err));
    assert!((64..ROWS).contains(&seen), "{}", run.err);

    let rough = streamed(ROWS, "");
    let mut child =
        rough.command(&["train", "train.yaml"]).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let (saved, patience) = (rough.path("output/checkpoint-2/DONE"), Instant::now() + Duration::from_secs(120));
    while !saved.exists() && Instant::now() < patience && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(saved.exists());
    let again = rough.run(&["train", "train.yaml"]).ok();
    assert_eq!(outcome(&calm), outcome(&rough), "{}", again.err);
}

/// One process of a machine encodes, and none of them waits for it; the rows are those of a run that has them all.
#[test]
fn ranks_train_on_rows_that_one_of_them_still_encodes() {
    let place = streamed(ROWS / 2, "per_device_train_batch_size: 2\n");
    let ranks = |output: &str| {
        let mut command = place.command(&["train", "train.yaml", &format!("output_dir={output}")]);
        command.env("FORCE_TORCHRUN", "1").env("NPROC_PER_NODE", "3");
        place.read(command.output().unwrap()).ok()
    };
    let early = ranks("output");
    assert!(early.err.contains("rows are encoded while the run goes on"), "{}", early.err);
    assert!(early.err.contains(" rows were encoded when the run ended"), "{}", early.err);
    let unfinished = |ending: &str| {
        let files = std::fs::read_dir(place.path("cache")).unwrap();
        files.filter(|file| file.as_ref().unwrap().file_name().to_str().unwrap().ends_with(ending)).count()
    };
    assert_eq!(unfinished(".log"), 1, "encoded by one process");
    let trained = outcome(&place);
    place.run(&["data", "train.yaml"]).ok();
    assert_eq!(unfinished(".log"), 0);
    let whole = ranks("whole");
    assert!(!whole.err.contains("rows are encoded while the run goes on"), "{}", whole.err);
    std::fs::rename(place.path("output"), place.path("early")).unwrap();
    std::fs::rename(place.path("whole"), place.path("output")).unwrap();
    assert_eq!(outcome(&place), trained);
}

/// Few rows may be there or not when the ranks begin: whichever it is, they agree.
#[test]
fn ranks_agree_where_the_last_rows_come_as_they_begin() {
    for rows in [40, 4_000, 12_000] {
        let place =
            streamed(rows, "per_device_train_batch_size: 2\noverwrite_cache: true\noverwrite_output_dir: true\n");
        for overwrites in ["overwrite_cache=false", "overwrite_cache=true"] {
            let mut command = place.command(&["train", "train.yaml", overwrites]);
            command.env("FORCE_TORCHRUN", "1").env("NPROC_PER_NODE", "3");
            place.read(command.output().unwrap()).ok();
        }
    }
}

/// A run longer than its rows goes on with later epochs of the stream; all is told of the rows at its end.
#[test]
fn rows_that_are_used_up_come_again_and_are_reported() {
    let place = streamed(21, "max_steps: 9\nval_size: 3\neval_strategy: steps\neval_steps: 3\n");
    let run = place.run(&["train", "train.yaml"]).ok();
    assert!(run.err.contains("train: 18 of 18 rows kept"), "{}", run.err);
    assert_eq!(curve(&place.json("output/trainer_state.json"), "loss").len(), 9);
    assert_eq!(curve(&place.json("output/trainer_state.json"), "eval_loss").len(), 3);
}
