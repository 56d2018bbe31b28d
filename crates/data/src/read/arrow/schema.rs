//! The columns of an Arrow file: their names and how their values lie in buffers.

use super::flat::Table;

/// How the values of a column lie in its buffers.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    Null,
    Bool,
    /// Whole numbers of so many bytes. Dates, times and durations count as such.
    Int {
        bytes: usize,
        signed: bool,
    },
    Float {
        bytes: usize,
    },
    /// Text or bytes behind offsets, of 64 bits if `wide`.
    Text {
        wide: bool,
    },
    /// Text or bytes of one length.
    Fixed {
        bytes: usize,
    },
    /// Text or bytes behind views: short ones inside the view.
    View,
    List {
        wide: bool,
    },
    FixedList {
        len: usize,
    },
    Struct,
}

/// A column, or a part of one.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Field {
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) children: Vec<Field>,
    /// Values are places in this dictionary.
    pub(super) dictionary: Option<Dictionary>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Dictionary {
    pub(super) id: i64,
    pub(super) bytes: usize,
    pub(super) signed: bool,
}

/// Deepest nesting of columns that is read.
const DEEPEST: usize = 32;

/// The columns that a schema's metadata describes.
pub(super) fn columns(schema: Table<'_>) -> Result<Vec<Field>, String> {
    if schema.i16(0).unwrap_or(0) != 0 {
        return Err("its numbers are big-endian".to_owned());
    }
    fields(schema, 1, DEEPEST)
}

fn fields(parent: Table<'_>, slot: usize, deepest: usize) -> Result<Vec<Field>, String> {
    let Some(children) = parent.vector(slot, 4) else { return Ok(Vec::new()) };
    let broken = || "its schema is damaged".to_owned();
    (0..children.len).map(|i| field(children.table(i).ok_or_else(broken)?, deepest)).collect()
}

fn field(table: Table<'_>, deepest: usize) -> Result<Field, String> {
    let name = table.text(0).unwrap_or_default().to_owned();
    if deepest == 0 {
        return Err(format!("column `{name}` is nested deeper than {DEEPEST} levels"));
    }
    let children = fields(table, 5, deepest - 1)?;
    let kind = kind(table).map_err(|what| {
        format!("column `{name}` is {what}, which isn't read; leave the column out, or save the data as JSON lines")
    })?;
    let wanted = match kind {
        Kind::List { .. } | Kind::FixedList { .. } => Some(1),
        Kind::Struct => None,
        _ => Some(0),
    };
    if wanted.is_some_and(|wanted| wanted != children.len()) {
        return Err(format!("column `{name}` has {} parts", children.len()));
    }
    let dictionary = match table.table(4) {
        None => None,
        Some(encoding) => {
            let index = encoding.table(1);
            let bits = index.and_then(|index| index.i32(0)).unwrap_or(32);
            let signed = index.and_then(|index| index.byte(1)).unwrap_or(u8::from(index.is_none())) != 0;
            Some(Dictionary { id: encoding.i64(0).unwrap_or(0), bytes: whole_bytes(bits)?, signed })
        }
    };
    Ok(Field { name, kind, children, dictionary })
}

fn whole_bytes(bits: i32) -> Result<usize, String> {
    match bits {
        8 | 16 | 32 | 64 => Ok(bits as usize / 8),
        _ => Err(format!("of numbers of {bits} bits")),
    }
}

/// How a field's values lie, by the number of its type in Arrow's `Schema.fbs`; or what it is, for a message.
fn kind(field: Table<'_>) -> Result<Kind, String> {
    let parameters = field.table(3);
    let int = |slot| parameters.and_then(|table| table.i32(slot));
    let short = |slot| parameters.and_then(|table| table.i16(slot));
    let length =
        |slot, what: &str| usize::try_from(int(slot).unwrap_or(0)).map_err(|_| format!("of {what} of negative length"));
    let signed = |bytes| Ok(Kind::Int { bytes, signed: true });
    match field.byte(2).unwrap_or(0) {
        1 => Ok(Kind::Null),
        2 => {
            let signed = parameters.and_then(|table| table.byte(1)).unwrap_or(0) != 0;
            Ok(Kind::Int { bytes: whole_bytes(int(0).unwrap_or(0))?, signed })
        }
        3 => match short(0).unwrap_or(0) {
            1 => Ok(Kind::Float { bytes: 4 }),
            2 => Ok(Kind::Float { bytes: 8 }),
            _ => Ok(Kind::Float { bytes: 2 }),
        },
        4 | 5 => Ok(Kind::Text { wide: false }),
        6 => Ok(Kind::Bool),
        // Days are of 32 bits, milliseconds, which are the default, of 64.
        8 => signed(if short(0) == Some(0) { 4 } else { 8 }),
        9 => signed(whole_bytes(int(1).unwrap_or(32))?),
        10 | 18 => signed(8),
        12 | 17 => Ok(Kind::List { wide: false }),
        13 => Ok(Kind::Struct),
        15 => Ok(Kind::Fixed { bytes: length(0, "bytes")? }),
        16 => Ok(Kind::FixedList { len: length(0, "lists")? }),
        19 | 20 => Ok(Kind::Text { wide: true }),
        21 => Ok(Kind::List { wide: true }),
        23 | 24 => Ok(Kind::View),
        7 => Err("decimal numbers".to_owned()),
        11 => Err("intervals of time".to_owned()),
        14 => Err("a union of types".to_owned()),
        22 => Err("run-end encoded".to_owned()),
        25 | 26 => Err("a list view".to_owned()),
        other => Err(format!("of the unknown type {other}")),
    }
}
