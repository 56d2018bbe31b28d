//! The agent of a machine: starts the workers of a run, one process a rank, and watches over them until they end. If one
//! is lost, the others are given time to say so, what is left is ended, and all are started again as often as the
//! user allows; they go on from the last checkpoint by themselves. No worker outlives its agent.
//!
//! ```text
//! agent ──► worker 0   shares the agent's terminal, and writes the same lines to its log
//!      ├──► worker 1   writes to its log alone
//!      └──► ...        each at the other end of a lifeline, see `liveness`
//! ```

mod crew;
mod logs;
#[cfg(test)]
mod tests;
mod variables;
mod worker;

use crate::failure::{self, Failure};
use crate::interrupt::Requests;
use crate::{environment, ui};
use anyhow::anyhow;
use crew::Crew;
use ferrotune_config::env;
use ferrotune_config::launcher::{self, Master, Nodes};
use logs::Logs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};
use variables::Shared;
use worker::{Ended, Place};

/// How often an agent looks at its workers and at its own signals.
const TICK: Duration = Duration::from_millis(50);
/// Longest pause before workers are started again.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The workers of one machine, and how they are looked after.
#[derive(Debug, Clone)]
pub(crate) struct Agent {
    /// Which workers, and how often they may be started again.
    pub(crate) of: launcher::Agent,
    /// Where the workers meet; `None` if all are on this machine, for which a port is chosen.
    pub(crate) master: Option<Master>,
    /// How long nothing may be heard of a rank before it counts as dead.
    pub(crate) peer_timeout: Duration,
    /// The run's output folder; what workers print goes into `logs` in it.
    pub(crate) output: PathBuf,
}

impl Agent {
    /// Runs `command` once for each worker, and again after failures, until the run is over.
    ///
    /// # Errors
    /// If workers can't be started, a signal asked them to stop, or the run failed and may not, or need not, be tried again.
    pub(crate) fn run(&self, command: &dyn Fn() -> Command) -> Result<(), Failure> {
        let requests = Requests::listen()?;
        let mut logs = Logs::open(&self.output)?;
        if environment::var(env::FERROTUNE_LIFELINE).is_some() {
            return Err(Failure::Other(anyhow!("a worker was asked to start workers; its environment lacks its rank")));
        }
        let started = environment::unix_seconds();
        let attempts = self.of.max_restarts.saturating_add(1);
        let mut attempt = 1;
        loop {
            let (ended, asked) = self.attempt(command, attempt, started, &logs, &requests)?;
            let Some(cause) = root_cause(&ended) else { return Ok(()) };
            if let Some(signal) = asked {
                return Err(Failure::Told(failure::signal_code(signal)));
            }
            if attempt >= attempts || !ended.iter().all(Ended::may_go_well_next_time) {
                self.tell(&ended, cause, &logs, attempt);
                return Err(Failure::Told(cause.exit_code()));
            }
            attempt += 1;
            let cause = cause.describe(None);
            ui::note(&format!("attempt {attempt} of {attempts}: {cause}; going on from the last checkpoint"));
            if let Some(signal) = pause(attempt, &requests) {
                return Err(Failure::Told(failure::signal_code(signal)));
            }
            logs.attempt(attempt);
        }
    }

    /// Starts all workers and waits for their ends; gives also the signal that asked them to stop, if one did.
    fn attempt(
        &self,
        command: &dyn Fn() -> Command,
        attempt: usize,
        started: u64,
        logs: &Logs,
        requests: &Requests,
    ) -> Result<(Vec<Ended>, Option<i32>), Failure> {
        let shared = Shared::new(self, attempt, started)?;
        let mut crew = Crew::new(self.peer_timeout, logs);
        for local in 0..self.of.processes {
            let place = self.place(local);
            let mut command = command();
            shared.tell(&mut command, self, place);
            crew.add(command, place)?;
        }
        Ok(crew.watch(requests)?)
    }

    fn place(&self, local: usize) -> Place {
        let rank = match self.of.nodes {
            Nodes::Fixed { node, .. } => Some(node * self.of.processes + local),
            Nodes::Elastic { .. } => None,
        };
        Place { rank, local }
    }

    /// Says why the run ended; what the first worker has said on this screen isn't said again.
    fn tell(&self, ended: &[Ended], cause: &Ended, logs: &Logs, attempt: usize) {
        let first = ended.iter().find(|worker| worker.place.local == 0 && worker.failed());
        let on_screen = first.and_then(|worker| logs.error(worker.place));
        let told = logs.errors(ended);
        if !told.iter().any(|(_, places)| places.contains(&cause.place)) {
            ui::error(&cause.describe(Some("; see its log")));
        }
        for (text, places) in told {
            let who = worker::names(&places);
            if on_screen.as_ref() != Some(&text) {
                ui::error_text(&format!("{who}: {text}"));
            } else if places.len() > 1 {
                ui::note(&format!("{who} ended with this error"));
            }
        }
        let attempts = if attempt > 1 { format!("; this was attempt {attempt}") } else { String::new() };
        ui::note(&format!("what each rank printed is in {}{attempts}", logs.folder().display()));
    }
}

/// The end that explains the others: not that of a worker that lost a peer or was ended by the agent, if there is another.
fn root_cause(ended: &[Ended]) -> Option<&Ended> {
    ended.iter().filter(|worker| worker.failed()).min_by_key(|worker| (worker.is_consequence(), worker.at))
}

/// Waits a little longer before each attempt; gives the signal that ends the wait.
fn pause(attempt: usize, requests: &Requests) -> Option<i32> {
    let seconds = 1 << attempt.saturating_sub(2).min(5);
    let end = Instant::now() + Duration::from_secs(seconds).min(LONGEST_PAUSE);
    while Instant::now() < end {
        if let Some(signal) = requests.take() {
            return Some(signal);
        }
        std::thread::sleep(TICK);
    }
    None
}
