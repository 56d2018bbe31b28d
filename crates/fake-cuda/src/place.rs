//! What tests need of the shared object: a folder with the names that a loader looks for, and its settings.

use std::io;
use std::path::{Path, PathBuf};

/// Names that it goes by: one file, so that driver, cublasLt, NCCL and NVML share their state.
const NAMES: [&str; 5] =
    ["libcuda.so.1", "libcublasLt.so.12", "libcublasLt.so.13", "libnccl.so.2", "libnvidia-ml.so.1"];

/// Puts links with the libraries' names into `folder`, which becomes the one to search.
///
/// # Errors
/// If the shared object isn't beside the running program, or can't be linked to.
pub fn install(folder: &Path) -> io::Result<()> {
    let object = shared_object()?;
    std::fs::create_dir_all(folder)?;
    for name in NAMES {
        match std::os::unix::fs::symlink(&object, folder.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Cargo puts it beside the tests, or a folder above them.
fn shared_object() -> io::Result<PathBuf> {
    let program = std::env::current_exe()?;
    let beside = program.ancestors().skip(1).take(2);
    let name = "libferrotune_fake_cuda.so";
    let found = beside.map(|folder| folder.join(name)).find(|file| file.exists());
    found.ok_or_else(|| io::Error::other(format!("no {name} beside {}", program.display())))
}

/// The control function's type: number of a device and settings.
type Control = unsafe extern "C" fn(i32, *const std::ffi::c_char) -> i32;

/// Begins a device anew with these settings. `control` is the address of `ferrotune_fake_cuda` in the opened library.
///
/// # Safety
/// `control` is that address, and nothing uses the device meanwhile.
///
/// # Panics
/// If the settings aren't understood.
pub unsafe fn set(control: *mut std::ffi::c_void, device: i32, settings: &str) {
    let text = std::ffi::CString::new(settings).expect("settings without zeros");
    // SAFETY: the caller's promise; the library exports it with this signature.
    let code = unsafe { std::mem::transmute::<*mut std::ffi::c_void, Control>(control)(device, text.as_ptr()) };
    assert_eq!(code, 0, "settings `{settings}`");
}

/// The counting function's type: number of a device and name of a function.
type Count = unsafe extern "C" fn(i32, *const std::ffi::c_char) -> u64;

/// How often a function was called on a device since it was begun. `count` is the address of `ferrotune_fake_cuda_calls`.
///
/// # Safety
/// `count` is that address.
pub unsafe fn calls(count: *mut std::ffi::c_void, device: i32, name: &str) -> u64 {
    let name = std::ffi::CString::new(name).expect("a name without zeros");
    // SAFETY: the caller's promise; the library exports it with this signature.
    unsafe { std::mem::transmute::<*mut std::ffi::c_void, Count>(count)(device, name.as_ptr()) }
}
