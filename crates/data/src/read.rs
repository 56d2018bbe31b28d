//! Data files as rows: JSON lists and lines, CSV, parquet, Arrow, plain text.
//!
//! Opening a file only finds its rows; a row is read and parsed when it is asked for, by any
//! thread, in any order. So memory holds 24 bytes a row whatever the file's size, and sampling,
//! mixing and splitting are done on row numbers. CSV, parquet and Arrow rows, which can't be read
//! out of order, are first copied as JSON into an unnamed temporary file; what is compressed with
//! gzip or Zstandard is unpacked into one.

mod arrow;
mod files;
mod pack;
mod scan;
mod tables;

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::Value;

pub(crate) use files::{data_files, one_type};
use scan::{Layout, Span};

use crate::error::DataError;
use crate::pyjson;
use crate::registry::{bare_message, kind};
use crate::report::{Fault, Reject};

/// Longest row read, in bytes. Longer ones are damage, such as a quote that never closes.
const MAX_ROW: u64 = 256 << 20;

/// Types of data files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileType {
    Json,
    JsonLines,
    Csv,
    Parquet,
    Arrow,
    Text,
}

/// Endings of data files, their types, and what such files hold.
pub(crate) const ENDINGS: [(&[&str], FileType, &str); 6] = [
    (&["json"], FileType::Json, "a list of rows, or a row a line, or rows one after the other"),
    (&["jsonl", "ndjson"], FileType::JsonLines, "a row a line"),
    (&["csv"], FileType::Csv, "a header and a row a record; an empty field is null, any other is text"),
    (&["parquet"], FileType::Parquet, "a row a row, nested lists and structures included"),
    (&["arrow"], FileType::Arrow, "an Arrow file or stream, as `save_to_disk` and the cache of `datasets` write them"),
    (&["txt"], FileType::Text, "a line a row, in the column `text`"),
];

/// A data file whose rows are found.
#[derive(Debug)]
pub(crate) struct Source {
    path: PathBuf,
    /// Where the rows' bytes lie: the data file, or a temporary one.
    bytes: File,
    text: bool,
    spans: Vec<Span>,
    /// Rows that were unusable before they could be copied, by row.
    rejects: HashMap<usize, Reject>,
    stamp: Stamp,
}

/// What changes when someone writes to a file.
#[derive(Debug, PartialEq, Eq)]
struct Stamp(u64, Option<SystemTime>);

impl Stamp {
    fn of(file: &File, path: &Path) -> Result<Self, DataError> {
        let metadata = file.metadata().map_err(|error| DataError::io("read", path, error))?;
        Ok(Self(metadata.len(), metadata.modified().ok()))
    }
}

impl Source {
    /// Finds the rows of `path`; `scratch` is a folder for temporary files.
    ///
    /// # Errors
    /// A file that can't be read, or that as a whole isn't what its name says.
    pub(crate) fn open(path: &Path, file_type: FileType, scratch: &Path) -> Result<Self, DataError> {
        let file = File::open(path).map_err(|error| DataError::io("read", path, error))?;
        let stamp = Stamp::of(&file, path)?;
        let bytes = match files::packed(path) {
            Some(packing) => pack::unpack(&file, packing, path, scratch)?,
            None => file,
        };
        let mut source = Self {
            path: path.to_path_buf(),
            bytes,
            text: file_type == FileType::Text,
            spans: Vec::new(),
            rejects: HashMap::new(),
            stamp,
        };
        match file_type {
            FileType::Csv | FileType::Parquet | FileType::Arrow => {
                let spool = match file_type {
                    FileType::Csv => tables::csv(&source.bytes, path, scratch)?,
                    FileType::Arrow => arrow::arrow(&source.bytes, path, scratch)?,
                    _ => tables::parquet(&source.bytes, path, scratch)?,
                };
                source.bytes = spool.file;
                source.spans = spool.spans;
                source.rejects = spool.rejects;
            }
            _ => source.find_rows(file_type)?,
        }
        Ok(source)
    }

    /// Where the rows come from.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// How many rows it holds, unusable ones among them.
    pub(crate) fn len(&self) -> usize {
        self.spans.len()
    }

    /// Line at which a row begins, from 1; its number in parquet and Arrow.
    pub(crate) fn line(&self, row: usize) -> u64 {
        self.spans[row].line
    }

    /// Reads and parses a row.
    pub(crate) fn read(&self, row: usize) -> Result<Value, Reject> {
        if let Some(reject) = self.rejects.get(&row) {
            return Err(reject.clone());
        }
        let span = self.spans[row];
        let reject = |line, fault, detail| Err(Reject { line, fault, detail });
        if span.len > MAX_ROW {
            return reject(span.line, Fault::TooLarge, format!("{} MiB in one row", span.len >> 20));
        }
        let mut bytes = vec![0; span.len as usize];
        if let Err(error) = read_at(&self.bytes, &mut bytes, span.offset) {
            return reject(span.line, Fault::Unreadable, error.to_string());
        }
        let text = match std::str::from_utf8(&bytes) {
            Ok(text) => text,
            Err(error) => {
                let before = &bytes[..error.valid_up_to()];
                let line = span.line + before.iter().filter(|&&byte| byte == b'\n').count() as u64;
                let at = span.offset + before.len() as u64;
                return reject(line, Fault::NotUtf8, format!("byte {at} of the file"));
            }
        };
        if self.text {
            return Ok(Value::Object([("text".to_owned(), Value::String(text.to_owned()))].into_iter().collect()));
        }
        if text.is_empty() {
            return reject(span.line, Fault::BrokenJson, "a comma without a row before it".to_owned());
        }
        pyjson::parse(text).map_err(|error| Reject {
            line: span.line + (error.line() as u64).saturating_sub(1),
            fault: Fault::BrokenJson,
            detail: format!("{}, column {}", bare_message(&error), error.column()),
        })
    }

    /// Ends the run if the file was written to since it was opened: rows would be read from wrong places.
    pub(crate) fn check_unchanged(&self) -> Result<(), DataError> {
        let now = File::open(&self.path).map_err(|error| DataError::io("read", &self.path, error))?;
        if Stamp::of(&now, &self.path)? == self.stamp {
            return Ok(());
        }
        Err(DataError::Changed { path: self.path.clone() })
    }

    fn find_rows(&mut self, file_type: FileType) -> Result<(), DataError> {
        let io = |error| DataError::io("read", &self.path, error);
        let head = read_head(&self.bytes).map_err(io)?;
        let start = start_of_text(&head, &self.path)?;
        let from = Span { offset: start, len: 0, line: 1 };
        let open = |span: Span| -> Result<BufReader<&File>, DataError> {
            let mut file = &self.bytes;
            file.seek(SeekFrom::Start(span.offset)).map_err(io)?;
            Ok(BufReader::with_capacity(1 << 20, file))
        };
        if file_type == FileType::Text {
            self.spans = scan::all_lines(open(from)?, from).map_err(io)?;
            return Ok(());
        }
        let layout = match first_token(&head[start as usize..]) {
            None => return Ok(()),
            Some(b'[') => Layout::List,
            _ if file_type == FileType::JsonLines || first_line_is_object(&head[start as usize..]) => {
                self.spans = scan::lines(open(from)?, from).map_err(io)?;
                return self.refuse_wrapped_list();
            }
            Some(b'{') => Layout::Objects,
            Some(other) => {
                return Err(DataError::File {
                    path: self.path.clone(),
                    line: 1,
                    problem: format!(
                        "expected a list of rows, `[{{...}}, {{...}}]`, or a row a line; it begins with `{}`",
                        char::from(other).escape_default()
                    ),
                });
            }
        };
        let mut rows = scan::rows(open(from)?, from, layout, None).map_err(io)?;
        if let (true, Some(&last)) = (rows.open, rows.spans.last())
            && let Some(indent) = self.indent(rows.spans[0]).map_err(io)?
        {
            // The rest of the file went into one row that never closes. A row stands at the indentation of the first.
            let again = scan::rows(open(last)?, last, layout, Some(indent)).map_err(io)?;
            rows.spans.pop();
            rows.spans.extend(again.spans);
            rows.after_end = rows.after_end.or(again.after_end);
        }
        if let Some(line) = rows.after_end {
            let at = rows.spans.partition_point(|span| span.line < line);
            rows.spans.insert(at, Span { offset: 0, len: 0, line });
            let detail = "the list ends with `]` before this point".to_owned();
            self.rejects.insert(at, Reject { line, fault: Fault::BrokenJson, detail });
        }
        self.spans = rows.spans;
        self.refuse_wrapped_list()
    }

    /// The column at which a row begins if only spaces stand before it in its line.
    fn indent(&self, row: Span) -> std::io::Result<Option<u64>> {
        const WIDEST: u64 = 64;
        let from = row.offset.saturating_sub(WIDEST);
        let mut before = vec![0; (row.offset - from) as usize];
        read_at(&self.bytes, &mut before, from)?;
        let spaces = before.iter().rev().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        let starts_line = spaces < before.len() && before[before.len() - 1 - spaces] == b'\n';
        Ok(starts_line.then_some(spaces as u64))
    }

    /// `{"data": [{..}, ..]}` is one object to a reader, but surely meant as its list.
    fn refuse_wrapped_list(&self) -> Result<(), DataError> {
        let [span] = self.spans[..] else { return Ok(()) };
        let Ok(Value::Object(row)) = self.read(0) else { return Ok(()) };
        let is_rows = |value: &Value| {
            let first = value.as_array().and_then(|items| items.first());
            first.and_then(Value::as_object).is_some_and(|item| !is_turn(item))
        };
        match row.iter().find(|(_, value)| is_rows(value)) {
            None => Ok(()),
            Some((key, _)) => Err(DataError::File {
                path: self.path.clone(),
                line: span.line,
                problem: format!("expected a list of rows, found one object; save the list under `{key}` by itself"),
            }),
        }
    }
}

/// Whether an object looks like a turn of a conversation or a tool rather than a row.
fn is_turn(item: &serde_json::Map<String, Value>) -> bool {
    ["from", "role", "value", "content", "function", "name"].iter().any(|key| item.contains_key(*key))
}

/// Describes a row that isn't an object.
pub(crate) fn not_an_object(line: u64, value: &Value) -> Reject {
    Reject { line, fault: Fault::NotAnObject, detail: format!("found {}", kind(value)) }
}

#[cfg(unix)]
pub(crate) fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

#[cfg(windows)]
pub(crate) fn read_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> std::io::Result<()> {
    while !buffer.is_empty() {
        let read = std::os::windows::fs::FileExt::seek_read(file, buffer, offset)?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        buffer = &mut buffer[read..];
        offset += read as u64;
    }
    Ok(())
}

/// The first 64 KiB.
fn read_head(mut file: &File) -> std::io::Result<Vec<u8>> {
    const HEAD: u64 = 64 << 10;
    let mut head = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.take(HEAD).read_to_end(&mut head)?;
    Ok(head)
}

/// Length of the byte order mark, if the file is UTF-8 text.
fn start_of_text(head: &[u8], path: &Path) -> Result<u64, DataError> {
    let not_text =
        |problem: &str| Err(DataError::File { path: path.to_path_buf(), line: 0, problem: problem.to_owned() });
    match head {
        [0xef, 0xbb, 0xbf, ..] => Ok(3),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => not_text("this is UTF-16 text; save it as UTF-8"),
        [0x1f, 0x8b, ..] => not_text("is compressed with gzip; give it a name that ends in `.gz`"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => not_text("is compressed with Zstandard; give it a name that ends in `.zst`"),
        [b'P', b'A', b'R', b'1', ..] => not_text("is a parquet file; name it .parquet"),
        [b'A', b'R', b'R', b'O', b'W', b'1', ..] => not_text("is an Arrow file; name it .arrow"),
        _ if head.iter().take(4096).any(|&byte| byte == 0) => not_text("holds zero bytes: it isn't text"),
        _ => Ok(0),
    }
}

fn first_token(text: &[u8]) -> Option<u8> {
    text.iter().copied().find(|byte| !byte.is_ascii_whitespace())
}

fn first_line_is_object(text: &[u8]) -> bool {
    let line = text.split(|&byte| byte == b'\n').find(|line| first_token(line).is_some());
    line.is_some_and(|line| serde_json::from_slice::<serde_json::Map<String, Value>>(line).is_ok())
}

#[cfg(test)]
mod tests;
