//! A call of a communicator as a stream's work. It begins when it is its turn: it reads what it sends, and from then on what it
//! will write is NaN. It ends once all have brought theirs, and looks whether anybody wrote where it worked.

use super::wire::{About, Head};
use super::{Communicator, code};
use crate::device::tell;
use ferrotune_ptx::{Fault, Memory};
use half::{bf16, f16};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    AllReduce,
    ReduceScatter,
    AllGather,
    Broadcast,
    /// What is in its legs.
    Messages,
}

/// A message of a call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Leg {
    /// It comes from the peer.
    pub(crate) comes: bool,
    pub(crate) of: Element,
    pub(crate) count: usize,
    pub(crate) peer: usize,
    pub(crate) at: u64,
}

impl Leg {
    fn bytes(&self) -> usize {
        self.count * self.of.bytes()
    }

    fn head(&self) -> Head {
        // A send and its receive are one call, of whom is told by the connection.
        Head { op: Op::Messages as u8, of: self.of as u8, root: 0, count: self.count as u64 }
    }
}

/// How a call goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// It never ends.
    Hangs,
    /// Nor does this, and the communicator says so.
    Fails(i32),
    /// It ends, with other bytes.
    Corrupts,
}

/// Types of elements by NCCL's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Element {
    U8 = 1,
    F16 = 6,
    F32 = 7,
    Bf16 = 9,
}

impl Element {
    pub(crate) fn from_number(number: i32) -> Option<Self> {
        [Self::U8, Self::F16, Self::F32, Self::Bf16].into_iter().find(|of| *of as i32 == number)
    }

    fn bytes(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }

    fn values(self, bytes: &[u8]) -> Vec<f32> {
        let pairs = || bytes.as_chunks::<2>().0.iter();
        match self {
            Self::U8 => bytes.iter().map(|byte| f32::from(*byte)).collect(),
            Self::F16 => pairs().map(|pair| f16::from_le_bytes(*pair).to_f32()).collect(),
            Self::Bf16 => pairs().map(|pair| bf16::from_le_bytes(*pair).to_f32()).collect(),
            Self::F32 => bytes.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect(),
        }
    }

    fn rounded(self, values: &[f32]) -> Vec<u8> {
        let values = values.iter();
        match self {
            Self::U8 => values.map(|value| *value as u8).collect(),
            Self::F16 => values.flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
            Self::Bf16 => values.flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
            Self::F32 => values.flat_map(|value| value.to_le_bytes()).collect(),
        }
    }
}

/// A call.
pub(crate) struct Exchange {
    pub(crate) communicator: Arc<Communicator>,
    pub(crate) op: Op,
    pub(crate) of: Element,
    pub(crate) count: usize,
    /// The root of a broadcast.
    pub(crate) peer: usize,
    pub(crate) from: u64,
    pub(crate) to: u64,
    /// A message, or all that were made in one group: at most one each way with a peer.
    pub(crate) legs: Vec<Leg>,
    pub(crate) wrong: Option<Wrong>,
    /// What it read, once it has begun.
    pub(crate) begun: Option<Vec<u8>>,
}

impl Exchange {
    fn others(&self) -> impl Iterator<Item = usize> {
        let rank = self.communicator.rank;
        (0..self.communicator.ranks).filter(move |other| *other != rank)
    }

    /// Whether it comes to an end at all.
    fn ends(&self) -> bool {
        matches!(self.wrong, None | Some(Wrong::Corrupts))
    }

    fn is_root(&self) -> bool {
        self.peer == self.communicator.rank
    }

    fn part(&self) -> usize {
        self.count * self.of.bytes()
    }

    /// What is read, and what is written: addresses and bytes.
    fn places(&self) -> [Vec<(u64, usize)>; 2] {
        let (part, all) = (self.part(), self.part() * self.communicator.ranks);
        let places = |reads: usize, writes: usize| [vec![(self.from, reads)], vec![(self.to, writes)]];
        match self.op {
            Op::AllReduce => places(part, part),
            Op::ReduceScatter => places(all, part),
            Op::AllGather => places(part, all),
            Op::Broadcast if self.is_root() => places(part, 0),
            Op::Broadcast => places(0, part),
            Op::Messages => [false, true].map(|comes| {
                self.legs.iter().filter(|leg| leg.comes == comes).map(|leg| (leg.at, leg.bytes())).collect()
            }),
        }
    }

    /// The more of what is read and what is written.
    pub(crate) fn bytes(&self) -> usize {
        let [read, written] = self.places().map(|places| places.iter().map(|(_, bytes)| bytes).sum::<usize>());
        read.max(written)
    }

    fn head(&self) -> Head {
        let root = if self.op == Op::Broadcast { self.peer } else { 0 };
        Head { op: self.op as u8, of: self.of as u8, root: root as u32, count: self.count as u64 }
    }

    /// From whom what must have come, and of which call.
    fn awaited(&self) -> Vec<(usize, About, Head)> {
        match self.op {
            Op::AllReduce | Op::ReduceScatter | Op::AllGather => {
                self.others().map(|other| (other, About::Values, self.head())).collect()
            }
            Op::Broadcast if self.is_root() => Vec::new(),
            Op::Broadcast => vec![(self.peer, About::Values, self.head())],
            Op::Messages => {
                let about = |leg: &Leg| if leg.comes { About::Values } else { About::Taken };
                self.legs.iter().map(|leg| (leg.peer, about(leg), leg.head())).collect()
            }
        }
    }

    /// Whether its next half can be done.
    pub(crate) fn is_ready(&self) -> bool {
        if self.communicator.is_aborted() {
            return true;
        }
        match self.begun {
            None => !self.communicator.busy.load(Ordering::Acquire),
            Some(_) => {
                let wire = &self.communicator.wire;
                self.ends() && self.awaited().iter().all(|(from, about, _)| wire.has(*from, *about))
            }
        }
    }

    /// The first half.
    pub(crate) fn begin(&mut self, memory: &mut Memory) -> Result<(), Fault> {
        let [reads, writes] = self.places();
        let mine = read_all(memory, &reads)?;
        for (at, bytes) in writes.into_iter().filter(|(_, bytes)| *bytes > 0) {
            memory.fill(at, 0xff, bytes)?;
        }
        self.communicator.busy.store(true, Ordering::Release);
        if let Some(Wrong::Fails(code)) = self.wrong {
            self.communicator.set_state(code);
        }
        if self.ends() {
            self.send(&mine);
        }
        self.begun = Some(mine);
        Ok(())
    }

    fn send(&self, mine: &[u8]) {
        let (wire, head, part) = (&self.communicator.wire, self.head(), self.part());
        match self.op {
            Op::AllReduce | Op::AllGather => {
                self.others().for_each(|other| wire.send(other, About::Values, head, mine));
            }
            Op::ReduceScatter => {
                self.others().for_each(|o| wire.send(o, About::Values, head, &mine[o * part..(o + 1) * part]));
            }
            Op::Broadcast if self.is_root() => {
                self.others().for_each(|other| wire.send(other, About::Values, head, mine));
            }
            Op::Broadcast => {}
            Op::Messages => {
                let mut rest = mine;
                for leg in &self.legs {
                    if leg.comes {
                        wire.send(leg.peer, About::Taken, leg.head(), &[]);
                    } else {
                        let (values, others) = rest.split_at(leg.bytes());
                        wire.send(leg.peer, About::Values, leg.head(), values);
                        rest = others;
                    }
                }
            }
        }
    }

    /// The second half.
    pub(crate) fn end(self, memory: &mut Memory) -> Result<(), Fault> {
        let communicator = self.communicator.clone();
        let result = self.bring(memory);
        communicator.busy.store(false, Ordering::Release);
        communicator.open.fetch_sub(1, Ordering::AcqRel);
        result
    }

    fn bring(mut self, memory: &mut Memory) -> Result<(), Fault> {
        let Some(mine) = self.begun.take().filter(|_| !self.communicator.is_aborted()) else { return Ok(()) };
        self.look(memory, &mine)?;
        let mut parts: Vec<Vec<u8>> = vec![Vec::new(); self.communicator.ranks];
        for (from, about, head) in self.awaited() {
            let Some(message) = self.communicator.wire.take(from, about) else { continue };
            if message.head != head {
                let rank = self.communicator.rank;
                tell(&format!("NCCL: rank {from} called {:?} where rank {rank} called {head:?}", message.head));
                self.communicator.set_state(code::INVALID_USAGE);
                return Ok(());
            }
            if about == About::Values {
                parts[from] = message.bytes;
            }
        }
        let rank = self.communicator.rank;
        match self.op {
            Op::AllReduce => {
                parts[rank] = mine;
                let mut sum = self.sum(&parts);
                if self.wrong == Some(Wrong::Corrupts) {
                    corrupt(&mut sum);
                }
                memory.write(self.to, &sum)
            }
            Op::ReduceScatter => {
                parts[rank] = mine[rank * self.part()..(rank + 1) * self.part()].to_vec();
                memory.write(self.to, &self.sum(&parts))
            }
            Op::AllGather => {
                parts[rank] = mine;
                memory.write(self.to, &parts.concat())
            }
            Op::Broadcast if self.is_root() => Ok(()),
            Op::Broadcast => memory.write(self.to, &parts[self.peer]),
            Op::Messages => {
                self.legs.iter().filter(|leg| leg.comes).try_for_each(|leg| memory.write(leg.at, &parts[leg.peer]))
            }
        }
    }

    /// Whether somebody wrote what this call reads or writes.
    fn look(&self, memory: &Memory, mine: &[u8]) -> Result<(), Fault> {
        let [reads, writes] = self.places();
        let mut written = read_all(memory, &writes)?.iter().any(|byte| *byte != 0xff);
        let mut rest = mine;
        for (at, bytes) in reads {
            let (then, others) = rest.split_at(bytes);
            rest = others;
            // Where it works in place, what it reads is among what it writes.
            let apart =
                |(to, length): &(u64, usize)| *length == 0 || at + bytes as u64 <= *to || to + *length as u64 <= at;
            if writes.iter().all(apart) {
                written |= read_all(memory, &[(at, bytes)])? != then;
            }
        }
        if written {
            tell(&format!("NCCL: what {:?} works on was written meanwhile", self.op));
            self.communicator.set_state(code::UNHANDLED_CUDA_ERROR);
        }
        Ok(())
    }

    /// In the order of the ranks, rounded once.
    fn sum(&self, parts: &[Vec<u8>]) -> Vec<u8> {
        let mut sums = vec![0.0; self.count];
        for part in parts {
            sums.iter_mut().zip(self.of.values(part)).for_each(|(sum, value)| *sum += value);
        }
        self.of.rounded(&sums)
    }
}

/// Spoils a line of a processor's cache, as where a bridge loses a write.
pub(crate) fn corrupt(bytes: &mut [u8]) {
    let at = bytes.len() / 3;
    let end = (at + 64).min(bytes.len());
    bytes[at..end].fill(0xff);
}

/// The bytes of several places, end to end.
fn read_all(memory: &Memory, places: &[(u64, usize)]) -> Result<Vec<u8>, Fault> {
    let mut all = Vec::new();
    for (at, bytes) in places {
        let start = all.len();
        all.resize(start + bytes, 0);
        memory.read(*at, &mut all[start..])?;
    }
    Ok(all)
}
