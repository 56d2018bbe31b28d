//! A rank that only thinks it has others: for steps on `meta`, which predict memory and traffic before a run.

use crate::ranks::lies_in;
use crate::schedule::Ring;
use crate::{Comm, CommError, Pulse, Solo, Ticket};
use ferrotune_tensor::Tensor;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

/// One of `world` ranks that don't exist. Collectives end at once, leave their buffers as they are, hold them until they
/// are waited for, and count what the ring would send; what others would bring is taken to be like this rank's own.
#[derive(Debug, Clone)]
pub struct Imagined {
    rank: usize,
    /// World ranks of the group.
    ranks: Rc<[usize]>,
    /// Bytes sent, by world rank.
    traffic: Rc<[Cell<u64>]>,
    pulse: Arc<Pulse>,
}

impl Imagined {
    /// Rank `rank` of `world`.
    ///
    /// # Panics
    /// If there is no such rank.
    pub fn new(rank: usize, world: usize) -> Self {
        assert!(rank < world, "no rank {rank} among {world}");
        let traffic = (0..world).map(|_| Cell::new(0)).collect();
        Self { rank, ranks: (0..world).collect(), traffic, pulse: Arc::default() }
    }

    fn ring(&self, bytes: usize, unit: usize) -> Ring {
        Ring { rank: self.rank, world: self.ranks.len(), bytes, unit }
    }

    /// Counts bytes to the next rank.
    fn pass(&self, bytes: u64) {
        self.sent((self.rank + 1) % self.ranks.len(), bytes);
    }

    fn sent(&self, to: usize, bytes: u64) {
        let count = &self.traffic[self.ranks[to]];
        count.set(count.get() + bytes);
    }

    fn flat(&self, mine: usize) {
        self.pass(Ring::sent(self.ring(mine * self.ranks.len(), 1).all_gather()));
    }
}

impl Comm for Imagined {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.ranks.len()
    }

    fn all_reduce(&self, buffer: &Tensor) -> Ticket {
        self.pass(Ring::sent(self.ring(buffer.bytes(), buffer.dtype().bytes(1)).all_reduce()));
        Ticket::done(vec![buffer.clone()])
    }

    fn reduce_scatter(&self, full: &Tensor, shard: &Tensor) -> Ticket {
        lies_in(full, shard, self.rank, self.ranks.len());
        self.pass(Ring::sent(self.ring(full.bytes(), full.dtype().bytes(1)).reduce_scatter()));
        Ticket::done(vec![full.clone(), shard.clone()])
    }

    fn all_gather(&self, shard: &Tensor, full: &Tensor) -> Ticket {
        lies_in(full, shard, self.rank, self.ranks.len());
        self.pass(Ring::sent(self.ring(full.bytes(), 1).all_gather()));
        Ticket::done(vec![shard.clone(), full.clone()])
    }

    fn broadcast(&self, buffer: &Tensor, root: usize) -> Ticket {
        self.pass(Ring::sent(self.ring(buffer.bytes(), 1).broadcast(root)));
        Ticket::done(vec![buffer.clone()])
    }

    fn send(&self, buffer: &Tensor, to: usize) -> Ticket {
        self.sent(to, buffer.bytes() as u64);
        Ticket::done(vec![buffer.clone()])
    }

    fn recv(&self, buffer: &Tensor, _from: usize) -> Ticket {
        Ticket::done(vec![buffer.clone()])
    }

    fn sum(&self, values: &mut [f64]) -> Result<(), CommError> {
        self.flat(size_of_val(values));
        Ok(())
    }

    fn exchange(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
        self.flat(size_of::<u64>());
        self.flat(mine.len());
        Ok(vec![mine.to_vec(); self.ranks.len()])
    }

    fn barrier(&self) -> Result<(), CommError> {
        self.flat(1);
        Ok(())
    }

    fn group(&self, ranks: &[usize]) -> Rc<dyn Comm> {
        let rank = ranks.binary_search(&self.rank).expect("a rank makes groups that it belongs to");
        if ranks.len() == 1 {
            return Rc::new(Solo::within(self.pulse.clone()));
        }
        let ranks = ranks.iter().map(|rank| self.ranks[*rank]).collect();
        Rc::new(Self { rank, ranks, traffic: self.traffic.clone(), pulse: self.pulse.clone() })
    }

    fn fail(&self, _reason: &str) {}

    fn ended(&self) -> Option<CommError> {
        None
    }

    fn traffic(&self) -> Vec<u64> {
        self.traffic.iter().map(Cell::get).collect()
    }

    fn pulse(&self) -> &Arc<Pulse> {
        &self.pulse
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::threads;
    use ferrotune_tensor::{DType, Device, Kind};

    /// Every collective, on all ranks and on groups of them.
    fn everything(comm: &Rc<dyn Comm>, device: &Device, length: usize) -> Vec<u64> {
        let odd: Vec<usize> = (0..comm.world()).filter(|rank| rank % 2 == comm.rank() % 2).collect();
        let empty = |length: usize, dtype| device.empty([length], dtype, Kind::Work);
        for comm in [comm.clone(), comm.group(&odd)] {
            let world = comm.world();
            let (shard, full) = (empty(length, DType::F32), empty(length * world, DType::F32));
            comm.all_reduce(&shard).wait().unwrap();
            comm.reduce_scatter(&full, &shard).wait().unwrap();
            comm.all_gather(&empty(length, DType::Bf16), &empty(length * world, DType::Bf16)).wait().unwrap();
            (0..world).for_each(|root| comm.broadcast(&shard, root).wait().unwrap());
            comm.sum(&mut vec![0.0; length % 50]).unwrap();
            comm.exchange(&vec![0; length]).unwrap();
            comm.barrier().unwrap();
            if world > 1 && comm.rank() == 0 {
                comm.send(&shard, world - 1).wait().unwrap();
            }
            if world > 1 && comm.rank() == world - 1 {
                comm.recv(&shard, 0).wait().unwrap();
            }
        }
        // A peer's end is part of no collective.
        comm.traffic()
    }

    #[test]
    fn it_counts_what_real_ranks_send() {
        for world in 2..=5 {
            for length in [0, 1, world - 1, 1009, 200_003] {
                let real = threads::run(world, |comm| {
                    let traffic = everything(&comm, &Device::cpu(), length);
                    comm.barrier().unwrap();
                    traffic
                });
                for (rank, real) in real.into_iter().enumerate() {
                    let comm: Rc<dyn Comm> = Rc::new(Imagined::new(rank, world));
                    assert_eq!(everything(&comm, &Device::meta(), length), real, "{length} at {rank} of {world}");
                    assert!(real[(rank + 1) % world] > 0 && real[rank] == 0);
                }
            }
        }
    }

    #[test]
    fn buffers_live_as_long_as_their_tickets() {
        let device = Device::meta();
        let comm = Imagined::new(1, 4);
        let ticket = comm.all_reduce(&device.empty([1000], DType::F32, Kind::Grad));
        assert_eq!(device.track().total(), 4000);
        ticket.wait().unwrap();
        assert_eq!(device.track().total(), 0);
        // By hand: 3 of 4 parts twice.
        assert_eq!(comm.traffic(), [0, 0, 2 * 3 * 1000, 0]);
    }
}
