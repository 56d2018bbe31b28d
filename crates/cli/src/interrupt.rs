//! Ctrl-C and SIGTERM: the first asks a run to end after its step, the second ends the program at once.

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::io::Result;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

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
        let interrupts = Self { stop: Arc::default(), signal: Arc::default() };
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
