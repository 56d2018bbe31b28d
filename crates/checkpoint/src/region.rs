//! Where a tensor lies in a file, and how its elements come out of it.
//!
//! One reader for every format: a range of elements is cut into chunks that are read, decoded and
//! converted in parallel, straight into the destination. Nothing of the size of a tensor is
//! allocated.

use std::ops::Range;

use rayon::prelude::*;

use crate::dtype::{Dtype, decode, encode};
use crate::error::{Error, Result};
use crate::file::DataFile;

/// Elements that one task reads. A multiple of every block.
const CHUNK: usize = 1 << 18;
/// Elements that are decoded at a time; 16 KiB of f32 stay in the first-level cache.
const STRIP: usize = 1 << 12;

/// A tensor's place in a file.
#[derive(Debug, Clone)]
pub(crate) struct Region {
    /// First byte, from the file's start.
    pub(crate) offset: u64,
    /// Number of elements; they fill whole blocks of `dtype`.
    pub(crate) elements: usize,
    /// As stored.
    pub(crate) dtype: Dtype,
    /// Order of rows, if it isn't that of the file.
    pub(crate) order: Option<HeadOrder>,
}

/// Rows of query and key projections as llama.cpp stores them for architecture `llama`: inside a
/// head, the two halves that rotate together are interleaved. Row `2 j + s` of a head in the file
/// is row `s * head_dim / 2 + j` of it in Hugging Face's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HeadOrder {
    /// Rows of a head; even.
    pub(crate) head_dim: usize,
    /// Elements of a row.
    pub(crate) row: usize,
}

impl HeadOrder {
    /// Row in the file of a row in Hugging Face's order.
    fn stored_row(self, row: usize) -> usize {
        let (head, within) = (row / self.head_dim, row % self.head_dim);
        let half = self.head_dim / 2;
        head * self.head_dim + 2 * (within % half) + within / half
    }

    /// The rows of a tensor in Hugging Face's order as the file has them.
    pub(crate) fn to_stored(self, values: &[f32]) -> Vec<f32> {
        let mut stored = vec![0.0; values.len()];
        for (row, values) in values.chunks(self.row).enumerate() {
            stored[self.stored_row(row) * self.row..][..values.len()].copy_from_slice(values);
        }
        stored
    }
}

impl Region {
    /// Reads `range` (in elements) of the tensor `name` as `to` into `dst`.
    ///
    /// # Errors
    /// If the range or the destination doesn't fit, the types don't convert, or the file is short.
    pub(crate) fn read(
        &self,
        file: &DataFile,
        name: &str,
        range: Range<usize>,
        (to, dst): (Dtype, &mut [u8]),
    ) -> Result<()> {
        self.check(name, &range, (to, dst))?;
        let chunk_bytes = CHUNK * to.block().1;
        dst.par_chunks_mut(chunk_bytes).enumerate().try_for_each_init(Vec::new, |scratch, (index, dst)| {
            let start = range.start + index * CHUNK;
            let end = range.end.min(start + CHUNK);
            self.read_chunk(file, start..end, (to, dst), scratch)
        })
    }

    fn check(&self, name: &str, range: &Range<usize>, (to, dst): (Dtype, &[u8])) -> Result<()> {
        if !self.dtype.converts_to(to) {
            return Err(Error::Conversion { name: name.into(), from: self.dtype.name(), to: to.name() });
        }
        if range.start > range.end || range.end > self.elements {
            return Err(Error::Extent {
                name: name.into(),
                unit: "elements",
                expected: self.elements,
                actual: range.end.max(range.start),
            });
        }
        let bytes = range.len() * to.block().1;
        if dst.len() != bytes {
            return Err(Error::Extent { name: name.into(), unit: "bytes", expected: bytes, actual: dst.len() });
        }
        Ok(())
    }

    fn read_chunk(
        &self,
        file: &DataFile,
        range: Range<usize>,
        (to, dst): (Dtype, &mut [u8]),
        scratch: &mut Vec<u8>,
    ) -> Result<()> {
        let Some(order) = self.order else {
            return self.read_run(file, range, (to, dst), scratch);
        };
        let size = to.block().1;
        let mut at = range.start;
        while at < range.end {
            let (row, column) = (at / order.row, at % order.row);
            let len = (order.row - column).min(range.end - at);
            let stored = order.stored_row(row) * order.row + column;
            let dst = &mut dst[(at - range.start) * size..][..len * size];
            self.read_run(file, stored..stored + len, (to, dst), scratch)?;
            at += len;
        }
        Ok(())
    }

    /// Reads elements that lie one after the other in the file.
    fn read_run(
        &self,
        file: &DataFile,
        run: Range<usize>,
        (to, dst): (Dtype, &mut [u8]),
        scratch: &mut Vec<u8>,
    ) -> Result<()> {
        let (block, bytes) = self.dtype.block();
        let (first, last) = (run.start / block, run.end.div_ceil(block));
        let offset = self.offset + (first * bytes) as u64;
        if self.dtype == to {
            return file.read_at(offset, dst);
        }
        scratch.resize((last - first) * bytes, 0);
        file.read_at(offset, scratch)?;
        let mut strip = [0f32; STRIP];
        let size = to.block().1;
        for (index, src) in scratch.chunks(STRIP / block * bytes).enumerate() {
            let values = &mut strip[..src.len() / bytes * block];
            decode(self.dtype, src, values);
            let base = first * block + index * STRIP;
            let from = run.start.max(base);
            let to_end = run.end.min(base + values.len());
            let dst = &mut dst[(from - run.start) * size..(to_end - run.start) * size];
            encode(to, &values[from - base..to_end - base], dst);
        }
        Ok(())
    }
}
