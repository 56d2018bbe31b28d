//! Inputs out of inputs: bytes changed, cut, repeated, numbers made large, words put in, two inputs joined.

/// xorshift*, so that a campaign can be repeated from its seed.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % n.max(1) as u64) as usize
    }
}

/// Longest input: more costs time and finds nothing that a short one doesn't.
const LONGEST: usize = 1 << 16;
/// What lengths, counts and offsets become.
const NUMBERS: [u64; 12] =
    [0, 1, 2, 0x7f, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 40, i64::MAX as u64, u64::MAX];

/// Something like `input`; `other` is another input, `words` are pieces that mean something.
pub(crate) fn mutate(input: &[u8], other: &[u8], words: &[&str], random: &mut Random) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..=random.below(6) {
        let at = random.below(bytes.len() + 1);
        let to = at + random.below((bytes.len() - at + 1).min(64));
        match random.below(10) {
            0 | 1 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            2 if at < bytes.len() => bytes[at] = random.below(256) as u8,
            3 => drop(bytes.drain(at..to)),
            4 => {
                let piece = bytes[at..to].repeat(1 + random.below(3));
                bytes.splice(at..at, piece);
            }
            5 => bytes.truncate(at),
            6 | 7 if !words.is_empty() => {
                let word = words[random.below(words.len())].bytes();
                let end = if random.below(2) == 0 { at } else { to };
                bytes.splice(at..end, word);
            }
            8 => {
                let width = 1 << random.below(4);
                let number = NUMBERS[random.below(NUMBERS.len())].to_le_bytes();
                let end = (at + width).min(bytes.len());
                bytes[at..end].copy_from_slice(&number[..end - at]);
            }
            _ => {
                let from = random.below(other.len() + 1);
                let piece = &other[from..(from + random.below(256)).min(other.len())];
                bytes.splice(at..to, piece.iter().copied());
            }
        }
        bytes.truncate(LONGEST);
    }
    bytes
}
