//! A communicator and the calls that it hasn't taken yet. NCCL takes a call only when the one before is in its stream, and the
//! first only when all ranks are there; neither is waited for where a call is made.

use crate::{Abort, CommError};
use ferrotune_tensor::cuda::{Before, Call, CallError, Communicator, Launched, Mark, State};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long the end of a communicator may take; after that it is no orderly one.
const FAREWELL: Duration = Duration::from_secs(5);
/// Between two looks.
const PAUSE: Duration = Duration::from_micros(200);

/// Where a call's mark will be.
#[derive(Default)]
pub(super) struct Slot {
    mark: Mutex<Option<Arc<Mark>>>,
    filled: Condvar,
}

impl Slot {
    fn fill(&self, mark: Arc<Mark>) {
        *lock(&self.mark) = Some(mark);
        self.filled.notify_all();
    }

    /// Waits until the call is in its stream; `None` if the run ends before.
    pub(super) fn wait(&self, abort: &Abort) -> Option<Arc<Mark>> {
        let mut mark = lock(&self.mark);
        loop {
            if mark.is_some() || abort.get().is_some() {
                return mark.clone();
            }
            let waited = self.filled.wait_timeout(mark, Duration::from_millis(10));
            mark = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// A call under way, as its ticket has it: what waits for its end is the GPU's work, not the host.
pub(crate) struct Queued {
    slot: Arc<Slot>,
    abort: Arc<Abort>,
    waited: bool,
}

impl Queued {
    pub(super) fn new(slot: Arc<Slot>, abort: Arc<Abort>) -> Self {
        Self { slot, abort, waited: false }
    }

    /// All work of the GPU from here on comes after the call.
    ///
    /// # Errors
    /// If the run has ended.
    pub(crate) fn hold_work(&mut self) -> Result<(), CommError> {
        self.waited = true;
        if let Some(mark) = self.slot.wait(&self.abort) {
            mark.hold_work();
        }
        self.abort.get().map_or(Ok(()), Err)
    }
}

impl Drop for Queued {
    /// Its buffers may be used for something else after this.
    fn drop(&mut self) {
        // A thread that panics uses them for nothing, and must come to its end, which the others are waiting for.
        if !self.waited && !std::thread::panicking() {
            let _ = self.hold_work();
        }
    }
}

/// Calls that aren't in the stream yet.
#[derive(Default)]
struct Waiting {
    calls: VecDeque<(Call, Before, Arc<Slot>)>,
    /// The one that NCCL is putting there.
    launched: Option<(Launched, Arc<Slot>)>,
    /// Since when there are any.
    since: Option<Instant>,
}

/// A communicator.
pub(super) struct Line {
    communicator: Communicator,
    /// World ranks that it joins.
    pub(super) ranks: Vec<usize>,
    waiting: Mutex<Waiting>,
    abort: Arc<Abort>,
}

impl Line {
    pub(super) fn new(communicator: Communicator, ranks: Vec<usize>, abort: Arc<Abort>) -> Self {
        Self { communicator, ranks, waiting: Mutex::default(), abort }
    }

    /// Takes a call, after all work of the GPU so far and all calls before. [`pump`](Self::pump) must follow.
    pub(super) fn put(&self, call: Call) -> Result<Arc<Slot>, CallError> {
        let before = self.communicator.work_so_far()?;
        let slot = Arc::<Slot>::default();
        let mut waiting = lock(&self.waiting);
        waiting.since.get_or_insert_with(Instant::now);
        waiting.calls.push_back((call, before, slot.clone()));
        Ok(slot)
    }

    /// Makes the calls that can be made; their marks are added to `begun`. Whether nothing is left.
    pub(super) fn pump(&self, begun: &mut Vec<Arc<Mark>>) -> Result<bool, CallError> {
        let mut waiting = lock(&self.waiting);
        loop {
            match self.communicator.state() {
                State::Working => return Ok(false),
                State::Failed(error) => return Err(error),
                State::Ready => {}
            }
            if let Some((launched, slot)) = waiting.launched.take() {
                let mark = Arc::new(self.communicator.mark(launched)?);
                begun.push(mark.clone());
                slot.fill(mark);
            }
            let Some((call, before, slot)) = waiting.calls.pop_front() else {
                waiting.since = None;
                return Ok(true);
            };
            waiting.launched = Some((self.communicator.launch(&call, before)?, slot));
        }
    }

    /// For how long calls have waited for NCCL to take them.
    pub(super) fn waits(&self) -> Duration {
        lock(&self.waiting).since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// An error that NCCL found by itself.
    pub(super) fn error(&self) -> Option<CallError> {
        match self.communicator.state() {
            State::Failed(error) => Some(error),
            State::Ready | State::Working => None,
        }
    }

    /// Ends all that is under way.
    pub(super) fn abort(&self) {
        self.communicator.abort();
    }
}

impl Drop for Line {
    /// In order, where all ranks still work: what is under way is done first.
    fn drop(&mut self) {
        if self.abort.get().is_none() && self.communicator.state() == State::Ready {
            let start = Instant::now();
            self.communicator.finalize();
            while self.communicator.state() == State::Working && start.elapsed() < FAREWELL {
                std::thread::sleep(PAUSE);
            }
            if self.communicator.state() == State::Ready {
                return self.communicator.destroy();
            }
        }
        self.communicator.abort();
    }
}

/// Nothing is ever half written under these locks.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
