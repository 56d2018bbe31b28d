//! What a worker is told in its environment: torchrun's variables, and our own. All else is as the agent got it.

use super::Agent;
use super::worker::Place;
use crate::environment;
use ferrotune_config::env;
use ferrotune_config::launcher::{Master, Nodes, Worker};
use std::io::Result;
use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;

/// What all workers of an attempt are told alike.
pub(super) struct Shared {
    /// Where they meet.
    master: Option<Master>,
    /// From 1.
    attempt: usize,
    /// When the first attempt began, in seconds after 1970.
    started: u64,
    /// Threads of each, unless the user has chosen.
    threads: Option<usize>,
}

impl Shared {
    /// Chooses a port where the user need not.
    ///
    /// # Errors
    /// If this machine has no free port.
    pub(super) fn new(agent: &Agent, attempt: usize, started: u64) -> Result<Self> {
        let alone = matches!(agent.of.nodes, Nodes::Fixed { count: 1, .. });
        let master = match &agent.master {
            None if alone => Some(Master { host: Ipv4Addr::LOCALHOST.to_string(), port: free_port()? }),
            given => given.clone(),
        };
        let chosen = environment::var(env::RAYON_NUM_THREADS).is_some_and(|value| !value.trim().is_empty());
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = (!chosen).then_some((cores / agent.of.processes).max(1));
        Ok(Self { master, attempt, started, threads })
    }

    /// Tells one worker.
    pub(super) fn tell(&self, command: &mut Command, agent: &Agent, place: Place) {
        // A machine's own number, by which the agent was told its place, would be taken for the worker's.
        command.env_remove(env::RANK).env_remove(env::WORLD_SIZE);
        let restart = self.attempt - 1;
        match (agent.of.nodes, place.rank, &self.master) {
            (Nodes::Fixed { count, node }, Some(rank), Some(master)) => {
                let (local_rank, local_world) = (place.local, agent.of.processes);
                let world = count.saturating_mul(local_world);
                let worker = Worker { rank, world, local_rank, local_world, node, restart };
                command.envs(worker.variables(master)).env(env::NNODES, count.to_string());
            }
            _ => {
                command.env(env::LOCAL_RANK, place.local.to_string());
                command.env(env::LOCAL_WORLD_SIZE, agent.of.processes.to_string());
                command.env(env::TORCHELASTIC_RESTART_COUNT, restart.to_string());
            }
        }
        command.env("TORCHELASTIC_MAX_RESTARTS", agent.of.max_restarts.to_string());
        command.env(env::FERROTUNE_LIFELINE, "1").env(env::FERROTUNE_RUN_STARTED, self.started.to_string());
        command.envs(self.threads.map(|threads| (env::RAYON_NUM_THREADS, threads.to_string())));
    }
}

/// A port that nobody listens on, for workers of this machine alone.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
