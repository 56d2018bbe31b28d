//! A file that is still arriving: it grows beside its final place, knows its digest, and gets its name only when whole.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::error::HubError;

/// The beginning of a file, at `path`.
pub(super) struct Partial {
    path: PathBuf,
    file: File,
    len: u64,
    hash: Sha256,
}

impl Partial {
    /// Opens what an earlier run left at `path`, or begins.
    pub(super) fn open(path: &Path) -> Result<Partial, HubError> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(HubError::io("write", path))?;
        let mut hash = Sha256::new();
        let len = feed(&mut file, &mut hash).map_err(HubError::io("read", path))?;
        Ok(Partial { path: path.to_path_buf(), file, len, hash })
    }

    /// Bytes so far.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Begins again if there is more than the whole can have: it is of something else.
    pub(super) fn keep_at_most(&mut self, size: u64) -> Result<(), HubError> {
        if self.len > size { self.restart() } else { Ok(()) }
    }

    /// Forgets everything.
    pub(super) fn restart(&mut self) -> Result<(), HubError> {
        self.file
            .set_len(0)
            .and_then(|()| self.file.seek(SeekFrom::Start(0)))
            .map_err(HubError::io("write", &self.path))?;
        self.len = 0;
        self.hash = Sha256::new();
        Ok(())
    }

    /// Appends.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), HubError> {
        self.file.write_all(bytes).map_err(HubError::io("write", &self.path))?;
        self.len += bytes.len() as u64;
        self.hash.update(bytes);
        Ok(())
    }

    /// Compares the digest with the one expected of `what`. A copy that differs is emptied: going on from it can never
    /// succeed.
    pub(super) fn verify(&mut self, what: &str, sha256: Option<&str>) -> Result<(), HubError> {
        let got = hex(&self.hash.clone().finalize());
        match sha256 {
            Some(expected) if !expected.eq_ignore_ascii_case(&got) => {
                self.restart()?;
                Err(HubError::Checksum { what: what.to_owned(), expected: expected.to_owned(), got })
            }
            _ => Ok(()),
        }
    }

    /// Gives the file its name, once its bytes are on the disk.
    pub(super) fn publish(self, to: &Path) -> Result<(), HubError> {
        self.file.sync_all().map_err(HubError::io("write", &self.path))?;
        std::fs::rename(&self.path, to).map_err(HubError::io("rename a finished download to", to))
    }
}

/// The digest of a whole file, hexadecimal.
pub(super) fn sha256_of(path: &Path) -> Result<String, HubError> {
    let mut hash = Sha256::new();
    let mut file = File::open(path).map_err(HubError::io("read", path))?;
    feed(&mut file, &mut hash).map_err(HubError::io("read", path))?;
    Ok(hex(&hash.finalize()))
}

fn feed(file: &mut File, hash: &mut Sha256) -> std::io::Result<u64> {
    let mut chunk = vec![0; 1 << 20];
    let mut len = 0;
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(len),
            count => {
                hash.update(&chunk[..count]);
                len += count as u64;
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
