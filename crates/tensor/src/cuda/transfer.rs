//! Copies between host and GPU, through a ring of pinned memory.
//!
//! An upload copies the caller's bytes into the ring and begins a copy from there; the caller may go on at once, the ring's piece
//! is used again only when its event has passed. The copies' stream waits for the work before it, for the bytes may be those of a
//! tensor that just died and whose readers aren't done; the work after it waits for the copy.

use super::CallError;
use super::driver::{Address, Driver, flag};
use super::gpu::{Gpu, Token};
use std::collections::VecDeque;
use std::ops::Range;

/// Bytes of pinned memory; a copy takes at most a quarter at a time, so that filling and copying overlap.
const RING: usize = 32 << 20;
const PART: usize = RING / 4;
/// Pieces begin at multiples of this.
const ALIGN: usize = 256;

/// The copies' stream and the ring.
pub(crate) struct Transfers {
    stream: Token,
    /// Address of the pinned memory.
    ring: usize,
    /// Where the next piece begins.
    next: usize,
    /// Pieces under way, the oldest first.
    flying: VecDeque<(Range<usize>, Token)>,
    /// Events that nobody waits for.
    events: Vec<Token>,
}

impl Transfers {
    pub(crate) fn new(driver: &Driver, stream: Token) -> Result<Self, CallError> {
        let mut ring = std::ptr::null_mut();
        // SAFETY: `ring` outlives the call.
        unsafe { driver.allocate_pinned(&raw mut ring, RING, flag::PINNED_PORTABLE) }?;
        Ok(Self { stream, ring: ring as usize, next: 0, flying: VecDeque::new(), events: Vec::new() })
    }

    fn event(&mut self, driver: &Driver) -> Result<Token, CallError> {
        if let Some(event) = self.events.pop() {
            return Ok(event);
        }
        let mut event = std::ptr::null_mut();
        // SAFETY: `event` outlives the call.
        unsafe { driver.create_event(&raw mut event, flag::EVENT_NO_TIMING) }?;
        Ok(Token::new(event))
    }

    /// What follows in `later` waits for all that `earlier` has so far; the event is given back when its mark is set.
    fn after(&mut self, driver: &Driver, later: Token, earlier: Token) -> Result<(), CallError> {
        let event = self.event(driver)?;
        // SAFETY: streams and event live. A wait holds on to the mark, not to the event, which may be recorded again.
        unsafe {
            driver.record_event(event.handle(), earlier.handle())?;
            driver.wait_event(later.handle(), event.handle(), 0)?;
        }
        self.events.push(event);
        Ok(())
    }

    /// A piece of the ring that no copy uses.
    fn piece(&mut self, driver: &Driver, bytes: usize) -> Result<Range<usize>, CallError> {
        let start = if self.next + bytes <= RING { self.next } else { 0 };
        let piece = start..start + bytes;
        let meets = |other: &Range<usize>| other.start < piece.end && piece.start < other.end;
        while self.flying.iter().any(|(other, _)| meets(other)) {
            let Some((_, event)) = self.flying.pop_front() else { break };
            // SAFETY: an event of this context.
            unsafe { driver.synchronize_event(event.handle()) }?;
            self.events.push(event);
        }
        self.next = piece.end.next_multiple_of(ALIGN);
        Ok(piece)
    }

    /// The bytes of a piece.
    ///
    /// # Safety
    /// No copy of it is under way, and no other slice of it is alive.
    #[expect(clippy::mut_from_ref, reason = "the caller's promise")]
    unsafe fn bytes(&self, piece: &Range<usize>) -> &mut [u8] {
        // SAFETY: inside the ring, which lives as long as this.
        unsafe { std::slice::from_raw_parts_mut((self.ring + piece.start) as *mut u8, piece.len()) }
    }

    /// Gives all back.
    pub(crate) fn end(&mut self, driver: &Driver) {
        let flying = self.flying.drain(..).map(|(_, event)| event);
        for event in flying.chain(self.events.drain(..)) {
            // SAFETY: an event of this context that nobody waits for.
            let _ = unsafe { driver.destroy_event(event.handle()) };
        }
        // SAFETY: the stream and the memory are this one's, and all copies are done.
        unsafe {
            let _ = driver.destroy_stream(self.stream.handle());
            let _ = driver.free_pinned(self.ring as *mut _);
        }
    }
}

impl Gpu {
    /// Copies from the host, after the work so far and before what follows. Returns when the bytes may be written over.
    pub(crate) fn upload(&self, to: Address, bytes: &[u8]) {
        let done = self.upload_parts(to, bytes.len(), 1, |range, part| {
            part.copy_from_slice(&bytes[range]);
            Ok::<(), std::convert::Infallible>(())
        });
        match done {
            Ok(()) => {}
        }
    }

    /// The same with bytes that `fill` writes, a part after the other, each a multiple of `unit`.
    pub(crate) fn upload_parts<E>(
        &self,
        to: Address,
        bytes: usize,
        unit: usize,
        mut fill: impl FnMut(Range<usize>, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let step = PART / unit * unit;
        for start in (0..bytes).step_by(step) {
            let range = start..(start + step).min(bytes);
            let mut transfers = self.copies();
            let driver = self.here();
            let piece = match transfers.piece(driver, range.len()) {
                Ok(piece) => piece,
                Err(error) => {
                    self.note(Err(error));
                    return Ok(());
                }
            };
            // SAFETY: `piece` waited for the last copy of these bytes.
            fill(range.clone(), unsafe { transfers.bytes(&piece) })?;
            self.note(self.send(&mut transfers, to + range.start as u64, piece));
        }
        Ok(())
    }

    fn send(&self, transfers: &mut Transfers, to: Address, piece: Range<usize>) -> Result<(), CallError> {
        let (driver, copies) = (self.here(), transfers.stream);
        transfers.after(driver, copies, self.work)?;
        let from = (transfers.ring + piece.start) as *const _;
        // SAFETY: a tensor's bytes, and pinned memory that nobody writes until the event below has passed.
        unsafe { driver.upload(to, from, piece.len(), copies.handle()) }?;
        let event = transfers.event(driver)?;
        // SAFETY: an event of this context.
        unsafe {
            driver.record_event(event.handle(), copies.handle())?;
            driver.wait_event(self.work.handle(), event.handle(), 0)?;
        }
        transfers.flying.push_back((piece, event));
        Ok(())
    }

    /// Bytes of the device, after all work so far; waits for them. Zeros after a fault.
    pub(crate) fn downloaded(&self, from: Address, bytes: usize) -> Vec<u8> {
        let mut to = vec![0; bytes];
        let parts: Vec<_> = to.chunks_mut(PART).collect();
        for (i, part) in parts.into_iter().enumerate() {
            let result = self.receive(from + (i * PART) as u64, part);
            self.note(result);
            if self.fault().is_some() {
                break;
            }
        }
        to
    }

    fn receive(&self, from: Address, to: &mut [u8]) -> Result<(), CallError> {
        let mut transfers = self.copies();
        let (driver, copies) = (self.here(), transfers.stream);
        let piece = transfers.piece(driver, to.len())?;
        transfers.after(driver, copies, self.work)?;
        let host = (transfers.ring + piece.start) as *mut _;
        // SAFETY: a tensor's bytes, and pinned memory that nobody uses until the stream is done.
        unsafe {
            driver.download(host, from, to.len(), copies.handle())?;
            driver.synchronize_stream(copies.handle())?;
        }
        // SAFETY: the copy is done.
        to.copy_from_slice(unsafe { transfers.bytes(&piece) });
        Ok(())
    }
}
