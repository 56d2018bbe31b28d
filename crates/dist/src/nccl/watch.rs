//! The thread that looks after NCCL: makes calls that had to wait, notices what came to its end, and aborts all communicators
//! when the run ends, be it that a rank is lost, that NCCL found an error, or that a call takes too long.
//!
//! Who is dead is known from the heart-beats over TCP: NCCL doesn't promise to notice, and never says who.

use super::NcclSettings;
use super::line::{Line, lock};
use crate::{Abort, CommError, Pulse};
use ferrotune_tensor::cuda::{CallError, Mark};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// How often NCCL is asked for errors.
const TICK: Duration = Duration::from_millis(100);
/// How often it is looked whether a call can be made that waits.
const SOON: Duration = Duration::from_millis(1);
/// How long an error of NCCL's may be explained by the loss of a rank, of which it is the consequence.
const GRACE: Duration = Duration::from_secs(2);

/// A call in its stream.
struct Flying {
    mark: Arc<Mark>,
    since: Instant,
    number: u64,
}

#[derive(Default)]
struct Watched {
    lines: Vec<Weak<Line>>,
    /// Of these, the ones with calls that wait.
    waiting: Vec<Arc<Line>>,
    flying: VecDeque<Flying>,
    over: bool,
}

/// What is looked after.
pub(super) struct Watch {
    watched: Mutex<Watched>,
    changed: Condvar,
    abort: Arc<Abort>,
    pulse: Arc<Pulse>,
    settings: NcclSettings,
}

impl Watch {
    pub(super) fn new(abort: Arc<Abort>, pulse: Arc<Pulse>, settings: NcclSettings) -> Arc<Self> {
        let watch = Arc::new(Self { watched: Mutex::default(), changed: Condvar::new(), abort, pulse, settings });
        // Weakly, since it holds what would hold it.
        let told = Arc::downgrade(&watch);
        watch.abort.on_set(move || drop(told.upgrade().inspect(|watch| watch.changed.notify_all())));
        watch
    }

    /// Looks after a communicator from now on.
    pub(super) fn add(&self, line: &Arc<Line>) {
        lock(&self.watched).lines.push(Arc::downgrade(line));
        // The thread may have ended all others already.
        if self.abort.get().is_some() {
            line.abort();
        }
    }

    /// Makes the calls of a communicator now, or as soon as they can be made.
    pub(super) fn pump(&self, line: &Arc<Line>) -> Result<(), CallError> {
        let mut begun = Vec::new();
        let all = line.pump(&mut begun)?;
        self.began(begun);
        let mut watched = lock(&self.watched);
        if !all && !watched.waiting.iter().any(|other| Arc::ptr_eq(other, line)) {
            watched.waiting.push(line.clone());
            self.changed.notify_all();
        }
        Ok(())
    }

    fn began(&self, begun: Vec<Arc<Mark>>) {
        let mut watched = lock(&self.watched);
        for mark in begun {
            watched.flying.push_back(Flying { mark, since: Instant::now(), number: self.pulse.begin() });
        }
    }

    /// Why a call of NCCL failed: the loss of a rank, if one is noticed within a short while, or `error` itself.
    pub(super) fn explain(&self, error: &CallError) -> CommError {
        let start = Instant::now();
        while self.abort.get().is_none() && start.elapsed() < GRACE {
            std::thread::sleep(SOON);
        }
        self.end(format!("{error}; NCCL_DEBUG=INFO has it say more"))
    }

    /// Ends the run, unless it has ended.
    pub(super) fn end(&self, reason: String) -> CommError {
        let own = CommError::Ended(reason);
        self.abort.set(own.clone());
        self.abort.get().unwrap_or(own)
    }

    /// Ends the thread.
    pub(super) fn close(&self) {
        lock(&self.watched).over = true;
        self.changed.notify_all();
    }

    /// The thread.
    pub(super) fn run(&self) {
        let mut looked = Instant::now();
        while self.abort.get().is_none() {
            let (waiting, flying) = {
                let mut watched = lock(&self.watched);
                if watched.over {
                    *watched = Watched::default();
                    return;
                }
                (std::mem::take(&mut watched.waiting), std::mem::take(&mut watched.flying))
            };
            self.make_calls(waiting);
            self.look_at(flying);
            if looked.elapsed() >= TICK {
                looked = Instant::now();
                self.look_for_errors();
            }
            let watched = lock(&self.watched);
            if !watched.over && self.abort.get().is_none() {
                let most = if watched.waiting.is_empty() { TICK } else { SOON };
                drop(self.changed.wait_timeout(watched, most).unwrap_or_else(PoisonError::into_inner));
            }
        }
        let lines = std::mem::take(&mut lock(&self.watched).lines);
        lines.iter().filter_map(Weak::upgrade).for_each(|line| line.abort());
        *lock(&self.watched) = Watched::default();
    }

    fn make_calls(&self, waiting: Vec<Arc<Line>>) {
        for line in waiting {
            if let Err(error) = self.pump(&line) {
                self.explain(&error);
            }
            if line.waits() > self.settings.join_timeout {
                self.end(format!(
                    "NCCL hasn't brought ranks {:?} together in {:.0} s, though all of them are alive; NCCL_DEBUG=INFO has it \
                     say what it waits for, NCCL_SOCKET_IFNAME and NCCL_IB_DISABLE choose its network",
                    line.ranks,
                    line.waits().as_secs_f64()
                ));
            }
        }
    }

    fn look_at(&self, mut flying: VecDeque<Flying>) {
        while let Some(first) = flying.front() {
            match first.mark.passed() {
                Ok(true) => {
                    self.pulse.end(first.mark.took().unwrap_or_default());
                    flying.pop_front();
                }
                Ok(false) => break,
                // The GPU's fault, which its owner finds, too.
                Err(_) => {
                    self.pulse.end(Duration::ZERO);
                    flying.pop_front();
                }
            }
        }
        if let Some(first) = flying.front().filter(|first| first.since.elapsed() > self.settings.collective_timeout) {
            self.end(self.stuck(first));
        }
        let mut watched = lock(&self.watched);
        flying.append(&mut watched.flying);
        watched.flying = flying;
    }

    /// Says which call doesn't end, and what the others do.
    fn stuck(&self, call: &Flying) -> String {
        let others = self.pulse.others();
        let others: Vec<String> =
            others.iter().map(|o| format!("rank {} ({}) is {}", o.rank, o.host, o.beat)).collect();
        format!(
            "its collective {} hasn't ended for {:.0} s, though all ranks are alive: {}. Peer-to-peer copies that \
             hang are a common cause on PCIe servers: try NCCL_P2P_DISABLE=1",
            call.number,
            call.since.elapsed().as_secs_f64(),
            others.join(", ")
        )
    }

    fn look_for_errors(&self) {
        let lines: Vec<Arc<Line>> = {
            let mut watched = lock(&self.watched);
            watched.lines.retain(|line| line.strong_count() > 0);
            watched.lines.iter().filter_map(Weak::upgrade).collect()
        };
        if let Some(error) = lines.iter().find_map(|line| line.error()) {
            self.explain(&error);
        }
    }
}
