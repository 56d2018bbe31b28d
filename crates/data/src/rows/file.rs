//! Writing and opening the file of encoded rows.

use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytemuck::{Pod, Zeroable};
use memmap2::Mmap;
use serde::{Deserialize, Serialize};

use super::growing::{Growing, Whole};
use super::journal::{Asked, Unfinished};
use super::{Row, Rows, evict};
use crate::digest::{self, Digest};
use crate::encode::IGNORE;
use crate::error::DataError;
use crate::read::read_at;
use crate::report::Report;

const MAGIC: [u8; 8] = *b"ft rows\n";
const VERSION: u32 = 3;
/// Begins the name of a file in the making.
pub(super) const UNFINISHED: &str = ".rows-";
/// Read back as another number on a machine of the other byte order.
const BYTE_ORDER: u32 = 0x0102_0304;
pub(super) const HEADER: u64 = size_of::<Header>() as u64;

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Header {
    magic: [u8; 8],
    version: u32,
    byte_order: u32,
    key: Digest,
    data_words: u64,
    rows: u64,
    json_bytes: u64,
    /// Of the data.
    data_digest: Digest,
    /// Of the index and the JSON.
    tail_digest: Digest,
    /// First bytes of the digest of everything above.
    check: [u8; 8],
}

impl Header {
    fn checksum(&self) -> [u8; 8] {
        let bytes = bytemuck::bytes_of(self);
        let digest = digest::of_bytes(&bytes[..bytes.len() - self.check.len()]);
        std::array::from_fn(|i| digest[i])
    }

    /// Offsets at which index, JSON and file end; nothing if the numbers can't be true.
    fn ends(&self) -> Option<(u64, u64, u64)> {
        let data = self.data_words.checked_mul(4)?.checked_add(HEADER)?.checked_next_multiple_of(8)?;
        let index = self.rows.checked_mul(size_of::<IndexEntry>() as u64)?.checked_add(data)?;
        Some((data, index, index.checked_add(self.json_bytes)?))
    }
}

/// Where a row lies in the data.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub(super) struct IndexEntry {
    /// In words.
    pub(super) offset: u64,
    pub(super) row: u64,
    /// In tokens.
    pub(super) len: u32,
    pub(super) segments: u32,
    pub(super) dataset: u32,
    /// Tokens with a loss.
    pub(super) labels: u32,
}

/// What the JSON at the end says.
#[derive(Debug, Serialize, Deserialize)]
struct Contents {
    sets: Vec<Set>,
    report: Report,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Set {
    pub(super) name: String,
    pub(super) first: usize,
    pub(super) len: usize,
    pub(super) isolated: bool,
    /// Largest token id.
    pub(super) largest_id: u32,
}

impl From<&Set> for Whole {
    fn from(set: &Set) -> Self {
        let Set { name, first, len, largest_id, .. } = set.clone();
        Self { name, rows: first..first + len, largest_id }
    }
}

/// The mapped file.
#[derive(Debug)]
pub(super) struct Map {
    bytes: Mmap,
    /// Open, and so locked, as long as the rows are used.
    _file: File,
    data_end: usize,
    index: std::ops::Range<usize>,
}

impl Map {
    pub(super) fn data(&self) -> &[u32] {
        bytemuck::cast_slice(&self.bytes[HEADER as usize..self.data_end])
    }

    /// Words of data.
    pub(super) fn words(&self) -> u64 {
        self.index().last().map_or(0, |last| last.offset + 2 * u64::from(last.len) + u64::from(last.segments))
    }

    pub(super) fn index(&self) -> &[IndexEntry] {
        bytemuck::cast_slice(&self.bytes[self.index.clone()])
    }
}

/// What a file of encoded rows holds.
#[derive(Debug)]
pub(crate) struct Cached {
    /// By name, in the order in which they were written.
    pub(crate) sets: Vec<(String, Rows)>,
    pub(crate) report: Report,
}

/// Opens the file at `path` if it is there, whole, and was made under `key`.
///
/// # Errors
/// If the file is there but the system can't read or map it.
pub(crate) fn open(path: &Path, key: &Digest) -> Result<Option<Cached>, DataError> {
    let io = |error| DataError::io("read", path, error);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(io(error)),
    };
    match verify(&file, key).map_err(io)? {
        Ok((header, contents)) => {
            evict::mark_used(&file);
            map(file, &header, contents).map_err(io)
        }
        Err(problem) => {
            tracing::warn!(path = %path.display(), problem, "encoded rows are made again");
            Ok(None)
        }
    }
}

/// Reads all of the file once, or says what is wrong with it. Reading rather than looking at the
/// mapping keeps its pages out of this process.
fn verify(file: &File, key: &Digest) -> io::Result<Result<(Header, Contents), &'static str>> {
    let file_bytes = file.metadata()?.len();
    if file_bytes < HEADER {
        return Ok(Err("the file is cut short"));
    }
    let mut header = Header::zeroed();
    read_at(file, bytemuck::bytes_of_mut(&mut header), 0)?;
    if header.magic != MAGIC || header.version != VERSION || header.byte_order != BYTE_ORDER {
        return Ok(Err("the file is of another program or version"));
    }
    if header.check != header.checksum() {
        return Ok(Err("the header is damaged"));
    }
    if header.key != *key {
        return Ok(Err("the file was made from other data or options"));
    }
    let Some((data_end, index_end, end)) = header.ends().filter(|ends| ends.2 == file_bytes) else {
        return Ok(Err("the file is cut short"));
    };
    if digest::of_range(file, HEADER, data_end - HEADER)? != header.data_digest
        || digest::of_range(file, data_end, end - data_end)? != header.tail_digest
    {
        return Ok(Err("the file is damaged"));
    }
    let mut json = vec![0; (end - index_end) as usize];
    read_at(file, &mut json, index_end)?;
    Ok(serde_json::from_slice(&json).map(|contents| (header, contents)).map_err(|_| "the report is damaged"))
}

fn map(file: File, header: &Header, contents: Contents) -> io::Result<Option<Cached>> {
    let Some((data_end, index_end, _)) = header.ends() else { return Ok(None) };
    // SAFETY: a mapping is sound while nobody changes the file. It is ours: it is written once,
    // renamed into place, and from then on only ever replaced by another rename, which leaves
    // mapped bytes alone. A hand that truncates it under a running program would end that program
    // with a bus error, as with any mapped file.
    let bytes = unsafe { Mmap::map(&file)? };
    let map = Map {
        bytes,
        _file: file,
        data_end: (HEADER + header.data_words * 4) as usize,
        index: data_end as usize..index_end as usize,
    };
    let words = header.data_words;
    let fits = |entry: &IndexEntry| {
        let size = 2 * u64::from(entry.len) + u64::from(entry.segments);
        entry.offset.checked_add(size).is_some_and(|end| end <= words)
    };
    let rows = map.index().len();
    let known = |set: &Set| set.first.checked_add(set.len).is_some_and(|end| end <= rows);
    if !map.index().iter().all(fits) || !contents.sets.iter().all(known) {
        return Ok(None);
    }
    let map = Arc::new(map);
    let open = |set: Set| (set.name.clone(), Rows::new(Arc::clone(&map), &set));
    let sets = contents.sets.into_iter().map(open).collect();
    Ok(Some(Cached { sets, report: contents.report }))
}

/// A file of encoded rows in the making. Dropped unfinished it leaves nothing behind; killed, it is gone on with.
#[derive(Debug)]
pub(crate) struct Writer<'a> {
    path: &'a Path,
    key: &'a Digest,
    unfinished: Box<Unfinished>,
    out: BufWriter<File>,
    words: u64,
    index: Vec<IndexEntry>,
    sets: Vec<Set>,
    /// Who reads along, and the words and rows that were published.
    readers: Option<(Arc<Growing>, u64, usize)>,
}

/// What came of beginning to write.
pub(crate) enum Begun<'a, S> {
    /// Write; what an earlier process has written is in, and its marks tell how far it came.
    Write(Box<Writer<'a>>, Vec<S>),
    /// Another process has written it meanwhile.
    There(Cached),
}

impl<'a> Writer<'a> {
    /// Begins the file that will be `path`, in a folder that exists, or goes on with it.
    pub(crate) fn begin<S: for<'s> Deserialize<'s>>(
        path: &'a Path,
        key: &'a Digest,
    ) -> Result<Begun<'a, S>, DataError> {
        remove_leftovers(path.parent().unwrap_or(Path::new(".")));
        let io = |error| DataError::io("write", path, error);
        loop {
            match Unfinished::open(path, key).map_err(io)? {
                Asked::Ours(unfinished, file, replay) => {
                    let mut out = BufWriter::with_capacity(1 << 20, file);
                    if replay.words == 0 {
                        out.get_ref().set_len(0).map_err(io)?;
                        out.seek(SeekFrom::Start(0)).map_err(io)?;
                        out.write_all(bytemuck::bytes_of(&Header::zeroed())).map_err(io)?;
                    }
                    let (words, index, sets) = (replay.words, replay.index, replay.sets);
                    if !index.is_empty() {
                        tracing::info!("{} encoded rows of a process that was stopped are gone on with", index.len());
                    }
                    let writer = Self { path, key, unfinished, out, words, index, sets, readers: None };
                    return Ok(Begun::Write(Box::new(writer), replay.states));
                }
                Asked::Finished => {
                    if let Some(cached) = open(path, key)? {
                        return Ok(Begun::There(cached));
                    }
                }
            }
        }
    }

    /// Lets `readers` read along, first what is there already.
    pub(crate) fn publish_to(&mut self, readers: Arc<Growing>) -> Result<(), DataError> {
        self.readers = Some((readers, 0, 0));
        self.publish(true)
    }

    /// The sets begun so far.
    pub(crate) fn sets(&self) -> Vec<Whole> {
        self.sets.iter().map(Whole::from).collect()
    }

    /// Publishes what was flushed and isn't published yet; less than is worth it only if asked for `all`.
    fn publish(&mut self, all: bool) -> Result<(), DataError> {
        let Some((readers, words, rows)) = &mut self.readers else { return Ok(()) };
        let new = *words..self.words;
        if new.is_empty() || !(all || readers.wants(&new)) {
            return Ok(());
        }
        let published = readers.publish(self.out.get_ref(), &new, &self.index[*rows..]);
        published.map_err(|error| DataError::io("map", self.path, error))?;
        (*words, *rows) = (self.words, self.index.len());
        Ok(())
    }

    /// The rows pushed from now on belong to the set `name`; one that was begun before a kill goes on.
    pub(crate) fn begin_set(&mut self, name: &str, isolated: bool) {
        if self.sets.last().is_none_or(|set| set.name != name) {
            self.sets.push(Set { name: name.to_owned(), first: self.index.len(), len: 0, isolated, largest_id: 0 });
        }
    }

    /// Adds a row to the set begun last; whether it is isolated, the set says.
    pub(crate) fn push(&mut self, row: Row<'_>) -> Result<(), DataError> {
        assert_eq!(row.input_ids.len(), row.labels.len(), "a label a token");
        debug_assert_eq!(row.segments.iter().map(|&len| len as usize).sum::<usize>(), row.input_ids.len());
        let labels = row.labels.iter().filter(|&&label| label != IGNORE).count();
        self.index.push(IndexEntry {
            offset: self.words,
            row: row.source.1,
            len: row.input_ids.len() as u32,
            segments: row.segments.len() as u32,
            dataset: row.source.0,
            labels: labels as u32,
        });
        let set = self.sets.last_mut().expect("begin_set comes before push");
        set.len += 1;
        set.largest_id = row.input_ids.iter().fold(set.largest_id, |largest, &id| largest.max(id));
        self.words += (2 * row.input_ids.len() + row.segments.len()) as u64;
        let parts: [&[u8]; 3] =
            [bytemuck::cast_slice(row.input_ids), bytemuck::cast_slice(row.labels), bytemuck::cast_slice(row.segments)];
        for part in parts {
            self.unfinished.wrote(part);
            self.out.write_all(part).map_err(|error| DataError::io("write", self.path, error))?;
        }
        Ok(())
    }

    /// What was pushed so far stays, even if the process is killed; with it `state`, for who goes on.
    pub(crate) fn mark<S: Serialize>(&mut self, state: &S) -> Result<(), DataError> {
        let marked =
            self.out.flush().and_then(|()| self.unfinished.mark(self.key, self.words, &self.index, &self.sets, state));
        marked.map_err(|error| DataError::io("write", self.path, error))?;
        self.publish(false)
    }

    /// Publishes all that was marked: a set is whole.
    pub(crate) fn settle(&mut self) -> Result<(), DataError> {
        self.publish(true)
    }

    /// Completes the file, puts it in its place and opens it.
    pub(crate) fn finish(mut self, report: Report) -> Result<Cached, DataError> {
        self.publish(true)?;
        let path = self.path;
        let io = |error| DataError::io("write", path, error);
        let contents = Contents { sets: self.sets, report };
        let json = serde_json::to_vec(&contents).map_err(|error| io(error.into()))?;
        let mut header = Header {
            magic: MAGIC,
            version: VERSION,
            byte_order: BYTE_ORDER,
            key: *self.key,
            data_words: self.words,
            rows: self.index.len() as u64,
            json_bytes: json.len() as u64,
            ..Header::zeroed()
        };
        let (data_end, _, end) = header.ends().expect("lengths of what is in memory or on disk fit");
        let mut out = self.out;
        let padding = data_end - HEADER - self.words * 4;
        out.write_all(&[0; 8][..padding as usize]).map_err(io)?;
        out.write_all(bytemuck::cast_slice(&self.index)).map_err(io)?;
        out.write_all(&json).map_err(io)?;
        let mut file = out.into_inner().map_err(|error| io(error.into_error()))?;
        header.data_digest = digest::of_range(&file, HEADER, data_end - HEADER).map_err(io)?;
        header.tail_digest = digest::of_range(&file, data_end, end - data_end).map_err(io)?;
        header.check = header.checksum();
        file.seek(SeekFrom::Start(0)).map_err(io)?;
        file.write_all(bytemuck::bytes_of(&header)).map_err(io)?;
        file.sync_all().map_err(io)?;
        self.unfinished.persist(path).map_err(io)?;
        sync_folder(path).map_err(io)?;
        evict::mark_used(&file);
        evict::evict(path.parent().unwrap_or(Path::new(".")), path, evict::LIMIT);
        let cached = map(file, &header, contents).map_err(io)?;
        Ok(cached.expect("what was just written is consistent"))
    }
}

/// Removes what killed processes left and nobody went on with. Files younger than a week may be in the making, or be
/// gone on with; one that can't be removed does no harm.
fn remove_leftovers(folder: &Path) {
    const AGE: Duration = Duration::from_secs(7 * 24 * 60 * 60);
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let old = || entry.metadata().ok()?.modified().ok()?.elapsed().ok();
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED)
            && old().is_some_and(|age| age > AGE)
            && let Err(error) = fs::remove_file(entry.path())
        {
            tracing::debug!(path = %entry.path().display(), %error, "a leftover stays");
        }
    }
}

/// Makes the rename itself durable.
fn sync_folder(path: &Path) -> io::Result<()> {
    if cfg!(unix) {
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()?;
    }
    Ok(())
}
