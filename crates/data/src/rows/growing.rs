//! Encoded rows that are read while they are still being written.
//!
//! The writer publishes what it has marked in its journal; each such part is mapped by itself, in the order in which
//! parts come, and stays where it is, so that a reader's references hold whatever is written after. The finished file
//! is the same one under another name.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use memmap2::{Mmap, MmapOptions};

use super::file::{HEADER, IndexEntry};

/// Most parts of a file: a mapping costs the system one of some 65,000.
const PARTS: usize = 1 << 14;
/// Words of data of the first parts. They double every [`SAME`] parts, so that any file has room.
const PART: u64 = 1 << 20;
const SAME: usize = 1 << 10;

/// Rows of a file in the making.
#[derive(Debug)]
pub(crate) struct Growing {
    parts: Box<[OnceLock<Part>]>,
    state: Mutex<State>,
    changed: Condvar,
}

/// Some rows of it.
#[derive(Debug)]
struct Part {
    map: Mmap,
    first_word: u64,
    first_row: usize,
    entries: Vec<IndexEntry>,
}

#[derive(Debug, Default)]
struct State {
    parts: usize,
    /// Rows before each part, then all rows there are.
    starts: Vec<usize>,
    seen: Seen,
    /// The sets before the one that grows, once they are whole.
    settled: Option<Vec<Whole>>,
    end: Option<Result<(), String>>,
}

/// A set that is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Whole {
    pub(crate) name: String,
    pub(crate) rows: Range<usize>,
    pub(crate) largest_id: u32,
}

/// What is known of the rows there are.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) rows: usize,
    pub(crate) tokens: u64,
    pub(crate) labels: u64,
    pub(crate) longest: usize,
    /// Nothing more will come.
    pub(crate) ended: bool,
}

impl Growing {
    pub(crate) fn new() -> Self {
        let parts = (0..PARTS).map(|_| OnceLock::new()).collect();
        Self { parts, state: Mutex::new(State { starts: vec![0], ..State::default() }), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether so much data is worth a part of its own. The first ones are whatever their size: somebody waits for them.
    pub(super) fn wants(&self, words: &Range<u64>) -> bool {
        const AT_ONCE: usize = 4;
        let parts = self.lock().parts;
        !words.is_empty() && (parts < AT_ONCE || words.end - words.start >= PART << (parts / SAME))
    }

    /// Adds rows whose data lies at `words` of `file`.
    pub(super) fn publish(&self, file: &File, words: &Range<u64>, entries: &[IndexEntry]) -> io::Result<()> {
        let len = usize::try_from(4 * (words.end - words.start)).map_err(io::Error::other)?;
        // SAFETY: these bytes are written, and nobody writes to them again: the writer appends, under a lock, and renames
        // the file when it is finished.
        let map = unsafe { MmapOptions::new().offset(HEADER + 4 * words.start).len(len).map(file)? };
        let mut state = self.lock();
        let first_row = state.seen.rows;
        let part = Part { map, first_word: words.start, first_row, entries: entries.to_vec() };
        let slot = self.parts.get(state.parts).ok_or_else(|| io::Error::other("more parts than marks"))?;
        if slot.set(part).is_err() {
            return Err(io::Error::other("a part was published twice"));
        }
        state.parts += 1;
        let seen = &mut state.seen;
        seen.rows += entries.len();
        for entry in entries {
            seen.tokens += u64::from(entry.len);
            seen.labels += u64::from(entry.labels);
            seen.longest = seen.longest.max(entry.len as usize);
        }
        let rows = seen.rows;
        state.starts.push(rows);
        self.changed.notify_all();
        Ok(())
    }

    /// All sets but the one that grows are whole now; the last of them may be that one, empty or begun.
    pub(crate) fn settle(&self, sets: Vec<Whole>) {
        self.lock().settled = Some(sets);
        self.changed.notify_all();
    }

    /// Nothing more will come: everything is there, or this went wrong.
    pub(crate) fn end(&self, result: Result<(), String>) {
        let mut state = self.lock();
        state.seen.ended = true;
        state.end.get_or_insert(result);
        self.changed.notify_all();
    }

    pub(crate) fn seen(&self) -> Seen {
        self.lock().seen
    }

    /// Waits until the growing set, the last one, has a row, or until the end: the sets then, or nothing at the end.
    pub(crate) fn wait_settled(&self) -> Option<Vec<Whole>> {
        let mut state = self.lock();
        while state.end.is_none() {
            if let Some(last) = state.settled.as_ref().and_then(|sets| sets.last())
                && state.seen.rows > last.rows.start
            {
                return state.settled.clone();
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        None
    }

    /// Waits until there are `rows` rows, or all of them; tells what there is then.
    pub(crate) fn wait(&self, rows: usize) -> Result<Seen, String> {
        let mut state = self.lock();
        while state.seen.rows < rows && state.end.is_none() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        match &state.end {
            Some(Err(problem)) => Err(problem.clone()),
            _ => Ok(state.seen),
        }
    }

    /// The index entry of row `i` and its words; it must be there.
    pub(super) fn row(&self, i: usize) -> (IndexEntry, &[u32]) {
        let nth = self.lock().starts.partition_point(|&start| start <= i) - 1;
        let part = self.parts.get(nth).and_then(OnceLock::get).expect("a row that is there lies in a part");
        let entry = part.entries[i - part.first_row];
        let words: &[u32] = bytemuck::cast_slice(&part.map);
        let size = 2 * entry.len as usize + entry.segments as usize;
        (entry, &words[(entry.offset - part.first_word) as usize..][..size])
    }
}
