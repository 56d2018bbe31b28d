//! `export`: adapters merged into the weights in f32, rounded once, written as a Hugging Face folder.

use crate::failure::Failure;
use crate::prepare::{self, Answering};
use crate::ui;
use anyhow::anyhow;
use ferrotune_checkpoint::{Dtype, FolderWriter};
use ferrotune_config::Verb;
use ferrotune_config::plan::{Plan, Precision, Stage, Tuning};
use ferrotune_data::conversation::{Conversation, Message, Role};
use ferrotune_data::prepare::conversations;
use ferrotune_data::serving::trained_prompt;
use ferrotune_infer::Generator;
use ferrotune_train::save::Saver;
use std::path::Path;

/// Rows on which the merged model is compared with the adapters.
const SAMPLES: usize = 8;
/// Tokens of each of them.
const SAMPLE_TOKENS: usize = 256;

/// Writes the merged model to `export_dir`; `weights` are those of the adapters, all 1 if there are none.
pub(crate) fn export(args: &[String], weights: &[f64]) -> Result<(), Failure> {
    let mut resolved = prepare::resolve(args, Verb::Export)?;
    // Merging in f32 and rounding when it is written is what makes it one rounding.
    resolved.plan.model.precision = Precision::F32;
    let plan = &resolved.plan;
    let wanted = plan.export.precision;
    let dir = plan.export.dir.clone().ok_or_else(|| Failure::Other(anyhow!("export_dir is not set")))?;
    let open = prepare::open_weighted(&resolved, weights)?;
    let sample = if plan.model.adapters.is_empty() { None } else { Some(Sample::of(plan, &open)?) };
    let Answering { located, files, tokenizer, template, engine, .. } = open;
    refuse_sources(&dir, std::iter::once(located.path.as_path()).chain(plan.model.adapters.iter().map(Path::new)))?;
    let saved = prepare::files_to_save(&files.tokenizer, &tokenizer, &template)?;
    let folder = FolderWriter::new(&dir)?;
    let tuning = Tuning::Full;
    let saver = Saver {
        tuning: &tuning,
        continued: None,
        base: &files,
        base_name: &located.name,
        revision: located.revision.as_deref(),
        tokenizer: &saved,
        shard_bytes: plan.export.shard_bytes,
    };
    let dtype = wanted.map(|precision| match precision {
        Precision::F32 => Dtype::F32,
        Precision::Bf16 => Dtype::Bf16,
    });
    saver.whole(dtype, engine.parameters()).write_of(&engine, &folder)?;
    let modelfile = template.modelfile(&tokenizer, plan.data.default_system.as_deref());
    folder.bytes("Modelfile", modelfile.as_bytes())?;
    ui::line(&format!("The merged model is in {}.", dir.display()))?;
    // Its memory is wanted for the merged one.
    drop(engine);
    let Some(sample) = sample else { return Ok(()) };
    let (drift, scale) = sample.drift(&dir)?;
    Ok(ui::line(&format!(
        "Rounding moved the logits of {} rows by {drift:.3e} at most, where the largest is {scale:.1}.",
        sample.rows.len()
    ))?)
}

/// Rows, and the logits behind them before anything was rounded: those of the base with the adapters, in f32.
struct Sample {
    rows: Vec<Vec<u32>>,
    logits: Vec<Vec<f32>>,
}

impl Sample {
    fn of(plan: &Plan, open: &Answering) -> Result<Self, Failure> {
        let rows = sample_rows(plan, open)?;
        let logits = logits(open, &rows)?;
        Ok(Self { rows, logits })
    }

    /// The largest difference to the logits of the model in `dir`, and the largest of the logits.
    fn drift(&self, dir: &Path) -> Result<(f32, f32), Failure> {
        let mut merged = prepare::resolve(&[format!("model_name_or_path={}", dir.display())], Verb::Chat)?;
        merged.plan.model.precision = Precision::F32;
        let found = logits(&prepare::open_for_answers(&merged)?, &self.rows)?;
        let pairs = || self.logits.iter().flatten().zip(found.iter().flatten());
        // A number that isn't finite is as far away as can be; f32::max would pass over it.
        let drift = pairs().map(|(a, b)| (a - b).abs()).fold(0.0, |max, d| if d > max || d.is_nan() { d } else { max });
        Ok((drift, self.logits.iter().flatten().fold(0.0, |max, logit| max.max(logit.abs()))))
    }
}

/// Prompts of the recipe's rows, or one of ours where it names none.
fn sample_rows(plan: &Plan, open: &Answering) -> Result<Vec<Vec<u32>>, Failure> {
    let messages =
        vec![Message::new(Role::User, "Hello, who are you?"), Message::new(Role::Assistant, "An assistant.")];
    let ours = Conversation { messages, ..Conversation::default() };
    let of_recipe = plan.data.stage == Stage::Sft && !plan.data.datasets.is_empty();
    // The rows needn't be at hand where a model is exported.
    let mut found = if of_recipe { conversations(&plan.data, SAMPLES).unwrap_or_default() } else { Vec::new() };
    found.push(ours);
    let mut rows = Vec::new();
    for conversation in found.iter().take(SAMPLES) {
        let mut ids = trained_prompt(&open.tokenizer, &open.template, conversation)?;
        ids.truncate(SAMPLE_TOKENS);
        rows.extend((!ids.is_empty()).then_some(ids));
    }
    Ok(rows)
}

fn logits(open: &Answering, rows: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, Failure> {
    let mut generator = Generator::new(&open.model, &open.engine, open.engine.device(), SAMPLE_TOKENS);
    rows.iter().map(|row| Ok(generator.logits(row)?)).collect()
}

/// A merged model over its own base or adapter leaves neither: it can't be merged again, nor undone.
fn refuse_sources<'a>(dir: &Path, sources: impl Iterator<Item = &'a Path>) -> Result<(), Failure> {
    // A folder that isn't there yet is no source.
    let Ok(target) = dir.canonicalize() else { return Ok(()) };
    for source in sources {
        if source.canonicalize().is_ok_and(|source| source == target) {
            let dir = dir.display();
            return Err(Failure::Other(anyhow!(
                "export_dir {dir} is the folder of the model or adapter itself, which would be overwritten; choose another"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_not_exported_over_its_sources() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        std::fs::create_dir(at("base")).unwrap();
        std::fs::create_dir(at("adapter")).unwrap();
        let refused = |dir: &str| {
            let sources = [at("base"), at("adapter")];
            refuse_sources(&at(dir), sources.iter().map(AsRef::as_ref)).is_err()
        };
        assert!(refused("base") && refused("adapter") && refused("base/../adapter"));
        std::fs::create_dir(at("merged")).unwrap();
        assert!(!refused("merged") && !refused("not-there-yet"));
    }
}
