//! NCCL's functions, and its numbers that we use (`nccl.h`): what several GPUs need beside the driver and cublasLt.

use super::{Library, NotLoaded, Search, Wanted};
use std::ffi::{c_int, c_void};

/// A communicator or a stream.
pub type Handle = *mut c_void;
/// An address on a device.
pub type Address = u64;

/// What the ranks of a communicator find each other by, `ncclUniqueId`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct UniqueId {
    /// Opaque.
    pub bytes: [u8; 128],
}

/// How a communicator is made: `ncclConfig_t` as NCCL 2.14 has it, which every later version takes.
#[derive(Debug)]
#[repr(C)]
pub struct Config {
    size: usize,
    magic: u32,
    version: u32,
    blocking: c_int,
    _fill: c_int,
}

impl Config {
    /// Calls return at once, and [`Nccl::async_error`] says when they are done.
    pub fn non_blocking() -> Self {
        Self { size: size_of::<Self>(), magic: 0xcafe_beef, version: OLDEST as u32, blocking: 0, _fill: 0 }
    }
}

crate::functions! {
    /// NCCL.
    pub struct Nccl, named by "ncclGetErrorString" {
        /// 10000 major + 100 minor + patch.
        get_version: "ncclGetVersion" (version: *mut c_int);
        /// A new identity, by one rank for all.
        get_unique_id: "ncclGetUniqueId" (id: *mut UniqueId);
        /// Begins to make a communicator on this thread's device.
        init: "ncclCommInitRankConfig" (to: *mut Handle, ranks: c_int, id: UniqueId, rank: c_int, config: *mut Config);
        /// [`code::IN_PROGRESS`] until the last call is done; an error that came later.
        async_error: "ncclCommGetAsyncError" (communicator: Handle, error: *mut c_int);
        /// Begins the orderly end: what is under way is done first.
        finalize: "ncclCommFinalize" (communicator: Handle);
        /// Gives all back.
        destroy: "ncclCommDestroy" (communicator: Handle);
        /// Ends what is under way, wherever it waits, and gives all back.
        abort: "ncclCommAbort" (communicator: Handle);
        /// The sum of all ranks' values, at each.
        #[expect(clippy::too_many_arguments, reason = "the library's own signature")]
        all_reduce: "ncclAllReduce" (
            from: Address, to: Address, count: usize, of: c_int, op: c_int, communicator: Handle, stream: Handle,
        );
        /// Of the sum of all ranks' values, `count` at each.
        #[expect(clippy::too_many_arguments, reason = "the library's own signature")]
        reduce_scatter: "ncclReduceScatter" (
            from: Address, to: Address, count: usize, of: c_int, op: c_int, communicator: Handle, stream: Handle,
        );
        /// All ranks' `count` values, at each.
        all_gather: "ncclAllGather" (
            from: Address, to: Address, count: usize, of: c_int, communicator: Handle, stream: Handle,
        );
        /// One rank's values, at each.
        #[expect(clippy::too_many_arguments, reason = "the library's own signature")]
        broadcast: "ncclBroadcast" (
            from: Address, to: Address, count: usize, of: c_int, root: c_int, communicator: Handle, stream: Handle,
        );
        /// To one rank.
        send: "ncclSend" (from: Address, count: usize, of: c_int, peer: c_int, communicator: Handle, stream: Handle);
        /// From one rank.
        receive: "ncclRecv" (to: Address, count: usize, of: c_int, peer: c_int, communicator: Handle, stream: Handle);
        /// This thread's calls from here on are one, which its end makes: its messages wait for each other in no order.
        group_start: "ncclGroupStart" ();
        /// The end of such a group.
        group_end: "ncclGroupEnd" ();
    }
}

/// Results.
pub mod code {
    /// The call goes on; ask [`async_error`](super::Nccl::async_error).
    pub const IN_PROGRESS: i32 = 7;
}

/// Types of elements, `ncclDataType_t`.
pub mod element {
    /// A byte.
    pub const U8: i32 = 1;
    /// IEEE half precision.
    pub const F16: i32 = 6;
    /// IEEE single precision.
    pub const F32: i32 = 7;
    /// bfloat16.
    pub const BF16: i32 = 9;
}

/// What is done with the values of several ranks, `ncclRedOp_t`.
pub mod reduction {
    /// They are added.
    pub const SUM: i32 = 0;
}

/// The first version whose calls need not block.
const OLDEST: i32 = 21_400;

/// Opens NCCL, of version 2.14 or newer. `driver` (1000 major + 10 minor) says which wheel to advise.
///
/// # Errors
/// With every place where it was looked for.
pub fn open(search: &Search, driver: i32) -> Result<Nccl, NotLoaded> {
    let cure = match driver >= 13_000 {
        true => "Several GPUs need NCCL: `pip install nvidia-nccl-cu13` brings it.",
        false => "Several GPUs need NCCL: `pip install nvidia-nccl-cu12` brings it.",
    };
    search.open(&Wanted { name: "NCCL", files: &["libnccl.so.2"], cure }, |library: Library| {
        // Before its other functions: an old one lacks some, and its version says more than their names.
        let version = version_of(&library)?;
        if version < OLDEST {
            return Err(format!("it is version {}; 2.14 or newer is needed", shown(version)));
        }
        Nccl::load(library)
    })
}

fn version_of(library: &Library) -> Result<i32, String> {
    type Ask = unsafe extern "C" fn(*mut c_int) -> c_int;
    let ask = library.symbol(c"ncclGetVersion")?;
    let mut version = 0;
    // SAFETY: the signature is that of the library's header.
    let ask = unsafe { std::mem::transmute::<*mut c_void, Ask>(ask) };
    // SAFETY: `version` outlives the call.
    match unsafe { ask(&raw mut version) } {
        0 => Ok(version),
        code => Err(format!("it doesn't tell its version ({code})")),
    }
}

/// A version as people write it; before 2.9 the minor number had one digit less.
fn shown(version: i32) -> String {
    let unit = if version < 10_000 { 1000 } else { 10_000 };
    format!("{}.{}.{}", version / unit, version % unit / 100, version % 100)
}

impl Nccl {
    /// Its version, such as 2.27.3.
    ///
    /// # Errors
    /// The library's.
    pub fn version(&self) -> Result<String, super::CallError> {
        let mut version = 0;
        // SAFETY: `version` outlives the call.
        unsafe { self.get_version(&raw mut version) }.map(|()| shown(version))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_read_as_people_write_them() {
        assert_eq!([2708, 21_400, 22_703].map(shown), ["2.7.8", "2.14.0", "2.27.3"]);
        // `sizeof(ncclConfig_t)` of 2.14, by its header.
        assert_eq!(size_of::<Config>(), 24);
    }
}
