//! Rows answered: after a training, by themselves, and on several ranks; and rows of several answers, looked at.

use crate::common::{Place, trainable};
use crate::many::run;
use serde_json::{Value, json};
use std::fs;

const ANSWERED: &str = "val_size: 7\npredict_with_generate: true\ndo_predict: true\nmax_new_tokens: 9\ndo_sample: false\n\
                        per_device_eval_batch_size: 3\n";

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

fn answers(place: &Place, output: &str) -> Vec<Value> {
    let text = fs::read_to_string(place.path(&format!("{output}/generated_predictions.jsonl"))).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn rows_are_answered_by_the_model_that_a_training_ends_with() {
    let steps = "max_steps: 4\neval_strategy: steps\neval_steps: 2\nsave_steps: 2\nlearning_rate: 0.02\n\
                 load_best_model_at_end: true\nmetric_for_best_model: rouge-l\n";
    let place = trainable(&format!("{ANSWERED}{steps}"));
    let told = place.run(&["train", "train.yaml"]).ok();
    assert!(told.out.contains("validation: BLEU-4 ") && told.out.contains(" over 7 rows in "), "{}", told.out);
    let measured = ["bleu-4", "rouge-1", "rouge-2", "rouge-l", "runtime", "samples_per_second", "steps_per_second"];
    let names = |split: &str| measured.map(|name| format!("{split}_{name}")).to_vec();
    let evaluated = place.json("output/eval_results.json");
    assert_eq!(keys(&evaluated), [&["epoch".to_owned()][..], &names("eval")].concat());
    let predicted = place.json("output/predict_results.json");
    assert_eq!(keys(&predicted), names("predict"));
    let all = place.json("output/all_results.json");
    for (name, number) in predicted.as_object().unwrap().iter().chain(evaluated.as_object().unwrap()) {
        assert_eq!(all[name], *number, "{name}");
    }
    // The best checkpoint is gone back to, evaluated, and answers.
    for name in &measured[..4] {
        assert_eq!(predicted[format!("predict_{name}")], evaluated[format!("eval_{name}")], "{name}");
    }
    let after = answers(&place, "output");
    assert_eq!(after.len(), 7);
    for answer in &after {
        assert_eq!(keys(answer), ["prompt", "predict", "label"]);
        let (prompt, label) = (answer["prompt"].as_str().unwrap(), answer["label"].as_str().unwrap());
        assert!(
            prompt.starts_with("<|im_start|>user\nSay ") && prompt.ends_with("<|im_start|>assistant\n"),
            "{prompt}"
        );
        assert!(label.contains("It is ") && !label.contains("<|im_end|>"), "{label}");
    }
    let state = place.json("output/trainer_state.json");
    assert!(state["best_metric"].as_f64().is_some(), "{state}");

    // The adapter answers as the run did that made it.
    let alone = ["train", "train.yaml", "do_train=false", "adapter_name_or_path=output", "output_dir=alone"];
    let plain = ["eval_strategy=no", "load_best_model_at_end=false"];
    let told = place.run(&[&alone[..], &plain].concat()).ok();
    assert!(told.out.contains("The answers are in alone/generated_predictions.jsonl."), "{}", told.out);
    assert_eq!(answers(&place, "alone"), after);
    let alone = place.json("alone/predict_results.json");
    assert!(keys(&alone).contains(&"predict_model_preparation_time") && !keys(&alone).contains(&"epoch"), "{alone}");

    // A finished run is not begun again, and its base model doesn't answer for it.
    let again = place.run(&["train", "train.yaml"]).ok();
    assert!(again.err.contains("this run is finished"), "{}", again.err);
    assert_eq!(answers(&place, "output"), after);
}

#[test]
fn rows_are_answered_once_on_any_number_of_ranks() {
    let alone = format!("{ANSWERED}do_train: false\nskip_special_tokens: false\ndo_sample: true\n");
    let one = trainable(&alone);
    one.run(&["train", "train.yaml"]).ok();
    let want = answers(&one, "output");
    assert!(want.iter().any(|answer| answer["label"].as_str().unwrap().ends_with("<|im_end|>\n")), "{want:?}");
    for (ranks, split) in [(3, "strategy=replicate"), (2, "strategy=zero3"), (2, "strategy=pipeline")] {
        let place = trainable(&alone);
        let told = run(&place, ranks, &[split]);
        assert_eq!(answers(&place, "output"), want, "{split} on {ranks}");
        assert!(told[1..].iter().all(|told| told.out.is_empty()), "the first rank speaks for all");
    }
}

#[test]
fn rows_named_as_dataset_are_answered_and_a_wrong_wish_is_named() {
    let place = trainable(
        "do_train: false\npredict_with_generate: true\ndo_predict: true\nmax_new_tokens: 2\nmax_samples: 3\n",
    );
    let told = place.run(&["train", "train.yaml"]).ok();
    assert!(told.err.contains("nothing is trained: the rows of `dataset` are answered"), "{}", told.err);
    assert_eq!(answers(&place, "output").len(), 3);
    let shown = place.run(&["data", "train.yaml"]).ok();
    assert!(shown.out.contains("Say 0 and 0<|im_end|>"), "{}", shown.out);
    let refused = place.run(&["train", "train.yaml", "num_beams=4"]);
    assert!(refused.code == Some(2) && refused.error().contains("`num_beams` is not supported"), "{}", refused.err);
}

#[test]
fn accuracy_is_the_mean_over_rows_and_the_loss_stays() {
    let lines = "do_train: false\ndo_eval: true\nval_size: 7\nper_device_eval_batch_size: 2\n";
    let place = trainable(lines);
    place.run(&["train", "train.yaml"]).ok();
    let loss = place.json("output/eval_results.json")["eval_loss"].as_f64().unwrap();
    let of = |place: &Place| {
        let found = place.json("output/eval_results.json");
        (found["eval_loss"].as_f64().unwrap(), found["eval_accuracy"].as_f64().unwrap())
    };
    let place = trainable(&format!("{lines}compute_accuracy: true\n"));
    place.run(&["train", "train.yaml"]).ok();
    let (same, accuracy) = of(&place);
    assert!((same - loss).abs() < 1e-6 * loss && (0.0..=1.0).contains(&accuracy), "{same} {loss} {accuracy}");
    for (ranks, split) in [(2, "strategy=zero3"), (2, "strategy=pipeline")] {
        let place = trainable(&format!("{lines}compute_accuracy: true\n"));
        run(&place, ranks, &[split]);
        let (loss, found) = of(&place);
        assert!((loss - same).abs() < 1e-5 * same && (found - accuracy).abs() < 1e-9, "{split}: {loss} {found}");
    }
    // Row by row: with one row a set, the accuracies are those of the rows.
    let each: Vec<f64> = (0..3)
        .map(|row| {
            let place = trainable(&format!("{lines}compute_accuracy: true\nval_size: 0\neval_dataset: d\n"));
            let rows = crate::common::rows(3);
            place.write("data/d.json", json!([rows[row]]).to_string());
            place.run(&["train", "train.yaml"]).ok();
            of(&place).1
        })
        .collect();
    let place = trainable(&format!("{lines}compute_accuracy: true\nval_size: 0\neval_dataset: d\nmax_samples: 3\n"));
    place.run(&["train", "train.yaml"]).ok();
    assert!((of(&place).1 - each.iter().sum::<f64>() / 3.0).abs() < 1e-9, "{each:?}");
}

/// What `data` makes of rows that a registry's entry describes.
fn shown(entry: &Value, rows: &Value, stage: &str, more: &[&str]) -> crate::common::Run {
    let place = trainable("");
    let mut entry = entry.clone();
    entry["file_name"] = json!("d.json");
    place.write("data/dataset_info.json", json!({"d": entry}).to_string());
    place.write("data/d.json", rows.to_string());
    place.run(&[&["data", "train.yaml", &format!("stage={stage}")][..], more].concat())
}

#[test]
fn rows_of_two_answers_and_of_judged_ones_are_shown_and_not_trained() {
    let turns = json!([{"from": "human", "value": "hi"}]);
    let answer = |text: &str| json!({"from": "gpt", "value": text});
    let pairs = json!({"formatting": "sharegpt", "ranking": true,
        "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}});
    let rows = json!([
        {"conversations": turns, "chosen": answer("good"), "rejected": answer("bad")},
        {"conversations": turns, "chosen": "good", "rejected": answer("bad")},
        {"conversations": turns, "chosen": {"from": "human", "value": "x"}, "rejected": answer("bad")},
        {"conversations": [turns[0], answer("said")], "chosen": answer("good"), "rejected": answer("bad")},
    ]);
    let told = shown(&pairs, &rows, "dpo", &[]).ok();
    for part in ["--- row 0, chosen: ", "--- row 0, rejected: ", "good<|im_end|>", "bad<|im_end|>"] {
        assert!(told.out.contains(part), "{part}: {}", told.out);
    }
    for fault in ["`chosen` is text, not a turn", "`chosen` is by `human`, and no answer", "the last turn is an answer"]
    {
        assert!(told.out.contains(fault), "{fault}: {}", told.out);
    }
    let refused = shown(&pairs, &rows, "sft", &[]);
    assert!(refused.error().contains("has `ranking: true`, which stage rm or dpo trains on"), "{}", refused.err);
    let lacking = shown(&json!({"ranking": true, "columns": {"prompt": "p", "chosen": "c"}}), &rows, "rm", &[]);
    assert!(lacking.error().contains("has no `columns.rejected`, which stage rm or dpo needs"), "{}", lacking.err);

    let judged = json!({"columns": {"prompt": "q", "response": "a", "kto_tag": "ok"}});
    let rows = json!([{"q": "1", "a": "one", "ok": true}, {"q": "2", "a": "two", "ok": "yes"}, {"q": "3", "a": "three", "ok": false},
        {"q": "4", "a": "", "ok": true}]);
    let told = shown(&judged, &rows, "kto", &["--format", "jsonl"]).ok();
    let lines: Vec<Value> = told.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.iter().map(|line| line["kto_tags"].as_bool().unwrap()).collect::<Vec<_>>(), [true, false, false]);
    let ends =
        |line: &Value, key: &str, text: &str| line[key].as_str().unwrap().ends_with(&format!("{text}<|im_end|>\n"));
    assert!(
        ends(&lines[1], "text", "three") && ends(&lines[1], "kl_text", "one") && ends(&lines[0], "kl_text", "\n\n"),
        "{lines:?}"
    );
    let told = shown(&judged, &rows, "kto", &[]).ok();
    assert!(
        told.out.contains("1 dropped: no tag\n")
            && told.out.contains("`ok` is text, neither true nor false")
            && told.out.contains("--- row 1, not wanted: "),
        "{}",
        told.out
    );

    let place = trainable("stage: dpo\n");
    let refused = place.run(&["train", "train.yaml"]);
    assert!(refused.code == Some(2) && refused.error().contains("`stage: dpo` is not trained"), "{}", refused.err);
}
