//! What a run leaves in its folders beside the curve: the best weights, the tokenizer as trained with, the cache.

use crate::common::{curve, history, model, tensors, trainable};
use std::fs;

/// More loss counts as better, so that the best evaluation is an early one.
const PERVERSE: &str = "\
max_steps: 8
val_size: 6
eval_strategy: steps
eval_steps: 2
save_steps: 2
load_best_model_at_end: true
save_total_limit: 4
metric_for_best_model: eval_loss
greater_is_better: true
";

#[test]
fn the_best_checkpoint_comes_back_with_and_without_optimiser_states() {
    let mut adapters = Vec::new();
    for only_model in ["save_only_model: false\n", "save_only_model: true\n"] {
        let place = trainable(&format!("{PERVERSE}{only_model}"));
        place.run(&["train", "train.yaml"]).ok();
        let state = place.json("output/trainer_state.json");
        let losses = curve(&state, "eval_loss");
        let best = state["best_metric"].as_f64().unwrap();
        assert!(losses[..4].iter().all(|loss| *loss <= best) && losses[3] < best, "{losses:?}");
        assert_eq!(losses.last(), Some(&best), "the last evaluation is of the best checkpoint: {losses:?}");
        let checkpoint = place.path("output").join(format!("checkpoint-{}", state["best_global_step"]));
        let of = |folder: &std::path::Path| tensors(&folder.join("adapter_model.safetensors"));
        assert_eq!(of(&checkpoint), of(&place.path("output")));
        adapters.push(of(&place.path("output")));
    }
    assert_eq!(adapters[0], adapters[1]);
}

#[test]
fn new_tokens_get_rows_that_train_and_are_saved_with_the_adapter() {
    let tokens: Vec<String> = (0..40).map(|i| format!("<|new_{i}|>")).collect();
    let grown = format!("max_steps: 3\nresize_vocab: true\nadd_special_tokens: \"{}\"\n", tokens.join(","));
    let place = trainable(&grown);
    let run = place.run(&["train", "train.yaml"]).ok();
    assert!(run.err.contains("the embedding grows from 1024 to 1088 rows"), "{}", run.err);
    let config = place.json("output/adapter_config.json");
    assert_eq!(config["modules_to_save"], serde_json::json!(["embed_tokens", "lm_head"]));
    let adapter = tensors(&place.path("output/adapter_model.safetensors"));
    for name in ["base_model.model.model.embed_tokens.weight", "base_model.model.lm_head.weight"] {
        assert_eq!(adapter[name].len(), 1088 * 64, "{name}");
    }
    assert!(fs::read_to_string(place.path("output/tokenizer.json")).unwrap().contains("<|new_39|>"));
    assert!(run.out.contains("vLLM 0.32.0 can't serve it"), "{}", run.out);
    assert!(run.out.contains("vLLM only supports modules_to_save being None"), "{}", run.out);
    let export = ["export", "train.yaml", "adapter_name_or_path=output", "export_dir=merged", "output_dir=unused"]
        .map(String::from);
    place.run(&export.each_ref().map(String::as_str)).ok();
    assert_eq!(place.json("merged/config.json")["vocab_size"], 1088);
    assert_eq!(tensors(&place.path("merged/model.safetensors"))["model.embed_tokens.weight"].len(), 1088 * 64);
}

#[test]
fn a_data_folder_that_cannot_be_written_is_cached_elsewhere() {
    let place = trainable("max_steps: 1\n");
    // A file where the cache's folder would be: it can't be made, even for root.
    place.write("data/.ferrotune-cache", "");
    let run = place.run(&["train", "train.yaml", "tokenized_path=null"]).ok();
    assert!(
        run.err.contains("data can't be written: encoded rows are cached in HERE/.cache/ferrotune/rows"),
        "{}",
        run.err
    );
    assert!(fs::read_dir(place.path(".cache/ferrotune/rows")).unwrap().count() > 0);
}

/// Evaluates three ways: as the run ended, from its adapter under a recipe that knows nothing of how it was made, and merged.
fn same_loss_three_times(more: &str) {
    let evaluated = "max_steps: 4\nval_size: 6\neval_strategy: steps\neval_steps: 4\nlearning_rate: 0.02\n";
    let place = trainable(&format!("{evaluated}{more}"));
    place.run(&["train", "train.yaml"]).ok();
    let ended = *curve(&place.json("output/trainer_state.json"), "eval_loss").last().unwrap();
    let plain = ["do_train=false", "do_eval=true", "use_dora=false", "use_rslora=false", "additional_target=null"];
    let evaluate = |from: &str, to: &str| {
        let output = format!("output_dir={to}");
        let args = [&["train", "train.yaml", from, &output][..], &plain[..]].concat();
        place.run(&args).ok();
        place.json(&format!("{to}/eval_results.json"))["eval_loss"].as_f64().unwrap()
    };
    let adapted = evaluate("adapter_name_or_path=output", "adapted");
    assert!((adapted - ended).abs() < 1e-5, "{more}: {ended} at the end, {adapted} from the adapter");
    place.run(&["export", "train.yaml", "adapter_name_or_path=output", "export_dir=merged", "output_dir=none"]).ok();
    let merged = evaluate("model_name_or_path=merged", "evaluated");
    assert!((merged - ended).abs() < 1e-4, "{more}: {ended} at the end, {merged} merged");
}

#[test]
fn an_adapter_means_the_same_wherever_it_is_read() {
    let tied = format!("model_name_or_path: {}\ntemplate: llama3\n", model("tiny-llama-rope3").display());
    for kind in ["use_dora: true\n", "use_rslora: true\n", "lora_target: q_proj,down_proj\n"] {
        same_loss_three_times(kind);
    }
    for target in ["embed_tokens", "lm_head", "embed_tokens,lm_head", "norm"] {
        same_loss_three_times(&format!("{tied}additional_target: {target}\n"));
    }
}

#[test]
fn an_adapter_goes_on_with_its_own_settings_and_loses_nothing() {
    let place = trainable("max_steps: 2\nlora_rank: 6\nuse_rslora: true\nadditional_target: embed_tokens\n");
    place.run(&["train", "train.yaml"]).ok();
    let again = [
        "adapter_name_or_path=output",
        "output_dir=second",
        "lora_rank=3",
        "use_rslora=false",
        "additional_target=null",
    ];
    let run = place.run(&[&["train", "train.yaml"][..], &again[..]].concat()).ok();
    assert!(run.err.contains("with its own settings, not the recipe's lora_rank"), "{}", run.err);
    let [first, second] = ["output", "second"].map(|folder| place.json(&format!("{folder}/adapter_config.json")));
    assert_eq!(first, second);
    let names = |folder: &str| -> Vec<String> {
        tensors(&place.path(folder).join("adapter_model.safetensors")).into_keys().collect()
    };
    assert_eq!(names("output"), names("second"));
}

#[test]
fn shares_of_a_run_whose_length_the_data_decides() {
    let shares = "num_train_epochs: 2.5\nval_size: 6\neval_strategy: steps\neval_steps: 0.1\nlogging_steps: 0.2\n";
    let place = trainable(&format!("{shares}save_steps: 0.3\nmax_steps: -1\n"));
    place.run(&["train", "train.yaml"]).ok();
    let state = place.json("output/trainer_state.json");
    // 24 rows, 4 a step, two and a half times.
    let numbers = ["max_steps", "eval_steps", "logging_steps", "save_steps"].map(|key| state[key].as_u64().unwrap());
    assert_eq!(numbers, [15, 2, 3, 5]);
    let steps = |key: &str| history(&state, key).iter().map(|row| row["step"].as_u64().unwrap()).collect::<Vec<_>>();
    assert_eq!(steps("loss"), [3, 6, 9, 12, 15]);
    assert_eq!(steps("eval_loss"), [2, 4, 6, 8, 10, 12, 14, 15]);
    for step in [5, 10, 15] {
        assert!(place.path(&format!("output/checkpoint-{step}/DONE")).exists(), "{step}");
    }
    let run = place.run(&["train", "train.yaml", "load_best_model_at_end=true", "output_dir=best"]);
    assert_eq!(
        run.error(),
        "error: load_best_model_at_end needs save_steps to be a multiple of eval_steps; of 15 steps their shares are 5 and 2 \
         steps: write `eval_steps: 2` and a multiple of it as save_steps, or the same share for both\n --> command line:1:24\n  \
         |\n1 | load_best_model_at_end=true output_dir=best\n  |                        ^^^^"
    );
}
