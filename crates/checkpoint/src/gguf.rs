//! GGUF, the format of llama.cpp: weights (often quantised), configuration and tokenizer in one
//! file.
//!
//! A file is presented as Hugging Face's layout would be: names, order of rows, `config.json`,
//! `tokenizer.json`. Nothing downstream knows the difference.

mod config;
mod export;
mod header;
mod names;
mod pretokenizer;
pub(crate) mod quant;
pub(crate) mod quantize;
mod sentencepiece;
mod tokenizer;
mod value;
mod write;

pub use export::{Architecture, Description, Experts, FileType, GgufDraft, Scaling};
pub use value::{Array, Value};
pub use write::write_gguf;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::file::DataFile;
use crate::model::{OpenModel, Origin, TokenizerFiles};
use crate::region::{HeadOrder, Region};
use crate::source::{TensorInfo, TensorSource, unknown};
use config::{Family, Keys};
use header::Header;

/// Types that can be read, as told to the user.
const READABLE: &str = "F32, F16, BF16, Q8_0, Q6_K, Q5_K, Q5_1, Q5_0, Q4_K, Q4_1 and Q4_0";

/// An open GGUF file of a supported family.
#[derive(Debug)]
pub struct Gguf {
    file: DataFile,
    header: Header,
    architecture: String,
    family: Family,
}

impl Gguf {
    /// Opens a file and checks its header.
    ///
    /// # Errors
    /// If the file can't be read, is no GGUF or a broken or short one, or holds a model of another
    /// family.
    pub fn open(path: &Path) -> Result<Self> {
        let file = DataFile::open(path)?;
        let header = header::parse(&file)?;
        let architecture = header.metadata.get("general.architecture").and_then(Value::as_str);
        let architecture = architecture.unwrap_or("").to_owned();
        let family = Family::of(&architecture).ok_or_else(|| Error::Architecture {
            path: path.to_path_buf(),
            found: architecture.clone(),
            supported: config::SUPPORTED,
        })?;
        Ok(Self { file, header, architecture, family })
    }

    /// The metadata as written in the file.
    pub fn metadata(&self) -> &BTreeMap<String, Value> {
        &self.header.metadata
    }

    /// Makes tokenizer files of what is in the metadata, with notes on what was corrected.
    ///
    /// # Errors
    /// If the tokenizer is missing, inconsistent or of an unknown kind.
    pub fn tokenizer(&self) -> Result<(TokenizerFiles, Vec<String>)> {
        tokenizer::build(&self.header.metadata, &self.architecture)
            .map_err(|reason| Error::Tokenizer { path: self.file.path().to_path_buf(), reason })
    }

    /// Presents the file as a model in Hugging Face's layout.
    ///
    /// # Errors
    /// If metadata are missing or contradict each other, or a tensor is none of the family's.
    pub fn into_model(self) -> Result<OpenModel> {
        let (tokenizer, notes) = self.tokenizer()?;
        let path = self.file.path().to_path_buf();
        let bad = |reason: String| Error::Gguf { path: path.clone(), reason };
        let freqs = self.rope_freqs()?;
        let keys = Keys { header: &self.header, architecture: &self.architecture };
        let mut config = config::config(&keys, self.family, freqs.as_deref()).map_err(bad)?;
        // The tokenizer's end token may have been corrected.
        if let Some(id) = tokenizer::id_of(&self.header.metadata, &tokenizer, "eos_token") {
            config["eos_token_id"] = id.into();
        }
        let heads = config::heads(&keys).map_err(bad)?;
        let tensors = GgufTensors::new(self, heads)?;
        Ok(OpenModel {
            config,
            generation_config: None,
            tensors: Box::new(tensors),
            tokenizer,
            origin: Origin::Gguf(path),
            notes,
        })
    }

    fn rope_freqs(&self) -> Result<Option<Vec<f32>>> {
        let Some((_, region)) = self.header.tensors.get(names::ROPE_FREQS) else {
            return Ok(None);
        };
        let mut values = vec![0f32; region.elements];
        let dst = bytemuck::cast_slice_mut(&mut values);
        let range = 0..region.elements;
        region.read(&self.file, names::ROPE_FREQS, range, (Dtype::F32, dst))?;
        Ok(Some(values))
    }
}

/// The tensors of a GGUF file under Hugging Face's names and in its order of rows.
#[derive(Debug)]
struct GgufTensors {
    file: DataFile,
    tensors: BTreeMap<String, (Vec<usize>, Region)>,
}

impl GgufTensors {
    fn new(gguf: Gguf, heads: config::Heads) -> Result<Self> {
        let Gguf { file, header, family, .. } = gguf;
        let mut tensors = BTreeMap::new();
        for (stored, (mut shape, mut region)) in header.tensors {
            if stored == names::ROPE_FREQS {
                continue;
            }
            if !region.dtype.converts_to(Dtype::F32) {
                return Err(Error::Gguf {
                    path: file.path().to_path_buf(),
                    reason: format!(
                        "its tensor '{stored}' is of type {}; {READABLE} can be read: get the model in one of these",
                        region.dtype.name()
                    ),
                });
            }
            let name = names::to_hugging_face(&stored, family == Family::Llama).ok_or_else(|| Error::Gguf {
                path: file.path().to_path_buf(),
                reason: format!("its tensor '{stored}' belongs to no supported model"),
            })?;
            if family == Family::Llama {
                region.order = head_order(&name, &shape, heads).map_err(|reason| Error::Gguf {
                    path: file.path().to_path_buf(),
                    reason: format!("its tensor '{stored}' {reason}"),
                })?;
            }
            if let ([width], true) = (&shape[..], name.ends_with("shared_expert_gate.weight")) {
                shape = vec![1, *width];
            }
            tensors.insert(name, (shape, region));
        }
        Ok(Self { file, tensors })
    }
}

/// The order of rows of query and key projections.
fn head_order(name: &str, shape: &[usize], heads: config::Heads) -> Result<Option<HeadOrder>, String> {
    let count = if name.contains(".q_proj.") {
        heads.query
    } else if name.contains(".k_proj.") {
        heads.key_value
    } else {
        return Ok(None);
    };
    let rows = heads.dim.saturating_mul(count);
    if shape.first() != Some(&rows) {
        return Err(format!("has the shape {shape:?}, {rows} rows were expected"));
    }
    Ok(Some(HeadOrder { head_dim: heads.dim, row: shape[1..].iter().product() }))
}

impl TensorSource for GgufTensors {
    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        let (shape, region) = self.tensors.get(name)?;
        Some(TensorInfo { shape: shape.clone(), dtype: region.dtype })
    }

    fn read_range(&self, name: &str, range: Range<usize>, to: Dtype, dst: &mut [u8]) -> Result<()> {
        let (_, region) = (self.tensors.get(name)).ok_or_else(|| unknown(self.file.path(), name))?;
        region.read(&self.file, name, range, (to, dst))
    }
}
