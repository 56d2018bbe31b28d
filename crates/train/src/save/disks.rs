//! Which ranks write to the same disk. Recipes and environments say things about that which nobody checks, so it is
//! looked up: each rank makes a file with a name of its own in the output folder and looks for the others' files there.

use super::agree;
use crate::{Error, Result};
use ferrotune_checkpoint::random;
use ferrotune_dist::Comm;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

const DOING: &str = "use the output folder";

/// The disks that hold the output folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Disks {
    /// For each rank the first of those that see the same folder.
    leaders: Vec<usize>,
    rank: usize,
}

impl Disks {
    /// Finds out who shares the folder `dir`, which is made where it isn't there. All ranks call it.
    ///
    /// # Errors
    /// If a rank can't write there, or sees files of a rank that doesn't see its own.
    pub(super) fn find(comm: &dyn Comm, dir: &Path) -> Result<Self> {
        let rank = comm.rank();
        // Named as files are that wait to be renamed, so that what a kill leaves is swept.
        let name = |id: u64| dir.join(format!("disk.tmp-{id:016x}"));
        let id = random();
        let (mark, told) = match Mark::make(dir, name(id)) {
            Ok(mark) => (Some(mark), Ok(id.to_le_bytes().to_vec())),
            Err(error) => (None, Err(error)),
        };
        let told = agree::exchange(comm, DOING, told)?;
        let sees = |id: &Vec<u8>| {
            let id = id.as_slice().try_into().map(u64::from_le_bytes);
            id.is_ok_and(|id| name(id).exists())
        };
        // Its own, if nothing else.
        let leader = told.iter().position(sees).unwrap_or(rank);
        let leaders = agree::exchange(comm, DOING, Ok((leader as u32).to_le_bytes().to_vec()))?;
        drop(mark);
        // Whoever takes the folder next sweeps it; no mark may be left to stumble over.
        comm.barrier()?;
        let number = |bytes: &Vec<u8>| bytes.as_slice().try_into().map(u32::from_le_bytes).unwrap_or(u32::MAX) as usize;
        let leaders: Vec<usize> = leaders.iter().map(number).collect();
        let sound = |&(rank, &leader): &(usize, &usize)| leader <= rank && leaders[leader] == leader;
        match leaders.iter().enumerate().find(|pair| !sound(pair)) {
            Some((rank, &leader)) => Err(Error::Peer {
                rank,
                doing: DOING,
                reason: format!(
                    "{} there is the folder of rank {leader}, which doesn't see all that is in it; mount the same folder \
                     everywhere, or a folder of its own on each node",
                    dir.display()
                ),
            }),
            None => Ok(Self { leaders, rank }),
        }
    }

    /// The first rank of a rank's disk.
    pub(super) fn leader(&self, rank: usize) -> usize {
        self.leaders[rank]
    }

    /// Whether all ranks see the same folder.
    pub(super) fn is_shared(&self) -> bool {
        self.leaders.iter().all(|&leader| leader == 0)
    }

    /// Whether this rank is the first on its disk.
    pub(super) fn leads(&self) -> bool {
        self.leaders[self.rank] == self.rank
    }

    /// Ranks on this rank's disk.
    pub(super) fn here(&self) -> impl Iterator<Item = usize> {
        let leader = self.leaders[self.rank];
        self.leaders.iter().enumerate().filter(move |(_, other)| **other == leader).map(|(rank, _)| rank)
    }
}

/// A file that is removed with this value.
struct Mark(PathBuf);

impl Mark {
    fn make(dir: &Path, path: PathBuf) -> Result<Self> {
        fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        File::create(&path).map_err(Error::io("create", &path))?;
        Ok(Self(path))
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        // What stays is swept when the folder is taken.
        let _ = fs::remove_file(&self.0);
    }
}
