//! NVRTC, opened from wheels that the user's own pip downloads: a table of eight functions, no link to anything of CUDA.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::{root, run};

/// A version of NVRTC, as a wheel for Linux on x86-64.
pub(super) struct Wheel {
    /// What pip is asked for.
    requirement: &'static str,
    platform: &'static str,
    file: &'static str,
    /// Another file would compile to other PTX.
    digest: &'static str,
    /// Where in the wheel the libraries are.
    within: &'static str,
    /// The builtins are found by NVRTC only where the loader has them already, so they come first.
    libraries: [&'static str; 2],
}

/// Compiles everything that ships.
pub(super) const SHIPPING: Wheel = Wheel {
    requirement: "nvidia-cuda-nvrtc-cu12==12.1.105",
    platform: "manylinux1_x86_64",
    file: "nvidia_cuda_nvrtc_cu12-12.1.105-py3-none-manylinux1_x86_64.whl",
    digest: "339b385f50c309763ca65456ec75e17bbefcbbf2893f462cb8b90584cd27a1c2",
    within: "nvidia/cuda_nvrtc/lib",
    libraries: ["libnvrtc-builtins.so.12.1", "libnvrtc.so.12"],
};
/// Knows Blackwell, which the older one doesn't: says what becomes of the kernels there.
pub(super) const NEWER: Wheel = Wheel {
    requirement: "nvidia-cuda-nvrtc==13.0.88",
    platform: "manylinux2010_x86_64",
    file: "nvidia_cuda_nvrtc-13.0.88-py3-none-manylinux2010_x86_64.manylinux_2_12_x86_64.whl",
    digest: "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575",
    within: "nvidia/cu13/lib",
    libraries: ["libnvrtc-builtins.so.13.0", "libnvrtc.so.13"],
};

/// Each version keeps its symbols to itself, since both may be open at once.
const NOW: c_int = 2;

unsafe extern "C" {
    fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    fn dlerror() -> *const c_char;
}

type Program = *mut c_void;
type Status = c_int;

/// The functions, by the signatures of `nvrtc.h`; the library stays open until the task ends.
pub(super) struct Nvrtc {
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> Status,
    destroy: unsafe extern "C" fn(*mut Program) -> Status,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Status,
    log: Output,
    ptx: Output,
    cubin: Output,
}

/// A pair of functions: how long, and the bytes.
#[derive(Clone, Copy)]
struct Output {
    size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    bytes: unsafe extern "C" fn(Program, *mut c_char) -> Status,
}

/// What a source is compiled to.
#[derive(Clone, Copy)]
pub(super) enum Target {
    /// PTX for a virtual architecture.
    Ptx(&'static str),
    /// Machine code for a real one.
    Cubin(&'static str),
}

impl Wheel {
    /// Folder of the libraries, downloaded if they aren't there.
    fn folder(&self) -> Result<PathBuf> {
        let folder = root().join("target/nvrtc");
        if self.present() {
            return Ok(folder);
        }
        std::fs::create_dir_all(&folder)?;
        let mut pip = Command::new("pip");
        pip.args(["download", "--quiet", "--no-deps", "--only-binary=:all:", "--platform", self.platform, "--dest"]);
        run(pip.arg(&folder).arg(self.requirement)).context("NVRTC comes by `pip download`")?;
        let Self { file, digest: expected, .. } = self;
        let wheel = std::fs::read(folder.join(file)).with_context(|| format!("pip brought no {file}"))?;
        let digest = Sha256::digest(&wheel).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        ensure!(digest == *expected, "{file} has the digest {digest}, expected {expected}");
        let mut archive = zip::ZipArchive::new(std::io::Cursor::new(wheel))?;
        for name in self.libraries {
            let mut member = archive.by_name(&format!("{}/{name}", self.within))?;
            std::io::copy(&mut member, &mut std::fs::File::create(folder.join(name))?)?;
        }
        Ok(folder)
    }

    /// Whether the libraries are there without a download.
    pub(super) fn present(&self) -> bool {
        self.libraries.iter().all(|name| root().join("target/nvrtc").join(name).is_file())
    }
}

fn open(path: &Path) -> Result<*mut c_void> {
    let name = CString::new(path.as_os_str().as_encoded_bytes())?;
    // SAFETY: the name is a string with an end; the library's own initialisation is trusted, its digest being known.
    let library = unsafe { dlopen(name.as_ptr(), NOW) };
    if library.is_null() {
        // SAFETY: after a failure dlerror gives a string.
        let reason = unsafe { CStr::from_ptr(dlerror()) };
        bail!("{}: {}", path.display(), reason.to_string_lossy());
    }
    Ok(library)
}

/// A function of the library.
///
/// # Safety
/// `F` is the function's type as a pointer.
unsafe fn symbol<F: Copy>(library: *mut c_void, name: &CStr) -> Result<F> {
    assert_eq!(size_of::<F>(), size_of::<*mut c_void>(), "a pointer to a function");
    // SAFETY: the library is open and the name has an end.
    let found = unsafe { dlsym(library, name.as_ptr()) };
    ensure!(!found.is_null(), "NVRTC has no {}", name.to_string_lossy());
    // SAFETY: sizes are equal, and the caller vouches for the type.
    Ok(unsafe { std::mem::transmute_copy(&found) })
}

impl Nvrtc {
    pub(super) fn open(wheel: &Wheel) -> Result<Self> {
        let (folder, [builtins, itself]) = (wheel.folder()?, wheel.libraries);
        open(&folder.join(builtins))?;
        let library = open(&folder.join(itself))?;
        // SAFETY: the types are those of `nvrtc.h`, the same in 12.1 and 13.0.
        unsafe {
            let output = |size, bytes| {
                Ok::<_, anyhow::Error>(Output { size: symbol(library, size)?, bytes: symbol(library, bytes)? })
            };
            Ok(Self {
                create: symbol(library, c"nvrtcCreateProgram")?,
                destroy: symbol(library, c"nvrtcDestroyProgram")?,
                compile: symbol(library, c"nvrtcCompileProgram")?,
                log: output(c"nvrtcGetProgramLogSize", c"nvrtcGetProgramLog")?,
                ptx: output(c"nvrtcGetPTXSize", c"nvrtcGetPTX")?,
                cubin: output(c"nvrtcGetCUBINSize", c"nvrtcGetCUBIN")?,
            })
        }
    }

    /// Compiles `source`; gives the result and what the compiler said.
    pub(super) fn compile(&self, name: &str, source: &str, target: Target) -> Result<(Vec<u8>, String)> {
        let (source, file) = (CString::new(source)?, CString::new(name)?);
        let mut program = std::ptr::null_mut();
        // SAFETY: strings have ends, there are no headers, and `program` receives a handle.
        let status = unsafe {
            (self.create)(&mut program, source.as_ptr(), file.as_ptr(), 0, std::ptr::null(), std::ptr::null())
        };
        ensure!(status == 0, "NVRTC takes no {name}: {status}");
        let (Target::Ptx(architecture) | Target::Cubin(architecture)) = target;
        let mut options = vec![format!("--gpu-architecture={architecture}"), "--std=c++17".to_owned()];
        if matches!(target, Target::Cubin(_)) {
            options.push("--ptxas-options=-v".to_owned());
        }
        let options: Vec<CString> = options.into_iter().map(CString::new).collect::<Result<_, _>>()?;
        let pointers: Vec<_> = options.iter().map(|option| option.as_ptr()).collect();
        // SAFETY: the handle is live, and the options are as many strings as said.
        let status = unsafe { (self.compile)(program, pointers.len() as c_int, pointers.as_ptr()) };
        let log = String::from_utf8_lossy(&self.read(program, self.log)?).into_owned();
        ensure!(status == 0, "{name} for {architecture}:\n{log}");
        let result = self.read(program, if matches!(target, Target::Ptx(_)) { self.ptx } else { self.cubin })?;
        // SAFETY: the handle is live and not used after.
        unsafe { (self.destroy)(&mut program) };
        Ok((result, log))
    }

    fn read(&self, program: Program, output: Output) -> Result<Vec<u8>> {
        let mut size = 0;
        // SAFETY: the handle is live; the buffer has the size that was asked for.
        let (status, bytes) = unsafe {
            let asked = (output.size)(program, &mut size);
            let mut bytes = vec![0u8; size];
            (asked.max((output.bytes)(program, bytes.as_mut_ptr().cast())), bytes)
        };
        ensure!(status == 0, "NVRTC gives no output: {status}");
        Ok(bytes)
    }
}
