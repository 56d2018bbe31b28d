//! Which ranks share what: a rank's place among shards, stages and replicas.
//!
//! Ranks are numbered with shards innermost and replicas outermost,
//! `rank = (replica * stages + stage) * shards + shard`, and nodes hold consecutive ranks; so shards and stages stay inside
//! a node wherever they fit, and what crosses nodes is what replicas exchange.
//!
//! ```text
//!              stage 0        stage 1
//! replica 0   [0  1]  ---->  [2  3]       [..] a shard group
//!              |  |           |  |        ---  a pipe, `|` a replica group
//! replica 1   [4  5]  ---->  [6  7]
//! ```

use crate::Comm;
use std::rc::Rc;

/// How many ranks lie along each axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Layout {
    /// Ranks that hold one model (or one stage of it) together, each a part of every sharded buffer.
    pub shards: usize,
    /// Ranks that hold consecutive blocks.
    pub stages: usize,
    /// Times that all of this exists.
    pub replicas: usize,
}

impl Layout {
    /// One rank.
    pub const SOLO: Self = Self { shards: 1, stages: 1, replicas: 1 };

    /// All ranks.
    pub fn world(self) -> usize {
        self.shards * self.stages * self.replicas
    }

    /// Number of ranks that see different rows.
    pub fn data_ranks(self) -> usize {
        self.shards * self.replicas
    }

    /// Where a rank stands.
    pub fn place(self, rank: usize) -> Place {
        let shard = rank % self.shards;
        let stage = rank / self.shards % self.stages;
        let replica = rank / self.shards / self.stages;
        Place { shard, stage, replica }
    }

    /// Which rank stands there.
    pub fn rank(self, place: Place) -> usize {
        (place.replica * self.stages + place.stage) * self.shards + place.shard
    }
}

/// Where a rank stands in a [`Layout`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Part of sharded buffers.
    pub shard: usize,
    /// Stretch of blocks.
    pub stage: usize,
    /// Copy of the whole.
    pub replica: usize,
}

/// The groups that a rank belongs to.
#[derive(Clone)]
pub struct Mesh {
    /// All ranks.
    pub world: Rc<dyn Comm>,
    /// Those that hold the other shards of the same stage and replica.
    pub shard: Rc<dyn Comm>,
    /// The stages of the same shard and replica, in order.
    pub pipe: Rc<dyn Comm>,
    /// The same shard and stage in the other replicas.
    pub replica: Rc<dyn Comm>,
    /// The first and the last stage of the same shard and replica, which both hold a tied embedding; this rank alone if it
    /// is neither.
    pub ends: Rc<dyn Comm>,
    layout: Layout,
    place: Place,
}

impl Mesh {
    /// The mesh of `layout` over `world`.
    ///
    /// # Panics
    /// If `layout` isn't of as many ranks.
    pub fn new(world: Rc<dyn Comm>, layout: Layout) -> Self {
        assert_eq!(layout.world(), world.world(), "a layout of all ranks");
        let place = layout.place(world.rank());
        let along = |count: usize, at: &dyn Fn(usize) -> Place| {
            let ranks: Vec<usize> = (0..count).map(|i| layout.rank(at(i))).collect();
            world.group(&ranks)
        };
        let shard = along(layout.shards, &|shard| Place { shard, ..place });
        let pipe = along(layout.stages, &|stage| Place { stage, ..place });
        let replica = along(layout.replicas, &|replica| Place { replica, ..place });
        let ends = match layout.stages - 1 {
            last if last > 0 && (place.stage == 0 || place.stage == last) => {
                along(2, &|i| Place { stage: i * last, ..place })
            }
            _ => along(1, &|_| place),
        };
        Self { world, shard, pipe, replica, ends, layout, place }
    }

    /// All ranks as replicas of each other.
    pub fn replicas(world: Rc<dyn Comm>) -> Self {
        let layout = Layout { replicas: world.world(), ..Layout::SOLO };
        Self::new(world, layout)
    }

    /// Ranks along each axis.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Where this rank stands.
    pub fn place(&self) -> Place {
        self.place
    }

    /// This rank's number among those that see different rows.
    pub fn data_rank(&self) -> usize {
        self.place.replica * self.layout.shards + self.place.shard
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rank_has_its_own_place() {
        let layout = Layout { shards: 2, stages: 3, replicas: 4 };
        let places: Vec<Place> = (0..layout.world()).map(|rank| layout.place(rank)).collect();
        assert!(places.iter().enumerate().all(|(rank, place)| layout.rank(*place) == rank));
        assert_eq!(places[0], Place { shard: 0, stage: 0, replica: 0 });
        assert_eq!(places[9], Place { shard: 1, stage: 1, replica: 1 });
    }
}
