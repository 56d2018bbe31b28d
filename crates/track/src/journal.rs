//! The log format of LevelDB, in which Weights & Biases and SwanLab keep the records of a run
//! (<https://github.com/google/leveldb/blob/main/doc/log_format.md>), with the checksum that both take instead: plain CRC-32, of
//! the kind and the data of a piece.
//!
//! A run that goes on goes on with its file: records of steps that will be made again are dropped, and so is the end of a
//! file that was cut.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use ferrotune_checkpoint::write_atomic;

use crate::error::{Error, Result};

const BLOCK: usize = 32_768;
const HEADER: usize = 7;
const FULL: u8 = 1;
const FIRST: u8 = 2;
const MIDDLE: u8 = 3;
const LAST: u8 = 4;

/// A file of records, being written.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    /// Bytes of the file.
    size: usize,
}

impl Journal {
    /// Begins a file whose first seven bytes are `ident`.
    pub(crate) fn create(path: PathBuf, ident: [u8; HEADER]) -> Result<Self> {
        let mut file = File::create_new(&path).map_err(Error::io("create", &path))?;
        file.write_all(&ident).map_err(Error::io("write", &path))?;
        Ok(Self { path, file, size: HEADER })
    }

    /// Goes on with a file, with those of its records that are kept; their number comes along.
    pub(crate) fn resume(
        path: PathBuf,
        ident: [u8; HEADER],
        mut keep: impl FnMut(&[u8]) -> bool,
    ) -> Result<(Self, usize)> {
        let old = fs::read(&path).map_err(Error::io("read", &path))?;
        let mut bytes = ident.to_vec();
        let mut kept = 0;
        for record in records(&old, ident).filter(|record| keep(record)) {
            let size = bytes.len();
            lay(&record, size, &mut bytes);
            kept += 1;
        }
        write_atomic(&path, &bytes)?;
        let file = OpenOptions::new().append(true).open(&path).map_err(Error::io("write", &path))?;
        Ok((Self { path, file, size: bytes.len() }, kept))
    }

    /// Adds a record, in one write, so that a kill leaves at most one torn record at the end.
    pub(crate) fn append(&mut self, record: &[u8]) -> Result<()> {
        let mut bytes = Vec::with_capacity(record.len() + 2 * HEADER);
        lay(record, self.size, &mut bytes);
        self.file.write_all(&bytes).map_err(Error::io("write", &self.path))?;
        self.size += bytes.len();
        Ok(())
    }

    /// Where the file lies.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Lays a record into pieces, none of which lies across a block's border, behind the first `size` bytes of a file.
fn lay(record: &[u8], size: usize, out: &mut Vec<u8>) {
    let (begin, mut rest, mut is_first) = (out.len(), record, true);
    loop {
        let mut room = BLOCK - (size + out.len() - begin) % BLOCK;
        if room < HEADER {
            out.resize(out.len() + room, 0);
            room = BLOCK;
        }
        let (piece, after) = rest.split_at(rest.len().min(room - HEADER));
        let kind = match (is_first, after.is_empty()) {
            (true, true) => FULL,
            (true, false) => FIRST,
            (false, false) => MIDDLE,
            (false, true) => LAST,
        };
        out.extend(crc32(&[&[kind], piece]).to_le_bytes());
        out.extend((piece.len() as u16).to_le_bytes());
        out.push(kind);
        out.extend(piece);
        (rest, is_first) = (after, false);
        if rest.is_empty() {
            return;
        }
    }
}

/// The sound records of a file, up to the first that isn't.
pub(crate) fn records(bytes: &[u8], ident: [u8; HEADER]) -> impl Iterator<Item = Vec<u8>> {
    let is_one = bytes.starts_with(&ident);
    let mut at = HEADER;
    std::iter::from_fn(move || {
        let (mut record, mut goes_on) = (Vec::new(), false);
        loop {
            let room = BLOCK - at % BLOCK;
            if room < HEADER {
                at += room;
            }
            let header = bytes.get(at..at + HEADER).filter(|_| is_one)?;
            let (crc, length) = (&header[..4], usize::from(u16::from_le_bytes([header[4], header[5]])));
            let (kind, piece) = (header[6], bytes.get(at + HEADER..at + HEADER + length)?);
            let is_expected = if goes_on { [MIDDLE, LAST].contains(&kind) } else { [FULL, FIRST].contains(&kind) };
            if !is_expected || crc32(&[&[kind], piece]).to_le_bytes() != *crc {
                return None;
            }
            at += HEADER + length;
            record.extend(piece);
            goes_on = true;
            if [FULL, LAST].contains(&kind) {
                return Some(record);
            }
        }
    })
}

/// CRC-32 of several pieces of data in a row (zlib's, reflected polynomial 0xEDB88320).
fn crc32(pieces: &[&[u8]]) -> u32 {
    let bit = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
    !pieces
        .iter()
        .flat_map(|piece| piece.iter())
        .fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| bit(crc)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENT: [u8; 7] = *b":W&B\xe1\xbe\0";

    #[test]
    fn the_checksum_is_zlib_s() {
        assert_eq!(crc32(&[b"123456789"]), 0xcbf4_3926);
        assert_eq!(crc32(&[b"1234", b"56789"]), 0xcbf4_3926);
    }

    /// Lengths around the border of a block, one that fills several, and none.
    #[test]
    fn records_of_any_length_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let mut journal = Journal::create(path.clone(), IDENT).unwrap();
        let lengths = [1, 32_740, 5, 100_000, 32_761, 32_754, 65_522, 3, 32_760 * 2];
        let record = |n: usize| -> Vec<u8> { (0..lengths[n]).map(|i| (i * 7 + n) as u8).collect() };
        for n in 0..lengths.len() {
            journal.append(&record(n)).unwrap();
            let bytes = fs::read(&path).unwrap();
            let found: Vec<_> = records(&bytes, IDENT).collect();
            assert!(found.len() == n + 1 && found[n] == record(n), "record {n}");
        }
        assert_eq!(journal.size, fs::read(&path).unwrap().len());
    }

    #[test]
    fn a_torn_file_goes_on_after_its_last_sound_record() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let mut journal = Journal::create(path.clone(), IDENT).unwrap();
        for n in 0..5_u8 {
            journal.append(&[n; 40_000]).unwrap();
        }
        let whole = fs::read(&path).unwrap();
        for cut in [whole.len() - 1, whole.len() - 30_000, 120_100] {
            fs::write(&path, &whole[..cut]).unwrap();
            let sound = records(&whole[..cut], IDENT).count();
            let (mut journal, kept) = Journal::resume(path.clone(), IDENT, |record| record[0] != 1).unwrap();
            journal.append(b"next").unwrap();
            let bytes = fs::read(&path).unwrap();
            let found: Vec<_> = records(&bytes, IDENT).collect();
            assert!(sound < 5 && kept == sound - 1 && found.len() == sound, "{cut}: {sound}, {kept}");
            assert_eq!(found.last().map(Vec::as_slice), Some(&b"next"[..]));
        }
        assert_eq!(records(&whole, *b":SWL\xd6\xe1\x02").count(), 0, "another program's file has none");
    }

    #[test]
    fn a_changed_byte_ends_the_records() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let mut journal = Journal::create(path.clone(), IDENT).unwrap();
        (0..3).for_each(|_| journal.append(b"record").unwrap());
        let mut bytes = fs::read(&path).unwrap();
        bytes[7 + 13 + 9] ^= 1;
        assert_eq!(records(&bytes, IDENT).count(), 1);
    }
}
