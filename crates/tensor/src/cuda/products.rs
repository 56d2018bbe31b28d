//! Products of matrices by cublasLt: one of its algorithms for each shape, asked for once.
//!
//! cublasLt has matrices column after column. A row-major `[m, n]` is a column-major n x m, so `c = a b` is asked for as
//! `c' = b' a'` and nothing is turned around. Parts of long sums are added in one order, so the same product has the same bits
//! in every run.

use super::CallError;
use super::blas::{Blas, Proposal, compute, element, preference, product};
use super::driver::{Address, Driver};
use super::gpu::{Gpu, Token, lock};
use crate::{DType, Tensor};
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Mutex;

/// Scratch memory of all products: what NVIDIA advises for Hopper. One stream, so one is enough.
pub(crate) const WORKSPACE: usize = 32 << 20;

/// An operand: a row-major matrix, or its transposed.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    pub(crate) tensor: &'a Tensor,
    pub(crate) trans: bool,
}

/// `c = alpha a b + beta c (+ bias)`; all operands of one type, c of that or f32, the bias of c's.
#[derive(Clone, Copy)]
pub(crate) struct Multiply<'a> {
    pub(crate) alpha: f32,
    pub(crate) a: Matrix<'a>,
    pub(crate) b: Matrix<'a>,
    pub(crate) beta: f32,
    pub(crate) bias: Option<&'a Tensor>,
    /// Rows and columns of c, length of the sums.
    pub(crate) sizes: [usize; 3],
}

/// What an algorithm depends on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    sizes: [usize; 3],
    trans: [bool; 2],
    types: [DType; 2],
    bias: bool,
    /// Largest powers of two that divide the addresses of b, a and c, at most 256.
    aligned: [u32; 3],
}

/// A product as cublasLt knows it.
#[derive(Clone, Copy)]
struct Plan {
    product: Token,
    /// b, a, c.
    layouts: [Token; 3],
    algorithm: [u64; 8],
    workspace: usize,
}

/// cublasLt in use.
pub(crate) struct Products {
    blas: Blas,
    handle: Token,
    workspace: Address,
    tf32: bool,
    plans: Mutex<HashMap<Key, Plan>>,
}

impl Products {
    pub(crate) fn new(driver: &Driver, blas: &Blas, tf32: bool) -> Result<Self, CallError> {
        let (mut handle, mut workspace) = (std::ptr::null_mut(), 0);
        // SAFETY: places that outlive the calls, in this thread's context.
        unsafe {
            blas.create(&raw mut handle)?;
            driver.allocate(&raw mut workspace, WORKSPACE)?;
        }
        Ok(Self { blas: blas.clone(), handle: Token::new(handle), workspace, tf32, plans: Mutex::default() })
    }

    /// Gives all back.
    pub(crate) fn end(&self, driver: &Driver) {
        for (_, plan) in lock(&self.plans).drain() {
            // SAFETY: descriptions that nobody uses any more.
            unsafe {
                let _ = self.blas.destroy_product(plan.product.handle());
                for layout in plan.layouts {
                    let _ = self.blas.destroy_layout(layout.handle());
                }
            }
        }
        // SAFETY: all work is done.
        unsafe {
            let _ = self.blas.destroy(self.handle.handle());
            let _ = driver.free(self.workspace);
        }
    }

    fn plan(&self, key: Key) -> Result<Plan, CallError> {
        if let Some(plan) = lock(&self.plans).get(&key) {
            return Ok(*plan);
        }
        let plan = self.make(&key)?;
        lock(&self.plans).insert(key, plan);
        Ok(plan)
    }

    fn make(&self, key: &Key) -> Result<Plan, CallError> {
        let [m, n, k] = key.sizes.map(|size| size as u64);
        let [of, result] = key.types.map(element_of);
        let rounds = self.tf32 && key.types[0] == DType::F32;
        let mut product = std::ptr::null_mut();
        // SAFETY: `product` outlives the call.
        unsafe {
            self.blas.create_product(&raw mut product, if rounds { compute::TF32 } else { compute::F32 }, element::F32)
        }?;
        // b' is n x k and a' k x m; b's rows are its columns.
        let sides = [(key.trans[1], [n, k]), (key.trans[0], [k, m])];
        for (attribute, (trans, _)) in [product::TRANSPOSE_A, product::TRANSPOSE_B].into_iter().zip(sides) {
            self.set(product, attribute, u32::from(trans))?;
        }
        let epilogue = if key.bias { product::ADD_BIAS } else { product::NOTHING };
        self.set(product, product::EPILOGUE, epilogue.unsigned_abs())?;
        let [b, a] = sides.map(|(trans, [rows, columns])| if trans { [columns, rows] } else { [rows, columns] });
        let layouts = [self.layout(of, b)?, self.layout(of, a)?, self.layout(result, [n, m])?];
        let proposal = self.propose(product, layouts, key.aligned)?;
        let (product, algorithm, workspace) = (Token::new(product), proposal.algorithm, proposal.workspace);
        Ok(Plan { product, layouts, algorithm, workspace })
    }

    fn set(&self, of: *mut c_void, attribute: i32, value: u32) -> Result<(), CallError> {
        // SAFETY: a description of this one's, and a value of the size that is told.
        unsafe { self.blas.set_product(of, attribute, (&raw const value).cast(), 4) }
    }

    /// A dense matrix, column after column.
    fn layout(&self, of: i32, [rows, columns]: [u64; 2]) -> Result<Token, CallError> {
        let (mut layout, stride) = (std::ptr::null_mut(), i64::try_from(rows).unwrap_or(i64::MAX));
        // SAFETY: `layout` outlives the call.
        unsafe { self.blas.create_layout(&raw mut layout, of, rows, columns, stride) }?;
        Ok(Token::new(layout))
    }

    fn propose(&self, product: *mut c_void, layouts: [Token; 3], aligned: [u32; 3]) -> Result<Proposal, CallError> {
        let mut wishes = std::ptr::null_mut();
        // SAFETY: `wishes` outlives the call.
        unsafe { self.blas.create_preference(&raw mut wishes) }?;
        let mut proposal = Proposal { algorithm: [0; 8], workspace: 0, state: 0, waves: 0.0, reserved: [0; 4] };
        let result = self.wish(wishes, aligned).and_then(|()| {
            let ([b, a, c], mut count) = (layouts.map(Token::handle), 0);
            // SAFETY: descriptions of this one's, and places that outlive the call.
            unsafe {
                let (handle, to) = (self.handle.handle(), &raw mut proposal);
                self.blas.propose(handle, product, b, a, c, c, wishes, 1, to, &raw mut count)
            }
        });
        // SAFETY: made above.
        unsafe { self.blas.destroy_preference(wishes) }?;
        result.map(|()| proposal)
    }

    fn wish(&self, wishes: *mut c_void, [b, a, c]: [u32; 3]) -> Result<(), CallError> {
        let (bytes, in_order) = (WORKSPACE as u64, preference::IN_ORDER);
        // SAFETY: values of the sizes that are told.
        unsafe {
            self.blas.set_preference(wishes, preference::WORKSPACE, (&raw const bytes).cast(), 8)?;
            self.blas.set_preference(wishes, preference::REDUCTIONS, (&raw const in_order).cast(), 4)?;
            for (number, aligned) in [b, a, c, c].iter().enumerate() {
                let attribute = preference::ALIGNMENT + number as i32;
                self.blas.set_preference(wishes, attribute, std::ptr::from_ref(aligned).cast(), 4)?;
            }
        }
        Ok(())
    }
}

/// Whether matrices of this type are multiplied.
fn is_taken(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::Bf16 | DType::F16)
}

fn element_of(dtype: DType) -> i32 {
    match dtype {
        DType::Bf16 => element::BF16,
        DType::F16 => element::F16,
        _ => element::F32,
    }
}

fn alignment(address: Address) -> u32 {
    1 << address.trailing_zeros().min(8)
}

impl Gpu {
    /// A product, after all work so far.
    pub(crate) fn multiply(&self, c: &Tensor, args: &Multiply<'_>) {
        let [m, n, k] = args.sizes;
        if let Some(other) = [args.a.tensor, args.b.tensor, c].map(Tensor::dtype).into_iter().find(|of| !is_taken(*of))
        {
            return self.lacks(format!("a product of {other}"));
        }
        if m == 0 || n == 0 || self.fault().is_some() {
            return;
        }
        if k == 0 {
            // A sum of nothing; cublasLt has no such product.
            if args.beta == 0.0 {
                self.fill(c.address(), 0, c.bytes());
            }
            return;
        }
        let (a, b, at) = (args.a.tensor.address(), args.b.tensor.address(), c.address());
        let key = Key {
            sizes: args.sizes,
            trans: [args.a.trans, args.b.trans],
            types: [args.a.tensor.dtype(), c.dtype()],
            bias: args.bias.is_some(),
            aligned: [b, a, at].map(alignment),
        };
        self.here();
        let result = self.products.plan(key).and_then(|plan| self.multiply_by(&plan, [a, b, at], args));
        self.note(result);
    }

    fn multiply_by(&self, plan: &Plan, [a, b, c]: [Address; 3], args: &Multiply<'_>) -> Result<(), CallError> {
        let Products { blas, handle, workspace, .. } = &self.products;
        let product = plan.product.handle();
        if let Some(bias) = args.bias.map(Tensor::address) {
            // SAFETY: a description of this one's, and an address, which has eight bytes.
            unsafe { blas.set_product(product, product::BIAS, (&raw const bias).cast(), 8) }?;
        }
        let (alpha, beta) = (&raw const args.alpha, &raw const args.beta);
        let [lb, la, lc] = plan.layouts.map(Token::handle);
        // SAFETY: tensors of the sizes that the layouts say; the factors are read before the call returns.
        unsafe {
            let (algorithm, work) = (&raw const plan.algorithm, self.work.handle());
            blas.multiply(
                handle.handle(),
                product,
                alpha.cast(),
                b,
                lb,
                a,
                la,
                beta.cast(),
                c,
                lc,
                c,
                lc,
                algorithm,
                *workspace,
                plan.workspace,
                work,
            )
        }
    }
}
