//! The machines that a run is planned on: cards from the table, or those at hand as they were measured.

use crate::divide::Circumstances;
use crate::engine::Offload;
use crate::plan::{Link, Links, Rates};
use crate::room::Room;
use ferrotune_tensor::cards::Card;

/// Of what a network card is sold as, the share that payload gets.
const PAYLOAD: f64 = 0.9;
/// Seconds of a hop inside a machine, and over Ethernet.
const LATENCY: [f64; 2] = [10e-6, 50e-6];

/// Nodes and what computes in them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Machine {
    /// Cards that nobody needs to have.
    Cards {
        /// Which.
        card: &'static Card,
        /// Machines.
        nodes: usize,
        /// Cards in each.
        per_node: usize,
        /// Bits a second of each machine's network card.
        network: f64,
    },
    /// Processors, as they were measured.
    Measured(Circumstances<'static>),
}

/// Bytes a second between processes of a machine, over its own sockets.
const SOCKETS: f64 = 4e9;

impl Machine {
    /// Processes on machines like this one, whose speed isn't known yet.
    pub fn local(nodes: usize, per_node: usize, network: f64) -> Self {
        Self::Measured(Self::at_hand(nodes, per_node, network, None))
    }

    /// The same, where `available` bytes of memory are known to be free.
    pub(crate) fn at_hand(
        nodes: usize,
        per_node: usize,
        network: f64,
        available: Option<u64>,
    ) -> Circumstances<'static> {
        let room = Room::Shared(available.map(|bytes| bytes / per_node.max(1) as u64));
        let inside = Link { bandwidth: SOCKETS, shared: SOCKETS, latency: LATENCY[0] };
        let links = links(nodes, per_node, inside, network, f64::INFINITY);
        Circumstances { world: nodes * per_node, per_node, room, links, rates: Rates::even(1.0), before: None }
    }

    /// What a plan reckons with; `experts` for a mixture of experts.
    pub fn circumstances(&self, experts: bool) -> Circumstances<'static> {
        match *self {
            Self::Measured(circumstances) => circumstances,
            Self::Cards { card, nodes, per_node, network } => {
                let inside = Link { bandwidth: card.joint.bandwidth, shared: f64::INFINITY, latency: LATENCY[0] };
                let links = links(nodes, per_node, inside, network, card.host());
                let room = Room::Card { shown: card.bytes(), host: None };
                Circumstances {
                    world: nodes * per_node,
                    per_node,
                    room,
                    links,
                    rates: Rates::of_card(card, experts),
                    before: None,
                }
            }
        }
    }

    /// Nodes.
    pub fn nodes(&self) -> usize {
        match self {
            Self::Cards { nodes, .. } => *nodes,
            Self::Measured(among) => among.world.div_ceil(among.per_node),
        }
    }
}

/// Wires of machines with one network card each.
fn links(nodes: usize, per_node: usize, inside: Link, network: f64, host: f64) -> Links {
    let bandwidth = network / 8.0 * PAYLOAD;
    let across = Link { bandwidth, shared: bandwidth, latency: LATENCY[1] };
    Links {
        per_node,
        inside: if per_node > 1 { inside } else { Link::FREE },
        across: if nodes > 1 { across } else { Link::FREE },
        host,
        offload: Offload::default(),
    }
}
