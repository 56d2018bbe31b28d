//! What is said before a run: `plan`, `check`, and prompts beside the server's.

use crate::common::{Place, fixtures, read_json, rows, trainable};
use serde_json::{Value, json};

const LORA: &str = "\
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
dataset: d
template: qwen3
cutoff_len: 2048
output_dir: output
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
bf16: true
gradient_checkpointing: auto
";

/// A recipe for Qwen3-32B with so many blocks, of which there is a configuration alone.
fn planned(blocks: usize, more: &str) -> Place {
    let place = Place::new();
    let mut config = read_json(&fixtures().join("plan/Qwen3-32B/config.json"));
    config["num_hidden_layers"] = json!(blocks);
    place.write("model/config.json", config.to_string());
    place.write("r.yaml", format!("model_name_or_path: model\n{LORA}{more}"));
    place
}

fn plan(place: &Place, args: &[&str]) -> (Option<i32>, Value) {
    let run = place.run(&[&["plan", "r.yaml", "--format", "json"], args].concat());
    (run.code, serde_json::from_str(&run.out).unwrap_or_else(|error| panic!("{error}: {}{}", run.out, run.err)))
}

#[test]
fn a_plan_needs_a_configuration_alone() {
    let place = planned(64, "");
    let (code, page) = plan(&place, &["--nodes", "1", "--gpus", "2", "--gpu", "l20"]);
    assert_eq!((code, &page["fits"]), (Some(0), &json!(true)));
    assert_eq!(page["trainable"], 67_108_864);
    assert!(page["rows"]["assumed"].as_str().unwrap().contains("tokenizer"), "{}", page["rows"]);
    let ways = page["ways"].as_array().unwrap();
    let steps: Vec<f64> =
        ways.iter().take_while(|way| way["fits"] == true).map(|way| way["step"].as_f64().unwrap()).collect();
    assert!(steps.len() > 1 && steps.is_sorted(), "the best first: {steps:?}");
    // By kind, all that is planned, and nothing twice.
    for way in ways {
        let kinds: u64 = way["by_kind"].as_object().unwrap().values().map(|bytes| bytes.as_u64().unwrap()).sum();
        assert_eq!(way["memory"].as_u64(), Some(kinds), "{way}");
    }
    // The weights alone are more than a card.
    let whole = ways.iter().find(|way| way["strategy"] == "replicate").unwrap();
    assert!(whole["fits"] == false && whole["memory"].as_u64().unwrap() > 61 << 30, "{whole}");
}

#[test]
fn what_does_not_fit_is_told_with_changes_that_do() {
    let place = planned(24, "deepspeed: examples/deepspeed/ds_z2_config.json\n");
    let (code, page) = plan(&place, &["--gpus", "2", "--gpu", "A10"]);
    assert_eq!((code, &page["fits"]), (Some(1), &json!(false)));
    assert_eq!(page["meant"]["strategy"], "zero2");
    let cures = page["cures"].as_array().unwrap();
    assert!(cures.iter().all(|cure| cure["way"]["fits"] == true), "{cures:?}");
    let changes: Vec<&str> = cures.iter().map(|cure| cure["change"].as_str().unwrap()).collect();
    assert!(changes.iter().any(|change| change.starts_with("strategy: auto")), "{changes:?}");
    // What is named is what it says: the recipe with the change fits.
    let better = planned(24, "");
    assert_eq!(plan(&better, &["--gpus", "2", "--gpu", "A10"]).0, Some(0));
    let text = place.run(&["plan", "r.yaml", "--gpus", "2", "--gpu", "A10"]);
    assert!(
        text.out.contains("DOESN'T FIT: ") && text.out.contains("one of these changes makes it fit"),
        "{}",
        text.out
    );
}

#[test]
fn places_that_are_not_there_are_refused() {
    let place = planned(4, "");
    for (args, told) in [
        (&["--gpu", "L21"][..], "--gpu L21 is no card that is known; those are A10"),
        (&["--gpu", "T4"], "this card has no bf16"),
        (&["--gpu", "L20", "--nodes", "0"], "write numbers from 1 on"),
        (&["--gpu", "L20", "--nodes", "1000000000000", "--gpus", "1000000000000"], "write numbers from 1 on"),
        (&["--gpu", "L20", "--gpus", "65"], "no machine has more than 64"),
        (&["--gpu", "L20", "--nodes", "2", "--network", "-1"], "is no speed of a network card"),
        (&["--gpu", "L20", "--gpus", "6", "strategy=hybrid", "shard_size=4"], "must divide the number of ranks"),
    ] {
        let run = place.run(&[&["plan", "r.yaml"], args].concat());
        assert!(run.code != Some(0) && run.error().contains(told), "{args:?}: {}", run.err);
    }
}

#[test]
fn a_template_without_reasoning_on_a_hybrid_is_caught_with_its_cure() {
    let place = trainable("template: qwen3_nothink\n");
    let run = place.run(&["check", "train.yaml"]).ok();
    assert!(
        run.out.contains("30 rows beside the model's own chat template: 0 identical, 30 differ in the thinking block"),
        "{}",
        run.out
    );
    assert!(run.out.contains("train.yaml:") && run.out.contains("take its reasoning template"), "{}", run.out);
    // What is said of some of the rows isn't said of all.
    place.write("data/d.json", rows(1200).to_string());
    let some = place.run(&["check", "train.yaml"]).ok();
    assert!(some.out.contains("1,000 of 1,200 rows beside the model's own chat template"), "{}", some.out);
    let cured = trainable("template: qwen3\n").run(&["check", "train.yaml"]).ok();
    assert!(cured.out.contains("30 identical"), "{}", cured.out);
    // Token by token.
    let shown = place.run(&["data", "train.yaml", "--rows", "1"]).ok();
    assert!(
        shown.out.contains("row 0 differs from the model's own chat template in the thinking block"),
        "{}",
        shown.out
    );
    assert!(shown.out.contains("+ \"<think>\""), "{}", shown.out);
}

#[test]
fn a_run_leaves_how_its_model_is_to_be_asked() {
    let place = trainable("template: qwen3\nenable_thinking: false\nmax_steps: 1\n");
    place.run(&["train", "train.yaml"]).ok();
    let serving = read_json(&place.path("output/serving.json"));
    assert_eq!(serving["chat_template_kwargs"], json!({"enable_thinking": false}));
    assert_eq!((&serving["chat_template"], &serving["prompts_as_in_training"]), (&Value::Null, &json!(30)));
}

#[test]
fn everything_wrong_is_told_at_once() {
    let place = trainable("dataset: nowhere\nlora_target: no_such_proj\n");
    let run = place.run(&["check", "train.yaml"]);
    assert_eq!(run.code, Some(1), "{}", run.out);
    assert!(run.out.contains("nowhere"), "{}", run.out);
    let place = trainable("additional_target: embed_tokens\nlora_rank: 24\ncutoff_len: 30\n");
    let run = place.run(&["check", "train.yaml", "--format", "json"]);
    let page: Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!((run.code, &page["sound"]), (Some(1), &json!(false)));
    let names: Vec<&str> =
        page["sections"].as_array().unwrap().iter().map(|s| s["section"].as_str().unwrap()).collect();
    assert_eq!(names, ["recipe", "data", "prompts", "plan", "adapter"]);
    let what = page.to_string();
    assert!(
        what.contains("modules_to_save") && what.contains("--max-lora-rank 32") && what.contains("cut by"),
        "{what}"
    );
}

/// The lines of a page that begin with a section's name, and what stands under it.
fn section(page: &str, name: &str) -> String {
    let from = page.lines().skip_while(|line| !line.starts_with(name));
    let below = from.enumerate().take_while(|(i, line)| *i == 0 || line.starts_with(' '));
    below.map(|(_, line)| line).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_recipe_with_errors_hides_no_fault_of_the_data() {
    let mistaken = "lerning_rate: 1\nmax_steps: many\ndataset: d, gone\n";
    let place = trainable(mistaken);
    place.write(
        "data/d.json",
        json!([{"instruction": "a", "output": "b", "system": "s"}, {"instruction": "c"}, 7]).to_string(),
    );
    place.write(
        "data/dataset_info.json",
        json!({"d": {"file_name": "d.json"}, "gone": {"file_name": "gone.json"}}).to_string(),
    );
    let run = place.run(&["check", "train.yaml"]);
    assert_eq!(run.code, Some(1), "{}", run.out);
    let recipe = section(&run.out, "recipe");
    assert!(recipe.contains("unknown key `lerning_rate`") && recipe.contains("`max_steps`: expected"), "{}", run.out);
    let data = section(&run.out, "data");
    for told in [
        "d: 1 of 3 rows can be used; nothing is encoded before the errors are cured",
        "data/d.json:1 (row 2): 1 row of d left out: no answer\n    data/d.json:1 (row 2): `output` is missing",
        "data/d.json:1 (row 3): 1 row of d left out: not an object of columns\n    data/d.json:1 (row 3): found a number",
        "nothing reads `system` of d",
        "dataset `gone`: there is no data/gone.json",
    ] {
        assert!(data.contains(told), "{told}: {}", run.out);
    }
    let line = std::fs::read_to_string(place.path("train.yaml")).unwrap();
    let line = line.lines().position(|line| line == "dataset: d, gone").unwrap() + 1;
    assert!(data.contains(&format!("error: train.yaml:{line}:13: dataset `gone`")), "{}", run.out);
    // Where it isn't known which rows are meant, none are shown.
    for unknown in ["dataset: d\nds: 1\ndataset_dir: [a, b]\n", "dataset: [{a: b}]\nmax_steps: many\n"] {
        let place = trainable(unknown);
        assert_eq!(section(&place.run(&["check", "train.yaml"]).out, "data"), "", "{unknown}");
    }
    // A model that can't be had hides nothing either.
    place.write(
        "train.yaml",
        std::fs::read_to_string(place.path("train.yaml")).unwrap().replace(mistaken.trim_end(), "dataset: d"),
    );
    let run = place.run(&["check", "train.yaml", "model_name_or_path=./nowhere"]);
    assert!(section(&run.out, "model").contains("./nowhere"), "{}", run.out);
    assert!(section(&run.out, "data").contains("1 row of d left out: no answer"), "{}", run.out);
}

#[test]
fn what_is_to_train_and_is_not_there_is_told_once_with_its_line() {
    for (written, item, told) in [
        (
            "lora_target: q_proj,no_such_proj\n",
            "no_such_proj",
            "lora_target names `no_such_proj`, which this model doesn't have",
        ),
        ("finetuning_type: freeze\nfreeze_trainable_modules: mpl\n", "mpl", "freeze_trainable_modules names `mpl`"),
    ] {
        let place = trainable(written);
        let run = place.run(&["check", "train.yaml"]);
        assert_eq!((run.code, run.out.matches(told).count()), (Some(1), 1), "{}", run.out);
        let recipe = std::fs::read_to_string(place.path("train.yaml")).unwrap();
        let (number, line) = (1..).zip(recipe.lines()).filter(|(_, line)| line.contains(item)).last().unwrap();
        let at = format!("error: train.yaml:{number}:{}: {told}", line.find(item).unwrap() + 1);
        assert!(section(&run.out, "modules").contains(&at), "{at}: {}", run.out);
    }
}

/// What ends the encoding, of one dataset or by an option, hides no fault of the rows of another.
#[test]
fn what_ends_the_encoding_hides_no_fault_of_the_rows() {
    let place = trainable("dataset: d, e\neval_dataset: e\neval_strategy: steps\neval_steps: 1\n");
    place.write("data/e.json", json!([{"instruction": "a"}, {"output": ["b"]}]).to_string());
    place.write(
        "data/d.json",
        json!([{"instruction": "a", "output": "b"}, {"instruction": "c", "output": {}}]).to_string(),
    );
    let info = json!({"d": {"file_name": "d.json"}, "e": {"file_name": "e.json"}});
    place.write("data/dataset_info.json", info.to_string());
    let line = std::fs::read_to_string(place.path("train.yaml")).unwrap();
    let line = line.lines().position(|line| line == "dataset: d, e").unwrap() + 1;
    for more in [&[][..], &["cutoff_len=5"]] {
        let run = place.run(&[&["check", "train.yaml"], more].concat());
        let data = section(&run.out, "data");
        assert_eq!(run.code, Some(1), "{}", run.out);
        assert_eq!(data.contains("`cutoff_len: 5` leaves no room for a row"), !more.is_empty(), "{data}");
        assert!(
            data.contains("1 row of d left out: not text\n    data/d.json:1 (row 2): `output` is an object"),
            "{data}"
        );
        assert_eq!(data.matches("can be used:\n").count(), 1, "{data}");
        assert!(data.contains(&format!("error: train.yaml:{line}:13: not one of the 2 rows of")), "{data}");
    }
    // Each dataset of a set has its own place.
    let run = place.run(&["check", "train.yaml", "dataset=e,f"]);
    assert!(section(&run.out, "recipe").contains("dataset `f` is not in"), "{}", run.out);
    place.write(
        "data/dataset_info.json",
        json!({"d": {"file_name": "e.json"}, "e": {"file_name": "e.json"}}).to_string(),
    );
    let run = place.run(&["train", "train.yaml", "eval_dataset=null", "do_eval=false", "eval_strategy=no"]);
    for (name, column) in [("d", 10), ("e", 13)] {
        assert!(
            run.err.contains(&format!("error: not one of the 2 rows of dataset `{name}` can be used:")),
            "{}",
            run.err
        );
        assert!(run.err.contains(&format!(" --> train.yaml:{line}:{column}")), "{}", run.err);
    }
}

/// With `mask_history` earlier answers lose their reasoning, as in the model's own template: rows are compared as they train.
#[test]
fn rows_are_compared_as_they_are_trained() {
    let place = trainable("");
    let thought = "<think>\nwell\n</think>\n\nyes";
    let turns = json!([{"from": "human", "value": "a?"}, {"from": "gpt", "value": thought},
                       {"from": "human", "value": "b?"}, {"from": "gpt", "value": thought}]);
    place.write("data/d.json", json!([{"conversations": turns}]).to_string());
    place.write("data/dataset_info.json", json!({"d": {"file_name": "d.json", "formatting": "sharegpt"}}).to_string());
    let run = place.run(&["check", "train.yaml"]).ok();
    let prompts = section(&run.out, "prompts");
    assert!(prompts.contains("1 differ in the thinking block"), "{prompts}");
    assert!(prompts.contains("set `mask_history: true`") && !prompts.contains("qwen3_nothink"), "{prompts}");
    let run = place.run(&["check", "train.yaml", "mask_history=true"]).ok();
    let prompts = section(&run.out, "prompts");
    assert!(prompts.contains("1 identical") && prompts.contains("as it is writes 1 of 1 prompts"), "{prompts}");
}

/// A recipe that trains nothing writes no adapter.
#[test]
fn without_training_there_is_no_adapter_to_look_at() {
    let place = trainable("");
    let predict = ["do_train=false", "do_predict=true", "predict_with_generate=true", "eval_dataset=d", "dataset=null"];
    let run = place.run(&[&["check", "train.yaml"], &predict[..]].concat()).ok();
    assert_eq!(section(&run.out, "adapter"), "", "{}", run.out);
}
