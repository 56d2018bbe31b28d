//! GPUs as a look at the machine needs them: what each is, what two can do with each other, and a copy between two whose bytes
//! can be compared. Nothing here has kernels or cublasLt, so it works where those are missing.

use super::CallError;
use super::driver::{Address, Driver, attribute, code, flag, peer};
use super::gpu::{self, About, Token};

/// A GPU from outside.
#[derive(Debug, Clone, PartialEq)]
pub struct Sight {
    /// What it is.
    pub about: About,
    /// Its place on the bus, as the driver writes it.
    pub bus: String,
    /// The highest clock, Hz.
    pub clock: Option<f64>,
    /// Whether its memory corrects errors.
    pub ecc: Option<bool>,
    /// Who may use it, by [`attribute::COMPUTE_MODE`].
    pub mode: Option<i32>,
}

/// What the driver says of one GPU and another's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// Whether it may be read and written.
    pub access: bool,
    /// Whether atomic operations work there.
    pub atomics: bool,
}

/// What came of a copy.
#[derive(Debug, Clone, PartialEq)]
pub struct Copied {
    /// What lies in the other's memory now.
    pub bytes: Vec<u8>,
    /// Seconds of one copy.
    pub seconds: f64,
}

/// Looks at GPU `number`.
///
/// # Errors
/// The driver's.
pub fn sight(driver: &Driver, number: usize) -> Result<Sight, CallError> {
    let (device, about) = gpu::about(driver, number)?;
    let mut bus = [0u8; 64];
    // SAFETY: the place's length is told.
    unsafe { driver.device_bus(bus.as_mut_ptr().cast(), 64, device) }?;
    let end = bus.iter().position(|b| *b == 0).unwrap_or(bus.len());
    let number = |attribute| {
        let mut value = 0;
        // SAFETY: `value` outlives the call.
        unsafe { driver.device_attribute(&raw mut value, attribute, device) }.ok().map(|()| value)
    };
    Ok(Sight {
        about,
        bus: String::from_utf8_lossy(&bus[..end]).into_owned(),
        clock: number(attribute::CLOCK).filter(|khz| *khz > 0).map(|khz| f64::from(khz) * 1e3),
        ecc: number(attribute::ECC).map(|on| on != 0),
        mode: number(attribute::COMPUTE_MODE),
    })
}

/// Whether GPU `own` can reach the memory of `other`.
///
/// # Errors
/// The driver's.
pub fn reach(driver: &Driver, own: usize, other: usize) -> Result<Reach, CallError> {
    let (own, other, mut can) = (device(driver, own)?, device(driver, other)?, 0);
    // SAFETY: `can` outlives the call.
    unsafe { driver.can_access_peer(&raw mut can, own, other) }?;
    let mut atomics = 0;
    // SAFETY: as above. A driver that doesn't know has none.
    let told = unsafe { driver.peer_attribute(&raw mut atomics, peer::ATOMICS, own, other) };
    Ok(Reach { access: can != 0, atomics: told.is_ok() && atomics != 0 })
}

fn device(driver: &Driver, number: usize) -> Result<i32, CallError> {
    let mut device = 0;
    // SAFETY: `device` outlives the call.
    unsafe { driver.device(&raw mut device, i32::try_from(number).unwrap_or(i32::MAX)) }?;
    Ok(device)
}

/// Writes `pattern` into the memory of GPU `from`, copies it `repeats` times to GPU `to` and reads it there. With `direct` the
/// copies take the way between the two, if there is one; else the driver's way over the host.
///
/// Where that way is broken, this never returns, or returns other bytes: whoever calls it watches it.
///
/// # Errors
/// The driver's.
pub fn copy_between(
    driver: &Driver,
    (from, to): (usize, usize),
    pattern: &[u8],
    repeats: u32,
    direct: bool,
) -> Result<Copied, CallError> {
    let from = Side::new(driver, from, pattern.len())?;
    let to = Side::new(driver, to, pattern.len())?;
    if direct {
        to.reaches(&from)?;
        // Either may make the copies; that both may isn't needed.
        let _ = from.reaches(&to);
    }
    from.write(pattern)?;
    // What a copy that does nothing would leave.
    let before: Vec<u8> = pattern.iter().map(|byte| !byte).collect();
    to.write(&before)?;
    let seconds = to.receive(&from, repeats)?;
    Ok(Copied { bytes: to.read()?, seconds })
}

/// Memory of one GPU, and a stream.
struct Side<'a> {
    driver: &'a Driver,
    device: i32,
    context: Token,
    stream: Token,
    at: Address,
    bytes: usize,
}

impl<'a> Side<'a> {
    fn new(driver: &'a Driver, number: usize, bytes: usize) -> Result<Self, CallError> {
        let (device, mut context) = (device(driver, number)?, std::ptr::null_mut());
        // SAFETY: `context` outlives the call.
        unsafe { driver.primary_context(&raw mut context, device) }?;
        let context = Token::new(context);
        gpu::enter(driver, context)?;
        let (stream, mut at) = (gpu::stream(driver)?, 0);
        // SAFETY: `at` outlives the call.
        unsafe { driver.allocate(&raw mut at, bytes) }?;
        Ok(Self { driver, device, context, stream, at, bytes })
    }

    /// Lets this one reach the other's memory.
    fn reaches(&self, other: &Side<'_>) -> Result<(), CallError> {
        gpu::enter(self.driver, self.context)?;
        // SAFETY: a context that lives; flags are 0 by the manual.
        match unsafe { self.driver.enable_peer(other.context.handle(), 0) } {
            Err(error) if error.code != code::PEER_ALREADY_ENABLED => Err(error),
            _ => Ok(()),
        }
    }

    fn write(&self, bytes: &[u8]) -> Result<(), CallError> {
        gpu::enter(self.driver, self.context)?;
        // SAFETY: an allocation of this size; the bytes outlive the wait.
        unsafe {
            self.driver.upload(self.at, bytes.as_ptr().cast(), bytes.len().min(self.bytes), self.stream.handle())?;
            self.driver.synchronize_stream(self.stream.handle())
        }
    }

    fn read(&self) -> Result<Vec<u8>, CallError> {
        gpu::enter(self.driver, self.context)?;
        let mut bytes = vec![0; self.bytes];
        // SAFETY: as above.
        unsafe {
            self.driver.download(bytes.as_mut_ptr().cast(), self.at, bytes.len(), self.stream.handle())?;
            self.driver.synchronize_stream(self.stream.handle())?;
        }
        Ok(bytes)
    }

    /// Copies the other's bytes here; seconds of one copy.
    fn receive(&self, other: &Side<'_>, repeats: u32) -> Result<f64, CallError> {
        gpu::enter(self.driver, self.context)?;
        let (driver, stream) = (self.driver, self.stream.handle());
        let [mut begin, mut end] = [std::ptr::null_mut(); 2];
        let mut milliseconds = 0.0;
        // SAFETY: places that outlive the calls, allocations of both sides of one size, a stream of this context.
        unsafe {
            driver.create_event(&raw mut begin, flag::EVENT_TIMED)?;
            driver.create_event(&raw mut end, flag::EVENT_TIMED)?;
            driver.record_event(begin, stream)?;
            for _ in 0..repeats.max(1) {
                let (to, from) = (self.context.handle(), other.context.handle());
                driver.copy_peer(self.at, to, other.at, from, self.bytes, stream)?;
            }
            driver.record_event(end, stream)?;
            driver.synchronize_stream(stream)?;
            driver.elapsed(&raw mut milliseconds, begin, end)?;
            driver.destroy_event(begin)?;
            driver.destroy_event(end)?;
        }
        Ok(f64::from(milliseconds) / 1e3 / f64::from(repeats.max(1)))
    }
}

impl Drop for Side<'_> {
    fn drop(&mut self) {
        let _ = gpu::enter(self.driver, self.context);
        // SAFETY: all three are this one's, and its work has ended or failed. Errors have nowhere to go.
        unsafe {
            let _ = self.driver.free(self.at);
            let _ = self.driver.destroy_stream(self.stream.handle());
            let _ = self.driver.release_context(self.device);
        }
    }
}
