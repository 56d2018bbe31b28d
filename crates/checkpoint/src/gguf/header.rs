//! Parsing of a GGUF header: metadata and the list of tensors.
//!
//! The file is hostile: every count and length is bounded by the bytes left before anything is
//! allocated for it, nesting is bounded, names may come once, and tensors must lie inside the file
//! without overlap. Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use std::collections::BTreeMap;

use super::value::{Array, Value};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::file::DataFile;
use crate::region::Region;
use crate::source::extent;

/// Longest header that is read. Vocabularies of 256,000 tokens take about 12 MB.
const MAX_HEADER: u64 = 1 << 30;
/// Deepest nesting of arrays.
const MAX_DEPTH: usize = 4;
/// Most dimensions of a tensor (ggml's own limit).
const MAX_DIMENSIONS: u32 = 4;
/// Bytes that are read at a time.
const BUFFER: usize = 1 << 16;

/// What a GGUF file says before its data.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) metadata: BTreeMap<String, Value>,
    /// Tensors by the names in the file; shapes outermost dimension first.
    pub(crate) tensors: BTreeMap<String, (Vec<usize>, Region)>,
}

/// Reads and checks the header.
pub(crate) fn parse(file: &DataFile) -> Result<Header> {
    let mut cursor = Cursor::new(file);
    let (tensor_count, value_count) = preamble(&mut cursor)?;
    let metadata = metadata(&mut cursor, value_count)?;
    if let Some(parts) = metadata.get("split.count").and_then(Value::as_u64)
        && parts > 1
    {
        return Err(
            cursor.bad(format!("it is one of {parts} parts; join them with llama.cpp's `llama-gguf-split --merge`"))
        );
    }
    let entries = entries(&mut cursor, tensor_count)?;
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(value) => (value.as_u64())
            .filter(|a| a.is_power_of_two() && (8..=1 << 20).contains(a))
            .ok_or_else(|| cursor.bad("general.alignment is not a power of two".into()))?,
    };
    let start = cursor.position.next_multiple_of(alignment);
    let tensors = place(file, entries, start, alignment)?;
    Ok(Header { metadata, tensors })
}

/// Magic, version, counts.
fn preamble(cursor: &mut Cursor<'_>) -> Result<(u64, u64)> {
    let magic: [u8; 4] = cursor.array()?;
    if &magic != b"GGUF" {
        return Err(cursor.bad(format!(
            "it starts with {:?} instead of \"GGUF\"; expected a folder in Hugging Face's layout \
             or a .gguf file",
            String::from_utf8_lossy(&magic)
        )));
    }
    let version = u32::from_le_bytes(cursor.array()?);
    match version {
        2 | 3 => {}
        1 => {
            return Err(cursor.bad("it is of version 1, which nothing writes any more; convert the model again".into()));
        }
        _ if version.swap_bytes() <= 3 => {
            return Err(cursor.bad("it is big-endian; get the little-endian file".into()));
        }
        _ => return Err(cursor.bad(format!("it is of version {version}; 2 and 3 are known"))),
    }
    Ok((cursor.u64()?, cursor.u64()?))
}

fn metadata(cursor: &mut Cursor<'_>, count: u64) -> Result<BTreeMap<String, Value>> {
    cursor.expect(count, 8 + 4 + 1)?;
    let mut metadata = BTreeMap::new();
    for _ in 0..count {
        let key = cursor.string()?;
        let kind = u32::from_le_bytes(cursor.array()?);
        let value = cursor.value(kind)?;
        if metadata.contains_key(&key) {
            return Err(cursor.bad(format!("the key '{key}' comes twice")));
        }
        metadata.insert(key, value);
    }
    Ok(metadata)
}

/// A line of the tensor list.
struct Entry {
    name: String,
    shape: Vec<usize>,
    dtype: Dtype,
    /// From the start of the data.
    offset: u64,
}

fn entries(cursor: &mut Cursor<'_>, count: u64) -> Result<Vec<Entry>> {
    cursor.expect(count, 8 + 4 + 4 + 8)?;
    let mut entries = Vec::new();
    for _ in 0..count {
        let name = cursor.string()?;
        let dimensions = u32::from_le_bytes(cursor.array()?);
        if dimensions > MAX_DIMENSIONS {
            return Err(cursor.bad(format!("tensor '{name}' has {dimensions} dimensions")));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let size = cursor.u64()?;
            let size =
                usize::try_from(size).map_err(|_| cursor.bad(format!("tensor '{name}' has a dimension of {size}")))?;
            shape.push(size);
        }
        shape.reverse();
        let kind = u32::from_le_bytes(cursor.array()?);
        let dtype = dtype(kind).ok_or_else(|| cursor.bad(format!("tensor '{name}' is of unknown type {kind}")))?;
        let offset = cursor.u64()?;
        entries.push(Entry { name, shape, dtype, offset });
    }
    Ok(entries)
}

/// Checks sizes and places, and makes regions of them.
fn place(
    file: &DataFile,
    mut entries: Vec<Entry>,
    start: u64,
    alignment: u64,
) -> Result<BTreeMap<String, (Vec<usize>, Region)>> {
    let bad = |reason: String| Error::Gguf { path: file.path().to_path_buf(), reason };
    entries.sort_by_key(|entry| entry.offset);
    let mut tensors = BTreeMap::new();
    let mut end = start;
    for entry in entries {
        let Entry { name, shape, dtype, offset } = entry;
        let row = shape.last().copied().unwrap_or(1);
        let size = extent(&shape, dtype).filter(|_| row.is_multiple_of(dtype.block().0));
        let (elements, bytes) = size.ok_or_else(|| {
            let kind = dtype.name();
            bad(format!("tensor '{name}' of type {kind} can't have the shape {shape:?}"))
        })?;
        let first = start.checked_add(offset);
        let last = first.and_then(|first| first.checked_add(bytes as u64));
        let (first, last) =
            first.zip(last).ok_or_else(|| bad(format!("tensor '{name}' lies at {offset}, beyond any file")))?;
        if offset % alignment != 0 || first < end {
            return Err(bad(format!("tensor '{name}' lies at {offset}, which overlaps another or is not aligned")));
        }
        end = last;
        let region = Region { offset: first, elements, dtype, order: None };
        if tensors.insert(name.clone(), (shape, region)).is_some() {
            return Err(bad(format!("tensor '{name}' comes twice")));
        }
    }
    if end > file.len() {
        return Err(Error::Short { path: file.path().to_path_buf(), expected: end, actual: file.len() });
    }
    Ok(tensors)
}

/// ggml's type numbers.
fn dtype(kind: u32) -> Option<Dtype> {
    let other = |name, elements, bytes| Dtype::Other { name, elements, bytes };
    Some(match kind {
        0 => Dtype::F32,
        1 => Dtype::F16,
        2 => Dtype::Q4_0,
        3 => Dtype::Q4_1,
        6 => Dtype::Q5_0,
        7 => Dtype::Q5_1,
        8 => Dtype::Q8_0,
        9 => other("Q8_1", 32, 36),
        10 => other("Q2_K", 256, 84),
        11 => other("Q3_K", 256, 110),
        12 => Dtype::Q4K,
        13 => Dtype::Q5K,
        14 => Dtype::Q6K,
        15 => other("Q8_K", 256, 292),
        16 => other("IQ2_XXS", 256, 66),
        17 => other("IQ2_XS", 256, 74),
        18 => other("IQ3_XXS", 256, 98),
        19 => other("IQ1_S", 256, 50),
        20 => other("IQ4_NL", 32, 18),
        21 => other("IQ3_S", 256, 110),
        22 => other("IQ2_S", 256, 82),
        23 => other("IQ4_XS", 256, 136),
        24 => other("I8", 1, 1),
        25 => other("I16", 1, 2),
        26 => Dtype::I32,
        27 => Dtype::I64,
        28 => Dtype::F64,
        29 => other("IQ1_M", 256, 56),
        30 => Dtype::Bf16,
        34 => other("TQ1_0", 256, 54),
        35 => other("TQ2_0", 256, 66),
        39 => other("MXFP4", 32, 17),
        _ => return None,
    })
}

/// A place in the file, with a buffer.
struct Cursor<'a> {
    file: &'a DataFile,
    buffer: Vec<u8>,
    /// Where `buffer` starts in the file.
    base: u64,
    position: u64,
    /// Where reading must stop.
    end: u64,
}

/// Reads an array of numbers, in chunks that the buffer holds.
macro_rules! numbers {
    ($cursor:expr, $count:expr, $type:ty) => {{
        const SIZE: usize = size_of::<$type>();
        $cursor.expect($count, SIZE as u64)?;
        let mut values = Vec::with_capacity($count as usize);
        for _ in 0..$count {
            values.push(<$type>::from_le_bytes($cursor.array::<SIZE>()?));
        }
        values
    }};
}

impl<'a> Cursor<'a> {
    fn new(file: &'a DataFile) -> Self {
        Self { file, buffer: Vec::new(), base: 0, position: 0, end: file.len().min(MAX_HEADER) }
    }

    fn bad(&self, reason: String) -> Error {
        Error::Gguf { path: self.file.path().to_path_buf(), reason }
    }

    /// Checks that `count` things of at least `size` bytes can still follow.
    fn expect(&self, count: u64, size: u64) -> Result<()> {
        let needed = count.checked_mul(size).and_then(|n| n.checked_add(self.position));
        match needed {
            Some(needed) if needed <= self.end => Ok(()),
            Some(needed) if needed <= MAX_HEADER => {
                Err(Error::Short { path: self.file.path().to_path_buf(), expected: needed, actual: self.file.len() })
            }
            _ => Err(self.bad(format!(
                "{count} entries of at least {size} bytes can't follow byte {}; download it again",
                self.position
            ))),
        }
    }

    fn fill(&mut self, dst: &mut [u8]) -> Result<()> {
        self.expect(dst.len() as u64, 1)?;
        if dst.len() > BUFFER {
            self.file.read_at(self.position, dst)?;
        } else {
            let mut start = (self.position - self.base) as usize;
            if start + dst.len() > self.buffer.len() {
                let len = (self.end - self.position).min(BUFFER as u64) as usize;
                self.buffer.resize(len, 0);
                self.file.read_at(self.position, &mut self.buffer)?;
                self.base = self.position;
                start = 0;
            }
            dst.copy_from_slice(&self.buffer[start..start + dst.len()]);
        }
        self.position += dst.len() as u64;
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn string(&mut self) -> Result<String> {
        let len = self.u64()?;
        self.expect(len, 1)?;
        let mut bytes = vec![0; len as usize];
        self.fill(&mut bytes)?;
        String::from_utf8(bytes).map_err(|_| self.bad(format!("the string before byte {} is not UTF-8", self.position)))
    }

    fn bool(&mut self) -> Result<bool> {
        Ok(self.array::<1>()?[0] != 0)
    }

    fn value(&mut self, kind: u32) -> Result<Value> {
        Ok(match kind {
            0 => Value::U8(self.array::<1>()?[0]),
            1 => Value::I8(i8::from_le_bytes(self.array()?)),
            2 => Value::U16(u16::from_le_bytes(self.array()?)),
            3 => Value::I16(i16::from_le_bytes(self.array()?)),
            4 => Value::U32(u32::from_le_bytes(self.array()?)),
            5 => Value::I32(i32::from_le_bytes(self.array()?)),
            6 => Value::F32(f32::from_le_bytes(self.array()?)),
            7 => Value::Bool(self.bool()?),
            8 => Value::String(self.string()?),
            9 => Value::Array(self.values(0)?),
            10 => Value::U64(self.u64()?),
            11 => Value::I64(i64::from_le_bytes(self.array()?)),
            12 => Value::F64(f64::from_le_bytes(self.array()?)),
            _ => return Err(self.bad(format!("unknown metadata type {kind}"))),
        })
    }

    fn values(&mut self, depth: usize) -> Result<Array> {
        let kind = u32::from_le_bytes(self.array()?);
        let count = self.u64()?;
        Ok(match kind {
            0 => Array::U8(numbers!(self, count, u8)),
            1 => Array::I8(numbers!(self, count, i8)),
            2 => Array::U16(numbers!(self, count, u16)),
            3 => Array::I16(numbers!(self, count, i16)),
            4 => Array::U32(numbers!(self, count, u32)),
            5 => Array::I32(numbers!(self, count, i32)),
            6 => Array::F32(numbers!(self, count, f32)),
            7 => {
                self.expect(count, 1)?;
                Array::Bool((0..count).map(|_| self.bool()).collect::<Result<_>>()?)
            }
            8 => {
                self.expect(count, 8)?;
                Array::String((0..count).map(|_| self.string()).collect::<Result<_>>()?)
            }
            9 if depth < MAX_DEPTH => {
                self.expect(count, 4 + 8)?;
                Array::Array((0..count).map(|_| self.values(depth + 1)).collect::<Result<_>>()?)
            }
            9 => return Err(self.bad(format!("arrays are nested more than {MAX_DEPTH} deep"))),
            10 => Array::U64(numbers!(self, count, u64)),
            11 => Array::I64(numbers!(self, count, i64)),
            12 => Array::F64(numbers!(self, count, f64)),
            _ => return Err(self.bad(format!("unknown metadata type {kind} in an array"))),
        })
    }
}
