//! The driver's functions, and its numbers that we use (CUDA driver API, `cuda.h`; all since CUDA 11.2).

use super::{Library, NotLoaded, Search, Wanted};
use std::ffi::{c_char, c_int, c_uint, c_void};

/// A handle of the driver: context, stream, event, module, function.
pub type Handle = *mut c_void;
/// An address on a device.
pub type Address = u64;

crate::functions! {
    /// The driver.
    pub struct Driver, named into "cuGetErrorName" {
        /// Must be the first call; flags 0.
        init: "cuInit" (flags: c_uint);
        /// 1000 major + 10 minor of the newest CUDA it can run.
        driver_version: "cuDriverGetVersion" (version: *mut c_int);
        /// Number of devices, after `CUDA_VISIBLE_DEVICES`.
        device_count: "cuDeviceGetCount" (count: *mut c_int);
        /// A device by its number.
        device: "cuDeviceGet" (device: *mut c_int, ordinal: c_int);
        /// Its name.
        device_name: "cuDeviceGetName" (name: *mut c_char, len: c_int, device: c_int);
        /// Its memory in bytes.
        device_memory: "cuDeviceTotalMem_v2" (bytes: *mut usize, device: c_int);
        /// One of its numbers, see [`attribute`].
        device_attribute: "cuDeviceGetAttribute" (value: *mut c_int, attribute: c_int, device: c_int);
        /// Its 16 bytes of identity.
        device_uuid: "cuDeviceGetUuid" (uuid: *mut [u8; 16], device: c_int);
        /// Its place on the bus, as text.
        device_bus: "cuDeviceGetPCIBusId" (text: *mut c_char, len: c_int, device: c_int);
        /// Whether one may read and write the other's memory.
        can_access_peer: "cuDeviceCanAccessPeer" (can: *mut c_int, device: c_int, peer: c_int);
        /// How one reaches the other's memory, see [`peer`].
        peer_attribute: "cuDeviceGetP2PAttribute" (value: *mut c_int, attribute: c_int, device: c_int, peer: c_int);
        /// The context that all libraries of a process share.
        primary_context: "cuDevicePrimaryCtxRetain" (context: *mut Handle, device: c_int);
        /// Gives it back.
        release_context: "cuDevicePrimaryCtxRelease_v2" (device: c_int);
        /// Makes a context this thread's.
        use_context: "cuCtxSetCurrent" (context: Handle);
        /// Waits for all work of this thread's context.
        synchronize: "cuCtxSynchronize" ();
        /// Lets this thread's context reach another's memory.
        enable_peer: "cuCtxEnablePeerAccess" (peer: Handle, flags: c_uint);
        /// Free and total bytes.
        memory_info: "cuMemGetInfo_v2" (free: *mut usize, total: *mut usize);
        /// Memory of the device.
        allocate: "cuMemAlloc_v2" (address: *mut Address, bytes: usize);
        /// Gives it back, after all work.
        free: "cuMemFree_v2" (address: Address);
        /// Memory that is there from this point of a stream on.
        allocate_on: "cuMemAllocAsync" (address: *mut Address, bytes: usize, stream: Handle);
        /// Gives it back at this point of a stream.
        free_on: "cuMemFreeAsync" (address: Address, stream: Handle);
        /// Host memory that stays in place, so that copies don't pass through another buffer.
        allocate_pinned: "cuMemHostAlloc" (at: *mut *mut c_void, bytes: usize, flags: c_uint);
        /// Gives it back.
        free_pinned: "cuMemFreeHost" (at: *mut c_void);
        /// Host to device.
        upload: "cuMemcpyHtoDAsync_v2" (to: Address, from: *const c_void, bytes: usize, stream: Handle);
        /// Device to host.
        download: "cuMemcpyDtoHAsync_v2" (to: *mut c_void, from: Address, bytes: usize, stream: Handle);
        /// Inside a device.
        copy: "cuMemcpyDtoDAsync_v2" (to: Address, from: Address, bytes: usize, stream: Handle);
        /// From one device to another.
        copy_peer: "cuMemcpyPeerAsync" (to: Address, to_context: Handle, from: Address, from_context: Handle, bytes: usize, stream: Handle);
        /// Sets bytes.
        fill: "cuMemsetD8Async" (at: Address, value: u8, count: usize, stream: Handle);
        /// A queue of work; smaller priorities come first.
        create_stream: "cuStreamCreateWithPriority" (stream: *mut Handle, flags: c_uint, priority: c_int);
        /// Ends it.
        destroy_stream: "cuStreamDestroy_v2" (stream: Handle);
        /// Waits for all its work.
        synchronize_stream: "cuStreamSynchronize" (stream: Handle);
        /// [`code::NOT_READY`] while it has work.
        query_stream: "cuStreamQuery" (stream: Handle);
        /// What comes after waits for the last record of an event.
        wait_event: "cuStreamWaitEvent" (stream: Handle, event: Handle, flags: c_uint);
        /// A mark in a stream.
        create_event: "cuEventCreate" (event: *mut Handle, flags: c_uint);
        /// Ends it.
        destroy_event: "cuEventDestroy_v2" (event: Handle);
        /// Sets the mark behind all work of a stream so far.
        record_event: "cuEventRecord" (event: Handle, stream: Handle);
        /// Waits until the mark is passed.
        synchronize_event: "cuEventSynchronize" (event: Handle);
        /// [`code::NOT_READY`] until the mark is passed.
        query_event: "cuEventQuery" (event: Handle);
        /// Milliseconds between two marks.
        elapsed: "cuEventElapsedTime" (milliseconds: *mut f32, begin: Handle, end: Handle);
        /// PTX or machine code.
        load_module: "cuModuleLoadData" (module: *mut Handle, image: *const c_void);
        /// Ends it.
        unload_module: "cuModuleUnload" (module: Handle);
        /// A kernel by its name.
        function: "cuModuleGetFunction" (function: *mut Handle, module: Handle, name: *const c_char);
        /// Sets one of a kernel's numbers, see [`function_attribute`].
        set_function_attribute: "cuFuncSetAttribute" (function: Handle, attribute: c_int, value: c_int);
        /// Runs a kernel: grid, block, bytes of shared memory, stream, a pointer to each parameter.
        #[expect(clippy::too_many_arguments, reason = "the library's own signature")]
        launch: "cuLaunchKernel" (
            function: Handle, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint, block_y: c_uint,
            block_z: c_uint, shared_bytes: c_uint, stream: Handle, params: *mut *mut c_void, extra: *mut *mut c_void,
        );
    }
}

/// Results.
pub mod code {
    /// No memory.
    pub const OUT_OF_MEMORY: i32 = 2;
    /// No device.
    pub const NO_DEVICE: i32 = 100;
    /// A context that reaches the other's memory already.
    pub const PEER_ALREADY_ENABLED: i32 = 704;
    /// Machine code for other devices.
    pub const NO_BINARY_FOR_GPU: i32 = 209;
    /// A module without the kernel that was asked for.
    pub const NOT_FOUND: i32 = 500;
    /// PTX of a newer version than the driver knows.
    pub const UNSUPPORTED_PTX_VERSION: i32 = 222;
    /// Work isn't done yet.
    pub const NOT_READY: i32 = 600;
}

/// Numbers of a device.
pub mod attribute {
    /// Most shared memory of a block that asks for it, in bytes.
    pub const SHARED_MEMORY_OPTIN: i32 = 97;
    /// The highest clock, kHz.
    pub const CLOCK: i32 = 13;
    /// Streaming multiprocessors.
    pub const MULTIPROCESSORS: i32 = 16;
    /// Who may use it: 0 is everybody, 2 nobody, 3 one process.
    pub const COMPUTE_MODE: i32 = 20;
    /// Whether its memory corrects errors.
    pub const ECC: i32 = 32;
    /// Compute capability before the dot.
    pub const CAPABILITY_MAJOR: i32 = 75;
    /// And behind it.
    pub const CAPABILITY_MINOR: i32 = 76;
}

/// Numbers of two devices, `CUdevice_P2PAttribute`.
pub mod peer {
    /// Whether one may read and write the other's memory.
    pub const ACCESS: i32 = 2;
    /// Whether atomic operations work on the other's memory, as they do over NVLink.
    pub const ATOMICS: i32 = 3;
}

/// Numbers of a kernel.
pub mod function_attribute {
    /// Most bytes of shared memory that a launch may add.
    pub const MAX_DYNAMIC_SHARED: i32 = 8;
}

/// Flags.
pub mod flag {
    /// A stream that doesn't wait for the default one.
    pub const STREAM_NON_BLOCKING: u32 = 1;
    /// An event with a time.
    pub const EVENT_TIMED: u32 = 0;
    /// An event without a time, which is cheaper.
    pub const EVENT_NO_TIMING: u32 = 2;
    /// Pinned memory that every context may use.
    pub const PINNED_PORTABLE: u32 = 1;
}

/// Opens the driver's library; [`Driver::init`] must be the first call.
///
/// # Errors
/// With every place where it was looked for.
pub fn open(search: &Search) -> Result<Driver, NotLoaded> {
    let cure = "A GPU needs NVIDIA's driver, version 525 or newer; `nvidia-smi` shows whether it runs.";
    search.open(&Wanted { name: "the NVIDIA driver", files: &["libcuda.so.1"], cure }, |library: Library| {
        Driver::load(library)
    })
}

impl Driver {
    /// The first call of all, which later ones need.
    ///
    /// # Errors
    /// The driver's.
    pub fn begin(&self) -> Result<(), super::CallError> {
        // SAFETY: the only flags that there are; a second time it does nothing.
        unsafe { self.init(0) }
    }

    /// Version of the newest CUDA that it can run: 1000 major + 10 minor.
    ///
    /// # Errors
    /// The driver's.
    pub fn version(&self) -> Result<i32, super::CallError> {
        let mut version = 0;
        // SAFETY: `version` outlives the call.
        unsafe { self.driver_version(&raw mut version) }?;
        Ok(version)
    }

    /// Number of devices that this process may see.
    ///
    /// # Errors
    /// The driver's.
    pub fn count(&self) -> Result<usize, super::CallError> {
        let mut count = 0;
        // SAFETY: `count` outlives the call.
        unsafe { self.device_count(&raw mut count) }?;
        Ok(usize::try_from(count).unwrap_or(0))
    }
}
