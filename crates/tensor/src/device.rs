//! Devices: where tensors lie and whether work is executed or only counted.
//!
//! `meta` is not a third set of ops but the same device with `executes() == false`: it allocates nothing,
//! counts every byte and operation as the device it imitates would, and so predicts it exactly. A fault (no
//! memory) makes a device behave like that too: the rest of the step runs through without touching data, and
//! [`Device::check`] reports the first fault. So ops and models need no `Result`, as on a GPU, where errors are
//! sticky as well.

use crate::heap::{Block, Heap};
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

/// What a device has counted.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Track {
    /// Bytes live now, by [`Kind::ALL`].
    pub live: [u64; 8],
    /// The highest sum of live bytes so far.
    pub peak: u64,
    /// Bytes by kind at that moment.
    pub at_peak: [u64; 8],
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
    #[error("out of memory: {asked} bytes for {kind:?} were refused with {live} bytes in use")]
    OutOfMemory {
        /// Bytes asked for.
        asked: u64,
        /// What for.
        kind: Kind,
        /// Bytes in use then.
        live: u64,
    },
    /// Whoever drives the device ended its work: another rank is lost, say.
    #[error("work was stopped: {0}")]
    Stopped(String),
}

/// A device. Clones share it.
#[derive(Clone)]
pub struct Device(Arc<Inner>);

struct Inner {
    executes: bool,
    state: Mutex<State>,
}

struct State {
    heap: Heap,
    track: Track,
    fault: Option<Fault>,
}

/// Address range reserved at a time; no memory stands behind it until it is written.
const RESERVE: usize = 1 << 36;

impl Device {
    /// The processor.
    pub fn cpu() -> Self {
        Self::new(true)
    }

    /// Imitates the processor: counts and executes nothing.
    pub fn meta() -> Self {
        Self::new(false)
    }

    fn new(executes: bool) -> Self {
        let state = State { heap: Heap::new(RESERVE), track: Track::default(), fault: None };
        Self(Arc::new(Inner { executes, state: Mutex::new(state) }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves plain counters behind, which are still true.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether kernels run: false on meta and after a fault.
    pub fn executes(&self) -> bool {
        self.0.executes && self.state().fault.is_none()
    }

    /// The first fault, if there was one.
    pub fn check(&self) -> Result<(), Fault> {
        self.state().fault.clone().map_or(Ok(()), Err)
    }

    /// Lets all further work run through without touching data; [`check`](Self::check) gives `reason` from now on.
    pub fn stop(&self, reason: String) {
        self.state().fault.get_or_insert(Fault::Stopped(reason));
    }

    /// Another device like this one, with memory and counters of its own: the host's, where states that the device has no
    /// room for are kept.
    pub fn another(&self) -> Self {
        Self::new(self.0.executes)
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
        let block = if self.0.executes && state.fault.is_none() {
            let block = state.heap.take(bytes);
            if block.is_none() {
                let live = state.track.total();
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
        block
    }

    pub(crate) fn release(&self, block: Option<Block>, bytes: usize, kind: Kind) {
        let mut state = self.state();
        state.track.live[kind as usize] -= bytes as u64;
        if let Some(block) = block {
            state.heap.give(block);
        }
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.executes { "cpu" } else { "meta" })
    }
}
