//! One buffer of constant size per thread, in which kernels pack panels and keep tiles.
//!
//! It is allocated the first time a thread needs it and never grows, so a kernel call allocates nothing.

use std::cell::RefCell;

/// 32-bit words in a thread's buffer.
pub(crate) const WORDS: usize = 192 * 1024;

/// Bytes that each thread keeps for the kernels, whatever their shapes.
pub const fn scratch_bytes_per_thread() -> usize {
    WORDS * size_of::<u32>()
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct CacheLine([u32; 16]);

// SAFETY: sixteen words without padding; any bit pattern is valid.
unsafe impl bytemuck::Zeroable for CacheLine {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for CacheLine {}

thread_local! {
    static BUFFER: RefCell<Vec<CacheLine>> = const { RefCell::new(Vec::new()) };
}

/// Runs `f` with this thread's buffer (contents unspecified, aligned to 64 bytes).
///
/// `f` must not call rayon: a stolen task could ask for the buffer again.
pub(crate) fn with<R>(f: impl FnOnce(&mut [u32]) -> R) -> R {
    BUFFER.with_borrow_mut(|lines| {
        if lines.is_empty() {
            *lines = vec![CacheLine([0; 16]); WORDS / 16];
        }
        f(bytemuck::cast_slice_mut(lines))
    })
}
