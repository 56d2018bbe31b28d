//! Matrix products: `C = beta C + alpha op(A) op(B) [+ alpha2 op(A2) op(B2)] [+ bias]`.
//!
//! Weights are read in their natural layout and packed on the fly, so nothing persistent is kept. Three ways, chosen
//! by shape alone: [`blocked`] for the general case; [`thin`] (dot products along rows) where one operand has few
//! rows that run along the reduction, as in decoding and in LoRA's down projection; and `blocked` on the transposed
//! problem where C is narrow. The second product is LoRA's low-rank update, added before C is rounded or stored.

mod blocked;
pub(crate) mod kernel;
pub(crate) mod pack;
mod store;
mod thin;
mod transpose;

use super::{Data, DataMut, level};
use kernel::Kernels;
use store::Target;

/// A matrix operand: row-major storage, read as it lies or transposed.
#[derive(Clone, Copy, Debug)]
pub struct Mat<'a> {
    /// The stored elements.
    pub data: Data<'a>,
    /// Elements from one stored row to the next.
    pub ld: usize,
    /// The operand is the transpose of what is stored.
    pub trans: bool,
}

impl<'a> Mat<'a> {
    /// A matrix used as stored.
    pub fn new(data: Data<'a>, ld: usize) -> Self {
        Self { data, ld, trans: false }
    }

    /// The transpose of a stored matrix.
    pub fn transposed(data: Data<'a>, ld: usize) -> Self {
        Self { data, ld, trans: true }
    }

    fn flipped(self) -> Self {
        Self { trans: !self.trans, ..self }
    }

    fn is_bf16(&self) -> bool {
        matches!(self.data, Data::Bf16(_))
    }

    fn is_f16(&self) -> bool {
        matches!(self.data, Data::F16(_))
    }

    fn check(&self, rows: usize, cols: usize) {
        let (rows, cols) = if self.trans { (cols, rows) } else { (rows, cols) };
        let needed = if rows == 0 || cols == 0 { 0 } else { (rows - 1) * self.ld + cols };
        assert!(cols <= self.ld.max(cols * usize::from(rows <= 1)), "row stride {} below {cols} columns", self.ld);
        assert!(needed <= self.data.len(), "matrix of {} elements, {needed} needed", self.data.len());
    }
}

/// One product `alpha a[m, k] b[k, n]`.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    /// Factor.
    pub alpha: f32,
    /// Left operand, `[m, k]`.
    pub a: Mat<'a>,
    /// Right operand, `[k, n]`.
    pub b: Mat<'a>,
    /// Length of the reduction.
    pub k: usize,
}

impl Product<'_> {
    /// The product whose result is the transpose of this one's.
    fn flipped(self) -> Self {
        Self { a: self.b.flipped(), b: self.a.flipped(), ..self }
    }
}

/// Arguments of [`gemm`], `c` apart.
#[derive(Clone, Copy, Debug)]
pub struct Gemm<'a> {
    /// Rows of C.
    pub m: usize,
    /// Columns of C.
    pub n: usize,
    /// The main product.
    pub product: Product<'a>,
    /// A second product added to it.
    pub second: Option<Product<'a>>,
    /// Factor of what C held; with 0 it is not read.
    pub beta: f32,
    /// `[n]`, added to every row.
    pub bias: Option<Data<'a>>,
}

/// Largest count of rows or columns that counts as thin.
const THIN: usize = 16;

/// Computes a [`Gemm`] into `c`, row-major with `ldc` elements from one row to the next.
///
/// Accumulates in f32. Where the main product's operands are both bf16 and the processor has `vdpbf16ps`, pairs of
/// bf16 are multiplied and the second product's operands are rounded to bf16; otherwise bf16 is widened, as f16
/// always is.
///
/// # Panics
/// If a slice is shorter than its shape.
pub fn gemm(args: &Gemm<'_>, c: DataMut<'_>, ldc: usize) {
    let Gemm { m, n, .. } = *args;
    for p in std::iter::once(&args.product).chain(&args.second) {
        p.a.check(m, p.k);
        p.b.check(p.k, n);
    }
    assert!(args.bias.is_none_or(|b| b.len() >= n), "bias shorter than {n} columns");
    Mat::new(c.as_ref(), ldc).check(m, n);
    if m == 0 || n == 0 {
        return;
    }
    let level = level();
    let target = Target::new(c, ldc);
    let wants_pairs = args.product.a.is_bf16() && args.product.b.is_bf16();
    let pairs = Kernels::bf16(level).filter(|_| wants_pairs);
    let task = Task { level, kernels: pairs.unwrap_or_else(|| Kernels::f32(level)), target };
    let along = !args.product.a.trans;
    // Dot products read the long operand where it lies, which no kernel does of f16.
    let long = if n <= THIN && along { args.product.a } else { args.product.b };
    if args.second.is_none() && !long.is_f16() && ((n <= THIN && along) || (m <= THIN && args.product.b.trans)) {
        thin::thin(args, &task);
    } else if n <= THIN && m > n {
        let flipped =
            Gemm { m: n, n: m, product: args.product.flipped(), second: args.second.map(Product::flipped), ..*args };
        blocked::blocked(&flipped, &Task { target: task.target.flipped(), ..task });
    } else {
        blocked::blocked(args, &task);
    }
}

/// What the ways of computing a product share.
#[derive(Clone, Copy)]
struct Task {
    level: super::Level,
    kernels: Kernels,
    target: Target,
}
