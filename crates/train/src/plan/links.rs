//! The wires between ranks, and how fast a collective or a message goes over them when its neighbours use them too.

use crate::engine::Offload;
use ferrotune_dist::{Layout, Place};

/// One kind of connection. Rates are bytes a second in one direction; both directions go at the same time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Link {
    /// What one rank reaches while no other sends.
    pub bandwidth: f64,
    /// What all ranks of a node that send over such connections at the same time reach together.
    pub shared: f64,
    /// Seconds until the first byte arrives.
    pub latency: f64,
}

impl Link {
    /// A connection that takes no time.
    pub const FREE: Self = Self { bandwidth: f64::INFINITY, shared: f64::INFINITY, latency: 0.0 };

    /// What one of `ranks` gets that send at the same time.
    fn among(&self, ranks: usize) -> f64 {
        self.bandwidth.min(self.shared / ranks as f64)
    }
}

/// The wires of a run, whose nodes hold `per_node` consecutive ranks each.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Links {
    /// Ranks on a node.
    pub per_node: usize,
    /// Between two ranks of a node.
    pub inside: Link,
    /// Between ranks of different nodes.
    pub across: Link,
    /// Bytes a second between a card and its host's memory; infinite where they are the same.
    pub host: f64,
    /// What lies in the host's memory.
    pub offload: Offload,
}

/// What one hop of a ring or a border of a pipeline gets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Hop {
    pub(super) bandwidth: f64,
    pub(super) latency: f64,
}

impl Links {
    /// Ranks that need nothing from each other's machines and nothing from the host: wires that take no time.
    pub const FREE: Self = Self {
        per_node: 1,
        inside: Link::FREE,
        across: Link::FREE,
        host: f64::INFINITY,
        offload: Offload { optimizer: false, weights: false },
    };

    /// Whether two ranks are on different nodes.
    pub fn crosses(&self, from: usize, to: usize) -> bool {
        from / self.per_node != to / self.per_node
    }

    /// The slowest of `edges` (from, to) that all carry bytes at the same time: those that leave one node share what it has
    /// for that, and so do those inside one.
    fn slowest(&self, edges: &[(usize, usize)]) -> Hop {
        let node = |rank: usize| rank / self.per_node;
        let nodes = edges.iter().map(|(from, _)| node(*from) + 1).max().unwrap_or(0);
        let mut counts = vec![[0_usize; 2]; nodes];
        for (from, to) in edges {
            counts[node(*from)][usize::from(self.crosses(*from, *to))] += 1;
        }
        let mut hop = Hop { bandwidth: f64::INFINITY, latency: 0.0 };
        for [inside, across] in counts {
            for (link, ranks) in [(&self.inside, inside), (&self.across, across)].iter().filter(|(_, n)| *n > 0) {
                hop.bandwidth = hop.bandwidth.min(link.among(*ranks));
                hop.latency = hop.latency.max(link.latency);
            }
        }
        hop
    }

    /// A hop of the rings that all groups along `axis` run at the same time.
    pub(super) fn ring(&self, layout: Layout, axis: Axis) -> Hop {
        let next = |rank: usize| (rank, axis.next(layout, rank));
        let edges: Vec<_> = (0..layout.world()).map(next).filter(|(from, to)| from != to).collect();
        self.slowest(&edges)
    }

    /// What it takes the ranks of all shard groups to send an equal part of their bytes to each rank of their group, all at the
    /// same time: seconds until the first arrives, and seconds for each byte of the whole that a rank has. What leaves a node
    /// and what stays goes side by side.
    pub(super) fn spread(&self, layout: Layout) -> (f64, f64) {
        let peers = |rank: usize, crossing: bool| {
            let peer = |shard: usize| layout.rank(Place { shard, ..layout.place(rank) });
            (0..layout.shards).map(peer).filter(|peer| *peer != rank && self.crosses(rank, *peer) == crossing).count()
        };
        let (mut latency, mut slowest) = (0.0_f64, 0.0_f64);
        for (link, crossing) in [(&self.inside, false), (&self.across, true)] {
            for node in (0..layout.world()).step_by(self.per_node) {
                let ranks = node..layout.world().min(node + self.per_node);
                let sending: Vec<usize> = ranks.map(|rank| peers(rank, crossing)).filter(|peers| *peers > 0).collect();
                for peers in &sending {
                    latency = latency.max(link.latency);
                    let part = *peers as f64 / layout.shards as f64;
                    slowest = slowest.max(part / link.among(sending.len()));
                }
            }
        }
        (latency, slowest)
    }

    /// A message over the border between stage `from` and stage `to`, while all pipes pass one over theirs.
    pub(super) fn border(&self, layout: Layout, from: usize, to: usize) -> Hop {
        let at = |rank: usize| layout.rank(Place { stage: to, ..layout.place(rank) });
        let senders = (0..layout.world()).filter(|rank| layout.place(*rank).stage == from);
        let edges: Vec<_> = senders.map(|rank| (rank, at(rank))).collect();
        self.slowest(&edges)
    }
}

/// A direction in a layout along which ranks form rings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Axis {
    Shard,
    Replica,
    /// First and last stage.
    Ends,
    /// All ranks.
    World,
}

impl Axis {
    pub(super) const ALL: [Self; 4] = [Self::Shard, Self::Replica, Self::Ends, Self::World];

    /// Ranks of a group.
    pub(super) fn len(self, layout: Layout) -> usize {
        match self {
            Self::Shard => layout.shards,
            Self::Replica => layout.replicas,
            Self::Ends => layout.stages.min(2),
            Self::World => layout.world(),
        }
    }

    /// This rank's number in its group.
    pub(super) fn number(self, layout: Layout, rank: usize) -> usize {
        let place = layout.place(rank);
        match self {
            Self::Shard => place.shard,
            Self::Replica => place.replica,
            Self::Ends => usize::from(place.stage > 0),
            Self::World => rank,
        }
    }

    /// The rank that a ring sends to.
    pub(super) fn next(self, layout: Layout, rank: usize) -> usize {
        let place = layout.place(rank);
        layout.rank(match self {
            Self::Shard => Place { shard: (place.shard + 1) % layout.shards, ..place },
            Self::Replica => Place { replica: (place.replica + 1) % layout.replicas, ..place },
            Self::Ends if place.stage == 0 => Place { stage: layout.stages - 1, ..place },
            Self::Ends if place.stage == layout.stages - 1 => Place { stage: 0, ..place },
            Self::Ends => place,
            Self::World => return (rank + 1) % layout.world(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINKS: Links = Links {
        per_node: 4,
        inside: Link { bandwidth: 100.0, shared: f64::INFINITY, latency: 1.0 },
        across: Link { bandwidth: 40.0, shared: 40.0, latency: 2.0 },
        ..Links::FREE
    };

    #[test]
    fn what_leaves_a_node_shares_its_card() {
        // Four replica rings, each with one rank on each of two nodes.
        let layout = Layout { shards: 4, stages: 1, replicas: 2 };
        assert_eq!(LINKS.ring(layout, Axis::Replica), Hop { bandwidth: 10.0, latency: 2.0 });
        assert_eq!(LINKS.ring(layout, Axis::Shard), Hop { bandwidth: 100.0, latency: 1.0 });
        // One ring over both nodes leaves each of them once.
        let layout = Layout { shards: 8, stages: 1, replicas: 1 };
        assert_eq!(LINKS.ring(layout, Axis::Shard), Hop { bandwidth: 40.0, latency: 2.0 });
    }

    #[test]
    fn a_bus_is_shared_by_all_who_send_inside() {
        let links = Links { inside: Link { shared: 200.0, ..LINKS.inside }, ..LINKS };
        let layout = Layout { shards: 4, stages: 1, replicas: 2 };
        assert_eq!(links.ring(layout, Axis::Shard).bandwidth, 50.0);
    }

    #[test]
    fn a_border_is_as_slow_as_the_pipe_that_crosses_nodes() {
        let layout = Layout { shards: 1, stages: 8, replicas: 1 };
        assert_eq!(LINKS.border(layout, 0, 1).bandwidth, 100.0);
        assert_eq!(LINKS.border(layout, 3, 4).bandwidth, 40.0);
        assert_eq!(LINKS.border(layout, 4, 3).bandwidth, 40.0);
    }
}
