//! Snapshots of a run: folders `checkpoint-N` that are whole or not there.
//!
//! A snapshot is written into `checkpoint-N.tmp-<random>`: every file is flushed, then the marker
//! `DONE` with the name and size of each, then the folder; the rename to `checkpoint-N` makes all
//! of it visible at once. `DONE` is the last file but lies inside before the rename, for two
//! reasons: a kill between rename and marker can't leave a finished checkpoint that doesn't count,
//! and a `checkpoint-N` without `DONE` is never ours (another program's, or a copy cut short), so
//! it is never removed as a leftover.
//!
//! What is displaced or removed is renamed first: `.old-` while its successor takes its name,
//! `.gone-` before it is deleted. [`SnapshotWriter::open`] finishes or sweeps what a kill left.
//!
//! Several processes may write one snapshot: each its files into the same [`Draft`], of which one of them, who holds
//! the folder's lock, makes the snapshot when all are done.
//!
//! What a snapshot holds is the trainer's business.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::error::{Error, Result, io_error};
use crate::file::{read_json, read_side_file};
use crate::folder::{FolderWriter, TEMP, marked, random, sync_folder, with_suffix, without_suffix};
use crate::safetensors::SafetensorsFile;

/// The marker of a whole snapshot.
pub const DONE: &str = "DONE";
/// Marks a snapshot whose name is being taken by a new one.
const OLD: &str = ".old-";
/// Marks a snapshot that is being removed.
const GONE: &str = ".gone-";

/// A folder `checkpoint-N`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundSnapshot {
    /// N: the optimiser steps made.
    pub step: u64,
    /// The folder.
    pub path: PathBuf,
    /// Whether a run can go on from it.
    pub state: SnapshotState,
}

/// Whether a snapshot can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotState {
    /// Everything is there.
    Whole,
    /// No `DONE`: another program's, or a copy cut short.
    Unmarked,
    /// `DONE` says more than is there.
    Damaged(String),
}

/// Finds the snapshots in a run's folder, by step; an absent folder has none.
///
/// # Errors
/// If the folder can't be read.
pub fn list_snapshots(dir: &Path) -> Result<Vec<FoundSnapshot>> {
    let mut found = Vec::new();
    for (name, path) in entries(dir)? {
        let step = name.strip_prefix("checkpoint-").and_then(|n| n.parse().ok());
        if let Some(step) = step
            && path.is_dir()
        {
            let state = state(&path);
            found.push(FoundSnapshot { step, path, state });
        }
    }
    found.sort_by_key(|snapshot| snapshot.step);
    Ok(found)
}

/// The newest whole snapshot in a run's folder.
///
/// # Errors
/// If the folder can't be read.
pub fn latest_snapshot(dir: &Path) -> Result<Option<Snapshot>> {
    let mut whole = list_snapshots(dir)?;
    whole.retain(|snapshot| snapshot.state == SnapshotState::Whole);
    Ok(whole.pop().map(|FoundSnapshot { step, path, .. }| Snapshot { step, path }))
}

/// Names and paths in a folder; those that aren't UTF-8 are none of ours.
fn entries(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(io_error("read", dir))? {
        let entry = entry.map_err(io_error("read", dir))?;
        if let Ok(name) = entry.file_name().into_string() {
            found.push((name, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// Compares a snapshot with what its marker says.
fn state(path: &Path) -> SnapshotState {
    let marker = path.join(DONE);
    if !marker.exists() {
        return SnapshotState::Unmarked;
    }
    let files = match read_json(&marker) {
        Ok(marker) => marker.get("files").and_then(Value::as_object).cloned(),
        Err(error) => return SnapshotState::Damaged(error.to_string()),
    };
    let Some(files) = files else {
        return SnapshotState::Damaged(format!("{DONE} doesn't list files"));
    };
    for (file, size) in &files {
        let Ok(metadata) = fs::metadata(path.join(file)) else {
            return SnapshotState::Damaged(format!("{file} is missing"));
        };
        if Some(metadata.len()) != size.as_u64() {
            let len = metadata.len();
            return SnapshotState::Damaged(format!("{file} has {len} bytes instead of {size}"));
        }
    }
    SnapshotState::Whole
}

/// A whole snapshot, to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    step: u64,
    path: PathBuf,
}

impl Snapshot {
    /// Opens a folder `checkpoint-N`.
    ///
    /// # Errors
    /// If it isn't one, or not whole.
    pub fn open(path: &Path) -> Result<Self> {
        let bad = |reason: String| Error::Snapshot { path: path.to_path_buf(), reason };
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
        let step = name.strip_prefix("checkpoint-").and_then(|n| n.parse().ok());
        let step = step.ok_or_else(|| bad("expected a folder named checkpoint-N".into()))?;
        match state(path) {
            SnapshotState::Whole => Ok(Self { step, path: path.to_path_buf() }),
            SnapshotState::Damaged(reason) => Err(bad(reason)),
            SnapshotState::Unmarked if !path.is_dir() => Err(bad("there is no such folder".into())),
            SnapshotState::Unmarked => {
                Err(bad(format!("it has no {DONE}, so another program wrote it or it was not copied whole")))
            }
        }
    }

    /// Optimiser steps made.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens one of its safetensors files.
    ///
    /// # Errors
    /// If it can't be read or is broken.
    pub fn tensors(&self, file: &str) -> Result<SafetensorsFile> {
        SafetensorsFile::open(&self.path.join(file))
    }

    /// Reads one of its smaller files.
    ///
    /// # Errors
    /// If it can't be read.
    pub fn bytes(&self, file: &str) -> Result<Vec<u8>> {
        read_side_file(&self.path.join(file))
    }

    /// Reads one of its JSON files.
    ///
    /// # Errors
    /// If it can't be read or holds no JSON object.
    pub fn json(&self, file: &str) -> Result<Value> {
        read_json(&self.path.join(file))
    }
}

/// A snapshot that is being written and has no name yet.
#[derive(Debug, Clone)]
pub struct Draft {
    temp: PathBuf,
    path: PathBuf,
}

impl Draft {
    /// The draft of `checkpoint-<step>` in a run's folder. Processes that give the same `id` share it.
    pub fn new(dir: &Path, step: u64, id: u64) -> Self {
        let path = dir.join(format!("checkpoint-{step}"));
        Self { temp: marked(&path, TEMP, id), path }
    }

    /// Where the snapshot will be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its folder, made if it isn't there; each file is flushed when it is written.
    ///
    /// # Errors
    /// If the folder can't be made.
    pub fn folder(&self) -> Result<FolderWriter> {
        match fs::create_dir(&self.temp) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(io_error("create", &self.temp)(error)),
            _ => Ok(FolderWriter::private(self.temp.clone())),
        }
    }

    /// Removes what was written.
    pub fn discard(&self) {
        // Why the snapshot was given up is the error to report; a leftover is swept at the next start.
        let _ = fs::remove_dir_all(&self.temp);
    }
}

/// Writes and removes the snapshots of one run.
#[derive(Debug)]
pub struct SnapshotWriter {
    dir: PathBuf,
    /// Held open: its advisory lock keeps a second run out, and ends with the process.
    _lock: File,
}

impl SnapshotWriter {
    /// Takes a run's folder, made if it isn't there, and cleans up after a killed save.
    ///
    /// # Errors
    /// If the folder can't be made or written, or another run holds it.
    pub fn open(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).map_err(io_error("create", dir))?;
        let lock = File::open(dir).map_err(io_error("open", dir))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::Unwritable {
                    path: dir.to_path_buf(),
                    reason: "another run is writing there; wait for it or choose another \
                             output_dir"
                        .into(),
                });
            }
            // Some network file systems have no locks; the run is then as safe as its user is.
            Err(TryLockError::Error(error)) => {
                tracing::warn!(dir = %dir.display(), %error, "the output folder can't be locked");
            }
        }
        let writer = Self { dir: dir.to_path_buf(), _lock: lock };
        writer.sweep()?;
        Ok(writer)
    }

    /// The run's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes `checkpoint-<step>`, in the place of one of that name; returns its path.
    ///
    /// # Errors
    /// What `fill` fails with, or if anything can't be written. All snapshots are then as before.
    pub fn write(&self, step: u64, fill: impl FnOnce(&FolderWriter) -> Result<()>) -> Result<PathBuf> {
        let draft = Draft::new(&self.dir, step, random());
        let made = draft.folder().and_then(|folder| fill(&folder)).and_then(|()| self.publish(&draft, &[]));
        if made.is_err() {
            draft.discard();
        }
        made
    }

    /// Makes a draft the snapshot of its step, in the place of one of that name; returns its path. `expected` are
    /// names and sizes of files that must be there, whoever wrote them.
    ///
    /// # Errors
    /// If one of them isn't there as it should be, or something can't be written. All snapshots are then as before.
    pub fn publish(&self, draft: &Draft, expected: &[(String, u64)]) -> Result<PathBuf> {
        self.seal(&draft.temp, expected)?;
        self.rename(&draft.temp, &draft.path)?;
        Ok(draft.path.clone())
    }

    /// Writes the marker into a temporary folder and flushes it.
    fn seal(&self, temp: &Path, expected: &[(String, u64)]) -> Result<()> {
        let mut files = Map::new();
        for (name, path) in entries(temp)? {
            let metadata = fs::metadata(&path).map_err(io_error("read", &path))?;
            files.insert(name, metadata.len().into());
        }
        for (name, size) in expected {
            let path = temp.join(name);
            // Asked by name: a network's file system may list a folder as it was a while ago.
            let found = fs::metadata(&path).map_err(io_error("read", &path))?.len();
            if found != *size {
                let reason = format!("its writer made it {size} bytes long, here it has {found}");
                return Err(Error::Unwritable { path, reason });
            }
            files.insert(name.clone(), found.into());
        }
        // The names reach the disk before the marker that vouches for them.
        sync_folder(temp)?;
        FolderWriter::private(temp.to_path_buf()).json(DONE, &json!({"files": files}))?;
        sync_folder(temp)
    }

    /// Gives a finished folder its name.
    fn rename(&self, temp: &Path, path: &Path) -> Result<()> {
        let displaced = path.exists().then(|| with_suffix(path, OLD));
        if let Some(old) = &displaced {
            fs::rename(path, old).map_err(io_error("replace", path))?;
        }
        if let Err(source) = fs::rename(temp, path) {
            if let Some(old) = &displaced {
                fs::rename(old, path).map_err(io_error("restore", path))?;
            }
            return Err(io_error("write", path)(source));
        }
        sync_folder(&self.dir)?;
        match displaced {
            Some(old) => fs::remove_dir_all(&old).map_err(io_error("remove", &old)),
            None => Ok(()),
        }
    }

    /// Removes the oldest whole snapshots until `keep` are left (at least 1), sparing the newest
    /// and those of the steps in `protect`; returns the steps removed. Others' are left alone.
    ///
    /// # Errors
    /// If the folder can't be read or a snapshot not removed.
    pub fn prune(&self, keep: usize, protect: &[u64]) -> Result<Vec<u64>> {
        let mut whole = list_snapshots(&self.dir)?;
        whole.retain(|snapshot| snapshot.state == SnapshotState::Whole);
        let excess = whole.len().saturating_sub(keep.max(1));
        whole.pop();
        whole.retain(|snapshot| !protect.contains(&snapshot.step));
        whole.truncate(excess);
        let mut removed = Vec::new();
        for snapshot in whole {
            self.remove(&snapshot.path)?;
            removed.push(snapshot.step);
        }
        Ok(removed)
    }

    /// Removes the snapshots of these steps, as far as they are there.
    ///
    /// # Errors
    /// If one can't be removed.
    pub fn remove_steps(&self, steps: &[u64]) -> Result<()> {
        let paths = steps.iter().map(|step| self.dir.join(format!("checkpoint-{step}")));
        paths.filter(|path| path.exists()).try_for_each(|path| self.remove(&path))
    }

    /// Removes a snapshot; at no moment does a part of it look whole.
    fn remove(&self, path: &Path) -> Result<()> {
        let gone = with_suffix(path, GONE);
        fs::rename(path, &gone).map_err(io_error("remove", path))?;
        sync_folder(&self.dir)?;
        fs::remove_dir_all(&gone).map_err(io_error("remove", &gone))
    }

    /// Cleans up after a kill: a finished folder gets its name, a displaced one gets it back if
    /// nothing took it, the rest is removed.
    fn sweep(&self) -> Result<()> {
        for marker in [TEMP, OLD, GONE] {
            for (name, path) in entries(&self.dir)? {
                let Some(stem) = without_suffix(&name, marker) else {
                    continue;
                };
                let target = self.dir.join(stem);
                if !path.is_dir() {
                    if marker == TEMP {
                        fs::remove_file(&path).map_err(io_error("remove", &path))?;
                    }
                } else if !stem.starts_with("checkpoint-") {
                    continue;
                } else if marker != GONE && state(&path) == SnapshotState::Whole && !target.exists() {
                    fs::rename(&path, &target).map_err(io_error("restore", &target))?;
                    tracing::info!(path = %target.display(), "recovered from an interrupted save");
                } else {
                    fs::remove_dir_all(&path).map_err(io_error("remove", &path))?;
                }
            }
        }
        sync_folder(&self.dir)
    }
}
