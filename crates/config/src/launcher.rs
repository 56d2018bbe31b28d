//! What the environment of a launcher means: how many processes a run has, and which this one is.
//!
//! The variables are those that users of LLaMA-Factory and torchrun type, and those that torchrun, `srun`, `mpirun` and
//! Kubernetes set. Which of them wins is decided here, once, in this order:
//!
//! 1. `RANK`, `WORLD_SIZE` and `LOCAL_RANK` together: torchrun, or an agent of this program, started this process.
//! 2. `RDZV_ID`: an elastic run, however it was started.
//! 3. `mpirun`, then `srun`, that started more than one process; what was typed beside it must agree.
//! 4. `NNODES`, `NODE_RANK`, `NPROC_PER_NODE`, `FORCE_TORCHRUN`: LLaMA-Factory's own launch; `WORLD_SIZE` and `RANK` of a
//!    pod stand in for the first two.

mod asked;
#[cfg(test)]
mod deploy_tests;
mod network;
mod reader;
pub(crate) mod slips;
mod slurm;
mod started;
#[cfg(test)]
mod tests;

pub use network::{Interfaces, JobToken};

use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::env;
use reader::Reader;

/// Most processes on one machine; more is a slip of the keyboard.
const MAX_PROCESSES: usize = 1 << 10;
/// Most machines.
const MAX_NODES: usize = 1 << 16;

/// What the environment asks of this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// Its part in the run.
    pub role: Role,
    /// Where the processes meet; `None` if all of them are on this machine and its agent chooses a free port.
    pub master: Option<Master>,
    /// Name of the run among others of the same master (`RDZV_ID`, torchrun's or Slurm's own).
    pub run_id: Option<String>,
    /// Network interfaces that may be used; `None` means any.
    pub interfaces: Option<Interfaces>,
    /// What every connection of the run proves to know; `None` leaves it to be derived from the recipe and the data.
    pub token: Option<JobToken>,
}

/// The part of a process in a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// It is the run.
    Alone,
    /// It starts and watches this machine's processes.
    Agent(Agent),
    /// It is one of several that train, started by somebody else or by hand.
    Worker(Worker),
}

/// A process that starts and watches others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    /// The machines of the run.
    pub nodes: Nodes,
    /// Processes on this machine.
    pub processes: usize,
    /// How often all of this machine's processes are started again after a failure.
    pub max_restarts: usize,
}

/// The machines of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nodes {
    /// So many, and no run without all of them.
    Fixed {
        /// How many.
        count: usize,
        /// This one, from 0; number 0 is the master.
        node: usize,
    },
    /// Any number within a range, which may change between restarts.
    Elastic {
        /// Fewest.
        min: usize,
        /// Most.
        max: usize,
        /// The number that this one would like (`NODE_RANK`).
        hint: Option<usize>,
    },
}

/// One of several processes that train.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Worker {
    /// This process among all, from 0.
    pub rank: usize,
    /// All processes.
    pub world: usize,
    /// This process on its machine, from 0.
    pub local_rank: usize,
    /// Processes on this machine.
    pub local_world: usize,
    /// This machine, from 0.
    pub node: usize,
    /// How often the run has been started again.
    pub restart: usize,
}

/// Where the processes of a run meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Master {
    /// Name or address of machine 0; IPv6 without brackets.
    pub host: String,
    /// Port there, above 0.
    pub port: u16,
}

impl Launch {
    /// Interprets the environment that `get` looks names up in; returns notes, too.
    ///
    /// # Errors
    /// All at once: values that aren't what they must be, numbers outside their world, launchers that contradict each
    /// other, and several machines without an address or a port to meet at.
    pub fn from_env(get: impl Fn(&str) -> Option<String>) -> Result<(Self, Vec<Diagnostic>), Diagnostics> {
        let mut reader = Reader::new(&get);
        let place = place(&mut reader);
        let interfaces = network::interfaces(&mut reader);
        slips::note(&mut reader);
        let token = reader.text(env::FERROTUNE_JOB_TOKEN).map(JobToken::new);
        let notes = reader.finish()?;
        let Place { role, master, run_id } = place;
        Ok((Self { role, master, run_id, interfaces, token }, notes))
    }
}

impl Worker {
    /// The variables, torchrun's, that make a process this worker; [`Launch::from_env`] reads them back.
    #[must_use]
    pub fn variables(&self, master: &Master) -> Vec<(&'static str, String)> {
        vec![
            (env::RANK, self.rank.to_string()),
            (env::WORLD_SIZE, self.world.to_string()),
            (env::LOCAL_RANK, self.local_rank.to_string()),
            (env::LOCAL_WORLD_SIZE, self.local_world.to_string()),
            (env::GROUP_RANK, self.node.to_string()),
            (env::NODE_RANK, self.node.to_string()),
            (env::TORCHELASTIC_RESTART_COUNT, self.restart.to_string()),
            (env::MASTER_ADDR, master.host.clone()),
            (env::MASTER_PORT, master.port.to_string()),
        ]
    }
}

/// A role, and what belongs to it.
struct Place {
    role: Role,
    master: Option<Master>,
    run_id: Option<String>,
}

fn place(r: &mut Reader<'_>) -> Place {
    if let Some(started) = started::by_torchrun(r) {
        return started.into_worker(r);
    }
    if let Some(id) = r.either(env::RDZV_ID, env::PET_RDZV_ID) {
        return asked::elastic(r, id);
    }
    if let Some(started) = started::by_mpi(r).or_else(|| slurm::started(r)) {
        return started.into_place(r);
    }
    asked::fixed(r)
}
