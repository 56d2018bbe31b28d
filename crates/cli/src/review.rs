//! What is known of a run before it begins, section by section: `check` shows all of it, `train` a line of each.

use crate::failure::Failure;
use crate::page::{self, seconds};
use crate::place::diagnostics;
use crate::prepare::Resolved;
use crate::{parity, ui};
use ferrotune_checkpoint::{LintOptions, LintReport, LintSeverity, Vllm, lint_intended, write_atomic};
use ferrotune_config::plan::{DataPlan, LoraPlan, Packing, Stage, TemplateChoice};
use ferrotune_config::{Diagnostic, Recipe, Severity};
use ferrotune_data::error::DataError;
use ferrotune_data::parity::{Parity, Part, parity as compare};
use ferrotune_data::prepare::{Prepared, TRAIN, conversations, look};
use ferrotune_data::report::{DatasetReport, Dropped, Report};
use ferrotune_data::serving::ServedPrompt;
use ferrotune_data::tokenizer::Tokenizer;
use ferrotune_model::Model;
use ferrotune_train::save::intended_adapter;
use ferrotune_train::{Forecast, MemoryPlan};
use serde_json::{Value, json};
use std::path::Path;

/// Rows that are compared with the model's own chat template, spread over all.
const COMPARED: usize = 1000;
/// Rows of a fault that are shown with what is wrong with each.
const TOLD: usize = 5;
/// How a server is to write prompts, in the run's folder; and the template, where the model's own doesn't do.
const SERVING: &str = "serving.json";
const SERVING_TEMPLATE: &str = "serving_template.jinja";

/// How bad something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Weight {
    /// Worth knowing.
    Note,
    /// Most likely not what is wanted.
    Warning,
    /// The run can't be made, or its result not be used as it is meant.
    Error,
}

impl Weight {
    fn word(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// Something that was found.
#[derive(Debug, Clone)]
pub(crate) struct Finding {
    pub(crate) weight: Weight,
    /// File and line, key, or the like; may be empty.
    pub(crate) place: String,
    pub(crate) what: String,
    pub(crate) cure: String,
}

/// A part of a review.
#[derive(Debug, Clone)]
pub(crate) struct Section {
    pub(crate) name: &'static str,
    /// In a line.
    pub(crate) verdict: String,
    pub(crate) findings: Vec<Finding>,
}

impl Section {
    /// One with nothing but errors.
    pub(crate) fn failed(name: &'static str, place: &str, what: String) -> Self {
        let finding = Finding { weight: Weight::Error, place: place.to_owned(), what, cure: String::new() };
        Self { name, verdict: "can't be looked at".into(), findings: vec![finding] }
    }

    /// One that can't be looked at for this reason.
    pub(crate) fn of_failure(name: &'static str, failure: &Failure) -> Self {
        match failure.placed() {
            Some(told) => Self::told(name, told),
            None => Self::failed(name, "", failure.words()),
        }
    }

    /// The same for reasons with their places.
    pub(crate) fn told(name: &'static str, told: &[Diagnostic]) -> Self {
        Self { name, verdict: "can't be looked at".into(), findings: told.iter().map(placed).collect() }
    }

    /// The worst of what was found.
    pub(crate) fn weight(&self) -> Option<Weight> {
        self.findings.iter().map(|finding| finding.weight).max()
    }

    /// In a line.
    pub(crate) fn line(&self) -> String {
        let word = match self.weight() {
            Some(weight @ (Weight::Error | Weight::Warning)) => weight.word(),
            _ => "ok",
        };
        format!("{:8} {word:8} {}", self.name, self.verdict)
    }

    /// The line and everything that was found.
    pub(crate) fn text(&self) -> String {
        let mut lines = vec![self.line()];
        for Finding { weight, place, what, cure } in &self.findings {
            let at = if place.is_empty() { String::new() } else { format!("{place}: ") };
            let indented = what.trim_end().replace('\n', "\n    ");
            lines.push(format!("  {}: {at}{indented}", weight.word()));
            if !cure.is_empty() {
                lines.push(format!("    cure: {cure}"));
            }
        }
        lines.join("\n")
    }

    /// The same for programs.
    pub(crate) fn json(&self) -> Value {
        let finding =
            |f: &Finding| json!({"severity": f.weight.word(), "place": f.place, "what": f.what, "cure": f.cure});
        let findings: Vec<Value> = self.findings.iter().map(finding).collect();
        json!({"section": self.name, "verdict": self.verdict, "findings": findings})
    }
}

/// What is wrong with some rows, a line each, and how many there are beyond those.
fn places(dropped: &[&Dropped]) -> String {
    let told = dropped.iter().filter(|dropped| !dropped.detail.is_empty()).take(TOLD);
    let lines: Vec<String> = told.map(|dropped| format!("\n{}: {}", dropped.place(), dropped.detail)).collect();
    let more = dropped.len().saturating_sub(lines.len());
    let more = if more > 0 && !lines.is_empty() { format!("\nand {more} more") } else { String::new() };
    lines.concat() + &more
}

fn placed(d: &Diagnostic) -> Finding {
    let weight = match d.severity {
        Severity::Error => Weight::Error,
        Severity::Note => Weight::Note,
    };
    let place =
        d.span.as_ref().map_or_else(|| d.file.clone(), |span| format!("{}:{}:{}", d.file, span.line, span.column));
    Finding { weight, place, what: d.message.clone(), cure: d.help.clone().unwrap_or_default() }
}

/// The recipe's notes or errors.
pub(crate) fn recipe(told: &[Diagnostic], file: &str) -> Section {
    let findings: Vec<Finding> = told.iter().map(placed).collect();
    let count = |weight: Weight| findings.iter().filter(|f| f.weight == weight).count();
    let verdict = format!("{file}: {} errors, {} notes", count(Weight::Error), count(Weight::Note));
    Section { name: "recipe", verdict, findings }
}

/// What happened to the rows.
pub(crate) fn data(report: &Report) -> Section {
    let mut findings = Vec::new();
    let mut push = |weight, place: String, what: String, cure: &str| {
        findings.push(Finding { weight, place, what, cure: cure.to_owned() });
    };
    for set in &report.datasets {
        for (fault, count) in set.faults() {
            let dropped: Vec<&Dropped> = set.dropped.iter().filter(|dropped| dropped.fault == fault).collect();
            let place = dropped.first().map(|dropped| dropped.place()).unwrap_or_default();
            let rows = if count == 1 { "row" } else { "rows" };
            let what = format!("{count} {rows} of {} left out: {fault}{}", set.name, places(&dropped));
            push(Weight::Warning, place, what, "correct the rows, or set `on_bad_row: error` to stop at them");
        }
        for absent in &set.absent {
            let cure = format!("name a column that the rows have, or remove `{}` from the entry's columns", absent.key);
            push(Weight::Warning, set.name.clone(), absent.to_string(), &cure);
        }
        if !set.unmapped.is_empty() {
            let names: Vec<String> = set.unmapped.iter().map(|column| format!("`{}`", column.column)).collect();
            let what = format!("nothing reads {} of {}", names.join(", "), set.name);
            let cure = set.columns_cure.as_ref().map(|columns| format!("write \"columns\": {columns} into its entry"));
            push(Weight::Warning, "dataset_info.json".into(), what, &cure.unwrap_or_default());
        }
        for (rows, what, otherwise) in set.quirks.told() {
            let weight = if otherwise { Weight::Warning } else { Weight::Note };
            push(weight, set.name.clone(), format!("{rows} rows: {what}"), "");
        }
        set.notes.iter().for_each(|note| push(Weight::Note, set.name.clone(), note.clone(), ""));
    }
    for set in &report.sets {
        if set.rows_cut > 0 {
            let what = format!(
                "{} of {} rows of {} are cut by {} tokens; {} answers lose their end",
                set.rows_cut, set.rows_kept, set.name, set.tokens_cut, set.eos_lost
            );
            push(
                Weight::Warning,
                "cutoff_len".into(),
                what,
                &format!("the longest row has {} tokens after the cut; raise cutoff_len", set.longest),
            );
        }
        if set.rows_without_labels > 0 {
            let what = format!("{} rows of {} have no token to train on", set.rows_without_labels, set.name);
            push(Weight::Warning, "cutoff_len".into(), what, "raise cutoff_len, or shorten the prompts");
        }
    }
    report.notes.iter().for_each(|note| push(Weight::Note, String::new(), note.clone(), ""));
    let set = |set: &ferrotune_data::report::SetReport| {
        let (used, kept) = (ui::grouped(set.rows_used as usize), ui::grouped(set.rows_kept as usize));
        format!(
            "{}: {kept} of {used} rows, {} tokens, {:.1} % of them trained on, longest {}",
            set.name,
            ui::grouped(set.tokens as usize),
            100.0 * set.label_share(),
            set.longest
        )
    };
    let verdict = match report.sets.len() {
        0 => "rows are encoded while the run goes on; what became of them is told at its end".to_owned(),
        _ => report.sets.iter().map(set).collect::<Vec<_>>().join("; "),
    };
    Section { name: "data", verdict, findings }
}

/// What can be said of rows that can't be encoded because something else is wrong, which is among `told`.
pub(crate) fn looked(plan: &DataPlan, recipe: &Recipe, told: &[Diagnostic]) -> Section {
    let (report, faults) = look(plan);
    let mut section = data(&report);
    let set = |set: &DatasetReport| {
        let (used, kept) = (ui::grouped(set.rows_used as usize), ui::grouped(set.rows_kept as usize));
        format!("{}: {kept} of {used} rows can be used", set.name)
    };
    let mut sets: Vec<String> = report.datasets.iter().map(set).collect();
    sets.push("nothing is encoded before the errors are cured".to_owned());
    section.verdict = sets.join("; ");
    let told: Vec<Finding> = told.iter().map(placed).collect();
    let known = |finding: &Finding| {
        told.iter().any(|told| told.what == finding.what || (!told.place.is_empty() && told.place == finding.place))
    };
    for fault in &faults {
        let mut found: Vec<Finding> = diagnostics(recipe, fault).iter().map(placed).collect();
        let repeated = |finding: &Finding| {
            section.findings.iter().any(|other| other.what == finding.what && other.place == finding.place)
        };
        found.retain(|finding| !known(finding) && !repeated(finding));
        if matches!(fault, DataError::NotFetched { .. } | DataError::RemoteRegistry { .. }) {
            // Nothing is brought here for a run that can't be.
            found.iter_mut().for_each(|finding| finding.weight = Weight::Note);
        }
        section.findings.extend(found);
    }
    section
}

/// Training's prompts beside the server's.
pub(crate) fn prompts(
    resolved: &Resolved,
    tokenizer: &Tokenizer,
    prepared: &Prepared,
) -> (Section, Option<ServedPrompt>) {
    let (plan, template) = (&resolved.plan, &prepared.template);
    let section = |verdict: String, findings| Section { name: "prompts", verdict, findings };
    let nothing = match plan.data.stage {
        Stage::Pretrain => Some("plain text: no prompt is written"),
        Stage::Pairwise | Stage::Feedback => Some("answers that are compared: not looked at"),
        Stage::Sft => plan.data.datasets.is_empty().then_some("nothing is trained"),
    };
    if let Some(nothing) = nothing {
        return (section(nothing.into(), Vec::new()), None);
    }
    let found = match conversations(&plan.data, COMPARED) {
        Ok(found) => found,
        Err(error) => return (Section::failed("prompts", "dataset", error.to_string()), None),
    };
    let (sum, served) = match compare(tokenizer, template, &found) {
        Ok(found) => found,
        Err(error) => return (Section::failed("prompts", "template", error.to_string()), None),
    };
    let mut findings = Vec::new();
    if let Some(sum) = &sum {
        findings.extend(differences(sum, template.is_reasoning(), plan.data.template == TemplateChoice::Model));
    }
    if served.agrees.0 < served.agrees.1 {
        let what = format!("{}: the model will be asked otherwise than it was trained", parity::calling(&served));
        let cure = "train with a template that the model's own writes: leave `template` out".to_owned();
        findings.push(Finding { weight: Weight::Warning, place: place(resolved), what, cure });
    }
    if plan.data.packing != Packing::Off {
        let what = "rows are packed; each is compared by itself".to_owned();
        findings.push(Finding { weight: Weight::Note, place: "packing".into(), what, cure: String::new() });
    }
    for finding in &mut findings {
        if finding.place == "template" {
            finding.place = place(resolved);
        }
    }
    let trained = prepared.report.sets.iter().find(|set| set.name == TRAIN);
    let of = trained.map(|set| set.rows_used).filter(|rows| *rows > COMPARED as u64);
    let verdict = sum.as_ref().map(|sum| parity::summary(sum, of));
    let verdict = verdict.unwrap_or_else(|| "the model has no chat template of its own".to_owned());
    (section(format!("{verdict}; {}", parity::calling(&served)), findings), Some(served))
}

/// Where the recipe names its template.
fn place(resolved: &Resolved) -> String {
    let at = resolved.recipe.error_at("template", String::new());
    at.span.as_ref().map_or_else(|| "template".to_owned(), |span| format!("{}:{}:{}", at.file, span.line, span.column))
}

/// What rows differ in, with cures. `reasoning`: the template writes blocks of reasoning; `own`: it is derived from the model's.
fn differences(sum: &Parity, reasoning: bool, own: bool) -> Vec<Finding> {
    let alien = sum.differ.contains_key(&Part::EndMark) || sum.differ.contains_key(&Part::Other);
    let general = "leave `template` out to train on what the model's own template writes, or serve with what the run \
                   writes into serving.json";
    let of = |(part, rows): (&Part, &usize)| {
        let what = format!("{rows} of {} rows differ from the model's own chat template in {}", sum.rows, part.words());
        let cure = match part {
            Part::Thinking if sum.hybrid && !reasoning => {
                "this model reasons unless told otherwise, and its template writes a block of reasoning into each last answer, \
                 empty or not: take its reasoning template (`qwen3`, not `qwen3_nothink`), with `enable_thinking: false` for \
                 rows without reasoning, and ask with chat_template_kwargs {\"enable_thinking\": false}"
            }
            Part::Thinking => {
                "the model's template drops reasoning of earlier turns: set `mask_history: true`, or train on last \
                               answers only"
            }
            Part::System if alien => {
                "the two write other things differently, too: take the template of this model's family, or leave `template` out"
            }
            Part::System => {
                "set `default_system` to what the model's template writes, or send the same system prompt when asking"
            }
            Part::EndMark => {
                "the server may not stop where training ended answers: take the template of this model's family"
            }
            Part::Other => general,
        };
        Finding { weight: Weight::Warning, place: "template".into(), what, cure: cure.to_owned() }
    };
    let mut findings: Vec<Finding> = sum.differ.iter().map(of).collect();
    if own {
        // What is derived from the model's own template differs only where that template looks at more than a turn.
        for finding in &mut findings {
            finding.weight = Weight::Note;
            finding.cure =
                "name the template of this model's family in `template`, or serve with what the run writes into \
                            serving.json"
                    .to_owned();
        }
    }
    if let Some((rows, reason)) = &sum.refused {
        let what = format!("{rows} rows can't be written by the model's own chat template: {reason}");
        findings.push(Finding { weight: Weight::Warning, place: "template".into(), what, cure: general.to_owned() });
    }
    findings
}

/// Memory and time of the machine at hand.
pub(crate) fn memory(memory: &MemoryPlan, step: Option<f64>) -> Section {
    let of = memory.room.device().map(|bytes| format!(" of {}", ui::bytes(bytes))).unwrap_or_default();
    let time = step.map(|step| format!(", {} a step", seconds(step))).unwrap_or_default();
    let recompute = if memory.recompute { ", blocks recomputed" } else { "" };
    let verdict = format!("{}{of} at the longest batch{time}{recompute}", ui::bytes(memory.needed()));
    Section { name: "plan", verdict, findings: Vec::new() }
}

/// A run on the machine that was asked about.
pub(crate) fn forecast(found: &Forecast) -> Section {
    let mut section = memory(&found.meant.memory, Some(found.duration.step));
    let way = &found.meant;
    section.verdict = format!("{}: {}", page::name(way), section.verdict);
    if let Some(steps) = found.duration.steps {
        section.verdict += &format!(", {} for {steps} steps", ui::duration(found.duration.step * steps as f64));
    }
    if !way.choice.fits {
        let limit = way.memory.room.device().unwrap_or_default();
        let what = format!("it doesn't fit: {} too much", ui::bytes(way.memory.needed().saturating_sub(limit)));
        let cures: Vec<&str> = found.cures.iter().map(|cure| cure.change.as_str()).collect();
        let cure = match cures[..] {
            [] => "no single change was found that makes it fit; see `ferrotune plan`".to_owned(),
            _ => format!("one of: {}", cures.join("; ")),
        };
        section.findings.push(Finding { weight: Weight::Error, place: "memory".into(), what, cure });
    }
    section
}

/// Whether vLLM will take the adapter that the recipe writes.
pub(crate) fn adapter((folder, vllm): (&Path, Vllm), lora: &LoraPlan, base_name: &str, model: &Model) -> Section {
    let (config, modules) = intended_adapter(lora, base_name, model.parameters());
    let options = LintOptions { vllm, base: Err("its weights aren't needed yet") };
    linted(&lint_intended(folder, &config, &modules, options))
}

fn linted(report: &LintReport) -> Section {
    let finding = |finding: &ferrotune_checkpoint::Finding| {
        let weight = if finding.severity == LintSeverity::Error { Weight::Error } else { Weight::Note };
        let what = format!("{} (vLLM: {})", finding.what, finding.server);
        Finding { weight, place: finding.rule.to_owned(), what, cure: finding.cure.clone() }
    };
    let mut findings: Vec<Finding> = report.findings.iter().map(finding).collect();
    if let Some(rank) = report.max_lora_rank {
        findings.push(Finding {
            weight: Weight::Note,
            place: "lora_rank".into(),
            what: format!("rank {} is above vLLM's default of 16", report.rank),
            cure: format!("start the server with --max-lora-rank {rank}, as `ferrotune deploy` does"),
        });
    }
    let can = if report.is_sound() { "can" } else { "can't" };
    let flag = report.max_lora_rank.filter(|_| report.is_sound());
    let flag = flag.map(|rank| format!(" with --max-lora-rank {rank}")).unwrap_or_default();
    let verdict =
        format!("vLLM {} {can} serve it{flag}: {} modules of rank {}", report.vllm, report.modules, report.rank);
    Section { name: "adapter", verdict, findings }
}

/// Writes into a run's folder how a server is to write prompts.
pub(crate) fn write_serving(folder: &Path, served: &ServedPrompt) -> Result<(), Failure> {
    let template = if served.is_own { Value::Null } else { SERVING_TEMPLATE.into() };
    let how = match served.is_own {
        true => "ask with these chat_template_kwargs; the chat template is the model's own",
        false => "start the server with --chat-template and this file; the model's own writes other prompts",
    };
    let text = json!({
        "how": how,
        "chat_template_kwargs": served.kwargs,
        "chat_template": template,
        "prompts_as_in_training": served.agrees.0,
        "prompts_tried": served.agrees.1,
    });
    if !served.is_own {
        write_atomic(&folder.join(SERVING_TEMPLATE), served.chat_template.as_bytes())?;
    }
    Ok(write_atomic(&folder.join(SERVING), format!("{text:#}\n").as_bytes())?)
}
