//! Rows by expert and their matrices, and a naive f64 version of the grouped products.

use super::common::*;
use ferrotune_ptx::Arg;

/// How many rows each expert has, and the sizes of its product.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case<'a> {
    pub(crate) counts: &'a [usize],
    pub(crate) n: usize,
    pub(crate) k: usize,
    /// Inner size of the second product; 0 for none.
    pub(crate) rank: usize,
    pub(crate) trans: bool,
    pub(crate) beta: f32,
}

pub(crate) const ALPHA: f32 = 0.75;
pub(crate) const ALPHA_2: f32 = -1.5;

impl Case<'_> {
    pub(crate) fn rows(&self) -> usize {
        self.counts.iter().sum()
    }

    pub(crate) fn offsets(&self) -> Vec<u32> {
        let ends = self.counts.iter().scan(0, |at, n| {
            *at += *n as u32;
            Some(*at)
        });
        std::iter::once(0).chain(ends).collect()
    }

    /// Tiles of 128 rows, and two that nobody has.
    pub(crate) fn tiles(&self) -> Vec<u32> {
        let mut tiles = Vec::new();
        for (e, at) in self.offsets().windows(2).enumerate() {
            (at[0]..at[1]).step_by(128).for_each(|first| tiles.extend([e as u32, first, at[1]]));
        }
        tiles.extend([u32::MAX; 6]);
        tiles
    }

    /// a, b, the second product's, and c.
    pub(crate) fn inputs(&self) -> [Vec<f64>; 5] {
        let (rows, e) = (self.rows(), self.counts.len());
        let sizes = [rows * self.k, e * self.n * self.k, rows * self.rank, e * self.n * self.rank, rows * self.n];
        let mut seed = 0;
        sizes.map(|size| {
            seed += 1;
            values(size, seed, 0.5)
        })
    }

    /// `beta c + alpha a b + alpha2 a2 b2`.
    pub(crate) fn want(&self, [a, b, a2, b2, c]: &[Vec<f64>; 5]) -> Vec<f64> {
        let mut want = vec![0.0; c.len()];
        for (e, at) in self.offsets().windows(2).enumerate() {
            for (row, column) in (at[0] as usize..at[1] as usize).flat_map(|row| (0..self.n).map(move |c| (row, c))) {
                let product = |a: &[f64], b: &[f64], k: usize| -> f64 {
                    let at = |i| if self.trans { column * k + i } else { i * self.n + column };
                    (0..k).map(|i| a[row * k + i] * b[e * self.n * k + at(i)]).sum()
                };
                let i = row * self.n + column;
                want[i] = f64::from(self.beta) * c[i]
                    + f64::from(ALPHA) * product(a, b, self.k)
                    + f64::from(ALPHA_2) * product(a2, b2, self.rank);
            }
        }
        want
    }
}

/// A term as the kernels take it; null where the inner size is 0.
pub(crate) fn term((a, b): (Array, Array), k: usize, alpha: f32) -> Arg {
    let at = |array: Array| if k == 0 { 0 } else { array.at };
    let mut bytes: Vec<u8> = [at(a), at(b)].iter().flat_map(|at| at.to_le_bytes()).collect();
    bytes.extend((k as u32).to_le_bytes());
    bytes.extend(alpha.to_le_bytes());
    Arg::Bytes(bytes)
}

/// `c[e] + alpha a[rows of e]' b[rows of e]` for a `[rows, m]`, b `[rows, n]`.
pub(crate) fn outer(offsets: &[u32], (m, n): (usize, usize), [a, b, c]: [&[f64]; 3]) -> Vec<f64> {
    let mut want = c.to_vec();
    for (e, at) in offsets.windows(2).enumerate() {
        for row in at[0] as usize..at[1] as usize {
            for i in 0..m {
                (0..n).for_each(|j| want[(e * m + i) * n + j] += f64::from(ALPHA) * a[row * m + i] * b[row * n + j]);
            }
        }
    }
    want
}
