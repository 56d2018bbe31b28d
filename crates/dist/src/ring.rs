//! Carries out the ring's algorithms over any transport; [`schedule`](crate::schedule) says what they are.

use crate::CommError;
use crate::schedule::{self, SEGMENT, Step};
use crate::transport::{Call, Head, Incoming, Outgoing, Transport};
use crate::worker::Traffic;
use ferrotune_tensor::DType;
use half::{bf16, f16};
use std::ops::Range;

/// Most bytes that one rank may bring to an exchange.
pub(crate) const MOST_EXCHANGED: u64 = 1 << 30;

/// One collective of a group under way.
pub(crate) struct Round<'a> {
    pub(crate) transport: &'a mut dyn Transport,
    pub(crate) traffic: &'a Traffic,
    /// World ranks of the group.
    pub(crate) ranks: &'a [usize],
    /// Number of this rank in the group.
    pub(crate) rank: usize,
    pub(crate) call: Call,
    /// Type of what is summed.
    pub(crate) of: DType,
    pub(crate) sent: u32,
    pub(crate) received: u32,
}

impl Round<'_> {
    /// The ring over `bytes` bytes of elements of `unit` bytes.
    pub(crate) fn ring(&self, bytes: usize, unit: usize) -> schedule::Ring {
        schedule::Ring { rank: self.rank, world: self.ranks.len(), bytes, unit }
    }

    /// Moves and adds as `steps` say. `scratch` receives what is to be added.
    pub(crate) fn run(
        &mut self,
        steps: impl Iterator<Item = Step>,
        buffer: &mut [u8],
        scratch: &mut Vec<f32>,
    ) -> Result<(), CommError> {
        for Step { send, recv, add } in steps {
            if !add {
                let (send, recv) = both(buffer, send, recv);
                self.pass(send, recv)?;
                continue;
            }
            scratch.resize(SEGMENT / size_of::<f32>(), 0.0);
            let length = recv.len();
            let received: &mut [u8] = bytemuck::cast_slice_mut(scratch);
            self.pass(&buffer[send], &mut received[..length])?;
            sum(self.of, &mut buffer[recv], &received[..length]);
        }
        Ok(())
    }

    /// Gathers byte strings of any lengths, in rank order: first their lengths go around, then they.
    pub(crate) fn exchange(&mut self, mine: Vec<u8>) -> Result<Vec<Vec<u8>>, CommError> {
        let world = self.ranks.len();
        let mut lengths = vec![0; world * 8];
        lengths[self.rank * 8..][..8].copy_from_slice(&(mine.len() as u64).to_le_bytes());
        self.run(self.ring(lengths.len(), 8).all_gather(), &mut lengths, &mut Vec::new())?;
        let number = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
        let lengths: Vec<u64> = lengths.chunks_exact(8).map(number).collect();
        if let Some(rank) = lengths.iter().position(|length| *length > MOST_EXCHANGED) {
            let bytes = lengths[rank];
            let rank = self.ranks[rank];
            return Err(CommError::Ended(format!("rank {rank} brought {bytes} bytes to an exchange of small things")));
        }
        let mut all = vec![Vec::new(); world];
        all[self.rank] = mine;
        for i in 1..world {
            let rank = self.rank;
            let from = |i: usize| (rank + world - i) % world;
            let out = std::mem::take(&mut all[from(i - 1)]);
            all[from(i)] = self.pass_on(&out, lengths[from(i)] as usize)?;
            all[from(i - 1)] = out;
        }
        Ok(all)
    }

    /// Sends `out` and receives `length` bytes; memory grows with what arrives, not with what is announced.
    fn pass_on(&mut self, out: &[u8], length: usize) -> Result<Vec<u8>, CommError> {
        let mut into = Vec::new();
        for i in 0..out.len().max(length).div_ceil(SEGMENT) {
            let recv = schedule::segment(&(0..length), i);
            into.resize(recv.end, 0);
            self.pass(&out[schedule::segment(&(0..out.len()), i)], &mut into[recv])?;
        }
        Ok(into)
    }

    /// Sends to the next rank and receives from the previous one; nothing where a slice is empty.
    fn pass(&mut self, send: &[u8], recv: &mut [u8]) -> Result<(), CommError> {
        let world = self.ranks.len();
        let to = self.ranks[(self.rank + 1) % world];
        let from = self.ranks[(self.rank + world - 1) % world];
        let head = |step: u32, bytes: usize| Head { call: self.call, step, length: bytes as u64 };
        let out = Outgoing { to, head: head(self.sent, send.len()), bytes: send };
        let into = Incoming { from, head: head(self.received, recv.len()), bytes: recv };
        let out = (!out.bytes.is_empty()).then_some(out);
        let into = (!into.bytes.is_empty()).then_some(into);
        self.traffic.add(to, send.len());
        self.sent += u32::from(out.is_some());
        self.received += u32::from(into.is_some());
        self.transport.duplex(out, into)
    }
}

/// Two ranges of a buffer that don't overlap, one to be read and one to be written.
fn both(buffer: &mut [u8], read: Range<usize>, write: Range<usize>) -> (&[u8], &mut [u8]) {
    if read.start < write.start {
        let (low, high) = buffer.split_at_mut(write.start);
        (&low[read], &mut high[..write.len()])
    } else if read.is_empty() {
        (&[], &mut buffer[write])
    } else {
        let (low, high) = buffer.split_at_mut(read.start);
        (&high[..read.len()], &mut low[write])
    }
}

/// Adds values of a type; halves are added as f32 and rounded.
fn sum(of: DType, to: &mut [u8], values: &[u8]) {
    match of {
        DType::Bf16 => halves(to, values, |value| bf16::from_bits(value).to_f32(), |sum| bf16::from_f32(sum).to_bits()),
        DType::F16 => halves(to, values, |value| f16::from_bits(value).to_f32(), |sum| f16::from_f32(sum).to_bits()),
        _ => {
            let to: &mut [f32] = bytemuck::cast_slice_mut(to);
            let values: &[f32] = bytemuck::cast_slice(values);
            to.iter_mut().zip(values).for_each(|(to, value)| *to += value);
        }
    }
}

fn halves(to: &mut [u8], values: &[u8], wide: impl Fn(u16) -> f32, narrow: impl Fn(f32) -> u16) {
    let to: &mut [u16] = bytemuck::cast_slice_mut(to);
    let values: &[u16] = bytemuck::cast_slice(values);
    to.iter_mut().zip(values).for_each(|(to, value)| *to = narrow(wide(*to) + wide(*value)));
}
