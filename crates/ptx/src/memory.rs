//! Global memory: allocations at addresses like a device's, with a record of who wrote what.
//!
//! Two bytes share a record, the smallest unit that kernels of this project write.

use std::collections::BTreeMap;

use crate::{Cause, Fault};

/// First address; a GPU's lie in this region too.
const BASE: u64 = 0x7f40_0000_0000;
/// Alignment of allocations, as a driver's.
const ALIGN: u64 = 512;
/// Unused bytes between allocations, so that an overrun hits none.
const GAP: u64 = 1 << 16;

/// Never written.
const FRESH: u32 = 0;
/// Written by the host or an earlier launch, at the latest.
const OLD: u32 = 1;

#[derive(Debug)]
struct Allocation {
    bytes: Vec<u8>,
    /// By pairs of bytes: [`FRESH`], or [`OLD`], or the stamp of the block that wrote last.
    stamps: Vec<u32>,
}

/// Device memory.
#[derive(Debug)]
pub struct Memory {
    allocations: BTreeMap<u64, Allocation>,
    next: u64,
    /// The stamp of the first block of the current launch.
    launch: u32,
    after: u32,
}

/// Who accesses: a block of the current launch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Accessor(pub(crate) u32);

impl Default for Memory {
    fn default() -> Self {
        Self { allocations: BTreeMap::new(), next: BASE, launch: OLD + 1, after: OLD + 1 }
    }
}

impl Memory {
    /// No allocation yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Address of `bytes` new bytes, which nobody has written. Addresses are never given twice.
    pub fn alloc(&mut self, bytes: usize) -> u64 {
        let at = self.next;
        let contents = Allocation { bytes: vec![0xff; bytes], stamps: vec![FRESH; bytes.div_ceil(2)] };
        self.allocations.insert(at, contents);
        self.next = (at + bytes as u64 + GAP).next_multiple_of(ALIGN);
        at
    }

    /// Ends an allocation.
    ///
    /// # Errors
    /// If none begins at `address`.
    pub fn free(&mut self, address: u64) -> Result<(), Fault> {
        match self.allocations.remove(&address) {
            Some(_) => Ok(()),
            None => Err(Fault::Host(self.outside(address, 0))),
        }
    }

    /// Writes from the host.
    ///
    /// # Errors
    /// If the bytes aren't in one allocation.
    pub fn write(&mut self, address: u64, from: &[u8]) -> Result<(), Fault> {
        let (held, at) = self.find(address, from.len() as u64).map_err(Fault::Host)?;
        held.bytes[at..at + from.len()].copy_from_slice(from);
        held.stamps[at / 2..(at + from.len()).div_ceil(2)].fill(OLD);
        Ok(())
    }

    /// Sets `bytes` bytes to `value`.
    ///
    /// # Errors
    /// If the bytes aren't in one allocation.
    pub fn fill(&mut self, address: u64, value: u8, bytes: usize) -> Result<(), Fault> {
        let (held, at) = self.find(address, bytes as u64).map_err(Fault::Host)?;
        held.bytes[at..at + bytes].fill(value);
        held.stamps[at / 2..(at + bytes).div_ceil(2)].fill(OLD);
        Ok(())
    }

    /// Reads to the host.
    ///
    /// # Errors
    /// If the bytes aren't in one allocation, or one of them was never written.
    pub fn read(&self, address: u64, to: &mut [u8]) -> Result<(), Fault> {
        let (held, at) = self.held(address, to.len() as u64).map_err(Fault::Host)?;
        if let Some(i) = held.stamps[at / 2..(at + to.len()).div_ceil(2)].iter().position(|&s| s == FRESH) {
            return Err(Fault::Host(Cause::Uninitialised { address: address + 2 * i as u64 }));
        }
        to.copy_from_slice(&held.bytes[at..at + to.len()]);
        Ok(())
    }

    /// Copies bytes inside the device; what was never written stays so.
    ///
    /// # Errors
    /// If either range isn't in one allocation, or an address is odd.
    pub fn copy(&mut self, to: u64, from: u64, bytes: usize) -> Result<(), Fault> {
        for address in [to, from] {
            if !address.is_multiple_of(2) {
                return Err(Fault::Host(Cause::Misaligned { address, bytes: 2 }));
            }
        }
        let (held, at) = self.held(from, bytes as u64).map_err(Fault::Host)?;
        let contents = held.bytes[at..at + bytes].to_vec();
        let stamps = held.stamps[at / 2..(at + bytes).div_ceil(2)].to_vec();
        let (held, at) = self.find(to, bytes as u64).map_err(Fault::Host)?;
        held.bytes[at..at + bytes].copy_from_slice(&contents);
        let written = held.stamps[at / 2..].iter_mut();
        written.zip(stamps).for_each(|(to, from)| *to = from.min(OLD));
        Ok(())
    }

    /// Bytes of all allocations.
    pub fn live(&self) -> usize {
        self.allocations.values().map(|a| a.bytes.len()).sum()
    }

    /// A launch of so many blocks begins.
    pub(crate) fn begin(&mut self, blocks: u32) {
        if self.after.checked_add(blocks).is_none() {
            self.allocations.values_mut().flat_map(|a| &mut a.stamps).for_each(|s| *s = (*s).min(OLD));
            self.after = OLD + 1;
        }
        self.launch = self.after;
        self.after = self.after.saturating_add(blocks);
    }

    /// Reads bytes for a thread.
    pub(crate) fn load_bytes(&self, who: Accessor, address: u64, bytes: usize) -> Result<&[u8], Cause> {
        let (held, at) = self.held(address, bytes as u64)?;
        let own = self.launch + who.0;
        for (i, &stamp) in held.stamps[at / 2..(at + bytes).div_ceil(2)].iter().enumerate() {
            if stamp == FRESH {
                return Err(Cause::Uninitialised { address });
            }
            if stamp >= self.launch && stamp != own {
                return Err(Cause::GlobalRace { address: address + 2 * i as u64, other: stamp - self.launch });
            }
        }
        Ok(&held.bytes[at..at + bytes])
    }

    /// Writes at most eight bytes for a thread.
    pub(crate) fn store(&mut self, who: Accessor, address: u64, bytes: usize, value: u64) -> Result<(), Cause> {
        let launch = self.launch;
        let own = launch + who.0;
        let (held, at) = self.find(address, bytes as u64)?;
        for stamp in &mut held.stamps[at / 2..(at + bytes).div_ceil(2)] {
            if *stamp >= launch && *stamp != own {
                return Err(Cause::GlobalRace { address, other: *stamp - launch });
            }
            *stamp = own;
        }
        held.bytes[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
        Ok(())
    }

    fn held(&self, address: u64, bytes: u64) -> Result<(&Allocation, usize), Cause> {
        let found = self.allocations.range(..=address).next_back();
        match found {
            Some((&base, held)) if fits(address - base, bytes, held) => Ok((held, (address - base) as usize)),
            _ => Err(self.outside(address, bytes)),
        }
    }

    fn find(&mut self, address: u64, bytes: u64) -> Result<(&mut Allocation, usize), Cause> {
        let outside = self.held(address, bytes).err();
        match (outside, self.allocations.range_mut(..=address).next_back()) {
            (None, Some((&base, held))) => Ok((held, (address - base) as usize)),
            (outside, _) => Err(outside.unwrap_or(Cause::OutOfBounds { address, bytes, near: String::new() })),
        }
    }

    fn outside(&self, address: u64, bytes: u64) -> Cause {
        let before = self.allocations.range(..=address).next_back();
        let near = before.map_or(String::new(), |(base, held)| {
            format!(", {} after the begin of one of {} bytes", address - base, held.bytes.len())
        });
        Cause::OutOfBounds { address, bytes, near }
    }
}

fn fits(at: u64, bytes: u64, held: &Allocation) -> bool {
    let len = held.bytes.len() as u64;
    at <= len && bytes <= len - at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_held_to_its_allocations() {
        let mut memory = Memory::new();
        let (a, b) = (memory.alloc(10), memory.alloc(4));
        assert!(a.is_multiple_of(ALIGN) && b >= a + 10 + GAP);
        memory.write(a + 2, &[1, 2, 3, 4]).unwrap();
        let mut got = [0; 4];
        memory.read(a + 2, &mut got).unwrap();
        assert_eq!(got, [1, 2, 3, 4]);
        assert_eq!(memory.read(a, &mut got), Err(Fault::Host(Cause::Uninitialised { address: a })));
        assert!(matches!(memory.write(a + 8, &got), Err(Fault::Host(Cause::OutOfBounds { .. }))));
        memory.copy(b, a + 4, 4).unwrap();
        assert_eq!(memory.read(b, &mut got), Err(Fault::Host(Cause::Uninitialised { address: b + 2 })));
        memory.free(a).unwrap();
        assert!(memory.free(a).is_err() && memory.read(a + 2, &mut got).is_err());
        assert_eq!(memory.live(), 4);
    }

    #[test]
    fn blocks_of_a_launch_dont_see_each_other() {
        let mut memory = Memory::new();
        let a = memory.alloc(8);
        memory.begin(2);
        memory.store(Accessor(0), a, 4, 7).unwrap();
        assert_eq!(memory.load_bytes(Accessor(0), a, 4), Ok(&[7, 0, 0, 0][..]));
        assert_eq!(memory.load_bytes(Accessor(1), a, 4), Err(Cause::GlobalRace { address: a, other: 0 }));
        assert!(memory.store(Accessor(1), a + 2, 2, 1).is_err());
        memory.begin(1);
        assert_eq!(memory.load_bytes(Accessor(0), a, 4), Ok(&[7, 0, 0, 0][..]));
    }
}
