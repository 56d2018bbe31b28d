//! LoRA adapters as PEFT stores them: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Reading checks everything that PEFT and vLLM let pass silently: pairs, ranks, shapes, numbers,
//! and whether the adapter fits the model.

mod config;
mod lint;

pub use config::{AdapterConfig, Number, TargetModules};
pub use lint::{Finding, LintBase, LintOptions, LintReport, LintSeverity, Vllm, lint, lint_intended};

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::file::read_json;
use crate::folder::FolderWriter;
use crate::safetensors::{OutTensor, SafetensorsFile};
use crate::source::{TensorInfo, TensorSource};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// What PEFT puts before the model's own names.
const PREFIX: &str = "base_model.model.";
/// Modules that can share their weights.
const SHARED: [&str; 2] = ["embed_tokens", "lm_head"];
/// How many differences an error tells.
const MAX_TOLD: usize = 5;

/// A LoRA adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// `adapter_config.json`.
    pub config: AdapterConfig,
    /// Pairs by module, e.g. `model.layers.0.self_attn.q_proj`.
    pub modules: BTreeMap<String, LoraWeights>,
    /// Parameters saved whole (`modules_to_save`), e.g. `lm_head.weight`.
    pub saved: BTreeMap<String, HostTensor>,
}

/// What one module adds.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraWeights {
    /// `[r, in]`; for an embedding `[r, vocabulary]`.
    pub a: HostTensor,
    /// `[out, r]`; for an embedding `[width, r]`.
    pub b: HostTensor,
    /// DoRA's length of each row of the adapted weight, `[out]`.
    pub magnitude: Option<HostTensor>,
    /// The module is an embedding, whose tensors have other names.
    pub embedding: bool,
}

/// An f32 tensor in memory, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct HostTensor {
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Elements.
    pub data: Vec<f32>,
}

/// Part of a module's adapter that a tensor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    A,
    B,
    Magnitude,
}

/// Endings of tensor names: part, whether of an embedding.
const ENDINGS: [(&str, Part, bool); 5] = [
    (".lora_A.weight", Part::A, false),
    (".lora_B.weight", Part::B, false),
    (".lora_embedding_A", Part::A, true),
    (".lora_embedding_B", Part::B, true),
    (".lora_magnitude_vector", Part::Magnitude, false),
];

impl Adapter {
    /// Reads an adapter's folder.
    ///
    /// # Errors
    /// If a file is missing or broken, the adapter is not LoRA or uses what isn't supported, a
    /// pair is incomplete, shapes contradict the rank, or a number is not finite.
    pub fn read(folder: &Path) -> Result<Self> {
        let config = read_config(folder)?;
        let file = open_weights(folder)?;
        let bad = |reason: String| Error::Adapter { path: folder.to_path_buf(), reason };
        let mut found: BTreeMap<String, Parts> = BTreeMap::new();
        let mut saved = BTreeMap::new();
        for name in file.names() {
            let tensor = read_tensor(&file, &name)?;
            if tensor.data.iter().any(|v| !v.is_finite()) {
                return Err(bad(format!("'{name}' holds a number that is not finite")));
            }
            match classify(&name).map_err(bad)? {
                Kind::Part(module, part, embedding) => {
                    let parts = found.entry(module).or_default();
                    parts.embedding |= embedding;
                    if parts.tensors.insert(part, tensor).is_some() {
                        return Err(bad(format!("'{name}' is there for an embedding and a layer")));
                    }
                }
                Kind::Saved(parameter) => {
                    saved.insert(parameter, tensor);
                }
            }
        }
        let mut modules = BTreeMap::new();
        for (module, parts) in found {
            let weights = pair(&config, &module, parts).map_err(bad)?;
            modules.insert(module, weights);
        }
        if modules.is_empty() && saved.is_empty() {
            return Err(bad(format!("{WEIGHTS} holds no tensor")));
        }
        Ok(Self { config, modules, saved })
    }

    /// Checks that every module exists in a model and has the shapes the adapter was made for.
    ///
    /// # Errors
    /// [`Error::OtherModel`] with the modules that don't fit; `path` is the adapter's folder.
    pub fn check_fits(&self, path: &Path, base: &dyn TensorSource) -> Result<()> {
        let mut mismatches = Vec::new();
        for (module, weights) in &self.modules {
            let (a, b) = (&weights.a.shape, &weights.b.shape);
            let expected = match weights.embedding {
                true => [a[1], b[0]],
                false => [b[0], a[1]],
            };
            compare(&mut mismatches, base, &format!("{module}.weight"), &expected);
        }
        for (name, tensor) in &self.saved {
            compare(&mut mismatches, base, name, &tensor.shape);
        }
        if mismatches.is_empty() {
            return Ok(());
        }
        let more = mismatches.len().saturating_sub(MAX_TOLD);
        mismatches.truncate(MAX_TOLD);
        if more > 0 {
            mismatches.push(format!("and {more} more"));
        }
        Err(Error::OtherModel { path: path.to_path_buf(), mismatches })
    }

    /// Whether it changes the embedding or the head by itself, so that weights which the two share become two.
    pub fn separates_head(&self) -> bool {
        let tied = self.config.other.get("ensure_weight_tying").and_then(Value::as_bool).unwrap_or(false);
        let ends = |name: &str| SHARED.iter().any(|end| name.ends_with(end));
        let saved = self.saved.keys().any(|name| name.strip_suffix(".weight").is_some_and(ends));
        !tied && (saved || self.modules.keys().any(|module| ends(module)))
    }

    /// Checks that a run can go on training it as it is: pairs of linear layers inside the blocks, of one rank and scale.
    ///
    /// # Errors
    /// [`Error::Adapter`] with what can be merged only; `path` is the adapter's folder.
    pub fn check_continues(&self, path: &Path) -> Result<()> {
        let ends = |module: &&String| SHARED.iter().any(|end| module.ends_with(end));
        let patterns = [("rank_pattern", &self.config.rank_pattern), ("alpha_pattern", &self.config.alpha_pattern)];
        let what = match (self.modules.keys().find(ends), patterns.iter().find(|(_, pattern)| !pattern.is_empty())) {
            (Some(module), _) => format!("has low-rank weights on {module}"),
            (None, Some((name, _))) => format!("sets {name}"),
            (None, None) => return Ok(()),
        };
        let reason = format!(
            "it {what}, with which it can't go on training; create_new_adapter: true merges it and trains another"
        );
        Err(Error::Adapter { path: path.to_path_buf(), reason })
    }

    /// Writes the two files, with PEFT's names.
    ///
    /// # Errors
    /// If a file can't be written.
    pub fn write(&self, folder: &FolderWriter) -> Result<()> {
        let mut tensors = Vec::new();
        for (module, weights) in &self.modules {
            let parts = [
                (Part::A, Some(&weights.a)),
                (Part::B, Some(&weights.b)),
                (Part::Magnitude, weights.magnitude.as_ref()),
            ];
            for (part, tensor) in parts {
                if let Some(tensor) = tensor {
                    let ending = ending(part, weights.embedding);
                    tensors.push(out(format!("{PREFIX}{module}{ending}"), tensor));
                }
            }
        }
        for (name, tensor) in &self.saved {
            tensors.push(out(format!("{PREFIX}{name}"), tensor));
        }
        folder.tensors(WEIGHTS, tensors)?;
        folder.bytes(CONFIG, self.config.to_json().as_bytes())
    }
}

fn out(name: String, tensor: &HostTensor) -> OutTensor<'_> {
    OutTensor::f32(name, tensor.shape.clone(), Dtype::F32, &tensor.data)
}

fn ending(part: Part, embedding: bool) -> &'static str {
    let found = ENDINGS.iter().find(|(_, p, e)| *p == part && (*e == embedding || part == Part::Magnitude));
    found.expect("every part has an ending").0
}

fn read_config(folder: &Path) -> Result<AdapterConfig> {
    let path = folder.join(CONFIG);
    if !path.exists() {
        return Err(Error::Missing {
            folder: folder.to_path_buf(),
            expected: CONFIG.into(),
            help: "; expected the folder of a PEFT adapter".into(),
        });
    }
    let value = read_json(&path)?;
    let json = |reason: String| Error::Json { path: path.clone(), reason };
    let config: AdapterConfig = serde_json::from_value(value).map_err(|e| json(e.to_string()))?;
    let unsupported = [
        (config.peft_type != "LORA", format!("peft_type is {}", config.peft_type)),
        (config.bias != "none", format!("bias is {}", config.bias)),
        (config.lora_bias, "lora_bias is set".into()),
        (config.fan_in_fan_out, "fan_in_fan_out is set".into()),
    ];
    if let Some((_, what)) = unsupported.into_iter().find(|(wrong, _)| *wrong) {
        return Err(json(format!("{what}; only LoRA adapters without biases are supported")));
    }
    if let Some((what, cure)) = config::other_meaning(&config) {
        return Err(json(format!("{what}; {cure}")));
    }
    if config.r == 0 {
        return Err(json("r is 0".into()));
    }
    if let Some(key) = config::irregular_pattern(&config) {
        return Err(json(format!(
            "rank_pattern or alpha_pattern has the key '{key}'; only plain module names are \
             supported"
        )));
    }
    Ok(config)
}

fn open_weights(folder: &Path) -> Result<SafetensorsFile> {
    let path: PathBuf = folder.join(WEIGHTS);
    if !path.exists() {
        let help = match folder.join("adapter_model.bin").exists() {
            true => {
                "; adapter_model.bin is in PyTorch's pickle format, which can run code and is \
                     not read: load the adapter in PEFT and save it with save_pretrained"
            }
            false => "; the adapter's weights are missing",
        };
        return Err(Error::Missing { folder: folder.to_path_buf(), expected: WEIGHTS.into(), help: help.into() });
    }
    SafetensorsFile::open(&path)
}

fn read_tensor(file: &SafetensorsFile, name: &str) -> Result<HostTensor> {
    let shape = file.info(name).map_or_else(Vec::new, |info: TensorInfo| info.shape);
    Ok(HostTensor { shape, data: file.read_f32(name)? })
}

/// Tensors of one module as they are found.
#[derive(Default)]
struct Parts {
    embedding: bool,
    tensors: BTreeMap<Part, HostTensor>,
}

/// What a tensor of an adapter is.
enum Kind {
    /// Module, part, whether the module is an embedding.
    Part(String, Part, bool),
    /// Parameter saved whole.
    Saved(String),
}

fn classify(name: &str) -> Result<Kind, String> {
    let Some(inner) = name.strip_prefix(PREFIX) else {
        return Err(format!("the tensor name '{name}' doesn't start with '{PREFIX}'"));
    };
    for (ending, part, embedding) in ENDINGS {
        if let Some(module) = inner.strip_suffix(ending) {
            return Ok(Kind::Part(module.into(), part, embedding));
        }
    }
    if inner.contains(".lora_") {
        return Err(format!(
            "the tensor '{name}' is no part of LoRA as PEFT saves it (expected an ending like \
             .lora_A.weight); save the adapter with save_pretrained"
        ));
    }
    // PEFT saves base layers of resized embeddings and, before 0.12, wrapped modules like this.
    let parameter = inner.replace(".base_layer.", ".").replace(".modules_to_save.", ".");
    Ok(Kind::Saved(parameter))
}

/// Puts a module's parts together and checks their shapes.
fn pair(config: &AdapterConfig, module: &str, parts: Parts) -> Result<LoraWeights, String> {
    let Parts { embedding, tensors: mut parts } = parts;
    let mut take = |part: Part| {
        let missing = format!("'{module}' lacks its tensor '{}'", &ending(part, embedding)[1..]);
        parts.remove(&part).ok_or(missing)
    };
    let (a, b) = (take(Part::A)?, take(Part::B)?);
    let rank = config.rank(module);
    let (&[a_rank, _], &[out, b_rank]) = (a.shape.as_slice(), b.shape.as_slice()) else {
        let (a, b) = (&a.shape, &b.shape);
        return Err(format!("'{module}' has tensors of shapes {a:?} and {b:?}, not matrices"));
    };
    if a_rank != rank || b_rank != rank {
        return Err(format!("'{module}' has rank {a_rank} in A and {b_rank} in B, {CONFIG} says {rank}"));
    }
    if config.use_dora && embedding {
        return Err(format!("'{module}' is an embedding with DoRA; merge the adapter with PEFT's merge_and_unload"));
    }
    let magnitude = match config.use_dora {
        true => Some(take(Part::Magnitude)?),
        false => None,
    };
    if let Some(part) = parts.keys().next() {
        let ending = ending(*part, embedding);
        return Err(format!("'{module}' has a tensor '{}', but use_dora is off", &ending[1..]));
    }
    if let Some(magnitude) = &magnitude
        && magnitude.data.len() != out
    {
        let shape = &magnitude.shape;
        return Err(format!("'{module}' has {out} rows and a magnitude of shape {shape:?}"));
    }
    Ok(LoraWeights { a, b, magnitude, embedding })
}

/// Notes a tensor that a model lacks or has in another shape.
fn compare(told: &mut Vec<String>, base: &dyn TensorSource, name: &str, expected: &[usize]) {
    let tied = || match name {
        // A tied head has no tensor of its own in the model.
        "lm_head.weight" => base.info("model.embed_tokens.weight"),
        _ => None,
    };
    match base.info(name).or_else(tied) {
        None => told.push(format!("'{name}' is not in the model")),
        Some(info) if info.shape != expected => {
            let found = info.shape;
            told.push(format!("'{name}' is {found:?} in the model, {expected:?} in the adapter"));
        }
        Some(_) => {}
    }
}
