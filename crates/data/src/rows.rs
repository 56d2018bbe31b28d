//! Encoded rows in one memory-mapped file.
//!
//! Layout, in the machine's own byte order: a header; the data, in 32-bit words, where each row is
//! its input ids, its labels and the lengths of its segments; an index entry a row; JSON that names
//! the sets and holds the report. Every part is under a checksum that is verified before the file
//! is mapped, so that a file cut short, damaged or of another build is found out and made again.
//! A file is written beside its place, synced and renamed: it is there whole or not at all; a killed
//! process's is gone on with, and a running one's is read along (`journal`).

mod evict;
mod file;
mod follow;
mod growing;
mod journal;

use std::sync::Arc;

pub(crate) use file::{Begun, Cached, Writer, open};
use file::{IndexEntry, Map, Set};
pub(crate) use follow::follow;
pub(crate) use growing::{Growing, Seen, Whole};

/// Rows of a training or evaluation set: memory-mapped, immutable, cheap to clone. A training set may still be growing: then
/// what is said of its rows is said of those that are there.
#[derive(Debug, Clone)]
pub struct Rows {
    file: Backing,
    first: usize,
    isolated: bool,
    /// Of a whole set; of a growing one, what lies before it, and bounds.
    totals: Totals,
}

/// Where rows lie.
#[derive(Debug, Clone)]
enum Backing {
    Whole(Arc<Map>),
    Growing(Arc<Growing>),
}

#[derive(Debug, Clone, Copy)]
struct Totals {
    rows: usize,
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
        let totals = Totals {
            rows: len,
            tokens: index.iter().map(|entry| u64::from(entry.len)).sum(),
            label_tokens: index.iter().map(|entry| u64::from(entry.labels)).sum(),
            longest: index.iter().map(|entry| entry.len as usize).max().unwrap_or(0),
            largest_id,
        };
        Self { file: Backing::Whole(map), first, isolated, totals }
    }

    /// The rows from `first` on of a file in the making. No row will be longer than `longest`, no id larger than
    /// `largest_id`.
    pub(crate) fn growing(file: Arc<Growing>, first: usize, isolated: bool, longest: usize, largest_id: u32) -> Self {
        // Rows before belong to other sets.
        let before = || (0..first).map(|i| file.row(i).0);
        let tokens = before().map(|entry| u64::from(entry.len)).sum();
        let label_tokens = before().map(|entry| u64::from(entry.labels)).sum();
        let totals = Totals { rows: 0, tokens, label_tokens, longest, largest_id };
        Self { file: Backing::Growing(file), first, isolated, totals }
    }

    /// Some rows of a file in the making that are there and stay all of their set.
    pub(crate) fn settled(file: Arc<Growing>, set: std::ops::Range<usize>, isolated: bool, largest_id: u32) -> Self {
        let mut totals = Totals { rows: set.len(), tokens: 0, label_tokens: 0, longest: 0, largest_id };
        for (entry, _) in set.clone().map(|i| file.row(i)) {
            totals.tokens += u64::from(entry.len);
            totals.label_tokens += u64::from(entry.labels);
            totals.longest = totals.longest.max(entry.len as usize);
        }
        Self { file: Backing::Growing(file), first: set.start, isolated, totals }
    }

    /// Whether rows may still come.
    pub fn is_growing(&self) -> bool {
        matches!(&self.file, Backing::Growing(file) if self.totals.rows == 0 && !file.seen().ended)
    }

    /// Waits until there are `rows` rows, or until the set is whole; the number of rows there are then, and whether the set
    /// is whole.
    ///
    /// # Errors
    /// What ended the encoding early.
    pub fn wait(&self, rows: usize) -> Result<(usize, bool), String> {
        match &self.file {
            Backing::Growing(file) if self.totals.rows == 0 => {
                let seen = file.wait(self.first + rows)?;
                Ok((seen.rows - self.first, seen.ended))
            }
            _ => Ok((self.totals.rows, true)),
        }
    }

    fn seen(&self) -> Totals {
        match &self.file {
            Backing::Growing(file) if self.totals.rows == 0 => {
                let Seen { rows, tokens, labels, .. } = file.seen();
                let Totals { tokens: before, label_tokens: labels_before, .. } = self.totals;
                let (tokens, label_tokens) = (tokens - before, labels - labels_before);
                Totals { rows: rows - self.first, tokens, label_tokens, ..self.totals }
            }
            _ => self.totals,
        }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.seen().rows
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens of all rows.
    pub fn tokens(&self) -> u64 {
        self.seen().tokens
    }

    /// Tokens with a loss.
    pub fn label_tokens(&self) -> u64 {
        self.seen().label_tokens
    }

    /// Tokens of the longest row; of a growing set, more than which none will have.
    pub fn max_len(&self) -> usize {
        self.totals.longest
    }

    /// Largest token id, 0 if there are no rows; of a growing set, above which none will be.
    pub fn largest_id(&self) -> u32 {
        self.totals.largest_id
    }

    /// Tokens and tokens with a loss of row `i`, without touching its data.
    ///
    /// # Panics
    /// If `i` is not below [`Rows::len`].
    pub fn size(&self, i: usize) -> (usize, usize) {
        let (entry, _) = self.entry(i);
        (entry.len as usize, entry.labels as usize)
    }

    /// Row `i`.
    ///
    /// # Panics
    /// If `i` is not below [`Rows::len`].
    pub fn get(&self, i: usize) -> Row<'_> {
        let (entry, words) = self.entry(i);
        let ids = entry.len as usize;
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
        (0..self.len()).map(|i| self.get(i))
    }

    /// A row's index entry and its words.
    fn entry(&self, i: usize) -> (IndexEntry, &[u32]) {
        match &self.file {
            Backing::Whole(map) => {
                assert!(i < self.totals.rows, "row {i} of {}", self.totals.rows);
                let entry = map.index()[self.first + i];
                let size = 2 * entry.len as usize + entry.segments as usize;
                (entry, &map.data()[entry.offset as usize..][..size])
            }
            Backing::Growing(file) => file.row(self.first + i),
        }
    }
}

#[cfg(test)]
mod tests;
