//! NVML's exports.
#![expect(unreachable_pub, reason = "exported by name, reached by no path")]

use super::driver::{give, write_text};
use crate::device::{Device, MOST, device};
use crate::settings::Link;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

type Handle = *mut c_void;

const INVALID_ARGUMENT: c_int = 2;
const NOT_FOUND: c_int = 6;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlInit_v2() -> c_int {
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlErrorString(error: c_int) -> *const c_char {
    match error {
        0 => c"The operation was successful",
        INVALID_ARGUMENT => c"Invalid argument",
        NOT_FOUND => c"Not Found",
        _ => c"Unknown Error",
    }
    .as_ptr()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetDriverVersion(to: *mut c_char, len: c_uint) -> c_int {
    // SAFETY: the caller's pointer.
    unsafe { write_text(to, len as c_int, "550.54.15") }.map_or(INVALID_ARGUMENT, |()| 0)
}

/// Handles are a device's number and one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByPciBusId_v2(bus: *const c_char, to: *mut Handle) -> c_int {
    // SAFETY: a string.
    let bus = unsafe { CStr::from_ptr(bus) }.to_string_lossy().into_owned();
    let count = device(0).map_or(0, |d| d.settings.count.min(MOST));
    let is_it = |number: &usize| device(*number).is_some_and(|d| d.settings.bus(*number).eq_ignore_ascii_case(&bus));
    match (0..count).find(is_it) {
        // SAFETY: the caller's pointer.
        Some(number) => unsafe { give(to, (number + 1) as Handle) }.map_or(INVALID_ARGUMENT, |()| 0),
        None => NOT_FOUND,
    }
}

fn of<T>(handle: Handle, to: *mut T, value: impl FnOnce(&Device) -> Option<T>) -> c_int {
    let found = (handle as usize).checked_sub(1).and_then(device);
    let Some(value) = found.and_then(|device| value(&device)) else { return INVALID_ARGUMENT };
    // SAFETY: the caller's pointer.
    unsafe { give(to, value) }.map_or(INVALID_ARGUMENT, |()| 0)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetNvLinkState(device: Handle, link: c_uint, up: *mut c_int) -> c_int {
    of(device, up, |d| match d.settings.model.link {
        Link::Nvlink(links) if link < links => Some(1),
        _ => None,
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTotalEccErrors(
    device: Handle,
    _kind: c_int,
    _counter: c_int,
    count: *mut u64,
) -> c_int {
    of(device, count, |d| Some(d.settings.uncorrected))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCurrentClocksThrottleReasons(device: Handle, reasons: *mut u64) -> c_int {
    of(device, reasons, |_| Some(1))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetEnforcedPowerLimit(device: Handle, limit: *mut c_uint) -> c_int {
    of(device, limit, |_| Some(350_000))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetPowerManagementDefaultLimit(device: Handle, limit: *mut c_uint) -> c_int {
    of(device, limit, |_| Some(350_000))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigMode(device: Handle, now: *mut c_uint, next: *mut c_uint) -> c_int {
    // SAFETY: the caller's pointer.
    of(device, now, |_| unsafe { give(next, 0) }.ok().map(|()| 0))
}
