//! The CPU device's memory: best fit with merging of neighbours inside one reserved range of addresses.
//!
//! A training step frees its activations in the reverse order of their allocation, step after step; giving
//! them back to the system would mean a page fault for every page of every step (measured: 6 to 12 % of a
//! step). So blocks are kept, neighbours merged, and the lowest fitting address wins among equals, which keeps
//! the resident peak near the live peak. Addresses are reserved without memory behind them; a page becomes
//! resident when it is first written.

use std::collections::{BTreeMap, BTreeSet};

/// Blocks begin at multiples of this: a cache line, and the width of the widest vector.
pub(crate) const ALIGN: usize = 64;

/// One reserved range with its free blocks.
pub(crate) struct Heap {
    arenas: Vec<Arena>,
    reserve: usize,
}

struct Arena {
    map: memmap2::MmapMut,
    /// Offset to size of each free block; neighbours are always merged.
    by_offset: BTreeMap<usize, usize>,
    /// The same blocks as (size, offset), for best fit.
    by_size: BTreeSet<(usize, usize)>,
}

/// A block handed out: where it lies and how to give it back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Block {
    pub(crate) ptr: *mut u8,
    arena: usize,
    offset: usize,
    size: usize,
}

impl Heap {
    /// `reserve`: bytes of address range taken at a time.
    pub(crate) fn new(reserve: usize) -> Self {
        Self { arenas: Vec::new(), reserve }
    }

    /// A block of at least `bytes`, aligned to [`ALIGN`]; `None` if the system refuses.
    pub(crate) fn take(&mut self, bytes: usize) -> Option<Block> {
        let size = bytes.max(1).checked_next_multiple_of(ALIGN)?;
        let fit = |(arena, a): (usize, &Arena)| a.best(size).map(|offset| (arena, offset));
        let (arena, offset) = match self.arenas.iter().enumerate().find_map(fit) {
            Some(found) => found,
            None => {
                self.arenas.push(Arena::reserve(self.reserve, size)?);
                (self.arenas.len() - 1, 0)
            }
        };
        Some(self.arenas[arena].cut(arena, offset, size))
    }

    /// Takes a block back.
    pub(crate) fn give(&mut self, block: Block) {
        self.arenas[block.arena].insert(block.offset, block.size);
    }
}

impl Arena {
    /// The wanted address range, or a smaller one if the system allows no more, but never below `least`.
    fn reserve(wanted: usize, least: usize) -> Option<Self> {
        let mut len = wanted.max(least);
        let map = loop {
            let mut options = memmap2::MmapOptions::new();
            match options.len(len).no_reserve_swap().map_anon() {
                Ok(map) => break map,
                Err(_) if len > least => len = (len / 2).max(least),
                Err(_) => return None,
            }
        };
        // Fewer faults and address look-ups; a system without huge pages says no, which changes nothing.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let mut arena = Self { map, by_offset: BTreeMap::new(), by_size: BTreeSet::new() };
        arena.insert(0, len / ALIGN * ALIGN);
        Some(arena)
    }

    fn best(&self, size: usize) -> Option<usize> {
        self.by_size.range((size, 0)..).next().map(|&(_, offset)| offset)
    }

    fn cut(&mut self, arena: usize, offset: usize, size: usize) -> Block {
        let whole = self.by_offset.remove(&offset).expect("best() names a free block");
        self.by_size.remove(&(whole, offset));
        if whole > size {
            self.by_offset.insert(offset + size, whole - size);
            self.by_size.insert((whole - size, offset + size));
        }
        let ptr = self.map.as_mut_ptr().wrapping_add(offset);
        Block { ptr, arena, offset, size }
    }

    fn insert(&mut self, mut offset: usize, mut size: usize) {
        if let Some((&before, &len)) = self.by_offset.range(..offset).next_back()
            && before + len == offset
        {
            self.by_offset.remove(&before);
            self.by_size.remove(&(len, before));
            (offset, size) = (before, len + size);
        }
        if let Some(len) = self.by_offset.remove(&(offset + size)) {
            self.by_size.remove(&(len, offset + size));
            size += len;
        }
        self.by_offset.insert(offset, size);
        self.by_size.insert((size, offset));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_never_overlap_and_merge_back_into_one() {
        let mut heap = Heap::new(1 << 20);
        let mut live: Vec<Block> = Vec::new();
        let mut state = 7u64;
        for _ in 0..4000 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let pick = (state >> 33) as usize;
            if pick.is_multiple_of(3) && !live.is_empty() {
                heap.give(live.swap_remove(pick % live.len()));
            } else if live.len() < 60 {
                live.push(heap.take(pick % 9000).expect("memory"));
            }
            let mut spans: Vec<_> = live.iter().map(|b| (b.arena, b.offset, b.size)).collect();
            spans.sort_unstable();
            assert!(spans.windows(2).all(|w| w[0].0 != w[1].0 || w[0].1 + w[0].2 <= w[1].1));
            assert!(live.iter().all(|b| (b.ptr as usize).is_multiple_of(ALIGN)));
        }
        live.into_iter().for_each(|b| heap.give(b));
        assert!(heap.arenas.iter().all(|a| a.by_offset.len() == 1 && a.by_size.len() == 1));
    }

    #[test]
    fn a_block_larger_than_the_reserve_gets_its_own_range() {
        let mut heap = Heap::new(4096);
        assert!(heap.take(100_000).is_some());
        assert!(heap.take(usize::MAX).is_none());
    }
}
