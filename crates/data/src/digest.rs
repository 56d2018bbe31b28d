//! SHA-256 of files, fast enough to be taken at every start.
//!
//! Blocks of a mebibyte are hashed on all cores and their hashes hashed again, so that the result
//! is not `sha256sum`'s, but as good a name for the content.

use std::fs::File;
use std::io;

use rayon::iter::{IntoParallelIterator, ParallelIterator};
use sha2::{Digest as _, Sha256};

use crate::read::read_at;

/// A SHA-256.
pub(crate) type Digest = [u8; 32];

const BLOCK: u64 = 1 << 20;

/// Of `len` bytes from `start`.
pub(crate) fn of_range(file: &File, start: u64, len: u64) -> io::Result<Digest> {
    let blocks = (0..len.div_ceil(BLOCK)).into_par_iter().map_init(Vec::new, |buffer, block| {
        let from = block * BLOCK;
        buffer.resize(BLOCK.min(len - from) as usize, 0);
        read_at(file, buffer, start + from)?;
        Ok(of_bytes(buffer))
    });
    let blocks: Vec<Digest> = blocks.collect::<io::Result<_>>()?;
    Ok(of_bytes([&len.to_le_bytes(), blocks.as_flattened()].concat()))
}

/// Of a whole file.
pub(crate) fn of_file(file: &File) -> io::Result<Digest> {
    of_range(file, 0, file.metadata()?.len())
}

/// Of bytes in memory.
pub(crate) fn of_bytes(bytes: impl AsRef<[u8]>) -> Digest {
    Sha256::digest(bytes).into()
}

/// Of parts in memory; where one ends and the next begins counts.
pub(crate) fn of_parts<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Digest {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn every_byte_and_the_length_count() {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..BLOCK as usize * 2 + 5).map(|i| (i % 251) as u8).collect();
        file.write_all(&bytes).unwrap();
        let whole = of_file(&file).unwrap();
        assert_eq!(whole, of_range(&file, 0, bytes.len() as u64).unwrap());
        assert_ne!(whole, of_range(&file, 0, bytes.len() as u64 - 1).unwrap());
        for position in [0, BLOCK as usize, bytes.len() - 1] {
            let mut changed = tempfile::tempfile().unwrap();
            let mut bytes = bytes.clone();
            bytes[position] ^= 1;
            changed.write_all(&bytes).unwrap();
            assert_ne!(whole, of_file(&changed).unwrap());
        }
        assert!(of_range(&file, 5, bytes.len() as u64).is_err());
    }
}
