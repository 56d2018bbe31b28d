//! `status.json`: how a run is at this moment, for whoever looks from outside. A thread of its own writes it every two
//! seconds, however long a step takes, and by rename, so that a reader never sees half of one.

use crate::error::{Error, Result};
use ferrotune_checkpoint::write_atomic;
use ferrotune_dist::Heard;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

/// The file's name in the output folder.
pub const STATUS: &str = "status.json";
/// Time between two versions of it.
pub const EVERY: Duration = Duration::from_secs(2);
/// What shares of time are measured over.
const WINDOW: Duration = Duration::from_secs(30);
/// Largest file that is read; a run of 10,000 ranks writes 3 MB.
const LARGEST: u64 = 64 << 20;

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Under way, or dead without having been able to say so.
    Running,
    /// At its end.
    Finished,
    /// Stopped by a signal, with a checkpoint.
    Interrupted,
    /// Ended by an error.
    Failed,
}

/// How a run is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// How far it is.
    pub phase: Phase,
    /// Why it ended, if by an error.
    pub reason: Option<String>,
    /// Seconds after 1970 at which it was started, or started again.
    pub started: f64,
    /// Seconds after 1970 at which this was written.
    pub written: f64,
    /// Machine of the process that wrote it.
    pub host: String,
    /// That process.
    pub pid: u32,
    /// Optimiser steps done.
    pub step: u64,
    /// Steps in all; 0 as long as that isn't known.
    pub total_steps: u64,
    /// Tokens a second of the whole run, lately.
    pub tokens_per_second: f64,
    /// Loss of the last step.
    pub loss: Option<f64>,
    /// Seconds until the end, as it looks now.
    pub remaining: Option<f64>,
    /// All ranks, in order.
    pub ranks: Vec<RankStatus>,
}

/// How a rank is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RankStatus {
    /// Its number.
    pub rank: usize,
    /// Its machine.
    pub host: String,
    /// Step under way, from 1; 0 before the first.
    pub step: u64,
    /// What it does, as in "it was ...".
    pub activity: String,
    /// The collective that it is in.
    pub collective: Option<u64>,
    /// Tokens trained on.
    pub tokens: u64,
    /// Bytes of tensors.
    pub memory: u64,
    /// Share of the last half minute in which it computed or did anything else but wait for others.
    pub computing: f64,
    /// Share in which bytes moved, beside or in the way of computing.
    pub communicating: f64,
    /// Share in which it stood still for that.
    pub waiting: f64,
    /// Seconds since it was last heard of.
    pub silent: f64,
}

impl Status {
    /// Reads the one in an output folder; `None` if there is none.
    ///
    /// # Errors
    /// If it can't be read or isn't one.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(STATUS);
        let file = match fs::File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        let mut text = Vec::new();
        file.take(LARGEST).read_to_end(&mut text).map_err(Error::io("read", &path))?;
        serde_json::from_slice(&text).map(Some).map_err(|source| Error::Json { path, what: "status", source })
    }

    /// The rank that the others wait for: the one that waits least, if there are several and they wait at all.
    pub fn slowest(&self) -> Option<&RankStatus> {
        let least = self.ranks.iter().min_by(|a, b| a.waiting.total_cmp(&b.waiting))?;
        let most = self.ranks.iter().map(|rank| rank.waiting).fold(0.0, f64::max);
        (self.ranks.len() > 1 && most - least.waiting > 0.05).then_some(least)
    }
}

/// What the loop tells of a run.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Reached {
    /// Steps done.
    pub step: u64,
    /// Steps in all.
    pub total_steps: u64,
    /// Tokens a second, lately.
    pub tokens_per_second: f64,
    /// Loss of the last step.
    pub loss: Option<f64>,
    /// Until the end.
    pub remaining: Option<Duration>,
}

/// Keeps `status.json` up to date until it is told how the run ended; if it never is, the run failed.
pub struct StatusKeeper {
    reached: Arc<Mutex<Reached>>,
    end: Option<Sender<(Phase, Option<String>)>>,
    thread: Option<JoinHandle<()>>,
}

impl StatusKeeper {
    /// Starts writing into `folder`, which must be there. `heard` is asked for all ranks each time; `host` is this machine.
    ///
    /// # Errors
    /// If the file can't be written or a thread not be made. What fails later is left to the next time.
    pub fn start(folder: &Path, host: String, heard: impl Fn() -> Vec<Heard> + Send + 'static) -> Result<Self> {
        let path = folder.join(STATUS);
        let reached = Arc::<Mutex<Reached>>::default();
        let mut writer = Writer { path, host, started: now(), reached: Arc::clone(&reached), history: VecDeque::new() };
        writer.write(Phase::Running, None, heard())?;
        let (end, ended) = channel();
        let folder = writer.path.clone();
        let body = move || {
            loop {
                let (phase, reason) = match ended.recv_timeout(EVERY) {
                    Ok(end) => end,
                    Err(RecvTimeoutError::Timeout) => (Phase::Running, None),
                    Err(RecvTimeoutError::Disconnected) => (Phase::Failed, None),
                };
                // A disk that is full now may not be so in two seconds; the run itself says what it lacks.
                let _ = writer.write(phase, reason, heard());
                if phase != Phase::Running {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("status".into()).spawn(body);
        let thread = thread.map_err(Error::io("start the thread that writes", &folder))?;
        Ok(Self { reached, end: Some(end), thread: Some(thread) })
    }

    /// Takes note of how far the run is.
    pub fn reached(&self, reached: Reached) {
        *lock(&self.reached) = reached;
    }

    /// Writes the last version.
    pub fn end(mut self, phase: Phase, reason: Option<String>) {
        if let Some(end) = self.end.take() {
            // The thread listens until it is told.
            let _ = end.send((phase, reason));
        }
    }
}

impl Drop for StatusKeeper {
    fn drop(&mut self) {
        self.end = None;
        if let Some(thread) = self.thread.take() {
            // Nothing in the thread panics but `heard`, whose panic has been told.
            let _ = thread.join();
        }
    }
}

struct Writer {
    path: PathBuf,
    host: String,
    started: f64,
    reached: Arc<Mutex<Reached>>,
    /// Beats of the last [`WINDOW`].
    history: VecDeque<(Instant, Vec<Heard>)>,
}

impl Writer {
    fn write(&mut self, phase: Phase, reason: Option<String>, heard: Vec<Heard>) -> Result<()> {
        let moment = Instant::now();
        while self.history.front().is_some_and(|(then, _)| moment - *then > WINDOW) {
            self.history.pop_front();
        }
        let ranks = heard.iter().map(|rank| self.rank(rank, moment)).collect();
        self.history.push_back((moment, heard));
        let reached = *lock(&self.reached);
        let status = Status {
            phase,
            reason,
            started: self.started,
            written: now(),
            host: self.host.clone(),
            pid: std::process::id(),
            step: reached.step,
            total_steps: reached.total_steps,
            tokens_per_second: reached.tokens_per_second,
            loss: reached.loss,
            remaining: reached.remaining.map(|time| time.as_secs_f64()),
            ranks,
        };
        Ok(write_atomic(&self.path, &super::json::indented(&status, 1))?)
    }

    /// A rank, with its shares of the time since the oldest beat that is kept.
    fn rank(&self, rank: &Heard, moment: Instant) -> RankStatus {
        let oldest = self.history.iter().find_map(|(then, all)| {
            let before = all.iter().find(|other| other.rank == rank.rank && other.host == rank.host)?;
            Some((moment - *then, before.beat))
        });
        let (passed, before) = oldest.unwrap_or_default();
        let micros = passed.as_micros().max(1) as f64;
        let share = |now: u64, then: u64| (now.saturating_sub(then) as f64 / micros).min(1.0);
        let waiting = share(rank.beat.waiting, before.waiting);
        RankStatus {
            rank: rank.rank,
            host: rank.host.clone(),
            step: rank.beat.step,
            activity: rank.beat.activity.words().to_owned(),
            collective: rank.beat.in_collective.then_some(rank.beat.collectives),
            tokens: rank.beat.tokens,
            memory: rank.beat.memory,
            computing: if passed.is_zero() { 0.0 } else { 1.0 - waiting },
            communicating: if passed.is_zero() { 0.0 } else { share(rank.beat.communicating, before.communicating) },
            waiting: if passed.is_zero() { 0.0 } else { waiting },
            silent: moment.saturating_duration_since(rank.at).as_secs_f64(),
        }
    }
}

/// Seconds after 1970.
fn now() -> f64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0.0, |time| time.as_secs_f64())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind it is one value, written at once: a panic elsewhere can't leave half of it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferrotune_dist::{Activity, Beat};

    fn heard(rank: usize, beat: Beat) -> Heard {
        Heard { rank, host: format!("host{rank}"), beat, at: Instant::now() }
    }

    fn writer(folder: &Path) -> Writer {
        let reached = Arc::new(Mutex::new(Reached { step: 3, total_steps: 9, ..Reached::default() }));
        Writer { path: folder.join(STATUS), host: "here".into(), started: 1.0, reached, history: VecDeque::new() }
    }

    #[test]
    fn shares_are_of_the_time_between_beats() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut writer = writer(folder.path());
        let before = Beat { waiting: 1_000_000, communicating: 5_000_000, ..Beat::default() };
        let moment = Instant::now();
        writer.history.push_back((moment, vec![heard(0, before), heard(1, before)]));
        let after = Beat {
            step: 4,
            activity: Activity::Backward,
            in_collective: true,
            collectives: 7,
            waiting: 3_500_000,
            communicating: 9_000_000,
            ..before
        };
        let at = moment + Duration::from_millis(8500);
        let rank = writer.rank(&Heard { at, ..heard(1, after) }, moment + Duration::from_secs(10));
        assert_eq!((rank.computing, rank.communicating, rank.waiting), (0.75, 0.4, 0.25));
        assert_eq!((rank.activity.as_str(), rank.collective, rank.silent), ("in a backward pass", Some(7), 1.5));
        let new = writer.rank(&heard(2, after), moment + Duration::from_secs(10));
        assert_eq!((new.computing, new.communicating, new.waiting), (0.0, 0.0, 0.0), "nothing to compare with");
    }

    #[test]
    fn what_is_written_reads_back_and_ends_as_told() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(Status::read(folder.path()).expect("no file is no error"), None);
        let all = || vec![heard(0, Beat::default()), heard(1, Beat { tokens: 5, ..Beat::default() })];
        let keeper = StatusKeeper::start(folder.path(), "here".into(), all).expect("writable");
        let first = Status::read(folder.path()).expect("readable").expect("written at once");
        assert_eq!((first.phase, first.step, first.ranks.len(), first.ranks[1].tokens), (Phase::Running, 0, 2, 5));
        keeper.reached(Reached { step: 7, total_steps: 8, loss: Some(0.5), ..Reached::default() });
        keeper.end(Phase::Finished, None);
        let last = Status::read(folder.path()).expect("readable").expect("there");
        assert_eq!((last.phase, last.step, last.total_steps, last.loss), (Phase::Finished, 7, 8, Some(0.5)));
        assert!(last.written >= first.written && last.started == first.started);
    }

    #[test]
    fn a_keeper_that_is_dropped_tells_of_a_failure() {
        let folder = tempfile::tempdir().expect("a folder");
        drop(StatusKeeper::start(folder.path(), "here".into(), Vec::new).expect("writable"));
        let status = Status::read(folder.path()).expect("readable").expect("there");
        assert_eq!((status.phase, status.reason), (Phase::Failed, None));
    }

    #[test]
    fn the_slowest_is_the_one_that_the_others_wait_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let keeper = StatusKeeper::start(folder.path(), "here".into(), || {
            (0..3).map(|rank| heard(rank, Beat::default())).collect()
        });
        keeper.expect("writable").end(Phase::Finished, None);
        let mut status = Status::read(folder.path()).expect("readable").expect("there");
        assert_eq!(status.slowest(), None, "nobody waits");
        for (rank, waiting) in status.ranks.iter_mut().zip([0.3, 0.02, 0.4]) {
            rank.waiting = waiting;
        }
        assert_eq!(status.slowest().map(|rank| rank.rank), Some(1));
    }

    #[test]
    fn a_file_that_is_no_status_is_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join(STATUS), "{\"phase\": \"walking\"}").expect("writable");
        let error = Status::read(folder.path()).expect_err("no status").to_string();
        assert!(error.contains("status.json") && error.contains("unknown variant"), "{error}");
    }
}
