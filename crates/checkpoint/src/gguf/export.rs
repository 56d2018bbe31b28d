//! A model in Hugging Face's layout as a GGUF file: names, order of rows, metadata, tokenizer and types as llama.cpp's own
//! converter (`convert_hf_to_gguf.py`) and `llama-quantize` have them.
//!
//! What llama.cpp would load and then compute wrongly is refused with its reason; what it can't know is a note.

mod architecture;
mod mix;
mod vocabulary;

pub use architecture::{Architecture, Experts, Scaling};
pub use mix::FileType;

use std::borrow::Cow;
use std::path::Path;

use rayon::prelude::*;

use super::names;
use super::value::Value;
use super::write::write_gguf;
use crate::dtype::{Dtype, encode};
use crate::error::{Error, Result};
use crate::folder::FolderWriter;
use crate::model::TokenizerFiles;
use crate::region::HeadOrder;
use crate::safetensors::OutTensor;
use crate::source::TensorInfo;

/// Elements that one task encodes; a multiple of every block.
const CHUNK: usize = 1 << 16;
/// The largest number that an f16 holds: block formats have f16 scales.
const LARGEST_HALF: f32 = 65504.0;

/// What a GGUF file says of a model beside its weights.
#[derive(Debug)]
pub struct Description<'a> {
    /// What it is called.
    pub name: &'a str,
    /// Its shape.
    pub architecture: &'a Architecture,
    /// Its tokenizer, with the chat template that the file shall have.
    pub tokenizer: &'a TokenizerFiles,
    /// Ids that end an answer, the eos token's first.
    pub ends: &'a [u32],
    /// Types of the weights.
    pub kind: FileType,
}

/// A file that is ready to be written.
#[derive(Debug)]
pub struct GgufDraft {
    metadata: Vec<(String, Value)>,
    tensors: Vec<Planned>,
    /// What llama.cpp does otherwise than the trainer; worth telling the user.
    pub notes: Vec<String>,
}

/// A tensor of the file.
#[derive(Debug)]
struct Planned {
    name: String,
    shape: Vec<usize>,
    dtype: Dtype,
    order: Option<HeadOrder>,
    source: Values,
}

/// Where its values come from.
#[derive(Debug)]
enum Values {
    /// The model's tensor of this number.
    Model(usize),
    /// Here they are.
    Made(Vec<f32>),
}

impl GgufDraft {
    /// Plans the file of a model with these `tensors` under Hugging Face's names, all experts of a block being one of them.
    ///
    /// # Errors
    /// If llama.cpp can't compute such a model or cut text as its tokenizer does; with what is in the way, and the cure.
    pub fn new(description: &Description<'_>, tensors: &[(String, TensorInfo)]) -> Result<Self, String> {
        let architecture = description.architecture;
        let mut notes = Vec::new();
        architecture.check(&mut notes)?;
        let mut metadata = architecture.metadata(description.name, description.kind);
        metadata.extend(vocabulary::metadata(description, &mut notes)?);
        let mut planned = Vec::with_capacity(tensors.len() + 1);
        for (number, (name, info)) in tensors.iter().enumerate() {
            let stored = names::from_hugging_face(name)
                .ok_or_else(|| format!("llama.cpp has no place for the tensor '{name}'"))?;
            let is_bias = stored.ends_with("attn_output.bias") || stored.contains(".ffn_") && stored.ends_with(".bias");
            if is_bias && !architecture.is_llama() {
                return Err(format!("llama.cpp has no place for the bias '{name}' in {}", architecture.model_type));
            }
            planned.push(Planned {
                order: architecture.order(name, &info.shape),
                shape: stored_shape(&info.shape),
                dtype: Dtype::F32,
                name: stored,
                source: Values::Model(number),
            });
        }
        if let Some(factors) = architecture.rope_factors() {
            planned.push(Planned {
                name: names::ROPE_FREQS.to_owned(),
                shape: vec![factors.len()],
                dtype: Dtype::F32,
                order: None,
                source: Values::Made(factors),
            });
        }
        planned.sort_by_key(|tensor| place(&tensor.name));
        let names: Vec<&str> = planned.iter().map(|tensor| tensor.name.as_str()).collect();
        let mix = mix::Mix::new(description.kind, architecture, &names);
        for tensor in &mut planned {
            tensor.dtype = mix.of(&tensor.name, &tensor.shape);
        }
        Ok(Self { metadata, tensors: planned, notes })
    }

    /// Bytes of the weights.
    pub fn bytes(&self) -> u64 {
        let bytes = |tensor: &Planned| tensor.dtype.bytes(tensor.shape.iter().product()).unwrap_or(0) as u64;
        self.tensors.iter().map(bytes).sum()
    }

    /// Writes the file, a tensor at a time; `values` gives a tensor of the model by its number, in f32.
    ///
    /// # Errors
    /// If a value isn't finite or too large for its type, a tensor can't be had, or the file not be written.
    pub fn write(self, folder: &FolderWriter, file: &str, values: &dyn Fn(usize) -> Result<Vec<f32>>) -> Result<()> {
        let path = folder.path().join(file);
        let metadata: Vec<_> = self.metadata.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
        let tensors = self.tensors.iter().map(|tensor| {
            let path = &path;
            let bytes = move || {
                let made = match &tensor.source {
                    Values::Model(number) => Cow::Owned(values(*number)?),
                    Values::Made(values) => Cow::Borrowed(&values[..]),
                };
                tensor.encoded(path, &made).map(Cow::Owned)
            };
            OutTensor::lazy(tensor.name.clone(), tensor.shape.clone(), tensor.dtype, bytes)
        });
        write_gguf(folder, file, &metadata, tensors.collect())
    }
}

impl Planned {
    fn encoded(&self, path: &Path, values: &[f32]) -> Result<Vec<u8>> {
        let unwritable = |reason: String| Error::Unwritable { path: path.to_path_buf(), reason };
        let expected = self.shape.iter().product();
        if values.len() != expected {
            return Err(Error::Extent { name: self.name.clone(), unit: "elements", expected, actual: values.len() });
        }
        let limit = if matches!(self.dtype, Dtype::F32 | Dtype::Bf16) { f32::MAX } else { LARGEST_HALF };
        if let Some(at) = values.par_iter().position_any(|value| value.is_nan() || value.abs() > limit) {
            return Err(unwritable(format!(
                "'{}' holds {} at element {at}, which {} can't; {}",
                self.name,
                values[at],
                self.dtype.name(),
                if values[at].is_finite() { "write export_gguf_type: bf16" } else { "the model is damaged" }
            )));
        }
        let ordered = self.order.map(|order| order.to_stored(values));
        let values = ordered.as_deref().unwrap_or(values);
        let mut bytes = vec![0; self.dtype.bytes(values.len()).unwrap_or(0)];
        let size = self.dtype.bytes(CHUNK).unwrap_or(CHUNK);
        bytes.par_chunks_mut(size).zip(values.par_chunks(CHUNK)).for_each(|(to, from)| encode(self.dtype, from, to));
        Ok(bytes)
    }
}

/// The gate of a shared expert is a vector there.
fn stored_shape(shape: &[usize]) -> Vec<usize> {
    match shape {
        [1, width] => vec![*width],
        other => other.to_vec(),
    }
}

/// Order in the file: the embedding, the blocks by number, what comes behind them.
fn place(name: &str) -> (usize, usize, String) {
    let block = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')?.0.parse().ok());
    match (name, block) {
        (_, Some(block)) => (1, block, name.to_owned()),
        ("token_embd.weight" | names::ROPE_FREQS, None) => (0, 0, name.to_owned()),
        _ => (2, 0, name.to_owned()),
    }
}
