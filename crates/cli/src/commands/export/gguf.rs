//! The GGUF file of `export`: its types, its name, the chat template in it.

use super::sample::sample_conversations;
use crate::failure::Failure;
use crate::prepare::{self, Answering};
use crate::ui;
use anyhow::anyhow;
use ferrotune_checkpoint::FolderWriter;
use ferrotune_checkpoint::gguf::FileType;
use ferrotune_config::plan::{GgufType, Plan, Precision};
use ferrotune_data::serving::served_prompt;
use ferrotune_train::save::{GgufModel, named_dtype};
use std::path::PathBuf;

/// Writes the file and gives back its path.
pub(super) fn write(
    plan: &Plan,
    kind: Option<GgufType>,
    open: &Answering,
    folder: &FolderWriter,
) -> Result<PathBuf, Failure> {
    let Answering { located, files, tokenizer, template, model, engine } = open;
    let mut saved = prepare::files_to_save(&files.tokenizer, tokenizer, template)?;
    let prompt = served_prompt(tokenizer, template, &sample_conversations(plan))?;
    let (agreed, tried) = prompt.agrees;
    if agreed < tried {
        ui::warning(&format!(
            "of {tried} prompts that were tried, the chat template in the file writes {agreed} as in training; train with a template \
             that the model's own writes"
        ));
    }
    saved.chat_template = Some(prompt.chat_template);
    let file_type = file_type(kind, plan.export.precision, &files.config);
    let gguf = GgufModel {
        name: &located.name,
        model,
        engine,
        tokenizer: &saved,
        ends: &template.stop_ids(tokenizer),
        kind: file_type,
    };
    let draft =
        gguf.draft().map_err(|reason| Failure::Other(anyhow!("export_format: gguf is not possible: {reason}")))?;
    draft.notes.iter().for_each(|note| ui::note(note));
    let dir = folder.path().canonicalize().unwrap_or_else(|_| folder.path().to_path_buf());
    let name = dir.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned());
    let file = format!("{name}-{}.gguf", file_type.name());
    ui::say(&format!("Writing {file}, {}.", ui::bytes(draft.bytes())));
    gguf.write(draft, folder, &file)?;
    Ok(folder.path().join(file))
}

/// The types that are asked for, or those in which the weights would be written otherwise.
fn file_type(kind: Option<GgufType>, precision: Option<Precision>, config: &serde_json::Value) -> FileType {
    use ferrotune_checkpoint::Dtype;
    match (kind, precision) {
        (Some(GgufType::F32), _) | (None, Some(Precision::F32)) => FileType::F32,
        (Some(GgufType::F16), _) | (None, Some(Precision::F16)) => FileType::F16,
        (Some(GgufType::Bf16), _) | (None, Some(Precision::Bf16)) => FileType::Bf16,
        (Some(GgufType::Q8_0), _) => FileType::Q8_0,
        (Some(GgufType::Q4_0), _) => FileType::Q4_0,
        (Some(GgufType::Q4KM), _) => FileType::Q4KM,
        (None, None) => match named_dtype(config) {
            Dtype::F16 => FileType::F16,
            Dtype::Bf16 => FileType::Bf16,
            _ => FileType::F32,
        },
    }
}
