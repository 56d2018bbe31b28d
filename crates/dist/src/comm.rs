//! The collectives that strategies are made of.
//!
//! They follow structure, never data: every rank calls the same ones in the same order with the same lengths, whatever
//! its micro-batch held.

use ferrotune_tensor::Tensor;

/// Why a collective failed. Which rank, and what it was about.
#[derive(Debug, thiserror::Error)]
pub enum CommError {
    /// A peer is gone.
    #[error("rank {rank} is gone: {reason}")]
    PeerLost {
        /// Which.
        rank: usize,
        /// What was seen of it.
        reason: String,
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
}

/// A collective under way. It holds its buffers until it is waited for, so that they are counted as live.
#[must_use = "a collective is over only after `wait`"]
pub struct Ticket {
    result: Result<(), CommError>,
    hold: Vec<Tensor>,
}

impl Ticket {
    /// A collective that ended at once.
    pub fn done(hold: Vec<Tensor>) -> Self {
        Self { result: Ok(()), hold }
    }

    /// Waits for the end.
    pub fn wait(self) -> Result<(), CommError> {
        drop(self.hold);
        self.result
    }
}

/// Communication between the ranks of a run.
pub trait Comm {
    /// This process's number.
    fn rank(&self) -> usize;
    /// How many there are.
    fn world(&self) -> usize;
    /// Sums `buffer` over all ranks, in place.
    fn all_reduce(&self, buffer: &Tensor) -> Ticket;
    /// Sums `full` over all ranks and leaves this rank's part in `shard` (`full` is `world` shards long).
    fn reduce_scatter(&self, full: &Tensor, shard: &Tensor) -> Ticket;
    /// Puts all ranks' `shard`s one behind the other into `full`.
    fn all_gather(&self, shard: &Tensor, full: &Tensor) -> Ticket;
    /// Sends `buffer` of rank `root` to all.
    fn broadcast(&self, buffer: &Tensor, root: usize) -> Ticket;
    /// Sums a few numbers over all ranks, in rank order.
    fn sum(&self, values: &mut [f64]) -> Result<(), CommError>;
    /// Returns once all ranks have called it.
    fn barrier(&self) -> Result<(), CommError>;
}
