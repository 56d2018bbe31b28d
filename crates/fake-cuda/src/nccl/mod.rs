//! NCCL of paper: communicators between processes, whose calls are work of the fake device's streams.
//!
//! It is stricter than NCCL where NCCL would hang or give wrong values: ranks whose calls differ are named; a buffer that is
//! written while a call is under way is told; what a call will write is NaN until it ends; a send ends only when it is received,
//! and a group of messages when all are; a communicator's first call gets into its stream a little later, as the manual allows.
//! The end of a peer is not noticed, since NCCL doesn't promise that.

mod exchange;
mod wire;

pub(crate) use exchange::{Element, Exchange, Leg, Op, Wrong, corrupt};

use crate::device::device;
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use wire::Wire;

/// NCCL's codes that the fake gives.
pub(crate) mod code {
    pub(crate) const UNHANDLED_CUDA_ERROR: i32 = 1;
    pub(crate) const SYSTEM_ERROR: i32 = 2;
    pub(crate) const INVALID_ARGUMENT: i32 = 4;
    pub(crate) const INVALID_USAGE: i32 = 5;
    pub(crate) const IN_PROGRESS: i32 = 7;
}

/// Ranks that are brought together.
pub(crate) struct Communicator {
    pub(crate) device: usize,
    pub(crate) rank: usize,
    pub(crate) ranks: usize,
    wire: Wire,
    /// What the next question for an error gets.
    state: AtomicI32,
    aborted: AtomicBool,
    finalized: AtomicBool,
    /// Calls so far, and those that haven't ended.
    calls: AtomicU64,
    open: AtomicUsize,
    /// A call is under way.
    busy: AtomicBool,
}

impl Communicator {
    /// Begins to bring ranks together; one that `hangs` never gets there.
    pub(crate) fn begin(device: usize, id: &[u8], (rank, ranks): (usize, usize), hangs: bool) -> Arc<Self> {
        let communicator = Arc::new(Self {
            device,
            rank,
            ranks,
            wire: Wire::new(ranks),
            state: AtomicI32::new(code::IN_PROGRESS),
            aborted: AtomicBool::default(),
            finalized: AtomicBool::default(),
            calls: AtomicU64::default(),
            open: AtomicUsize::default(),
            busy: AtomicBool::default(),
        });
        if !hangs {
            let (made, id) = (communicator.clone(), id.to_vec());
            std::thread::spawn(move || {
                let end = match made.wire.connect(&id, made.rank, &|| made.is_aborted()) {
                    Ok(()) => 0,
                    Err(_) => code::SYSTEM_ERROR,
                };
                made.set_state(end);
            });
        }
        communicator
    }

    pub(crate) fn state(&self) -> i32 {
        let going_on = self.finalized.load(Ordering::Acquire) && self.open.load(Ordering::Acquire) > 0;
        if going_on { code::IN_PROGRESS } else { self.state.load(Ordering::Acquire) }
    }

    pub(crate) fn set_state(&self, state: i32) {
        self.state.store(state, Ordering::Release);
    }

    pub(crate) fn abort(&self) {
        self.aborted.store(true, Ordering::Release);
    }

    pub(crate) fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Acquire)
    }

    pub(crate) fn finalize(&self) {
        self.finalized.store(true, Ordering::Release);
    }

    /// Whether nothing is under way and its end was begun.
    pub(crate) fn is_done(&self) -> bool {
        self.finalized.load(Ordering::Acquire) && self.open.load(Ordering::Acquire) == 0
    }

    /// Takes a call; whether it is the first.
    pub(crate) fn takes_first(&self) -> bool {
        self.open.fetch_add(1, Ordering::AcqRel);
        self.calls.fetch_add(1, Ordering::AcqRel) == 0
    }
}

/// All communicators of this process by their handles.
static COMMUNICATORS: LazyLock<Mutex<HashMap<u64, Arc<Communicator>>>> = LazyLock::new(Mutex::default);

fn communicators() -> MutexGuard<'static, HashMap<u64, Arc<Communicator>>> {
    COMMUNICATORS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives a communicator a handle.
pub(crate) fn keep(communicator: Arc<Communicator>) -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0x4e00_0000_0000);
    goes_on(communicator.device);
    let handle = NEXT.fetch_add(16, Ordering::Relaxed);
    communicators().insert(handle, communicator);
    handle
}

/// The communicator of a handle that is still good.
pub(crate) fn find(handle: u64) -> Option<Arc<Communicator>> {
    communicators().get(&handle).cloned()
}

/// Ends a handle.
pub(crate) fn forget(handle: u64) -> Option<Arc<Communicator>> {
    communicators().remove(&handle)
}

/// How long a device lets its host alone: a GPU works also when nobody waits for it, and a peer may.
const IDLE: Duration = Duration::from_millis(20);

/// Has a device's calls go on while the host waits for something else.
fn goes_on(number: usize) {
    static DEVICES: Mutex<BTreeSet<usize>> = Mutex::new(BTreeSet::new());
    if !DEVICES.lock().unwrap_or_else(PoisonError::into_inner).insert(number) {
        return;
    }
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(IDLE / 4);
            if let Some(mut device) = device(number) {
                device.go_on(IDLE);
            }
        }
    });
}
