//! cublasLt's exports.
#![expect(unreachable_pub, reason = "exported by name, reached by no path")]

use super::driver::{give, on};
use crate::device::Device;
use crate::product::{Element, Layout, Product};
use crate::work::Work;
use std::ffi::{c_char, c_int, c_void};
use std::hash::{DefaultHasher, Hash, Hasher};

type Handle = *mut c_void;

const INVALID_VALUE: c_int = 7;
const EXECUTION_FAILED: c_int = 13;
const NOT_SUPPORTED: c_int = 15;

/// A description of a product.
#[derive(Debug, Clone)]
struct Described {
    tf32: bool,
    transposed: [bool; 2],
    epilogue: u32,
    bias: u64,
}

/// Wishes on algorithms.
#[derive(Debug, Clone)]
struct Wishes {
    workspace: u64,
    alignment: [u32; 4],
}

/// As cublasLt has it.
#[repr(C)]
pub struct Proposal {
    algorithm: [u64; 8],
    workspace: usize,
    state: c_int,
    waves: f32,
    reserved: [c_int; 4],
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtCreate(to: *mut Handle) -> c_int {
    let mut code = 1;
    // SAFETY: the caller's pointer; the driver says whether there is a context.
    let driver = on("cublasLtCreate", |_| unsafe { give(to, 0x10 as Handle) });
    if driver == 0 {
        code = 0;
    }
    code
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtDestroy(_handle: Handle) -> c_int {
    0
}

/// 12.3.4.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtGetVersion() -> usize {
    120_304
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtGetStatusName(code: c_int) -> *const c_char {
    let name = match code {
        0 => c"CUBLAS_STATUS_SUCCESS",
        1 => c"CUBLAS_STATUS_NOT_INITIALIZED",
        INVALID_VALUE => c"CUBLAS_STATUS_INVALID_VALUE",
        EXECUTION_FAILED => c"CUBLAS_STATUS_EXECUTION_FAILED",
        NOT_SUPPORTED => c"CUBLAS_STATUS_NOT_SUPPORTED",
        _ => c"<unknown>",
    };
    name.as_ptr()
}

/// Hands an object over as a handle.
unsafe fn made<T>(to: *mut Handle, object: T) -> c_int {
    // SAFETY: the caller's pointer.
    unsafe { give(to, Box::into_raw(Box::new(object)).cast()) }.err().unwrap_or(0)
}

/// Ends an object.
unsafe fn ended<T>(handle: Handle) -> c_int {
    // SAFETY: from `made` of the same type, by the caller's promise.
    drop(unsafe { Box::from_raw(handle.cast::<T>()) });
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulDescCreate(to: *mut Handle, compute: c_int, scale: c_int) -> c_int {
    if !matches!(compute, 68 | 77) || scale != 0 {
        return NOT_SUPPORTED;
    }
    let described = Described { tf32: compute == 77, transposed: [false; 2], epilogue: 1, bias: 0 };
    // SAFETY: the caller's pointer.
    unsafe { made(to, described) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulDescDestroy(product: Handle) -> c_int {
    // SAFETY: the caller's handle.
    unsafe { ended::<Described>(product) }
}

/// Reads a value of the size that the attribute has.
unsafe fn value<T: Copy>(from: *const c_void, bytes: usize) -> Option<T> {
    // SAFETY: `bytes` bytes by the caller's promise.
    (bytes == size_of::<T>()).then(|| unsafe { from.cast::<T>().read_unaligned() })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulDescSetAttribute(
    product: Handle,
    attribute: c_int,
    from: *const c_void,
    bytes: usize,
) -> c_int {
    // SAFETY: the caller's handle.
    let product = unsafe { &mut *product.cast::<Described>() };
    // SAFETY: the caller's value.
    let (word, long) = unsafe { (value::<u32>(from, bytes), value::<u64>(from, bytes)) };
    match (attribute, word, long) {
        (3, Some(flip @ (0 | 1)), _) => product.transposed[0] = flip == 1,
        (4, Some(flip @ (0 | 1)), _) => product.transposed[1] = flip == 1,
        (7, Some(epilogue @ (1 | 4)), _) => product.epilogue = epilogue,
        (8, _, Some(bias)) => product.bias = bias,
        _ => return INVALID_VALUE,
    }
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatrixLayoutCreate(
    to: *mut Handle,
    of: c_int,
    rows: u64,
    columns: u64,
    stride: i64,
) -> c_int {
    let (Some(of), Ok(stride)) = (Element::from_number(of), u64::try_from(stride)) else { return INVALID_VALUE };
    // SAFETY: the caller's pointer.
    unsafe { made(to, Layout { of, rows, columns, stride }) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatrixLayoutDestroy(layout: Handle) -> c_int {
    // SAFETY: the caller's handle.
    unsafe { ended::<Layout>(layout) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulPreferenceCreate(to: *mut Handle) -> c_int {
    // SAFETY: the caller's pointer.
    unsafe { made(to, Wishes { workspace: 0, alignment: [256; 4] }) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulPreferenceDestroy(preference: Handle) -> c_int {
    // SAFETY: the caller's handle.
    unsafe { ended::<Wishes>(preference) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulPreferenceSetAttribute(
    preference: Handle,
    attribute: c_int,
    from: *const c_void,
    bytes: usize,
) -> c_int {
    // SAFETY: the caller's handle.
    let wishes = unsafe { &mut *preference.cast::<Wishes>() };
    // SAFETY: the caller's value.
    let (word, long) = unsafe { (value::<u32>(from, bytes), value::<u64>(from, bytes)) };
    match (attribute, word, long) {
        (1, _, Some(bytes)) => wishes.workspace = bytes,
        (3, Some(_), _) => {}
        (5..=8, Some(alignment), _) => wishes.alignment[attribute as usize - 5] = alignment,
        _ => return INVALID_VALUE,
    }
    0
}

/// Scratch memory that every algorithm wants, where it may.
const WORKSPACE: u64 = 4096;

/// What an algorithm was proposed for.
fn mark(product: &Described, layouts: [Layout; 4]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (product.tf32, product.transposed, product.epilogue, layouts).hash(&mut hasher);
    hasher.finish()
}

/// The four layouts.
unsafe fn layouts(handles: [Handle; 4]) -> [Layout; 4] {
    // SAFETY: the caller's handles.
    handles.map(|layout| unsafe { *layout.cast::<Layout>() })
}

/// The product without addresses.
fn product_of(product: &Described, [a, b, c, d]: [Layout; 4]) -> Product {
    Product {
        alpha: 0.0,
        beta: 0.0,
        a: (0, a),
        b: (0, b),
        c: (0, c),
        d: (0, d),
        transposed: product.transposed,
        bias: (product.epilogue == 4).then_some(product.bias),
        tf32: product.tf32,
        workspace: (0, 0),
        wrong: false,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulAlgoGetHeuristic(
    _handle: Handle,
    product: Handle,
    a: Handle,
    b: Handle,
    c: Handle,
    d: Handle,
    preference: Handle,
    asked: c_int,
    to: *mut Proposal,
    count: *mut c_int,
) -> c_int {
    // SAFETY: the caller's handles.
    let (described, layouts, wishes) =
        unsafe { (&*product.cast::<Described>(), layouts([a, b, c, d]), &*preference.cast::<Wishes>()) };
    if asked < 1 || !product_of(described, layouts).is_possible() {
        return NOT_SUPPORTED;
    }
    let mut algorithm = [0; 8];
    algorithm[0] = mark(described, layouts);
    wishes.alignment.iter().zip(&mut algorithm[1..]).for_each(|(wish, to)| *to = u64::from(*wish));
    let workspace = WORKSPACE.min(wishes.workspace) as usize;
    let proposal = Proposal { algorithm, workspace, state: 0, waves: 1.0, reserved: [0; 4] };
    // SAFETY: the caller's pointers.
    unsafe { give(to, proposal).and_then(|()| give(count, 1)) }.err().unwrap_or(0)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmul(
    _handle: Handle,
    product: Handle,
    alpha: *const c_void,
    a: u64,
    a_layout: Handle,
    b: u64,
    b_layout: Handle,
    beta: *const c_void,
    c: u64,
    c_layout: Handle,
    d: u64,
    d_layout: Handle,
    algorithm: *const [u64; 8],
    workspace: u64,
    workspace_bytes: usize,
    stream: Handle,
) -> c_int {
    // SAFETY: the caller's handles and factors.
    let (described, layouts, algorithm) =
        unsafe { (&*product.cast::<Described>(), layouts([a_layout, b_layout, c_layout, d_layout]), *algorithm) };
    // SAFETY: as above.
    let (alpha, beta) = unsafe { (alpha.cast::<f32>().read(), beta.cast::<f32>().read()) };
    let aligned = [a, b, c, d].iter().zip(&algorithm[1..]).all(|(at, wish)| at.is_multiple_of(*wish));
    // An algorithm of another shape, or for better aligned operands, would read or write elsewhere.
    if algorithm[0] != mark(described, layouts) || !aligned {
        return INVALID_VALUE;
    }
    let bare = product_of(described, layouts);
    let [la, lb, lc, ld] = layouts;
    let work = Product {
        alpha,
        beta,
        a: (a, la),
        b: (b, lb),
        c: (c, lc),
        d: (d, ld),
        workspace: (workspace, workspace_bytes.min(WORKSPACE as usize)),
        ..bare
    };
    let put = |device: &mut Device| {
        let wrong = device.gives_wrong("cublasLtMatmul");
        device.push(stream as usize as u64, Work::Multiply(Box::new(Product { wrong, ..work })))
    };
    match on("cublasLtMatmul", put) {
        0 => 0,
        _ => EXECUTION_FAILED,
    }
}
