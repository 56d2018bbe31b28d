//! Devices: where tensors lie and whether work is executed or only counted.
//!
//! `meta` is not a third set of ops but a device that executes nothing: it allocates nothing, counts every byte and
//! operation as the device it imitates would (its [`Profile`]), and so predicts it exactly. A fault (no
//! memory) makes a device behave like that too: the rest of the step runs through without touching data, and
//! [`Device::check`] reports the first fault. So ops and models need no `Result`, as on a GPU, where errors are
//! sticky as well.

use crate::cuda::{self, Gpu};
use crate::heap::{Block, Heap, HostRanges, NoRanges};
use crate::tensor::Storage;
use crate::{DType, Shape, Tensor};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a tensor is for; memory is counted by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Parameters as held between steps.
    Weight,
    /// Parameters brought together for a block and released after it.
    Gathered,
    /// Gradients of parameters.
    Grad,
    /// Optimiser states.
    Optim,
    /// Activations, saved or passing.
    Act,
    /// Gradients of activations.
    ActGrad,
    /// Workspace inside an op.
    Work,
    /// Token ids, labels, positions.
    Input,
}

impl Kind {
    /// All kinds, in the order of [`Track`]'s counters.
    pub const ALL: [Kind; 8] =
        [Kind::Weight, Kind::Gathered, Kind::Grad, Kind::Optim, Kind::Act, Kind::ActGrad, Kind::Work, Kind::Input];
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kind::Weight => "weights",
            Kind::Gathered => "weights brought together",
            Kind::Grad => "gradients of weights",
            Kind::Optim => "optimiser states",
            Kind::Act => "activations",
            Kind::ActGrad => "gradients of activations",
            Kind::Work => "workspace",
            Kind::Input => "tokens and labels",
        })
    }
}

/// Bytes in words.
fn amount(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["bytes", "KiB", "MiB", "GiB"];
    let unit = (0..3).rev().find(|unit| bytes >= 1 << (10 * (unit + 1))).map_or(0, |unit| unit + 1);
    let value = bytes as f64 / f64::from(1u32 << (10 * unit));
    if unit == 0 { format!("{bytes} bytes") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// What a device holds by kind, the most first.
fn in_use(live: &[u64; 8]) -> String {
    let mut kinds: Vec<(Kind, u64)> = Kind::ALL.into_iter().zip(*live).filter(|(_, bytes)| *bytes > 0).collect();
    kinds.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let list: Vec<String> = kinds.iter().map(|(kind, bytes)| format!("{} of {kind}", amount(*bytes))).collect();
    match &list[..] {
        [] => "nothing was in use".into(),
        list => format!("in use were {}: {}", amount(live.iter().sum()), list.join(", ")),
    }
}

/// What a device has counted.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Track {
    /// Bytes live now, by [`Kind::ALL`].
    pub live: [u64; 8],
    /// The highest sum of live bytes so far.
    pub peak: u64,
    /// Bytes by kind at that moment.
    pub at_peak: [u64; 8],
    /// Bytes of memory that tensors have lain on so far: the peak, and what then lay idle between them.
    pub extent: u64,
    /// Allocations so far.
    pub allocations: u64,
    /// Floating-point operations of matrix products and attention (multiply and add count as two).
    pub flops: f64,
}

impl Track {
    /// Sum of live bytes.
    pub fn total(&self) -> u64 {
        self.live.iter().sum()
    }
}

/// Why a device stopped executing.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Fault {
    /// The system gave no more memory.
    #[error("out of memory: {} for {kind} were refused; {}", amount(*asked), in_use(live))]
    OutOfMemory {
        /// Bytes asked for.
        asked: u64,
        /// What for.
        kind: Kind,
        /// Bytes in use then, by [`Kind::ALL`].
        live: [u64; 8],
    },
    /// Whoever drives the device ended its work: another rank is lost, say.
    #[error("work was stopped: {0}")]
    Stopped(String),
    /// A call of the GPU's libraries failed.
    #[error("the GPU: {0}")]
    Gpu(#[from] cuda::CallError),
    /// There is no kernel for it.
    #[error("{0} has no kernel for GPUs yet")]
    NoKernel(String),
}

/// A device. Clones share it.
#[derive(Clone)]
pub struct Device(Arc<Inner>);

/// Which device's workspaces an op allocates: the device's own, or that which `meta` imitates.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Profile {
    /// The processor.
    #[default]
    Cpu,
    /// A GPU.
    Cuda,
}

/// Who executes an op.
pub(crate) enum On<'a> {
    Cpu,
    Cuda(&'a Gpu),
}

enum Backend {
    Cpu,
    Meta(Profile),
    Cuda(Arc<Gpu>),
}

struct Inner {
    // Before the GPU: its ranges are given back while there is one.
    state: Mutex<State>,
    backend: Backend,
}

enum Memory {
    Heap(Heap),
    /// Each tensor is an allocation of the driver's own.
    Separate(Arc<Gpu>),
}

impl Memory {
    fn take(&mut self, bytes: usize) -> Option<Block> {
        match self {
            Self::Heap(heap) => heap.take(bytes),
            Self::Separate(gpu) => gpu.allocate_one(bytes).map(Block::alone),
        }
    }

    fn give(&mut self, block: Block) {
        match self {
            Self::Heap(heap) => heap.give(block),
            Self::Separate(gpu) => gpu.free_one(block.ptr),
        }
    }

    fn extent(&self, live: u64) -> u64 {
        match self {
            Self::Heap(heap) => heap.extent(),
            Self::Separate(_) => live,
        }
    }
}

struct State {
    memory: Memory,
    track: Track,
    fault: Option<Fault>,
}

/// Address range reserved at a time; no memory stands behind it until it is written.
const RESERVE: usize = 1 << 36;

impl Device {
    /// The processor.
    pub fn cpu() -> Self {
        Self::new(Backend::Cpu, Memory::Heap(Heap::new(HostRanges { reserve: RESERVE })))
    }

    /// Imitates the processor: counts and executes nothing.
    pub fn meta() -> Self {
        Self::imitating(Profile::Cpu)
    }

    /// Imitates a device of this profile: counts and executes nothing. Tensors are laid out as there, on addresses without
    /// memory.
    pub fn imitating(profile: Profile) -> Self {
        let align = match profile {
            Profile::Cpu => HostRanges::ALIGN,
            Profile::Cuda => cuda::GpuRanges::ALIGN,
        };
        Self::new(Backend::Meta(profile), Memory::Heap(Heap::new(NoRanges { align })))
    }

    /// A GPU.
    ///
    /// # Errors
    /// If it can't be used.
    pub fn cuda(libraries: &cuda::Libraries, options: &cuda::Options) -> Result<Self, cuda::CallError> {
        let gpu = Arc::new(Gpu::new(libraries, options)?);
        let memory = match options.separate {
            true => Memory::Separate(gpu.clone()),
            false => Memory::Heap(Heap::new(cuda::GpuRanges::new(gpu.clone(), options.reserve))),
        };
        Ok(Self::new(Backend::Cuda(gpu), memory))
    }

    fn new(backend: Backend, memory: Memory) -> Self {
        let state = State { memory, track: Track::default(), fault: None };
        Self(Arc::new(Inner { backend, state: Mutex::new(state) }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves plain counters behind, which are still true.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether kernels run: false on meta and after a fault.
    pub fn executes(&self) -> bool {
        !matches!(self.0.backend, Backend::Meta(_)) && self.check().is_ok()
    }

    /// Whose workspaces ops allocate.
    pub fn profile(&self) -> Profile {
        match &self.0.backend {
            Backend::Cpu => Profile::Cpu,
            Backend::Meta(profile) => *profile,
            Backend::Cuda(_) => Profile::Cuda,
        }
    }

    /// The GPU, if this is one.
    pub fn gpu(&self) -> Option<&Gpu> {
        match &self.0.backend {
            Backend::Cuda(gpu) => Some(gpu),
            _ => None,
        }
    }

    /// The same, for what lives on beside this.
    pub(crate) fn shared_gpu(&self) -> Option<Arc<Gpu>> {
        match &self.0.backend {
            Backend::Cuda(gpu) => Some(gpu.clone()),
            _ => None,
        }
    }

    /// Waits for all work so far. Only what measures time or ends a run needs this: results are waited for where they are read.
    ///
    /// # Errors
    /// The first fault.
    pub fn synchronize(&self) -> Result<(), Fault> {
        if let Some(gpu) = self.gpu() {
            gpu.synchronize()?;
        }
        self.check()
    }

    /// Who executes; `None` where nobody does.
    pub(crate) fn runs_on(&self) -> Option<On<'_>> {
        self.executes().then(|| self.gpu().map_or(On::Cpu, On::Cuda))
    }

    /// The first fault, if there was one. A GPU's work may not be done yet: a fault that only shows when it is comes later.
    pub fn check(&self) -> Result<(), Fault> {
        let own = self.state().fault.clone();
        own.or_else(|| self.gpu()?.fault()).map_or(Ok(()), Err)
    }

    /// Takes the memory that a plan says a GPU will need at once, so that it isn't in pieces. Elsewhere memory is found as it
    /// is needed.
    ///
    /// # Errors
    /// If there isn't so much. Nothing sticks: another plan may ask for less.
    pub fn reserve(&self, bytes: u64) -> Result<(), Fault> {
        let mut state = self.state();
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        if let (Some(_), Memory::Heap(heap)) = (self.gpu(), &mut state.memory)
            && !heap.reserve(bytes)
        {
            return Err(Fault::OutOfMemory { asked: bytes as u64, kind: Kind::Work, live: state.track.live });
        }
        Ok(())
    }

    /// Gives back memory of a GPU that was reserved and isn't used.
    pub fn give_back(&self) {
        let mut state = self.state();
        if let (Some(_), Memory::Heap(heap)) = (self.gpu(), &mut state.memory) {
            heap.give_back();
        }
    }

    /// Bytes that a GPU has left; `None` where memory is the system's.
    pub fn free_memory(&self) -> Option<u64> {
        self.gpu()?.free_memory()
    }

    /// Lets it execute again after it ran out of memory. Tensors that were asked for since then stay without data.
    pub fn recover(&self) {
        let fault = &mut self.state().fault;
        *fault = fault.take().filter(|fault| !matches!(fault, Fault::OutOfMemory { .. }));
    }

    /// Lets all further work run through without touching data; [`check`](Self::check) gives `reason` from now on.
    pub fn stop(&self, reason: String) {
        self.state().fault.get_or_insert(Fault::Stopped(reason));
    }

    /// The host beside this device, with memory and counters of its own: where states are kept that the device has no room
    /// for.
    pub fn host(&self) -> Self {
        match self.0.backend {
            Backend::Meta(_) => Self::meta(),
            _ => Self::cpu(),
        }
    }

    /// Whether both are the same device.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Counters so far.
    pub fn track(&self) -> Track {
        self.state().track.clone()
    }

    /// Counts floating-point operations.
    pub fn count_flops(&self, flops: f64) {
        self.state().track.flops += flops;
    }

    /// A tensor whose content is undefined until a kernel writes it. (On the CPU it holds some valid bit
    /// pattern: memory comes zeroed from the system or was written before.)
    pub fn empty(&self, shape: impl Into<Shape>, dtype: DType, kind: Kind) -> Tensor {
        let shape = shape.into();
        let bytes = dtype.bytes(shape.numel());
        let block = self.allocate(bytes, kind);
        let storage = Storage { device: self.clone(), block, bytes, kind };
        #[expect(
            clippy::arc_with_non_send_sync,
            reason = "storages will cross threads once collectives overlap with work"
        )]
        let storage = Arc::new(storage);
        Tensor::from_storage(storage, shape, dtype)
    }

    /// A tensor of zeros.
    pub fn zeros(&self, shape: impl Into<Shape>, dtype: DType, kind: Kind) -> Tensor {
        let tensor = self.empty(shape, dtype, kind);
        tensor.zero();
        tensor
    }

    fn allocate(&self, bytes: usize, kind: Kind) -> Option<Block> {
        let mut state = self.state();
        let asked = bytes as u64;
        let block = if state.fault.is_none() && self.gpu().is_none_or(|gpu| gpu.fault().is_none()) {
            let block = state.memory.take(bytes);
            if block.is_none() {
                let live = state.track.live;
                state.fault = Some(Fault::OutOfMemory { asked, kind, live });
            }
            block
        } else {
            None
        };
        let track = &mut state.track;
        track.live[kind as usize] += asked;
        track.allocations += 1;
        let total = track.total();
        if total > track.peak {
            track.peak = total;
            track.at_peak = track.live;
        }
        let extent = state.memory.extent(total);
        state.track.extent = state.track.extent.max(extent);
        block
    }

    pub(crate) fn release(&self, block: Option<Block>, bytes: usize, kind: Kind) {
        let mut state = self.state();
        state.track.live[kind as usize] -= bytes as u64;
        if let Some(block) = block {
            state.memory.give(block);
        }
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match &self.0.backend {
            Backend::Cpu => "cpu",
            Backend::Meta(Profile::Cpu) => "meta",
            Backend::Meta(Profile::Cuda) => "meta of a GPU",
            Backend::Cuda(_) => "cuda",
        })
    }
}
