//! NumPy's random numbers, bit for bit.
//!
//! LLaMA-Factory splits and mixes with NumPy through Hugging Face `datasets`. A user who moves a
//! recipe expects the same rows in the validation set, so the two generators involved are written
//! out here: `default_rng` (PCG64 seeded by SeedSequence, <https://www.pcg-random.org>) for splits
//! and mixes, and the older global MT19937 for `num_samples`.

/// `numpy.random.default_rng(seed)`.
#[derive(Debug, Clone)]
pub(crate) struct Generator {
    state: u128,
    increment: u128,
    /// The unused high half of a 64-bit draw.
    half: Option<u32>,
}

const PCG_MULTIPLIER: u128 = 0x2360_ed05_1fc6_5da4_4385_df64_9fcc_f645;

impl Generator {
    pub(crate) fn new(seed: u64) -> Self {
        let words = seed_sequence(seed);
        let pair = |i: usize| u128::from(words[i]) << 64 | u128::from(words[i + 1]);
        let mut generator = Self { state: 0, increment: pair(2) << 1 | 1, half: None };
        generator.step();
        generator.state = generator.state.wrapping_add(pair(0));
        generator.step();
        generator
    }

    fn step(&mut self) {
        self.state = self.state.wrapping_mul(PCG_MULTIPLIER).wrapping_add(self.increment);
    }

    /// XSL-RR output of the next state.
    pub(crate) fn next_u64(&mut self) -> u64 {
        self.step();
        let folded = (self.state >> 64) as u64 ^ self.state as u64;
        folded.rotate_right((self.state >> 122) as u32)
    }

    /// In [0, 1), 53 bits.
    pub(crate) fn random(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / 9_007_199_254_740_992.0)
    }

    /// `permutation(n)`.
    pub(crate) fn permutation(&mut self, n: u64) -> Vec<u64> {
        shuffled(self, n)
    }

    /// `shuffle(items)` of a list.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, interval(self, i as u64) as usize);
        }
    }

    /// One draw of `choice(cumulative.len(), p=..)`, with `cumulative` the normalised running sum.
    pub(crate) fn choose(&mut self, cumulative: &[f64]) -> usize {
        let draw = self.random();
        cumulative.partition_point(|&edge| edge <= draw).min(cumulative.len() - 1)
    }
}

/// `SeedSequence(seed).generate_state(4, uint64)`.
fn seed_sequence(seed: u64) -> [u64; 4] {
    const POOL: usize = 4;
    let mut entropy = vec![seed as u32];
    if seed >> 32 != 0 {
        entropy.push((seed >> 32) as u32);
    }
    let mut multiplier = 0x43b0_d7e5_u32;
    let mut hash = |value: u32| {
        let value = value ^ multiplier;
        multiplier = multiplier.wrapping_mul(0x931e_8875);
        let value = value.wrapping_mul(multiplier);
        value ^ value >> 16
    };
    let mix = |x: u32, y: u32| {
        let mixed = x.wrapping_mul(0xca01_f9dd).wrapping_sub(y.wrapping_mul(0x4973_f715));
        mixed ^ mixed >> 16
    };
    let mut pool = [0_u32; POOL];
    for (i, slot) in pool.iter_mut().enumerate() {
        *slot = hash(entropy.get(i).copied().unwrap_or(0));
    }
    for from in 0..POOL {
        for to in (0..POOL).filter(|&to| to != from) {
            pool[to] = mix(pool[to], hash(pool[from]));
        }
    }
    let mut multiplier = 0x8b51_f9dd_u32;
    let mut output = |i: usize| {
        let value = pool[i % POOL] ^ multiplier;
        multiplier = multiplier.wrapping_mul(0x58f3_8ded);
        let value = value.wrapping_mul(multiplier);
        u64::from(value ^ value >> 16)
    };
    std::array::from_fn(|i| output(2 * i) | output(2 * i + 1) << 32)
}

/// NumPy's older global generator after `numpy.random.seed(seed)`.
#[derive(Debug, Clone)]
pub(crate) struct Legacy {
    state: Box<[u32; Self::N]>,
    position: usize,
}

impl Legacy {
    const N: usize = 624;
    const M: usize = 397;

    /// NumPy takes seeds below 2^32 only; of larger ones the low half is used.
    pub(crate) fn new(seed: u64) -> Self {
        let mut state = Box::new([0; Self::N]);
        state[0] = seed as u32;
        for i in 1..Self::N {
            let last = state[i - 1];
            state[i] = 1_812_433_253_u32.wrapping_mul(last ^ last >> 30).wrapping_add(i as u32);
        }
        Self { state, position: Self::N }
    }

    fn twist(&mut self) {
        for i in 0..Self::N {
            let joined = self.state[i] & 0x8000_0000 | self.state[(i + 1) % Self::N] & 0x7fff_ffff;
            let odd = if joined & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + Self::M) % Self::N] ^ joined >> 1 ^ odd;
        }
        self.position = 0;
    }

    /// `permutation(n)`.
    pub(crate) fn permutation(&mut self, n: u64) -> Vec<u64> {
        shuffled(self, n)
    }

    /// `choice(n, count)`, with replacement.
    pub(crate) fn choice(&mut self, n: u64, count: u64) -> Vec<u64> {
        (0..count).map(|_| interval(self, n - 1)).collect()
    }
}

/// Where uniform bits come from.
trait Bits {
    fn bits32(&mut self) -> u32;
    fn bits64(&mut self) -> u64;
}

impl Bits for Generator {
    fn bits32(&mut self) -> u32 {
        if let Some(high) = self.half.take() {
            return high;
        }
        let both = self.next_u64();
        self.half = Some((both >> 32) as u32);
        both as u32
    }

    fn bits64(&mut self) -> u64 {
        self.next_u64()
    }
}

impl Bits for Legacy {
    fn bits32(&mut self) -> u32 {
        if self.position == Self::N {
            self.twist();
        }
        let mut word = self.state[self.position];
        self.position += 1;
        word ^= word >> 11;
        word ^= word << 7 & 0x9d2c_5680;
        word ^= word << 15 & 0xefc6_0000;
        word ^ word >> 18
    }

    fn bits64(&mut self) -> u64 {
        let high = u64::from(self.bits32());
        high << 32 | u64::from(self.bits32())
    }
}

/// Uniform in `0..=max`, by rejection under the smallest mask of ones.
fn interval(bits: &mut impl Bits, max: u64) -> u64 {
    if max == 0 {
        return 0;
    }
    let mask = u64::MAX >> max.leading_zeros();
    loop {
        let draw = if max <= u64::from(u32::MAX) { u64::from(bits.bits32()) } else { bits.bits64() } & mask;
        if draw <= max {
            return draw;
        }
    }
}

/// `0..n`, exchanged from the back.
fn shuffled(bits: &mut impl Bits, n: u64) -> Vec<u64> {
    let mut rows: Vec<u64> = (0..n).collect();
    for i in (1..rows.len()).rev() {
        rows.swap(i, interval(bits, i as u64) as usize);
    }
    rows
}

#[cfg(test)]
mod tests {
    //! Expected values are NumPy 2.4.6's.
    use super::*;

    #[test]
    fn pcg64_gives_numpys_raw_numbers() {
        for (seed, expected) in [
            (0, [11749869230777074271, 4976686463289251617, 755828109848996024]),
            (42, [14276969152011380360, 8095878257575067585, 15838336090824644132]),
            (1 << 40 | 7, [15307346044642009514, 4709548916763817589, 2836937976252648324_u64]),
        ] {
            let mut generator = Generator::new(seed);
            assert_eq!(expected, std::array::from_fn(|_| generator.next_u64()), "seed {seed}");
        }
        let mut generator = Generator::new(42);
        assert_eq!(
            [0.7739560485559633, 0.4388784397520523, 0.8585979199113825, 0.6973680290593639],
            std::array::from_fn(|_| generator.random())
        );
    }

    #[test]
    fn permutation_is_numpys() {
        assert_eq!(
            Generator::new(42).permutation(20),
            [15, 9, 14, 7, 12, 10, 6, 19, 3, 0, 16, 5, 11, 18, 2, 4, 17, 1, 13, 8]
        );
        let long = Generator::new(7).permutation(100_003);
        assert_eq!(long[..8], [67292, 71763, 92881, 53806, 15009, 74944, 48000, 65254]);
        assert_eq!((0..).zip(&long).map(|(i, row)| i * row).sum::<u64>(), 249_871_872_094_847);
        assert!(Generator::new(1).permutation(0).is_empty());
        assert_eq!(Generator::new(1).permutation(1), [0]);
    }

    #[test]
    fn choice_with_probabilities_is_numpys() {
        let mut generator = Generator::new(3);
        let drawn: Vec<_> = (0..30).map(|_| generator.choose(&[0.5, 0.8, 1.0])).collect();
        assert_eq!(drawn, [0, 0, 2, 1, 0, 0, 0, 0, 1, 0, 0, 1, 0, 1, 1, 2, 0, 1, 1, 0, 0, 2, 0, 0, 2, 1, 0, 1, 0, 1]);
    }

    #[test]
    fn the_global_generator_is_numpys() {
        let mut legacy = Legacy::new(0);
        assert_eq!([2357136044, 2546248239, 3071714933], std::array::from_fn(|_| legacy.bits32()));
        assert_eq!(legacy.permutation(1000)[..6], [894, 605, 298, 356, 571, 834]);
        let mut legacy = Legacy::new(42);
        assert_eq!(legacy.permutation(15), [9, 11, 0, 13, 5, 8, 2, 1, 14, 4, 7, 10, 12, 3, 6]);
        assert_eq!(legacy.choice(10, 12), [7, 7, 2, 5, 4, 1, 7, 5, 1, 4, 0, 9]);
        assert_eq!(legacy.permutation(7), [1, 2, 6, 0, 3, 4, 5]);
    }
}
