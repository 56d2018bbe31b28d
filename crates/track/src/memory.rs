//! `trackers.json` in the output folder: which run of each tracker this one is, so that it goes on with them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ferrotune_checkpoint::write_atomic;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::Result;

/// The file's name.
const FILE: &str = "trackers.json";

/// What is known of the trackers' runs; shared by their threads.
#[derive(Debug)]
pub(crate) struct Memory {
    path: PathBuf,
    known: Mutex<Map<String, Value>>,
}

impl Memory {
    /// Of the run in `output`, which has done `done` steps; a new run knows nothing. What can't be read is not known.
    pub(crate) fn open(output: &Path, done: u64) -> Self {
        let path = output.join(FILE);
        let read = || serde_json::from_slice(&fs::read(&path).ok()?).ok();
        let known = if done > 0 { read().unwrap_or_default() } else { Map::new() };
        Self { path, known: Mutex::new(known) }
    }

    /// What a tracker left.
    pub(crate) fn recall<T: DeserializeOwned>(&self, tracker: &str) -> Option<T> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        serde_json::from_value(known.get(tracker)?.clone()).ok()
    }

    /// Leaves something for the next session.
    pub(crate) fn keep<T: Serialize>(&self, tracker: &str, what: &T) -> Result<()> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(tracker.to_owned(), serde_json::to_value(what).unwrap_or_default());
        Ok(write_atomic(&self.path, format!("{:#}\n", Value::Object(known.clone())).as_bytes())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_recalled_by_a_run_that_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let memory = Memory::open(folder.path(), 0);
        memory.keep("a", &"x").unwrap();
        memory.keep("b", &7).unwrap();
        let later = Memory::open(folder.path(), 3);
        assert_eq!((later.recall("a"), later.recall("b")), (Some("x".to_owned()), Some(7)));
        assert_eq!(later.recall::<u32>("a"), None, "of another form");
        assert_eq!(Memory::open(folder.path(), 0).recall::<String>("a"), None);
        fs::write(folder.path().join(FILE), "{").unwrap();
        assert_eq!(Memory::open(folder.path(), 3).recall::<String>("a"), None);
    }
}
