//! One rank: every collective is the identity, so that there is one code path for 1 and N.

use crate::{Comm, CommError, Pulse, Ticket};
use ferrotune_tensor::{Tensor, ops};
use std::rc::Rc;
use std::sync::Arc;

/// The only rank of a run, or of a group.
#[derive(Debug, Clone, Default)]
pub struct Solo {
    pulse: Arc<Pulse>,
}

impl Solo {
    /// A group of one inside a run of many, which goes on counting in the run's `pulse`.
    pub fn within(pulse: Arc<Pulse>) -> Self {
        Self { pulse }
    }
}

/// Copies unless both are the same bytes.
fn carry(to: &Tensor, from: &Tensor) {
    if !to.same_bytes(from) {
        ops::copy(to, from);
    }
}

impl Comm for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn world(&self) -> usize {
        1
    }

    fn all_reduce(&self, buffer: &Tensor) -> Ticket {
        Ticket::done(vec![buffer.clone()])
    }

    fn reduce_scatter(&self, full: &Tensor, shard: &Tensor) -> Ticket {
        carry(shard, full);
        Ticket::done(vec![full.clone(), shard.clone()])
    }

    fn all_gather(&self, shard: &Tensor, full: &Tensor) -> Ticket {
        carry(full, shard);
        Ticket::done(vec![full.clone(), shard.clone()])
    }

    fn broadcast(&self, buffer: &Tensor, _root: usize) -> Ticket {
        Ticket::done(vec![buffer.clone()])
    }

    fn send(&self, _buffer: &Tensor, to: usize) -> Ticket {
        Ticket::failed(nobody("send to", to))
    }

    fn recv(&self, _buffer: &Tensor, from: usize) -> Ticket {
        Ticket::failed(nobody("receive from", from))
    }

    fn sum(&self, _values: &mut [f64]) -> Result<(), CommError> {
        Ok(())
    }

    fn exchange(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
        Ok(vec![mine.to_vec()])
    }

    fn barrier(&self) -> Result<(), CommError> {
        Ok(())
    }

    fn group(&self, _ranks: &[usize]) -> Rc<dyn Comm> {
        Rc::new(self.clone())
    }

    fn fail(&self, _reason: &str) {}

    fn ended(&self) -> Option<CommError> {
        None
    }

    fn traffic(&self) -> Vec<u64> {
        vec![0]
    }

    fn pulse(&self) -> &Arc<Pulse> {
        &self.pulse
    }
}

fn nobody(what: &str, rank: usize) -> CommError {
    CommError::Ended(format!("it was to {what} rank {rank}, but it is alone"))
}
