//! Reading: which checkpoint a run goes on from, and every rank's part of it, whoever wrote it.
//!
//! What is there is told by the first rank of each disk, so all ranks come to one answer. A disk that lacks files of the
//! chosen checkpoint (a node that is new, or has ranks that another had before) is sent them.

use super::agree::{exchange, settle, share};
use super::parts::{Index, Part, file_name, index, meet};
use super::store::Snapshots;
use super::{MAX_WORLD, RUN, RunState, Saved};
use crate::engine::{Engine, Piece};
use crate::report::TrainerState;
use crate::report::state::TRAINER_STATE;
use crate::{Error, Result};
use ferrotune_checkpoint::{Draft, FolderWriter, Snapshot, SnapshotState, list_snapshots, random};
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
    /// Ranks, first of their disks, and the files that are there.
    holders: Vec<(usize, Vec<String>)>,
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
            let holders = told.iter().enumerate().filter_map(|(rank, list)| {
                let found = list.iter().find(|listed| listed.step == step && listed.save == save);
                found.map(|listed| (rank, listed.files.clone()))
            });
            let holders = holders.collect();
            let path = self.dir.join(format!("checkpoint-{step}"));
            let found = Found { step, path, save, world, parts, holders };
            let there = |file: &String| found.holders.iter().any(|(_, files)| files.contains(file));
            if found.needed().iter().all(there) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The checkpoint in this folder, which all ranks see. All ranks call it.
    ///
    /// # Errors
    /// If it isn't a whole checkpoint that a run can go on from.
    pub fn at(&self, path: &Path) -> Result<Found> {
        let mine = Snapshot::open(path).map_err(Error::from).and_then(|snapshot| described(snapshot.path()));
        let told = self.tell(mine.map(|listed| vec![listed]))?;
        let first = told.into_iter().flatten().next();
        let Some(Listed { step, save, world, parts, files }) = first else { return Err(without_state(path)) };
        let holders = (0..self.comm.world()).map(|rank| (rank, files.clone())).collect();
        Ok(Found { step, path: path.to_path_buf(), save, world, parts, holders })
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
        let (holder, _) = found.holders.first().ok_or_else(|| without_state(&found.path))?;
        let read = || std::fs::read(found.path.join(TRAINER_STATE)).map_err(Error::io("read", &found.path));
        let mine = (self.comm.rank() == *holder).then(read);
        let bytes = share(&*self.comm, DOING, *holder, mine)?;
        TrainerState::parse(&bytes, &found.path.join(TRAINER_STATE))
    }

    /// Brings what a disk lacks there, reads every rank's part, and returns the run's state. All ranks call it.
    ///
    /// # Errors
    /// If the checkpoint is of a run that trained other parameters, or can't be read.
    pub fn restore(&self, engine: &Engine, found: &Found) -> Result<RunState> {
        self.complete(found)?;
        let read = read(engine, found);
        let (run, read) = match read {
            Ok(run) => (Some(run), Ok(())),
            Err(error) => (None, Err(error)),
        };
        settle(&*self.comm, DOING, read)?;
        engine.took_state()?;
        run.ok_or_else(|| without_state(&found.path))
    }

    /// Sends files to the disks that lack them.
    fn complete(&self, found: &Found) -> Result<()> {
        let leaders = self.disks.leaders();
        let has = |rank: usize, file: &String| {
            found.holders.iter().any(|(holder, files)| *holder == rank && files.contains(file))
        };
        let lacks = |rank: &usize| found.needed().iter().any(|file| !has(*rank, file));
        if !leaders.iter().any(lacks) {
            return Ok(());
        }
        let receives = self.leads() && lacks(&self.comm.rank());
        let draft = Draft::new(&self.dir, found.step, random());
        let mut kept = Ok(());
        for file in found.needed() {
            let Some(from) = leaders.iter().copied().find(|rank| has(*rank, &file)) else {
                return Err(without_state(&found.path));
            };
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

/// Reads what this rank wants.
fn read(engine: &Engine, found: &Found) -> Result<RunState> {
    let Found { path, save, world, parts, .. } = found;
    let run = saved(path)?.run;
    let open = |&rank: &usize| Part::open(path, save, rank, *world);
    let parts: Vec<Part> = parts.iter().map(open).collect::<ferrotune_checkpoint::Result<_>>()?;
    let misfit = |reason: String| Error::CannotResume {
        path: path.clone(),
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
