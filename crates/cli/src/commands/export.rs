//! `export`: adapters merged into the weights in f32, rounded once, written as a Hugging Face folder or as a GGUF file.

mod gguf;
mod quantised;
mod sample;

use crate::failure::Failure;
use crate::prepare::{self, Answering, Resolved};
use crate::{fetch, ui};
use anyhow::anyhow;
use ferrotune_checkpoint::hub::{HubError, Uploader};
use ferrotune_checkpoint::{Dtype, FolderWriter};
use ferrotune_config::Verb;
use ferrotune_config::plan::{ExportFormat, Precision, Tuning, UploadPlan};
use ferrotune_train::save::Saver;
use sample::Sample;
use std::path::{Path, PathBuf};

/// Writes the merged model to `export_dir`; `weights` are those of the adapters, all 1 if there are none.
pub(crate) fn export(args: &[String], weights: &[f64]) -> Result<(), Failure> {
    let mut resolved = prepare::resolve(args, Verb::Export)?;
    // Merging in f32 and rounding when it is written is what makes it one rounding.
    resolved.plan.model.precision = Precision::F32;
    let plan = &resolved.plan;
    let dir = plan.export.dir.clone().ok_or_else(|| Failure::Other(anyhow!("export_dir is not set")))?;
    let upload = plan.export.upload.as_ref().map(|upload| begin_upload(&resolved, upload)).transpose()?;
    let open = prepare::open_weighted(&resolved, weights)?;
    let adapters = plan.model.adapters.iter().map(Path::new);
    refuse_sources(&dir, std::iter::once(open.located.path.as_path()).chain(adapters))?;
    quantised::check(&resolved, &open)?;
    let is_gguf = plan.export.format != ExportFormat::Safetensors;
    // A plain copy has nothing to be compared with, but a quantised one has.
    let sample = if plan.model.adapters.is_empty() && !is_gguf { None } else { Some(Sample::of(plan, &open)?) };
    let folder = FolderWriter::new(&dir)?;
    let written = match plan.export.format {
        ExportFormat::Gguf(kind) => gguf::write(plan, kind, &open, &folder)?,
        ExportFormat::Safetensors => safetensors(plan.export.precision, plan.export.shard_bytes, &open, &folder)?,
    };
    let from = written.file_name().filter(|_| is_gguf).map(|file| format!("./{}", file.to_string_lossy()));
    let system = plan.data.default_system.as_deref();
    let modelfile = open.template.modelfile(&open.tokenizer, from.as_deref().unwrap_or("."), system);
    modelfile.notes.iter().for_each(|note| ui::note(note));
    folder.bytes("Modelfile", modelfile.text.as_bytes())?;
    ui::line(&format!("The merged model is in {}.", written.display()))?;
    // Its memory is wanted for the merged one.
    drop(open);
    if let Some(sample) = sample {
        let (drift, scale) = sample.drift(&written)?;
        ui::line(&format!(
            "Rounding moved the logits of {} rows by {drift:.3e} at most, where the largest is {scale:.1}.",
            sample.len()
        ))?;
    }
    let Some(upload) = upload else { return Ok(()) };
    let address =
        upload.send(&dir, "Merged by ferrotune", &ui::Downloads::default()).map_err(|error| resolved.place(error))?;
    Ok(ui::line(&format!("It is at {address}."))?)
}

/// Makes the repository before hours go into what it is for: who may not write there learns it now.
fn begin_upload(resolved: &Resolved, plan: &UploadPlan) -> Result<Uploader, Failure> {
    let settings = fetch::hub_settings(&resolved.plan.model)?;
    let begin = || {
        let uploader = Uploader::new(&settings, &plan.repository)?;
        uploader.create(plan.private)?;
        Ok(uploader)
    };
    begin().map_err(|error: HubError| resolved.place(error))
}

/// Writes a Hugging Face folder.
fn safetensors(
    wanted: Option<Precision>,
    shard_bytes: u64,
    open: &Answering,
    folder: &FolderWriter,
) -> Result<PathBuf, Failure> {
    let Answering { located, files, tokenizer, template, engine, .. } = open;
    let saved = prepare::files_to_save(&files.tokenizer, tokenizer, template)?;
    let tuning = Tuning::Full;
    let saver = Saver {
        tuning: &tuning,
        continued: None,
        base: files,
        base_name: &located.name,
        revision: located.revision.as_deref(),
        tokenizer: &saved,
        shard_bytes,
    };
    let dtype = wanted.map(|precision| match precision {
        Precision::F32 => Dtype::F32,
        Precision::Bf16 => Dtype::Bf16,
        Precision::F16 => Dtype::F16,
    });
    saver.whole(dtype, engine.parameters()).write_of(engine, folder)?;
    Ok(folder.path().to_path_buf())
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
