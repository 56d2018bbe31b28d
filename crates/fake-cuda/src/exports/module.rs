//! The driver's exports of code: modules of PTX, their functions, and launches.
#![expect(unreachable_pub, reason = "exported by name, reached by no path")]

use super::driver::{Handle, give, handle, number, on};
use crate::device::{Function, code, tell};
use crate::work::{Launch, Work};
use ferrotune_ptx::{Arg, Module};
use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

/// Modules by their text: devices of one process share them.
static PARSED: LazyLock<Mutex<HashMap<String, Arc<Module>>>> = LazyLock::new(Mutex::default);

fn parsed(text: &str) -> Result<Arc<Module>, i32> {
    let mut known = PARSED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(module) = known.get(text) {
        return Ok(module.clone());
    }
    let module = Module::parse(text).map_err(|fault| {
        tell(&fault.to_string());
        code::INVALID_IMAGE
    })?;
    let module = Arc::new(module);
    known.insert(text.to_owned(), module.clone());
    Ok(module)
}

/// Takes PTX only: machine code is for other devices, as far as this one is concerned.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadData(to: *mut Handle, image: *const c_void) -> c_int {
    on("cuModuleLoadData", |d| {
        // SAFETY: an image has at least a zero after its text, or the four bytes of an ELF file.
        let text = unsafe { CStr::from_ptr(image.cast()) };
        if text.to_bytes().starts_with(b"\x7fELF") {
            return Err(code::NO_BINARY_FOR_GPU);
        }
        let module = parsed(text.to_str().map_err(|_| code::INVALID_IMAGE)?)?;
        let id = d.handle();
        d.modules.insert(id, module);
        // SAFETY: the caller's pointer.
        unsafe { give(to, handle(id)) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleUnload(module: Handle) -> c_int {
    on("cuModuleUnload", |d| d.modules.remove(&number(module)).map(drop).ok_or(code::INVALID_HANDLE))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(to: *mut Handle, module: Handle, name: *const c_char) -> c_int {
    on("cuModuleGetFunction", |d| {
        let module = d.modules.get(&number(module)).ok_or(code::INVALID_HANDLE)?.clone();
        // SAFETY: a string.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
        module.kernel(&name).ok_or(code::NOT_FOUND)?;
        let id = d.handle();
        d.functions.insert(id, Function { module, name, most_shared: 48 << 10 });
        // SAFETY: the caller's pointer.
        unsafe { give(to, handle(id)) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncSetAttribute(function: Handle, attribute: c_int, value: c_int) -> c_int {
    on("cuFuncSetAttribute", |d| {
        let most = d.settings.model.shared;
        let function = d.functions.get_mut(&number(function)).ok_or(code::INVALID_HANDLE)?;
        if attribute != 8 || value > most {
            return Err(code::INVALID_VALUE);
        }
        function.most_shared = value as usize;
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernel(
    function: Handle,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared_bytes: c_uint,
    stream: Handle,
    params: *mut *mut c_void,
    _extra: *mut *mut c_void,
) -> c_int {
    on("cuLaunchKernel", |d| {
        let held = d.functions.get(&number(function)).ok_or(code::INVALID_HANDLE)?.clone();
        let kernel = held.module.kernel(&held.name).ok_or(code::NOT_FOUND)?;
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        let fits = grid.iter().chain(&block).all(|n| *n > 0) && grid[1].max(grid[2]) <= 0xffff;
        if !fits || block.iter().product::<u32>() > 1024 || shared_bytes as usize > held.most_shared {
            tell(&format!("{}: a launch of {grid:?} by {block:?} with {shared_bytes} bytes", held.name));
            return Err(code::INVALID_VALUE);
        }
        let args = kernel.params().iter().enumerate().map(|(i, param)| {
            // SAFETY: a pointer a parameter, each to a value of its size.
            let bytes = unsafe { std::slice::from_raw_parts((*params.add(i)).cast::<u8>(), param.size) };
            Arg::Bytes(bytes.to_vec())
        });
        let args = args.collect();
        let (module, kernel, shared) = (held.module.clone(), held.name, shared_bytes as usize);
        d.push(number(stream), Work::Launch(Launch { module, kernel, grid, block, shared, args }))
    })
}
