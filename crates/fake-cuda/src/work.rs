//! A stream's work, as it lies in its queue.

use crate::nccl::Exchange;
use crate::product::Product;
use crate::settings::Settings;
use ferrotune_ptx::{Arg, Call, Fault, Memory, Module, Options};
use std::sync::Arc;

/// A piece of work.
pub(crate) enum Work {
    /// A kernel.
    Launch(Launch),
    /// A copy from the host.
    Upload { to: u64, from: Source },
    /// A copy to the host, whose memory is pinned.
    Download { to: Host, from: u64, bytes: usize },
    /// A copy inside the device.
    Copy { to: u64, from: u64, bytes: usize },
    /// Bytes set.
    Fill { at: u64, value: u8, bytes: usize },
    /// A product of matrices.
    Multiply(Box<Product>),
    /// A call of NCCL, whose first half leaves it in its place.
    Exchange(Box<Exchange>),
    /// A copy from another device, of what its memory held at the call.
    Peer { to: u64, held: Vec<u8>, direct: bool },
    /// What never comes to its end.
    Never,
    /// The end of an allocation.
    Free { at: u64 },
    /// An event's mark.
    Record { event: u64, mark: u64 },
    /// All that follows waits for an event's mark.
    Wait { event: u64, mark: u64 },
}

/// Pinned host memory: touched when the work is done, not when it is asked for.
#[derive(Clone, Copy)]
pub(crate) struct Host(pub(crate) usize);

/// Where an upload reads.
pub(crate) enum Source {
    /// What pageable memory held at the call.
    Held(Vec<u8>),
    /// Pinned memory.
    Pinned(Host, usize),
}

/// A launch with all that its kernel is given.
pub(crate) struct Launch {
    pub(crate) module: Arc<Module>,
    pub(crate) kernel: String,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared: usize,
    pub(crate) args: Vec<Arg>,
}

impl Work {
    /// Host memory that it will touch.
    pub(crate) fn touches(&self) -> Option<(usize, usize)> {
        match self {
            Self::Upload { from: Source::Pinned(Host(at), bytes), .. } => Some((*at, *bytes)),
            Self::Download { to: Host(at), bytes, .. } => Some((*at, *bytes)),
            _ => None,
        }
    }

    /// Milliseconds that it would take such a GPU, where that can be told from the bytes that cross its links; else one.
    pub(crate) fn milliseconds(&self, settings: &Settings) -> f64 {
        let model = &settings.model;
        let seconds = match self {
            Self::Peer { held, direct, .. } => {
                let link = if *direct { model.link } else { crate::settings::Link::Host };
                held.len() as f64 / link.bandwidth()
            }
            Self::Exchange(exchange) => 2.0 * exchange.bytes() as f64 / (0.8 * model.link.bandwidth()),
            Self::Record { .. } | Self::Wait { .. } => 0.0,
            _ => 1e-3,
        };
        1e3 * seconds * 100.0 / f64::from(settings.rate.max(1))
    }

    /// Does it; events are the caller's.
    pub(crate) fn run(self, memory: &mut Memory, seed: u64) -> Result<(), Fault> {
        match self {
            Self::Launch(launch) => {
                let Launch { module, kernel, grid, block, shared, args } = launch;
                let call =
                    Call { kernel: &kernel, grid: grid.into(), block: block.into(), shared_bytes: shared, args: &args };
                module.launch(&call, memory, &Options { seed, limit: 1 << 32 }).map(drop)
            }
            Self::Upload { to, from: Source::Held(bytes) } => memory.write(to, &bytes),
            Self::Upload { to, from: Source::Pinned(Host(at), bytes) } => {
                // SAFETY: a range of live pinned memory, checked when the work was queued and kept until it is done.
                memory.write(to, unsafe { std::slice::from_raw_parts(at as *const u8, bytes) })
            }
            Self::Download { to: Host(at), from, bytes } => {
                // SAFETY: as above; whoever asked may not touch it before the copy is done.
                memory.read(from, unsafe { std::slice::from_raw_parts_mut(at as *mut u8, bytes) })
            }
            Self::Copy { to, from, bytes } => memory.copy(to, from, bytes),
            Self::Fill { at, value, bytes } => memory.fill(at, value, bytes),
            Self::Multiply(product) => product.run(memory),
            Self::Exchange(exchange) => exchange.end(memory),
            Self::Free { at } => memory.free(at),
            Self::Peer { to, held, .. } => memory.write(to, &held),
            Self::Record { .. } | Self::Wait { .. } | Self::Never => Ok(()),
        }
    }
}
