//! The driver's exports.
#![expect(unreachable_pub, reason = "exported by name, reached by no path")]

use crate::device::{Device, Event, MOST, code, device, tell};
use crate::settings::{Broken, Link, Settings};
use crate::work::{Host, Source, Work};
use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::time::Duration;

pub(super) type Handle = *mut c_void;

thread_local! {
    static CURRENT: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Runs a call on this thread's device.
pub(super) fn on(name: &'static str, body: impl FnOnce(&mut Device) -> Result<(), i32>) -> i32 {
    let Some(mut device) = CURRENT.get().and_then(device) else { return code::INVALID_CONTEXT };
    match device.call(name).and_then(|()| body(&mut device)) {
        Ok(()) => 0,
        Err(code) => code,
    }
}

/// The same with a call that waits for the device: other threads may use it while it waits for other processes. `body` runs
/// again and again, until it isn't blocked.
fn waiting(name: &'static str, mut body: impl FnMut(&mut Device) -> Result<(), i32>) -> i32 {
    let mut result = on(name, &mut body);
    while result == code::BLOCKED {
        std::thread::sleep(PAUSE);
        let Some(mut device) = CURRENT.get().and_then(device) else { return code::INVALID_CONTEXT };
        result = device.broken.map_or(Ok(()), Err).and_then(|()| body(&mut device)).err().unwrap_or(0);
    }
    result
}

/// Between two looks at what other processes did.
const PAUSE: Duration = Duration::from_micros(200);

/// This thread's device.
pub(super) fn current() -> Option<usize> {
    CURRENT.get()
}

/// Runs a call that names its device.
fn of(number: c_int, body: impl FnOnce(&mut Device) -> Result<(), i32>) -> i32 {
    match device(number as usize) {
        Some(mut device) if (number as usize) < device.settings.count => body(&mut device).err().unwrap_or(0),
        _ => code::INVALID_DEVICE,
    }
}

/// Writes through a pointer that the caller gave for it.
///
/// # Safety
/// It points to a place for a `T`.
pub(super) unsafe fn give<T>(to: *mut T, value: T) -> Result<(), i32> {
    if to.is_null() {
        return Err(code::INVALID_VALUE);
    }
    // SAFETY: the caller's promise.
    unsafe { to.write(value) };
    Ok(())
}

pub(super) fn handle(value: u64) -> Handle {
    value as usize as Handle
}

pub(super) fn number(handle: Handle) -> u64 {
    handle as usize as u64
}

/// Begins device `number` anew with the settings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ferrotune_fake_cuda(number: c_int, settings: *const c_char) -> c_int {
    // SAFETY: a string, by the contract.
    let text = unsafe { CStr::from_ptr(settings) }.to_string_lossy();
    let Some(mut device) = device(number as usize) else { return code::INVALID_DEVICE };
    match Settings::parse(&text) {
        Ok(settings) => {
            *device = Device::new(Settings { count: settings.count.max(MOST), ..settings }, number as u64);
            0
        }
        Err(error) => {
            tell(&error);
            code::INVALID_VALUE
        }
    }
}

/// How often a function was called on a device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ferrotune_fake_cuda_calls(number: c_int, name: *const c_char) -> u64 {
    // SAFETY: a string, by the contract.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
    device(number as usize).map_or(0, |device| device.calls(&name))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuInit(flags: c_uint) -> c_int {
    if flags == 0 { 0 } else { code::INVALID_VALUE }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> c_int {
    // SAFETY: the caller's pointer.
    device(0).map_or(code::INVALID_DEVICE, |d| unsafe { give(version, d.settings.driver) }.err().unwrap_or(0))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> c_int {
    let Some(device) = device(0) else { return code::INVALID_DEVICE };
    // SAFETY: the caller's pointer.
    unsafe { give(count, device.settings.count as c_int) }.err().unwrap_or(0)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(to: *mut c_int, ordinal: c_int) -> c_int {
    // SAFETY: the caller's pointer.
    of(ordinal, |_| unsafe { give(to, ordinal) })
}

/// Writes a text of at most `len` bytes with its zero.
pub(super) unsafe fn write_text(to: *mut c_char, len: c_int, text: &str) -> Result<(), i32> {
    let (len, bytes) = (len as usize, text.as_bytes());
    if to.is_null() || bytes.len() >= len {
        return Err(code::INVALID_VALUE);
    }
    // SAFETY: `len` bytes by the caller's promise.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr().cast(), to, bytes.len());
        to.add(bytes.len()).write(0);
    }
    Ok(())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(to: *mut c_char, len: c_int, number: c_int) -> c_int {
    // SAFETY: the caller's pointer.
    of(number, |d| unsafe { write_text(to, len, d.settings.model.name) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetPCIBusId(to: *mut c_char, len: c_int, number: c_int) -> c_int {
    // SAFETY: the caller's pointer.
    of(number, |d| unsafe { write_text(to, len, &d.settings.bus(number as usize)) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetUuid(to: *mut [u8; 16], number: c_int) -> c_int {
    // SAFETY: the caller's pointer.
    of(number, |_| unsafe { give(to, [number as u8; 16]) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, number: c_int) -> c_int {
    // SAFETY: the caller's pointer.
    of(number, |d| unsafe { give(bytes, d.settings.memory as usize) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, number: c_int) -> c_int {
    of(number, |d| {
        let model = d.settings.model;
        let found = match attribute {
            13 => model.clock * 1000,
            16 => model.multiprocessors,
            20 => 0,
            32 => c_int::from(model.link != Link::Host),
            75 => model.capability[0],
            76 => model.capability[1],
            97 => model.shared,
            _ => return Err(code::INVALID_VALUE),
        };
        // SAFETY: the caller's pointer.
        unsafe { give(value, found) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceCanAccessPeer(can: *mut c_int, number: c_int, peer: c_int) -> c_int {
    // SAFETY: the caller's pointer.
    of(number, |d| unsafe { give(can, c_int::from(d.settings.reaches(number as usize, peer as usize))) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetP2PAttribute(
    value: *mut c_int,
    attribute: c_int,
    number: c_int,
    peer: c_int,
) -> c_int {
    of(number, |d| {
        let reaches = d.settings.reaches(number as usize, peer as usize);
        let found = match attribute {
            1 => 0,
            2 => c_int::from(reaches),
            3 => c_int::from(reaches && matches!(d.settings.model.link, Link::Nvlink(_))),
            _ => return Err(code::INVALID_VALUE),
        };
        // SAFETY: the caller's pointer.
        unsafe { give(value, found) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut Handle, number: c_int) -> c_int {
    // SAFETY: the caller's pointer.
    of(number, |_| unsafe { give(context, handle(number as u64 + 1)) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRelease_v2(number: c_int) -> c_int {
    of(number, |_| Ok(()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSetCurrent(context: Handle) -> c_int {
    CURRENT.set((number(context) as usize).checked_sub(1));
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSynchronize() -> c_int {
    waiting("cuCtxSynchronize", Device::drain_all)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxEnablePeerAccess(peer: Handle, flags: c_uint) -> c_int {
    let (own, Some(peer)) = (CURRENT.get().unwrap_or(MOST), (number(peer) as usize).checked_sub(1)) else {
        return code::INVALID_CONTEXT;
    };
    on("cuCtxEnablePeerAccess", |d| match d.settings.reaches(own, peer) {
        _ if flags != 0 => Err(code::INVALID_VALUE),
        false => Err(code::PEER_UNSUPPORTED),
        true if !d.peers.insert(peer) => Err(code::PEER_ALREADY_ENABLED),
        true => Ok(()),
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> c_int {
    on("cuMemGetInfo_v2", |d| {
        let all = d.settings.memory;
        let left = d.settings.free.unwrap_or(d.room().saturating_sub(d.used()));
        // SAFETY: the caller's pointers.
        unsafe { give(free, left as usize).and_then(|()| give(total, all as usize)) }
    })
}

fn allocate(d: &mut Device, address: *mut u64, bytes: usize) -> Result<(), i32> {
    if bytes == 0 {
        return Err(code::INVALID_VALUE);
    }
    if d.used() + bytes as u64 > d.room() {
        return Err(code::OUT_OF_MEMORY);
    }
    let at = d.memory.alloc(bytes);
    d.sizes.insert(at, bytes);
    // SAFETY: the caller's pointer.
    unsafe { give(address, at) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(address: *mut u64, bytes: usize) -> c_int {
    on("cuMemAlloc_v2", |d| allocate(d, address, bytes))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocAsync(address: *mut u64, bytes: usize, stream: Handle) -> c_int {
    on("cuMemAllocAsync", |d| match d.streams.contains_key(&number(stream)) {
        true => allocate(d, address, bytes),
        false => Err(code::INVALID_HANDLE),
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFree_v2(address: u64) -> c_int {
    waiting("cuMemFree_v2", |d| {
        d.drain_all()?;
        d.sizes.remove(&address).ok_or(code::INVALID_VALUE)?;
        d.memory.free(address).map_err(|_| code::INVALID_VALUE)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFreeAsync(address: u64, stream: Handle) -> c_int {
    on("cuMemFreeAsync", |d| {
        d.sizes.remove(&address).ok_or(code::INVALID_VALUE)?;
        d.push(number(stream), Work::Free { at: address })
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostAlloc(to: *mut *mut c_void, bytes: usize, _flags: c_uint) -> c_int {
    on("cuMemHostAlloc", |d| {
        let mut held = vec![u64::MAX; bytes.div_ceil(8)].into_boxed_slice();
        let at = held.as_mut_ptr();
        d.pinned.insert(at as usize, held);
        // SAFETY: the caller's pointer.
        unsafe { give(to, at.cast()) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFreeHost(at: *mut c_void) -> c_int {
    on("cuMemFreeHost", |d| {
        let (base, bytes) = (at as usize, d.pinned.get(&(at as usize)).map_or(0, |held| held.len() * 8));
        let mut waiting = d.streams.values().flatten().filter_map(Work::touches);
        if waiting.any(|(at, len)| at < base + bytes && base < at + len) {
            tell("pinned memory was freed while a copy is under way");
            d.broken = Some(code::LAUNCH_FAILED);
            return Err(code::LAUNCH_FAILED);
        }
        d.pinned.remove(&base).map(drop).ok_or(code::INVALID_VALUE)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, stream: Handle) -> c_int {
    on("cuMemcpyHtoDAsync_v2", |d| {
        let from = match d.is_pinned(from as usize, bytes) {
            true => Source::Pinned(Host(from as usize), bytes),
            // SAFETY: readable memory of the caller's.
            false => Source::Held(unsafe { std::slice::from_raw_parts(from.cast::<u8>(), bytes) }.to_vec()),
        };
        d.push(number(stream), Work::Upload { to, from })
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, stream: Handle) -> c_int {
    let mut asked = false;
    waiting("cuMemcpyDtoHAsync_v2", |d| {
        let pinned = d.is_pinned(to as usize, bytes);
        if !std::mem::replace(&mut asked, true) {
            d.push(number(stream), Work::Download { to: Host(to as usize), from, bytes })?;
        }
        // Pageable memory is written before the call returns.
        if pinned { Ok(()) } else { d.drain(number(stream)) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: Handle) -> c_int {
    on("cuMemcpyDtoDAsync_v2", |d| d.push(number(stream), Work::Copy { to, from, bytes }))
}

/// Between devices at once: both sides' work before it is done first.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyPeerAsync(
    to: u64,
    to_context: Handle,
    from: u64,
    from_context: Handle,
    bytes: usize,
    stream: Handle,
) -> c_int {
    let (there, here) = (number(to_context) as usize, number(from_context) as usize);
    let mut held = vec![0; bytes];
    let Some(mut source) = here.checked_sub(1).and_then(device) else { return code::INVALID_CONTEXT };
    if let Err(code) = source.drain_all() {
        return code;
    }
    if source.memory.read(from, &mut held).is_err() {
        return code::INVALID_VALUE;
    }
    drop(source);
    let Some(mut target) = there.checked_sub(1).and_then(device) else { return code::INVALID_CONTEXT };
    let stream = if target.streams.contains_key(&number(stream)) { number(stream) } else { 0 };
    let direct = target.peers.contains(&(here - 1));
    let work = match target.settings.broken(here - 1, there - 1).filter(|_| direct) {
        Some(Broken::Hang) => Work::Never,
        Some(Broken::Corrupt) => {
            crate::nccl::corrupt(&mut held);
            Work::Peer { to, held, direct }
        }
        _ => Work::Peer { to, held, direct },
    };
    target.push(stream, work).err().unwrap_or(0)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD8Async(at: u64, value: u8, bytes: usize, stream: Handle) -> c_int {
    on("cuMemsetD8Async", |d| d.push(number(stream), Work::Fill { at, value, bytes }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreateWithPriority(to: *mut Handle, _flags: c_uint, _priority: c_int) -> c_int {
    on("cuStreamCreateWithPriority", |d| {
        let stream = d.handle();
        d.streams.insert(stream, std::collections::VecDeque::new());
        // SAFETY: the caller's pointer.
        unsafe { give(to, handle(stream)) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamDestroy_v2(stream: Handle) -> c_int {
    waiting("cuStreamDestroy_v2", |d| {
        d.drain(number(stream))?;
        d.streams.remove(&number(stream)).map(drop).ok_or(code::INVALID_HANDLE)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamSynchronize(stream: Handle) -> c_int {
    waiting("cuStreamSynchronize", |d| d.drain(number(stream)))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamQuery(stream: Handle) -> c_int {
    on("cuStreamQuery", |d| {
        let waiting = !d.streams.get(&number(stream)).ok_or(code::INVALID_HANDLE)?.is_empty();
        unblocked(d.drain(number(stream)))?;
        if waiting { Err(code::NOT_READY) } else { Ok(()) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamWaitEvent(stream: Handle, event: Handle, _flags: c_uint) -> c_int {
    on("cuStreamWaitEvent", |d| {
        let mark = d.events.get(&number(event)).ok_or(code::INVALID_HANDLE)?.recorded;
        d.push(number(stream), Work::Wait { event: number(event), mark })
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(to: *mut Handle, _flags: c_uint) -> c_int {
    on("cuEventCreate", |d| {
        let event = d.handle();
        d.events.insert(event, Event::default());
        // SAFETY: the caller's pointer.
        unsafe { give(to, handle(event)) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventDestroy_v2(event: Handle) -> c_int {
    on("cuEventDestroy_v2", |d| d.events.remove(&number(event)).map(drop).ok_or(code::INVALID_HANDLE))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventRecord(event: Handle, stream: Handle) -> c_int {
    on("cuEventRecord", |d| {
        let held = d.events.get_mut(&number(event)).ok_or(code::INVALID_HANDLE)?;
        held.recorded += 1;
        let mark = held.recorded;
        held.pending.insert(mark);
        d.push(number(stream), Work::Record { event: number(event), mark })
    })
}

/// A question doesn't wait.
fn unblocked(result: Result<(), i32>) -> Result<(), i32> {
    if result == Err(code::BLOCKED) { Err(code::NOT_READY) } else { result }
}

fn passed(d: &Device, event: u64) -> bool {
    d.events.get(&event).is_none_or(|event| !event.pending.contains(&event.recorded))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventSynchronize(event: Handle) -> c_int {
    waiting("cuEventSynchronize", |d| match d.events.contains_key(&number(event)) {
        true => d.run_until(|d| passed(d, number(event))),
        false => Err(code::INVALID_HANDLE),
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventQuery(event: Handle) -> c_int {
    on("cuEventQuery", |d| {
        let before = passed(d, number(event));
        unblocked(d.run_until(|d| passed(d, number(event))))?;
        if before { Ok(()) } else { Err(code::NOT_READY) }
    })
}

/// What the work between would have taken: see [`Work::milliseconds`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime(milliseconds: *mut f32, begin: Handle, end: Handle) -> c_int {
    on("cuEventElapsedTime", |d| {
        let at = |event| d.events.get(&number(event)).map(|event| event.at).ok_or(code::INVALID_HANDLE);
        // SAFETY: the caller's pointer.
        unsafe { give(milliseconds, (at(end)? - at(begin)?).max(0.0) as f32) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(error: c_int, to: *mut *const c_char) -> c_int {
    let name = match error {
        0 => c"CUDA_SUCCESS",
        code::INVALID_VALUE => c"CUDA_ERROR_INVALID_VALUE",
        code::OUT_OF_MEMORY => c"CUDA_ERROR_OUT_OF_MEMORY",
        100 => c"CUDA_ERROR_NO_DEVICE",
        code::INVALID_DEVICE => c"CUDA_ERROR_INVALID_DEVICE",
        code::INVALID_IMAGE => c"CUDA_ERROR_INVALID_IMAGE",
        code::INVALID_CONTEXT => c"CUDA_ERROR_INVALID_CONTEXT",
        code::NO_BINARY_FOR_GPU => c"CUDA_ERROR_NO_BINARY_FOR_GPU",
        code::INVALID_HANDLE => c"CUDA_ERROR_INVALID_HANDLE",
        code::NOT_FOUND => c"CUDA_ERROR_NOT_FOUND",
        code::NOT_READY => c"CUDA_ERROR_NOT_READY",
        code::PEER_UNSUPPORTED => c"CUDA_ERROR_PEER_ACCESS_UNSUPPORTED",
        code::PEER_ALREADY_ENABLED => c"CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED",
        700 => c"CUDA_ERROR_ILLEGAL_ADDRESS",
        code::LAUNCH_FAILED => c"CUDA_ERROR_LAUNCH_FAILED",
        _ => return code::INVALID_VALUE,
    };
    // SAFETY: the caller's pointer.
    unsafe { give(to, name.as_ptr()) }.err().unwrap_or(0)
}
