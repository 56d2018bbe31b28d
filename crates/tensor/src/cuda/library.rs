//! Shared libraries opened at run time: nothing of CUDA is needed to build the program or to start it.
//!
//! Our own few lines instead of a crate: a missing library or function is an error with its name and never a panic, the one
//! name that wheels have (`libnccl.so.2`) is as good as any, and where a library came from can be told.

use std::ffi::{CStr, CString, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A library that was opened. It stays open until the process ends: drivers don't survive being closed, and tables of
/// functions need no lifetime then.
#[derive(Debug, Clone)]
pub struct Library {
    handle: Handle,
    path: PathBuf,
}

#[derive(Debug, Clone, Copy)]
struct Handle(*mut c_void);

// SAFETY: the loader's handles are good for any thread.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Library {
    /// Opens a file, or asks the system's own loader for a bare name.
    ///
    /// # Errors
    /// The loader's words.
    pub fn open(path: &Path) -> Result<Self, String> {
        let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| "a zero byte in its name".to_owned())?;
        // SAFETY: a string that ends with zero; the library's own initialisers run, which is what opening it means.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() {
            return Err(complaint());
        }
        Ok(Self { handle: Handle(handle), path: path.to_owned() })
    }

    /// Where it was found, as far as the loader says.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The address of a function.
    ///
    /// # Errors
    /// Its name, if the library has none such.
    pub fn symbol(&self, name: &CStr) -> Result<*mut c_void, String> {
        // SAFETY: an open handle and a string that ends with zero.
        let found = unsafe { libc::dlsym(self.handle.0, name.as_ptr()) };
        if found.is_null() {
            return Err(format!("it has no function {}", name.to_string_lossy()));
        }
        Ok(found)
    }

    /// The same library with the file's own path, which the loader knows by the address of one of its functions.
    #[must_use]
    pub fn located_by(mut self, function: &CStr) -> Self {
        let Ok(address) = self.symbol(function) else { return self };
        // SAFETY: plain pointers, for which zeros are valid.
        let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
        // SAFETY: the loader only looks the address up and fills `info`.
        let known = unsafe { libc::dladdr(address, &raw mut info) } != 0 && !info.dli_fname.is_null();
        if known {
            // SAFETY: a string that ends with zero and lives as long as the library is open.
            let name = unsafe { CStr::from_ptr(info.dli_fname) };
            self.path = PathBuf::from(std::ffi::OsStr::from_bytes(name.to_bytes()));
        }
        self
    }
}

fn complaint() -> String {
    // SAFETY: gives the last error of this thread's calls to the loader, or null.
    let text = unsafe { libc::dlerror() };
    if text.is_null() {
        return "the loader gave no reason".to_owned();
    }
    // SAFETY: a string that ends with zero, valid until the next call.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let absent = Library::open(Path::new("libferrotune-has-no-such.so.7")).unwrap_err();
        assert!(absent.contains("libferrotune-has-no-such.so.7"), "{absent}");
        let folder = tempfile::tempdir().unwrap();
        let text = folder.path().join("libtext.so");
        std::fs::write(&text, "not a library").unwrap();
        assert!(Library::open(&text).unwrap_err().contains("libtext.so"));
        // The C library is everywhere, under different names.
        if let Ok(library) = Library::open(Path::new("libc.so.6")) {
            let error = library.symbol(c"ferrotune_has_no_such").unwrap_err();
            assert_eq!(error, "it has no function ferrotune_has_no_such");
            assert!(library.located_by(c"malloc").path().is_absolute());
        }
    }
}
