//! Reading safetensors files, one or a set of shards.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::tensor::Metadata;
use serde_json::Value;

use super::{MAX_HEADER, from_stored};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::file::{DataFile, read_json};
use crate::region::Region;
use crate::source::{TensorInfo, TensorSource, unknown};

/// An open safetensors file.
#[derive(Debug)]
pub struct SafetensorsFile {
    file: DataFile,
    tensors: BTreeMap<String, (Vec<usize>, Region)>,
    metadata: BTreeMap<String, String>,
}

impl SafetensorsFile {
    /// Opens a file and checks its header: sizes, offsets without gap or overlap, types, and that
    /// the file holds exactly the bytes it announces.
    ///
    /// # Errors
    /// If the file can't be read, is a git-lfs pointer, is short, or its header is wrong.
    pub fn open(path: &Path) -> Result<Self> {
        let file = DataFile::open(path)?;
        let malformed = |reason: String| Error::Safetensors { path: path.to_path_buf(), reason };
        let mut prefix = [0; 8];
        file.read_at(0, &mut prefix)?;
        let length = u64::from_le_bytes(prefix);
        if length > MAX_HEADER {
            return Err(malformed(format!(
                "its header would be {length} bytes long, at most {MAX_HEADER} are allowed"
            )));
        }
        if 8 + length > file.len() {
            return Err(Error::Short { path: path.to_path_buf(), expected: 8 + length, actual: file.len() });
        }
        let mut header = vec![0; length as usize];
        file.read_at(8, &mut header)?;
        let header: Metadata = serde_json::from_slice(&header).map_err(|e| malformed(format!("its header: {e}")))?;
        let data = 8 + length;
        let expected = (header.data_len() as u64).checked_add(data);
        let expected = expected.ok_or_else(|| malformed("its sizes overflow".into()))?;
        if file.len() < expected {
            return Err(Error::Short { path: path.to_path_buf(), expected, actual: file.len() });
        }
        if file.len() > expected {
            let extra = file.len() - expected;
            return Err(malformed(format!("{extra} bytes follow its last tensor")));
        }
        let tensors = header.tensors().into_iter().map(|(name, info)| {
            let region = Region {
                offset: data + info.data_offsets.0 as u64,
                elements: info.shape.iter().product(),
                dtype: from_stored(info.dtype),
                order: None,
            };
            (name, (info.shape.clone(), region))
        });
        let tensors = tensors.collect();
        let metadata = header.metadata().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect();
        Ok(Self { file, tensors, metadata })
    }

    /// What its header says beside the tensors, under `key`.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }
}

impl TensorSource for SafetensorsFile {
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

/// Several safetensors files that make one model, with `model.safetensors.index.json`.
#[derive(Debug)]
pub struct ShardedSafetensors {
    folder: PathBuf,
    shards: Vec<SafetensorsFile>,
    shard_of: BTreeMap<String, usize>,
}

impl ShardedSafetensors {
    /// Opens the shards that an index names.
    ///
    /// # Errors
    /// If the index is malformed or points outside its folder, shards are missing (all are named),
    /// or a shard is broken or lacks a tensor that the index puts there.
    pub fn open(index: &Path) -> Result<Self> {
        let folder = index.parent().unwrap_or(Path::new("")).to_path_buf();
        let by_file = read_index(index)?;
        let missing: Vec<_> = by_file.keys().filter(|file| !folder.join(file).exists()).cloned().collect();
        if !missing.is_empty() {
            return Err(Error::MissingShards { index: index.to_path_buf(), missing });
        }
        let mut shards = Vec::with_capacity(by_file.len());
        let mut shard_of = BTreeMap::new();
        for (file, names) in by_file {
            let shard = SafetensorsFile::open(&folder.join(file))?;
            for name in names {
                if !shard.tensors.contains_key(&name) {
                    return Err(unknown(shard.file.path(), &name));
                }
                shard_of.insert(name, shards.len());
            }
            shards.push(shard);
        }
        Ok(Self { folder, shards, shard_of })
    }
}

impl TensorSource for ShardedSafetensors {
    fn names(&self) -> Vec<String> {
        self.shard_of.keys().cloned().collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.shards[*self.shard_of.get(name)?].info(name)
    }

    fn read_range(&self, name: &str, range: Range<usize>, to: Dtype, dst: &mut [u8]) -> Result<()> {
        let shard = (self.shard_of.get(name)).ok_or_else(|| unknown(&self.folder, name))?;
        self.shards[*shard].read_range(name, range, to, dst)
    }
}

/// Tensor names by file, out of an index.
fn read_index(path: &Path) -> Result<BTreeMap<String, Vec<String>>> {
    let malformed = |reason: String| Error::Json { path: path.to_path_buf(), reason };
    let index = read_json(path)?;
    let map = index.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| malformed("expected an object 'weight_map'".into()))?;
    let mut by_file: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, file) in map {
        let file = file
            .as_str()
            .filter(|file| is_plain_name(file))
            .ok_or_else(|| malformed(format!("the shard of '{name}' is {file}, expected a file name")))?;
        by_file.entry(file.into()).or_default().push(name.clone());
    }
    if by_file.is_empty() {
        return Err(malformed("'weight_map' is empty".into()));
    }
    Ok(by_file)
}

/// Whether a name from a file stays inside its folder.
fn is_plain_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!(parts.next(), Some(std::path::Component::Normal(_))) && parts.next().is_none()
}
