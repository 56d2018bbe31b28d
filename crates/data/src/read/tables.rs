//! CSV and parquet rows, copied as JSON lines into an unnamed temporary file.
//!
//! Both can only be read from front to back (a parquet page is compressed), while rows are wanted
//! in any order. The copy is gone when the file is closed, even if the process is killed.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Seek, SeekFrom, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use serde_json::{Map, Value};

use super::scan::Span;
use super::{read_head, start_of_text};
use crate::error::DataError;
use crate::report::{Fault, Reject};

/// Rows in a temporary file.
pub(super) struct Spool {
    pub(super) file: File,
    pub(super) spans: Vec<Span>,
    pub(super) rejects: HashMap<usize, Reject>,
}

/// Copies rows one by one.
pub(super) struct Spooler<'a> {
    scratch: &'a Path,
    out: BufWriter<File>,
    offset: u64,
    spans: Vec<Span>,
    rejects: HashMap<usize, Reject>,
}

impl<'a> Spooler<'a> {
    pub(super) fn new(scratch: &'a Path) -> Result<Self, DataError> {
        let file = tempfile::tempfile_in(scratch).map_err(|error| DataError::io("write", scratch, error))?;
        let out = BufWriter::with_capacity(1 << 20, file);
        Ok(Self { scratch, out, offset: 0, spans: Vec::new(), rejects: HashMap::new() })
    }

    pub(super) fn row(&mut self, line: u64, row: Map<String, Value>) -> Result<(), DataError> {
        let text = Value::Object(row).to_string();
        self.out.write_all(text.as_bytes()).map_err(|error| DataError::io("write", self.scratch, error))?;
        self.spans.push(Span { offset: self.offset, len: text.len() as u64, line });
        self.offset += text.len() as u64;
        Ok(())
    }

    pub(super) fn reject(&mut self, line: u64, fault: Fault, detail: String) {
        self.rejects.insert(self.spans.len(), Reject { line, fault, detail });
        self.spans.push(Span { offset: 0, len: 0, line });
    }

    pub(super) fn finish(self) -> Result<Spool, DataError> {
        let file = self.out.into_inner().map_err(|error| DataError::io("write", self.scratch, error.into_error()))?;
        Ok(Spool { file, spans: self.spans, rejects: self.rejects })
    }
}

/// Rows of a CSV file with a header. An empty field is null, as it is to pandas; every other field
/// is text, whatever it looks like.
pub(super) fn csv(file: &File, path: &Path, scratch: &Path) -> Result<Spool, DataError> {
    let io = |error| DataError::io("read", path, error);
    let head = read_head(file).map_err(io)?;
    let start = start_of_text(&head, path)?;
    let mut input = file;
    input.seek(SeekFrom::Start(start)).map_err(io)?;
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(BufReader::with_capacity(1 << 20, input));
    let columns = csv_header(&mut reader, path)?;
    // The csv crate counts the line feed of `\r\n` to the record after it.
    let crlf = head.split_inclusive(|&byte| byte == b'\n').next().is_some_and(|line| line.ends_with(b"\r\n"));
    let mut spooler = Spooler::new(scratch)?;
    let mut record = csv::ByteRecord::new();
    let mut last = None;
    loop {
        match reader.read_byte_record(&mut record) {
            Ok(false) => break,
            Ok(true) => {}
            Err(error) => return Err(csv_error(path, error)),
        }
        let (line, offset) = record.position().map_or((0, 0), |position| (position.line(), position.byte()));
        let line = line + u64::from(crlf);
        last = Some((line, start + offset));
        csv_row(&mut spooler, &columns, &record, line)?;
    }
    if let Some((line, offset)) = last {
        reject_open_quote(&mut spooler, file, line, offset).map_err(io)?;
    }
    spooler.finish()
}

fn csv_header(reader: &mut csv::Reader<impl std::io::Read>, path: &Path) -> Result<Vec<String>, DataError> {
    let header = reader.byte_headers().map_err(|error| csv_error(path, error))?;
    let mut columns: Vec<String> = Vec::with_capacity(header.len());
    for field in header {
        let problem = match std::str::from_utf8(field) {
            Err(_) => "the header isn't UTF-8 text; save the file as UTF-8".to_owned(),
            Ok(name) if columns.iter().any(|column| column == name) => {
                format!("the header names column `{name}` twice")
            }
            Ok(name) => {
                columns.push(name.to_owned());
                continue;
            }
        };
        return Err(DataError::File { path: path.to_path_buf(), line: 1, problem });
    }
    Ok(columns)
}

fn csv_row(
    spooler: &mut Spooler<'_>,
    columns: &[String],
    record: &csv::ByteRecord,
    line: u64,
) -> Result<(), DataError> {
    if record.len() > columns.len() {
        let detail = format!("{} fields under {} columns", record.len(), columns.len());
        spooler.reject(line, Fault::Fields, detail);
        return Ok(());
    }
    let mut row = Map::with_capacity(columns.len());
    for (i, column) in columns.iter().enumerate() {
        let value = match record.get(i).map(std::str::from_utf8) {
            None | Some(Ok("")) => Value::Null,
            Some(Ok(text)) => Value::String(text.to_owned()),
            Some(Err(error)) => {
                let detail = format!("byte {} of column `{column}`", error.valid_up_to());
                spooler.reject(line, Fault::NotUtf8, detail);
                return Ok(());
            }
        };
        row.insert(column.clone(), value);
    }
    spooler.row(line, row)
}

/// A quote that never closes takes all rows after it into one field of the last record.
fn reject_open_quote(spooler: &mut Spooler<'_>, mut file: &File, line: u64, offset: u64) -> std::io::Result<()> {
    let mut quotes = 0_u64;
    file.seek(SeekFrom::Start(offset))?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        match std::io::Read::read(&mut file, &mut buffer)? {
            0 => break,
            read => quotes += buffer[..read].iter().filter(|&&byte| byte == b'"').count() as u64,
        }
    }
    if quotes % 2 == 1 {
        spooler.spans.pop();
        spooler.rejects.remove(&spooler.spans.len());
        let detail = "a quote in this row never closes; the rest of the file went into it".to_owned();
        spooler.reject(line, Fault::Fields, detail);
    }
    Ok(())
}

fn csv_error(path: &Path, error: csv::Error) -> DataError {
    let line = error.position().map_or(0, csv::Position::line);
    match error.into_kind() {
        csv::ErrorKind::Io(error) => DataError::io("read", path, error),
        kind => DataError::File { path: path.to_path_buf(), line, problem: format!("{kind:?}") },
    }
}

/// Rows of a parquet file, nested lists and structs included.
pub(super) fn parquet(file: &File, path: &Path, scratch: &Path) -> Result<Spool, DataError> {
    let broken = |problem: String| DataError::File {
        path: path.to_path_buf(),
        line: 0,
        problem: format!("is no readable parquet file: {problem}"),
    };
    let file = file.try_clone().map_err(|error| DataError::io("read", path, error))?;
    let mut spooler = Spooler::new(scratch)?;
    // The parquet crate panics on column types it has no JSON form for and on some damage.
    let outcome = catch_unwind(AssertUnwindSafe(|| -> Result<(), DataError> {
        let reader = SerializedFileReader::new(file).map_err(|error| broken(error.to_string()))?;
        let rows = reader.get_row_iter(None).map_err(|error| broken(error.to_string()))?;
        let mut number = 0;
        for row in rows {
            number += 1;
            match row {
                Ok(row) => spooler.row(number, parquet_row(&row))?,
                Err(error) => {
                    // What follows in a damaged file can't be trusted to be rows.
                    spooler.reject(number, Fault::Unreadable, format!("{error}; rows after it are lost"));
                    break;
                }
            }
        }
        Ok(())
    }));
    match outcome {
        Ok(result) => result?,
        Err(_) => return Err(broken("it is damaged or has columns of an unknown type".to_owned())),
    }
    spooler.finish()
}

/// A row as JSON. Some writers leave text without its UTF-8 mark, so that bytes which are text
/// are taken as text.
fn parquet_row(row: &Row) -> Map<String, Value> {
    let value = |field: &Field| match field {
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => Value::String(text.to_owned()),
            Err(_) => field.to_json_value(),
        },
        _ => field.to_json_value(),
    };
    row.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect()
}
