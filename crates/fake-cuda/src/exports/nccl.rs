//! NCCL's exports.
#![expect(unreachable_pub, reason = "exported by name, reached by no path")]

use super::driver::{current, give, on};
use crate::device::{device, tell};
use crate::nccl::{self, Communicator, Exchange, Leg, Op, code};
use crate::settings::Broken;
use crate::work::Work;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ffi::{c_char, c_int, c_void};
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

type Handle = *mut c_void;

/// As NCCL has it.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct UniqueId([u8; 128]);

/// As NCCL 2.14 has it.
#[repr(C)]
pub struct Config {
    size: usize,
    magic: u32,
    version: u32,
    blocking: c_int,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetVersion(version: *mut c_int) -> c_int {
    let Some(device) = device(0) else { return code::SYSTEM_ERROR };
    // SAFETY: the caller's pointer.
    unsafe { give(version, device.settings.nccl) }.err().unwrap_or(0)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetErrorString(error: c_int) -> *const c_char {
    let name = match error {
        0 => c"no error",
        code::UNHANDLED_CUDA_ERROR => c"unhandled cuda error (run with NCCL_DEBUG=INFO for details)",
        code::SYSTEM_ERROR => c"unhandled system error (run with NCCL_DEBUG=INFO for details)",
        3 => c"internal error - please report this issue to the NCCL developers",
        code::INVALID_ARGUMENT => c"invalid argument (run with NCCL_DEBUG=WARN for details)",
        code::INVALID_USAGE => c"invalid usage (run with NCCL_DEBUG=WARN for details)",
        6 => c"remote process exited or there was a network error",
        code::IN_PROGRESS => c"NCCL operation in progress",
        _ => c"unknown result code",
    };
    name.as_ptr()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetUniqueId(to: *mut UniqueId) -> c_int {
    let mut id = [0; 128];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut id));
    if read.is_err() {
        return code::SYSTEM_ERROR;
    }
    // SAFETY: the caller's pointer.
    unsafe { give(to, UniqueId(id)) }.err().unwrap_or(0)
}

/// Whether a call goes wrong by the settings of this thread's device: a code at once, or what it does later.
fn counted(name: &'static str) -> Result<Option<nccl::Wrong>, c_int> {
    let mut wrong = None;
    match on(name, |device| {
        wrong = device.wrong(name);
        Ok(())
    }) {
        0 => Ok(wrong),
        code => Err(code),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommInitRankConfig(
    to: *mut Handle,
    ranks: c_int,
    id: UniqueId,
    rank: c_int,
    config: *mut Config,
) -> c_int {
    let wrong = match counted("ncclCommInitRankConfig") {
        Ok(wrong) => wrong,
        Err(code) => return code,
    };
    // SAFETY: the caller's structure, or none.
    let config = unsafe { config.as_ref() };
    let fits = config.is_some_and(|c| c.size >= size_of::<Config>() && c.magic == 0xcafe_beef && c.blocking == 0);
    let (Some(device), Ok(ranks), Ok(rank)) = (current(), usize::try_from(ranks), usize::try_from(rank)) else {
        return code::INVALID_ARGUMENT;
    };
    if !fits || rank >= ranks {
        tell("NCCL: a communicator that blocks, of an unknown structure or of a rank that isn't there");
        return code::INVALID_ARGUMENT;
    }
    let handle = nccl::keep(Communicator::begin(device, &id.0, (rank, ranks), wrong.is_some()));
    // SAFETY: the caller's pointer.
    unsafe { give(to, handle as usize as Handle) }.err().unwrap_or(code::IN_PROGRESS)
}

/// A communicator that is still good.
fn good(communicator: Handle) -> Result<Arc<Communicator>, c_int> {
    nccl::find(communicator as usize as u64).ok_or_else(|| {
        tell("NCCL: a call of a communicator that is gone");
        code::INVALID_ARGUMENT
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommGetAsyncError(communicator: Handle, error: *mut c_int) -> c_int {
    match good(communicator) {
        // SAFETY: the caller's pointer.
        Ok(communicator) => unsafe { give(error, communicator.state()) }.err().unwrap_or(0),
        Err(code) => code,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommFinalize(communicator: Handle) -> c_int {
    match good(communicator) {
        Ok(communicator) => {
            communicator.finalize();
            code::IN_PROGRESS
        }
        Err(code) => code,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommDestroy(communicator: Handle) -> c_int {
    let communicator = nccl::forget(communicator as usize as u64);
    if communicator.is_some_and(|communicator| communicator.is_done()) {
        return 0;
    }
    tell("NCCL: a communicator is destroyed before it is finalized");
    code::INVALID_USAGE
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommAbort(communicator: Handle) -> c_int {
    match nccl::forget(communicator as usize as u64) {
        Some(communicator) => {
            communicator.abort();
            0
        }
        None => code::INVALID_ARGUMENT,
    }
}

/// A call's own.
struct Asked {
    op: Op,
    from: u64,
    to: u64,
    count: usize,
    of: c_int,
    peer: c_int,
}

fn call(name: &'static str, asked: &Asked, communicator: Handle, stream: Handle) -> c_int {
    let made = good(communicator).and_then(|communicator| Ok((communicator, counted(name)?)));
    let (communicator, wrong) = match made {
        Ok(made) => made,
        Err(code) => return code,
    };
    let sums = matches!(asked.op, Op::AllReduce | Op::ReduceScatter);
    let of = nccl::Element::from_number(asked.of).filter(|of| !sums || *of != nccl::Element::U8);
    let (Some(of), Ok(peer)) = (of, usize::try_from(asked.peer)) else { return code::INVALID_ARGUMENT };
    if GROUP.with_borrow(|group| group.is_some()) {
        tell(&format!("NCCL: {name} in a group, which is for messages here"));
        return code::INVALID_USAGE;
    }
    if !ready(name, &communicator, peer) {
        return code::INVALID_USAGE;
    }
    let Asked { op, from, to, count, .. } = *asked;
    let wrong = wrong.or_else(|| if op == Op::AllReduce { over_peers(communicator.device) } else { None });
    let legs = Vec::new();
    let exchange = Exchange { communicator, op, of, count, peer, from, to, legs, wrong, begun: None };
    put(exchange, stream as usize as u64)
}

/// What comes of a sum that reaches a device by direct copies, as NCCL makes them unless it is told not to.
fn over_peers(number: usize) -> Option<nccl::Wrong> {
    if std::env::var_os("NCCL_P2P_DISABLE").is_some_and(|value| value == "1") {
        return None;
    }
    let device = device(number)?;
    let (.., how) = device.settings.peer.iter().find(|(_, to, _)| *to == number)?;
    match how {
        Broken::Corrupt => Some(nccl::Wrong::Corrupts),
        Broken::Hang => Some(nccl::Wrong::Hangs),
        Broken::None => None,
    }
}

/// Whether a communicator takes calls, and has such a rank.
fn ready(name: &str, communicator: &Communicator, peer: usize) -> bool {
    let ready = communicator.state() == 0 && peer < communicator.ranks;
    if !ready {
        tell(&format!("NCCL: {name} of a communicator that isn't ready, or to rank {peer}, which isn't there"));
    }
    ready
}

fn put(exchange: Exchange, stream: u64) -> c_int {
    let communicator = exchange.communicator.clone();
    let number = communicator.device;
    let put = move || match device(number) {
        Some(mut device) => device.push(stream, Work::Exchange(Box::new(exchange))).err().unwrap_or(0),
        None => code::SYSTEM_ERROR,
    };
    if !communicator.takes_first() {
        return put();
    }
    // The connections are made with the first call, behind the caller's back.
    communicator.set_state(code::IN_PROGRESS);
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(1));
        communicator.set_state(put());
    });
    code::IN_PROGRESS
}

/// A message that is asked for.
struct Message {
    communicator: Arc<Communicator>,
    stream: u64,
    leg: Leg,
    wrong: Option<nccl::Wrong>,
}

thread_local! {
    /// The messages of this thread's group, if it is in one.
    static GROUP: RefCell<Option<Vec<Message>>> = const { RefCell::new(None) };
}

fn message(
    name: &'static str,
    (comes, at): (bool, u64),
    (count, of): (usize, c_int),
    peer: c_int,
    (communicator, stream): (Handle, Handle),
) -> c_int {
    let made = good(communicator).and_then(|communicator| Ok((communicator, counted(name)?)));
    let (communicator, wrong) = match made {
        Ok(made) => made,
        Err(code) => return code,
    };
    let (Some(of), Ok(peer)) = (nccl::Element::from_number(of), usize::try_from(peer)) else {
        return code::INVALID_ARGUMENT;
    };
    if !ready(name, &communicator, peer) {
        return code::INVALID_USAGE;
    }
    let leg = Leg { comes, of, count, peer, at };
    let message = Message { communicator, stream: stream as usize as u64, leg, wrong };
    GROUP.with_borrow_mut(|group| match group {
        Some(messages) => {
            messages.push(message);
            0
        }
        None => together(&[message], None),
    })
}

/// Messages as one call: of one communicator, in one stream, and no two of them from one rank to another, since nobody needs that.
fn together(messages: &[Message], wrong: Option<nccl::Wrong>) -> c_int {
    let Some(Message { communicator, stream, .. }) = messages.first() else { return 0 };
    let (communicator, stream) = (communicator.clone(), *stream);
    let alike = |m: &Message| Arc::ptr_eq(&m.communicator, &communicator) && m.stream == stream;
    let legs: Vec<Leg> = messages.iter().map(|message| message.leg).collect();
    let ways: BTreeSet<(bool, usize)> = legs.iter().map(|leg| (leg.comes, leg.peer)).collect();
    // Whoever sends to itself waits for itself.
    let itself = ways.iter().any(|(_, peer)| *peer == communicator.rank);
    if !messages.iter().all(alike) || ways.len() < legs.len() || itself {
        tell("NCCL: messages of several communicators in a group, several of one rank to another, or one to itself");
        return code::INVALID_USAGE;
    }
    let wrong = wrong.or_else(|| messages.iter().find_map(|message| message.wrong));
    let (op, of, count, peer, from, to) = (Op::Messages, nccl::Element::U8, 0, 0, 0, 0);
    put(Exchange { communicator, op, of, count, peer, from, to, legs, wrong, begun: None }, stream)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGroupStart() -> c_int {
    GROUP.with_borrow_mut(|group| {
        if group.is_some() {
            tell("NCCL: a group in a group, which nobody needs");
            return code::INVALID_USAGE;
        }
        *group = Some(Vec::new());
        0
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGroupEnd() -> c_int {
    let Some(messages) = GROUP.take() else {
        tell("NCCL: the end of a group that wasn't begun");
        return code::INVALID_USAGE;
    };
    match counted("ncclGroupEnd") {
        Ok(wrong) => together(&messages, wrong),
        Err(code) => code,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclAllReduce(
    from: u64,
    to: u64,
    count: usize,
    of: c_int,
    sum: c_int,
    communicator: Handle,
    stream: Handle,
) -> c_int {
    if sum != 0 {
        return code::INVALID_ARGUMENT;
    }
    call("ncclAllReduce", &Asked { op: Op::AllReduce, from, to, count, of, peer: 0 }, communicator, stream)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclReduceScatter(
    from: u64,
    to: u64,
    count: usize,
    of: c_int,
    sum: c_int,
    communicator: Handle,
    stream: Handle,
) -> c_int {
    if sum != 0 {
        return code::INVALID_ARGUMENT;
    }
    call("ncclReduceScatter", &Asked { op: Op::ReduceScatter, from, to, count, of, peer: 0 }, communicator, stream)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclAllGather(
    from: u64,
    to: u64,
    count: usize,
    of: c_int,
    communicator: Handle,
    stream: Handle,
) -> c_int {
    call("ncclAllGather", &Asked { op: Op::AllGather, from, to, count, of, peer: 0 }, communicator, stream)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclBroadcast(
    from: u64,
    to: u64,
    count: usize,
    of: c_int,
    root: c_int,
    communicator: Handle,
    stream: Handle,
) -> c_int {
    call("ncclBroadcast", &Asked { op: Op::Broadcast, from, to, count, of, peer: root }, communicator, stream)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclSend(
    from: u64,
    count: usize,
    of: c_int,
    peer: c_int,
    communicator: Handle,
    stream: Handle,
) -> c_int {
    message("ncclSend", (false, from), (count, of), peer, (communicator, stream))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclRecv(
    to: u64,
    count: usize,
    of: c_int,
    peer: c_int,
    communicator: Handle,
    stream: Handle,
) -> c_int {
    message("ncclRecv", (true, to), (count, of), peer, (communicator, stream))
}
