//! A folder to work in, the program in it, and what it said.

use ferrotune_checkpoint::{SafetensorsFile, TensorSource};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A recipe for thirty short rows; everything that is random is on.
const RECIPE: &str = "\
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 4
lora_dropout: 0.1
neftune_noise_alpha: 5
template: qwen3
dataset_dir: data
dataset: d
tokenized_path: cache
output_dir: output
per_device_train_batch_size: 2
gradient_accumulation_steps: 2
max_steps: 60
learning_rate: 0.002
lr_scheduler_type: cosine
warmup_steps: 3
logging_steps: 1
save_steps: 1
save_total_limit: 3
";

/// The data that comes with the project.
pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").canonicalize().unwrap()
}

/// A tiny model's folder.
pub(crate) fn model(name: &str) -> PathBuf {
    fixtures().join("models").join(name)
}

/// What a run of the program left behind.
pub(crate) struct Run {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Run {
    /// Fails the test unless the program ended well.
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "stdout:\n{}\nstderr:\n{}", self.out, self.err);
        self
    }

    /// Standard error from the first error on.
    pub(crate) fn error(&self) -> &str {
        self.err.find("error: ").map_or("", |at| self.err[at..].trim_end())
    }
}

/// A folder of a test's own, which goes when the test ends.
pub(crate) struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file, and the folders above it.
    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    pub(crate) fn json(&self, name: &str) -> Value {
        read_json(&self.path(name))
    }

    /// Copies a folder of plain files.
    pub(crate) fn copy(&self, from: &Path, name: &str) {
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            self.write(&format!("{name}/{}", entry.file_name().to_str().unwrap()), fs::read(entry.path()).unwrap());
        }
    }

    /// The program, in this folder, with nothing in its environment that a test doesn't say.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        self.command_as(Path::new(env!("CARGO_BIN_EXE_ferrotune")), args)
    }

    pub(crate) fn command_as(&self, program: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(args).current_dir(self.folder.path()).env_clear();
        // Tests run side by side; one thread each is fastest for models this small.
        command.env("HOME", self.folder.path()).env("HF_HUB_OFFLINE", "1").env("RAYON_NUM_THREADS", "1");
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Run {
        self.read(self.command(args).output().unwrap())
    }

    /// What a finished process said, with this folder and the fixtures under fixed names.
    pub(crate) fn read(&self, output: Output) -> Run {
        let text = |bytes: Vec<u8>| {
            let text = String::from_utf8(bytes).unwrap();
            let text = text.replace(env!("CARGO_BIN_EXE_ferrotune"), "ferrotune");
            text.replace(self.folder.path().to_str().unwrap(), "HERE").replace(fixtures().to_str().unwrap(), "FIXTURES")
        };
        Run { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

pub(crate) fn read_json(path: &Path) -> Value {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).unwrap()
}

/// The tensors of a safetensors file.
pub(crate) fn tensors(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let file = SafetensorsFile::open(path).unwrap();
    file.names().into_iter().map(|name| (name.clone(), file.read_f32(&name).unwrap())).collect()
}

/// The rows of `log_history` that have `key`.
pub(crate) fn history(state: &Value, key: &str) -> Vec<Value> {
    state["log_history"].as_array().unwrap().iter().filter(|row| row.get(key).is_some()).cloned().collect()
}

/// One number of each row that has it.
pub(crate) fn curve(state: &Value, key: &str) -> Vec<f64> {
    history(state, key).iter().map(|row| row[key].as_f64().unwrap()).collect()
}

/// Short questions with short answers.
pub(crate) fn rows(count: usize) -> Value {
    let row = |i: usize| json!({"instruction": format!("Say {i} and {}", i * i), "output": format!("It is {i}.")});
    (0..count).map(row).collect()
}

/// A place with data and a recipe; later lines of `more` win over earlier ones of the same key.
pub(crate) fn trainable(more: &str) -> Place {
    let place = Place::new();
    place.write("data/dataset_info.json", json!({"d": {"file_name": "d.json"}}).to_string());
    place.write("data/d.json", rows(30).to_string());
    let text = format!("model_name_or_path: {}\n{RECIPE}{more}", model("tiny-qwen3").display());
    let mut lines: Vec<&str> = Vec::new();
    for line in text.lines() {
        let key = line.split(':').next();
        lines.retain(|other| other.split(':').next() != key);
        lines.push(line);
    }
    place.write("train.yaml", lines.join("\n"));
    place
}
