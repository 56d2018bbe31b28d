//! Encoded rows that another process of this machine is writing, read along by way of its journal.

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use super::Backing;
use super::file::{self, Cached, IndexEntry, Map};
use super::growing::{Growing, Whole};
use super::journal::{Followed, Making};
use crate::digest::Digest;
use crate::error::DataError;

/// Between two looks at what has come.
const PATIENCE: Duration = Duration::from_millis(20);
/// Between two looks for a finished file, each of which reads it.
const RARELY: Duration = Duration::from_millis(500);

/// Publishes to `readers` what another process writes to the file that will be `path`, until it is finished; `growing` is the
/// last set, for which readers don't wait. Without a journal to follow it waits for the finished file, however long: a rank whose
/// encoding fails ends the others.
///
/// # Errors
/// If the writer gave it up, or what it wrote can't be read.
pub(crate) fn follow(path: &Path, key: &Digest, growing: &str, readers: &Growing) -> Result<Cached, DataError> {
    let io = |error| DataError::io("read", path, error);
    let given_up =
        || io(std::io::Error::other("the process that encodes these rows has ended before they were all there"));
    let Some(mut followed) = Followed::open(path, key).map_err(io)? else {
        // Files that can't be locked are made under other names.
        loop {
            if let Some(cached) = file::open(path, key)? {
                return Ok(cached);
            }
            sleep(RARELY);
        }
    };
    let mut waiting = Waiting { words: 0..0, entries: Vec::new() };
    let mut settled = false;
    loop {
        // Looked at before the journal is read, so that nothing is missed.
        let making = followed.making();
        while let Some(marked) = followed.next().map_err(io)? {
            waiting.words.end = marked.words.end;
            waiting.entries.extend(marked.entries);
            let grows = marked.sets.last().is_some_and(|set| set.name == growing);
            waiting.publish(&followed.file, readers, grows && !settled).map_err(io)?;
            if grows && !settled {
                settled = true;
                readers.settle(marked.sets.iter().map(Whole::from).collect());
            }
        }
        match making {
            Making::Going => sleep(PATIENCE),
            Making::Left => return Err(given_up()),
            Making::Over => break,
        }
    }
    let cached = file::open(path, key)?.ok_or_else(given_up)?;
    if let Some(map) = cached.sets.iter().find_map(|(_, rows)| match &rows.file {
        Backing::Whole(map) => Some(map),
        Backing::Growing(_) => None,
    }) {
        waiting.rest(map, readers);
        waiting.publish(&followed.file, readers, true).map_err(io)?;
    }
    Ok(cached)
}

/// Rows that were read and aren't published yet.
struct Waiting {
    words: Range<u64>,
    entries: Vec<IndexEntry>,
}

impl Waiting {
    /// Publishes them, less than is worth it only if asked for `all`.
    fn publish(&mut self, file: &File, readers: &Growing, all: bool) -> std::io::Result<()> {
        if self.words.is_empty() || !(all || readers.wants(&self.words)) {
            return Ok(());
        }
        readers.publish(file, &self.words, &self.entries)?;
        self.words = self.words.end..self.words.end;
        self.entries.clear();
        Ok(())
    }

    /// Adds those that the writer had no mark for any more.
    fn rest(&mut self, map: &Map, readers: &Growing) {
        let known = readers.seen().rows + self.entries.len();
        self.entries.extend(map.index().get(known..).unwrap_or_default());
        self.words.end = map.words();
    }
}
