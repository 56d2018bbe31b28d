//! Measures the wires between the ranks of a run, by sending over them.
//!
//! Every rank sends to the next one of its node, then to its counterpart on the next node: first one rank of each node,
//! then all at once, since they share what leads out. Messages grow until they take long enough to tell. All ranks learn
//! all results, so that they reckon with the same ones; and a wire that is much slower than its like has a name.

use super::links::{Link, Links};
use crate::Result;
use ferrotune_dist::{Comm, Ticket};
use ferrotune_tensor::{DType, Device, Kind};
use std::time::{Duration, Instant};

/// Bytes of the first message and of the largest.
const MESSAGES: (usize, usize) = (256 << 10, 8 << 20);
/// Messages grow until one takes so long. Shorter ones tell of what a switch or a hypervisor lets through at once, which
/// can be several times what it lets through all the time.
const LONG_ENOUGH: Duration = Duration::from_millis(40);
/// Messages of the last size; the middle one counts.
const TRIES: usize = 3;
/// Hops that a latency is the mean of, per rank of the ring.
const BARRIERS: usize = 16;
/// A wire that reaches less than this share of what its kind does is worth a word.
const SLOW: f64 = 0.5;

/// One rank's way to another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hop {
    /// Who sends.
    pub from: usize,
    /// Who receives.
    pub to: usize,
    /// Bytes a second, while all ranks send.
    pub bandwidth: f64,
}

/// The wires of a run, as measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
    /// What the plan reckons with: of each kind the slowest.
    pub links: Links,
    /// Every way that was measured: inside nodes, and between them.
    pub hops: [Vec<Hop>; 2],
}

impl Probe {
    /// Measures all wires between the ranks of `comm`, of which `per_node` consecutive ones lie on a node. Takes less than a
    /// second on wires that deserve the name.
    ///
    /// # Errors
    /// If memory runs out or a rank is lost.
    pub fn new(comm: &dyn Comm, device: &Device, per_node: usize) -> Result<Self> {
        let ring = Ring { world: comm.world(), per_node };
        let (inside, hops_inside) = probe(comm, device, &ring, Reach::Inside)?;
        let (across, hops_across) = probe(comm, device, &ring, Reach::Across)?;
        // A run's messages go other ways than these, and each has buffers.
        comm.release();
        Ok(Self { links: Links { per_node, inside, across, ..Links::FREE }, hops: [hops_inside, hops_across] })
    }

    /// Ways that are much slower than their kind, with what the kind does: the middle rate, or the next faster one. For a bad
    /// card slows the way in too, whose acknowledgements wait behind what the card sends, and those are two ways of three.
    pub fn slow(&self) -> Vec<(Hop, f64)> {
        let mut found = Vec::new();
        for hops in &self.hops {
            let mut rates: Vec<f64> = hops.iter().map(|hop| hop.bandwidth).collect();
            rates.sort_by(f64::total_cmp);
            let Some(&usual) = rates.get(rates.len().div_ceil(2)) else { continue };
            found.extend(hops.iter().filter(|hop| hop.bandwidth < SLOW * usual).map(|hop| (*hop, usual)));
        }
        found
    }
}

/// How far a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    Inside,
    Across,
}

/// Who sends to whom.
struct Ring {
    world: usize,
    per_node: usize,
}

impl Ring {
    /// The rings of a reach: each rank of one sends to the next. The last node may hold fewer ranks than the others.
    fn rings(&self, reach: Reach) -> Vec<Vec<usize>> {
        let all: Vec<usize> = (0..self.world).collect();
        let rings: Vec<Vec<usize>> = match reach {
            Reach::Inside => all.chunks(self.per_node).map(<[usize]>::to_vec).collect(),
            Reach::Across => {
                (0..self.per_node).map(|at| all.iter().copied().skip(at).step_by(self.per_node).collect()).collect()
            }
        };
        rings.into_iter().filter(|ring| ring.len() > 1).collect()
    }

    /// Pairs of ranks that send at the same time: all of a reach, or one a node.
    fn edges(&self, reach: Reach, all: bool) -> Vec<(usize, usize)> {
        let next = |ring: &Vec<usize>| -> Vec<(usize, usize)> {
            ring.iter().copied().zip(ring.iter().copied().cycle().skip(1)).collect()
        };
        let alone = |(from, _): &(usize, usize)| all || from.is_multiple_of(self.per_node);
        self.rings(reach).iter().flat_map(next).filter(alone).collect()
    }
}

fn probe(comm: &dyn Comm, device: &Device, ring: &Ring, reach: Reach) -> Result<(Link, Vec<Hop>)> {
    let edges = ring.edges(reach, true);
    if edges.is_empty() {
        return Ok((Link::FREE, Vec::new()));
    }
    let latency = latency(comm, &ring.rings(reach))?;
    let alone = flow(comm, device, &ring.edges(reach, false))?;
    let together = if ring.per_node == 1 { alone.clone() } else { flow(comm, device, &edges)? };
    let slowest = |rates: &mut dyn Iterator<Item = f64>| rates.fold(f64::INFINITY, f64::min);
    let of_node = |node: usize| {
        let of = |hop: &&Hop| hop.from / ring.per_node == node;
        let rates = together.iter().filter(of).map(|hop| hop.bandwidth);
        rates.reduce(|sum, rate| sum + rate)
    };
    let nodes = ring.world.div_ceil(ring.per_node);
    let bandwidth = slowest(&mut alone.iter().map(|hop| hop.bandwidth));
    let shared = slowest(&mut (0..nodes).filter_map(of_node));
    Ok((Link { bandwidth, shared, latency }, together))
}

/// The bandwidth of each of `edges` while all of them are used.
fn flow(comm: &dyn Comm, device: &Device, edges: &[(usize, usize)]) -> Result<Vec<Hop>> {
    let slowest = |took: &[Duration]| edges.iter().map(|edge| took[edge.1]).max().unwrap_or_default();
    let mut bytes = MESSAGES.0;
    let mut last = message(comm, device, edges, bytes)?;
    while slowest(&last) < LONG_ENOUGH && bytes < MESSAGES.1 {
        bytes = (4 * bytes).min(MESSAGES.1);
        last = message(comm, device, edges, bytes)?;
    }
    let mut tries = vec![last];
    while tries.len() < TRIES {
        tries.push(message(comm, device, edges, bytes)?);
    }
    let hop = |&(from, to): &(usize, usize)| {
        let mut took: Vec<Duration> = tries.iter().map(|tried| tried[to]).collect();
        took.sort_unstable();
        Hop { from, to, bandwidth: bytes as f64 / took[TRIES / 2].as_secs_f64().max(1e-9) }
    };
    Ok(edges.iter().map(hop).collect())
}

/// Sends one message over each of `edges` at the same time: how long each rank waited for its own.
fn message(comm: &dyn Comm, device: &Device, edges: &[(usize, usize)], bytes: usize) -> Result<Vec<Duration>> {
    let rank = comm.rank();
    let to = edges.iter().find(|edge| edge.0 == rank).map(|edge| edge.1);
    let from = edges.iter().find(|edge| edge.1 == rank).map(|edge| edge.0);
    let [out, into] = [Kind::Work; 2].map(|kind| device.empty([bytes / 4], DType::F32, kind));
    out.zero();
    into.zero();
    device.synchronize()?;
    comm.barrier()?;
    let start = Instant::now();
    let sending = to.map(|to| comm.send(&out, to));
    from.map(|from| comm.recv(&into, from).wait()).transpose()?;
    device.synchronize()?;
    let took = start.elapsed();
    sending.map(Ticket::wait).transpose()?;
    told(comm, took)
}

/// Seconds until a byte arrives, on the slowest of `rings`: a barrier goes once around.
fn latency(comm: &dyn Comm, rings: &[Vec<usize>]) -> Result<f64> {
    comm.barrier()?;
    let mut mine = Duration::ZERO;
    if let Some(ring) = rings.iter().find(|ring| ring.contains(&comm.rank())) {
        let group = comm.group(ring);
        group.barrier()?;
        let start = Instant::now();
        for _ in 0..BARRIERS {
            group.barrier()?;
        }
        mine = start.elapsed() / (BARRIERS * (ring.len() - 1)) as u32;
    }
    Ok(told(comm, mine)?.into_iter().max().unwrap_or_default().as_secs_f64())
}

/// All ranks' durations. What a peer says is a number of nanoseconds or nothing.
fn told(comm: &dyn Comm, mine: Duration) -> Result<Vec<Duration>> {
    let nanoseconds = u64::try_from(mine.as_nanos()).unwrap_or(u64::MAX);
    let all = comm.exchange(&nanoseconds.to_le_bytes())?;
    let read = |bytes: &Vec<u8>| bytes.as_slice().try_into().map_or(0, u64::from_le_bytes);
    Ok(all.iter().map(read).map(Duration::from_nanos).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rank_sends_to_one_and_receives_from_one() {
        let ring = Ring { world: 6, per_node: 3 };
        assert_eq!(ring.edges(Reach::Inside, true), [(0, 1), (1, 2), (2, 0), (3, 4), (4, 5), (5, 3)]);
        assert_eq!(ring.edges(Reach::Across, true), [(0, 3), (3, 0), (1, 4), (4, 1), (2, 5), (5, 2)]);
        assert_eq!(ring.edges(Reach::Inside, false), [(0, 1), (3, 4)]);
        assert_eq!(ring.edges(Reach::Across, false), [(0, 3), (3, 0)]);
    }

    #[test]
    fn a_node_alone_has_no_way_out_and_a_rank_alone_none_inside() {
        assert!(Ring { world: 4, per_node: 4 }.edges(Reach::Across, true).is_empty());
        assert!(Ring { world: 4, per_node: 1 }.edges(Reach::Inside, true).is_empty());
        // The last node is short of a rank.
        assert_eq!(Ring { world: 3, per_node: 2 }.edges(Reach::Across, true), [(0, 2), (2, 0)]);
        assert_eq!(Ring { world: 3, per_node: 2 }.edges(Reach::Inside, true), [(0, 1), (1, 0)]);
    }

    #[test]
    fn a_slow_wire_is_named() {
        let hop = |from, bandwidth| Hop { from, to: from + 1, bandwidth };
        let links = Links::FREE;
        let slow = |rates: [f64; 3]| {
            let across = (0..).zip(rates).map(|(from, rate)| hop(from, rate)).collect();
            Probe { links, hops: [Vec::new(), across] }.slow()
        };
        assert_eq!(slow([100.0, 51.0, 90.0]), []);
        assert_eq!(slow([100.0, 49.0, 90.0]), [(hop(1, 49.0), 100.0)]);
        // A bad card of three: the way out of it, and the way in, whose acknowledgements leave by it.
        assert_eq!(slow([0.5, 0.6, 90.0]), [(hop(0, 0.5), 90.0), (hop(1, 0.6), 90.0)]);
    }
}
