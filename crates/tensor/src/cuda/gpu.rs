//! A GPU in use: its context, its two streams, its kernels.
//!
//! All work on tensors is in one stream, in the order of the ops. Copies from and to the host have a stream of their own, so
//! that they may overlap once nobody needs them at once; each waits by an event for the work before it, and the work after it
//! waits for the copy. A failed call is sticky ([`Gpu::fault`]), as a device's faults are.

use super::driver::{Address, Driver, Handle, attribute, code, flag, function_attribute};
use super::images::Image;
use super::products::Products;
use super::transfer::Transfers;
use super::{CallError, Libraries};
use crate::Fault;
use crate::heap::{Range, Ranges};
use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// How a GPU is used.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Its number, among those that the process may see.
    pub device: usize,
    /// Bytes of memory taken at once: what the plan says will be needed.
    pub reserve: u64,
    /// Each tensor is an allocation of its own, so that an access beside one is found. Slow.
    pub separate: bool,
    /// Products of f32 matrices may round their operands to 11 bits.
    pub tf32: bool,
}

/// What is known of a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// NVIDIA's name of it.
    pub name: String,
    /// Compute capability.
    pub capability: (i32, i32),
    /// Bytes.
    pub memory: u64,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Most bytes of shared memory of a block.
    pub shared: i32,
}

/// A handle that may go to other threads: the driver's are good for all threads that use the context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Token(usize);

impl Token {
    pub(crate) fn new(handle: Handle) -> Self {
        Self(handle as usize)
    }

    pub(crate) fn handle(self) -> Handle {
        self.0 as Handle
    }
}

/// A GPU.
pub struct Gpu {
    pub(crate) driver: Driver,
    context: Token,
    /// All work on tensors.
    pub(crate) work: Token,
    pub(crate) about: About,
    pub(crate) products: Products,
    pub(crate) transfers: Mutex<Transfers>,
    kernels: Mutex<HashMap<String, Token>>,
    modules: Mutex<HashMap<Image, Token>>,
    fault: OnceLock<Fault>,
}

/// A value of a kernel's parameter.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Arg {
    /// 32 bits.
    Word([u8; 4]),
    /// 64 bits; addresses are these.
    Long([u8; 8]),
    /// A structure by value, padded.
    Struct([u8; 64]),
    /// A size of more than 32 bits, which no kernel takes.
    TooLarge(usize),
}

impl From<u32> for Arg {
    fn from(value: u32) -> Self {
        Self::Word(value.to_ne_bytes())
    }
}

impl From<f32> for Arg {
    fn from(value: f32) -> Self {
        Self::Word(value.to_ne_bytes())
    }
}

impl From<f64> for Arg {
    fn from(value: f64) -> Self {
        Self::Long(value.to_ne_bytes())
    }
}

impl From<u64> for Arg {
    fn from(value: u64) -> Self {
        Self::Long(value.to_ne_bytes())
    }
}

impl From<&crate::Tensor> for Arg {
    fn from(tensor: &crate::Tensor) -> Self {
        tensor.address().into()
    }
}

impl From<Option<&crate::Tensor>> for Arg {
    fn from(tensor: Option<&crate::Tensor>) -> Self {
        tensor.map_or(0, crate::Tensor::address).into()
    }
}

impl Arg {
    fn at(&mut self) -> *mut c_void {
        match self {
            Self::Word(bytes) => bytes.as_mut_ptr().cast(),
            Self::Long(bytes) => bytes.as_mut_ptr().cast(),
            Self::Struct(bytes) => bytes.as_mut_ptr().cast(),
            Self::TooLarge(size) => std::ptr::from_mut(size).cast(),
        }
    }
}

/// Blocks, threads of a block, bytes of shared memory beyond the kernel's own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared: u32,
}

impl Shape {
    pub(crate) fn new(grid: [u32; 3], block: [u32; 3]) -> Self {
        Self { grid, block, shared: 0 }
    }
}

/// Most blocks along each side of a grid, on all GPUs.
const MOST_BLOCKS: [u32; 3] = [(1 << 31) - 1, 65_535, 65_535];

thread_local! {
    /// The context that this thread uses, so that the driver is told only of changes.
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

impl Gpu {
    pub(crate) fn new(libraries: &Libraries, options: &Options) -> Result<Self, CallError> {
        let driver = libraries.driver.clone();
        let (device, about) = about(&driver, options.device)?;
        let mut context = std::ptr::null_mut();
        // SAFETY: `context` outlives the call, `device` is the driver's.
        unsafe { driver.primary_context(&raw mut context, device) }?;
        enter(&driver, Token::new(context))?;
        let work = stream(&driver)?;
        let products = Products::new(&driver, &libraries.blas, options.tf32)?;
        let transfers = Mutex::new(Transfers::new(&driver, stream(&driver)?)?);
        let (kernels, modules) = (Mutex::default(), Mutex::default());
        let (context, fault) = (Token::new(context), OnceLock::new());
        Ok(Self { driver, context, work, about, products, transfers, kernels, modules, fault })
    }

    /// What is known of it.
    pub fn about(&self) -> &About {
        &self.about
    }

    /// The first fault, if there was one.
    pub fn fault(&self) -> Option<Fault> {
        self.fault.get().cloned()
    }

    /// Makes the GPU's context this thread's.
    pub(crate) fn here(&self) -> &Driver {
        self.note(enter(&self.driver, self.context));
        &self.driver
    }

    /// Keeps the first failure.
    pub(crate) fn note(&self, result: Result<(), CallError>) {
        if let Err(error) = result {
            let _ = self.fault.set(error.into());
        }
    }

    /// Says that an op has no kernel for these types or shapes.
    pub(crate) fn lacks(&self, what: impl Into<String>) {
        let _ = self.fault.set(Fault::NoKernel(what.into()));
    }

    /// Runs a kernel after all work so far; nothing where the grid is empty. One that isn't there, or that is asked for more than
    /// it can do, is a fault with its name.
    pub(crate) fn launch(&self, image: Image, kernel: &str, shape: Shape, args: &[Arg]) {
        if shape.grid.contains(&0) || self.fault.get().is_some() {
            return;
        }
        if let Some(Arg::TooLarge(size)) = args.iter().find(|arg| matches!(arg, Arg::TooLarge(_))) {
            return self.lacks(format!("`{kernel}` of {size} rows or columns"));
        }
        if shape.grid.iter().zip(MOST_BLOCKS).any(|(blocks, most)| *blocks > most) {
            return self.lacks(format!("`{kernel}` over {:?} blocks", shape.grid));
        }
        match self.function(image, kernel) {
            Ok(function) => self.note(self.launch_function(function, shape, args)),
            Err(error) if error.code == code::NOT_FOUND => self.lacks(format!("`{kernel}`")),
            Err(error) => self.note(Err(error)),
        }
    }

    fn launch_function(&self, function: Token, shape: Shape, args: &[Arg]) -> Result<(), CallError> {
        let mut values = args.to_vec();
        let mut pointers: Vec<*mut c_void> = values.iter_mut().map(Arg::at).collect();
        let (Shape { grid: [x, y, z], block: [bx, by, bz], shared }, work) = (shape, self.work.handle());
        let params = pointers.as_mut_ptr();
        // SAFETY: a function of a loaded module with a value for each of its parameters, which the driver copies.
        unsafe {
            self.here().launch(function.handle(), x, y, z, bx, by, bz, shared, work, params, std::ptr::null_mut())
        }
    }

    fn function(&self, image: Image, kernel: &str) -> Result<Token, CallError> {
        if let Some(function) = lock(&self.kernels).get(kernel) {
            return Ok(*function);
        }
        let module = self.module(image)?;
        let name = CString::new(kernel).expect("kernels' names have no zeros");
        let mut function = std::ptr::null_mut();
        // SAFETY: `function` and `name` outlive the call.
        unsafe { self.here().function(&raw mut function, module.handle(), name.as_ptr()) }?;
        // Any kernel may be launched with as much shared memory as the GPU has for a block.
        let (attribute, most) = (function_attribute::MAX_DYNAMIC_SHARED, self.about.shared);
        if matches!(image, Image::Attention) {
            // SAFETY: the function just given.
            unsafe { self.driver.set_function_attribute(function, attribute, most) }?;
        }
        lock(&self.kernels).insert(kernel.to_owned(), Token::new(function));
        Ok(Token::new(function))
    }

    /// Machine code for this GPU if there is some that the driver takes, else PTX.
    fn module(&self, image: Image) -> Result<Token, CallError> {
        let mut modules = lock(&self.modules);
        if let Some(module) = modules.get(&image) {
            return Ok(*module);
        }
        let mut module = std::ptr::null_mut();
        let driver = self.here();
        let code = image.code(self.about.capability);
        // SAFETY: an image of machine code; the driver copies it.
        let tried = code.map(|code| unsafe { driver.load_module(&raw mut module, code.as_ptr().cast()) });
        match tried {
            Some(Ok(())) => {}
            Some(Err(error)) if error.code != code::NO_BINARY_FOR_GPU => return Err(error),
            // SAFETY: PTX that ends with zero.
            _ => unsafe { driver.load_module(&raw mut module, image.ptx().as_ptr().cast()) }?,
        }
        modules.insert(image, Token::new(module));
        Ok(Token::new(module))
    }

    /// Sets bytes, after all work so far.
    pub(crate) fn fill(&self, at: Address, value: u8, bytes: usize) {
        if bytes > 0 {
            // SAFETY: a tensor's bytes.
            self.note(unsafe { self.here().fill(at, value, bytes, self.work.handle()) });
        }
    }

    /// Copies inside the device, after all work so far.
    pub(crate) fn copy(&self, to: Address, from: Address, bytes: usize) {
        if bytes > 0 {
            // SAFETY: bytes of two tensors.
            self.note(unsafe { self.here().copy(to, from, bytes, self.work.handle()) });
        }
    }

    /// Waits for all work and tells whether it went well.
    ///
    /// # Errors
    /// The first fault.
    pub fn synchronize(&self) -> Result<(), Fault> {
        // SAFETY: the stream lives as long as this.
        self.note(unsafe { self.here().synchronize_stream(self.work.handle()) });
        self.fault().map_or(Ok(()), Err)
    }

    /// Bytes that are left.
    pub(crate) fn free_memory(&self) -> Option<u64> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: places that outlive the call.
        let result = unsafe { self.here().memory_info(&raw mut free, &raw mut total) };
        result.ok().map(|()| free as u64)
    }

    /// An allocation from this point of the work on.
    pub(crate) fn allocate_one(&self, bytes: usize) -> Option<*mut u8> {
        let mut address = 0;
        // SAFETY: `address` outlives the call.
        let result = unsafe { self.here().allocate_on(&raw mut address, bytes.max(1), self.work.handle()) };
        result.ok().map(|()| address as *mut u8)
    }

    /// Its end at this point of the work.
    pub(crate) fn free_one(&self, ptr: *mut u8) {
        // SAFETY: an allocation of `allocate_one`; work that uses it comes before.
        self.note(unsafe { self.here().free_on(ptr as Address, self.work.handle()) });
    }

    /// The copies' stream and its ring.
    pub(crate) fn copies(&self) -> MutexGuard<'_, Transfers> {
        lock(&self.transfers)
    }
}

/// A panic elsewhere leaves maps of handles behind, which are still true.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Gpu {
    fn drop(&mut self) {
        let driver = self.here();
        // SAFETY: the streams are this one's, and nobody uses them any more. Errors have nowhere to go.
        let _ = unsafe { driver.synchronize() };
        lock(&self.transfers).end(&self.driver);
        self.products.end(&self.driver);
        for module in lock(&self.modules).values() {
            // SAFETY: a module of this context, whose kernels have ended.
            let _ = unsafe { self.driver.unload_module(module.handle()) };
        }
        // SAFETY: as above.
        let _ = unsafe { self.driver.destroy_stream(self.work.handle()) };
    }
}

/// Makes a context this thread's.
pub(super) fn enter(driver: &Driver, context: Token) -> Result<(), CallError> {
    if CURRENT.get() == context.0 {
        return Ok(());
    }
    CURRENT.set(context.0);
    // SAFETY: a context of the driver's that its owner keeps.
    unsafe { driver.use_context(context.handle()) }
}

pub(super) fn stream(driver: &Driver) -> Result<Token, CallError> {
    let mut stream = std::ptr::null_mut();
    // SAFETY: `stream` outlives the call.
    unsafe { driver.create_stream(&raw mut stream, flag::STREAM_NON_BLOCKING, 0) }?;
    Ok(Token::new(stream))
}

/// The driver's number of a device, and what it says of it.
///
/// # Errors
/// The driver's.
pub(crate) fn about(driver: &Driver, ordinal: usize) -> Result<(i32, About), CallError> {
    let (mut device, mut memory, mut name) = (0, 0, [0u8; 256]);
    let ordinal = i32::try_from(ordinal).unwrap_or(i32::MAX);
    // SAFETY: all places outlive the calls; the name's length is told.
    unsafe {
        driver.device(&raw mut device, ordinal)?;
        driver.device_memory(&raw mut memory, device)?;
        driver.device_name(name.as_mut_ptr().cast(), 256, device)?;
    }
    let number = |attribute| {
        let mut value = 0;
        // SAFETY: as above.
        unsafe { driver.device_attribute(&raw mut value, attribute, device) }.map(|()| value)
    };
    let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
    let about = About {
        name: String::from_utf8_lossy(&name[..end]).into_owned(),
        capability: (number(attribute::CAPABILITY_MAJOR)?, number(attribute::CAPABILITY_MINOR)?),
        memory: memory as u64,
        multiprocessors: number(attribute::MULTIPROCESSORS)?.unsigned_abs(),
        shared: number(attribute::SHARED_MEMORY_OPTIN)?,
    };
    Ok((device, about))
}

/// Ranges of a GPU's memory for its heap.
pub(crate) struct GpuRanges {
    gpu: Arc<Gpu>,
    /// What the first range should have.
    reserve: usize,
    /// All so far.
    taken: usize,
}

/// Least bytes of a range.
const LEAST_RANGE: usize = 32 << 20;

impl GpuRanges {
    /// As wide as the widest access of a warp's half.
    pub(crate) const ALIGN: usize = 256;

    pub(crate) fn new(gpu: Arc<Gpu>, reserve: u64) -> Self {
        Self { gpu, reserve: usize::try_from(reserve).unwrap_or(usize::MAX), taken: 0 }
    }
}

/// A range that goes back when it is dropped.
struct Held {
    gpu: Arc<Gpu>,
    address: Address,
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: an allocation of this GPU's; the driver waits for its work.
        let _ = unsafe { self.gpu.here().free(self.address) };
    }
}

impl Ranges for GpuRanges {
    /// The planned range first; then an eighth of all so far, or less if there is no more.
    fn range(&mut self, least: usize) -> Option<Range> {
        let wanted = if self.taken == 0 { self.reserve } else { self.taken / 8 };
        for bytes in [wanted.max(LEAST_RANGE).max(least), least] {
            let (mut address, bytes) = (0, bytes.checked_next_multiple_of(self.align())?);
            // SAFETY: `address` outlives the call.
            if unsafe { self.gpu.here().allocate(&raw mut address, bytes) }.is_ok() {
                self.taken += bytes;
                let hold = Box::new(Held { gpu: self.gpu.clone(), address });
                return Some(Range { begin: address as *mut u8, bytes, _hold: hold });
            }
        }
        None
    }

    fn align(&self) -> usize {
        Self::ALIGN
    }
}
