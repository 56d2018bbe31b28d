//! The order of rows in training, as a pure function.
//!
//! A run that is resumed must find its place at once and on any number of ranks, so the order is
//! not a list made by a generator but a keyed permutation: a Feistel network over the smallest
//! even number of bits that holds the row count, walked until it lands inside
//! (cycle walking, Black and Rogaway 2002, <https://doi.org/10.1007/3-540-45760-7_9>).

/// Which row stands at which position of which epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampler {
    len: usize,
    seed: u64,
    shuffle: bool,
}

/// Rounds of the network; four already give a good permutation, two more cost nothing here.
const ROUNDS: u64 = 6;

impl Sampler {
    /// A sampler of `len` rows. Without `shuffle` every epoch is in file order.
    pub fn new(len: usize, seed: u64, shuffle: bool) -> Self {
        Self { len, seed, shuffle }
    }

    /// Rows of an epoch.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The row at `position` of `epoch`: within an epoch each row stands at exactly one position.
    ///
    /// # Panics
    /// If `position` is not below [`Sampler::len`].
    pub fn row(&self, epoch: u64, position: usize) -> usize {
        assert!(position < self.len, "position {position} of an epoch of {} rows", self.len);
        if !self.shuffle {
            return position;
        }
        let key = scramble(scramble(self.seed).wrapping_add(epoch));
        let bits = usize::BITS - (self.len - 1).leading_zeros();
        let half = bits.div_ceil(2).max(1);
        let mut place = position as u64;
        // The network permutes 0..4^half, less than four times the rows, so that a walk that starts
        // inside comes back inside, after four steps on average at the worst.
        loop {
            place = permute(place, half, key);
            if place < self.len as u64 {
                return place as usize;
            }
        }
    }
}

fn permute(place: u64, half: u32, key: u64) -> u64 {
    let mask = (1 << half) - 1;
    let (mut left, mut right) = (place >> half, place & mask);
    for round in 0..ROUNDS {
        let mixed = scramble(key ^ right.wrapping_add(round << 40)) & mask;
        (left, right) = (right, left ^ mixed);
    }
    left << half | right
}

/// The finaliser of SplitMix64, <https://doi.org/10.1145/2660193.2660195>.
fn scramble(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(sampler: Sampler, epoch: u64) -> Vec<usize> {
        (0..sampler.len()).map(|position| sampler.row(epoch, position)).collect()
    }

    #[test]
    fn every_epoch_is_a_permutation() {
        for len in (0..70).chain([127, 128, 129, 255, 256, 257, 1000, 4097]) {
            for seed in 0..3 {
                let mut rows = epoch(Sampler::new(len, seed, true), seed);
                rows.sort_unstable();
                assert!(rows.into_iter().eq(0..len), "{len} rows, seed {seed}");
            }
        }
    }

    const PINNED_0: [usize; 10] = [5, 8, 3, 1, 4, 2, 6, 9, 0, 7];
    const PINNED_1: [usize; 10] = [8, 4, 7, 1, 5, 6, 0, 3, 2, 9];
    const PINNED_FAR: usize = 868_812;

    #[test]
    fn order_is_pinned() {
        // A change here would silently change what resumed runs train on.
        assert_eq!(epoch(Sampler::new(10, 42, true), 0), PINNED_0);
        assert_eq!(epoch(Sampler::new(10, 42, true), 1), PINNED_1);
        assert_eq!(epoch(Sampler::new(4, 42, false), 9), [0, 1, 2, 3]);
        assert_eq!(Sampler::new(1_000_003, 7, true).row(2, 999_999), PINNED_FAR);
    }

    #[test]
    fn rows_land_everywhere_equally_often() {
        const LEN: usize = 13;
        const EPOCHS: u64 = 13_000;
        let sampler = Sampler::new(LEN, 1, true);
        let mut counts = [[0_u32; LEN]; LEN];
        for epoch in 0..EPOCHS {
            for (position, seen) in counts.iter_mut().enumerate() {
                seen[sampler.row(epoch, position)] += 1;
            }
        }
        // 1000 expected in each cell, standard deviation 30: five of them.
        assert!(counts.as_flattened().iter().all(|&count| (850..1150).contains(&count)), "{counts:?}");
    }

    #[test]
    fn neighbours_do_not_stay_together() {
        let rows = epoch(Sampler::new(5000, 3, true), 0);
        let together = rows.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) == 1).count();
        assert!(together < 15, "{together} of 2 expected");
    }
}
