//! FlatBuffers, as much as Arrow's metadata needs: tables, vectors, strings, numbers.
//!
//! Every access is checked, and an answer of nothing means that the bytes are no such thing; there is no verifying
//! pass that could disagree with the reading one. Format: <https://flatbuffers.dev/internals/>.

/// A table inside a buffer.
#[derive(Clone, Copy)]
pub(super) struct Table<'a> {
    bytes: &'a [u8],
    at: usize,
    vtable: usize,
    vtable_bytes: usize,
}

/// A vector inside a buffer; its elements are `stride` bytes each.
#[derive(Clone, Copy)]
pub(super) struct Vector<'a> {
    bytes: &'a [u8],
    first: usize,
    pub(super) len: usize,
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<usize> {
    number(bytes, at).map(|number| usize::from(u16::from_le_bytes(number)))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    number(bytes, at).map(|number| u32::from_le_bytes(number) as usize)
}

/// The place that the offset at `at` leads to.
fn follow(bytes: &[u8], at: usize) -> Option<usize> {
    at.checked_add(u32_at(bytes, at)?).filter(|&to| to < bytes.len())
}

impl<'a> Table<'a> {
    /// The table that the buffer is.
    pub(super) fn root(bytes: &'a [u8]) -> Option<Self> {
        Self::at(bytes, follow(bytes, 0)?)
    }

    fn at(bytes: &'a [u8], at: usize) -> Option<Self> {
        let back = i64::from(i32::from_le_bytes(number(bytes, at)?));
        let vtable = usize::try_from(i64::try_from(at).ok()?.checked_sub(back)?).ok()?;
        let vtable_bytes = u16_at(bytes, vtable)?;
        Some(Self { bytes, at, vtable, vtable_bytes })
    }

    /// Where the field of a slot lies, if it is there.
    fn field(&self, slot: usize) -> Option<usize> {
        let entry = 4 + 2 * slot;
        if entry + 2 > self.vtable_bytes {
            return None;
        }
        let offset = u16_at(self.bytes, self.vtable + entry)?;
        (offset != 0).then(|| self.at + offset)
    }

    pub(super) fn byte(&self, slot: usize) -> Option<u8> {
        self.bytes.get(self.field(slot)?).copied()
    }

    pub(super) fn i16(&self, slot: usize) -> Option<i16> {
        number(self.bytes, self.field(slot)?).map(i16::from_le_bytes)
    }

    pub(super) fn i32(&self, slot: usize) -> Option<i32> {
        number(self.bytes, self.field(slot)?).map(i32::from_le_bytes)
    }

    pub(super) fn i64(&self, slot: usize) -> Option<i64> {
        number(self.bytes, self.field(slot)?).map(i64::from_le_bytes)
    }

    pub(super) fn table(&self, slot: usize) -> Option<Table<'a>> {
        Self::at(self.bytes, follow(self.bytes, self.field(slot)?)?)
    }

    /// A vector of elements of `stride` bytes that lies in the buffer whole.
    pub(super) fn vector(&self, slot: usize, stride: usize) -> Option<Vector<'a>> {
        let at = follow(self.bytes, self.field(slot)?)?;
        let len = u32_at(self.bytes, at)?;
        let first = at + 4;
        let end = first.checked_add(len.checked_mul(stride)?)?;
        (end <= self.bytes.len()).then_some(Vector { bytes: self.bytes, first, len })
    }

    pub(super) fn text(&self, slot: usize) -> Option<&'a str> {
        let text = self.vector(slot, 1)?;
        std::str::from_utf8(&text.bytes[text.first..text.first + text.len]).ok()
    }
}

impl<'a> Vector<'a> {
    /// Element `i` of a vector of tables.
    pub(super) fn table(&self, i: usize) -> Option<Table<'a>> {
        Table::at(self.bytes, follow(self.bytes, self.first + 4 * i)?)
    }

    /// Number `i` of a vector of 64-bit numbers.
    pub(super) fn i64(&self, i: usize) -> Option<i64> {
        number(self.bytes, self.first + 8 * i).map(i64::from_le_bytes)
    }

    /// Pair `i` of a vector of structs of two 64-bit numbers, neither of them negative.
    pub(super) fn pair(&self, i: usize) -> Option<(u64, u64)> {
        let half = |at: usize| u64::try_from(i64::from_le_bytes(number(self.bytes, at)?)).ok();
        Some((half(self.first + 16 * i)?, half(self.first + 16 * i + 8)?))
    }
}
