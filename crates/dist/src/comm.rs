//! The collectives that strategies are made of.
//!
//! They follow structure, never data: every rank calls the same ones in the same order with the same lengths, whatever
//! its micro-batch held. A collective is begun here and carried out beside the computation; its [`Ticket`] is waited for
//! where the result is needed.

use crate::Pulse;
use crate::nccl::Queued;
use crate::trace::Lane;
use ferrotune_tensor::{DType, Tensor};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Instant;

/// Why a collective failed: which rank, and what it was about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommError {
    /// A peer is gone: its connection ended, or nothing was heard of it for too long.
    #[error("rank {rank} ({host}) is gone: {reason}; it was {doing}")]
    PeerLost {
        /// Which.
        rank: usize,
        /// The name of its machine.
        host: String,
        /// What was seen.
        reason: String,
        /// What it did when it was last heard of.
        doing: String,
    },
    /// A peer ended its part of the run by itself and said why.
    #[error("rank {rank} ({host}) stopped: {reason}; it was {doing}")]
    PeerFailed {
        /// Which.
        rank: usize,
        /// The name of its machine.
        host: String,
        /// Its own error.
        reason: String,
        /// What it did.
        doing: String,
    },
    /// The ranks are out of step.
    #[error("rank {rank} called {theirs} where this rank called {ours}")]
    OutOfStep {
        /// Which.
        rank: usize,
        /// Its call.
        theirs: String,
        /// Ours.
        ours: String,
    },
    /// This rank's own [`Comm::fail`] ended it.
    #[error("this rank ended its part of the run: {0}")]
    Ended(String),
}

/// A collective under way. It holds its buffers until it is waited for, so that they are counted as live.
#[must_use = "a collective is over only after `wait`"]
pub struct Ticket {
    state: State,
    hold: Vec<Tensor>,
}

enum State {
    Ready(Result<(), CommError>),
    Pending { done: Receiver<Result<(), CommError>>, pulse: Arc<Pulse> },
    Queued(Queued),
    Several(Vec<Ticket>),
}

impl Ticket {
    /// A collective that ended at once.
    pub fn done(hold: Vec<Tensor>) -> Self {
        Self { state: State::Ready(Ok(())), hold }
    }

    /// A collective that couldn't begin.
    pub fn failed(error: CommError) -> Self {
        Self { state: State::Ready(Err(error)), hold: Vec::new() }
    }

    /// A collective that another thread carries out; it sends the result when its loans are dropped.
    pub fn pending(done: Receiver<Result<(), CommError>>, pulse: Arc<Pulse>, hold: Vec<Tensor>) -> Self {
        Self { state: State::Pending { done, pulse }, hold }
    }

    /// Collectives that are waited for together; the first error counts.
    pub(crate) fn all(tickets: Vec<Self>) -> Self {
        Self { state: State::Several(tickets), hold: Vec::new() }
    }

    /// A collective in a stream of a GPU.
    pub(crate) fn queued(queued: Queued, hold: Vec<Tensor>) -> Self {
        Self { state: State::Queued(queued), hold }
    }

    /// Waits for the end: what follows may use the buffers. On a GPU its work waits, and the host goes on.
    ///
    /// # Errors
    /// If a rank is lost or out of step.
    pub fn wait(self) -> Result<(), CommError> {
        let result = match self.state {
            State::Ready(result) => result,
            State::Queued(mut queued) => queued.hold_work(),
            State::Several(tickets) => {
                // Each is waited for, whatever came of those before it.
                let ended: Vec<_> = tickets.into_iter().map(Self::wait).collect();
                ended.into_iter().collect()
            }
            State::Pending { done, pulse } => {
                let (start, span) = (Instant::now(), pulse.trace().begin());
                let ended = || Err(CommError::Ended("its communication thread ended".into()));
                let result = done.recv().unwrap_or_else(|_| ended());
                pulse.waited(start.elapsed());
                pulse.trace().end(span, Lane::Waiting, 0, || "wait");
                result
            }
        };
        drop(self.hold);
        result
    }
}

/// Makes sure that values can be summed.
///
/// # Panics
/// If they can't.
pub(crate) fn check_summed(of: DType) {
    assert!(matches!(of, DType::F32 | DType::Bf16 | DType::F16), "a sum of {of}");
}

/// Communication between the ranks of a run, or of a group of them.
pub trait Comm {
    /// This process's number, in this group.
    fn rank(&self) -> usize;
    /// How many there are.
    fn world(&self) -> usize;
    /// Sums `buffer` (f32, bf16 or f16) over all ranks, in place; all ranks get the same bits. Sums of halves may be rounded at
    /// each rank on their way.
    fn all_reduce(&self, buffer: &Tensor) -> Ticket;
    /// Sums `full` (as above) over all ranks and leaves this rank's part in `shard`; `full` is `world` shards long and
    /// undefined afterwards, except where `shard` is a view of it, which must be the part of this rank.
    fn reduce_scatter(&self, full: &Tensor, shard: &Tensor) -> Ticket;
    /// Puts all ranks' `shard`s one behind the other into `full`, of any type. `shard` may be this rank's part of `full`.
    fn all_gather(&self, shard: &Tensor, full: &Tensor) -> Ticket;
    /// Copies `buffer` of rank `root`, of any type, to all.
    fn broadcast(&self, buffer: &Tensor, root: usize) -> Ticket;
    /// Sends `buffer` to rank `to`; the call that it meets is that rank's [`recv`](Self::recv) of the same length. Never
    /// waits for the receiver to begin.
    fn send(&self, buffer: &Tensor, to: usize) -> Ticket;
    /// Receives what rank `from` sends into `buffer`.
    fn recv(&self, buffer: &Tensor, from: usize) -> Ticket;
    /// Sends each other rank the tensor of its number in `out`, and receives from each into `into`, all at once; this rank's own
    /// two stay as they are. Both sides know the lengths, and empty tensors aren't sent; lengths alone may depend on data. All
    /// ranks call it at the same place.
    fn swap(&self, out: &[Tensor], into: &[Tensor]) -> Ticket {
        let (rank, world) = (self.rank(), self.world());
        // Each begins with the rank behind it, so that not all send to one at a time; sends never wait for their receivers.
        let to = (1..world).map(|i| (rank + i) % world).filter(|to| out[*to].numel() > 0);
        let from = (1..world).map(|i| (rank + world - i) % world).filter(|from| into[*from].numel() > 0);
        let sent = to.map(|to| self.send(&out[to], to));
        Ticket::all(sent.chain(from.map(|from| self.recv(&into[from], from))).collect())
    }
    /// Sums a few numbers over all ranks, in rank order: the same bits everywhere.
    ///
    /// # Errors
    /// If a rank is lost or out of step.
    fn sum(&self, values: &mut [f64]) -> Result<(), CommError>;
    /// Every rank's bytes at every rank, in rank order. Lengths may differ.
    ///
    /// # Errors
    /// If a rank is lost or out of step.
    fn exchange(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>, CommError>;
    /// Returns once all ranks have called it.
    ///
    /// # Errors
    /// If a rank is lost or out of step.
    fn barrier(&self) -> Result<(), CommError>;
    /// Communication among some of these ranks, `ranks` ascending and this one among them. Costs nothing and
    /// talks to nobody; collectives of different groups must still be begun in one order by ranks that share both.
    fn group(&self, ranks: &[usize]) -> Rc<dyn Comm>;
    /// Gives back what calls so far have set up and later ones would set up again: buffers of connections. All ranks call it
    /// at the same place.
    fn release(&self) {}
    /// Ends the run for all ranks: the others' collectives fail with this rank's number and `reason`.
    fn fail(&self, reason: &str);
    /// Why the run has ended, if it has; cheap enough to be asked at every segment.
    fn ended(&self) -> Option<CommError>;
    /// Bytes sent so far to each rank of the whole run.
    fn traffic(&self) -> Vec<u64>;
    /// What this rank is doing, for the others and for whoever watches.
    fn pulse(&self) -> &Arc<Pulse>;
}
