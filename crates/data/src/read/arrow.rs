//! Arrow files, copied as JSON lines: what `datasets` saves (`save_to_disk`, its cache) and Feather files.
//!
//! Our own reader rather than the `arrow` crates: nothing here computes on columns, and a build that takes a minute
//! longer for a format that is two pages of specification isn't worth it. Files and streams have the same messages, so
//! both are read from front to back. Formats: <https://arrow.apache.org/docs/format/Columnar.html>.

mod batch;
mod column;
mod flat;
mod schema;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::rc::Rc;

use serde_json::Map;

use self::batch::Parts;
use self::column::{Column, Dictionaries};
use self::flat::Table;
use self::schema::Field;
use super::tables::{Spool, Spooler};
use crate::error::DataError;
use crate::report::Fault;

const MAGIC: &[u8] = b"ARROW1\0\0";
/// Begins each message since 2019.
const CONTINUES: u32 = u32::MAX;
/// Most bytes of a message's own description.
const MAX_METADATA: u32 = 256 << 20;

/// A message: its description and the length of what follows it.
struct Message {
    metadata: Vec<u8>,
    body: u64,
}

/// Messages of a file in order.
struct Messages<'a> {
    input: BufReader<&'a File>,
    left: u64,
}

/// Why a file can't be read on: the system's error, or what is wrong with it.
enum Trouble {
    Io(std::io::Error),
    Broken(String),
}

impl From<std::io::Error> for Trouble {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<String> for Trouble {
    fn from(problem: String) -> Self {
        Self::Broken(problem)
    }
}

fn broken<T>(problem: &str) -> Result<T, Trouble> {
    Err(Trouble::Broken(problem.to_owned()))
}

impl Messages<'_> {
    fn bytes(&mut self, len: u64) -> Result<Vec<u8>, Trouble> {
        if len > self.left {
            return broken("the file is cut short");
        }
        self.left -= len;
        let mut bytes = vec![0; len as usize];
        self.input.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn word(&mut self) -> Result<u32, Trouble> {
        let bytes = self.bytes(4)?;
        Ok(bytes.try_into().map_or(0, u32::from_le_bytes))
    }

    /// The next message; nothing at the end.
    fn next(&mut self) -> Result<Option<Message>, Trouble> {
        if self.left == 0 {
            // A stream that was closed ends with a mark.
            return broken("the file ends without its end mark, so it may be cut short");
        }
        let len = match self.word()? {
            CONTINUES => self.word()?,
            // As before 2019.
            len => len,
        };
        match len {
            0 => return Ok(None),
            len if len > MAX_METADATA => return broken("a message's length is damaged"),
            _ => {}
        }
        let metadata = self.bytes(u64::from(len))?;
        let body = Table::root(&metadata).map(|message| message.i64(3).unwrap_or(0));
        match body.map(u64::try_from) {
            Some(Ok(body)) => Ok(Some(Message { metadata, body })),
            _ => broken("a message is damaged"),
        }
    }
}

/// Rows of an Arrow file or stream.
pub(super) fn arrow(file: &File, path: &Path, scratch: &Path) -> Result<Spool, DataError> {
    let io = |error| DataError::io("read", path, error);
    let size = file.metadata().map_err(io)?.len();
    let mut input = BufReader::with_capacity(1 << 20, file);
    input.seek(SeekFrom::Start(0)).map_err(io)?;
    let mut messages = Messages { input, left: size };
    let mut spooler = Spooler::new(scratch)?;
    let mut rows = 0;
    let read = read(&mut messages, size, &mut |row| {
        rows += 1;
        spooler.row(rows, row)
    });
    match read {
        Ok(()) => {}
        Err(Stopped::Spool(error)) => return Err(error),
        Err(Stopped::Trouble(Trouble::Io(error))) => return Err(io(error)),
        Err(Stopped::Trouble(Trouble::Broken(problem))) if rows == 0 => {
            let problem = format!("is no readable Arrow file: {problem}");
            return Err(DataError::File { path: path.to_path_buf(), line: 0, problem });
        }
        // What follows in a damaged file can't be trusted to be rows.
        Err(Stopped::Trouble(Trouble::Broken(problem))) => {
            spooler.reject(rows + 1, Fault::Unreadable, format!("{problem}; rows after it are lost"));
        }
    }
    spooler.finish()
}

/// Why reading ended early: the file's fault, or that of the copy.
enum Stopped {
    Trouble(Trouble),
    Spool(DataError),
}

impl<T: Into<Trouble>> From<T> for Stopped {
    fn from(trouble: T) -> Self {
        Self::Trouble(trouble.into())
    }
}

type Keep<'a> = &'a mut dyn FnMut(Map<String, serde_json::Value>) -> Result<(), DataError>;

fn read(messages: &mut Messages<'_>, size: u64, keep: Keep<'_>) -> Result<(), Stopped> {
    if messages.input.fill_buf()?.starts_with(MAGIC) {
        messages.bytes(MAGIC.len() as u64)?;
    }
    let Some(first) = messages.next()? else { return Err(Trouble::Broken("it is empty".to_owned()).into()) };
    let schema = header(&first, 1).ok_or_else(|| "it doesn't begin with a schema".to_owned())?;
    let columns = schema::columns(schema)?;
    messages.bytes(first.body)?;
    let mut dictionaries = Dictionaries::new();
    let longest = size.saturating_mul(8);
    while let Some(message) = messages.next()? {
        let body = messages.bytes(message.body)?;
        if let Some(batch) = header(&message, 3) {
            rows(&columns, Parts::new(batch, &body, longest), batch, &dictionaries, keep)?;
        } else if let Some(dictionary) = header(&message, 2) {
            let (id, column) = values(&columns, dictionary, &body, longest, &dictionaries)?;
            dictionaries.insert(id, Rc::new(column));
        }
    }
    Ok(())
}

/// What a message describes, if it is of this kind (its number in Arrow's `Message.fbs`).
fn header(message: &Message, kind: u8) -> Option<Table<'_>> {
    let root = Table::root(&message.metadata)?;
    (root.byte(1) == Some(kind)).then(|| root.table(2)).flatten()
}

fn rows(
    columns: &[Field],
    mut parts: Parts<'_>,
    batch: Table<'_>,
    dictionaries: &Dictionaries,
    keep: Keep<'_>,
) -> Result<(), Stopped> {
    let taken: Result<Vec<Column>, String> =
        columns.iter().map(|column| Column::take(column, &mut parts, dictionaries)).collect();
    let taken = taken?;
    let len = usize::try_from(batch.i64(0).unwrap_or(0)).unwrap_or(usize::MAX);
    if taken.iter().any(|column| column.len() < len) || taken.is_empty() && len > 0 {
        return Err("a column is shorter than its batch".to_owned().into());
    }
    for i in 0..len {
        let values = columns.iter().zip(&taken).map(|(field, column)| Some((field.name.clone(), column.value(i)?)));
        let row =
            values.collect::<Option<Map<_, _>>>().ok_or_else(|| format!("row {} of a batch is damaged", i + 1))?;
        keep(row).map_err(Stopped::Spool)?;
    }
    Ok(())
}

/// A dictionary's number and values.
fn values(
    columns: &[Field],
    dictionary: Table<'_>,
    body: &[u8],
    longest: u64,
    known: &Dictionaries,
) -> Result<(i64, Column), String> {
    let id = dictionary.i64(0).unwrap_or(0);
    if dictionary.byte(2).unwrap_or(0) != 0 {
        return Err("a dictionary comes in parts, which isn't read; save the data as parquet".to_owned());
    }
    let field = with_dictionary(columns, id).ok_or("no column has the dictionary that it holds")?;
    let batch = dictionary.table(1).ok_or("a dictionary is damaged")?;
    Ok((id, Column::take_values(field, &mut Parts::new(batch, body, longest), known)?))
}

fn with_dictionary(fields: &[Field], id: i64) -> Option<&Field> {
    fields.iter().find_map(|field| match field.dictionary {
        Some(dictionary) if dictionary.id == id => Some(field),
        _ => with_dictionary(&field.children, id),
    })
}
