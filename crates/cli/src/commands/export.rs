//! `export`: adapters merged into the weights in f32, rounded once, written as a Hugging Face folder.

use crate::failure::Failure;
use crate::prepare::{self, Answering};
use crate::ui;
use anyhow::anyhow;
use ferrotune_checkpoint::{Dtype, FolderWriter};
use ferrotune_config::Verb;
use ferrotune_config::plan::{Plan, Precision, Tuning};
use ferrotune_train::save::{Saver, write_as, write_whole};

/// Writes the merged model to `export_dir`.
pub(crate) fn export(args: &[String]) -> Result<(), Failure> {
    let resolved = prepare::resolve(args, Verb::Export)?;
    // Merging in f32 and rounding when it is written is what makes it one rounding.
    let mut plan = Plan { ..resolved.plan };
    let wanted = plan.export.precision;
    plan.model.precision = Precision::F32;
    let dir = plan.export.dir.clone().ok_or_else(|| Failure::Other(anyhow!("export_dir is not set")))?;
    let Answering { located, files, tokenizer, template, engine, .. } = prepare::open_for_answers(&plan)?;
    let saved = prepare::files_to_save(&files.tokenizer, &tokenizer, &template)?;
    let folder = FolderWriter::new(&dir)?;
    let tuning = Tuning::Full;
    let saver = Saver {
        tuning: &tuning,
        base: &files,
        base_name: &located.name,
        revision: located.revision.as_deref(),
        tokenizer: &saved,
        shard_bytes: plan.export.shard_bytes,
    };
    match wanted {
        None => write_whole(&engine, &saver, &folder)?,
        Some(Precision::F32) => write_as(&engine, &saver, Dtype::F32, &folder)?,
        Some(Precision::Bf16) => write_as(&engine, &saver, Dtype::Bf16, &folder)?,
    }
    let modelfile = template.modelfile(&tokenizer, plan.data.default_system.as_deref());
    folder.bytes("Modelfile", modelfile.as_bytes())?;
    Ok(ui::line(&format!("The merged model is in {}.", dir.display()))?)
}
