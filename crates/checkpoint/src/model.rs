//! Opening a model, or only its tokenizer, from a Hugging Face folder or a GGUF file.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, Result};
use crate::file::{read_json, read_side_file};
use crate::folder::FolderWriter;
use crate::gguf::Gguf;
use crate::safetensors::{INDEX, SINGLE, SafetensorsFile, ShardedSafetensors};
use crate::source::TensorSource;

/// A model that is ready to be read.
pub struct OpenModel {
    /// `config.json`, or the same made of a GGUF's metadata.
    pub config: Value,
    /// `generation_config.json`, if there is one.
    pub generation_config: Option<Value>,
    /// The weights under Hugging Face's names.
    pub tensors: Box<dyn TensorSource>,
    /// Everything the tokenizer needs.
    pub tokenizer: TokenizerFiles,
    /// Where it all came from.
    pub origin: Origin,
    /// What was corrected or assumed on the way; worth telling the user.
    pub notes: Vec<String>,
}

/// Where a model came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A folder in Hugging Face's layout.
    Folder(PathBuf),
    /// A GGUF file.
    Gguf(PathBuf),
}

/// The files of a tokenizer.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenizerFiles {
    /// `tokenizer.json`.
    pub tokenizer_json: Vec<u8>,
    /// `tokenizer_config.json`; an empty object if there is none.
    pub tokenizer_config: Value,
    /// The chat template: `chat_template.jinja`, else the one in `tokenizer_config.json`.
    pub chat_template: Option<String>,
    /// Further files to copy as they are: name and content.
    pub extra: Vec<(String, Vec<u8>)>,
}

/// Files that belong to a tokenizer and that other programs may want.
const EXTRA: [&str; 5] =
    ["vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json", "tokenizer.model"];

/// Opens a folder in Hugging Face's layout, or a `.gguf` file.
///
/// Headers are checked, weights are not read.
///
/// # Errors
/// If a file is missing, broken, short, or not what it should be; the message says which, what was
/// expected and what to do.
pub fn open_model(path: &Path) -> Result<OpenModel> {
    if !path.is_dir() {
        return Gguf::open(path)?.into_model();
    }
    let config_path = path.join("config.json");
    if !config_path.exists() {
        return Err(no_config(path));
    }
    let config = read_json(&config_path)?;
    let generation_path = path.join("generation_config.json");
    let generation_config = match generation_path.exists() {
        true => Some(read_json(&generation_path)?),
        false => None,
    };
    Ok(OpenModel {
        config,
        generation_config,
        tensors: open_weights(path)?,
        tokenizer: read_tokenizer(path)?,
        origin: Origin::Folder(path.to_path_buf()),
        notes: Vec::new(),
    })
}

/// Reads only the configuration of a folder or of a `.gguf` file; weights and tokenizer may be absent.
///
/// # Errors
/// As [`open_model`].
pub fn open_config(path: &Path) -> Result<Value> {
    if !path.is_dir() {
        return Ok(Gguf::open(path)?.into_model()?.config);
    }
    let file = path.join("config.json");
    if file.exists() { read_json(&file) } else { Err(no_config(path)) }
}

/// Opens only the tokenizer of a folder or of a `.gguf` file; weights may be absent. What was corrected or assumed is
/// told as a warning.
///
/// # Errors
/// As [`open_model`].
pub fn open_tokenizer(path: &Path) -> Result<TokenizerFiles> {
    if path.is_dir() {
        read_tokenizer(path)
    } else {
        let (files, notes) = Gguf::open(path)?.tokenizer()?;
        for note in notes {
            tracing::warn!(path = %path.display(), "{note}");
        }
        Ok(files)
    }
}

fn no_config(folder: &Path) -> Error {
    let help = if folder.join("adapter_config.json").exists() {
        "; it holds an adapter: name it in adapter_name_or_path, and its base model in \
         model_name_or_path"
            .into()
    } else if let Some(name) = find_named(folder, |name| name.ends_with(".gguf")) {
        format!("; it holds {name}: give the path of that file")
    } else {
        "; expected a folder with config.json, weights and tokenizer.json".into()
    };
    missing(folder, "config.json", help)
}

fn missing(folder: &Path, expected: &str, help: String) -> Error {
    Error::Missing { folder: folder.to_path_buf(), expected: expected.into(), help }
}

/// Name of the first file, in order, that a test accepts.
fn find_named(folder: &Path, accept: impl Fn(&str) -> bool) -> Option<String> {
    let entries = fs::read_dir(folder).ok()?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| accept(name)).min()
}

/// Opens the weights of a Hugging Face folder: one safetensors file, or shards with an index.
fn open_weights(folder: &Path) -> Result<Box<dyn TensorSource>> {
    let (single, index) = (folder.join(SINGLE), folder.join(INDEX));
    if single.exists() {
        return Ok(Box::new(SafetensorsFile::open(&single)?));
    }
    if index.exists() {
        return Ok(Box::new(ShardedSafetensors::open(&index)?));
    }
    let shard = |name: &str| name.starts_with("model-") && name.ends_with(".safetensors");
    let bin = |name: &str| name.ends_with(".bin") || name.ends_with(".pth");
    let help = if let Some(name) = find_named(folder, shard) {
        format!("; there is {name}, so {INDEX} is missing: download it too")
    } else if let Some(name) = find_named(folder, bin) {
        format!(
            "; {name} is in PyTorch's pickle format, which can run code and is not read: load the \
             model in transformers and save it with save_pretrained(..., safe_serialization=True)"
        )
    } else {
        "; download the weights of the model".into()
    };
    Err(missing(folder, &format!("{SINGLE} or {INDEX}"), help))
}

/// Reads the tokenizer files of a Hugging Face folder.
fn read_tokenizer(folder: &Path) -> Result<TokenizerFiles> {
    let main = folder.join("tokenizer.json");
    if !main.exists() {
        let sentencepiece = folder.join("tokenizer.model").exists();
        let help = match sentencepiece {
            true => {
                "; tokenizer.model alone is not read: load it with transformers' \
                     AutoTokenizer and save it with save_pretrained, which writes tokenizer.json"
            }
            false => "; download the tokenizer files of the model",
        };
        return Err(missing(folder, "tokenizer.json", help.into()));
    }
    let config_path = folder.join("tokenizer_config.json");
    let tokenizer_config = match config_path.exists() {
        true => read_json(&config_path)?,
        false => Value::Object(serde_json::Map::new()),
    };
    let template_path = folder.join("chat_template.jinja");
    let chat_template = match template_path.exists() {
        true => {
            let text = String::from_utf8(read_side_file(&template_path)?);
            Some(text.map_err(|e| Error::Json { path: template_path, reason: format!("not valid UTF-8: {e}") })?)
        }
        false => template_in(&tokenizer_config),
    };
    let mut extra = Vec::new();
    for name in EXTRA {
        let path = folder.join(name);
        if path.exists() {
            extra.push((name.to_owned(), read_side_file(&path)?));
        }
    }
    Ok(TokenizerFiles { tokenizer_json: read_side_file(&main)?, tokenizer_config, chat_template, extra })
}

/// The chat template in a `tokenizer_config.json`: a string, or a list of named ones of which
/// "default" is taken, or the only one.
fn template_in(config: &Value) -> Option<String> {
    match config.get("chat_template")? {
        Value::String(template) => Some(template.clone()),
        Value::Array(named) => {
            let default = named.iter().find(|entry| entry["name"] == "default");
            let only = named.first().filter(|_| named.len() == 1);
            Some(default.or(only)?["template"].as_str()?.to_owned())
        }
        _ => None,
    }
}

impl TokenizerFiles {
    /// Writes the files into a folder; the template goes into `chat_template.jinja` unless
    /// `tokenizer_config.json` holds it.
    ///
    /// # Errors
    /// If a file can't be written.
    pub fn write(&self, folder: &FolderWriter) -> Result<()> {
        folder.bytes("tokenizer.json", &self.tokenizer_json)?;
        folder.json("tokenizer_config.json", &self.tokenizer_config)?;
        if let Some(template) = &self.chat_template
            && template_in(&self.tokenizer_config).as_ref() != Some(template)
        {
            folder.bytes("chat_template.jinja", template.as_bytes())?;
        }
        for (name, content) in &self.extra {
            folder.bytes(name, content)?;
        }
        Ok(())
    }
}
