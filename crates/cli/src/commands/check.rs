//! `check`: whether what lies in a folder can be used as it is. Today an adapter's folder, against a version of vLLM.

use crate::failure::{self, Failure};
use crate::{environment, ui};
use anyhow::anyhow;
use ferrotune_checkpoint::hub::{self, HubSettings, Want};
use ferrotune_checkpoint::{LintBase, LintOptions, LintReport, LintSeverity, OpenModel, Vllm, lint, open_model};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// What is checked, and against what.
#[derive(Debug, clap::Args)]
pub(crate) struct CheckArgs {
    /// An adapter's folder: an output_dir, or one of its checkpoints.
    #[arg(value_name = "ADAPTER")]
    target: PathBuf,
    /// The version of vLLM that is to serve it.
    #[arg(long, value_name = "VERSION", default_value_t = Vllm::V0_32)]
    vllm: Vllm,
    /// The base model, if it isn't where the adapter says: a folder, a file, a hub id.
    #[arg(long, value_name = "MODEL")]
    base: Option<String>,
    /// How the findings are printed.
    #[arg(long, value_name = "FORMAT", value_parser = ["text", "json"], default_value = "text")]
    format: String,
}

/// Prints what is wrong; exit code 1 if the adapter can't be served.
pub(crate) fn check(args: &CheckArgs) -> Result<(), Failure> {
    if !args.target.is_dir() {
        let hint = "check takes the folder of an adapter; recipes are checked by every verb that reads one";
        return Err(Failure::Other(anyhow!("{} is no folder; {hint}", args.target.display())));
    }
    let base = Opened::of_adapter(&args.target, args.base.as_deref());
    let report = lint(&args.target, LintOptions { vllm: args.vllm, base: base.as_lint_base() });
    match args.format.as_str() {
        "json" => ui::line(&serde_json::to_string_pretty(&report)?)?,
        _ => ui::line(&text(&report))?,
    }
    if report.is_sound() { Ok(()) } else { Err(Failure::Told(failure::ERROR)) }
}

/// A base model, or why it can't be looked at.
pub(crate) struct Opened {
    pub(crate) name: String,
    pub(crate) revision: Option<String>,
    pub(crate) found: Result<(PathBuf, OpenModel), String>,
}

impl Opened {
    /// Opens what `adapter_config.json` names, or `named`, if it is on this machine: nothing is downloaded.
    pub(crate) fn of_adapter(adapter: &Path, named: Option<&str>) -> Self {
        let config: Value = std::fs::read(adapter.join("adapter_config.json"))
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        let text = |key: &str| config[key].as_str().map(str::to_owned);
        let own = named.is_none().then(|| text("revision")).flatten();
        match named.map(str::to_owned).or_else(|| text("base_model_name_or_path")) {
            Some(name) => Self::open(&name, own),
            None => Self { name: String::new(), revision: None, found: Err("the adapter names none".into()) },
        }
    }

    /// Opens a model by its name.
    pub(crate) fn open(name: &str, revision: Option<String>) -> Self {
        let found = || -> Result<(PathBuf, OpenModel), String> {
            let home = environment::home().ok_or("HOME is not set")?;
            let mut settings = HubSettings::from_vars(environment::var, home);
            (settings.offline, settings.revision) = (true, revision.clone());
            let found = hub::resolve(name, &settings, Want::Everything, &ui::Downloads::default());
            let path = found.map_err(|error| error.to_string())?.path;
            let model = open_model(&path).map_err(|error| error.to_string())?;
            Ok((path, model))
        };
        Self { name: name.to_owned(), found: found(), revision }
    }

    /// As the lint takes it.
    pub(crate) fn as_lint_base(&self) -> Result<LintBase<'_>, &str> {
        let (_, model) = self.found.as_ref().map_err(String::as_str)?;
        Ok(LintBase { name: &self.name, config: &model.config, tensors: &*model.tensors })
    }
}

/// The findings for people, then one line that sums them up.
pub(crate) fn text(report: &LintReport) -> String {
    let mut lines: Vec<String> = Vec::new();
    for finding in &report.findings {
        let head = if finding.severity == LintSeverity::Error { "error" } else { "note" };
        lines.push(format!("{head}[{}]: {}", finding.rule, finding.what));
        if !finding.server.is_empty() {
            lines.push(format!("  vLLM: {}", finding.server));
        }
        lines.push(format!("  cure: {}", finding.cure));
    }
    lines.push(summary(report));
    lines.join("\n")
}

/// One line.
pub(crate) fn summary(report: &LintReport) -> String {
    let flag = report.max_lora_rank.map(|max| format!(", wants --max-lora-rank {max}")).unwrap_or_default();
    let what = format!("{} modules of rank {}{flag}", report.modules, report.rank);
    match report.errors().count() {
        0 => format!("{}: vLLM {} can serve it: {what}", report.adapter.display(), report.vllm),
        1 => format!("{}: vLLM {} can't serve it: 1 error", report.adapter.display(), report.vllm),
        count => format!("{}: vLLM {} can't serve it: {count} errors", report.adapter.display(), report.vllm),
    }
}
