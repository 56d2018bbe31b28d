//! Writing files so that a kill, a full disk or a power cut never leaves half of one.
//!
//! A file is written under a temporary name beside its own, flushed to the disk and renamed, and
//! the folder is flushed after that: whoever opens the name sees the old file or the new one,
//! whole.

use std::collections::hash_map::RandomState;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, Hasher};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, Result, io_error};

/// Marks temporary names, between the name they will have and random hexadecimal digits.
pub(crate) const TEMP: &str = ".tmp-";

/// Replaces a file by one with these bytes, atomically and durably.
///
/// # Errors
/// If the folder doesn't exist or can't be written, or the disk is full; the file is then what it
/// was before.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    replace(folder, path, |out| Ok(out.write_all(bytes)?))
}

/// Writes files into one folder.
#[derive(Debug)]
pub struct FolderWriter {
    path: PathBuf,
    /// The folder is seen by nobody yet: files need no temporary names, and the folder is flushed
    /// once, by whoever made it.
    private: bool,
}

/// What a writing closure may fail with.
#[derive(Debug)]
pub enum StreamError {
    /// The file can't be written.
    Io(io::Error),
    /// What should be written can't be made.
    Other(Error),
}

impl From<io::Error> for StreamError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Error> for StreamError {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl FolderWriter {
    /// Writes into a folder, made if it isn't there; every file is replaced atomically.
    ///
    /// # Errors
    /// If the folder can't be made.
    pub fn new(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).map_err(io_error("create", path))?;
        Ok(Self { path: path.to_path_buf(), private: false })
    }

    /// Writes into a folder that gets its name only when it is whole.
    pub(crate) fn private(path: PathBuf) -> Self {
        Self { path, private: true }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file out of a closure.
    ///
    /// # Errors
    /// What the closure fails with, or what [`write_atomic`] does.
    pub fn stream(&self, file: &str, write: impl FnOnce(&mut dyn Write) -> Result<(), StreamError>) -> Result<()> {
        let path = self.path.join(file);
        if self.private { fill(&path, &path, write) } else { replace(&self.path, &path, write) }
    }

    /// Writes a file of these bytes.
    ///
    /// # Errors
    /// As [`write_atomic`].
    pub fn bytes(&self, file: &str, bytes: &[u8]) -> Result<()> {
        self.stream(file, |out| Ok(out.write_all(bytes)?))
    }

    /// Writes a JSON file, indented by two spaces as Python's tools do.
    ///
    /// # Errors
    /// As [`write_atomic`].
    pub fn json(&self, file: &str, value: &Value) -> Result<()> {
        self.bytes(file, format!("{value:#}\n").as_bytes())
    }
}

/// Writes a temporary file beside `path` and renames it.
fn replace(folder: &Path, path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<(), StreamError>) -> Result<()> {
    let temp = temporary(path);
    fill(&temp, path, write)?;
    if let Err(source) = fs::rename(&temp, path) {
        // The rename's error is the one to report; the leftover is swept by its name later.
        let _ = fs::remove_file(&temp);
        return Err(io_error("write", path)(source));
    }
    sync_folder(folder)
}

/// Makes `file` and flushes it; errors speak of `shown`, the name the user knows.
fn fill(file: &Path, shown: &Path, write: impl FnOnce(&mut dyn Write) -> Result<(), StreamError>) -> Result<()> {
    let attempt = || -> Result<(), StreamError> {
        let handle = OpenOptions::new().write(true).create_new(true).open(file)?;
        let mut out = BufWriter::with_capacity(1 << 16, handle);
        write(&mut out)?;
        let handle = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok(handle.sync_all()?)
    };
    attempt().map_err(|error| {
        // The first error is the one to report; a leftover is swept by its name later.
        let _ = fs::remove_file(file);
        match error {
            StreamError::Io(source) => io_error("write", shown)(source),
            StreamError::Other(error) => error,
        }
    })
}

/// Flushes a folder's list of names to the disk.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io_error("write", folder))
}

/// A fresh temporary name beside `path`.
pub(crate) fn temporary(path: &Path) -> PathBuf {
    with_suffix(path, TEMP)
}

/// A fresh name beside `path`: its own, `marker`, 16 hexadecimal digits.
pub(crate) fn with_suffix(path: &Path, marker: &str) -> PathBuf {
    marked(path, marker, random())
}

/// The name beside `path` that is its own, `marker` and the digits of `id`.
pub(crate) fn marked(path: &Path, marker: &str, id: u64) -> PathBuf {
    let mut name = path.file_name().map_or_else(OsString::new, OsString::from);
    name.push(format!("{marker}{id:016x}"));
    path.with_file_name(name)
}

/// A number that no other call gives; no secret.
pub fn random() -> u64 {
    // Every `RandomState` has keys of its own, seeded by the operating system.
    RandomState::new().build_hasher().finish()
}

/// The name that a temporary one was made of, if it is one with this marker.
pub(crate) fn without_suffix<'a>(name: &'a str, marker: &str) -> Option<&'a str> {
    let (stem, digits) = name.rsplit_once(marker)?;
    let random = digits.len() == 16 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    (random && !stem.is_empty()).then_some(stem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_leftover() {
        let dir = tempfile::tempdir().unwrap();
        let folder = FolderWriter::new(dir.path()).unwrap();
        folder.bytes("a.txt", b"old").unwrap();
        let error = folder.stream("a.txt", |out| {
            out.write_all(b"new")?;
            Err(io::Error::from(io::ErrorKind::StorageFull).into())
        });
        assert!(error.unwrap_err().to_string().contains("a.txt"));
        assert_eq!(fs::read(dir.path().join("a.txt")).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn write_atomic_replaces_and_needs_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        write_atomic(&path, b"1").unwrap();
        write_atomic(&path, b"2").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"2");
        assert!(write_atomic(&dir.path().join("no/x"), b"1").is_err());
    }

    #[test]
    fn temporary_names_are_recognised_and_others_are_not() {
        let temp = temporary(Path::new("/a/checkpoint-5"));
        let name = temp.file_name().unwrap().to_str().unwrap();
        assert_eq!(without_suffix(name, TEMP), Some("checkpoint-5"));
        assert_eq!(without_suffix("checkpoint-5", TEMP), None);
        assert_eq!(without_suffix("notes.tmp-mine", TEMP), None);
    }
}
