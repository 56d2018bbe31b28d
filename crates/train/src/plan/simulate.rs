//! A discrete-event model of a step: one computing thread and one communication thread a rank, as the engine has them.
//!
//! All ranks of a stage do the same at the same time, so one of them is followed for each stage. Transfers of a rank are
//! carried out in the order in which they were begun, one at a time; a message is handed on and travels by itself. A ring
//! over n ranks takes (n - 1) (latency + bytes / n / bandwidth), twice that for an all-reduce, with the bandwidth that is
//! left where several rings share a card or a bus. Rows that are spread over a shard group's experts go to all others at the
//! same time; nothing is computed meanwhile, and all wait for the rank with a quarter more than an even spread. Not modelled: what moving bytes takes from computing, ranks of unequal
//! speed, and rings and messages that get into each other's way.

use super::demand::FULLEST;
use super::links::{Axis, Hop, Links};
use super::program::{Builder, Op, Program, Transfer};
use super::{Candidate, Demand};
use std::collections::{HashMap, VecDeque};

/// Where the time of a step goes; the parts add up to it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// Seconds of an optimiser step.
    pub step: f64,
    /// Seconds that the busiest stage computes.
    pub compute: f64,
    /// Seconds that stages wait for each other whatever the wires.
    pub bubble: f64,
    /// Seconds that a step would be shorter by if nothing took time on the wires.
    pub communication: f64,
}

/// The time of a step of `all` micro-batches over `links`; `overlap` brings the next segment's weights and takes the last
/// one's gradients away beside computing.
pub fn simulate(demand: &Demand, candidate: &Candidate, all: usize, links: &Links, overlap: bool) -> Estimate {
    let micro_batches = candidate.micro_batches(all);
    let build = |stage| Builder::new(demand, candidate, stage, overlap).offloading(links.offload).build(micro_batches);
    let programs: Vec<Program> = (0..candidate.layout.stages).map(build).collect();
    let step = Machine::new(&programs, candidate, Some(links)).run();
    let unhindered = Machine::new(&programs, candidate, None).run();
    let computing = |program: &Program| program.ops.iter().map(seconds).sum::<f64>();
    let compute = programs.iter().map(computing).fold(0.0, f64::max);
    // Sums in another order may differ in the last bit; a time below zero would look wrong.
    let (bubble, communication) = ((unhindered - compute).max(0.0), (step - unhindered).max(0.0));
    Estimate { step, compute, bubble, communication }
}

fn seconds(op: &Op) -> f64 {
    if let Op::Compute(seconds) = op { *seconds } else { 0.0 }
}

/// One stage at one moment.
struct Stage<'a> {
    program: &'a Program,
    next: usize,
    clock: f64,
    /// Transfers begun and not carried out, with the time at which they were begun.
    queue: VecDeque<(usize, f64)>,
    /// When the communication thread is free.
    free: f64,
    ended: Vec<Option<f64>>,
    /// Meetings with other stages so far, by axis.
    met: HashMap<Axis, usize>,
}

struct Machine<'a> {
    stages: Vec<Stage<'a>>,
    wires: Wires,
    /// Messages on their way or arrived, by (from, to), with their time of arrival.
    messages: HashMap<(usize, usize), VecDeque<f64>>,
    /// When the last byte of the last message has left, by (from, to).
    busy: HashMap<(usize, usize), f64>,
    /// Collectives that several stages take part in: when each of them is ready.
    meetings: HashMap<(Axis, usize), HashMap<usize, f64>>,
}

impl<'a> Machine<'a> {
    fn new(programs: &'a [Program], candidate: &Candidate, links: Option<&Links>) -> Self {
        let stage = |program: &'a Program| Stage {
            program,
            next: 0,
            clock: 0.0,
            queue: VecDeque::new(),
            free: 0.0,
            ended: vec![None; program.transfers.len()],
            met: HashMap::new(),
        };
        Self {
            stages: programs.iter().map(stage).collect(),
            wires: Wires::new(candidate, links),
            messages: HashMap::new(),
            busy: HashMap::new(),
            meetings: HashMap::new(),
        }
    }

    /// Runs all programs to their ends; the time at which the last one ends.
    fn run(mut self) -> f64 {
        loop {
            let mut moved = false;
            for stage in 0..self.stages.len() {
                while self.advance(stage) {
                    moved = true;
                }
            }
            if self.stages.iter().all(|stage| stage.next == stage.program.ops.len()) {
                return self.stages.iter().map(|stage| stage.clock).fold(0.0, f64::max);
            }
            assert!(moved, "stages never wait for each other in a circle: 1F1B sends before it receives");
        }
    }

    /// Does a stage's next thing, if it can be done yet.
    fn advance(&mut self, number: usize) -> bool {
        let drained = self.drain(number);
        let stage = &mut self.stages[number];
        match stage.program.ops.get(stage.next) {
            None => return drained,
            Some(Op::Compute(seconds)) => stage.clock += seconds,
            Some(Op::Fetch(bytes)) => stage.clock += *bytes as f64 / self.wires.host,
            Some(Op::Begin(transfer)) => stage.queue.push_back((*transfer, stage.clock)),
            Some(Op::Wait(transfer)) => match stage.ended[*transfer] {
                Some(end) => stage.clock = stage.clock.max(end),
                None => return drained,
            },
        }
        stage.next += 1;
        true
    }

    /// Carries out what is begun, up to what has to wait for another stage.
    fn drain(&mut self, number: usize) -> bool {
        let mut moved = false;
        while let Some((transfer, begun)) = self.stages[number].queue.front().copied() {
            let start = begun.max(self.stages[number].free);
            let Some((end, free)) = self.carry(number, transfer, start) else { break };
            let stage = &mut self.stages[number];
            stage.queue.pop_front();
            stage.ended[transfer] = Some(end);
            stage.free = free;
            moved = true;
        }
        moved
    }

    /// When a transfer that could start at `start` ends, and when the communication thread is free again; `None` while
    /// another stage's part in it is not known.
    fn carry(&mut self, number: usize, transfer: usize, start: f64) -> Option<(f64, f64)> {
        match self.stages[number].program.transfers[transfer] {
            Transfer::Half(axis, bytes) => self.meet(number, axis, start, self.wires.ring(axis, bytes)),
            Transfer::Whole(axis, bytes) => self.meet(number, axis, start, 2.0 * self.wires.ring(axis, bytes)),
            Transfer::Spread(bytes) => self.meet(number, Axis::Shard, start, FULLEST * self.wires.spread(bytes)),
            Transfer::Send(to, bytes) => {
                let hop = self.wires.borders[&(number, to)];
                let busy = self.busy.entry((number, to)).or_insert(0.0);
                *busy = busy.max(start) + bytes as f64 / hop.bandwidth;
                let left = *busy;
                self.messages.entry((number, to)).or_default().push_back(left + hop.latency);
                Some((left, start))
            }
            Transfer::Receive(from) => {
                let arrival = self.messages.get_mut(&(from, number))?.pop_front()?;
                let end = start.max(arrival);
                Some((end, end))
            }
        }
    }

    /// A collective that takes `seconds` from when all stages that take part are ready.
    fn meet(&mut self, number: usize, axis: Axis, start: f64, seconds: f64) -> Option<(f64, f64)> {
        let last = self.stages.len() - 1;
        let members = match axis {
            Axis::Shard | Axis::Replica => 1,
            Axis::Ends => 2.min(last + 1),
            Axis::World => last + 1,
        };
        if members == 1 {
            return Some((start + seconds, start + seconds));
        }
        let met = self.stages[number].met.entry(axis).or_insert(0);
        let meeting = self.meetings.entry((axis, *met)).or_default();
        meeting.insert(number, start);
        if meeting.len() < members {
            return None;
        }
        *met += 1;
        let end = meeting.values().copied().fold(0.0, f64::max) + seconds;
        Some((end, end))
    }
}

/// What each hop gets, worked out once.
struct Wires {
    rings: HashMap<Axis, (usize, Hop)>,
    borders: HashMap<(usize, usize), Hop>,
    /// Bytes a second from the host.
    host: f64,
    /// Seconds until a shard group's parts for each other begin to arrive, and seconds for a byte of what is spread.
    spread: (f64, f64),
}

impl Wires {
    /// Without `links` nothing takes time.
    fn new(candidate: &Candidate, links: Option<&Links>) -> Self {
        let layout = candidate.layout;
        let free = Hop { bandwidth: f64::INFINITY, latency: 0.0 };
        let ring = |axis: Axis| (axis, (axis.len(layout), links.map_or(free, |links| links.ring(layout, axis))));
        let pairs = (1..layout.stages).flat_map(|stage| [(stage - 1, stage), (stage, stage - 1)]);
        let border = |(from, to)| ((from, to), links.map_or(free, |links| links.border(layout, from, to)));
        let spread = links.map_or((0.0, 0.0), |links| links.spread(layout));
        let host = links.map_or(f64::INFINITY, |links| links.host);
        Self { rings: Axis::ALL.into_iter().map(ring).collect(), borders: pairs.map(border).collect(), host, spread }
    }

    /// Seconds in which each rank of a shard group gets its part of every other one's `bytes`.
    fn spread(&self, bytes: u64) -> f64 {
        let (latency, each) = self.spread;
        if bytes == 0 { 0.0 } else { latency + bytes as f64 * each }
    }

    /// Seconds for which parts of `bytes` go once around.
    fn ring(&self, axis: Axis, bytes: u64) -> f64 {
        let (ranks, hop) = self.rings[&axis];
        (ranks - 1) as f64 * (hop.latency + bytes as f64 / ranks as f64 / hop.bandwidth)
    }
}
