//! A device's memory: best fit with merging of neighbours inside reserved ranges of addresses.
//!
//! On the CPU a training step frees its activations in the reverse order of their allocation, step after step; giving
//! them back to the system would mean a page fault for every page of every step (measured: 6 to 12 % of a
//! step). So blocks are kept, neighbours merged, and the lowest fitting address wins among equals, which keeps
//! the resident peak near the live peak. Addresses are reserved without memory behind them; a page becomes
//! resident when it is first written.
//!
//! On a GPU the ranges are the driver's ([`Ranges`]), the first as large as the plan says. A block may be given out again at once
//! there too: all work on blocks is in one stream, so the next owner's work comes after the last one's.

use std::collections::{BTreeMap, BTreeSet};

/// Where ranges of addresses come from.
pub(crate) trait Ranges: Send {
    /// A range of at least `least` bytes; `None` if there is no more.
    fn range(&mut self, least: usize) -> Option<Range>;
    /// What blocks begin at multiples of.
    fn align(&self) -> usize;
}

/// A range of addresses, and what keeps it.
pub(crate) struct Range {
    pub(crate) begin: *mut u8,
    pub(crate) bytes: usize,
    pub(crate) _hold: Box<dyn Send>,
}

// SAFETY: an address, which says nothing of who may use what is there.
unsafe impl Send for Range {}

/// The processor's: address ranges of the system, without memory behind them until they are written.
pub(crate) struct HostRanges {
    /// Bytes of a range, unless the system allows no more.
    pub(crate) reserve: usize,
}

/// Nobody's: addresses that nothing will ever lie at, to see how blocks would lie.
pub(crate) struct NoRanges {
    /// What blocks begin at multiples of.
    pub(crate) align: usize,
}

/// Reserved ranges with their free blocks.
pub(crate) struct Heap {
    arenas: Vec<Arena>,
    ranges: Box<dyn Ranges>,
}

struct Arena {
    range: Range,
    /// Of the range, those that blocks are made of.
    bytes: usize,
    /// Offset to size of each free block; neighbours are always merged.
    by_offset: BTreeMap<usize, usize>,
    /// The same blocks as (size, offset), for best fit.
    by_size: BTreeSet<(usize, usize)>,
    /// Where the block ended that reached farthest.
    reached: usize,
}

/// A block handed out: where it lies and how to give it back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Block {
    pub(crate) ptr: *mut u8,
    arena: usize,
    offset: usize,
    size: usize,
}

impl Block {
    /// An allocation that belongs to no heap.
    pub(crate) fn alone(ptr: *mut u8) -> Self {
        Self { ptr, arena: usize::MAX, offset: 0, size: 0 }
    }
}

impl Heap {
    pub(crate) fn new(ranges: impl Ranges + 'static) -> Self {
        Self { arenas: Vec::new(), ranges: Box::new(ranges) }
    }

    /// A block of at least `bytes`, aligned as the ranges say; `None` if there is no more.
    pub(crate) fn take(&mut self, bytes: usize) -> Option<Block> {
        let align = self.ranges.align();
        let size = bytes.max(1).checked_next_multiple_of(align)?;
        let fit = |(arena, a): (usize, &Arena)| a.best(size).map(|offset| (arena, offset));
        let (arena, offset) = match self.arenas.iter().enumerate().find_map(fit) {
            Some(found) => found,
            None => {
                self.arenas.push(Arena::new(self.ranges.range(size)?, align));
                (self.arenas.len() - 1, 0)
            }
        };
        Some(self.arenas[arena].cut(arena, offset, size))
    }

    /// Takes a range of at least `bytes` at once, so that blocks up to that sum lie side by side; false if there is none. Ranges that
    /// nobody uses any more go back first: there may be no room for both.
    pub(crate) fn reserve(&mut self, bytes: usize) -> bool {
        self.give_back();
        let align = self.ranges.align();
        let Some(range) = self.ranges.range(bytes) else { return false };
        self.arenas.push(Arena::new(range, align));
        true
    }

    /// Gives back ranges that nobody uses any more. Blocks know their range by its number, so those before one in use stay.
    pub(crate) fn give_back(&mut self) {
        while self.arenas.last().is_some_and(Arena::is_free) {
            self.arenas.pop();
        }
    }

    /// Bytes of all ranges that blocks have lain on: what is live at the most, and what lay idle between.
    pub(crate) fn extent(&self) -> u64 {
        self.arenas.iter().map(|arena| arena.reached as u64).sum()
    }

    /// Takes a block back.
    pub(crate) fn give(&mut self, block: Block) {
        self.arenas[block.arena].insert(block.offset, block.size);
    }
}

impl HostRanges {
    /// A cache line, and the width of the widest vector.
    pub(crate) const ALIGN: usize = 64;
}

impl Ranges for HostRanges {
    /// The wanted address range, or a smaller one if the system allows no more, but never below `least`.
    fn range(&mut self, least: usize) -> Option<Range> {
        let mut bytes = self.reserve.max(least);
        let mut map = loop {
            let mut options = memmap2::MmapOptions::new();
            match options.len(bytes).no_reserve_swap().map_anon() {
                Ok(map) => break map,
                Err(_) if bytes > least => bytes = (bytes / 2).max(least),
                Err(_) => return None,
            }
        };
        // Fewer faults and address look-ups; a system without huge pages says no, which changes nothing.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Some(Range { begin: map.as_mut_ptr(), bytes, _hold: Box::new(map) })
    }

    fn align(&self) -> usize {
        Self::ALIGN
    }
}

impl Ranges for NoRanges {
    fn range(&mut self, least: usize) -> Option<Range> {
        let bytes = usize::MAX / 2;
        (least <= bytes).then(|| Range { begin: std::ptr::null_mut(), bytes, _hold: Box::new(()) })
    }

    fn align(&self) -> usize {
        self.align
    }
}

impl Arena {
    fn new(range: Range, align: usize) -> Self {
        let bytes = range.bytes / align * align;
        let mut arena = Self { range, bytes, by_offset: BTreeMap::new(), by_size: BTreeSet::new(), reached: 0 };
        arena.insert(0, bytes);
        arena
    }

    fn is_free(&self) -> bool {
        self.by_offset.get(&0) == Some(&self.bytes)
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
        self.reached = self.reached.max(offset + size);
        let ptr = self.range.begin.wrapping_add(offset);
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
        let mut heap = Heap::new(HostRanges { reserve: 1 << 20 });
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
            assert!(live.iter().all(|b| (b.ptr as usize).is_multiple_of(64)));
        }
        live.into_iter().for_each(|b| heap.give(b));
        assert!(heap.arenas.iter().all(|a| a.by_offset.len() == 1 && a.by_size.len() == 1));
    }

    #[test]
    fn a_block_larger_than_the_reserve_gets_its_own_range() {
        let mut heap = Heap::new(HostRanges { reserve: 4096 });
        assert!(heap.take(100_000).is_some());
        assert!(heap.take(usize::MAX).is_none());
    }
}
