//! What memory accesses cost, counted as the hardware serves them: a warp's global access in sectors of 32 bytes, its shared
//! access in passes over 32 banks of 4 bytes. Beside each is the least that the same bytes could cost.

/// Bytes of a sector of global memory.
const SECTOR: u64 = 32;
/// Banks of shared memory, 4 bytes each.
const BANKS: usize = 32;

/// Costs of memory accesses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Sectors that warps' accesses to global memory touch, each access by itself.
    pub sectors: u64,
    /// The sectors that hold as many bytes.
    pub least_sectors: u64,
    /// Passes over the banks that warps' accesses to shared memory take.
    pub passes: u64,
    /// The passes without a conflict.
    pub least_passes: u64,
}

impl std::ops::AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.sectors += other.sectors;
        self.least_sectors += other.least_sectors;
        self.passes += other.passes;
        self.least_passes += other.least_passes;
    }
}

impl Traffic {
    /// An access of a warp to global memory, `bytes` at each address. Lanes may share bytes.
    pub(crate) fn global(&mut self, addresses: &mut Vec<u64>, bytes: u64) {
        if bytes == 0 || addresses.is_empty() {
            return;
        }
        addresses.sort_unstable();
        addresses.dedup();
        let (mut next, mut distinct, mut end) = (0, 0, 0);
        for &at in addresses.iter() {
            distinct += (at + bytes) - at.max(end);
            end = at + bytes;
            let (first, last) = (at / SECTOR, (at + bytes - 1) / SECTOR);
            self.sectors += last + 1 - first.max(next).min(last + 1);
            next = last + 1;
        }
        self.least_sectors += distinct.div_ceil(SECTOR);
    }

    /// An access of a warp to shared memory. Lanes go together as long as their bytes fill the banks once; of those, equal
    /// words are read once.
    pub(crate) fn shared(&mut self, addresses: &[u64], bytes: u64) {
        let together = if bytes > 4 { BANKS * 4 / bytes as usize } else { BANKS };
        for lanes in addresses.chunks(together) {
            let mut words: Vec<u64> =
                lanes.iter().flat_map(|at| at / 4..(at + bytes).div_ceil(4).max(at / 4 + 1)).collect();
            words.sort_unstable();
            words.dedup();
            let mut banks = [0u64; BANKS];
            words.iter().for_each(|word| banks[*word as usize % BANKS] += 1);
            self.passes += banks.into_iter().max().unwrap_or(0);
            self.least_passes += (words.len() as u64).div_ceil(BANKS as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn global(addresses: impl Iterator<Item = u64>, bytes: u64) -> (u64, u64) {
        let mut traffic = Traffic::default();
        traffic.global(&mut addresses.collect(), bytes);
        (traffic.sectors, traffic.least_sectors)
    }

    fn shared(addresses: impl Iterator<Item = u64>, bytes: u64) -> (u64, u64) {
        let mut traffic = Traffic::default();
        traffic.shared(&addresses.collect::<Vec<_>>(), bytes);
        (traffic.passes, traffic.least_passes)
    }

    #[test]
    fn sectors_of_global_memory() {
        assert_eq!(global((0..32).map(|i| 4 * i), 4), (4, 4), "neighbours");
        assert_eq!(global((0..32).map(|i| 4 * i + 16), 4), (5, 4), "neighbours from the middle of a sector on");
        assert_eq!(global((0..32).map(|i| 128 * i), 4), (32, 4), "a column");
        assert_eq!(global((0..32).map(|i| 16 * (31 - i)), 16), (16, 16), "backwards");
        assert_eq!(global((0..32).map(|_| 64), 4), (1, 1), "all the same");
    }

    #[test]
    fn passes_over_the_banks() {
        assert_eq!(shared((0..32).map(|i| 4 * i), 4), (1, 1), "neighbours");
        assert_eq!(shared((0..32).map(|i| 128 * i), 4), (32, 1), "one bank");
        assert_eq!(shared((0..32).map(|i| 132 * i), 4), (1, 1), "a column of rows that are a word longer");
        assert_eq!(shared((0..32).map(|_| 8), 4), (1, 1), "all the same");
        assert_eq!(shared((0..32).map(|i| 16 * i), 16), (4, 4), "a quarter of a warp at a time");
        assert_eq!(shared((0..8).map(|i| 64 * i), 16), (4, 1), "rows of 64 bytes");
        assert_eq!(shared((0..32).map(|i| 2 * i), 2), (1, 1), "halves of words");
    }
}
