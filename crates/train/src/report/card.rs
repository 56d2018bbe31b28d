//! The model card, `README.md`: front matter that hubs read, and how the weights beside it were made.

use std::fmt::Write;
use std::path::Path;

use ferrotune_checkpoint::write_atomic;
use ferrotune_config::plan::{LoraPlan, LoraTargets, RunLength, TrainPlan, Tuning, Warmup};

use super::row::LogRow;
use super::state::TrainerState;
use crate::error::Result;
use crate::schedule::kind_name;

/// The file's name.
pub const MODEL_CARD: &str = "README.md";

/// What a model card tells.
#[derive(Debug, Clone, Copy)]
pub struct ModelCard<'a> {
    /// Name of the run, its heading.
    pub name: &'a str,
    /// Hub id or folder of the model that was tuned.
    pub base_model: &'a str,
    /// Names of the training data.
    pub datasets: &'a [String],
    /// What was trained.
    pub tuning: &'a Tuning,
    /// How it was trained.
    pub train: &'a TrainPlan,
    /// Rows of an evaluation batch on one rank.
    pub eval_batch: usize,
    /// Processes that trained together.
    pub ranks: usize,
    /// What was measured.
    pub state: &'a TrainerState,
    /// Version of this program.
    pub version: &'a str,
}

impl ModelCard<'_> {
    /// Writes `README.md` into `folder`.
    ///
    /// # Errors
    /// [`crate::Error::Io`] if it can't be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        Ok(write_atomic(&folder.join(MODEL_CARD), self.text().as_bytes())?)
    }

    /// The card, in Markdown.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = self.front_matter();
        text += &format!("\n# {}\n\n{}\n", self.name, self.introduction());
        text += &self.last_evaluation();
        text += "\n## Training\n\n";
        for (name, value) in self.settings() {
            text += &format!("- {name}: {value}\n");
        }
        text += &self.results();
        text += &self.usage();
        text
    }

    fn front_matter(&self) -> String {
        let (library, method) = match self.tuning {
            Tuning::Lora(_) => ("peft", "lora"),
            Tuning::Freeze(_) => ("transformers", "freeze"),
            Tuning::Full => ("transformers", "full"),
        };
        let relation = if library == "peft" { "adapter" } else { "finetune" };
        let mut tags = vec![format!("base_model:{relation}:{}", self.base_model), "ferrotune".into(), method.into()];
        if library == "peft" {
            tags.push("transformers".into());
        }
        let tags: String = tags.iter().map(|tag| format!("- {}\n", yaml(tag))).collect();
        format!(
            "---\nlibrary_name: {library}\nlicense: other\nbase_model: {}\ntags:\n{tags}pipeline_tag: \
             text-generation\nmodel-index:\n- name: {}\n  results: []\n---\n",
            yaml(self.base_model),
            yaml(self.name),
        )
    }

    fn introduction(&self) -> String {
        let what = match self.tuning {
            Tuning::Lora(_) => "A LoRA adapter for",
            Tuning::Freeze(_) => "Some layers tuned of",
            Tuning::Full => "A full fine-tune of",
        };
        let base = match is_hub_id(self.base_model) {
            true => format!("[{0}](https://huggingface.co/{0})", self.base_model),
            false => format!("`{}`", self.base_model),
        };
        let data = match self.datasets {
            [] => String::new(),
            names => format!(", trained on {}", names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ")),
        };
        format!("{what} {base}{data}.")
    }

    fn last_evaluation(&self) -> String {
        let Some(row) = self.state.log_history.iter().rev().find(|row| is_evaluation(row)) else {
            return String::new();
        };
        let numbers: String =
            metrics(row).map(|(name, value)| format!("- {}: {value:.4}\n", title_case(name))).collect();
        format!("\nOn the evaluation set:\n\n{numbers}")
    }

    /// Names are those of transformers' cards and recipes.
    fn settings(&self) -> Vec<(&'static str, String)> {
        let train = self.train;
        let adamw = train.optimizer;
        let mut settings = vec![
            ("learning_rate", format!("{:?}", train.schedule.learning_rate)),
            ("train_batch_size", train.micro_batch.to_string()),
            ("eval_batch_size", self.eval_batch.to_string()),
            ("seed", train.seed.to_string()),
        ];
        if self.ranks > 1 {
            settings.push(("num_devices", self.ranks.to_string()));
        }
        if train.accumulation > 1 {
            settings.push(("gradient_accumulation_steps", train.accumulation.to_string()));
        }
        let total = train.micro_batch * train.accumulation * self.ranks;
        if total != train.micro_batch {
            settings.push(("total_train_batch_size", total.to_string()));
        }
        let betas = format!("betas=({:?}, {:?})", adamw.beta1, adamw.beta2);
        let rest = format!("epsilon={:?}, weight_decay={:?}", adamw.eps, adamw.weight_decay);
        settings.push(("optimizer", format!("AdamW with {betas}, {rest}")));
        settings.push(("lr_scheduler_type", kind_name(&train.schedule.kind).into()));
        match train.schedule.warmup {
            Warmup::Steps(0) => {}
            Warmup::Steps(steps) => settings.push(("lr_scheduler_warmup_steps", steps.to_string())),
            Warmup::Ratio(0.0) => {}
            Warmup::Ratio(share) => settings.push(("lr_scheduler_warmup_ratio", format!("{share:?}"))),
        }
        match train.length {
            RunLength::Steps(steps) => settings.push(("training_steps", steps.to_string())),
            RunLength::Epochs(epochs) => settings.push(("num_epochs", format!("{epochs:?}"))),
        }
        if train.label_smoothing != 0.0 {
            settings.push(("label_smoothing_factor", format!("{:?}", train.label_smoothing)));
        }
        if let Some(weight) = train.router_aux_loss {
            settings.push(("moe_aux_loss_coef", format!("{weight:?}")));
        }
        if let Tuning::Lora(lora) = self.tuning {
            settings.extend(lora_settings(lora));
        }
        settings
    }

    /// A line an evaluation, beside the last training loss before it.
    fn results(&self) -> String {
        let mut lines = String::new();
        let mut loss = "-".to_owned();
        for row in &self.state.log_history {
            if let Some(value) = row.get("loss") {
                loss = format!("{value:.4}");
            }
            if let Some(eval) = row.get("eval_loss") {
                let when = row.when;
                let _ = writeln!(lines, "| {loss} | {:.4} | {} | {eval:.4} |", when.epoch, when.step);
            }
        }
        match lines.is_empty() {
            true => String::new(),
            false => format!(
                "\n### Results\n\n| Training Loss | Epoch | Step | Validation Loss |\n|---:|---:|---:|---:|\n{lines}"
            ),
        }
    }

    fn usage(&self) -> String {
        let (library, class) = match self.tuning {
            Tuning::Lora(_) => ("peft", "AutoPeftModelForCausalLM"),
            Tuning::Freeze(_) | Tuning::Full => ("transformers", "AutoModelForCausalLM"),
        };
        format!(
            "\n## Use\n\n```python\nfrom {library} import {class}\n\nmodel = \
             {class}.from_pretrained(\"path/to/this/folder\")\n```\n\nor `ferrotune chat` with this folder.\n\n\
             ### Versions\n\n- ferrotune {}\n",
            self.version
        )
    }
}

fn lora_settings(lora: &LoraPlan) -> Vec<(&'static str, String)> {
    let targets = match &lora.targets {
        LoraTargets::All => "all".to_owned(),
        LoraTargets::Modules(names) => names.join(", "),
    };
    let mut settings = vec![
        ("lora_rank", lora.rank.to_string()),
        ("lora_alpha", lora.alpha.to_string()),
        ("lora_dropout", lora.dropout.to_string()),
        ("lora_target", targets),
    ];
    settings.extend(lora.rslora.then(|| ("use_rslora", "true".to_owned())));
    settings.extend(lora.dora.then(|| ("use_dora", "true".to_owned())));
    settings
}

fn is_evaluation(row: &LogRow) -> bool {
    metrics(row).next().is_some()
}

/// What an evaluation found, without `eval_` and without its speed.
fn metrics(row: &LogRow) -> impl Iterator<Item = (&str, f64)> {
    let speed = ["runtime", "samples_per_second", "steps_per_second"];
    row.values()
        .filter_map(|(name, value)| Some((name.strip_prefix("eval_")?, value)))
        .filter(move |(name, _)| !speed.iter().any(|speed| name.ends_with(speed)))
}

fn title_case(name: &str) -> String {
    let word = |word: &str| {
        let mut chars = word.chars();
        chars.next().map(|first| first.to_uppercase().chain(chars).collect::<String>()).unwrap_or_default()
    };
    name.split('_').map(word).collect::<Vec<_>>().join(" ")
}

/// `owner/name`, and not a path.
fn is_hub_id(source: &str) -> bool {
    let part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    source.split_once('/').is_some_and(|(owner, name)| part(owner) && part(name)) && !source.ends_with(".gguf")
}

/// A YAML scalar: as it is where that can't be misread, else in quotes (JSON's are YAML's).
fn yaml(text: &str) -> String {
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./:".contains(c))
        && !text.ends_with(':')
        && !["true", "false", "null", "yes", "no", "on", "off", "y", "n"].contains(&text.to_lowercase().as_str());
    if plain { text.to_owned() } else { serde_json::Value::from(text).to_string() }
}

#[cfg(test)]
mod tests {
    use ferrotune_config::plan::{AdamWPlan, Schedule, ScheduleKind};

    use super::*;
    use crate::fixtures;

    fn train() -> TrainPlan {
        TrainPlan {
            micro_batch: 2,
            accumulation: 4,
            length: RunLength::Epochs(3.0),
            schedule: Schedule {
                learning_rate: 5e-5,
                kind: ScheduleKind::Cosine { num_cycles: 0.5 },
                warmup: Warmup::Ratio(0.1),
            },
            optimizer: AdamWPlan { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 },
            max_grad_norm: 1.0,
            label_smoothing: 0.0,
            router_aux_loss: None,
            neftune_alpha: None,
            seed: 42,
            data_seed: 42,
            shuffle: true,
            drop_last: false,
            pure_bf16: false,
        }
    }

    fn lora() -> Tuning {
        Tuning::Lora(LoraPlan { dropout: 0.05, dora: true, ..LoraPlan::plain(8) })
    }

    fn card<'a>(
        tuning: &'a Tuning,
        train: &'a TrainPlan,
        state: &'a TrainerState,
        datasets: &'a [String],
    ) -> ModelCard<'a> {
        ModelCard {
            name: "my run",
            base_model: "Qwen/Qwen3-0.6B",
            datasets,
            tuning,
            train,
            eval_batch: 8,
            ranks: 2,
            state,
            version: "1.2.3",
        }
    }

    #[test]
    fn an_adapter_s_card() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = TrainerState::read(&fixtures::train_case("qwen3_lora_eval").path("")).expect("a state");
        let datasets = ["identity".to_owned(), "alpaca_en_demo".to_owned()];
        card(&lora(), &train(), &state, &datasets).write(folder.path()).expect("writable");
        let text = std::fs::read_to_string(folder.path().join(MODEL_CARD)).expect("written");
        assert_eq!(text, include_str!("card_expected.md"));
    }

    #[test]
    fn a_full_tune_without_evaluation() {
        let (train, state) = (train(), TrainerState::default());
        let card = ModelCard { base_model: "../models/my: model", ..card(&Tuning::Full, &train, &state, &[]) };
        let text = card.text();
        assert!(text.starts_with("---\nlibrary_name: transformers\n"), "{text}");
        assert!(text.contains("base_model: \"../models/my: model\"\n"), "{text}");
        assert!(text.contains("A full fine-tune of `../models/my: model`.\n\n## Training\n"), "{text}");
        assert!(!text.contains("### Results") && !text.contains("lora") && !text.contains("evaluation set"), "{text}");
    }

    #[test]
    fn front_matter_can_t_be_misread() {
        assert_eq!(yaml("base_model:adapter:Qwen/Qwen3-0.6B"), "base_model:adapter:Qwen/Qwen3-0.6B");
        for text in ["", "no", "3", "a b", "x:", "- a", "a\nb", "#1", "名"] {
            assert!(yaml(text).starts_with('"'), "{text}");
        }
    }

    #[test]
    fn only_hub_ids_are_linked() {
        for id in ["Qwen/Qwen3-0.6B", "a/b"] {
            assert!(is_hub_id(id), "{id}");
        }
        for path in ["models/tiny.gguf", "../models/x", "/models/x", "a/b/c", "smollm2", "./x"] {
            assert!(!is_hub_id(path), "{path}");
        }
    }
}
