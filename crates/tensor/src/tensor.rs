//! Tensors: a shape over a piece of a storage. Storages tell their device when they die.
//!
//! Kernels write through `&Tensor`: gradients, gathered weights and optimiser ranges are views of flat buffers,
//! so two tensors may name the same bytes. What keeps this sound: a tensor stays on its thread (the raw pointer
//! makes it neither `Send` nor `Sync`), the unsafe accessors are private to this crate, each op takes its slices
//! once and no kernel is given the same bytes as input and output unless its contract says so.
//!
//! On a GPU the pointer is a device address, which nothing here follows: what reads or writes bytes is then a copy to or
//! from the host, and waits for it.

use crate::cpu::{Data, DataMut};
use crate::device::On;
use crate::heap::Block;
use crate::{DType, Device, Kind, Shape};
use half::{bf16, f16};
use std::cell::OnceCell;
use std::ops::Range;
use std::sync::Arc;

/// Bytes on a device, freed when the last tensor over them dies.
pub(crate) struct Storage {
    pub(crate) device: Device,
    pub(crate) block: Option<Block>,
    pub(crate) bytes: usize,
    pub(crate) kind: Kind,
}

impl Drop for Storage {
    fn drop(&mut self) {
        self.device.release(self.block.take(), self.bytes, self.kind);
    }
}

/// A tensor's bytes on loan to another thread: a collective under way.
///
/// The lender keeps the tensor alive and unread until the loan ends (a collective's ticket sees to both). Bytes of a GPU are
/// copied to the host when they are first asked for, by the borrower's thread, and back at the loan's end if they were to be
/// written.
pub struct Lent {
    storage: Arc<Storage>,
    ptr: Option<*mut u8>,
    bytes: usize,
    /// The host's copy of a GPU's bytes.
    copy: OnceCell<Vec<u8>>,
    written: bool,
}

// SAFETY: the bytes stay where they are as long as the storage lives; freeing it goes through the device's lock; and
// only the borrower touches them until the loan ends.
unsafe impl Send for Lent {}

impl Lent {
    /// The bytes; none where the device doesn't execute.
    pub fn bytes(&self) -> &[u8] {
        let Some(ptr) = self.ptr else { return &[] };
        if let Some(gpu) = self.device().gpu() {
            return self.copy.get_or_init(|| gpu.downloaded(ptr as u64, self.bytes));
        }
        // SAFETY: in bounds by the tensor's construction, alive through `storage`, and lent to this thread alone.
        unsafe { std::slice::from_raw_parts(ptr, self.bytes) }
    }

    /// The bytes, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let Some(ptr) = self.ptr else { return &mut [] };
        if self.device().gpu().is_some() {
            self.bytes();
            self.written = true;
            return self.copy.get_mut().map_or(&mut [], Vec::as_mut_slice);
        }
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(ptr, self.bytes) }
    }

    /// The device the bytes lie on.
    pub fn device(&self) -> &Device {
        &self.storage.device
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let (Some(gpu), Some(ptr), Some(copy), true) =
            (self.storage.device.gpu(), self.ptr, self.copy.get(), self.written)
        {
            gpu.upload(ptr as u64, copy);
        }
    }
}

/// A contiguous row-major tensor.
#[derive(Clone)]
pub struct Tensor {
    storage: Arc<Storage>,
    /// Byte offset into the storage.
    offset: usize,
    shape: Shape,
    dtype: DType,
}

impl Tensor {
    pub(crate) fn from_storage(storage: Arc<Storage>, shape: Shape, dtype: DType) -> Self {
        Self { storage, offset: 0, shape, dtype }
    }

    /// The device it lies on.
    pub fn device(&self) -> &Device {
        &self.storage.device
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Sizes of the dimensions.
    pub fn dims(&self) -> &[usize] {
        self.shape.dims()
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.shape.numel()
    }

    /// Bytes of its elements.
    pub fn bytes(&self) -> usize {
        self.dtype.bytes(self.numel())
    }

    /// The same bytes under another shape.
    ///
    /// # Panics
    /// If the number of elements differs.
    pub fn reshape(&self, shape: impl Into<Shape>) -> Self {
        let shape = shape.into();
        assert_eq!(shape.numel(), self.numel(), "reshape of {:?} to {shape:?}", self.shape);
        Self { shape, ..self.clone() }
    }

    /// A piece of these bytes: `offset` in bytes from this tensor's begin.
    ///
    /// # Panics
    /// If it reaches beyond this tensor or isn't aligned to its elements.
    pub fn view(&self, offset: usize, shape: impl Into<Shape>, dtype: DType) -> Self {
        let shape = shape.into();
        let end = offset.checked_add(dtype.bytes(shape.numel()));
        assert!(end.is_some_and(|end| end <= self.bytes()), "view of {shape:?} {dtype} at {offset} in {self:?}");
        assert!(offset.is_multiple_of(dtype.bytes(1)), "view at {offset} isn't aligned to {dtype}");
        Self { storage: self.storage.clone(), offset: self.offset + offset, shape, dtype }
    }

    /// Rows `start..start + rows` of the outermost dimension.
    ///
    /// # Panics
    /// If they reach beyond it.
    pub fn rows(&self, start: usize, rows: usize) -> Self {
        let mut sizes = [1; 4];
        let rank = self.dims().len();
        sizes[..rank].copy_from_slice(self.dims());
        sizes[0] = rows;
        let row = self.dims()[1..].iter().product::<usize>();
        self.view(self.dtype.bytes(start * row), &sizes[..rank], self.dtype)
    }

    /// Whether nothing else holds these bytes, so that they may be overwritten.
    pub fn is_unique(&self) -> bool {
        Arc::strong_count(&self.storage) == 1
    }

    /// Whether both name the same bytes.
    pub fn same_bytes(&self, other: &Self) -> bool {
        let alike = self.offset == other.offset && self.bytes() == other.bytes();
        alike && Arc::ptr_eq(&self.storage, &other.storage)
    }

    /// Fills it with zeros.
    pub fn zero(&self) {
        match self.runs_on() {
            None => {}
            Some(On::Cpu) => self.with_bytes_mut(|bytes| bytes.fill(0)),
            Some(On::Cuda(gpu)) => gpu.fill(self.address(), 0, self.bytes()),
        }
    }

    /// Lets the caller write all of its bytes; does nothing where the device doesn't execute.
    ///
    /// The closure must not touch tensors over the same bytes; it is given nothing to do so with but what it captures. On a
    /// GPU it is given zeros to write over.
    pub fn with_bytes_mut(&self, write: impl FnOnce(&mut [u8])) {
        match self.runs_on() {
            None => {}
            Some(On::Cpu) => write(self.host_bytes()),
            Some(On::Cuda(gpu)) => {
                let mut bytes = vec![0; self.bytes()];
                write(&mut bytes);
                gpu.upload(self.address(), &bytes);
            }
        }
    }

    /// The same in parts, so that a GPU's tensor never lies in the host's memory as a whole: the closure is given a range of
    /// elements and their bytes, in order, until all are written or it fails.
    ///
    /// # Errors
    /// The closure's.
    pub fn write_parts<E>(&self, mut write: impl FnMut(Range<usize>, &mut [u8]) -> Result<(), E>) -> Result<(), E> {
        match self.runs_on() {
            None => Ok(()),
            Some(On::Cpu) => write(0..self.numel(), self.host_bytes()),
            Some(On::Cuda(gpu)) => {
                let (width, address) = (self.dtype.bytes(1), self.address());
                gpu.upload_parts(address, self.bytes(), width, |range, bytes| {
                    write(range.start / width..range.end / width, bytes)
                })
            }
        }
    }

    /// Lets the caller read its bytes; does nothing where the device doesn't execute. On a GPU this waits for all its work.
    pub fn with_bytes(&self, read: impl FnOnce(&[u8])) {
        match self.runs_on() {
            None => {}
            Some(On::Cpu) => read(self.host_bytes()),
            Some(On::Cuda(gpu)) => {
                let bytes = gpu.downloaded(self.address(), self.bytes());
                // What a failed copy left behind is nobody's data.
                if self.executes() {
                    read(&bytes);
                }
            }
        }
    }

    #[expect(clippy::mut_from_ref, reason = "as for f32_mut")]
    fn host_bytes(&self) -> &mut [u8] {
        let ptr = self.host_ptr();
        // SAFETY: the storage holds `bytes()` bytes from `ptr` on (checked when the view was made), written or
        // zeroed by the system; tensors stay on one thread and no other slice of them is alive here.
        unsafe { std::slice::from_raw_parts_mut(ptr, self.bytes()) }
    }

    /// Lends its bytes to another thread. Nobody else may touch them until the loan is dropped.
    pub fn lend(&self) -> Lent {
        let (storage, ptr, bytes) = (self.storage.clone(), self.ptr(), self.bytes());
        Lent { storage, ptr, bytes, copy: OnceCell::new(), written: false }
    }

    /// Copies values in, converted to its dtype.
    ///
    /// # Panics
    /// If their number differs, or if this is a tensor of integers.
    pub fn write_f32(&self, values: &[f32]) {
        assert_eq!(values.len(), self.numel(), "values for {self:?}");
        match self.dtype {
            DType::F32 => self.with_bytes_mut(|bytes| bytes.copy_from_slice(bytemuck::cast_slice(values))),
            DType::Bf16 => self.with_bytes_mut(|bytes| {
                let pairs = bytes.chunks_exact_mut(2).zip(values);
                pairs.for_each(|(to, &value)| to.copy_from_slice(&bf16::from_f32(value).to_le_bytes()));
            }),
            DType::F16 => self.with_bytes_mut(|bytes| {
                let pairs = bytes.chunks_exact_mut(2).zip(values);
                pairs.for_each(|(to, &value)| to.copy_from_slice(&f16::from_f32(value).to_le_bytes()));
            }),
            other => panic!("write_f32 into {other}"),
        }
    }

    /// Its values as f32; empty where the device doesn't execute. On a GPU this waits for all its work.
    ///
    /// # Panics
    /// If this is a tensor of integers.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = Vec::new();
        self.with_bytes(|bytes| {
            values = match self.dtype {
                DType::F32 => bytemuck::pod_collect_to_vec(bytes),
                DType::Bf16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
                DType::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
                other => panic!("to_f32 of {other}"),
            }
        });
        values
    }

    /// Its values; empty where the device doesn't execute. On a GPU this waits for all its work.
    ///
    /// # Panics
    /// Unless this is a tensor of u32.
    pub fn to_u32(&self) -> Vec<u32> {
        assert_eq!(self.dtype, DType::U32, "to_u32 of {self:?}");
        let mut values = Vec::new();
        self.with_bytes(|bytes| values = bytemuck::pod_collect_to_vec(bytes));
        values
    }

    /// Its single value.
    ///
    /// # Panics
    /// Unless it holds exactly one.
    pub fn item(&self) -> f32 {
        assert_eq!(self.numel(), 1, "item() of {self:?}");
        self.to_f32().first().copied().unwrap_or(0.0)
    }

    /// A tensor of indices.
    pub fn from_u32(device: &Device, values: &[u32], kind: Kind) -> Self {
        let tensor = device.empty([values.len()], DType::U32, kind);
        tensor.with_bytes_mut(|bytes| bytes.copy_from_slice(bytemuck::cast_slice(values)));
        tensor
    }

    /// A tensor of labels.
    pub fn from_i32(device: &Device, values: &[i32], kind: Kind) -> Self {
        let tensor = device.empty([values.len()], DType::I32, kind);
        tensor.with_bytes_mut(|bytes| bytes.copy_from_slice(bytemuck::cast_slice(values)));
        tensor
    }

    /// A tensor of f32 values.
    pub fn from_f32(device: &Device, values: &[f32], shape: impl Into<Shape>, kind: Kind) -> Self {
        let tensor = device.empty(shape, DType::F32, kind);
        tensor.write_f32(values);
        tensor
    }

    /// A new tensor of the same shape, dtype and device.
    pub fn empty_like(&self, kind: Kind) -> Self {
        self.device().empty(self.shape, self.dtype, kind)
    }

    /// Whether kernels run on it.
    pub(crate) fn executes(&self) -> bool {
        self.storage.block.is_some() && self.device().executes()
    }

    /// Who runs kernels on it; `None` where nobody does.
    pub(crate) fn runs_on(&self) -> Option<On<'_>> {
        self.storage.block.as_ref().and_then(|_| self.device().runs_on())
    }

    /// Where a GPU has it.
    pub(crate) fn address(&self) -> u64 {
        self.ptr().expect("kernels run only where somebody executes") as u64
    }

    fn host_ptr(&self) -> *mut u8 {
        assert!(self.device().gpu().is_none(), "the processor reads {self:?}");
        self.ptr().expect("kernels run only where executes() holds")
    }

    fn ptr(&self) -> Option<*mut u8> {
        let block = self.storage.block.as_ref().filter(|_| self.device().executes())?;
        Some(block.ptr.wrapping_add(self.offset))
    }

    fn typed<T: bytemuck::Pod>(&self, of: DType) -> *mut T {
        assert_eq!(self.dtype, of, "element type of {self:?}");
        self.host_ptr().cast()
    }

    /// Its f32 elements.
    pub(crate) fn f32(&self) -> &[f32] {
        // SAFETY: in bounds and aligned by construction; see the module's words on aliasing.
        unsafe { std::slice::from_raw_parts(self.typed(DType::F32), self.numel()) }
    }

    /// Its f32 elements, to be written.
    #[expect(clippy::mut_from_ref, reason = "views of flat buffers are written through shared handles")]
    pub(crate) fn f32_mut(&self) -> &mut [f32] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.typed(DType::F32), self.numel()) }
    }

    /// Its f64 elements, to be written.
    #[expect(clippy::mut_from_ref, reason = "as for f32_mut")]
    pub(crate) fn f64_mut(&self) -> &mut [f64] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.typed(DType::F64), self.numel()) }
    }

    /// Its u32 elements.
    pub(crate) fn u32(&self) -> &[u32] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(self.typed(DType::U32), self.numel()) }
    }

    /// Its u32 elements, to be written.
    #[expect(clippy::mut_from_ref, reason = "as for f32_mut")]
    pub(crate) fn u32_mut(&self) -> &mut [u32] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.typed(DType::U32), self.numel()) }
    }

    /// Its i32 elements.
    pub(crate) fn i32(&self) -> &[i32] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(self.typed(DType::I32), self.numel()) }
    }

    /// Its floating-point elements.
    pub(crate) fn data(&self) -> Data<'_> {
        match self.dtype {
            DType::F32 => Data::F32(self.f32()),
            // SAFETY: as above.
            DType::F16 => Data::F16(unsafe { std::slice::from_raw_parts(self.typed(DType::F16), self.numel()) }),
            // SAFETY: as above.
            _ => Data::Bf16(unsafe { std::slice::from_raw_parts(self.typed(DType::Bf16), self.numel()) }),
        }
    }

    /// Its floating-point elements, to be written.
    pub(crate) fn data_mut(&self) -> DataMut<'_> {
        match self.dtype {
            DType::F32 => DataMut::F32(self.f32_mut()),
            // SAFETY: as above.
            DType::F16 => DataMut::F16(unsafe { std::slice::from_raw_parts_mut(self.typed(DType::F16), self.numel()) }),
            // SAFETY: as above.
            _ => DataMut::Bf16(unsafe { std::slice::from_raw_parts_mut(self.typed(DType::Bf16), self.numel()) }),
        }
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?} on {:?}", self.dtype, self.shape, self.device())
    }
}
