//! Reading: which checkpoint a run goes on from, and every rank's part of it, whoever wrote it.
//!
//! What is there is told by the first rank of each disk, so all ranks come to one answer. A disk that lacks files of the
//! chosen checkpoint (a node that is new, or has ranks that another had before) is sent them.

use super::agree::{exchange, settle, share};
use super::parts::{Index, Part, file_name, index, meet};
use super::store::Snapshots;
use super::{MAX_WORLD, RUN, RunState, Saved};
use crate::engine::{Engine, Piece};
use crate::plan::Candidate;
use crate::report::TrainerState;
use crate::report::state::TRAINER_STATE;
use crate::{Error, Result};
use ferrotune_checkpoint::{DONE, Draft, FolderWriter, FoundSnapshot, Snapshot, SnapshotState, list_snapshots, random};
use ferrotune_config::plan::{Plan, Resume};
use ferrotune_dist::Comm;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const DOING: &str = "read a checkpoint";

/// A checkpoint that all ranks can go on from.
#[derive(Debug, Clone)]
pub struct Found {
    /// Steps done.
    pub step: u64,
    /// Where it is.
    pub path: PathBuf,
    save: String,
    world: usize,
    /// Ranks that hold a part of the state.
    parts: Vec<usize>,
    /// For each rank the files that it sees there.
    seen: Vec<Vec<String>>,
}

/// What a disk has of a checkpoint.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Listed {
    step: u64,
    save: String,
    world: usize,
    parts: Vec<usize>,
    files: Vec<String>,
}

impl Found {
    /// Files that a disk needs to go on from it.
    fn needed(&self) -> Vec<String> {
        let parts = self.parts.iter().map(|&rank| file_name(rank, self.world));
        [RUN, TRAINER_STATE].map(str::to_owned).into_iter().chain(parts).collect()
    }

    /// The first rank that sees a file.
    fn holder(&self, file: &str) -> Option<usize> {
        self.seen.iter().position(|files| files.iter().any(|seen| seen == file))
    }

    /// Whether a rank doesn't see all that it needs.
    fn is_lacked_by(&self, rank: usize) -> bool {
        !self.needed().iter().all(|file| self.seen[rank].contains(file))
    }
}

impl Snapshots {
    /// The newest checkpoint in the run's folder that is whole on all disks together. All ranks call it.
    ///
    /// # Errors
    /// If the newest one has no state to go on from, a folder can't be read, or a rank is lost.
    pub fn newest(&self) -> Result<Option<Found>> {
        let listed = if self.leads() { self.listed() } else { Ok(Vec::new()) };
        let told = self.tell(listed)?;
        let mut saves: BTreeSet<(u64, String, usize, Vec<usize>)> = BTreeSet::new();
        let known = |listed: &Listed| (listed.step, listed.save.clone(), listed.world, listed.parts.clone());
        saves.extend(told.iter().flatten().map(known));
        for (step, save, world, parts) in saves.into_iter().rev() {
            if world == 0 {
                return Err(without_state(&self.dir.join(format!("checkpoint-{step}"))));
            }
            // What the first rank of a disk sees there, all its ranks see.
            let sees = |rank: usize| {
                let mut list = told[self.disks.leader(rank)].iter();
                let found = list.find(|listed| listed.step == step && listed.save == save);
                found.map(|listed| listed.files.clone()).unwrap_or_default()
            };
            let seen = (0..told.len()).map(sees).collect();
            let path = self.dir.join(format!("checkpoint-{step}"));
            let found = Found { step, path, save, world, parts, seen };
            if found.needed().iter().all(|file| found.holder(file).is_some()) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The checkpoint in this folder. Every rank looks for itself: the folder may lie on other disks than the run's, and
    /// nodes may each have a part of it. All ranks call it.
    ///
    /// # Errors
    /// If it isn't a whole checkpoint that a run can go on from.
    pub fn at(&self, path: &Path) -> Result<Found> {
        let here = || -> Result<Listed> { described(Snapshot::open(path)?.path()) };
        // Where it isn't, it may be on another node.
        let mine = if path.is_dir() { here().map(Some) } else { Ok(None) };
        let told = self.tell(mine.map(|listed| listed.into_iter().collect()))?;
        let Some(first) = told.iter().flatten().next() else {
            return Err(here().err().unwrap_or_else(|| without_state(path)));
        };
        let sees = |list: &Vec<Listed>| {
            let same = list.iter().find(|listed| listed.save == first.save);
            same.map(|listed| listed.files.clone()).unwrap_or_default()
        };
        let Listed { step, save, world, parts, .. } = first.clone();
        let found = Found { step, path: path.to_path_buf(), save, world, parts, seen: told.iter().map(sees).collect() };
        match found.needed().into_iter().find(|file| found.holder(file).is_none()) {
            None => Ok(found),
            Some(file) => {
                let reason = format!("{file} is missing, and no rank has it");
                Err(Error::CannotResume { path: path.to_path_buf(), reason })
            }
        }
    }

    fn tell(&self, listed: Result<Vec<Listed>>) -> Result<Vec<Vec<Listed>>> {
        let told = exchange(&*self.comm, DOING, listed.map(|list| serde_json::to_vec(&list).unwrap_or_default()))?;
        Ok(told.iter().map(|bytes| serde_json::from_slice(bytes).unwrap_or_default()).collect())
    }

    /// What this disk has.
    fn listed(&self) -> Result<Vec<Listed>> {
        let whole = list_snapshots(&self.dir)?.into_iter().filter(|found| found.state == SnapshotState::Whole);
        // One without a state counts: what it lacks is told when it is the newest.
        let bare = |step| Listed { step, save: String::new(), world: 0, parts: Vec::new(), files: Vec::new() };
        whole
            .map(|found| if found.path.join(RUN).exists() { described(&found.path) } else { Ok(bare(found.step)) })
            .collect()
    }

    /// The logs of a checkpoint. All ranks call it.
    ///
    /// # Errors
    /// If they can't be read.
    pub fn logs(&self, found: &Found) -> Result<TrainerState> {
        let holder = found.holder(TRAINER_STATE).ok_or_else(|| without_state(&found.path))?;
        let read = || std::fs::read(found.path.join(TRAINER_STATE)).map_err(Error::io("read", &found.path));
        let mine = (self.comm.rank() == holder).then(read);
        let bytes = share(&*self.comm, DOING, holder, mine)?;
        TrainerState::parse(&bytes, &found.path.join(TRAINER_STATE))
    }

    /// Brings what a disk lacks there, reads every rank's part, and returns the run's state. All ranks call it.
    ///
    /// # Errors
    /// If the checkpoint is of a run that trained other parameters, or can't be read.
    pub fn restore(&self, engine: &Engine, found: &Found) -> Result<RunState> {
        self.complete(found)?;
        let lacked = found.is_lacked_by(self.comm.rank());
        let path = if lacked { self.copy_of(found) } else { found.path.clone() };
        let read = read(engine, found, &path);
        let (run, read) = match read {
            Ok(run) => (Some(run), Ok(())),
            Err(error) => (None, Err(error)),
        };
        settle(&*self.comm, DOING, read)?;
        engine.took_state()?;
        run.ok_or_else(|| without_state(&found.path))
    }

    /// Where a disk that lacked something of a checkpoint has it.
    fn copy_of(&self, found: &Found) -> PathBuf {
        self.dir.join(format!("checkpoint-{}", found.step))
    }

    /// Sends files to the disks with ranks that lack them.
    fn complete(&self, found: &Found) -> Result<()> {
        if !(0..self.comm.world()).any(|rank| found.is_lacked_by(rank)) {
            return Ok(());
        }
        let receives = self.leads() && self.disks.here().any(|rank| found.is_lacked_by(rank));
        let draft = Draft::new(&self.dir, found.step, random());
        let mut kept = if receives { keep_others(found, &draft) } else { Ok(()) };
        for file in found.needed() {
            let Some(from) = found.holder(&file) else { return Err(without_state(&found.path)) };
            let path = found.path.join(&file);
            let mine = (self.comm.rank() == from).then(|| std::fs::read(&path).map_err(Error::io("read", &path)));
            let bytes = share(&*self.comm, DOING, from, mine)?;
            if receives && kept.is_ok() {
                let write = |folder: FolderWriter| folder.bytes(&file, &bytes);
                kept = draft.folder().and_then(write).map_err(Error::from);
            }
        }
        if let (true, Ok(()), Some(writer)) = (receives, &kept, &self.writer) {
            kept = writer.publish(&draft, &[]).map(drop).map_err(Error::from);
        }
        if kept.is_err() {
            draft.discard();
        }
        settle(&*self.comm, "keep a checkpoint of the others", kept)
    }
}

/// How the run was split that goes on as `plan` says, as far as a rank that `looks` for it finds out. Nothing is read for good
/// yet: what is wrong with a checkpoint is told when it is. All ranks call it.
///
/// # Errors
/// If a rank is lost.
pub fn split_before(comm: &dyn Comm, plan: &Plan, looks: bool) -> Result<Option<Candidate>> {
    let newest = || {
        let whole = |found: &FoundSnapshot| found.state == SnapshotState::Whole && found.path.join(RUN).exists();
        let found = list_snapshots(&plan.output.dir).unwrap_or_default();
        found.into_iter().rfind(whole).map(|found| found.path)
    };
    let path = match &plan.output.resume {
        Resume::Auto if looks => newest(),
        Resume::From(path) if looks => Some(path.clone()),
        Resume::Auto | Resume::From(_) | Resume::Never => None,
    };
    let mine = path.and_then(|path| saved(&path).ok()).map(|saved| (saved.run.step, saved.run.split));
    let told = comm.exchange(&serde_json::to_vec(&mine).unwrap_or_default())?;
    let all = told.iter().filter_map(|bytes| serde_json::from_slice::<Option<(u64, Option<Candidate>)>>(bytes).ok()?);
    // Of equals the first rank's: the same everywhere.
    let newest = all.reduce(|a, b| if b.0 > a.0 { b } else { a });
    Ok(newest.and_then(|(_, split)| split))
}

/// Takes the model's files of a checkpoint, where they are on this disk, into the folder that takes its place.
fn keep_others(found: &Found, draft: &Draft) -> Result<()> {
    let folder = draft.folder()?;
    let needed = found.needed();
    let entries = match std::fs::read_dir(&found.path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io("read", &found.path)(error)),
    };
    let saved = saved(&found.path).is_ok_and(|saved| saved.save == found.save);
    for entry in entries.flatten().filter(|_| saved) {
        let (name, path) = (entry.file_name(), entry.path());
        let of_state = name == DONE || needed.iter().any(|file| name == file.as_str());
        if !of_state && path.is_file() {
            let to = folder.path().join(&name);
            std::fs::copy(&path, &to).map_err(Error::io("write", &to))?;
        }
    }
    Ok(())
}

fn without_state(path: &Path) -> Error {
    Error::CannotResume {
        path: path.to_path_buf(),
        reason: "it was saved with save_only_model and has no optimiser state".into(),
    }
}

fn saved(path: &Path) -> Result<Saved> {
    let file = path.join(RUN);
    if !file.exists() {
        return Err(without_state(path));
    }
    let bytes = std::fs::read(&file).map_err(Error::io("read", &file))?;
    let saved: Saved = serde_json::from_slice(&bytes).map_err(|source| Error::Json {
        path: file.clone(),
        what: "state of a run",
        source,
    })?;
    if saved.world == 0 || saved.world > MAX_WORLD || saved.parts.iter().any(|&rank| rank >= saved.world) {
        let reason = format!("it says that {} ranks wrote it", saved.world);
        return Err(Error::CannotResume { path: path.to_path_buf(), reason });
    }
    Ok(saved)
}

/// What a checkpoint's folder has.
fn described(path: &Path) -> Result<Listed> {
    let Saved { save, world, parts, .. } = saved(path)?;
    let step = path.file_name().and_then(|name| name.to_str()?.strip_prefix("checkpoint-")?.parse().ok()).unwrap_or(0);
    let all =
        [RUN, TRAINER_STATE].map(str::to_owned).into_iter().chain(parts.iter().map(|&rank| file_name(rank, world)));
    let files = all.filter(|file| path.join(file).is_file()).collect();
    Ok(Listed { step, save, world, parts, files })
}

/// Reads what this rank wants of a checkpoint that lies at `path`.
fn read(engine: &Engine, found: &Found, path: &Path) -> Result<RunState> {
    let Found { save, world, parts, .. } = found;
    let run = saved(path)?.run;
    let open = |&rank: &usize| Part::open(path, save, rank, *world);
    let parts: Vec<Part> = parts.iter().map(open).collect::<ferrotune_checkpoint::Result<_>>()?;
    let misfit = |reason: String| Error::CannotResume {
        path: path.to_path_buf(),
        reason: format!("{reason}; take the recipe it was made with, or overwrite_output_dir: true to begin anew"),
    };
    let index = index(parts.iter().map(Part::stretches)).map_err(misfit)?;
    check(engine, &index).map_err(misfit)?;
    for piece in engine.wanted() {
        fill(&parts, &index, &piece)?;
    }
    Ok(run)
}

/// Whether the state is that of the parameters that this run trains.
fn check(engine: &Engine, index: &Index) -> std::result::Result<(), String> {
    let trained: Vec<_> = engine.parameters().iter().filter(|p| p.param.trainable).collect();
    let (ours, theirs) = (3 * trained.len(), index.len());
    if ours != theirs {
        return Err(format!("it holds {theirs} tensors of a run's state, this run has {ours}"));
    }
    for parameter in trained {
        for what in ["weight", "m", "v"] {
            let (name, here) = (format!("{what}.{}", parameter.param.name), parameter.param.shape.dims());
            match index.get(&name) {
                Some(there) if there.shape == here => {}
                Some(there) => return Err(format!("{name} has shape {:?} there and {here:?} here", there.shape)),
                None => return Err(format!("it has no {name}, which this run trains")),
            }
        }
    }
    Ok(())
}

/// Reads one piece from the parts that hold its elements.
fn fill(parts: &[Part], index: &Index, piece: &Piece) -> Result<()> {
    let stretches = index.get(&piece.name).map(|whole| &whole.stretches[..]).unwrap_or_default();
    let mut failed = None;
    piece.tensor.with_bytes_mut(|bytes| {
        for (range, part, number) in stretches {
            let Some(both) = meet(range, &piece.range) else { continue };
            let part = &parts[*part];
            let to = &mut bytes[4 * (both.start - piece.range.start)..4 * (both.end - piece.range.start)];
            let stretch = &part.stretches()[*number];
            failed = failed.take().or(part.read(stretch, both, to).err());
        }
    });
    failed.map_or(Ok(()), |error| Err(error.into()))
}
