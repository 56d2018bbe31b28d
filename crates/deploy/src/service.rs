//! A vLLM server of one model: the decisions from which its manifests and requests are written.

use ferrotune_checkpoint::Vllm;
use serde_json::{Map, Value};

use crate::{Error, Result, Sizing};

/// Where things lie inside the container.
pub(crate) const MODELS: &str = "/models";
pub(crate) const FILES: &str = "/deploy";
/// vLLM's port.
pub(crate) const PORT: u16 = 8000;

/// Everything about the server.
#[derive(Debug, Clone)]
pub struct Service {
    /// Image, with its tag.
    pub image: String,
    /// The version inside.
    pub vllm: Vllm,
    /// What clients ask for: the first adapter's name, or the model's.
    pub name: String,
    /// What is served.
    pub base: Base,
    /// The adapters on it; without one the base is the trained model itself.
    pub adapters: Vec<Adapter>,
    /// GPUs and lengths.
    pub sizing: Sizing,
    /// Port on the host.
    pub port: u16,
    /// Variables of the chat template that make the prompt the trained one.
    pub kwargs: Map<String, Value>,
    /// What training had otherwise than the base's config.json says (`rope_scaling`), as JSON.
    pub overrides: Option<Value>,
    /// `generation_config.json` in place of the base's, where that one doesn't end answers as training did.
    pub generation: Option<Value>,
}

/// A base model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    /// A folder on the host, absolute.
    Folder(String),
    /// A hub id and its revision.
    Hub(String, Option<String>),
}

/// An adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adapter {
    /// What clients ask for.
    pub name: String,
    /// Its folder on the host, absolute.
    pub folder: String,
    /// `--max-lora-rank`, if the default doesn't do.
    pub max_lora_rank: Option<usize>,
}

impl Adapter {
    /// Its folder inside the container.
    pub(crate) fn place(&self) -> String {
        format!("{MODELS}/adapters/{}", self.name)
    }
}

impl Service {
    /// The name under which the base answers: one that nobody asks for by mistake.
    pub fn base_name(&self) -> String {
        if self.is_adapted() { format!("{}-untrained-base", self.name) } else { self.name.clone() }
    }

    /// Whether adapters are served, and not a model of its own.
    pub(crate) fn is_adapted(&self) -> bool {
        !self.adapters.is_empty()
    }

    /// The names of what was trained, for people.
    pub fn names(&self) -> String {
        match &self.adapters[..] {
            [] => format!("`{}`", self.name),
            adapters => adapters.iter().map(|adapter| format!("`{}`", adapter.name)).collect::<Vec<_>>().join(" or "),
        }
    }

    /// The arguments of vLLM's server.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = vec!["--model".to_owned()];
        match &self.base {
            Base::Folder(_) => arguments.push(format!("{MODELS}/base")),
            Base::Hub(id, revision) => {
                arguments.push(id.clone());
                arguments.extend(revision.iter().flat_map(|revision| ["--revision".to_owned(), revision.clone()]));
            }
        }
        let mut option = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        option("--served-model-name", self.base_name());
        if self.is_adapted() {
            // One more than adapters: on processors the base's rows of a mixed batch would else take an adapter's slot.
            option("--max-loras", (self.adapters.len() + 1).to_string());
            if let Some(rank) = self.adapters.iter().filter_map(|adapter| adapter.max_lora_rank).max() {
                option("--max-lora-rank", rank.to_string());
            }
        }
        option("--tensor-parallel-size", self.sizing.gpus.to_string());
        option("--max-model-len", self.sizing.max_model_len.to_string());
        if let Some(overrides) = &self.overrides {
            option("--hf-overrides", overrides.to_string());
        }
        if self.generation.is_some() {
            option("--generation-config", FILES.to_owned());
        }
        option("--chat-template", format!("{FILES}/chat_template.jinja"));
        option("--host", "0.0.0.0".to_owned());
        option("--port", PORT.to_string());
        if self.is_adapted() {
            arguments.extend(["--enable-lora".to_owned(), "--lora-modules".to_owned()]);
            arguments.extend(self.adapters.iter().map(|adapter| format!("{}={}", adapter.name, adapter.place())));
        }
        arguments
    }
}

/// The name of a model, out of that of its folder: what URLs, shells and manifests take as it is.
///
/// # Errors
/// If nothing of it is left, or it is too long.
pub fn model_name(text: &str) -> Result<String> {
    let mapped: String =
        text.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
    let name = mapped.split('-').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-");
    let reason = match name.len() {
        0 => "it has no letter or digit; give one with --name",
        41.. => "it is longer than 40 letters; give a shorter one with --name",
        _ => return Ok(name),
    };
    Err(Error::Name { name: text.to_owned(), reason })
}
