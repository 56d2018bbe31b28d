//! Writing GGUF files, version 3.

use super::value::{Array, Value};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::folder::{FolderWriter, StreamError};
use crate::safetensors::OutTensor;

/// The default alignment of tensors.
const ALIGNMENT: usize = 32;

/// Writes a GGUF file with metadata and tensors in the order given, a tensor at a time.
///
/// # Errors
/// If a type can't be stored, bytes don't fill their shape, or the file can't be written. The file is then not there, or what
/// it was before.
pub fn write_gguf(
    folder: &FolderWriter,
    file: &str,
    metadata: &[(&str, Value)],
    tensors: Vec<OutTensor<'_>>,
) -> Result<()> {
    let mut header = Vec::new();
    header.extend(b"GGUF");
    header.extend(3u32.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        put_string(&mut header, key);
        put_value(&mut header, value);
    }
    let mut offset = 0;
    for tensor in &tensors {
        let (kind, bytes) = kind(tensor.dtype()).zip(tensor.byte_len()).ok_or_else(|| Error::Unwritable {
            path: folder.path().join(file),
            reason: format!(
                "'{}' is {} of shape {:?}, which has no place in a GGUF file",
                tensor.name(),
                tensor.dtype().name(),
                tensor.shape()
            ),
        })?;
        put_string(&mut header, tensor.name());
        header.extend((tensor.shape().len() as u32).to_le_bytes());
        for &size in tensor.shape().iter().rev() {
            header.extend((size as u64).to_le_bytes());
        }
        header.extend(kind.to_le_bytes());
        header.extend((offset as u64).to_le_bytes());
        offset += bytes.next_multiple_of(ALIGNMENT);
    }
    header.resize(header.len().next_multiple_of(ALIGNMENT), 0);
    folder.stream(file, |out| -> Result<(), StreamError> {
        out.write_all(&header)?;
        for tensor in tensors {
            let bytes = tensor.into_bytes()?;
            out.write_all(&bytes)?;
            let padding = bytes.len().next_multiple_of(ALIGNMENT) - bytes.len();
            out.write_all(&[0; ALIGNMENT][..padding])?;
        }
        Ok(())
    })
}

/// ggml's number of a type.
fn kind(dtype: Dtype) -> Option<u32> {
    Some(match dtype {
        Dtype::F32 => 0,
        Dtype::F16 => 1,
        Dtype::Q4_0 => 2,
        Dtype::Q4_1 => 3,
        Dtype::Q5_0 => 6,
        Dtype::Q5_1 => 7,
        Dtype::Q8_0 => 8,
        Dtype::Q4K => 12,
        Dtype::Q5K => 13,
        Dtype::Q6K => 14,
        Dtype::I32 => 26,
        Dtype::I64 => 27,
        Dtype::F64 => 28,
        Dtype::Bf16 => 30,
        Dtype::U8 | Dtype::Other { .. } => return None,
    })
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    /// The type's number, then the value.
    fn put<const N: usize>(out: &mut Vec<u8>, kind: u32, bytes: [u8; N]) {
        out.extend(kind.to_le_bytes());
        out.extend(bytes);
    }
    match value {
        Value::U8(v) => put(out, 0, v.to_le_bytes()),
        Value::I8(v) => put(out, 1, v.to_le_bytes()),
        Value::U16(v) => put(out, 2, v.to_le_bytes()),
        Value::I16(v) => put(out, 3, v.to_le_bytes()),
        Value::U32(v) => put(out, 4, v.to_le_bytes()),
        Value::I32(v) => put(out, 5, v.to_le_bytes()),
        Value::F32(v) => put(out, 6, v.to_le_bytes()),
        Value::Bool(v) => put(out, 7, [u8::from(*v)]),
        Value::String(v) => {
            out.extend(8u32.to_le_bytes());
            put_string(out, v);
        }
        Value::Array(v) => {
            out.extend(9u32.to_le_bytes());
            put_array(out, v);
        }
        Value::U64(v) => put(out, 10, v.to_le_bytes()),
        Value::I64(v) => put(out, 11, v.to_le_bytes()),
        Value::F64(v) => put(out, 12, v.to_le_bytes()),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    /// The type's number, the count, then the values.
    fn put<T>(out: &mut Vec<u8>, kind: u32, values: &[T], each: impl Fn(&mut Vec<u8>, &T)) {
        out.extend(kind.to_le_bytes());
        out.extend((values.len() as u64).to_le_bytes());
        for value in values {
            each(out, value);
        }
    }
    match array {
        Array::U8(v) => put(out, 0, v, |o, v| o.push(*v)),
        Array::I8(v) => put(out, 1, v, |o, v| o.extend(v.to_le_bytes())),
        Array::U16(v) => put(out, 2, v, |o, v| o.extend(v.to_le_bytes())),
        Array::I16(v) => put(out, 3, v, |o, v| o.extend(v.to_le_bytes())),
        Array::U32(v) => put(out, 4, v, |o, v| o.extend(v.to_le_bytes())),
        Array::I32(v) => put(out, 5, v, |o, v| o.extend(v.to_le_bytes())),
        Array::F32(v) => put(out, 6, v, |o, v| o.extend(v.to_le_bytes())),
        Array::Bool(v) => put(out, 7, v, |o, v| o.push(u8::from(*v))),
        Array::String(v) => put(out, 8, v, |o, v| put_string(o, v)),
        Array::Array(v) => put(out, 9, v, put_array),
        Array::U64(v) => put(out, 10, v, |o, v| o.extend(v.to_le_bytes())),
        Array::I64(v) => put(out, 11, v, |o, v| o.extend(v.to_le_bytes())),
        Array::F64(v) => put(out, 12, v, |o, v| o.extend(v.to_le_bytes())),
    }
}
