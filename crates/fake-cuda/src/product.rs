//! Products of matrices as cublasLt makes them: column after column, operands of one type, sums in a wider one.

use ferrotune_ptx::{Cause, Fault, Memory};
use half::{bf16, f16};

/// Element types by cublasLt's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Element {
    F32,
    F16,
    Bf16,
}

impl Element {
    pub(crate) fn from_number(number: i32) -> Option<Self> {
        match number {
            0 => Some(Self::F32),
            2 => Some(Self::F16),
            14 => Some(Self::Bf16),
            _ => None,
        }
    }

    pub(crate) fn bytes(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }

    fn get(self, bytes: &[u8]) -> f32 {
        match (self, bytes) {
            (Self::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            (Self::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
            (Self::Bf16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
            _ => f32::NAN,
        }
    }

    fn put(self, value: f64, to: &mut Vec<u8>) {
        match self {
            Self::F32 => to.extend((value as f32).to_le_bytes()),
            Self::F16 => to.extend(f16::from_f64(value).to_le_bytes()),
            Self::Bf16 => to.extend(bf16::from_f64(value).to_le_bytes()),
        }
    }
}

/// A matrix whose columns lie `stride` elements apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Layout {
    pub(crate) of: Element,
    pub(crate) rows: u64,
    pub(crate) columns: u64,
    pub(crate) stride: u64,
}

/// d = alpha op(a) op(b) + beta c (+ bias).
pub(crate) struct Product {
    pub(crate) alpha: f32,
    pub(crate) beta: f32,
    pub(crate) a: (u64, Layout),
    pub(crate) b: (u64, Layout),
    pub(crate) c: (u64, Layout),
    pub(crate) d: (u64, Layout),
    pub(crate) transposed: [bool; 2],
    /// An element a row of d, in d's type.
    pub(crate) bias: Option<u64>,
    /// Operands are rounded to 11 bits.
    pub(crate) tf32: bool,
    /// Scratch memory, which real algorithms write.
    pub(crate) workspace: (u64, usize),
    /// One value comes out wrong.
    pub(crate) wrong: bool,
}

impl Product {
    /// Rows of d, its columns, and the length of the sums.
    pub(crate) fn sizes(&self) -> (u64, u64, u64) {
        let [a, b] = [(self.a.1, self.transposed[0]), (self.b.1, self.transposed[1])]
            .map(|(l, flip)| if flip { (l.columns, l.rows) } else { (l.rows, l.columns) });
        (a.0, b.1, a.1)
    }

    /// Whether the shapes fit and cublasLt has such a product.
    pub(crate) fn is_possible(&self) -> bool {
        let (m, n, k) = self.sizes();
        let inner = if self.transposed[1] { self.b.1.columns } else { self.b.1.rows };
        let (a, d) = (self.a.1.of, self.d.1.of);
        let strides = [self.a.1, self.b.1, self.c.1, self.d.1].iter().all(|l| l.stride >= l.rows && l.rows > 0);
        inner == k && (self.d.1.rows, self.d.1.columns) == (m, n) && self.c.1 == self.d.1 && strides
            // f32 operands give f32; narrow ones give their own type or f32.
            && a == self.b.1.of && (d == a || d == Element::F32)
            && (!self.tf32 || a == Element::F32)
    }

    pub(crate) fn run(&self, memory: &mut Memory) -> Result<(), Fault> {
        let (m, n, k) = self.sizes();
        let (m, n, k) = (m as usize, n as usize, k as usize);
        let a = self.operand(memory, self.a, !self.transposed[0])?;
        let b = self.operand(memory, self.b, self.transposed[1])?;
        let bias = self.bias.map(|at| column(memory, at, self.d.1.of, m)).transpose()?;
        if self.workspace.1 > 0 {
            memory.fill(self.workspace.0, 0xff, self.workspace.1)?;
        }
        for j in 0..n {
            let held = match self.beta == 0.0 {
                true => vec![0.0; m],
                false => column(memory, at_column(self.c, j), self.c.1.of, m)?,
            };
            let mut out = Vec::with_capacity(m * self.d.1.of.bytes());
            for i in 0..m {
                let (x, y) = (&a[i * k..(i + 1) * k], &b[j * k..(j + 1) * k]);
                let sum: f64 = x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
                let mut value = f64::from(self.alpha) * sum;
                if self.beta != 0.0 {
                    value += f64::from(self.beta) * f64::from(held[i]);
                }
                value += bias.as_ref().map_or(0.0, |bias| f64::from(bias[i]));
                value += if self.wrong && (i, j) == (0, 0) { 64.0 } else { 0.0 };
                self.d.1.of.put(value, &mut out);
            }
            memory.write(at_column(self.d, j), &out)?;
        }
        Ok(())
    }

    /// All values, row after row of the operand as the sums read it: rows of op(a), columns of op(b).
    fn operand(&self, memory: &Memory, (at, layout): (u64, Layout), turn: bool) -> Result<Vec<f32>, Fault> {
        let (rows, columns) = (layout.rows as usize, layout.columns as usize);
        let mut all = vec![0.0; rows * columns];
        for j in 0..columns {
            let values = column(memory, at_column((at, layout), j), layout.of, rows)?;
            for (i, value) in values.into_iter().enumerate() {
                let value = if self.tf32 { round_to_tf32(value) } else { value };
                all[if turn { i * columns + j } else { j * rows + i }] = value;
            }
        }
        Ok(all)
    }
}

fn at_column((at, layout): (u64, Layout), j: usize) -> u64 {
    at + j as u64 * layout.stride * layout.of.bytes() as u64
}

fn column(memory: &Memory, at: u64, of: Element, rows: usize) -> Result<Vec<f32>, Fault> {
    if !at.is_multiple_of(of.bytes() as u64) {
        return Err(Fault::Host(Cause::Misaligned { address: at, bytes: of.bytes() as u64 }));
    }
    let mut bytes = vec![0; rows * of.bytes()];
    memory.read(at, &mut bytes)?;
    Ok(bytes.chunks_exact(of.bytes()).map(|bytes| of.get(bytes)).collect())
}

/// To the nearest of 10 bits behind the point.
fn round_to_tf32(value: f32) -> f32 {
    f32::from_bits(value.to_bits().wrapping_add(0x1000) & !0x1fff)
}
