//! Files packed with gzip or Zstandard, unpacked into an unnamed temporary file.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read, Write};
use std::path::Path;

use flate2::read::MultiGzDecoder;

use crate::error::DataError;

/// How a file is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    Gzip,
    Zstandard,
}

/// The content of `file`; the copy in `scratch` is gone when it is closed, even if the process is killed.
///
/// # Errors
/// A file that is cut short or damaged: what comes before isn't all there was.
pub(super) fn unpack(file: &File, packing: Packing, path: &Path, scratch: &Path) -> Result<File, DataError> {
    let packed = BufReader::with_capacity(1 << 20, file);
    let mut unpacked: Box<dyn Read + '_> = match packing {
        Packing::Gzip => Box::new(MultiGzDecoder::new(packed)),
        Packing::Zstandard => match zstd::stream::Decoder::with_buffer(packed) {
            Ok(decoder) => Box::new(decoder),
            Err(error) => return Err(DataError::io("read", path, error)),
        },
    };
    let write = |error| DataError::io("write", scratch, error);
    let mut out = tempfile::tempfile_in(scratch).map_err(write)?;
    let mut buffer = vec![0; 1 << 20];
    let mut written = 0_u64;
    loop {
        match unpacked.read(&mut buffer) {
            Ok(0) => return Ok(out),
            Ok(count) => {
                out.write_all(&buffer[..count]).map_err(write)?;
                written += count as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(damaged(path, packing, written, &error)),
        }
    }
}

fn damaged(path: &Path, packing: Packing, written: u64, error: &std::io::Error) -> DataError {
    let what = match packing {
        Packing::Gzip => "gzip",
        Packing::Zstandard => "Zstandard",
    };
    let problem = match error.kind() {
        ErrorKind::UnexpectedEof => {
            format!("is cut short: {written} bytes could be unpacked, then it ends; fetch or write it again")
        }
        _ => format!("is not {what}, or damaged: {written} bytes could be unpacked, then: {error}"),
    };
    DataError::File { path: path.to_path_buf(), line: 0, problem }
}
