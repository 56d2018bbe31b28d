//! Where finished tiles go: factors, bias, the old C and the one rounding are applied on the way.

use super::super::level::simd;
use super::super::{Data, DataMut, Element, Level, Shared};
use super::Gemm;
use half::{bf16, f16};

/// C, shared by the tasks of one product; each writes its own rectangle.
#[derive(Clone, Copy)]
pub(super) struct Target {
    data: Storage,
    ld: usize,
    /// The computed matrix is the transpose of what is stored.
    flipped: bool,
}

#[derive(Clone, Copy)]
enum Storage {
    F32(Shared<f32>),
    Bf16(Shared<bf16>),
    F16(Shared<f16>),
}

/// A rectangle of the computed matrix and the f32 sums of its products.
pub(super) struct Tile<'a> {
    /// First row and column.
    pub(super) at: (usize, usize),
    /// Rows and columns.
    pub(super) size: (usize, usize),
    /// Row stride of the sums.
    pub(super) ld: usize,
    /// Sums of the main product.
    pub(super) main: &'a [f32],
    /// Sums of the second product, if there is one.
    pub(super) second: Option<&'a [f32]>,
}

impl Target {
    pub(super) fn new(c: DataMut<'_>, ld: usize) -> Self {
        let data = match c {
            DataMut::F32(s) => Storage::F32(Shared::new(s)),
            DataMut::Bf16(s) => Storage::Bf16(Shared::new(s)),
            DataMut::F16(s) => Storage::F16(Shared::new(s)),
        };
        Self { data, ld, flipped: false }
    }

    pub(super) fn flipped(self) -> Self {
        Self { flipped: !self.flipped, ..self }
    }

    /// Asks for the cache lines of a tile that will be stored soon: its rows are far apart in memory.
    pub(super) fn prefetch(&self, (row, col): (usize, usize), (rows, cols): (usize, usize)) {
        if self.flipped {
            return;
        }
        for i in row..row + rows {
            match self.data {
                Storage::F32(c) => c.prefetch(i * self.ld + col, cols),
                Storage::Bf16(c) => c.prefetch(i * self.ld + col, cols),
                Storage::F16(c) => c.prefetch(i * self.ld + col, cols),
            }
        }
    }

    /// Stores a finished tile.
    ///
    /// # Safety
    /// The matrix outlives the call and no other task touches the tile's elements.
    pub(super) unsafe fn store(&self, level: Level, args: &Gemm<'_>, tile: &Tile<'_>) {
        // SAFETY: the caller's contract.
        unsafe {
            match self.data {
                Storage::F32(c) => self.store_as(level, c, args, tile),
                Storage::Bf16(c) => self.store_as(level, c, args, tile),
                Storage::F16(c) => self.store_as(level, c, args, tile),
            }
        }
    }

    unsafe fn store_as<T: Element>(&self, level: Level, c: Shared<T>, args: &Gemm<'_>, tile: &Tile<'_>) {
        let factors =
            Factors { alpha: args.product.alpha, alpha2: args.second.map_or(0.0, |p| p.alpha), beta: args.beta };
        let (first, count) = if self.flipped { (tile.at.0, tile.size.0) } else { (tile.at.1, tile.size.1) };
        let mut bias = [0.0; MAX_SIDE];
        match args.bias {
            Some(Data::F32(s)) => bias[..count].copy_from_slice(&s[first..first + count]),
            Some(Data::Bf16(s)) => bias.iter_mut().zip(&s[first..first + count]).for_each(|(b, x)| *b = x.get()),
            Some(Data::F16(s)) => bias.iter_mut().zip(&s[first..first + count]).for_each(|(b, x)| *b = x.get()),
            None => {}
        }
        if self.flipped {
            for j in 0..tile.size.1 {
                let start = (tile.at.1 + j) * self.ld + tile.at.0;
                // SAFETY: the row segment belongs to this task's tile.
                let out = unsafe { c.slice(start, count) };
                store_column(level, out, tile, j, &bias, factors);
            }
        } else {
            // SAFETY: the rows' segments belong to this task's tile.
            let row = |i: usize| unsafe { c.slice((tile.at.0 + i) * self.ld + tile.at.1, count) };
            store_rows(level, &row, tile, &bias, factors);
        }
    }
}

/// Largest side of a tile along C's stored rows.
pub(super) const MAX_SIDE: usize = 128;

#[derive(Clone, Copy)]
struct Factors {
    alpha: f32,
    alpha2: f32,
    beta: f32,
}

/// Rows of C, handed out one by one.
type RowOf<'a, T> = dyn Fn(usize) -> &'a mut [T] + 'a;

simd! {
    fn store_rows<T: Element>(
        row: &RowOf<'_, T>, tile: &Tile<'_>, bias: &[f32; MAX_SIDE], f: Factors,
    ) {
        for i in 0..tile.size.0 {
            let out = row(i);
            let sums = &tile.main[i * tile.ld..i * tile.ld + out.len()];
            match tile.second {
                None if f.beta == 0.0 => {
                    for ((o, s), b) in out.iter_mut().zip(sums).zip(bias) {
                        *o = T::put(f.alpha * s + b);
                    }
                }
                None => {
                    for ((o, s), b) in out.iter_mut().zip(sums).zip(bias) {
                        *o = T::put(f.beta * o.get() + (f.alpha * s + b));
                    }
                }
                Some(second) => {
                    let second = &second[i * tile.ld..i * tile.ld + out.len()];
                    for (((o, s), s2), b) in out.iter_mut().zip(sums).zip(second).zip(bias) {
                        let old = if f.beta == 0.0 { 0.0 } else { f.beta * o.get() };
                        *o = T::put(old + (f.alpha * s + f.alpha2 * s2 + b));
                    }
                }
            }
        }
    }
}

simd! {
    fn store_column<T: Element>(
        out: &mut [T], tile: &Tile<'_>, j: usize, bias: &[f32; MAX_SIDE], f: Factors,
    ) {
        for (i, (o, b)) in out.iter_mut().zip(bias).enumerate() {
            let at = i * tile.ld + j;
            let second = tile.second.map_or(0.0, |s| f.alpha2 * s[at]);
            let old = if f.beta == 0.0 { 0.0 } else { f.beta * o.get() };
            *o = T::put(old + (f.alpha * tile.main[at] + second + b));
        }
    }
}
