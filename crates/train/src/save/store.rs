//! Writing: a snapshot in two steps, so that the run goes on between them.

use super::agree::{exchange, settle, share};
use super::disks::Disks;
use super::model::{Gathered, ModelFiles, copied};
use super::parts::{About, file_name, layout};
use super::{RUN, RunState, Saved};
use crate::engine::{Engine, Piece};
use crate::report::state::TRAINER_STATE;
use crate::{Error, Result};
use ferrotune_checkpoint::{Draft, Dtype, FolderWriter, OutTensor, SnapshotWriter, random};
use ferrotune_dist::Comm;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const DOING: &str = "write a checkpoint";
const DOING_LOOK: &str = "look into the output folder";
/// Waiting for a disk that the user should hear of.
const SLOW_DISK: Duration = Duration::from_secs(30);

/// The checkpoints of a run, as all ranks see them.
pub struct Snapshots {
    pub(super) comm: Rc<dyn Comm>,
    pub(super) disks: Disks,
    pub(super) dir: PathBuf,
    /// The first rank of each disk holds its folder.
    pub(super) writer: Option<SnapshotWriter>,
    /// Every disk gets the model's files, not the first alone.
    everywhere: bool,
}

/// A checkpoint that threads are writing.
pub struct Pending {
    draft: Draft,
    /// Steps done when it was taken.
    pub step: u64,
    thread: JoinHandle<Result<Vec<(String, u64)>>>,
}

impl Pending {
    /// Whether this rank has written its files.
    pub fn is_written(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits until this rank has written its files, but not longer than `patience`; whether it has.
    fn wait(&self, patience: Duration) -> bool {
        let (start, mut pause) = (Instant::now(), Duration::from_millis(1));
        while !self.is_written() && start.elapsed() < patience {
            std::thread::sleep(pause);
            pause = (2 * pause).min(Duration::from_millis(50));
        }
        self.is_written()
    }
}

/// What a rank writes: copies.
struct Copies {
    about: About,
    pieces: Vec<(String, Vec<u8>)>,
    /// The model's files and their tensors, on the first rank of a disk that gets them.
    model: Option<(ModelFiles, Vec<Vec<u8>>)>,
    /// Other files: names and contents.
    files: Vec<(&'static str, Vec<u8>)>,
}

impl Snapshots {
    /// Takes the run's folder, on every disk. All ranks call it. `everywhere`: each disk gets the model's files.
    ///
    /// # Errors
    /// If a folder can't be made or written, or another run holds it.
    pub fn open(comm: Rc<dyn Comm>, dir: &Path, everywhere: bool) -> Result<Self> {
        let disks = Disks::find(&*comm, dir)?;
        let writer = disks.leads().then(|| SnapshotWriter::open(dir)).transpose().map_err(Error::from);
        let (writer, opened) = match writer {
            Ok(writer) => (writer, Ok(())),
            Err(error) => (None, Err(error)),
        };
        settle(&*comm, "use the output folder", opened)?;
        Ok(Self { comm, disks, dir: dir.to_path_buf(), writer, everywhere })
    }

    /// The run's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the first rank finds, at every rank. All ranks call it.
    ///
    /// # Errors
    /// Those of `look`, there in full, elsewhere as that rank's.
    pub fn first_tells<T: Serialize + DeserializeOwned>(&self, look: impl FnOnce() -> Result<T>) -> Result<T> {
        // In a list of one, for nothing found isn't nothing told.
        let mine = (self.comm.rank() == 0).then(|| look().map(|found| (found,))).transpose();
        let told = exchange(&*self.comm, DOING_LOOK, mine.map(|found| serde_json::to_vec(&found).unwrap_or_default()))?;
        let what = "word of the first rank";
        let bytes = told.first().map(Vec::as_slice).unwrap_or_default();
        let found: Option<(T,)> =
            serde_json::from_slice(bytes).map_err(|source| Error::Json { path: self.dir.clone(), what, source })?;
        let silent = || Error::Peer { rank: 0, doing: DOING_LOOK, reason: "it told nothing".into() };
        found.map(|(found,)| found).ok_or_else(silent)
    }

    /// Whether a rank sees this folder. All ranks call it.
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn is_seen(&self, folder: &Path) -> Result<bool> {
        let told = exchange(&*self.comm, DOING_LOOK, Ok(vec![u8::from(folder.is_dir())]))?;
        Ok(told.iter().any(|seen| seen == &[1]))
    }

    /// Whether this rank speaks for the run.
    pub fn is_first(&self) -> bool {
        self.comm.rank() == 0
    }

    /// Whether this rank writes what there is once on a disk.
    pub fn leads(&self) -> bool {
        self.disks.leads()
    }

    /// Whether every rank can read the model's files of a checkpoint.
    pub fn model_is_everywhere(&self) -> bool {
        self.everywhere || self.disks.is_shared()
    }

    /// Whether this rank writes the model's files.
    fn writes_model(&self) -> bool {
        self.comm.rank() == 0 || (self.everywhere && self.leads())
    }

    /// Copies what `checkpoint-<step>` is made of and begins to write it. All ranks call it. `run` is `None` for a
    /// checkpoint that can't be gone on from.
    ///
    /// # Errors
    /// If a rank is lost or has no thread to give.
    pub fn begin(
        &self,
        engine: &Engine,
        files: ModelFiles,
        logs: Vec<u8>,
        step: u64,
        run: Option<&RunState>,
    ) -> Result<Pending> {
        let owned = if run.is_some() { engine.owned() } else { Vec::new() };
        let mine = [&random().to_le_bytes()[..], &[u8::from(!owned.is_empty())]].concat();
        let told = exchange(&*self.comm, DOING, Ok(mine))?;
        let first = told.first().and_then(|bytes| bytes.first_chunk::<8>());
        let id = first.map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let (save, world) = (format!("{id:016x}"), self.comm.world());
        let parts: Vec<usize> = (0..world).filter(|&rank| told[rank].last() == Some(&1)).collect();
        let (mut tensors, mut source) = (Vec::new(), Gathered::new(engine));
        for number in 0..files.count() {
            tensors.extend(self.gather(&mut source, &files, number)?.filter(|_| self.writes_model()));
        }
        let about = About { save: save.clone(), rank: self.comm.rank(), world, shapes: BTreeMap::new() };
        let (about, pieces) = layout(about, owned);
        let copy = |(key, piece): (String, Piece)| {
            let mut bytes = Vec::new();
            piece.tensor.with_bytes(|source| bytes = copied(source));
            (key, bytes)
        };
        let mut others = Vec::new();
        if self.leads() {
            if let Some(run) = run {
                let saved = Saved { save, world, parts, run: run.clone() };
                let json = serde_json::to_vec_pretty(&saved);
                others.push((
                    RUN,
                    json.map_err(|source| Error::Json { path: RUN.into(), what: "state of a run", source })?,
                ));
            }
            others.push((TRAINER_STATE, logs));
        }
        let copies = Copies {
            about,
            pieces: pieces.into_iter().map(copy).collect(),
            model: self.writes_model().then_some((files, tensors)),
            files: others,
        };
        let draft = Draft::new(&self.dir, step, id);
        let target = draft.clone();
        let thread = std::thread::Builder::new().name("checkpoint".into()).spawn(move || copies.write(&target));
        Ok(Pending { draft, step, thread: thread.map_err(Error::io("start the thread that writes", &self.dir))? })
    }

    /// One of the model's tensors, on the ranks that write it. All ranks call it.
    fn gather(&self, source: &mut Gathered<'_>, files: &ModelFiles, number: usize) -> Result<Option<Vec<u8>>> {
        let tensor = files.copy(source, number)?;
        if !self.everywhere || self.disks.is_shared() {
            return Ok(tensor);
        }
        share(&*self.comm, DOING, 0, tensor.map(Ok)).map(Some)
    }

    /// Waits until all ranks have written their files and gives the checkpoint its name; returns its path. All ranks
    /// call it. `slow` hears of a disk of this rank's that takes very long.
    ///
    /// # Errors
    /// If a rank couldn't write; the error names it, and all checkpoints are as before.
    pub fn finish(&self, pending: Pending, slow: impl FnOnce(String)) -> Result<PathBuf> {
        if !pending.wait(SLOW_DISK) {
            let (step, seconds, dir) = (pending.step, SLOW_DISK.as_secs(), self.dir.display());
            slow(format!(
                "rank {}: the disk of {dir} hasn't taken checkpoint-{step} in {seconds} s of waiting; the run goes on when it \
                 has, or ends if it refuses",
                self.comm.rank()
            ));
        }
        let Pending { draft, thread, .. } = pending;
        let panicked =
            |_| Err(Error::Peer { rank: self.comm.rank(), doing: DOING, reason: "its thread panicked".into() });
        let written = thread.join().unwrap_or_else(panicked);
        let made = self.publish(&draft, written);
        if made.is_err() && self.leads() {
            draft.discard();
        }
        made
    }

    fn publish(&self, draft: &Draft, written: Result<Vec<(String, u64)>>) -> Result<PathBuf> {
        let told = exchange(&*self.comm, DOING, written.map(|files| serde_json::to_vec(&files).unwrap_or_default()))?;
        let published = self.writer.as_ref().map_or(Ok(()), |writer| {
            let here = self.disks.here().filter_map(|rank| told.get(rank));
            let files: Vec<(String, u64)> =
                here.flat_map(|bytes| serde_json::from_slice::<Vec<_>>(bytes).unwrap_or_default()).collect();
            writer.publish(draft, &files).map(drop)
        });
        settle(&*self.comm, DOING, published.map_err(Error::from))?;
        Ok(draft.path().to_path_buf())
    }

    /// Removes the oldest checkpoints until `keep` are left, sparing those of the steps in `protect`. All ranks call it.
    ///
    /// # Errors
    /// If one can't be removed.
    pub fn prune(&self, keep: usize, protect: &[u64]) -> Result<()> {
        let pruned = self.writer.as_ref().map_or(Ok(()), |writer| writer.prune(keep, protect).map(drop));
        settle(&*self.comm, "remove a checkpoint", pruned.map_err(Error::from))
    }

    /// Removes the checkpoints of these steps. All ranks call it.
    ///
    /// # Errors
    /// If one can't be removed.
    pub fn remove_steps(&self, steps: &[u64]) -> Result<()> {
        let removed = self.writer.as_ref().map_or(Ok(()), |writer| writer.remove_steps(steps));
        settle(&*self.comm, "remove a checkpoint", removed.map_err(Error::from))
    }

    /// Writes the model's files into the run's folder, a tensor at a time. All ranks call it.
    ///
    /// # Errors
    /// If a file can't be written, or a rank is lost.
    pub fn write_model(&self, engine: &Engine, files: &ModelFiles) -> Result<()> {
        let (mut numbers, mut lost) = (0..files.count(), None);
        let mut source = Gathered::new(engine);
        let mut next = || -> Option<Vec<u8>> {
            let number = numbers.next()?;
            match self.gather(&mut source, files, number) {
                Ok(bytes) => bytes.or_else(|| Some(Vec::new())),
                Err(error) => {
                    lost.get_or_insert(error);
                    None
                }
            }
        };
        let written = if self.writes_model() {
            let folder = FolderWriter::new(&self.dir);
            folder.and_then(|folder| files.write(&folder, &mut next)).map_err(Error::from)
        } else {
            Ok(())
        };
        // The others gather all of them, whatever became of the files here.
        while next().is_some() {}
        match lost {
            Some(error) => Err(error),
            None => settle(&*self.comm, "write the model", written),
        }
    }
}

impl Copies {
    /// Writes all into the draft's folder; returns names and sizes of what must be there.
    fn write(self, draft: &Draft) -> Result<Vec<(String, u64)>> {
        let folder = draft.folder()?;
        let mut written = Vec::new();
        if let Some((files, tensors)) = self.model {
            let mut tensors = tensors.into_iter();
            files.write(&folder, || tensors.next())?;
        }
        for (name, bytes) in &self.files {
            folder.bytes(name, bytes)?;
            written.push(((*name).to_owned(), bytes.len() as u64));
        }
        if !self.pieces.is_empty() {
            let name = file_name(self.about.rank, self.about.world);
            let (key, value) = self.about.metadata();
            let tensors = self
                .pieces
                .iter()
                .map(|(key, bytes)| OutTensor::bytes(key.clone(), [bytes.len() / 4], Dtype::F32, bytes));
            folder.tensors_with(&name, (key, &value), tensors.collect())?;
            let path = folder.path().join(&name);
            let length = std::fs::metadata(&path).map_err(Error::io("read", &path))?.len();
            written.push((name, length));
        }
        Ok(written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn a_disk_that_takes_nothing_is_waited_for_with_patience() {
        let (go, gone) = channel::<()>();
        let thread = std::thread::spawn(move || {
            gone.recv().ok();
            Ok(Vec::new())
        });
        let pending = Pending { draft: Draft::new(Path::new("nowhere"), 4, 1), step: 4, thread };
        assert!(!pending.wait(Duration::from_millis(20)));
        drop(go);
        assert!(pending.wait(Duration::from_secs(60)));
    }
}
