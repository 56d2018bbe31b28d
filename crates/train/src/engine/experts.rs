//! The engine as one of the ranks among which experts are shared out: the shard group's messages.
//!
//! All of it follows the table of counts, which every rank of the group has: both sides of a message know that it comes and
//! how long it is.

use super::Engine;
use ferrotune_dist::CommError;
use ferrotune_tensor::Tensor;
use ferrotune_tensor::ops::{self, ExpertRanks};

impl ExpertRanks for Engine {
    fn rank(&self) -> usize {
        self.division.mesh.place().shard
    }

    fn world(&self) -> usize {
        self.division.mesh.layout().shards
    }

    fn exchange(&self, mine: &[u32]) -> Vec<Vec<u32>> {
        let comm = &self.division.mesh.shard;
        let bytes: Vec<u8> = mine.iter().flat_map(|number| number.to_le_bytes()).collect();
        let told = comm.exchange(&bytes).and_then(|all| match all.iter().position(|one| one.len() != bytes.len()) {
            None => Ok(all),
            Some(rank) => {
                let (theirs, ours) = (all[rank].len() / 4, mine.len());
                let reason =
                    format!("rank {rank} of the shard group has {theirs} experts a block where this one has {ours}");
                comm.fail(&reason);
                Err(CommError::Ended(reason))
            }
        });
        match told {
            Ok(all) => all.iter().map(|one| numbers(one)).collect(),
            Err(error) => {
                self.heed(Err(error));
                vec![mine.to_vec(); self.world()]
            }
        }
    }

    fn swap(&self, out: &[Tensor], into: &[Tensor]) {
        let (comm, rank, world) = (&self.division.mesh.shard, self.rank(), self.world());
        ops::copy(&into[rank], &out[rank]);
        // Each begins with the rank behind it, so that not all send to one at a time; sends never wait for their receivers.
        let to = (1..world).map(|i| (rank + i) % world).filter(|to| out[*to].numel() > 0);
        let from = (1..world).map(|i| (rank + world - i) % world).filter(|from| into[*from].numel() > 0);
        let sent: Vec<_> = to.map(|to| comm.send(&out[to], to)).collect();
        let received: Vec<_> = from.map(|from| comm.recv(&into[from], from)).collect();
        sent.into_iter().chain(received).for_each(|ticket| self.heed(ticket.wait()));
    }
}

fn numbers(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks().0.iter().map(|number| u32::from_le_bytes(*number)).collect()
}
