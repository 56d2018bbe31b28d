//! Reading parts of large files without mapping them.
//!
//! A mapped file that somebody shortens kills the process with SIGBUS, and its pages count as
//! resident beside the tensors made of them. Positioned reads into the destination have neither
//! fault and cost one copy from the page cache, several GB/s a core.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, Result, io_error};

/// Longest JSON file that is read: `tokenizer.json` of large vocabularies is about 30 MB.
const MAX_JSON: u64 = 512 << 20;

/// An open file whose length was read once.
#[derive(Debug)]
pub(crate) struct DataFile {
    file: File,
    path: PathBuf,
    len: u64,
}

impl DataFile {
    /// Opens a regular file for reading.
    ///
    /// # Errors
    /// If it can't be opened, is a folder, or is a git-lfs pointer.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(io_error("open", path))?;
        let metadata = file.metadata().map_err(io_error("read", path))?;
        if !metadata.is_file() {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
            return Err(io_error("open", path)(source));
        }
        let file = Self { file, path: path.to_path_buf(), len: metadata.len() };
        const LFS: &[u8] = b"version https://git-lfs.github.com/spec/";
        if file.len < 1024 && file.len >= LFS.len() as u64 {
            let mut start = [0; LFS.len()];
            file.read_at(0, &mut start)?;
            if start == LFS {
                return Err(Error::LfsPointer { path: file.path });
            }
        }
        Ok(file)
    }

    /// Length when it was opened, in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Where it was opened.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Fills `dst` from `offset` on.
    ///
    /// # Errors
    /// [`Error::Short`] if the file ends before, even if it was long enough when opened.
    pub(crate) fn read_at(&self, offset: u64, dst: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(dst, offset).map_err(|source| {
            if source.kind() == io::ErrorKind::UnexpectedEof {
                Error::Short {
                    path: self.path.clone(),
                    expected: offset.saturating_add(dst.len() as u64),
                    actual: self.file.metadata().map_or(self.len, |m| m.len()),
                }
            } else {
                io_error("read", &self.path)(source)
            }
        })
    }
}

/// Reads a whole file of at most `limit` bytes.
pub(crate) fn read_small(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = DataFile::open(path)?;
    if file.len() > limit {
        return Err(Error::Json {
            path: path.to_path_buf(),
            reason: format!("{} bytes, more than the {limit} expected at most", file.len()),
        });
    }
    let mut bytes = vec![0; file.len() as usize];
    file.read_at(0, &mut bytes)?;
    Ok(bytes)
}

/// Reads a file beside a model (configuration, tokenizer) as bytes.
pub(crate) fn read_side_file(path: &Path) -> Result<Vec<u8>> {
    read_small(path, MAX_JSON)
}

/// Reads a JSON file that must hold an object.
pub(crate) fn read_json(path: &Path) -> Result<Value> {
    let bytes = read_side_file(path)?;
    let malformed = |reason: String| Error::Json { path: path.to_path_buf(), reason };
    let value: Value = serde_json::from_slice(&bytes).map_err(|e| malformed(format!("not valid JSON: {e}")))?;
    if !value.is_object() {
        return Err(malformed("expected a JSON object".into()));
    }
    Ok(value)
}
