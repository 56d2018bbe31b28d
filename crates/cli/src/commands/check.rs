//! `check`: whether a recipe's run will be what it is meant to be, before a weight is read; or whether an adapter's folder can
//! be served as it is.

use super::plan::{Place, Shape, Where, lengths, subject};
use crate::failure::{self, Failure};
use crate::prepare::{self, Resolved};
use crate::review::{self, Section, Weight};
use crate::{environment, ui};
use anyhow::anyhow;
use ferrotune_checkpoint::hub::{self, HubSettings, Want};
use ferrotune_checkpoint::{
    LintBase, LintOptions, LintReport, LintSeverity, OpenModel, Vllm, lint, open_model, open_tokenizer,
};
use ferrotune_config::plan::{DataPlan, Tuning};
use ferrotune_config::{Diagnostic, Verb};
use ferrotune_data::prepare::{Prepared, prepare as encode};
use ferrotune_data::tokenizer::Tokenizer;
use ferrotune_model::{Model, ModelError};
use ferrotune_train::{dtype, forecast};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long this machine is measured, about: shorter than a run does it, as the page is to be there at once.
const PATIENCE: Duration = Duration::from_millis(600);

/// What is checked, and against what.
#[derive(Debug, clap::Args)]
pub(crate) struct CheckArgs {
    /// The version of vLLM that is to serve the adapter.
    #[arg(long, value_name = "VERSION", default_value_t = Vllm::V0_32)]
    vllm: Vllm,
    /// The adapter's base model, if it isn't where the adapter says: a folder, a file, a hub id.
    #[arg(long, value_name = "MODEL")]
    base: Option<String>,
    #[command(flatten)]
    place: Where,
    /// How the findings are printed.
    #[arg(long, value_name = "FORMAT", value_parser = ["text", "json"], default_value = "text")]
    format: String,
    /// A recipe and overrides; or an adapter's folder: an output_dir, or one of its checkpoints.
    #[arg(value_name = "RECIPE | ADAPTER", trailing_var_arg = true, allow_hyphen_values = true)]
    target: Vec<String>,
}

/// Prints what is wrong; exit code 1 if anything is.
pub(crate) fn check(args: &CheckArgs) -> Result<(), Failure> {
    match &args.target[..] {
        [] => Err(Failure::Other(anyhow!("name a recipe (.yaml, .json) or the folder of an adapter"))),
        [folder] if Path::new(folder).is_dir() => check_adapter(args, Path::new(folder)),
        [word] if !word.contains('=') && !prepare::is_recipe(word) => {
            Err(Failure::Other(anyhow!("{word} is neither the folder of an adapter nor a recipe (.yaml, .yml, .json)")))
        }
        recipe => check_recipe(args, recipe),
    }
}

fn check_adapter(args: &CheckArgs, folder: &Path) -> Result<(), Failure> {
    let base = Opened::of_adapter(folder, args.base.as_deref());
    let report = lint(folder, LintOptions { vllm: args.vllm, base: base.as_lint_base() });
    match args.format.as_str() {
        "json" => ui::line(&serde_json::to_string_pretty(&report)?)?,
        _ => ui::line(&text(&report))?,
    }
    if report.is_sound() { Ok(()) } else { Err(Failure::Told(failure::ERROR)) }
}

fn check_recipe(args: &CheckArgs, recipe: &[String]) -> Result<(), Failure> {
    let place = Place::new(&args.place)?;
    let file = recipe.first().map_or("", String::as_str);
    let sections = match prepare::resolve_quietly(recipe, Verb::Train) {
        Ok((resolved, notes)) => {
            let mut sections = vec![review::recipe(&notes, file)];
            sections.extend(all_sections(&resolved, &place, args.vllm));
            sections
        }
        Err(Failure::Recipe(wrong)) => {
            let rows = looked(recipe, &wrong.0);
            std::iter::once(review::recipe(&wrong.0, file)).chain(rows).collect()
        }
        Err(other) => return Err(other),
    };
    let sound = sections.iter().all(|section| section.weight() != Some(Weight::Error));
    match args.format.as_str() {
        "json" => {
            let sections: Vec<Value> = sections.iter().map(Section::json).collect();
            let page = json!({"recipe": file, "sound": sound, "sections": sections});
            ui::line(&serde_json::to_string_pretty(&page)?)?;
        }
        _ => {
            sections.iter().try_for_each(|section| ui::line(&section.text()))?;
            let count = |weight: Weight| {
                sections.iter().flat_map(|section| &section.findings).filter(|f| f.weight == weight).count()
            };
            let (errors, warnings) = (count(Weight::Error), count(Weight::Warning));
            let verdict = if sound { "the run can begin" } else { "the run would not be what it is meant to be" };
            ui::line(&format!("\n{verdict}: {errors} errors, {warnings} warnings"))?;
        }
    }
    if sound { Ok(()) } else { Err(Failure::Told(failure::ERROR)) }
}

/// The rows of a recipe with errors, where what says which rows there are isn't among those.
fn looked(args: &[String], wrong: &[Diagnostic]) -> Option<Section> {
    let recipe = prepare::read(args).ok()?.recipe;
    let plan = DataPlan::of_faulty(&recipe, Verb::Train)?;
    Some(review::looked(&plan, &recipe, wrong))
}

/// All that can be looked at; what can't is told, and the rest goes on.
fn all_sections(resolved: &Resolved, place: &Place, vllm: Vllm) -> Vec<Section> {
    let plan = &resolved.plan;
    let model = match Shape::of(resolved) {
        Ok(model) => model,
        Err(failure) => {
            let rows = review::looked(&plan.data, &resolved.recipe, failure.placed().unwrap_or_default());
            return vec![Section::of_failure("model", &failure), rows];
        }
    };
    let rows = encoded(resolved, &model);
    let mut sections = Vec::new();
    match &rows {
        Ok((tokenizer, prepared)) => {
            sections.push(review::data(&prepared.report));
            sections.push(review::prompts(resolved, tokenizer, prepared).0);
        }
        Err(failure) => {
            // What ends the encoding hides nothing else of the rows.
            let rows = review::looked(&plan.data, &resolved.recipe, failure.placed().unwrap_or_default());
            let mut section = Section::of_failure("data", failure);
            section.verdict = rows.verdict;
            section.findings.extend(rows.findings);
            sections.push(section);
        }
    }
    let tuned = Model::new(&model.config, dtype(plan.model.precision), Some(&plan.tuning), plan.train.pure_bf16);
    let tuned = match tuned {
        Ok(tuned) => tuned,
        // What is to train and isn't there is told once, and can't be planned with.
        Err(error) => {
            sections.push(match &error {
                ModelError::Unmet(unmet) => Section::told("modules", &prepare::unmet_at(resolved, None, unmet)),
                _ => Section::failed("modules", "", error.to_string()),
            });
            return sections;
        }
    };
    if let Ok((_, prepared)) = &rows {
        let planned = subject(resolved, &model, lengths(prepared, plan), (place, PATIENCE));
        let planned = planned.and_then(|subject| forecast(&subject).map_err(|error| resolved.place(error)));
        sections.push(match &planned {
            Ok(found) => review::forecast(found),
            Err(failure) => Section::of_failure("plan", failure),
        });
    }
    if let Tuning::Lora(lora) = &plan.tuning
        && plan.output.train
    {
        sections.push(review::adapter((&plan.output.dir, vllm), lora, &model.name, &tuned));
    }
    sections
}

fn encoded(resolved: &Resolved, model: &Shape) -> Result<(Tokenizer, Prepared), Failure> {
    let plan = &resolved.plan;
    let files = open_tokenizer(&model.path).map_err(|error| resolved.place(error))?;
    let mut tokenizer = prepare::tokenizer(&plan.model, &files)?;
    let prepared = encode(&plan.data, &mut tokenizer, &ui::Encoding::default());
    Ok((tokenizer, prepared.map_err(|error| resolved.place(error))?))
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
            let on_disk = |name: &str| hub::resolve(name, &settings, Want::Everything, &ui::Downloads::default());
            // What came by a package of the catalogue is no part of the hub's cache, where its id is looked up.
            let by_package =
                || hub::CATALOGUE.iter().find(|entry| entry.hugging_face == name && entry.package.is_some());
            let found = on_disk(name).or_else(|error| by_package().and_then(|e| on_disk(e.name).ok()).ok_or(error));
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
