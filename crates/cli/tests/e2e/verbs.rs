//! The verbs but `train`, as they are typed.

use crate::common::{Place, curve, fixtures, model, read_json, tensors, trainable};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

/// Writes a golden of encoding as a dataset and a recipe; the model is a folder with tokenizer files alone.
fn encode_case(name: &str) -> (Place, Value) {
    let case = read_json(&fixtures().join("encode").join(format!("{name}.json")));
    let place = Place::new();
    let mut entry = case["dataset_info"].clone();
    entry["file_name"] = json!("d.json");
    place.write("data/dataset_info.json", json!({"d": entry}).to_string());
    place.write("data/d.json", case["rows"].to_string());
    place.copy(&fixtures().join("tokenizers").join(case["tokenizer"].as_str().unwrap()), "tokenizer");
    let packed = place.path("tokenizer/tokenizer.json.zst");
    if packed.exists() {
        let json = zstd::decode_all(fs::File::open(&packed).unwrap()).unwrap();
        place.write("tokenizer/tokenizer.json", json);
    }
    let mut recipe = json!({
        "model_name_or_path": "tokenizer", "stage": case["stage"], "template": case["template"], "dataset": "d",
        "dataset_dir": "data", "cutoff_len": 2048, "tokenized_path": "cache"
    });
    for (key, value) in case["args"].as_object().unwrap() {
        recipe[key] = value.clone();
    }
    place.write("recipe.json", recipe.to_string());
    (place, case)
}

#[test]
fn data_gives_llama_factorys_ids_and_labels() {
    for name in [
        "sft__qwen3__tiny-qwen__alp_think",
        "sft__qwen3__qwen3__sg_tools__maskhistory-True",
        "sft__qwen3__qwen3__alp_long__cutofflen-64",
        "sft__qwen3__qwen3__sg_bad",
        "sft__llama3__tiny-llama3__alp_hist__maskhistory-True",
        "sft__mistral__tiny-mistral__alp_long__cutofflen-64",
        "sft__gemma__tiny-gemma__alp_sys",
        "sft__deepseekr1__tiny-deepseek__sg_think",
        "sft__none__smollm2__alp_sys",
        "sft__chatml__smollm2__sg_basic",
        "pt__llama3__tiny-llama3__pt_text__cutofflen-32",
    ] {
        let (place, case) = encode_case(name);
        let run = place.run(&["data", "recipe.json", "--format", "jsonl"]).ok();
        let lines: Vec<Value> = run.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let golden = case["outputs"].as_array().unwrap();
        assert_eq!(lines.len(), golden.len(), "{name}");
        for (index, (line, golden)) in lines.iter().zip(golden).enumerate() {
            let keys: Vec<_> = line.as_object().unwrap().keys().collect();
            assert_eq!(keys, ["index", "input_ids", "labels", "text"], "{name}");
            assert_eq!(line["index"], index, "{name}");
            assert_eq!(line["input_ids"], golden["input_ids"], "{name}, row {index}");
            // Plain text has a loss on every token; LLaMA-Factory leaves that to its collator.
            let labels = golden.get("labels").unwrap_or(&golden["input_ids"]);
            assert_eq!(line["labels"], *labels, "{name}, row {index}");
        }
    }
}

#[test]
fn data_shows_what_is_trained_on_and_the_report() {
    let place = trainable("");
    let run = place.run(&["data", "train.yaml", "--rows", "1"]).ok();
    let first = "--- row 0: 33 tokens\n<|im_start|>user\nSay 0 and 0<|im_end|>\n<|im_start|>assistant\n⟦<think>\n\n</think>\n\nIt is \
                 0.<|im_end|>\n⟧\nrow 0 is the same by the model's own chat template\ndataset d: 30 rows in data/d.json, 30 used, 30 kept, 0 dropped\ntrain: 30 of 30 rows kept in 30 \
                 sequences, ";
    assert!(run.out.starts_with(first), "{}", run.out);
    assert!(!run.out.contains("--- row 1"), "{}", run.out);
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let place = trainable("");
    place.write("data/d.json", crate::common::rows(20_000).to_string());
    let mut command = place.command(&["data", "train.yaml", "--format", "jsonl"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut line).unwrap();
    drop(out);
    assert!(line.starts_with("{\"index\":0,"), "{line}");
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{err}");
    assert!(!err.contains("error"), "{err}");
}

fn chat(place: &Place, options: &[&str], typed: impl AsRef<[u8]>) -> (String, String) {
    let args = [&["chat", "train.yaml", "do_sample=false", "max_new_tokens=6"], options].concat();
    let mut command = place.command(&args);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(typed.as_ref()).unwrap();
    let run = place.read(child.wait_with_output().unwrap()).ok();
    (run.out, run.err)
}

#[test]
fn chat_answers_with_and_without_an_adapter() {
    let place = trainable("learning_rate: 0.02\nlora_rank: 16\nmax_steps: 30\nsave_strategy: 'no'\n");
    place.run(&["train", "train.yaml"]).ok();
    let (base, told) = chat(&place, &[], "Say 1 and 1\nclear\nSay 1 and 1\nexit\nnever read\n");
    assert!(told.contains("The conversation is forgotten."), "{told}");
    let answers: Vec<&str> = base.lines().collect();
    let (one, two) = answers.split_at(answers.len() / 2);
    assert_eq!(one, two, "after `clear` the same question has the same greedy answer");
    let (tuned, _) = chat(&place, &["adapter_name_or_path=output"], "Say 1 and 1\n");
    assert_ne!(tuned.trim(), one.join("\n").trim(), "the adapter changes the answer");
    let (continued, _) = chat(&place, &[], "Say 1 and 1\nSay 2 and 4\nquit\n");
    let (fresh, _) = chat(&place, &[], "Say 2 and 4\n");
    assert!(continued.starts_with(&one.join("\n")), "{continued}");
    assert!(!fresh.trim().is_empty());
}

#[test]
fn chat_survives_bytes_that_are_no_utf8() {
    let place = trainable("");
    let (answers, told) = chat(&place, &[], b"Say \xff and 1\nclear\nexit\n");
    assert!(!answers.trim().is_empty());
    assert!(told.contains("The conversation is forgotten."), "{told}");
}

/// The loss on held-out rows, as `train` tells it when it only evaluates.
fn loss(place: &Place, options: &[&str]) -> f64 {
    let args = ["train", "train.yaml", "do_train=false", "do_eval=true", "val_size=6", "output_dir=measured"];
    let run = place.run(&[&args, options].concat()).ok();
    let (_, after) = run.out.split_once("perplexity ").unwrap_or_else(|| panic!("{}", run.out));
    after.split(',').next().unwrap().parse::<f64>().unwrap().ln()
}

#[test]
fn an_exported_model_is_the_adapter_merged() {
    let place = trainable("learning_rate: 0.02\nmax_steps: 20\nsave_strategy: 'no'\n");
    place.run(&["train", "train.yaml"]).ok();
    let steps = curve(&place.json("output/trainer_state.json"), "loss");
    let adapter = "adapter_name_or_path=output";
    let export = place.run(&["export", "train.yaml", adapter, "export_dir=merged"]).ok();
    let told = "The merged model is in merged.\nRounding moved the logits of 8 rows by 0.000e0 at most, ";
    assert!(export.out.starts_with(told), "{}", export.out);
    let (base, with_adapter) = (loss(&place, &[]), loss(&place, &[adapter]));
    let merged = loss(&place, &["model_name_or_path=merged"]);
    assert!((merged - with_adapter).abs() < 1e-4, "{merged} merged, {with_adapter} with the adapter");
    assert!(base - with_adapter > 0.1, "{base} before, {with_adapter} after, training went {steps:?}");
    let names = |folder: &Path| tensors(&folder.join("model.safetensors")).into_keys().collect::<BTreeSet<_>>();
    assert_eq!(names(&place.path("merged")), names(&model("tiny-qwen3")));
    let modelfile = fs::read_to_string(place.path("merged/Modelfile")).unwrap();
    assert!(modelfile.starts_with("FROM .\n\nTEMPLATE \"\"\""), "{modelfile}");
    assert!(modelfile.contains("PARAMETER stop \"<|im_end|>\"\n"), "{modelfile}");
    let (from_merged, _) = chat(&place, &["model_name_or_path=merged"], "Say 1 and 1\n");
    let (from_adapter, _) = chat(&place, &[adapter], "Say 1 and 1\n");
    assert_eq!(from_merged, from_adapter);
}

#[test]
fn train_ends_with_what_was_learnt_and_how_to_go_on() {
    let more = "val_size: 6\neval_on_start: true\neval_strategy: steps\neval_steps: 10\nmax_steps: 20\nlearning_rate: 0.02\n\
                sample_prompts: [Say 1 and 1]\n";
    let out = trainable(more).run(&["train", "train.yaml"]).ok().out;
    let (_, after) = out.split_once("Loss on rows that were held out: ").unwrap_or_else(|| panic!("{out}"));
    let number = |text: &str| text.trim().parse::<f64>().unwrap();
    let (before, rest) = after.split_once(" before, ").unwrap();
    let (after, rest) = rest.split_once(" after.").unwrap();
    assert!(number(after) < number(before), "{out}");
    assert!(rest.contains("  Say 1 and 1\n    before: ") && rest.contains("\n    after:  "), "{out}");
    let end = "Everything is in output. To go on:\n  ferrotune chat train.yaml adapter_name_or_path=output\n  ferrotune export \
               train.yaml adapter_name_or_path=output export_dir=output-merged\n";
    assert!(out.contains(end), "{out}");
}

#[test]
fn the_program_has_llama_factorys_names_too() {
    let place = Place::new();
    for name in ["llamafactory-cli", "lmf"] {
        let link = place.path(name);
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_ferrotune"), &link).unwrap();
        let run = |args: &[&str]| place.read(place.command_as(&link, args).output().unwrap()).ok();
        assert_eq!(run(&["version"]).out, concat!("ferrotune ", env!("CARGO_PKG_VERSION"), "\n"));
        assert!(run(&["--help"]).out.contains(&format!("Usage: {name} <COMMAND>")));
    }
}

#[test]
fn help_version_and_the_machine() {
    let place = Place::new();
    let help = place.run(&["--help"]).ok().out;
    for verb in ["train", "data", "chat", "export", "doctor", "env", "version", "help"] {
        assert!(help.lines().any(|line| line.trim_start().starts_with(verb)), "{verb} in {help}");
    }
    assert_eq!(place.run(&["--version"]).ok().out, place.run(&["version"]).ok().out);
    let none = place.run(&[]);
    assert_eq!(none.code, Some(2));
    assert!(none.err.contains("Usage: "), "{}", none.err);
    let unknown = place.run(&["trian"]);
    assert_eq!(unknown.code, Some(2));
    assert!(unknown.err.contains("tip: a similar subcommand exists: 'train'"), "{}", unknown.err);
}

#[test]
fn llama_factorys_other_verbs_are_answered() {
    let place = Place::new();
    let help = place.run(&["--help"]).ok().out;
    for (verb, cure) in [
        ("api", "vLLM"),
        ("webchat", "ferrotune chat"),
        ("eval", "do_eval=true"),
        ("webui", "ferrotune train recipe.yaml"),
    ] {
        assert!(!help.lines().any(|line| line.trim_start().starts_with(verb)), "{help}");
        let run = place.run(&[verb, "recipe.yaml", "--host", "0.0.0.0", "port=1"]);
        assert_eq!((run.code, run.out.as_str()), (Some(2), ""), "{verb}: {}", run.err);
        assert!(run.err.starts_with(&format!("error: `{verb}` ")) && run.err.contains(cure), "{}", run.err);
    }
}

/// `| head -1` through a shell, as users type it.
#[test]
fn head_ends_the_program_quietly() {
    let place = Place::new();
    let line = format!("set -o pipefail; {} help | head -1", env!("CARGO_BIN_EXE_ferrotune"));
    let output = Command::new("bash").args(["-c", &line]).output().unwrap();
    let run = place.read(output).ok();
    assert_eq!((run.out.lines().count(), run.err.as_str()), (1, ""));
}
