//! Processes that a launcher has started and numbered: torchrun's, MPI's, and what all of them have in common.

use super::reader::{Fallback, Reader, shown};
use super::{MAX_NODES, MAX_PROCESSES, Place, Role, Worker, asked};
use crate::env;

/// What a launcher says about this process.
#[derive(Debug)]
pub(super) struct Started {
    /// The launcher, for messages.
    pub by: &'static str,
    /// Variables of the rank and of the world.
    pub names: (&'static str, &'static str),
    pub rank: usize,
    pub world: usize,
    /// This process on its machine, and how many there are; `None` if the launcher doesn't say.
    pub local: Option<(usize, usize)>,
    /// This machine, and how many there are, as far as the launcher says.
    pub node: Option<usize>,
    pub nodes: Option<usize>,
    /// Where the processes meet if it isn't typed.
    pub meeting: Fallback,
    pub run_id: Option<String>,
    pub restart: usize,
}

/// All processes that a launcher may number.
const MAX_WORLD: usize = MAX_NODES * MAX_PROCESSES;

/// torchrun's worker, or this program's own agent's.
pub(super) fn by_torchrun(r: &mut Reader<'_>) -> Option<Started> {
    if ![env::RANK, env::WORLD_SIZE, env::LOCAL_RANK].into_iter().all(|name| r.is_set(name)) {
        return None;
    }
    let world = r.count(env::WORLD_SIZE, MAX_WORLD).unwrap_or(1);
    let rank = r.number(env::RANK).unwrap_or(0);
    let local_rank = r.number(env::LOCAL_RANK).unwrap_or(0);
    let local_world = r.count(env::LOCAL_WORLD_SIZE, MAX_PROCESSES);
    if local_world.is_some_and(|local| local_rank >= local) {
        let message = format!("is {local_rank}, but LOCAL_WORLD_SIZE is {}", local_world.unwrap_or(0));
        r.error(env::LOCAL_RANK, &message, "processes of a machine count from 0");
    }
    Some(Started {
        by: "torchrun",
        names: (env::RANK, env::WORLD_SIZE),
        rank,
        world,
        local: Some((local_rank, local_world.unwrap_or(local_rank + 1))),
        node: r.number(env::GROUP_RANK),
        nodes: None,
        meeting: Fallback::default(),
        run_id: r.text(env::TORCHELASTIC_RUN_ID).filter(|id| id != "none"),
        restart: r.number(env::TORCHELASTIC_RESTART_COUNT).unwrap_or(0),
    })
}

/// One of several processes of `mpirun`: Open MPI's, or those of MPICH and Intel MPI.
pub(super) fn by_mpi(r: &mut Reader<'_>) -> Option<Started> {
    let open = (env::OMPI_COMM_WORLD_RANK, env::OMPI_COMM_WORLD_SIZE);
    let hydra = (env::PMI_RANK, env::PMI_SIZE);
    let (names, local) = if r.is_set(open.0) && r.is_set(open.1) {
        (open, (env::OMPI_COMM_WORLD_LOCAL_RANK, env::OMPI_COMM_WORLD_LOCAL_SIZE))
    } else if r.is_set(hydra.0) && r.is_set(hydra.1) {
        (hydra, (env::MPI_LOCALRANKID, env::MPI_LOCALNRANKS))
    } else {
        return None;
    };
    // `srun --mpi=pmi2` sets PMI's variables too, and says more itself.
    if names == hydra && !r.is_set(local.0) && super::slurm::is_step(r) {
        return None;
    }
    let world = r.count(names.1, MAX_WORLD).filter(|world| *world > 1)?;
    let rank = r.number(names.0)?;
    let local = r.number(local.0).zip(r.count(local.1, MAX_PROCESSES));
    let alone = local.is_some_and(|(_, here)| here == world);
    let id = r.text(env::PMIX_NAMESPACE);
    let host = if alone { Some("127.0.0.1".to_owned()) } else { super::slurm::first_host(r) };
    let port =
        id.as_deref().map(|id| port_of(id.bytes().fold(0, |sum: u64, byte| sum.wrapping_mul(31) + u64::from(byte))));
    Some(Started {
        by: "mpirun",
        names,
        rank,
        world,
        local,
        node: None,
        nodes: alone.then_some(1),
        meeting: Fallback { host, port },
        run_id: id.map(|id| shown(&id)),
        restart: 0,
    })
}

/// A port that all processes of a job find by its number: above the well-known ones, below those that systems hand out.
pub(super) fn port_of(job: u64) -> u16 {
    20_000 + u16::try_from(job % 10_000).expect("a remainder of 10,000 fits")
}

impl Started {
    /// As one of the processes that train, whatever else is set: its launcher has the last word.
    pub(super) fn into_worker(self, r: &mut Reader<'_>) -> Place {
        self.check(r);
        let (local_rank, local_world) = self.local.unwrap_or((0, 1));
        let node = self.node.unwrap_or(self.rank / local_world.max(1));
        let Self { rank, world, restart, run_id, meeting, .. } = self;
        if world == 1 {
            return Place { role: Role::Alone, master: None, run_id };
        }
        let several = format!("{} started {world} processes", self.by);
        let master = r.master(Some(&several), meeting);
        let role = Role::Worker(Worker { rank, world, local_rank, local_world, node, restart });
        Place { role, master, run_id }
    }

    /// As an agent where the launcher started one process a machine and more are asked for; else as a worker. What was
    /// typed beside the launcher must agree with it.
    pub(super) fn into_place(self, r: &mut Reader<'_>) -> Place {
        let one_a_machine = matches!(self.local, Some((_, 1)));
        self.check_typed(r, one_a_machine);
        let max_restarts = asked::max_restarts(r);
        let processes = if one_a_machine { asked::processes(r, true) } else { 1 };
        if !one_a_machine && max_restarts > 0 {
            let message =
                format!("has no effect: {} started the processes and would have to start them again", self.by);
            r.note(env::MAX_RESTARTS, &message, "start one process a machine and set NPROC_PER_NODE");
        }
        if !one_a_machine || processes == 1 && max_restarts == 0 {
            return self.into_worker(r);
        }
        self.check(r);
        let several = format!("{} started {} processes", self.by, self.world);
        let master = r.master(Some(&several), self.meeting);
        Place { role: asked::role(self.world, self.rank, processes, max_restarts), master, run_id: self.run_id }
    }

    fn check(&self, r: &mut Reader<'_>) {
        if self.rank >= self.world {
            let message = format!("is {}, but {} is {}", self.rank, self.names.1, self.world);
            r.error(self.names.0, &message, "ranks count from 0");
        }
        if let Some((_, here)) = self.local.filter(|(_, here)| *here > self.world) {
            let message = format!("is {}, but there are {here} processes on this machine alone", self.world);
            r.error(self.names.1, &message, "it counts the processes of all machines");
        }
    }

    fn check_typed(&self, r: &mut Reader<'_>, one_a_machine: bool) {
        let by = self.by;
        let nodes = self.nodes.or_else(|| one_a_machine.then_some(self.world));
        if let (Some(typed), Some(nodes)) = (asked::node_count(r), nodes)
            && typed != nodes
        {
            let message = format!("is {typed}, but {by} started processes on {nodes} machines");
            r.error(env::NNODES, &message, "unset it: the launcher's own numbers are used");
        }
        let node = self.node.or_else(|| one_a_machine.then_some(self.rank));
        if let (Some(typed), Some(node)) = (asked::node_rank(r), node)
            && typed != node
        {
            let message = format!("is {typed}, but this is machine {node} of {by}'s");
            r.error(env::NODE_RANK, &message, "unset it: the launcher's own numbers are used");
        }
        if let (Some(typed), Some((_, here))) = (asked::typed_processes(r), self.local)
            && typed != here
            && !one_a_machine
        {
            let message = format!("is {typed}, but {by} started {here} processes on this machine");
            r.error(env::NPROC_PER_NODE, &message, "unset it, or start one process a machine");
        }
    }
}
