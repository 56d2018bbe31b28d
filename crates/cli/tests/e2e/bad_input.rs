//! What users get wrong: each ends with a message that says what, where and how to cure it, and never with a panic.

use crate::common::{Place, Run, fixtures, model, trainable};
use serde_json::{Value, json};
use std::fs;

/// Fails the test if a message shows that a program wrote it for its programmers.
fn for_people(text: &str) {
    for trace in ["panicked", "RUST_BACKTRACE", "Some(", "None", "Err(", "Ok(", "::", " { ", "[(", "unwrap"] {
        assert!(!text.contains(trace), "`{trace}` in {text}");
    }
}

/// Trains and wants this error with this exit code.
#[track_caller]
fn fails(place: &Place, options: &[&str], code: i32, error: &str) {
    let run = train(place, options);
    assert_eq!((run.error(), run.code), (error, Some(code)), "{}", run.err);
}

/// Trains and wants this error with its place, which is that of `item` among the options.
#[track_caller]
fn fails_at(place: &Place, options: &[&str], item: &str, error: &str) {
    fails(place, options, 2, &at(options, item, error));
}

/// An error as it is shown with its place on the command line.
fn at(options: &[&str], item: &str, error: &str) -> String {
    let line = [&["max_steps=2"], options].concat().join(" ");
    let column = line.rfind(item).unwrap();
    let caret = " ".repeat(column) + &"^".repeat(item.len());
    format!("{error}\n --> command line:1:{}\n  |\n1 | {line}\n  | {caret}", column + 1)
}

fn train(place: &Place, options: &[&str]) -> Run {
    let run = place.run(&[&["train", "train.yaml", "max_steps=2"], options].concat());
    for_people(&run.err);
    run
}

/// A place whose only dataset is these bytes.
fn with_data(file: &str, bytes: impl AsRef<[u8]>) -> Place {
    let place = trainable("");
    place.write("data/dataset_info.json", json!({"d": {"file_name": file}}).to_string());
    place.write(&format!("data/{file}"), bytes);
    place
}

/// A place with a model of its own, to be broken.
fn with_model() -> Place {
    let place = trainable("model_name_or_path: model\n");
    place.copy(&model("tiny-qwen3"), "model");
    place
}

fn edit_config(place: &Place, key: &str, value: Value) {
    let mut config = place.json("model/config.json");
    config[key] = value;
    place.write("model/config.json", config.to_string());
}

#[test]
fn malformed_yaml() {
    let place = Place::new();
    place.write("train.yaml", "stage: [sft\ndo_train: true\n");
    let error = "error: not valid YAML: illegal placement of ':' indicator\n --> train.yaml:2:9\n  |\n2 | do_train: true\n  |         ^";
    fails(&place, &[], 2, error);
}

#[test]
fn wrong_types_and_unknown_keys_all_at_once() {
    let place = Place::new();
    place.write("train.yaml", "max_steps: many\nbf16: 3\nlerning_rate: 1\ndataset: d\nmodel_name_or_path: m\n");
    let run = place.run(&["train", "train.yaml"]);
    assert_eq!(run.code, Some(2));
    assert_eq!(
        run.error(),
        "error: `max_steps`: expected a whole number, found 'many'\n --> train.yaml:1:12\n  |\n1 | max_steps: many\n  |            \
         ^^^^\n  = help: write, for example, `max_steps: -1`\n\nerror: `bf16`: expected true or false, found '3'\n --> \
         train.yaml:2:7\n  |\n2 | bf16: 3\n  |       ^\n  = help: write, for example, `bf16: false`\n\nerror: unknown key \
         `lerning_rate`\n --> train.yaml:3:1\n  |\n3 | lerning_rate: 1\n  | ^^^^^^^^^^^^\n  = help: did you mean \
         `learning_rate`?"
    );
}

#[test]
fn missing_files() {
    let place = trainable("");
    let run = place.run(&["train", "gone.yaml"]);
    assert_eq!(run.code, Some(2));
    assert_eq!(
        run.error(),
        "error: cannot read the recipe: No such file or directory (os error 2)\n --> gone.yaml\n  = help: give the path of a \
         .yaml or .json file, or `key=value` pairs alone"
    );
    let models = "smollm2-135m-instruct, smollm2-360m-instruct, smollm2-1.7b-instruct, qwen2.5-0.5b-instruct, \
                  qwen2.5-7b-instruct, qwen3-0.6b, qwen3-1.7b, qwen3-4b, qwen3-8b, qwen3-32b";
    let error = format!(
        "error: `./gone`: no such file or folder (looked at HERE/gone), and it cannot be a hub id, which reads `name` or \
         `organisation/name`; give a folder, a .gguf file, a hub id, or one of: {models}"
    );
    fails_at(&place, &["model_name_or_path=./gone"], "./gone", &error);
    let error = "error: gone has no adapter_config.json; expected the folder of a PEFT adapter";
    fails_at(&place, &["adapter_name_or_path=gone"], "gone", error);
    fs::remove_file(place.path("data/d.json")).unwrap();
    let error = "error: dataset `d`: there is no data/d.json; `file_name` is relative to `dataset_dir`";
    fails(&place, &["dataset=d"], 1, &at(&["dataset=d"], "d", error));
    fs::remove_file(place.path("data/dataset_info.json")).unwrap();
    let error = "error: there is no data/dataset_info.json; it maps the names in `dataset` to files, for example {\"my_data\": \
                 {\"file_name\": \"my_data.json\"}}; `dataset_dir` says in which folder it lies";
    let run = place.run(&["train", "train.yaml"]);
    assert!(run.error().starts_with(error) && run.error().contains("--> train.yaml:"), "{}", run.err);
    assert_eq!(run.code, Some(2));
}

#[test]
fn an_empty_data_set() {
    for (file, bytes) in [("e.json", "[]"), ("e.jsonl", "")] {
        let error = format!("error: dataset `d` is empty: data/{file} holds no rows");
        fails(&with_data(file, bytes), &["dataset=d"], 1, &at(&["dataset=d"], "d", &error));
    }
}

#[test]
fn several_data_sets_that_cannot_be_read_keep_their_places() {
    let place = trainable("dataset: a, d, b\neval_dataset: c\n");
    let files = ["a", "b", "c", "d"].map(|name| (name.to_owned(), json!({"file_name": format!("{name}.json")})));
    place.write("data/dataset_info.json", Value::Object(files.into_iter().collect()).to_string());
    place.write("data/b.json", b"\xff\xfe{\0}\0");
    place.write("data/c.json", "[]");
    let run = place.run(&["train", "train.yaml"]);
    assert_eq!(run.code, Some(1));
    let line = fs::read_to_string(place.path("train.yaml")).unwrap();
    let line = line.lines().position(|line| line.starts_with("dataset: ")).unwrap() + 1;
    for (told, at) in [
        ("error: dataset `a`: there is no data/a.json", format!("--> train.yaml:{line}:10")),
        ("error: data/b.json: this is UTF-16 text; save it as UTF-8", format!("--> train.yaml:{line}:16")),
        ("error: dataset `c` is empty: data/c.json holds no rows", format!("--> train.yaml:{}:15", line + 1)),
    ] {
        let from = run.err.find(told).unwrap_or_else(|| panic!("{told}: {}", run.err));
        assert!(run.err[from..].lines().nth(1).unwrap().trim() == at, "{at}: {}", run.err);
    }
}

#[test]
fn rows_of_the_wrong_shape() {
    let rows =
        json!([{"instruction": "a", "output": "b"}, 7, {"instruction": "c"}, {"instruction": [1], "output": {"a": 1}}]);
    let place = with_data("d.json", rows.to_string());
    let told = train(&place, &[]).ok().err;
    let report = "\
dataset d: 4 rows in data/d.json, 4 used, 1 kept, 3 dropped
  1 dropped: not an object of columns
    data/d.json:1 (row 2): found a number
  1 dropped: no answer
    data/d.json:1 (row 3): `output` is missing
  1 dropped: not text
    data/d.json:1 (row 4): `instruction` is a list
";
    assert!(told.contains(report), "{told}");
    let error = "error: data/d.json:1 (row 2): not an object of columns: found a number; `on_bad_row: report` leaves such rows \
                 out and goes on";
    let more = ["on_bad_row=error", "output_dir=other", "dataset=d"];
    fails(&place, &more, 1, &at(&more, "d", error));
    let error = "error: not one of the 1 rows of the training set can be used:\n  1: no answer: `output` is missing, first at \
                 data/d.json:1\n  the rows of `d` have the columns `question`, `reply`";
    let error = at(&["dataset=d"], "d", error);
    fails(&with_data("d.json", "[{\"question\": \"a\", \"reply\": \"b\"}]"), &["dataset=d"], 1, &error);
}

#[test]
fn broken_json_and_invalid_utf8() {
    let place =
        with_data("d.jsonl", b"{\"instruction\": \"a\", \"output\": \"b\"}\n{\"instruction\": \"\xff\"}\n{\"instru\n");
    let told = train(&place, &[]).ok().err;
    assert!(told.contains("  1 dropped: invalid UTF-8\n    data/d.jsonl:2: byte 53 of the file\n"), "{told}");
    assert!(told.contains("  1 dropped: broken JSON\n    data/d.jsonl:3: "), "{told}");
    let error = "error: not one of the 1 rows of the training set can be used:\n  1: invalid UTF-8: byte 17 of the file, first at \
                 data/d.jsonl:1";
    let error = at(&["dataset=d"], "d", error);
    fails(&with_data("d.jsonl", b"{\"instruction\": \"\xff\"}\n"), &["dataset=d"], 1, &error);
    let error = at(&["dataset=d"], "d", "error: data/d.jsonl: this is UTF-16 text; save it as UTF-8");
    fails(&with_data("d.jsonl", b"\xff\xfe{\0}\0\n\0"), &["dataset=d"], 1, &error);
}

#[test]
fn an_enormous_row() {
    let row = json!([{"instruction": "word ".repeat(400_000), "output": "b"}, {"instruction": "a", "output": "b"}]);
    let told = train(&with_data("d.json", row.to_string()), &["cutoff_len=64"]).ok().err;
    assert!(told.contains("cutoff_len cut 1 rows (50.0 %) by "), "{told}");
}

#[test]
fn unknown_names() {
    let place = trainable("");
    let both = "\
error: there is no template `qwen33`; did you mean `qwen3`?; leave `template` out to use the model's own chat template
 --> command line:1:22
  |
1 | max_steps=2 template=qwen33 dataset=dd
  |                      ^^^^^^

error: dataset `dd` is not in data/dataset_info.json; did you mean `d`?
 --> command line:1:37
  |
1 | max_steps=2 template=qwen33 dataset=dd
  |                                     ^^";
    fails(&place, &["template=qwen33", "dataset=dd"], 2, both);
}

#[test]
fn names_that_the_model_does_not_have_are_told_all_at_once() {
    let place = trainable("lora_target:\n- q_proj\n- c_attn\n");
    let linears = "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj";
    let modules = "down_proj, embed_tokens, gate_proj, input_layernorm, k_norm, k_proj, lm_head, norm, o_proj, \
                   post_attention_layernorm, q_norm, q_proj, up_proj, v_proj";
    let options = ["additional_target=norm,wte,ln_f"];
    let missing = |item| {
        let error = format!(
            "error: additional_target names `{item}`, which this model doesn't have; its modules are {modules}"
        );
        at(&options, item, &error)
    };
    let target = format!("error: lora_target names `c_attn`, which this model doesn't have; its modules are {linears}");
    let run = train(&place, &options);
    let told: Vec<&str> = run.error().split("\n\n").collect();
    assert!(told[0].starts_with(&target) && told[0].ends_with("- c_attn\n   |   ^^^^^^"), "{}", told[0]);
    assert!(told[0].contains("\n  --> train.yaml:"), "{}", told[0]);
    assert_eq!((told[1..].join("\n"), run.code), ([missing("wte"), missing("ln_f")].join("\n"), Some(2)));
    let place = trainable("finetuning_type: freeze\nlora_dropout: null\nlora_rank: null\n");
    let options = ["freeze_trainable_layers=9", "freeze_trainable_modules=mlp,moe"];
    let layers = "error: freeze_trainable_layers asks for 9 blocks, the model has 2; write a number from -2 to 2";
    let run = train(&place, &options);
    assert!(run.error().starts_with(&at(&options, "9", layers)), "{}", run.err);
    assert!(run.error().contains("\n\nerror: freeze_trainable_modules names `moe`, "), "{}", run.err);
    assert!(!place.path("cache").exists(), "nothing is encoded for a run that can't be");
}

#[test]
fn tokens_beyond_the_embedding() {
    let tokens: Vec<String> = (0..40).map(|i| format!("<|new_{i}|>")).collect();
    let tokens = format!("add_special_tokens={}", tokens.join(","));
    let place = with_data("d.json", json!([{"instruction": "a <|new_39|>", "output": "b"}]).to_string());
    // Encoded the first time, found in the cache the second.
    for _ in 0..2 {
        let run = train(&place, &[&tokens]);
        let (before, after) = run.error().split_once(" has id ").unwrap();
        assert_eq!(before, "error: token `<|new_39|>`");
        let id = after.split(',').next().unwrap().parse::<u32>().unwrap();
        let error = "but the model's embedding has 1024 rows; if tokens were added, set resize_vocab: true; otherwise the \
                     tokenizer is of another model";
        assert!(id >= 1024 && after.ends_with(error), "{after}");
        assert_eq!(run.code, Some(1));
    }
}

#[test]
fn adapters_that_do_not_fit() {
    let place = trainable("");
    let other = format!("adapter_name_or_path={}", fixtures().join("train/llama3rope_lora/init_adapter").display());
    let run = train(&place, &[&other]);
    assert_eq!(run.code, Some(2));
    let start = "error: adapter FIXTURES/train/llama3rope_lora/init_adapter was made for another model: \
                 'model.layers.0.self_attn.k_proj.weight' is [64, 64] in the model, [32, 64] in the adapter; ";
    assert!(run.error().starts_with(start), "{}", run.error());
    assert!(run.error().contains("; and 3 more\n --> command line:1:34\n"), "{}", run.error());
    // Every adapter is told of, and the recipe's own mistakes with them.
    place.copy(&fixtures().join("train/qwen3_lora_qv_linear_wd_clip/init_adapter"), "broken");
    place.write("broken/adapter_model.safetensors", "");
    let two = format!("{other},broken");
    let run = train(&place, &[&two, "create_new_adapter=true", "lora_target=c_attn"]);
    assert!(run.error().starts_with("error: broken/adapter_model.safetensors is "), "{}", run.error());
    let twice = format!("{other},{}", fixtures().join("train/llama3rope_lora/init_adapter").display());
    let run = train(&place, &[&twice, "create_new_adapter=true", "lora_target=c_attn"]);
    assert_eq!(run.error().matches(" was made for another model").count(), 2, "{}", run.error());
    assert!(run.error().contains("\n\nerror: lora_target names `c_attn`, "), "{}", run.error());
    let fewer = fixtures().join("train/qwen3_lora_qv_linear_wd_clip/init_adapter");
    let fewer = format!("adapter_name_or_path={}", fewer.display());
    // Other targets and another rank than the recipe's are no contradiction: the adapter goes on as it is.
    let run = train(&place, &[&fewer, "max_steps=1"]).ok();
    assert!(run.err.contains("with its own settings, not the recipe's lora_alpha"), "{}", run.err);
}

#[test]
fn a_cutoff_below_the_templates_own_length() {
    let error =
        "error: `cutoff_len: 5` leaves no room for a row: the template alone takes 19 tokens; set it to 20 or more";
    fails_at(&trainable(""), &["cutoff_len=5"], "5", error);
}

#[test]
fn nothing_to_learn_from() {
    let long = json!({"instruction": "word ".repeat(900), "output": "b c d e f g h i j k l m n o p q r s t u v"});
    let short = json!({"instruction": "a", "output": "b"});
    let place = with_data("d.json", json!([long, long, short, short]).to_string());
    let more = ["cutoff_len=32", "disable_shuffling=true", "gradient_accumulation_steps=1"];
    let told = train(&place, &more).ok().err;
    let warning = "warning: step 1: no token of rows 1, 2 of dataset `d` has a label, so nothing was learnt from it; was the \
                   answer cut off by cutoff_len?";
    assert!(told.contains(warning), "{told}");
    let error = "error: not one token of the training set is trained on: in all 2 rows the answer is empty or cut off by \
                 `cutoff_len: 32`";
    let more = ["cutoff_len=32", "dataset=d"];
    fails(&with_data("d.json", json!([long, long]).to_string()), &more, 1, &at(&more, "d", error));
}

#[test]
fn impossible_combinations() {
    let place = trainable("lora_dropout: null\nlora_rank: null\n");
    for (options, error) in [
        (
            "load_best_model_at_end=true",
            "error: `load_best_model_at_end` needs evaluations during training\n --> command line:1:36\n  |\n1 | max_steps=2 \
             load_best_model_at_end=true\n  |                                    ^^^^\n  = help: add `eval_strategy: steps` and \
             `eval_steps`",
        ),
        (
            "eval_strategy=steps",
            "error: `eval_strategy` asks for an evaluation, but there is nothing to evaluate on\n --> command line:1:27\n  |\n1 | \
             max_steps=2 eval_strategy=steps\n  |                           ^^^^^\n  = help: add `val_size: 0.1` or \
             `eval_dataset`",
        ),
        (
            "stage=dpo",
            "error: `stage: dpo` is not trained; `ferrotune data` shows how its rows are encoded\n --> command line:1:19\n  |\n\
             1 | max_steps=2 stage=dpo\n  |                   ^^^\n  = help: write `stage: sft` (conversations) or `stage: pt` \
             (plain text)",
        ),
    ] {
        fails(&place, &[options], 2, error);
    }
    let error = "error: `val_size: 100` of 30 rows leaves nothing to train on; choose a smaller one";
    fails_at(&place, &["val_size=100"], "100", error);
}

#[test]
fn folders_that_cannot_be_written() {
    let place = trainable("");
    place.write("file", "");
    let error = "error: cannot create file/output: Not a directory (os error 20)";
    fails(&place, &["output_dir=file/output"], 1, error);
    let error = "error: can't write to file/cache, where encoded rows are kept: Not a directory (os error 20); `tokenized_path` \
                 names another folder";
    fails_at(&place, &["tokenized_path=file/cache"], "file/cache", error);
}

#[test]
fn broken_files_of_a_model() {
    let place = with_model();
    let whole = fs::read(place.path("model/model.safetensors")).unwrap();
    let again = "download or copy it again";
    for (len, announced) in [(300_000, whole.len()), (0, 8)] {
        place.write("model/model.safetensors", &whole[..len]);
        let error = format!(
            "error: model/model.safetensors is incomplete: {announced} bytes are announced, it has {len}; {again}"
        );
        fails(&place, &[], 1, &error);
    }
    place.write("model/model.safetensors", [&u64::MAX.to_le_bytes()[..], &whole[8..]].concat());
    let run = train(&place, &[]);
    assert_eq!(run.code, Some(1));
    assert!(run.error().starts_with("error: model/model.safetensors is "), "{}", run.error());
    fs::remove_file(place.path("model/model.safetensors")).unwrap();
    let error =
        "error: model has no model.safetensors or model.safetensors.index.json; download the weights of the model";
    fails(&place, &[], 1, error);
    fs::remove_file(place.path("model/tokenizer.json")).unwrap();
    place.write("model/model.safetensors", &whole);
    fails(&place, &[], 1, "error: model has no tokenizer.json; download the tokenizer files of the model");
    place.write("model/tokenizer.json", "{}");
    let run = train(&place, &[]);
    assert_eq!(run.code, Some(1));
    assert!(run.error().starts_with("error: tokenizer.json can't be used: "), "{}", run.error());
    assert!(run.error().ends_with("; take the file from the model's own folder"), "{}", run.error());
}

#[test]
fn configurations_of_other_models() {
    let place = with_model();
    edit_config(&place, "num_hidden_layers", json!(3));
    let run = train(&place, &[]);
    let start = "error: the model's files don't hold what its config.json says:\n  model.layers.2.input_layernorm.weight is \
                 missing, expected with shape [64]\n  model.layers.2.self_attn.q_proj.weight is missing, expected with shape \
                 [128, 64]\n";
    let end = "\n  and 1 more\nIs a shard missing, or a file of another model?";
    assert!(run.error().starts_with(start) && run.error().ends_with(end), "{}", run.error());
    assert_eq!((run.error().lines().count(), run.code), (13, Some(1)));
    edit_config(&place, "num_hidden_layers", json!(2));
    edit_config(&place, "intermediate_size", json!(96));
    fails(
        &place,
        &[],
        1,
        "error: the model's files don't hold what its config.json says:\n  \
         model.layers.0.mlp.gate_proj.weight has shape [128, 64], expected [96, 64]\n  \
         model.layers.0.mlp.up_proj.weight has shape [128, 64], expected [96, 64]\n  \
         model.layers.0.mlp.down_proj.weight has shape [64, 128], expected [64, 96]\n  \
         model.layers.1.mlp.gate_proj.weight has shape [128, 64], expected [96, 64]\n  \
         model.layers.1.mlp.up_proj.weight has shape [128, 64], expected [96, 64]\n  \
         model.layers.1.mlp.down_proj.weight has shape [64, 128], expected [64, 96]\n\
         Is a shard missing, or a file of another model?",
    );
    edit_config(&place, "hidden_size", json!(-4));
    fails(&place, &[], 1, "error: config.json: `hidden_size` is -4, expected a whole number from 1 to 16777216");
    edit_config(&place, "model_type", json!("bert"));
    let error = "error: model type `bert` is not supported; supported are llama, mistral, qwen2, qwen3, qwen2_moe, qwen3_moe, mixtral";
    fails_at(&place, &["model_name_or_path=model"], "model", error);
    fs::remove_file(place.path("model/config.json")).unwrap();
    fails(
        &place,
        &[],
        1,
        "error: model has no config.json; expected a folder with config.json, weights and tokenizer.json",
    );
}

/// Makes the first value of an f32 tensor of the model not a number.
fn poison(place: &Place, tensor: &str) {
    let mut bytes = fs::read(place.path("model/model.safetensors")).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let names: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    assert_eq!(names[tensor]["dtype"], "F32");
    let at = 8 + header + names[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    place.write("model/model.safetensors", bytes);
}

#[test]
fn weights_that_are_not_numbers() {
    let place = with_model();
    train(&place, &["max_steps=1"]).ok();
    let before = fs::read(place.path("output/checkpoint-1/adapter_model.safetensors")).unwrap();
    poison(&place, "model.layers.1.mlp.down_proj.weight");
    fails(
        &place,
        &[],
        1,
        "error: step 2: the loss is NaN and the gradient norm NaN; the first value that is not finite is in the weight \
         model.layers.1.mlp.down_proj.weight; nothing was updated. Get the files of the model again, or lower learning_rate if \
         they are sound",
    );
    assert!(fs::read(place.path("output/checkpoint-1/adapter_model.safetensors")).unwrap() == before);
    assert!(!place.path("output/checkpoint-2").exists());
}

#[test]
fn a_rate_that_is_far_too_high() {
    let place = trainable("warmup_steps: 0\ngradient_accumulation_steps: 1\n");
    fails(
        &place,
        &["learning_rate=1e30", "disable_shuffling=true"],
        1,
        "error: step 2: the loss is NaN and the gradient norm NaN; the first value that is not finite is in the output of \
         model.layers.0, with rows 3, 4 of dataset `d`; nothing was updated. Lower learning_rate, or look at these rows",
    );
    assert!(place.path("output/checkpoint-1/DONE").exists());
}
