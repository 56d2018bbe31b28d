//! `kernels/grouped.cu` on matrix instructions, `kernels/grouped_plain.cu` for f32, for mixed types and for odd widths: products of
//! rows sorted by expert with each expert's own matrix.

use super::{blocks, name, size};
use crate::cuda::gpu::{Arg, Gpu, Shape};
use crate::cuda::images::Image;
use crate::ops::Routes;
use crate::{DType, Tensor};

/// Widths up to this are done by tiles of 32 columns: half of a tile of 128 would be nothing.
const NARROW: usize = 64;
/// Columns of a tile of the plain kernels; their rows are 128.
const PLAIN: usize = 64;

/// One product: `alpha a b[e]`, with each expert's matrix as it lies or transposed.
#[derive(Clone, Copy)]
pub(crate) struct GroupedTerm<'a> {
    pub(crate) alpha: f32,
    pub(crate) a: &'a Tensor,
    pub(crate) b: &'a Tensor,
    /// Length of the reduction.
    pub(crate) k: usize,
}

/// The type in which matrix instructions take these operands: the narrow one among them, which the others are rounded to, as
/// torch's autocast does. `None` where the plain kernels do it, with all operands as they are.
pub(crate) fn grouped_type(operands: &[DType], widths: &[usize]) -> Option<DType> {
    let narrow = operands.iter().find(|of| **of != DType::F32).copied();
    narrow.filter(|_| widths.iter().all(|width| width.is_multiple_of(8)))
}

/// Bytes of shared memory of a tile.
fn shared(rows: usize, columns: usize) -> u32 {
    blocks(192 * (rows + columns))
}

/// As kernels take a product; zeros for none.
fn term(term: Option<&GroupedTerm<'_>>) -> Arg {
    let mut bytes = [0; 64];
    if let Some(term) = term {
        bytes[..8].copy_from_slice(&term.a.address().to_ne_bytes());
        bytes[8..16].copy_from_slice(&term.b.address().to_ne_bytes());
        bytes[16..20].copy_from_slice(&blocks(term.k).to_ne_bytes());
        bytes[20..24].copy_from_slice(&term.alpha.to_ne_bytes());
    }
    Arg::Struct(bytes)
}

impl Gpu {
    /// `c[rows of e] = beta c + first (+ second)`. With `matrices` all operands have the type of [`grouped_type`]; else the second
    /// product's are f32.
    pub(crate) fn grouped(
        &self,
        routes: &Routes,
        (c, beta): (&Tensor, f32),
        [first, second]: [Option<&GroupedTerm<'_>>; 2],
        (trans, matrices): (bool, bool),
    ) {
        let Some(of) = first else { return };
        let (n, tiles) = (c.shape().last(), routes.tiles.numel() / 3);
        let args = [term(first), term(second), c.into(), size(n), beta.into()];
        if matrices {
            let columns = if c.dtype() == DType::F32 || n <= NARROW { 32 } else { 128 };
            let grid = [blocks(n.div_ceil(columns)), blocks(tiles), 1];
            let shape = Shape { grid, block: [256, 1, 1], shared: shared(128, columns) };
            let ending = if trans { "_trans" } else { "" };
            let kernel = format!("grouped_{}_{}_{columns}{ending}", name(of.a), name(c));
            return self.launch(Image::Grouped, &kernel, shape, &[&args[..], &[(&routes.tiles).into()]].concat());
        }
        let shape = Shape::new([blocks(n.div_ceil(PLAIN)), blocks(tiles), 1], [256, 1, 1]);
        let kernel = format!("grouped_plain_{}_{}_{}", name(of.a), name(of.b), name(c));
        let rest = [u32::from(trans).into(), (&routes.tiles).into()];
        self.launch(Image::GroupedPlain, &kernel, shape, &[&args[..], &rest].concat());
    }

    /// `c[e] += alpha a[rows of e]' b[rows of e]`, c in f32. With `matrices` a and b have the type of [`grouped_type`].
    pub(crate) fn grouped_outer(
        &self,
        routes: &Routes,
        c: &Tensor,
        (alpha, [a, b]): (f32, [&Tensor; 2]),
        matrices: bool,
    ) {
        let (m, n, experts) = (a.shape().last(), b.shape().last(), routes.offsets.numel() - 1);
        let args = [a.into(), b.into(), c.into(), size(m), size(n), alpha.into(), (&routes.offsets).into()];
        if matrices {
            let [rows, columns] = match (m <= NARROW, n <= NARROW) {
                (_, true) => [128, 32],
                (true, false) => [32, 128],
                (false, false) => [128, 128],
            };
            let grid = [n.div_ceil(columns), m.div_ceil(rows), experts].map(blocks);
            let shape = Shape { grid, block: [256, 1, 1], shared: shared(rows, columns) };
            let kernel = format!("grouped_outer_{}_{rows}_{columns}", name(a));
            return self.launch(Image::Grouped, &kernel, shape, &args);
        }
        let shape = Shape::new([n.div_ceil(PLAIN), m.div_ceil(128), experts].map(blocks), [256, 1, 1]);
        let kernel = format!("grouped_outer_plain_{}_{}", name(a), name(b));
        self.launch(Image::GroupedPlain, &kernel, shape, &args);
    }
}
