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
    Send,
    Receive,
}

/// How a call goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// It never ends.
    Hangs,
    /// Nor does this, and the communicator says so.
    Fails(i32),
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
    /// The other rank of a message, or the root of a broadcast.
    pub(crate) peer: usize,
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) wrong: Option<Wrong>,
    /// What it read, once it has begun.
    pub(crate) begun: Option<Vec<u8>>,
}

impl Exchange {
    fn others(&self) -> impl Iterator<Item = usize> {
        let rank = self.communicator.rank;
        (0..self.communicator.ranks).filter(move |other| *other != rank)
    }

    fn is_root(&self) -> bool {
        self.peer == self.communicator.rank
    }

    fn part(&self) -> usize {
        self.count * self.of.bytes()
    }

    /// Bytes that are read, and bytes that are written.
    fn sizes(&self) -> (usize, usize) {
        let (part, all) = (self.part(), self.part() * self.communicator.ranks);
        match self.op {
            Op::AllReduce => (part, part),
            Op::ReduceScatter => (all, part),
            Op::AllGather => (part, all),
            Op::Broadcast if self.is_root() => (part, 0),
            Op::Broadcast | Op::Receive => (0, part),
            Op::Send => (part, 0),
        }
    }

    fn head(&self) -> Head {
        // A send and its receive are one call, of whom is told by the connection.
        let (op, root) = match self.op {
            Op::Send | Op::Receive => (Op::Send, 0),
            Op::Broadcast => (self.op, self.peer),
            op => (op, 0),
        };
        Head { op: op as u8, of: self.of as u8, root: root as u32, count: self.count as u64 }
    }

    /// From whom what must have come.
    fn awaited(&self) -> Vec<(usize, About)> {
        match self.op {
            Op::AllReduce | Op::ReduceScatter | Op::AllGather => {
                self.others().map(|other| (other, About::Values)).collect()
            }
            Op::Broadcast if self.is_root() => Vec::new(),
            Op::Broadcast | Op::Receive => vec![(self.peer, About::Values)],
            Op::Send => vec![(self.peer, About::Taken)],
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
                self.wrong.is_none() && self.awaited().iter().all(|(from, about)| wire.has(*from, *about))
            }
        }
    }

    /// The first half.
    pub(crate) fn begin(&mut self, memory: &mut Memory) -> Result<(), Fault> {
        let (reads, writes) = self.sizes();
        let mut mine = vec![0; reads];
        memory.read(self.from, &mut mine)?;
        if writes > 0 {
            memory.fill(self.to, 0xff, writes)?;
        }
        self.communicator.busy.store(true, Ordering::Release);
        if let Some(Wrong::Fails(code)) = self.wrong {
            self.communicator.set_state(code);
        }
        if self.wrong.is_none() {
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
            Op::Send => wire.send(self.peer, About::Values, head, mine),
            Op::Receive => wire.send(self.peer, About::Taken, head, &[]),
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
        for (from, about) in self.awaited() {
            let Some(message) = self.communicator.wire.take(from, about) else { continue };
            if message.head != self.head() {
                let rank = self.communicator.rank;
                tell(&format!(
                    "NCCL: rank {from} called {:?} where rank {rank} called {:?}",
                    message.head,
                    self.head()
                ));
                self.communicator.set_state(code::INVALID_USAGE);
                return Ok(());
            }
            parts[from] = message.bytes;
        }
        let rank = self.communicator.rank;
        match self.op {
            Op::AllReduce => {
                parts[rank] = mine;
                memory.write(self.to, &self.sum(&parts))
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
            Op::Broadcast | Op::Receive => memory.write(self.to, &parts[self.peer]),
            Op::Send => Ok(()),
        }
    }

    /// Whether somebody wrote what this call reads or writes.
    fn look(&self, memory: &Memory, mine: &[u8]) -> Result<(), Fault> {
        let (reads, writes) = self.sizes();
        let mut now = vec![0; writes];
        memory.read(self.to, &mut now)?;
        let mut written = now.iter().any(|byte| *byte != 0xff);
        // Where it works in place, what it reads is among that.
        let apart = self.from + reads as u64 <= self.to || self.to + writes as u64 <= self.from;
        if apart || writes == 0 {
            let mut now = vec![0; reads];
            memory.read(self.from, &mut now)?;
            written |= now != mine;
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
