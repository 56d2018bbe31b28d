//! Ctrl-C and SIGTERM: the first asks a run to end after its step, the second ends the program at once.

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::io::Result;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

/// The flag of this process's [`Interrupts`].
static STOP: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Whether this process listens and has been asked to stop.
pub(crate) fn asked() -> bool {
    STOP.get().is_some_and(|stop| stop.load(Ordering::Relaxed))
}

/// Signals heard while a run is under way.
pub(crate) struct Interrupts {
    stop: Arc<AtomicBool>,
    signal: Arc<AtomicUsize>,
}

impl Interrupts {
    /// Listens from now on.
    ///
    /// # Errors
    /// If the system doesn't let it.
    pub(crate) fn listen() -> Result<Self> {
        let stop = Arc::clone(STOP.get_or_init(Arc::default));
        let interrupts = Self { stop, signal: Arc::default() };
        for signal in [SIGINT, SIGTERM] {
            // In this order the first signal finds the flag down, raises it, and so arms the way out for the second.
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&interrupts.stop))?;
            flag::register(signal, Arc::clone(&interrupts.stop))?;
            flag::register_usize(signal, Arc::clone(&interrupts.signal), signal as usize)?;
        }
        Ok(interrupts)
    }

    /// Set by the first signal.
    pub(crate) fn stop(&self) -> &AtomicBool {
        &self.stop
    }

    /// The exit code that tells of the signal heard, if one was: 130 or 143. From here on the next one ends the program.
    pub(crate) fn close(&self) -> Option<u8> {
        self.stop.store(true, Ordering::Relaxed);
        match self.signal.load(Ordering::Relaxed) {
            0 => None,
            signal => u8::try_from(128 + signal).ok(),
        }
    }
}

/// Signals for a process that passes them on to others, and ends when these do.
pub(crate) struct Requests {
    last: Arc<AtomicUsize>,
}

impl Requests {
    /// Listens from now on.
    ///
    /// # Errors
    /// If the system doesn't let it.
    pub(crate) fn listen() -> Result<Self> {
        let requests = Self { last: Arc::default() };
        for signal in [SIGINT, SIGTERM] {
            flag::register_usize(signal, Arc::clone(&requests.last), signal as usize)?;
        }
        Ok(requests)
    }

    /// The signal heard since the last call, if one was.
    pub(crate) fn take(&self) -> Option<i32> {
        i32::try_from(self.last.swap(0, Ordering::Relaxed)).ok().filter(|signal| *signal != 0)
    }
}
