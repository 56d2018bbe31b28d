//! The same recipe gives the same bits, whatever the threads and the memory; and the same curve however rows are split.

use crate::common::{Place, Run, curve, history, trainable};
use serde_json::Value;
use std::fs;

fn weights(place: &Place, output: &str) -> Vec<u8> {
    fs::read(place.path(output).join("adapter_model.safetensors")).unwrap()
}

fn train(place: &Place, output: &str, options: &[&str]) -> Run {
    let output = format!("output_dir={output}");
    let mut args = vec!["train", "train.yaml", &output, "save_strategy=no", "max_steps=6"];
    args.extend(options);
    place.run(&args).ok()
}

fn steps(place: &Place, output: &str) -> Vec<Value> {
    history(&place.json(&format!("{output}/trainer_state.json")), "loss")
}

/// Runs with two sets of options and wants the same bits.
fn same(options: &[&str], first: &[&str], second: &[&str]) {
    let place = trainable("");
    train(&place, "a", &[options, first].concat());
    train(&place, "b", &[options, second].concat());
    assert_eq!(steps(&place, "a"), steps(&place, "b"));
    assert!(weights(&place, "a") == weights(&place, "b"), "the weights differ");
}

#[test]
fn the_same_recipe_gives_the_same_bits() {
    same(&[], &[], &[]);
    same(&["bf16=true"], &[], &[]);
}

#[test]
fn another_seed_gives_others() {
    let place = trainable("");
    train(&place, "a", &[]);
    train(&place, "b", &["seed=43"]);
    assert_ne!(steps(&place, "a"), steps(&place, "b"));
}

#[test]
fn the_number_of_threads_changes_nothing() {
    for options in [&[][..], &["bf16=true"], &["per_device_train_batch_size=8"]] {
        let place = trainable("");
        let mut found = Vec::new();
        for threads in ["1", "2", "3"] {
            let output = format!("output_dir={threads}");
            let mut args =
                vec!["train", "train.yaml", &output, "save_strategy=no", "max_steps=4", "overwrite_cache=true"];
            args.extend(options);
            place.read(place.command(&args).env("RAYON_NUM_THREADS", threads).output().unwrap()).ok();
            found.push((steps(&place, threads), weights(&place, threads)));
        }
        assert!(found.iter().all(|one| *one == found[0]), "{options:?}");
    }
}

#[test]
fn recomputing_blocks_changes_nothing() {
    for options in [&[][..], &["bf16=true"], &["neat_packing=true", "cutoff_len=96"]] {
        same(options, &["gradient_checkpointing=false"], &["gradient_checkpointing=true"]);
    }
}

#[test]
fn rows_may_be_split_into_micro_batches_as_one_likes() {
    let place = trainable("lora_dropout: 0\n");
    let mut curves = Vec::new();
    for (rows, batches) in [("4", "1"), ("1", "4"), ("2", "2")] {
        let batch = format!("per_device_train_batch_size={rows}");
        let accumulation = format!("gradient_accumulation_steps={batches}");
        train(&place, rows, &[&batch, &accumulation]);
        curves.push(curve(&place.json(&format!("{rows}/trainer_state.json")), "loss"));
    }
    for other in &curves[1..] {
        for (a, b) in curves[0].iter().zip(other) {
            assert!((a - b).abs() <= 1e-5 * a.abs(), "{a} and {b}");
        }
    }
}

/// Neatly packed rows don't see each other. So with all rows in one step, a step's loss is that of the rows by themselves;
/// plainly packed ones see what stands before them.
#[test]
fn rows_packed_neatly_are_as_if_alone() {
    let place = trainable("lora_dropout: 0\nneftune_noise_alpha: null\nmax_steps: 1\n");
    let loss = |output: &str, options: &[&str]| {
        let output_dir = format!("output_dir={output}");
        let common = ["train", "train.yaml", "save_strategy=no", "per_device_train_batch_size=30", "cutoff_len=96"];
        let run = ["gradient_accumulation_steps=1", "disable_shuffling=true", &output_dir];
        place.run(&[&common[..], &run, options].concat()).ok();
        curve(&place.json(&format!("{output}/trainer_state.json")), "loss")[0]
    };
    let alone = loss("alone", &[]);
    let (neat, plain) = (loss("neat", &["neat_packing=true"]), loss("plain", &["packing=true"]));
    assert!((neat - alone).abs() <= 1e-5 * alone, "{neat} neatly packed, {alone} alone");
    assert!((plain - alone).abs() > 5e-5 * alone, "{plain} packed, {alone} alone");
}
