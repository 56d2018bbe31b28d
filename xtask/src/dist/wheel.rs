//! The wheel: a zip whose `scripts` pip puts on the path. It holds no Python, so one file serves every version of it.

use std::io::{Cursor, Write};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::{GLIBC, Machine, OTHER_NAMES, Parts, SUMMARY, VERSION};
use crate::root;

/// The other names start the program that lies beside them. A wheel has no links, and copies would triple its size;
/// `readlink` is for tools that link commands into a folder of their own.
const STARTER: &str = "#!/bin/sh\nexec \"$(dirname \"$(readlink -f \"$0\")\")/ferrotune\" \"$@\"\n";

/// Name and content of the wheel.
pub(super) fn pack(machine: &Machine, parts: &Parts) -> Result<(String, Vec<u8>)> {
    let tag = format!("py3-none-manylinux_{}_{}_{}", GLIBC.0, GLIBC.1, machine.name);
    let (scripts, info) = (format!("ferrotune-{VERSION}.data/scripts"), format!("ferrotune-{VERSION}.dist-info"));
    let mut wheel = Wheel { zip: ZipWriter::new(Cursor::new(Vec::new())), record: String::new() };
    wheel.file(&format!("{scripts}/ferrotune"), &parts.binary, 0o755)?;
    for name in OTHER_NAMES {
        wheel.file(&format!("{scripts}/{name}"), STARTER.as_bytes(), 0o755)?;
    }
    let readme = read("README.md")?;
    let metadata = format!(
        "Metadata-Version: 2.4\nName: ferrotune\nVersion: {VERSION}\nSummary: {SUMMARY}\nLicense-Expression: Apache-2.0\n\
         License-File: LICENSE\nLicense-File: THIRD-PARTY-LICENCES\nRequires-Python: >=3\n\
         Description-Content-Type: text/markdown\n\n{}",
        String::from_utf8_lossy(&readme)
    );
    wheel.file(&format!("{info}/METADATA"), metadata.as_bytes(), 0o644)?;
    let kind = format!("Wheel-Version: 1.0\nGenerator: ferrotune xtask\nRoot-Is-Purelib: false\nTag: {tag}\n");
    wheel.file(&format!("{info}/WHEEL"), kind.as_bytes(), 0o644)?;
    wheel.file(&format!("{info}/licenses/LICENSE"), &read("LICENSE")?, 0o644)?;
    wheel.file(&format!("{info}/licenses/THIRD-PARTY-LICENCES"), &parts.notices, 0o644)?;
    Ok((format!("ferrotune-{VERSION}-{tag}.whl"), wheel.finish(&format!("{info}/RECORD"))?))
}

fn read(name: &str) -> Result<Vec<u8>> {
    std::fs::read(root().join(name)).with_context(|| format!("reading {name}"))
}

struct Wheel {
    zip: ZipWriter<Cursor<Vec<u8>>>,
    /// A line a file: name, digest, size.
    record: String,
}

impl Wheel {
    fn file(&mut self, name: &str, content: &[u8], mode: u32) -> Result<()> {
        self.put(name, content, mode)?;
        let digest = url_base64(&Sha256::digest(content));
        self.record.push_str(&format!("{name},sha256={digest},{}\n", content.len()));
        Ok(())
    }

    fn put(&mut self, name: &str, content: &[u8], mode: u32) -> Result<()> {
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Deflated)
            .compression_level(Some(9))
            .unix_permissions(mode);
        self.zip.start_file(name, options)?;
        Ok(self.zip.write_all(content)?)
    }

    fn finish(mut self, record_name: &str) -> Result<Vec<u8>> {
        let record = format!("{}{record_name},,\n", self.record);
        self.put(record_name, record.as_bytes(), 0o644)?;
        Ok(self.zip.finish()?.into_inner())
    }
}

/// Base 64 with the alphabet for addresses and no padding, as RECORD has it.
fn url_base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0u32, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..=chunk.len() {
            out.push(char::from(ALPHABET[(group >> (18 - 6 * place)) as usize & 63]));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_every_length() {
        for (bytes, text) in [(&b""[..], ""), (b"f", "Zg"), (b"fo", "Zm8"), (b"foo", "Zm9v"), (b"\xff\xfe\xfd", "__79")]
        {
            assert_eq!(url_base64(bytes), text);
        }
    }
}
