//! cublasLt's functions, and its numbers that we use (`cublasLt.h`).

use super::{Library, NotLoaded, Search, Wanted};
use std::ffi::{c_int, c_void};

/// A handle of cublasLt: library, description, layout, preference.
pub type Handle = *mut c_void;

/// An algorithm that cublasLt proposes for a product, `cublasLtMatmulHeuristicResult_t`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Proposal {
    /// Opaque.
    pub algorithm: [u64; 8],
    /// Bytes of workspace that it needs.
    pub workspace: usize,
    /// 0 if it can be used.
    pub state: c_int,
    /// How well it fills the device.
    pub waves: f32,
    /// Not used.
    pub reserved: [c_int; 4],
}

crate::functions! {
    /// cublasLt.
    pub struct Blas, named by "cublasLtGetStatusName" {
        /// A handle for this thread's device.
        create: "cublasLtCreate" (handle: *mut Handle);
        /// Ends it.
        destroy: "cublasLtDestroy" (handle: Handle);
        /// A description of a product: the type it computes in and that of its factors.
        create_product: "cublasLtMatmulDescCreate" (product: *mut Handle, compute: c_int, scale: c_int);
        /// Ends it.
        destroy_product: "cublasLtMatmulDescDestroy" (product: Handle);
        /// Sets a property, see [`product`].
        set_product: "cublasLtMatmulDescSetAttribute" (product: Handle, attribute: c_int, value: *const c_void, bytes: usize);
        /// A matrix, column after column.
        create_layout: "cublasLtMatrixLayoutCreate" (layout: *mut Handle, of: c_int, rows: u64, columns: u64, stride: i64);
        /// Ends it.
        destroy_layout: "cublasLtMatrixLayoutDestroy" (layout: Handle);
        /// Wishes on algorithms.
        create_preference: "cublasLtMatmulPreferenceCreate" (preference: *mut Handle);
        /// Ends it.
        destroy_preference: "cublasLtMatmulPreferenceDestroy" (preference: Handle);
        /// Sets a wish, see [`preference`].
        set_preference: "cublasLtMatmulPreferenceSetAttribute" (preference: Handle, attribute: c_int, value: *const c_void, bytes: usize);
        /// Proposals for a product, the best first.
        #[expect(clippy::too_many_arguments, reason = "the library's own signature")]
        propose: "cublasLtMatmulAlgoGetHeuristic" (
            handle: Handle, product: Handle, a: Handle, b: Handle, c: Handle, d: Handle, preference: Handle,
            asked: c_int, proposals: *mut Proposal, count: *mut c_int,
        );
        /// d = alpha a b + beta c.
        #[expect(clippy::too_many_arguments, reason = "the library's own signature")]
        multiply: "cublasLtMatmul" (
            handle: Handle, product: Handle, alpha: *const c_void, a: u64, a_layout: Handle, b: u64, b_layout: Handle,
            beta: *const c_void, c: u64, c_layout: Handle, d: u64, d_layout: Handle, algorithm: *const [u64; 8],
            workspace: u64, workspace_bytes: usize, stream: super::driver::Handle,
        );
    }
}

/// Types of elements, `cudaDataType`.
pub mod element {
    /// f32.
    pub const F32: i32 = 0;
    /// f16.
    pub const F16: i32 = 2;
    /// bf16.
    pub const BF16: i32 = 14;
}

/// Types that products compute in, `cublasComputeType_t`.
pub mod compute {
    /// f32, with f32 sums.
    pub const F32: i32 = 68;
    /// Operands of f32 rounded to 11 bits, with f32 sums.
    pub const TF32: i32 = 77;
}

/// Properties of a product, `cublasLtMatmulDescAttributes_t`, and their values.
pub mod product {
    /// Whether the first operand is transposed: 0 or 1.
    pub const TRANSPOSE_A: i32 = 3;
    /// And the second.
    pub const TRANSPOSE_B: i32 = 4;
    /// What is done to the result.
    pub const EPILOGUE: i32 = 7;
    /// Address of the bias.
    pub const BIAS: i32 = 8;
    /// Epilogue: nothing.
    pub const NOTHING: i32 = 1;
    /// Epilogue: a bias is added, an element a row of d.
    pub const ADD_BIAS: i32 = 4;
}

/// Wishes on algorithms, `cublasLtMatmulPreferenceAttributes_t`, and their values.
pub mod preference {
    /// Most bytes of workspace.
    pub const WORKSPACE: i32 = 1;
    /// Which ways of adding up parts are allowed.
    pub const REDUCTIONS: i32 = 3;
    /// What the addresses of a, b, c and d are multiples of: this and the next three.
    pub const ALIGNMENT: i32 = 5;
    /// Parts are added in the compute type, in one order: the only way that gives the same bits again without a rounding more.
    pub const IN_ORDER: u32 = 2;
}

/// Opens cublasLt, of a version that `driver` (1000 major + 10 minor) can run.
///
/// # Errors
/// With every place where it was looked for.
pub fn open(search: &Search, driver: i32) -> Result<Blas, NotLoaded> {
    let newer = driver >= 13_000;
    let files: &[&str] = if newer { &["libcublasLt.so.13", "libcublasLt.so.12"] } else { &["libcublasLt.so.12"] };
    let cure = match newer {
        true => "`pip install nvidia-cublas nvidia-nccl-cu13` brings what is missing.",
        false => "`pip install nvidia-cublas-cu12 nvidia-nccl-cu12` brings what is missing.",
    };
    search.open(&Wanted { name: "cublasLt", files, cure }, |library: Library| Blas::load(library))
}

impl Blas {
    /// Its version, such as 12.3.4; `None` where it doesn't tell.
    pub fn version(&self) -> Option<String> {
        let ask = self.library().symbol(c"cublasLtGetVersion").ok()?;
        // SAFETY: the signature is that of the library's header.
        let ask = unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> usize>(ask) };
        // SAFETY: it may be called at any time.
        let version = unsafe { ask() };
        Some(format!("{}.{}.{}", version / 10_000, version % 10_000 / 100, version % 100))
    }
}
