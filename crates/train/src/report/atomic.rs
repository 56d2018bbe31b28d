//! A file is either its old self or its new self, never half of it.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use crate::error::{Error, Result};

/// Replaces `path` by `bytes`: written beside it, synced, renamed.
pub(super) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".partial");
    let partial = path.with_file_name(name);
    let write = || {
        let mut file = File::create(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    write().map_err(|source| {
        // What is left of a full disk only takes more of it; the error that matters is the first.
        let _ = fs::remove_file(&partial);
        Error::io("write", path)(source)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state.json");
        write_atomic(&path, b"old").expect("writable");
        fs::create_dir(folder.path().join("state.json.partial")).expect("writable");
        let error = write_atomic(&path, b"new").expect_err("the partial file is a folder");
        assert!(error.to_string().starts_with("cannot write "), "{error}");
        assert_eq!(fs::read(&path).expect("still there"), b"old");
    }
}
