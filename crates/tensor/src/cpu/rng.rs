//! Random numbers without state: Philox4x32-10 (Salmon et al. 2011, <https://doi.org/10.1145/2063384.2063405>).
//!
//! Every number is a function of a key and its place, so that a mask is the same when a block is recomputed, on any
//! rank and in any micro-batch.

use super::level::simd;
use super::parallel::{over_rows, part, read};
use super::{Data, DataMut, Element, Shared, alike, by_type, level};

/// Where a batch's random numbers come from.
#[derive(Clone, Copy, Debug)]
pub struct NoiseKey<'a> {
    /// Of the run.
    pub seed: u64,
    /// Optimiser step.
    pub step: u64,
    /// Which use of randomness in a step.
    pub site: u32,
    /// Row of the data set that each row of the value belongs to.
    pub samples: &'a [u32],
    /// Place of each row of the value in its data row.
    pub positions: &'a [u32],
}

/// Numbers that one counter gives.
const GROUP: usize = 4;
/// Counters computed together: one register at the widest level.
const BATCH: usize = 16;

/// Four words of each of [`BATCH`] counters that differ in their first word: `first + i`.
#[inline(always)]
fn philox(first: u32, rest: [u32; 3], key: [u32; 2]) -> [[u32; BATCH]; GROUP] {
    let mut x = [[0; BATCH], [rest[0]; BATCH], [rest[1]; BATCH], [rest[2]; BATCH]];
    for (i, x) in x[0].iter_mut().enumerate() {
        *x = first.wrapping_add(i as u32);
    }
    let mut k = key;
    for _ in 0..10 {
        let mut next = [[0; BATCH]; GROUP];
        for i in 0..BATCH {
            let a = u64::from(x[0][i]) * 0xD251_1F53;
            let b = u64::from(x[2][i]) * 0xCD9E_8D57;
            next[0][i] = (b >> 32) as u32 ^ x[1][i] ^ k[0];
            next[1][i] = b as u32;
            next[2][i] = (a >> 32) as u32 ^ x[3][i] ^ k[1];
            next[3][i] = a as u32;
        }
        x = next;
        k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
    }
    x
}

/// What a key is derived for: equal numbers in different roles must not give equal streams.
#[derive(Clone, Copy)]
enum Role {
    Step,
    Stream,
}

/// A key of its own for every seed, role and number.
fn derive(seed: u64, role: Role, other: u64) -> [u32; 2] {
    let rest = [(other >> 32) as u32, role as u32, 0];
    let words = philox(other as u32, rest, [seed as u32, (seed >> 32) as u32]);
    [words[0][0], words[1][0]]
}

/// The key of a step's random numbers, which a GPU's kernels are given.
pub(crate) fn step_key(seed: u64, step: u64) -> [u32; 2] {
    derive(seed, Role::Step, step)
}

/// Calls `f(column, word)` for each column of a row.
#[inline(always)]
fn for_columns(width: usize, rest: [u32; 3], key: [u32; 2], mut f: impl FnMut(usize, u32)) {
    for first in (0..width.div_ceil(GROUP)).step_by(BATCH) {
        let words = philox(first as u32, rest, key);
        // Words of one counter are BATCH columns apart, so that whole registers are used in order.
        for (g, words) in words.iter().enumerate() {
            let start = first * GROUP + g * BATCH;
            for (i, &word) in words.iter().enumerate().take(width.saturating_sub(start)) {
                f(start + i, word);
            }
        }
    }
}

/// Uniform in [0, 1) from the upper 24 bits.
#[inline(always)]
fn unit(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / (1 << 24) as f32)
}

/// `y = x / (1 - p)` where an element is kept, 0 where it is dropped, which happens with probability `p` in [0, 1].
///
/// Rows have `width` elements, and their places are the key's.
pub fn dropout(x: Data<'_>, y: DataMut<'_>, width: usize, p: f32, key: &NoiseKey<'_>) {
    let rows = key.samples.len();
    assert!(x.len() == rows * width && y.len() == x.len() && key.positions.len() == rows, "rows of dropout");
    let level = level();
    let words = derive(key.seed, Role::Step, key.step);
    alike!((x: Data, y: DataMut) => {
        let y = Shared::new(y);
        over_rows(rows, width, |r| {
            for i in r {
                let place = [key.positions[i], key.samples[i], key.site];
                // SAFETY: every row belongs to one task.
                let y = unsafe { part(&y, &(i..i + 1), width) };
                dropout_row(level, read(x, &(i..i + 1), width), y, p, (place, words));
            }
        });
    });
}

simd! {
    fn dropout_row<X: Element, Y: Element>(x: &[X], y: &mut [Y], p: f32, place: ([u32; 3], [u32; 2])) {
        let factor = if p < 1.0 { 1.0 / (1.0 - p) } else { 0.0 };
        for_columns(x.len(), place.0, place.1, |c, word| {
            let kept = if unit(word) < p { 0.0 } else { factor };
            y[c] = Y::put(x[c].get() * kept);
        });
    }
}

/// Adds uniform noise within `alpha / sqrt(length width)` to each row of `x` (NEFTune, Jain et al. 2023,
/// <https://arxiv.org/abs/2310.05914>); `lengths` has the number of tokens of each row's sequence.
pub fn add_embedding_noise(x: DataMut<'_>, width: usize, alpha: f32, lengths: &[u32], key: &NoiseKey<'_>) {
    let rows = key.samples.len();
    assert!(x.len() == rows * width && lengths.len() == rows && key.positions.len() == rows, "rows of noise");
    let level = level();
    let words = derive(key.seed, Role::Step, key.step);
    by_type!(x: DataMut => {
        let x = Shared::new(x);
        over_rows(rows, width, |r| {
            for i in r {
                let place = [key.positions[i], key.samples[i], key.site];
                let bound = alpha / (lengths[i] as f32 * width as f32).sqrt();
                // SAFETY: every row belongs to one task.
                noise_row(level, unsafe { part(&x, &(i..i + 1), width) }, bound, (place, words));
            }
        });
    });
}

simd! {
    fn noise_row<X: Element>(x: &mut [X], bound: f32, place: ([u32; 3], [u32; 2])) {
        for_columns(x.len(), place.0, place.1, |c, word| {
            x[c] = X::put(x[c].get() + bound * (2.0 * unit(word) - 1.0));
        });
    }
}

/// Elements that one task fills.
const FILL: usize = 1 << 14;

/// Fills `x` with uniform values in [low, high), a function of (seed, stream) and the place.
pub fn fill_uniform(x: &mut [f32], low: f32, high: f32, seed: u64, stream: u64) {
    let key = derive(seed, Role::Stream, stream);
    fill(x, key, &|word, _| low + (high - low) * unit(word));
}

/// Fills `x` with normal values of the given mean and deviation, a function of (seed, stream) and the place.
pub fn fill_normal(x: &mut [f32], mean: f32, deviation: f32, seed: u64, stream: u64) {
    let key = derive(seed, Role::Stream, stream);
    // Box and Muller's transform; 1 - u is never 0.
    fill(x, key, &|radius, angle| {
        let (u, v) = (f64::from(unit(radius)), f64::from(unit(angle)));
        let normal = (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos();
        mean + deviation * normal as f32
    });
}

/// Sets each element to `f` of two independent words.
fn fill(x: &mut [f32], key: [u32; 2], f: &(dyn Fn(u32, u32) -> f32 + Sync)) {
    use rayon::prelude::*;
    x.par_chunks_mut(FILL).enumerate().for_each(|(i, part)| {
        let block = [i as u32, (i as u64 >> 32) as u32];
        for (b, batch) in part.chunks_mut(BATCH * 2).enumerate() {
            let words = philox((b * BATCH) as u32, [block[0], block[1], u32::MAX], key);
            let pairs = words[0].iter().zip(&words[1]).chain(words[2].iter().zip(&words[3]));
            batch.iter_mut().zip(pairs).for_each(|(x, (&a, &b))| *x = f(a, b));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers of the paper's reference implementation.
    #[test]
    fn known_answers() {
        let at = |c: [u32; 4], k| philox(c[0], [c[1], c[2], c[3]], k).map(|w| w[0]);
        assert_eq!(at([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(at([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    }
}
