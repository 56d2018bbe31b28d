//! The whole way from a dataset file to rows, against what LLaMA-Factory made of the same file.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::fs;
use std::path::{Path, PathBuf};

use ferrotune_config::plan::{BadRows, DataPlan, Mix, Packing, Stage, TemplateChoice, ValSize};
use ferrotune_data::clock::Moment;
use ferrotune_data::prepare::{Prepared, json_lines, prepare, prepare_on};
use ferrotune_data::tokenizer::Tokenizer;
use serde_json::{Value, json};

/// 23 November 2026, when the goldens were made; one tool format writes the date.
const GOLDEN_DAY: Moment = Moment { unix_seconds: 1_795_435_200 };

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn tokenizer(name: &str) -> Tokenizer {
    let folder = fixtures().join("tokenizers").join(name);
    let json = match fs::read(folder.join("tokenizer.json")) {
        Ok(json) => json,
        Err(_) => zstd::decode_all(fs::File::open(folder.join("tokenizer.json.zst")).unwrap()).unwrap(),
    };
    let config = read_json(&folder.join("tokenizer_config.json"));
    let chat_template = fs::read_to_string(folder.join("chat_template.jinja")).ok();
    Tokenizer::from_parts(&json, &config, chat_template).unwrap()
}

fn plan(dir: &Path, template: &str, stage: Stage) -> DataPlan {
    DataPlan {
        stage,
        dir: dir.to_path_buf(),
        datasets: vec!["d".into()],
        eval_datasets: vec![],
        eval_each: false,
        generate: false,
        template: match template {
            "none" => TemplateChoice::Model,
            name => TemplateChoice::Named(name.into()),
        },
        cutoff_len: 2048,
        train_on_prompt: false,
        mask_history: false,
        default_system: None,
        enable_thinking: Some(true),
        preserve_thinking: false,
        tool_format: None,
        split_special_tokens: false,
        max_samples: None,
        val_size: ValSize::None,
        packing: if stage == Stage::Pretrain { Packing::On } else { Packing::Off },
        mix: Mix::Concat,
        mix_probabilities: None,
        stream: None,
        fetched: std::collections::BTreeMap::new(),
        seed: 42,
        overwrite_cache: false,
        cache_dir: None,
        workers: None,
        bad_rows: BadRows::Report,
    }
}

/// Writes what a golden was made from, and gives the plan it was made with.
fn lay_out(dir: &Path, case: &Value, stage: Stage) -> DataPlan {
    let mut entry = case.get("dataset_info").cloned().unwrap_or_else(|| json!({}));
    entry["file_name"] = json!("d.json");
    fs::write(dir.join("dataset_info.json"), json!({"d": entry}).to_string()).unwrap();
    fs::write(dir.join("d.json"), serde_json::to_vec_pretty(&case["rows"]).unwrap()).unwrap();
    // The qwen3 goldens without a template were made with `template: null`, too.
    let mut plan = plan(dir, case["template"].as_str().unwrap_or("none"), stage);
    let args = case["args"].as_object().cloned().unwrap_or_default();
    let count = |value: &Value| value.as_u64().unwrap() as usize;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    for (name, value) in &args {
        match name.as_str() {
            "cutoff_len" => plan.cutoff_len = count(value),
            "max_samples" => plan.max_samples = Some(count(value)),
            "train_on_prompt" => plan.train_on_prompt = value.as_bool().unwrap(),
            "mask_history" => plan.mask_history = value.as_bool().unwrap(),
            "preserve_thinking" => plan.preserve_thinking = value.as_bool().unwrap(),
            "enable_thinking" => plan.enable_thinking = value.as_bool(),
            "default_system" => plan.default_system = text(value),
            "tool_format" => plan.tool_format = text(value),
            "packing" => plan.packing = if value.as_bool().unwrap() { Packing::On } else { Packing::Off },
            other => panic!("the goldens have no argument {other}"),
        }
    }
    plan
}

fn lines(prepared: &Prepared, plan: &DataPlan, tokenizer: &Tokenizer) -> Vec<Value> {
    let rows = prepared.train.as_ref().unwrap();
    json_lines(rows, plan, tokenizer).map(|line| serde_json::to_value(line.unwrap()).unwrap()).collect()
}

#[test]
fn ids_and_labels_are_those_of_llamafactory() {
    let mut cases: Vec<Value> =
        fs::read_dir(fixtures().join("encode")).unwrap().map(|file| read_json(&file.unwrap().path())).collect();
    // Loading a tokenizer is most of the work; what a template does to it, it does once.
    let parts = |case: &Value| (case["tokenizer"].to_string(), case["template"].to_string());
    cases.sort_by_key(parts);
    let mut loaded = None;
    let mut compared = 0;
    for case in cases {
        let stage = match case["stage"].as_str().unwrap() {
            "sft" => Stage::Sft,
            "pt" => Stage::Pretrain,
            "rm" => Stage::Pairwise,
            "kto" => Stage::Feedback,
            other => panic!("the goldens have no stage {other}"),
        };
        let name = case["id"].as_str().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let plan = lay_out(dir.path(), &case, stage);
        if loaded.as_ref().is_none_or(|(of, _)| *of != parts(&case)) {
            loaded = Some((parts(&case), tokenizer(case["tokenizer"].as_str().unwrap())));
        }
        let (_, tokenizer) = loaded.as_mut().unwrap();
        let Some(outputs) = case["outputs"].as_array() else {
            // LLaMA-Factory ended here; the row at fault is left out.
            let prepared = prepare(&plan, tokenizer, &()).unwrap();
            assert!(!prepared.report.datasets[0].dropped.is_empty(), "{name}");
            continue;
        };
        let prepared = prepare_on(GOLDEN_DAY, &plan, tokenizer, &());
        let prepared = prepared.unwrap_or_else(|error| panic!("{name}: {error}"));
        let lines = lines(&prepared, &plan, tokenizer);
        assert_eq!(lines.len(), outputs.len(), "{name}\n{}", prepared.report.render());
        for (i, (line, output)) in lines.iter().zip(outputs).enumerate() {
            assert_eq!(line["index"], i, "{name}");
            let keys = output.as_object().unwrap().keys().filter(|key| !["rendered", "labels"].contains(&key.as_str()));
            keys.for_each(|key| assert_eq!(line[key], output[key], "{name}, row {i}, {key}"));
            let labels = if stage == Stage::Pretrain { &output["input_ids"] } else { &output["labels"] };
            assert_eq!(line["labels"], *labels, "{name}, row {i}");
            if let Some(rendered) = output.get("rendered") {
                let text = if stage == Stage::Pairwise { "chosen_text" } else { "text" };
                assert_eq!(line[text], *rendered, "{name}, row {i}");
            }
        }
        compared += 1;
    }
    assert!(compared > 100, "{compared} cases");
}

#[test]
fn packs_are_those_of_llamafactory() {
    for file in fs::read_dir(fixtures().join("packing")).unwrap() {
        let case = read_json(&file.unwrap().path());
        let name = case["id"].as_str().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut plan = lay_out(dir.path(), &case, Stage::Sft);
        let neat = case["neat_packing"].as_bool().unwrap();
        plan.cutoff_len = case["cutoff_len"].as_u64().unwrap() as usize;
        plan.packing = if neat { Packing::Neat } else { Packing::On };
        let mut tokenizer = tokenizer(match case["tokenizer"].as_str().unwrap() {
            "llama3" => "tiny-llama3",
            name => name,
        });
        let prepared = prepare(&plan, &mut tokenizer, &()).unwrap();
        let rows = prepared.train.as_ref().unwrap();
        let packs = case["packs"].as_array().unwrap();
        let lines = lines(&prepared, &plan, &tokenizer);
        assert_eq!(lines.len(), packs.len(), "{name}");
        for (i, (line, pack)) in lines.iter().zip(packs).enumerate() {
            assert_eq!(line["input_ids"], pack["input_ids"], "{name}, pack {i}");
            assert_eq!(line["labels"], pack["labels"], "{name}, pack {i}");
            let row = rows.get(i);
            assert_eq!(row.isolated, neat);
            let mut positions: Vec<u32> = row.segments.iter().flat_map(|&len| 0..len).collect();
            positions.resize(plan.cutoff_len, 0);
            assert_eq!(json!(positions), pack["position_ids"], "{name}, pack {i}");
            if neat {
                let ids = (1_u32..).zip(row.segments).flat_map(|(id, &len)| (0..len).map(move |_| id));
                let mut mask: Vec<u32> = ids.collect();
                mask.resize(plan.cutoff_len, 0);
                assert_eq!(json!(mask), pack["attention_mask"], "{name}, pack {i}");
            }
        }
    }
}
