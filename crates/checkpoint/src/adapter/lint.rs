//! What would keep an adapter from being served as it was trained: what vLLM refuses, and what it takes in silence
//! although it is wrong. Reads leniently, so that all faults are told at once.
//!
//! The rules are those of vLLM 0.32.0 (`lora/peft_helper.py`, `lora/lora_model.py`, `lora/utils.py`, `lora/layers`), tried on
//! the running server where its source leaves a doubt, and of 0.11.0 where that is stricter.

mod config;
mod tensors;
mod vllm;

pub use vllm::Vllm;

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::{AdapterConfig, CONFIG, open_weights};
use crate::file::read_json;
use crate::source::TensorSource;

/// How many faults of one rule are told one by one.
const MAX_TOLD: usize = 5;
/// The cure for everything that the program itself can merge.
const EXPORT: &str = "serve the merged model that `ferrotune export` writes";

/// What an adapter is checked against.
#[derive(Clone, Copy)]
pub struct LintOptions<'a> {
    /// The server.
    pub vllm: Vllm,
    /// The model it is to be served on, or why that can't be looked at.
    pub base: Result<LintBase<'a>, &'a str>,
}

/// A base model.
#[derive(Clone, Copy)]
pub struct LintBase<'a> {
    /// How the user calls it.
    pub name: &'a str,
    /// Its config.json.
    pub config: &'a Value,
    /// Its tensors, by Hugging Face's names.
    pub tensors: &'a dyn TensorSource,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LintReport {
    /// The adapter's folder.
    pub adapter: PathBuf,
    /// The server's version.
    pub vllm: String,
    /// Largest rank of a module; 0 if it can't be told.
    pub rank: usize,
    /// Modules with a pair of low-rank matrices.
    pub modules: usize,
    /// The value that `--max-lora-rank` needs, if the server's default is too small.
    pub max_lora_rank: Option<usize>,
    /// What is wrong or should be known, in the order of the rules.
    pub findings: Vec<Finding>,
}

/// Something that is wrong, or should be known.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// Whether the adapter can't be served as it is.
    pub severity: LintSeverity,
    /// The rule's short name.
    pub rule: &'static str,
    /// What is there.
    pub what: String,
    /// What the server does with it.
    pub server: String,
    /// What to do.
    pub cure: String,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LintSeverity {
    /// The server refuses it, or answers otherwise than the trained model.
    Error,
    /// Worth knowing.
    Note,
}

impl LintReport {
    /// Whether nothing keeps the adapter from being served.
    pub fn is_sound(&self) -> bool {
        self.errors().next().is_none()
    }

    /// What is wrong.
    pub fn errors(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.severity == LintSeverity::Error)
    }
}

/// Findings as they come.
#[derive(Default)]
struct Findings {
    list: Vec<Finding>,
    /// Faults of a rule beyond those that are told.
    more: Vec<(&'static str, usize)>,
}

impl Findings {
    /// Notes a fault: rule, what is there, what the server does, the cure.
    fn error(&mut self, rule: &'static str, what: String, server: impl Into<String>, cure: impl Into<String>) {
        if self.list.iter().filter(|finding| finding.rule == rule).count() < MAX_TOLD {
            let (server, cure) = (server.into(), cure.into());
            self.list.push(Finding { severity: LintSeverity::Error, rule, what, server, cure });
            return;
        }
        match self.more.iter_mut().find(|(of, _)| *of == rule) {
            Some((_, count)) => *count += 1,
            None => self.more.push((rule, 1)),
        }
    }

    fn note(&mut self, rule: &'static str, what: String, server: &str, cure: &str) {
        let (server, cure) = (server.to_owned(), cure.to_owned());
        self.list.push(Finding { severity: LintSeverity::Note, rule, what, server, cure });
    }

    fn finish(mut self) -> Vec<Finding> {
        for (rule, count) in self.more {
            if let Some(last) = self.list.iter_mut().rfind(|finding| finding.rule == rule) {
                last.what.push_str(&format!(" (and {count} more like it)"));
            }
        }
        self.list
    }
}

/// Checks the adapter in `folder`. What can't be read is a finding, too.
pub fn lint(folder: &Path, options: LintOptions<'_>) -> LintReport {
    let mut findings = Findings::default();
    let settings = read_settings(folder, &mut findings)
        .map(|settings| config::Settings::check(&settings, options, &mut findings))
        .unwrap_or_default();
    let modules = match open_weights(folder) {
        Ok(file) => tensors::check(&file, &settings, options, &mut findings),
        Err(error) => {
            let cure = "write the adapter again: `ferrotune train` and PEFT's save_pretrained do";
            findings.error("weights", error.to_string(), "it refuses the folder", cure);
            0
        }
    };
    if let Err(reason) = options.base {
        let cure = "give the model's folder with --base";
        findings.note("base-unseen", format!("whether the adapter fits its model was not checked: {reason}"), "", cure);
    }
    LintReport {
        adapter: folder.to_path_buf(),
        vllm: options.vllm.to_string(),
        rank: settings.largest_rank(),
        modules,
        max_lora_rank: options.vllm.max_lora_rank(settings.largest_rank()).filter(|max| *max > Vllm::DEFAULT_MAX_RANK),
        findings: findings.finish(),
    }
}

/// Checks an adapter that isn't written yet: its configuration and the modules that will have a pair.
pub fn lint_intended(
    folder: &Path,
    config: &AdapterConfig,
    modules: &[String],
    options: LintOptions<'_>,
) -> LintReport {
    let mut findings = Findings::default();
    let settings = match serde_json::to_value(config) {
        Ok(Value::Object(settings)) => config::Settings::check(&settings, options, &mut findings),
        _ => config::Settings::default(),
    };
    modules.iter().for_each(|module| tensors::place(module, options, &mut findings));
    let rank = settings.largest_rank();
    LintReport {
        adapter: folder.to_path_buf(),
        vllm: options.vllm.to_string(),
        rank,
        modules: modules.len(),
        max_lora_rank: options.vllm.max_lora_rank(rank).filter(|max| *max > Vllm::DEFAULT_MAX_RANK),
        findings: findings.finish(),
    }
}

/// `adapter_config.json` as an object.
fn read_settings(folder: &Path, findings: &mut Findings) -> Option<serde_json::Map<String, Value>> {
    let path = folder.join(CONFIG);
    let what = match read_json(&path) {
        Ok(Value::Object(settings)) => return Some(settings),
        Ok(_) => format!("{CONFIG} is no JSON object"),
        Err(_) if !path.exists() => format!("there is no {CONFIG}"),
        Err(error) => error.to_string(),
    };
    findings.error("config", what, "it refuses the folder", "give the folder of a PEFT adapter, whole");
    None
}
