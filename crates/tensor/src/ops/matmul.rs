//! Matrix products as the other ops use them: shapes taken from tensors, work counted, nothing recorded.

use super::elementwise::cast;
use crate::cpu::{self, Gemm, Mat, Product};
use crate::cuda::{Matrix, Multiply};
use crate::device::On;
use crate::{DType, Kind, Profile, Tensor};

/// One operand: a tensor read as `[rows, columns]` of its last dimension, or transposed.
#[derive(Clone, Copy)]
pub(crate) struct Operand<'a> {
    tensor: &'a Tensor,
    trans: bool,
}

impl Operand<'_> {
    /// Rows and columns as the product sees them.
    fn sizes(&self) -> (usize, usize) {
        let shape = self.tensor.shape();
        let (rows, cols) = (shape.rows(), shape.last());
        if self.trans { (cols, rows) } else { (rows, cols) }
    }

    fn mat(&self) -> Mat<'_> {
        Mat { data: self.tensor.data(), ld: self.tensor.shape().last(), trans: self.trans }
    }
}

/// The tensor as it lies.
pub(crate) fn plain(tensor: &Tensor) -> Operand<'_> {
    Operand { tensor, trans: false }
}

/// The tensor transposed.
pub(crate) fn flipped(tensor: &Tensor) -> Operand<'_> {
    Operand { tensor, trans: true }
}

/// `alpha a b`.
#[derive(Clone, Copy)]
pub(crate) struct Term<'a> {
    pub(crate) alpha: f32,
    pub(crate) a: Operand<'a>,
    pub(crate) b: Operand<'a>,
}

impl<'a> Term<'a> {
    pub(crate) fn new(alpha: f32, a: Operand<'a>, b: Operand<'a>) -> Self {
        Self { alpha, a, b }
    }

    fn sizes(&self) -> [usize; 3] {
        let ((m, k), (k_b, n)) = (self.a.sizes(), self.b.sizes());
        assert_eq!(k, k_b, "inner sizes of {:?} x {:?}", self.a.tensor, self.b.tensor);
        [m, n, k]
    }

    fn product(&self) -> Product<'_> {
        Product { alpha: self.alpha, a: self.a.mat(), b: self.b.mat(), k: self.sizes()[2] }
    }
}

/// `c = beta c + first (+ second) (+ bias)`.
pub(crate) fn matmul(c: &Tensor, beta: f32, first: Term<'_>, second: Option<Term<'_>>, bias: Option<&Tensor>) {
    let [m, n, k] = first.sizes();
    assert_eq!((c.shape().rows(), c.shape().last()), (m, n), "result of a product");
    let device = c.device();
    device.count_flops(2.0 * m as f64 * n as f64 * k as f64);
    if let Some(second) = &second {
        let [m2, n2, k2] = second.sizes();
        assert_eq!((m2, n2), (m, n), "second term of a product");
        device.count_flops(2.0 * m as f64 * n as f64 * k2 as f64);
    }
    if device.profile() == Profile::Cuda {
        return on_gpu(c, beta, [Some(first), second], bias);
    }
    if c.executes() {
        let args = Gemm {
            m,
            n,
            product: first.product(),
            second: second.as_ref().map(Term::product),
            beta,
            bias: bias.map(Tensor::data),
        };
        cpu::gemm(&args, c.data_mut(), n);
    }
}

/// One product after the other, since cublasLt takes one at a time: c is rounded after each. Operands must be of one type: where
/// a narrower type is among them or results, f32 operands (adapters, gradients of logits) are rounded, as torch's autocast does.
fn on_gpu(c: &Tensor, mut beta: f32, terms: [Option<Term<'_>>; 2], bias: Option<&Tensor>) {
    let mut bias = bias.map(|bias| as_type(bias, c.dtype()));
    for term in terms.into_iter().flatten() {
        let narrow = |x: &&&Tensor| x.dtype() != DType::F32;
        let of = [term.a.tensor, term.b.tensor, c].iter().find(narrow).map_or(DType::F32, |x| x.dtype());
        let (a, b) = (as_type(term.a.tensor, of), as_type(term.b.tensor, of));
        if let Some(On::Cuda(gpu)) = c.runs_on() {
            let matrix = |tensor, operand: Operand<'_>| Matrix { tensor, trans: operand.trans };
            let (a, b) = (matrix(&a, term.a), matrix(&b, term.b));
            let args = Multiply { alpha: term.alpha, a, b, beta, bias: bias.as_ref(), sizes: term.sizes() };
            gpu.multiply(c, &args);
        }
        (beta, bias) = (1.0, None);
    }
}

/// The tensor itself, or its values in another type.
pub(super) fn as_type(tensor: &Tensor, dtype: DType) -> Tensor {
    if tensor.dtype() == dtype {
        return tensor.clone();
    }
    let cast_to = tensor.device().empty(tensor.shape(), dtype, Kind::Work);
    cast(&cast_to, tensor);
    cast_to
}
