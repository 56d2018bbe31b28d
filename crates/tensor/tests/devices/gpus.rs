//! GPUs of paper, each test's own; or the machine's own GPU, where `FERROTUNE_TEST_GPU` is set: then nothing is imitated, so tests
//! of what goes wrong with one aren't meant.

use ferrotune_tensor::Device;
use ferrotune_tensor::cuda::{Libraries, Options, Search, Surroundings};
use std::ffi::c_void;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

struct Fakes {
    libraries: Libraries,
    control: usize,
    count: usize,
    _folder: tempfile::TempDir,
}

static FAKES: LazyLock<Fakes> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a folder");
    ferrotune_fake_cuda::install(folder.path()).expect("the fake libraries");
    let around = Surroundings { chosen: Some(folder.path().to_owned()), ..Surroundings::default() };
    let libraries = Libraries::find(&Search::new(&around)).expect("usable libraries").expect("a GPU");
    let of = |name| libraries.driver().library().symbol(name).expect("the fake driver") as usize;
    let (control, count) = (of(c"ferrotune_fake_cuda"), of(c"ferrotune_fake_cuda_calls"));
    Fakes { libraries, control, count, _folder: folder }
});

/// The machine's libraries, where its own GPU is wanted.
static REAL: LazyLock<Option<Libraries>> = LazyLock::new(|| {
    let folder = |name| std::env::var_os(name).map(std::path::PathBuf::from);
    folder("FERROTUNE_TEST_GPU")?;
    let around = Surroundings {
        chosen: folder("FERROTUNE_CUDA_LIBRARIES"),
        conda: folder("CONDA_PREFIX"),
        virtual_env: folder("VIRTUAL_ENV"),
        program: None,
        home: folder("HOME"),
    };
    Some(Libraries::find(&Search::new(&around)).expect("usable libraries").expect("FERROTUNE_TEST_GPU wants a GPU"))
});

/// Begins device `number` anew.
pub(crate) fn set(number: usize, settings: &str) {
    if REAL.is_some() {
        return;
    }
    // SAFETY: the address of the fake's control function; each test has devices of its own.
    unsafe { ferrotune_fake_cuda::set(FAKES.control as *mut c_void, number as i32, settings) };
}

/// How often a function was called on a device since it was begun.
pub(crate) fn calls(number: usize, name: &str) -> u64 {
    // SAFETY: the address of the fake's counting function.
    unsafe { ferrotune_fake_cuda::calls(FAKES.count as *mut c_void, number as i32, name) }
}

/// The number of a device that no other test uses.
pub(crate) fn fresh(settings: &str) -> usize {
    // Below are those that tests begin anew again and again.
    static NEXT: AtomicUsize = AtomicUsize::new(100);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    set(number, settings);
    number
}

pub(crate) fn open(options: &Options) -> Device {
    let device = match &*REAL {
        Some(libraries) => Device::cuda(libraries, &Options { device: 0, ..*options }),
        None => Device::cuda(&FAKES.libraries, options),
    };
    device.expect("a GPU")
}

/// A GPU whose tensors are allocations of their own, so that accesses beside them are found.
pub(crate) fn strict(settings: &str) -> Device {
    open(&Options { device: fresh(settings), separate: true, ..Options::default() })
}

/// One with a heap, as users have it.
pub(crate) fn pooled(settings: &str) -> Device {
    open(&Options { device: fresh(settings), ..Options::default() })
}
