//! Protobuf messages, written and looked through, <https://protobuf.dev/programming-guides/encoding>. Three trackers' files
//! hold so few of them that no compiler of them is needed.

/// A message being written. Fields with the value 0 or without text are left out, as proto3 does.
#[derive(Debug, Default)]
pub(crate) struct Message(Vec<u8>);

impl Message {
    pub(crate) fn build(fill: impl FnOnce(&mut Self)) -> Vec<u8> {
        let mut message = Self::default();
        fill(&mut message);
        message.0
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn key(&mut self, field: u64, wire_type: u64) {
        self.varint(field << 3 | wire_type);
    }

    pub(crate) fn integer(&mut self, field: u64, value: u64) {
        if value != 0 {
            self.key(field, 0);
            self.varint(value);
        }
    }

    /// An integer that may be negative (`int64`).
    pub(crate) fn signed(&mut self, field: u64, value: i64) {
        self.integer(field, value.cast_unsigned());
    }

    pub(crate) fn double(&mut self, field: u64, value: f64) {
        if value.to_bits() != 0 {
            self.key(field, 1);
            self.0.extend(value.to_le_bytes());
        }
    }

    /// A field that is there even if it is empty: a message, or one of a list.
    pub(crate) fn bytes(&mut self, field: u64, value: &[u8]) {
        self.key(field, 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
    }

    pub(crate) fn text(&mut self, field: u64, value: &str) {
        if !value.is_empty() {
            self.bytes(field, value.as_bytes());
        }
    }

    pub(crate) fn message(&mut self, field: u64, fill: impl FnOnce(&mut Self)) {
        self.bytes(field, &Self::build(fill));
    }

    /// A number of a list or of a `oneof`, which is there even if it is 0.
    pub(crate) fn float(&mut self, field: u64, value: f32) {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
    }

    /// A packed list of numbers.
    pub(crate) fn doubles(&mut self, field: u64, values: &[f64]) {
        self.bytes(field, &values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>());
    }

    /// A `google.protobuf.Timestamp` of seconds since 1970.
    pub(crate) fn timestamp(&mut self, field: u64, time: f64) {
        self.message(field, |stamp| {
            stamp.integer(1, time.max(0.0) as u64);
            stamp.integer(2, (time.max(0.0).fract() * 1e6) as u64 * 1000);
        });
    }
}

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message, up to the first that is none.
pub(crate) fn fields(mut bytes: &[u8]) -> impl Iterator<Item = (u64, Field<'_>)> {
    std::iter::from_fn(move || {
        let key = varint(&mut bytes)?;
        let field = match key & 7 {
            0 => Field::Number(varint(&mut bytes)?),
            1 => Field::Bytes(take(&mut bytes, 8)?),
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                Field::Bytes(take(&mut bytes, length)?)
            }
            5 => Field::Bytes(take(&mut bytes, 4)?),
            _ => return None,
        };
        Some((key >> 3, field))
    })
}

/// The first field of this number, if it is text or a message.
pub(crate) fn field(bytes: &[u8], number: u64) -> Option<&[u8]> {
    fields(bytes).find_map(|(n, field)| match field {
        Field::Bytes(value) if n == number => Some(value),
        _ => None,
    })
}

/// The first field of this number, if it is an integer.
pub(crate) fn number(bytes: &[u8], number: u64) -> Option<u64> {
    fields(bytes).find_map(|(n, field)| match field {
        Field::Number(value) if n == number => Some(value),
        _ => None,
    })
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)?[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let message = Message::build(|m| {
            m.integer(1, 300);
            m.signed(2, -1);
            m.integer(3, 0);
            m.text(4, "ok");
            m.text(5, "");
            m.double(6, 0.5);
            m.float(7, 0.0);
            m.timestamp(8, 2.25);
        });
        let found: Vec<_> = fields(&message).collect();
        let stamp = [0x08, 2, 0x10, 0x80, 0xe5, 0x9a, 0x77];
        assert_eq!(
            found,
            [
                (1, Field::Number(300)),
                (2, Field::Number(u64::MAX)),
                (4, Field::Bytes(b"ok")),
                (6, Field::Bytes(&0.5_f64.to_le_bytes())),
                (7, Field::Bytes(&[0; 4])),
                (8, Field::Bytes(&stamp)),
            ]
        );
        assert_eq!((field(&message, 4), number(&message, 1)), (Some(&b"ok"[..]), Some(300)));
    }

    #[test]
    fn what_is_broken_ends_the_fields() {
        assert_eq!(fields(&[0x0a, 5, b'x']).count(), 0, "shorter than it says");
        assert_eq!(fields(&[0xff; 40]).count(), 0, "a number without an end");
        assert_eq!(fields(&[0x08, 1, 0x0b]).count(), 1, "groups are not known");
    }
}
