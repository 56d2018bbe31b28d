//! The values of a column in one record batch, as JSON.

use std::collections::HashMap;
use std::rc::Rc;

use serde_json::{Map, Value};

use super::batch::Parts;
use super::schema::{Field, Kind};

/// A column's buffers, their lengths checked.
pub(super) struct Column {
    kind: Kind,
    len: usize,
    /// A bit a value; none if all are there.
    validity: Option<Vec<u8>>,
    /// Offsets, views or numbers.
    first: Vec<u8>,
    /// Text behind offsets, or the buffers behind views.
    text: Vec<Vec<u8>>,
    children: Vec<(String, Column)>,
    dictionary: Option<Rc<Column>>,
}

/// Values by the number of their dictionary.
pub(super) type Dictionaries = HashMap<i64, Rc<Column>>;

fn damaged(field: &Field, what: &str) -> String {
    format!("column `{}`: {what}", field.name)
}

impl Column {
    /// Takes a column's buffers from those of its batch, in their order.
    pub(super) fn take(field: &Field, parts: &mut Parts<'_>, known: &Dictionaries) -> Result<Self, String> {
        let len = parts.node().ok_or_else(|| damaged(field, "it has no length"))?;
        if let Some(index) = field.dictionary {
            let dictionary = known.get(&index.id).ok_or_else(|| damaged(field, "its dictionary is missing"))?;
            let kind = Kind::Int { bytes: index.bytes, signed: index.signed };
            let plain = Field { kind, children: Vec::new(), dictionary: None, name: field.name.clone() };
            let mut column = Self::plain(&plain, len, parts, known)?;
            column.dictionary = Some(Rc::clone(dictionary));
            return Ok(column);
        }
        Self::plain(field, len, parts, known)
    }

    /// The values of a dictionary, whose own encoding is that of the values.
    pub(super) fn take_values(field: &Field, parts: &mut Parts<'_>, known: &Dictionaries) -> Result<Self, String> {
        let len = parts.node().ok_or_else(|| damaged(field, "it has no length"))?;
        Self::plain(field, len, parts, known)
    }

    fn plain(field: &Field, len: usize, parts: &mut Parts<'_>, known: &Dictionaries) -> Result<Self, String> {
        let kind = field.kind.clone();
        let mut column =
            Self { kind, len, validity: None, first: vec![], text: vec![], children: vec![], dictionary: None };
        if column.kind == Kind::Null {
            return Ok(column);
        }
        let mut buffer = || parts.buffer().map_err(|what| damaged(field, &what));
        let validity = buffer()?;
        if !validity.is_empty() {
            if validity.len() < len.div_ceil(8) {
                return Err(damaged(field, "it has fewer marks of presence than values"));
            }
            column.validity = Some(validity);
        }
        let needed = match column.kind {
            Kind::Null | Kind::Struct | Kind::FixedList { .. } => None,
            Kind::Bool => Some(len.div_ceil(8)),
            Kind::Int { bytes, .. } | Kind::Float { bytes } | Kind::Fixed { bytes } => len.checked_mul(bytes),
            Kind::Text { wide } | Kind::List { wide } if len > 0 => (len + 1).checked_mul(if wide { 8 } else { 4 }),
            Kind::Text { .. } | Kind::List { .. } => Some(0),
            Kind::View => len.checked_mul(16),
        };
        if let Some(needed) = needed {
            column.first = buffer()?;
            if column.first.len() < needed {
                return Err(damaged(field, "it is cut short"));
            }
        }
        match column.kind {
            Kind::Text { .. } => column.text.push(buffer()?),
            Kind::View => {
                let count = parts.views().ok_or_else(|| damaged(field, "the number of its buffers is missing"))?;
                for _ in 0..count {
                    column.text.push(parts.buffer().map_err(|what| damaged(field, &what))?);
                }
            }
            _ => {}
        }
        for child in &field.children {
            column.children.push((child.name.clone(), Self::take(child, parts, known)?));
        }
        column.check(field)?;
        Ok(column)
    }

    /// Parts must be long enough, and a list's items may belong to one list only: what is read stays in proportion to
    /// what is in the file.
    fn check(&self, field: &Field) -> Result<(), String> {
        let child = self.children.first().map_or(0, |(_, child)| child.len);
        match self.kind {
            Kind::Struct if self.children.iter().any(|(_, child)| child.len < self.len) => {
                Err(damaged(field, "a part of it is cut short"))
            }
            Kind::FixedList { len } if len.checked_mul(self.len).is_none_or(|items| items > child) => {
                Err(damaged(field, "its items are cut short"))
            }
            Kind::List { .. } | Kind::Text { .. } if self.len > 0 => {
                let end = if matches!(self.kind, Kind::List { .. }) { child } else { self.text[0].len() };
                let mut last = 0;
                for i in 0..=self.len {
                    match self.offset(i).filter(|&offset| offset >= last && offset <= end) {
                        Some(offset) => last = offset,
                        None => return Err(damaged(field, "its offsets are damaged")),
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    fn offset(&self, i: usize) -> Option<usize> {
        match self.kind {
            Kind::Text { wide: true } | Kind::List { wide: true } => {
                usize::try_from(i64::from_le_bytes(self.first.get(8 * i..8 * i + 8)?.try_into().ok()?)).ok()
            }
            _ => usize::try_from(i32::from_le_bytes(self.first.get(4 * i..4 * i + 4)?.try_into().ok()?)).ok(),
        }
    }

    /// Value `i`; nothing if the bytes it refers to aren't there.
    pub(super) fn value(&self, i: usize) -> Option<Value> {
        if i >= self.len {
            return None;
        }
        if self.validity.as_ref().is_some_and(|bits| bits[i / 8] >> (i % 8) & 1 == 0) {
            return Some(Value::Null);
        }
        if let Some(dictionary) = &self.dictionary {
            let place = self.number(i)?.as_u64()?;
            return dictionary.value(usize::try_from(place).ok()?);
        }
        let child = |at: usize| self.children.first().and_then(|(_, child)| child.value(at));
        match self.kind {
            Kind::Null => Some(Value::Null),
            Kind::Bool => Some(Value::Bool(self.first[i / 8] >> (i % 8) & 1 == 1)),
            Kind::Int { .. } | Kind::Float { .. } => self.number(i),
            Kind::Text { .. } => Some(text(self.text[0].get(self.offset(i)?..self.offset(i + 1)?)?)),
            Kind::Fixed { bytes } => Some(text(self.first.get(i * bytes..(i + 1) * bytes)?)),
            Kind::View => self.view(self.first.get(16 * i..16 * i + 16)?).map(text),
            Kind::List { .. } => {
                (self.offset(i)?..self.offset(i + 1)?).map(child).collect::<Option<_>>().map(Value::Array)
            }
            Kind::FixedList { len } => (i * len..(i + 1) * len).map(child).collect::<Option<_>>().map(Value::Array),
            Kind::Struct => {
                let parts = self.children.iter().map(|(name, child)| Some((name.clone(), child.value(i)?)));
                parts.collect::<Option<Map<_, _>>>().map(Value::Object)
            }
        }
    }

    /// A view: the length, then the text itself if it has at most 12 bytes, or its first four, buffer and offset.
    fn view<'a>(&'a self, view: &'a [u8]) -> Option<&'a [u8]> {
        let word = |at: usize| Some(u32::from_le_bytes(view.get(at..at + 4)?.try_into().ok()?) as usize);
        let len = word(0)?;
        if len <= 12 {
            return view.get(4..4 + len);
        }
        let (buffer, from) = (word(8)?, word(12)?);
        self.text.get(buffer)?.get(from..from.checked_add(len)?)
    }

    fn number(&self, i: usize) -> Option<Value> {
        let width = match self.kind {
            Kind::Int { bytes, .. } | Kind::Float { bytes } => bytes,
            _ => return None,
        };
        let bytes = self.first.get(i * width..(i + 1) * width)?;
        let mut wide = [0; 8];
        wide[..width].copy_from_slice(bytes);
        let bits = u64::from_le_bytes(wide);
        Some(match self.kind {
            Kind::Int { signed: false, .. } => bits.into(),
            Kind::Int { .. } => {
                let spare = 64 - 8 * width as u32;
                (((bits << spare) as i64) >> spare).into()
            }
            Kind::Float { bytes: 2 } => half(bits as u16).into(),
            Kind::Float { bytes: 4 } => {
                // As short as the number is written, not as its 64-bit neighbour.
                let number = f32::from_bits(bits as u32);
                number.to_string().parse::<f64>().ok().filter(|number| number.is_finite()).into()
            }
            _ => f64::from_bits(bits).into(),
        })
    }
}

/// Some writers leave text without saying that it is text; bytes that aren't are written as numbers.
fn text(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => Value::String(text.to_owned()),
        Err(_) => bytes.into(),
    }
}

/// IEEE 754 binary16.
fn half(bits: u16) -> f64 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
    match exponent {
        0 => sign * fraction * 2f64.powi(-24),
        31 if fraction == 0.0 => sign * f64::INFINITY,
        31 => f64::NAN,
        _ => sign * (1.0 + fraction / 1024.0) * 2f64.powi(exponent - 15),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves() {
        for (bits, number) in [(0x3c00, 1.0), (0xc000, -2.0), (0x0001, 5.960_464_477_539_063e-8), (0x7bff, 65504.0)] {
            assert_eq!(half(bits), number);
        }
        assert!(half(0x7c00).is_infinite() && half(0x7e00).is_nan());
    }
}
