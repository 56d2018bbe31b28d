//! Reads `fixtures/` for this crate's tests.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

/// The JSON file at `path` below `fixtures/`.
pub(crate) fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(root().join(path)).expect("the fixture is there")).expect("it is JSON")
}

/// A folder of `fixtures/train`.
pub(crate) struct TrainCase(PathBuf);

/// Every whole run, in a fixed order.
pub(crate) fn train_cases() -> Vec<TrainCase> {
    let entries = fs::read_dir(root().join("train")).expect("the fixtures are there");
    let mut cases: Vec<_> =
        entries.map(|entry| entry.expect("readable").path()).filter(|path| path.is_dir()).map(TrainCase).collect();
    cases.sort_by(|a, b| a.0.cmp(&b.0));
    assert!(cases.len() >= 18, "whole runs are missing");
    cases
}

/// The run of this name.
pub(crate) fn train_case(name: &str) -> TrainCase {
    TrainCase(root().join("train").join(name))
}

impl TrainCase {
    pub(crate) fn name(&self) -> String {
        self.0.file_name().expect("a folder").to_string_lossy().into_owned()
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.0.join(file)
    }

    pub(crate) fn text(&self, file: &str) -> String {
        fs::read_to_string(self.path(file)).expect("the fixture is there")
    }

    pub(crate) fn json(&self, file: &str) -> Value {
        serde_json::from_str(&self.text(file)).expect("it is JSON")
    }

    /// The recipe's keys; these recipes are flat.
    pub(crate) fn recipe(&self) -> BTreeMap<String, String> {
        let text = self.text("train.yaml");
        let pairs = text.lines().filter_map(|line| line.split_once(": "));
        pairs.map(|(key, value)| (key.to_owned(), value.trim_matches('\'').to_owned())).collect()
    }
}

/// A plan of micro-batches of so many rows, so many a step, over two epochs.
pub(crate) fn train_plan(micro_batch: usize, accumulation: usize) -> ferrotune_config::plan::TrainPlan {
    let text = format!(
        "model_name_or_path: m\nstage: sft\ndo_train: true\nfinetuning_type: lora\ndataset: d\ntemplate: default\noutput_dir: o\n\
         num_train_epochs: 2\nper_device_train_batch_size: {micro_batch}\ngradient_accumulation_steps: {accumulation}\n"
    );
    let recipe = ferrotune_config::Recipe::parse("test.yaml", text.as_bytes()).expect("a recipe");
    ferrotune_config::plan::Plan::resolve(&recipe, ferrotune_config::Verb::Train).expect("a plan").0.train
}

/// A model of two blocks.
pub(crate) fn small_llama() -> ferrotune_model::Config {
    ferrotune_model::Config::from_json(&serde_json::json!({
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256, "tie_word_embeddings": false,
    }))
    .expect("a configuration")
}
