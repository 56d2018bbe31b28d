//! One rank: every collective is the identity.

use crate::{Comm, CommError, Ticket};
use ferrotune_tensor::{Tensor, ops};

/// The only rank of a run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Solo;

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
        ops::copy(shard, full);
        Ticket::done(vec![full.clone(), shard.clone()])
    }

    fn all_gather(&self, shard: &Tensor, full: &Tensor) -> Ticket {
        ops::copy(full, shard);
        Ticket::done(vec![full.clone(), shard.clone()])
    }

    fn broadcast(&self, buffer: &Tensor, _root: usize) -> Ticket {
        Ticket::done(vec![buffer.clone()])
    }

    fn sum(&self, _values: &mut [f64]) -> Result<(), CommError> {
        Ok(())
    }

    fn barrier(&self) -> Result<(), CommError> {
        Ok(())
    }
}
