//! Encoded rows in one memory-mapped file.
//!
//! Layout, in the machine's own byte order: a header; the data, in 32-bit words, where each row is
//! its input ids, its labels and the lengths of its segments; an index entry a row; JSON that names
//! the sets and holds the report. Every part is under a checksum that is verified before the file
//! is mapped, so that a file cut short, damaged or of another build is found out and made again.
//! A file is written beside its place, synced and renamed: it is there whole or not at all,
//! whoever else writes the same one.

mod evict;
mod file;

use std::sync::Arc;

pub(crate) use file::{Cached, Writer, open};
use file::{IndexEntry, Map, Set};

/// Rows of a training or evaluation set: memory-mapped, immutable, cheap to clone.
#[derive(Debug, Clone)]
pub struct Rows {
    map: Arc<Map>,
    first: usize,
    len: usize,
    isolated: bool,
    tokens: u64,
    label_tokens: u64,
    longest: usize,
    largest_id: u32,
}

/// One row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row<'a> {
    /// Token ids.
    pub input_ids: &'a [u32],
    /// The id each token is to be predicted as, not shifted; -100 where there is no loss.
    pub labels: &'a [i32],
    /// Lengths of the sequences in the row, one after the other; position ids restart at each.
    pub segments: &'a [u32],
    /// Whether segments don't see each other.
    pub isolated: bool,
    /// Dataset (its place in the recipe; evaluation sets after training sets) and row in it, from 0;
    /// of a packed row those of its first segment, of a block those of the row its batch begins with.
    pub source: (u32, u64),
}

impl Rows {
    fn new(map: Arc<Map>, set: &Set) -> Self {
        let Set { first, len, isolated, largest_id, .. } = *set;
        let index = &map.index()[first..first + len];
        let tokens = index.iter().map(|entry| u64::from(entry.len)).sum();
        let label_tokens = index.iter().map(|entry| u64::from(entry.labels)).sum();
        let longest = index.iter().map(|entry| entry.len as usize).max().unwrap_or(0);
        Self { map, first, len, isolated, tokens, label_tokens, longest, largest_id }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens of all rows.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Tokens with a loss.
    pub fn label_tokens(&self) -> u64 {
        self.label_tokens
    }

    /// Tokens of the longest row.
    pub fn max_len(&self) -> usize {
        self.longest
    }

    /// Largest token id; 0 if there are no rows.
    pub fn largest_id(&self) -> u32 {
        self.largest_id
    }

    /// Tokens and tokens with a loss of row `i`, without touching its data.
    ///
    /// # Panics
    /// If `i` is not below [`Rows::len`].
    pub fn size(&self, i: usize) -> (usize, usize) {
        let entry = self.entry(i);
        (entry.len as usize, entry.labels as usize)
    }

    /// Row `i`.
    ///
    /// # Panics
    /// If `i` is not below [`Rows::len`].
    pub fn get(&self, i: usize) -> Row<'_> {
        let entry = self.entry(i);
        let (ids, segments) = (entry.len as usize, entry.segments as usize);
        let words = &self.map.data()[entry.offset as usize..][..2 * ids + segments];
        Row {
            input_ids: &words[..ids],
            labels: bytemuck::cast_slice(&words[ids..2 * ids]),
            segments: &words[2 * ids..],
            isolated: self.isolated,
            source: (entry.dataset, entry.row),
        }
    }

    /// The rows in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Row<'_>> {
        (0..self.len).map(|i| self.get(i))
    }

    fn entry(&self, i: usize) -> IndexEntry {
        assert!(i < self.len, "row {i} of {}", self.len);
        self.map.index()[self.first + i]
    }
}

#[cfg(test)]
mod tests;
