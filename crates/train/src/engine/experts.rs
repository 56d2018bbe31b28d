//! The engine as one of the ranks among which experts are shared out: the shard group's messages.
//!
//! All of it follows the table of counts, which every rank of the group has: both sides of a message know that it comes and
//! how long it is.

use super::Engine;
use ferrotune_tensor::ops::{self, ExpertRanks};
use ferrotune_tensor::{DType, Kind, Tensor};

impl ExpertRanks for Engine {
    fn rank(&self) -> usize {
        self.division.mesh.place().shard
    }

    fn world(&self) -> usize {
        self.division.mesh.layout().shards
    }

    fn gather(&self, mine: &Tensor) -> Vec<u32> {
        let all = mine.device().empty([self.world() * mine.numel()], DType::U32, Kind::Work);
        self.heed(self.division.mesh.shard.all_gather(mine, &all).wait());
        let told = all.to_u32();
        // A GPU's work goes on behind a rank that was lost in between.
        if let Some(error) = self.comm().ended() {
            self.heed(Err(error));
            return Vec::new();
        }
        told
    }

    fn swap(&self, out: &[Tensor], into: &[Tensor]) {
        let rank = self.rank();
        ops::copy(&into[rank], &out[rank]);
        self.heed(self.division.mesh.shard.swap(out, into).wait());
    }
}
