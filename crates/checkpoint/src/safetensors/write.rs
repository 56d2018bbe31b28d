//! Writing safetensors files as streams, and whole models in shards.
//!
//! Tensors are handed over one at a time, so that a model of which the parts are made on the fly
//! (merged, gathered, converted) is never in memory as a whole.

use std::borrow::Cow;
use std::collections::BTreeMap;

use safetensors::tensor::{Metadata, TensorInfo as StoredInfo};
use serde_json::{Value, json};

use super::{INDEX, SINGLE, to_stored};
use crate::dtype::{Dtype, encode};
use crate::error::{Error, Result};
use crate::folder::FolderWriter;
use crate::model::TokenizerFiles;
use crate::source::extent;

/// Where the bytes of a tensor to be written come from; called once, when it is its turn.
type Bytes<'a> = Box<dyn FnOnce() -> Result<Cow<'a, [u8]>> + 'a>;

/// A tensor to be written.
pub struct OutTensor<'a> {
    name: String,
    shape: Vec<usize>,
    dtype: Dtype,
    bytes: Bytes<'a>,
}

impl<'a> OutTensor<'a> {
    /// A tensor whose bytes exist already, in the machine's byte order.
    pub fn bytes(name: impl Into<String>, shape: impl Into<Vec<usize>>, dtype: Dtype, bytes: &'a [u8]) -> Self {
        Self::lazy(name, shape, dtype, move || Ok(Cow::Borrowed(bytes)))
    }

    /// A tensor of f32 values, written as `dtype`; see [`encode`].
    pub fn f32(name: impl Into<String>, shape: impl Into<Vec<usize>>, dtype: Dtype, values: &'a [f32]) -> Self {
        Self::lazy(name, shape, dtype, move || {
            if dtype == Dtype::F32 {
                return Ok(Cow::Borrowed(bytemuck::cast_slice(values)));
            }
            let mut bytes = vec![0; dtype.bytes(values.len()).unwrap_or(0)];
            encode(dtype, values, &mut bytes);
            Ok(Cow::Owned(bytes))
        })
    }

    /// A tensor whose bytes are made when it is written.
    pub fn lazy(
        name: impl Into<String>,
        shape: impl Into<Vec<usize>>,
        dtype: Dtype,
        bytes: impl FnOnce() -> Result<Cow<'a, [u8]>> + 'a,
    ) -> Self {
        Self { name: name.into(), shape: shape.into(), dtype, bytes: Box::new(bytes) }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn shape(&self) -> &[usize] {
        &self.shape
    }

    pub(crate) fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Bytes in a file, if the elements fill whole blocks.
    pub(crate) fn byte_len(&self) -> Option<usize> {
        extent(&self.shape, self.dtype).map(|(_, bytes)| bytes)
    }

    /// The bytes, made now.
    ///
    /// # Errors
    /// If they can't be made, or aren't as many as the shape says.
    pub(crate) fn into_bytes(self) -> Result<Cow<'a, [u8]>> {
        let expected = self.byte_len().unwrap_or(0);
        let bytes = (self.bytes)()?;
        match bytes.len() {
            actual if actual == expected => Ok(bytes),
            actual => Err(Error::Extent { name: self.name, unit: "bytes", expected, actual }),
        }
    }
}

impl FolderWriter {
    /// Writes one safetensors file, with `{"format": "pt"}` as its metadata.
    ///
    /// The order inside is that of the reference implementation: widest type first, then by name.
    ///
    /// # Errors
    /// If a name comes twice, a type can't be stored, a tensor's bytes don't fill its shape, or the
    /// file can't be written. The file is then not there, or what it was before.
    pub fn tensors(&self, file: &str, tensors: Vec<OutTensor<'_>>) -> Result<()> {
        self.tensors_with(file, ("format", "pt"), tensors)
    }

    /// The same with other metadata: a key and its value. (Several would have no fixed order in the file.)
    ///
    /// # Errors
    /// As [`FolderWriter::tensors`].
    pub fn tensors_with(&self, file: &str, about: (&str, &str), mut tensors: Vec<OutTensor<'_>>) -> Result<()> {
        let unwritable = |reason: String| Error::Unwritable { path: self.path().join(file), reason };
        tensors.sort_by(|a, b| {
            let width = to_stored(b.dtype).cmp(&to_stored(a.dtype));
            width.then_with(|| a.name.cmp(&b.name))
        });
        let mut infos = Vec::with_capacity(tensors.len());
        let mut offset = 0;
        for (index, tensor) in tensors.iter().enumerate() {
            if index > 0 && tensors[index - 1].name == tensor.name {
                return Err(unwritable(format!("two tensors are named '{}'", tensor.name)));
            }
            let stored = to_stored(tensor.dtype).zip(tensor.byte_len());
            let (dtype, bytes) = stored.ok_or_else(|| {
                unwritable(format!(
                    "'{}' is {} of shape {:?}, which has no place in a safetensors file",
                    tensor.name,
                    tensor.dtype.name(),
                    tensor.shape
                ))
            })?;
            let info = StoredInfo { dtype, shape: tensor.shape.clone(), data_offsets: (offset, offset + bytes) };
            offset += bytes;
            infos.push((tensor.name.clone(), info));
        }
        let about = [(about.0.to_owned(), about.1.to_owned())].into_iter().collect();
        let header = Metadata::new(Some(about), infos).map_err(|e| unwritable(e.to_string()))?;
        let mut header = serde_json::to_vec(&header).map_err(|e| unwritable(e.to_string()))?;
        header.resize(header.len().next_multiple_of(8), b' ');
        self.stream(file, |out| {
            out.write_all(&(header.len() as u64).to_le_bytes())?;
            out.write_all(&header)?;
            for tensor in tensors {
                out.write_all(&tensor.into_bytes()?)?;
            }
            Ok(())
        })
    }
}

/// What a model folder holds beside its tensors.
pub struct SaveModel<'a> {
    /// `config.json`; `dtype` and `torch_dtype` are brought up to date.
    pub config: &'a Value,
    /// `generation_config.json`.
    pub generation_config: Option<&'a Value>,
    /// Tokenizer files.
    pub tokenizer: &'a TokenizerFiles,
    /// The type of most weights, as told in `config.json`.
    pub dtype: Dtype,
    /// Largest weight file, in bytes; a tensor larger than that has a file of its own.
    pub shard_bytes: u64,
}

/// Writes a model as Hugging Face's tools do: weights in one file or in shards with an index,
/// configuration, tokenizer.
///
/// # Errors
/// As [`FolderWriter::tensors`].
pub fn write_model(folder: &FolderWriter, model: &SaveModel<'_>, tensors: Vec<OutTensor<'_>>) -> Result<()> {
    let parameters: usize = tensors.iter().map(|t| t.shape.iter().product::<usize>()).sum();
    let mut shards = split(tensors, model.shard_bytes);
    if shards.len() <= 1 {
        folder.tensors(SINGLE, shards.pop().unwrap_or_default())?;
    } else {
        write_shards(folder, shards, parameters)?;
    }
    folder.json("config.json", &with_dtype(model.config, model.dtype))?;
    if let Some(generation) = model.generation_config {
        folder.json("generation_config.json", generation)?;
    }
    model.tokenizer.write(folder)
}

/// Cuts the tensors into runs of at most `limit` bytes, in order.
fn split(tensors: Vec<OutTensor<'_>>, limit: u64) -> Vec<Vec<OutTensor<'_>>> {
    let mut shards: Vec<Vec<_>> = Vec::new();
    let mut filled = u64::MAX;
    for tensor in tensors {
        let bytes = tensor.byte_len().unwrap_or(0) as u64;
        match shards.last_mut() {
            Some(shard) if filled.saturating_add(bytes) <= limit => {
                shard.push(tensor);
                filled += bytes;
            }
            _ => {
                shards.push(vec![tensor]);
                filled = bytes;
            }
        }
    }
    shards
}

/// Writes the shards, then the index, which makes them a model.
fn write_shards(folder: &FolderWriter, shards: Vec<Vec<OutTensor<'_>>>, parameters: usize) -> Result<()> {
    let count = shards.len();
    let mut weight_map = BTreeMap::new();
    let mut total = 0;
    for (index, tensors) in shards.into_iter().enumerate() {
        let file = format!("model-{:05}-of-{count:05}.safetensors", index + 1);
        for tensor in &tensors {
            total += tensor.byte_len().unwrap_or(0);
            weight_map.insert(tensor.name.clone(), file.clone());
        }
        folder.tensors(&file, tensors)?;
    }
    let metadata = json!({"total_parameters": parameters, "total_size": total});
    folder.json(INDEX, &json!({"metadata": metadata, "weight_map": weight_map}))
}

/// `config.json` that tells the written type under the key it uses already: `dtype` since
/// transformers 5, `torch_dtype` before.
fn with_dtype(config: &Value, dtype: Dtype) -> Value {
    let mut config = config.clone();
    let name = match dtype {
        Dtype::F32 => "float32",
        Dtype::F16 => "float16",
        Dtype::Bf16 => "bfloat16",
        // Whatever else is stored, its config keeps what it says.
        _ => return config,
    };
    if let Some(map) = config.as_object_mut() {
        let old_key = map.contains_key("torch_dtype") || !map.contains_key("dtype");
        let key = if old_key { "torch_dtype" } else { "dtype" };
        map.insert(key.into(), name.into());
        if map.contains_key("dtype") {
            map.insert("dtype".into(), name.into());
        }
    }
    config
}
