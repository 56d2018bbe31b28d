//! One worker: a process in a group of its own, its lifeline, and how it ended.

use crate::environment;
use crate::failure::{self, signal_code};
use rustix::process::{Pid, Signal, kill_process_group};
use signal_hook::low_level::signal_name;
use std::io::{ErrorKind, Read, Result, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Which worker: its number on this machine, and in the run if that is known before it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) rank: Option<usize>,
    pub(super) local: usize,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.rank {
            Some(rank) => write!(f, "rank {rank}"),
            None => write!(f, "worker {} of this machine", self.local),
        }
    }
}

/// Several workers, as "ranks 0-3, 5 (host)".
pub(super) fn names(places: &[Place]) -> String {
    let host = environment::host();
    match places {
        [one] => return format!("{one} ({host})"),
        _ if places.iter().any(|place| place.rank.is_none()) => return format!("{} workers of {host}", places.len()),
        _ => {}
    }
    let mut ranks: Vec<usize> = places.iter().filter_map(|place| place.rank).collect();
    ranks.sort_unstable();
    let runs = ranks.chunk_by(|a, b| a + 1 == *b).map(|run| match run {
        [first, .., last] => format!("{first}-{last}"),
        _ => run[0].to_string(),
    });
    format!("ranks {} ({host})", runs.collect::<Vec<_>>().join(", "))
}

/// A worker under way.
pub(super) struct Worker {
    pub(super) place: Place,
    child: Child,
    lifeline: UnixStream,
    /// When a beat was last seen.
    heard: Instant,
    /// Why the agent ended it, if it did.
    killed: Option<String>,
    ended: Option<Ended>,
}

impl Worker {
    /// Starts one with a lifeline as its standard input.
    pub(super) fn start(mut command: Command, place: Place) -> Result<Self> {
        let (lifeline, theirs) = UnixStream::pair()?;
        lifeline.set_nonblocking(true)?;
        // A group of its own: Ctrl-C in the terminal reaches the agent alone, and a kill reaches the worker's children too.
        let child = command.stdin(Stdio::from(OwnedFd::from(theirs))).process_group(0).spawn()?;
        Ok(Self { place, child, lifeline, heard: Instant::now(), killed: None, ended: None })
    }

    /// Takes what has come since the last look: beats, and the end.
    pub(super) fn look(&mut self) -> Result<Option<&Ended>> {
        if self.ended.is_none() {
            self.listen();
            if let Some(status) = self.child.try_wait()? {
                let killed = self.killed.take();
                self.ended = Some(Ended { place: self.place, status, killed, at: Instant::now() });
            }
        }
        Ok(self.ended.as_ref())
    }

    fn listen(&mut self) {
        let mut beats = [0; 64];
        loop {
            match self.lifeline.read(&mut beats) {
                // An end of the line comes with the end of the process, which is looked for elsewhere.
                Ok(0) => return,
                Ok(_) => self.heard = Instant::now(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    /// How long nothing was heard of it.
    pub(super) fn silence(&self) -> Duration {
        self.heard.elapsed()
    }

    /// Counts it as heard of just now.
    pub(super) fn forgive(&mut self) {
        self.heard = Instant::now();
    }

    pub(super) fn ended(self) -> Option<Ended> {
        self.ended
    }

    pub(super) fn runs(&self) -> bool {
        self.ended.is_none()
    }

    /// Passes a signal on that the agent got. It goes through the lifeline, so that a worker that got it from elsewhere as
    /// well, as Slurm's go to all processes of a job, doesn't take it for the second one, which kills.
    pub(super) fn ask(&mut self, signal: i32) {
        // A worker that can't be written to has ended or will be found silent.
        let _ = self.lifeline.write_all(format!("{signal}\n").as_bytes());
    }

    /// Ends it and its children, politely or at once; `why` is for the message if it is the root of a failure.
    pub(super) fn end(&mut self, signal: Signal, why: &str) {
        if self.runs() {
            self.killed.get_or_insert_with(|| why.to_owned());
            // The only error left is that it has ended just now.
            let _ = kill_process_group(Pid::from_child(&self.child), signal);
        }
    }

    /// Ends it at once and waits for it.
    pub(super) fn finish(&mut self) {
        if self.runs() {
            self.end(Signal::KILL, "the agent ended");
            let _ = self.child.wait();
        }
    }
}

/// How a worker ended.
#[derive(Debug, Clone)]
pub(super) struct Ended {
    pub(super) place: Place,
    pub(super) status: ExitStatus,
    /// Why the agent ended it, if it did.
    pub(super) killed: Option<String>,
    pub(super) at: Instant,
}

impl Ended {
    pub(super) fn failed(&self) -> bool {
        !self.status.success()
    }

    /// Whether another worker's end is likely to be the reason of this one's.
    pub(super) fn is_consequence(&self) -> bool {
        self.status.code() == Some(i32::from(failure::PASSING))
            || (self.killed.is_some() && !self.killed.as_deref().is_some_and(|why| why.starts_with(SILENT)))
    }

    /// Whether nothing shows that the same would happen again.
    pub(super) fn may_go_well_next_time(&self) -> bool {
        let lasting = [failure::ERROR, failure::RECIPE].map(i32::from);
        !self.status.code().is_some_and(|code| lasting.contains(&code))
    }

    /// The agent's exit code if this end is the root of a failure.
    pub(super) fn exit_code(&self) -> u8 {
        match self.status.code() {
            _ if self.killed.is_some() => failure::PASSING,
            Some(code) => u8::try_from(code).unwrap_or(failure::ERROR),
            None => self.status.signal().map_or(failure::ERROR, |_| failure::PASSING),
        }
    }

    /// "rank 3 (host) was killed by signal 9 (SIGKILL)"; `more` is added to an end that doesn't explain itself.
    pub(super) fn describe(&self, more: Option<&str>) -> String {
        let who = names(&[self.place]);
        if let Some(why) = &self.killed {
            return format!("{who} {why}");
        }
        let more = more.unwrap_or_default();
        match (self.status.signal(), self.status.code()) {
            (Some(9), _) => {
                format!("{who} was killed by signal 9 (SIGKILL); if nobody did that, its machine ran out of memory")
            }
            (Some(signal), _) => {
                let name = signal_name(signal).unwrap_or("unknown");
                format!("{who} was killed by signal {signal} ({name}){more}")
            }
            (None, Some(code)) if code == i32::from(failure::PASSING) => format!("{who} lost another rank{more}"),
            (None, Some(code)) if [2, 15].map(signal_code).map(i32::from).contains(&code) => {
                format!("{who} was stopped by a signal that its agent didn't get")
            }
            (None, code) => format!("{who} ended with exit code {}{more}", code.unwrap_or_default()),
        }
    }
}

/// How the reason begins for which a silent worker is killed.
pub(super) const SILENT: &str = "gave no sign of life";
