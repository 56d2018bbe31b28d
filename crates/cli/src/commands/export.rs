//! `export`: adapters merged into the weights in f32, rounded once, written as a Hugging Face folder.

use crate::failure::Failure;
use crate::prepare::{self, Answering};
use crate::ui;
use anyhow::anyhow;
use ferrotune_checkpoint::{Dtype, FolderWriter};
use ferrotune_config::Verb;
use ferrotune_config::plan::{Precision, Tuning};
use ferrotune_train::save::Saver;
use std::path::Path;

/// Writes the merged model to `export_dir`.
pub(crate) fn export(args: &[String]) -> Result<(), Failure> {
    let mut resolved = prepare::resolve(args, Verb::Export)?;
    // Merging in f32 and rounding when it is written is what makes it one rounding.
    resolved.plan.model.precision = Precision::F32;
    let plan = &resolved.plan;
    let wanted = plan.export.precision;
    let dir = plan.export.dir.clone().ok_or_else(|| Failure::Other(anyhow!("export_dir is not set")))?;
    let Answering { located, files, tokenizer, template, engine, .. } = prepare::open_for_answers(&resolved)?;
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
    Ok(ui::line(&format!("The merged model is in {}.", dir.display()))?)
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
