//! A file of encoded rows in the making, which a killed process leaves for the next one to go on with.
//!
//! Beside it lies a journal: a record for every few thousand rows, with their index, a checksum of their data, and
//! what the encoder must know to go on. On opening, records are taken as long as they and their data are sound; the
//! rest is cut off and encoded again. The file is locked by who writes it; who finds it locked waits for it, so that
//! the same rows are never encoded twice at a time.

use std::fs::{self, File, TryLockError};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytemuck::{Pod, Zeroable};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::file::{HEADER, IndexEntry, Set, UNFINISHED};
use crate::digest::{self, Digest};
use crate::read::read_at;

const MAGIC: u64 = u64::from_le_bytes(*b"ft mark\x01");
/// Largest description of a record. More is damage.
const MAX_JSON: u32 = 1 << 30;
/// Between two looks at a file that another process writes.
const PATIENCE: Duration = Duration::from_millis(200);

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Frame {
    magic: u64,
    json_bytes: u32,
    entries: u32,
    /// Of what follows.
    check: [u8; 8],
}

/// What a record says beside the index of its rows.
#[derive(Serialize, Deserialize)]
struct Record<S> {
    key: Digest,
    /// Data up to here.
    words: u64,
    /// Of the data since the record before.
    data: Digest,
    sets: Vec<Set>,
    state: S,
}

/// Everything that sound records say.
pub(super) struct Replay<S> {
    pub(super) words: u64,
    pub(super) index: Vec<IndexEntry>,
    pub(super) sets: Vec<Set>,
    pub(super) states: Vec<S>,
}

/// The unfinished file, locked, and its journal.
#[derive(Debug)]
pub(super) struct Unfinished {
    pub(super) path: PathBuf,
    log_path: PathBuf,
    log: File,
    /// Of the data since the last record.
    hasher: Sha256,
    /// Rows in the journal.
    marked: usize,
    persisted: bool,
}

/// What came of asking for the unfinished file of `path`.
pub(super) enum Asked<S> {
    /// It is ours.
    Ours(Box<Unfinished>, File, Replay<S>),
    /// Another process has just finished it.
    Finished,
}

impl Unfinished {
    /// Opens or begins the file that will be `path`, waiting while another process writes it.
    pub(super) fn open<S: for<'a> Deserialize<'a>>(path: &Path, key: &Digest) -> io::Result<Asked<S>> {
        let mut unfinished = in_the_making(path, "");
        let mut told = false;
        let file = loop {
            let file = open_file(&unfinished)?;
            match file.try_lock() {
                Ok(()) if is_at(&file, &unfinished) => break file,
                // It was finished or removed between opening and locking.
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(path = %path.display(), "another process encodes the same rows; waiting for it");
                    }
                    std::thread::sleep(PATIENCE);
                }
                Err(TryLockError::Error(error)) => {
                    // Without locks nobody may go on with another's file.
                    tracing::debug!(%error, "files here can't be locked");
                    unfinished = in_the_making(path, &format!("-{}", std::process::id()));
                    break open_file(&unfinished)?;
                }
            }
            if told && path.exists() {
                return Ok(Asked::Finished);
            }
        };
        let log_path = journal_of(&unfinished);
        let log = open_file(&log_path)?;
        let (replay, log_bytes) = replay(&log, &file, key)?;
        log.set_len(log_bytes)?;
        (&log).seek(SeekFrom::End(0))?;
        file.set_len(HEADER + 4 * replay.words)?;
        (&file).seek(SeekFrom::End(0))?;
        let marked = replay.index.len();
        let ours = Self { path: unfinished, log_path, log, hasher: Sha256::new(), marked, persisted: false };
        Ok(Asked::Ours(Box::new(ours), file, replay))
    }

    /// Notes data that was written.
    pub(super) fn wrote(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
    }

    /// Notes in the journal that the rows so far are written.
    pub(super) fn mark<S: Serialize>(
        &mut self,
        key: &Digest,
        words: u64,
        index: &[IndexEntry],
        sets: &[Set],
        state: &S,
    ) -> io::Result<()> {
        let data = std::mem::take(&mut self.hasher).finalize().into();
        let record = Record { key: *key, words, data, sets: sets.to_vec(), state };
        let json = serde_json::to_vec(&record)?;
        let entries: &[u8] = bytemuck::cast_slice(&index[self.marked..]);
        let frame = Frame {
            magic: MAGIC,
            json_bytes: u32::try_from(json.len()).map_err(io::Error::other)?,
            entries: (index.len() - self.marked) as u32,
            check: check(&json, entries),
        };
        self.log.write_all(&[bytemuck::bytes_of(&frame), &json, entries].concat())?;
        self.marked = index.len();
        Ok(())
    }

    /// Gives the file its final name; the journal goes.
    pub(super) fn persist(mut self, path: &Path) -> io::Result<()> {
        fs::rename(&self.path, path)?;
        self.persisted = true;
        remove(&self.log_path);
        Ok(())
    }
}

/// An error ends an encoding for good: nothing stays. A kill leaves both files.
impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.persisted {
            remove(&self.path);
            remove(&self.log_path);
        }
    }
}

/// A file in the making that another process writes, and its journal, as far as it was read.
#[derive(Debug)]
pub(super) struct Followed {
    pub(super) file: File,
    log: File,
    log_path: PathBuf,
    key: Digest,
    /// Bytes of the journal that were read, and what they told.
    at: u64,
    words: u64,
    rows: usize,
}

/// What a record told.
pub(super) struct Marked {
    pub(super) words: Range<u64>,
    pub(super) entries: Vec<IndexEntry>,
    pub(super) sets: Vec<Set>,
}

/// How it stands with a file in the making.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Making {
    /// Its writer has it.
    Going,
    /// It has its final name, or its writer gave it up.
    Over,
    /// Nobody has it: its writer was killed.
    Left,
}

impl Followed {
    /// The file that will be `path`, if it is there.
    pub(super) fn open(path: &Path, key: &Digest) -> io::Result<Option<Self>> {
        let unfinished = in_the_making(path, "");
        let log_path = journal_of(&unfinished);
        let there = |path: &Path| match File::open(path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        };
        let (Some(file), Some(log)) = (there(&unfinished)?, there(&log_path)?) else { return Ok(None) };
        Ok(Some(Self { file, log, log_path, key: *key, at: 0, words: 0, rows: 0 }))
    }

    /// How it stands with the file. What its writer did before that is in the journal.
    pub(super) fn making(&self) -> Making {
        if !self.log_path.exists() {
            return Making::Over;
        }
        // Whoever writes holds the lock, and lets go of it only with the journal gone.
        match self.file.try_lock_shared() {
            Ok(()) => {
                let _ = self.file.unlock();
                if self.log_path.exists() { Making::Left } else { Making::Over }
            }
            Err(_) => Making::Going,
        }
    }

    /// The next record, if it is there, whole and sound; one that isn't yet is looked for again the next time.
    pub(super) fn next(&mut self) -> io::Result<Option<Marked>> {
        let left = self.log.metadata()?.len().saturating_sub(self.at);
        (&self.log).seek(SeekFrom::Start(self.at))?;
        let mut input = BufReader::new(&self.log);
        let Some((record, entries, bytes)) = next_record::<IgnoredAny>(&mut input, left)? else { return Ok(None) };
        let words = self.words..record.words;
        let rows: usize = record.sets.iter().map(|set| set.len).sum();
        let sound = record.key == self.key && words.start <= words.end && rows == self.rows + entries.len();
        if !sound || self.file.metadata()?.len() < HEADER + 4 * words.end {
            return Ok(None);
        }
        if !digest_is(&self.file, words.clone(), &record.data)? {
            return Ok(None);
        }
        (self.at, self.words, self.rows) = (self.at + bytes, words.end, rows);
        Ok(Some(Marked { words, entries, sets: record.sets }))
    }
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::debug!(path = %path.display(), %error, "a leftover stays");
    }
}

/// Where the file that will be `path` is made.
fn in_the_making(path: &Path, more: &str) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    path.parent().unwrap_or(Path::new(".")).join(format!("{UNFINISHED}{stem}{more}"))
}

fn journal_of(unfinished: &Path) -> PathBuf {
    let mut name = unfinished.to_path_buf().into_os_string();
    name.push(".log");
    PathBuf::from(name)
}

fn open_file(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(false).open(path)
}

/// Whether the file at `path` is still this one.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let place = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    file.metadata().is_ok_and(|ours| fs::metadata(path).is_ok_and(|there| place(ours) == place(there)))
}

#[cfg(not(unix))]
fn is_at(_file: &File, path: &Path) -> bool {
    path.exists()
}

fn check(json: &[u8], entries: &[u8]) -> [u8; 8] {
    let digest = digest::of_parts([json, entries]);
    std::array::from_fn(|i| digest[i])
}

/// The sound records of a journal, and how many of its bytes they are.
fn replay<S: for<'a> Deserialize<'a>>(log: &File, data: &File, key: &Digest) -> io::Result<(Replay<S>, u64)> {
    let mut replay = Replay { words: 0, index: Vec::new(), sets: Vec::new(), states: Vec::new() };
    let mut sound = 0;
    let mut left = log.metadata()?.len();
    let data_words = data.metadata()?.len().saturating_sub(HEADER) / 4;
    let mut input = BufReader::with_capacity(1 << 20, log);
    while let Some((record, entries, bytes)) = next_record::<S>(&mut input, left)? {
        let words = replay.words..record.words;
        if record.key != *key || words.is_empty() && !entries.is_empty() || words.end > data_words {
            break;
        }
        if words.start > words.end || !digest_is(data, words, &record.data)? {
            break;
        }
        let rows: usize = record.sets.iter().map(|set| set.len).sum();
        if rows != replay.index.len() + entries.len() {
            break;
        }
        (sound, left) = (sound + bytes, left - bytes);
        replay.words = record.words;
        replay.index.extend(entries);
        replay.sets = record.sets;
        replay.states.push(record.state);
    }
    Ok((replay, sound))
}

type Next<S> = Option<(Record<S>, Vec<IndexEntry>, u64)>;

fn next_record<S: for<'a> Deserialize<'a>>(input: &mut impl Read, left: u64) -> io::Result<Next<S>> {
    let mut frame = Frame::zeroed();
    const FRAME: u64 = size_of::<Frame>() as u64;
    if left < FRAME {
        return Ok(None);
    }
    input.read_exact(bytemuck::bytes_of_mut(&mut frame))?;
    let entry_bytes = u64::from(frame.entries) * size_of::<IndexEntry>() as u64;
    let bytes = FRAME + u64::from(frame.json_bytes) + entry_bytes;
    if frame.magic != MAGIC || frame.json_bytes > MAX_JSON || bytes > left {
        return Ok(None);
    }
    let mut json = vec![0; frame.json_bytes as usize];
    let mut entries = vec![IndexEntry::zeroed(); frame.entries as usize];
    input.read_exact(&mut json)?;
    input.read_exact(bytemuck::cast_slice_mut(&mut entries))?;
    if check(&json, bytemuck::cast_slice(&entries)) != frame.check {
        return Ok(None);
    }
    Ok(serde_json::from_slice(&json).ok().map(|record| (record, entries, bytes)))
}

fn digest_is(file: &File, words: Range<u64>, expected: &Digest) -> io::Result<bool> {
    const CHUNK: u64 = 1 << 20;
    let mut hasher = Sha256::new();
    let (mut at, end) = (HEADER + 4 * words.start, HEADER + 4 * words.end);
    let mut buffer = vec![0; CHUNK as usize];
    while at < end {
        let chunk = &mut buffer[..CHUNK.min(end - at) as usize];
        read_at(file, chunk, at)?;
        hasher.update(&*chunk);
        at += chunk.len() as u64;
    }
    Ok(Digest::from(hasher.finalize()) == *expected)
}
