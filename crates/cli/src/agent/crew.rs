//! The workers of one attempt, from their start until the last has ended.

use super::TICK;
use super::logs::Logs;
use super::worker::{Ended, Place, SILENT, Worker};
use crate::failure::Failure;
use crate::interrupt::Requests;
use anyhow::Context;
use rustix::process::Signal;
use std::process::Command;
use std::time::{Duration, Instant};

/// What others need beyond the time in which they notice a lost peer: to write their errors and end.
const GRACE: Duration = Duration::from_secs(5);
/// From SIGTERM to SIGKILL.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// An agent that was away longer than this, with its machine asleep or its container frozen, can't blame its workers.
const AWAY: Duration = Duration::from_secs(3);
/// How often the sizes of logs are looked at.
const LOG_CHECKS: Duration = Duration::from_secs(10);

/// Workers that are watched. Dropped, it ends those that are left.
pub(super) struct Crew<'a> {
    workers: Vec<Worker>,
    peer_timeout: Duration,
    logs: &'a Logs,
}

impl<'a> Crew<'a> {
    pub(super) fn new(peer_timeout: Duration, logs: &'a Logs) -> Self {
        Self { workers: Vec::new(), peer_timeout, logs }
    }

    /// Starts a worker.
    ///
    /// # Errors
    /// If its log or the process can't be made.
    pub(super) fn add(&mut self, mut command: Command, place: Place) -> Result<(), Failure> {
        self.logs.attach(&mut command, place)?;
        let program = command.get_program().to_owned();
        let worker = Worker::start(command, place);
        let worker = worker.with_context(|| format!("cannot start {place} as {}", program.display()));
        self.workers.push(worker.map_err(Failure::Other)?);
        Ok(())
    }

    /// Waits until all have ended; gives also the signal that asked them to stop, if one did.
    ///
    /// # Errors
    /// If the system can't say how a process is.
    pub(super) fn watch(mut self, requests: &Requests) -> std::io::Result<(Vec<Ended>, Option<i32>)> {
        let mut failed: Option<Instant> = None;
        let mut asked = None;
        let (mut last_look, mut last_check) = (Instant::now(), Instant::now());
        loop {
            for worker in &mut self.workers {
                if last_look.elapsed() > AWAY {
                    worker.forgive();
                }
                if worker.look()?.is_some_and(Ended::failed) {
                    failed.get_or_insert_with(Instant::now);
                }
            }
            last_look = Instant::now();
            if !self.workers.iter().any(Worker::runs) {
                break;
            }
            match requests.take() {
                Some(signal) if asked.is_none() => {
                    asked = Some(signal);
                    self.workers.iter_mut().for_each(|worker| worker.ask(signal));
                }
                Some(_) => self.end(Signal::KILL, "was killed as the agent was asked to stop for the second time"),
                None => {}
            }
            self.end_silent(failed.is_some());
            if let Some(since) = failed {
                self.end_late(since.elapsed());
            }
            if last_check.elapsed() > LOG_CHECKS {
                last_check = Instant::now();
                self.logs.bound(self.workers.iter().map(|worker| worker.place));
            }
            std::thread::sleep(TICK);
        }
        let workers = std::mem::take(&mut self.workers);
        Ok((workers.into_iter().filter_map(Worker::ended).collect(), asked))
    }

    /// Kills workers that were not heard of: stopped or frozen ones, which no polite signal reaches.
    fn end_silent(&mut self, failing: bool) {
        let limit = if failing { self.peer_timeout } else { self.peer_timeout * 2 };
        for worker in self.workers.iter_mut().filter(|worker| worker.silence() > limit) {
            let why = format!("{SILENT} for {:.0} s, was it stopped?, and was killed", worker.silence().as_secs_f64());
            worker.end(Signal::KILL, &why);
        }
    }

    /// Ends those that go on although one failed so long ago.
    fn end_late(&mut self, since: Duration) {
        let grace = self.peer_timeout + GRACE;
        if since > grace + LAST_WORDS {
            self.end(Signal::KILL, "didn't end after another rank had failed, and was killed");
        } else if since > grace {
            self.end(Signal::TERM, "didn't end after another rank had failed, and was ended");
        }
    }

    fn end(&mut self, signal: Signal, why: &str) {
        self.workers.iter_mut().for_each(|worker| worker.end(signal, why));
    }
}

impl Drop for Crew<'_> {
    fn drop(&mut self) {
        self.workers.iter_mut().for_each(Worker::finish);
    }
}
