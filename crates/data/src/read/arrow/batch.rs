//! A record batch's body, buffer by buffer, as its columns take them.

use std::io::Read;

use super::flat::{Table, Vector};

/// Most bytes of one unpacked buffer. More is damage, or meant to fill the memory.
const MAX_BUFFER: u64 = 4 << 30;

/// What the columns of a batch take their buffers from, in order.
pub(super) struct Parts<'a> {
    body: &'a [u8],
    nodes: Option<Vector<'a>>,
    buffers: Option<Vector<'a>>,
    views: Option<Vector<'a>>,
    compression: Option<u8>,
    next: (usize, usize, usize),
    /// Longest column that can be meant: each value takes a bit somewhere.
    longest: u64,
}

impl<'a> Parts<'a> {
    pub(super) fn new(batch: Table<'a>, body: &'a [u8], longest: u64) -> Self {
        Self {
            body,
            nodes: batch.vector(1, 16),
            buffers: batch.vector(2, 16),
            views: batch.vector(4, 8),
            compression: batch.table(3).map(|compression| compression.byte(0).unwrap_or(0)),
            next: (0, 0, 0),
            longest,
        }
    }

    /// Values of the next column.
    pub(super) fn node(&mut self) -> Option<usize> {
        let nodes = self.nodes.filter(|nodes| self.next.0 < nodes.len)?;
        let (len, _) = nodes.pair(self.next.0)?;
        self.next.0 += 1;
        usize::try_from(len).ok().filter(|_| len <= self.longest)
    }

    /// Buffers behind the views of the next column that has them.
    pub(super) fn views(&mut self) -> Option<usize> {
        let views = self.views.filter(|views| self.next.2 < views.len)?;
        let count = usize::try_from(views.i64(self.next.2)?).ok()?;
        self.next.2 += 1;
        (count <= self.buffers.map_or(0, |buffers| buffers.len)).then_some(count)
    }

    /// The next buffer, unpacked.
    pub(super) fn buffer(&mut self) -> Result<Vec<u8>, String> {
        let place =
            self.buffers.filter(|buffers| self.next.1 < buffers.len).and_then(|buffers| buffers.pair(self.next.1));
        let (offset, len) = place.ok_or("a buffer is missing")?;
        self.next.1 += 1;
        let range = usize::try_from(offset).ok().zip(offset.checked_add(len).and_then(|end| usize::try_from(end).ok()));
        let bytes =
            range.and_then(|(start, end)| self.body.get(start..end)).ok_or("a buffer lies outside of its batch")?;
        match self.compression {
            Some(codec) if !bytes.is_empty() => unpack(bytes, codec),
            _ => Ok(bytes.to_vec()),
        }
    }
}

/// A packed buffer begins with its length, or with -1 if it isn't packed after all.
fn unpack(bytes: &[u8], codec: u8) -> Result<Vec<u8>, String> {
    let (head, packed) = bytes.split_first_chunk::<8>().ok_or("a packed buffer is cut short")?;
    let len = match i64::from_le_bytes(*head) {
        -1 => return Ok(packed.to_vec()),
        len => {
            u64::try_from(len).ok().filter(|&len| len <= MAX_BUFFER).ok_or("a packed buffer states no true length")?
        }
    };
    let mut unpacked = Vec::new();
    // One byte more, so that a buffer which goes on is noticed.
    let read = match codec {
        0 => lz4_flex::frame::FrameDecoder::new(packed).take(len + 1).read_to_end(&mut unpacked),
        1 => zstd::stream::Decoder::new(packed).and_then(|decoder| decoder.take(len + 1).read_to_end(&mut unpacked)),
        other => return Err(format!("it is packed in the unknown way {other}")),
    };
    match read {
        Ok(read) if read as u64 == len => Ok(unpacked),
        Ok(_) => Err("a packed buffer has another length than it states".to_owned()),
        Err(error) => Err(format!("a packed buffer can't be unpacked: {error}")),
    }
}
