//! NVML's functions, which no run needs: what they say of a GPU's health and links helps to find out what is wrong with it.

use super::{CallError, Library, NotLoaded, Search, Wanted};
use std::ffi::{CString, c_char, c_int, c_uint, c_void};

/// A device of NVML's.
pub type Handle = *mut c_void;

crate::functions! {
    /// NVML.
    pub struct Nvml, named by "nvmlErrorString" {
        /// Must be the first call.
        init: "nvmlInit_v2" ();
        /// Version of the driver, as text.
        driver_version: "nvmlSystemGetDriverVersion" (text: *mut c_char, len: c_uint);
        /// A device by its place on the bus.
        device: "nvmlDeviceGetHandleByPciBusId_v2" (bus: *const c_char, device: *mut Handle);
        /// Whether a link of NVLink is up.
        nvlink_state: "nvmlDeviceGetNvLinkState" (device: Handle, link: c_uint, up: *mut c_int);
        /// Errors of memory: 1 for those not corrected; 0 for those since the driver was loaded.
        ecc_errors: "nvmlDeviceGetTotalEccErrors" (device: Handle, kind: c_int, counter: c_int, count: *mut u64);
        /// Why the clock is held back, a bit a reason.
        throttled: "nvmlDeviceGetCurrentClocksThrottleReasons" (device: Handle, reasons: *mut u64);
        /// Milliwatts that it may take.
        power_limit: "nvmlDeviceGetEnforcedPowerLimit" (device: Handle, limit: *mut c_uint);
        /// And that it was sold with.
        power_default: "nvmlDeviceGetPowerManagementDefaultLimit" (device: Handle, limit: *mut c_uint);
        /// Whether it is cut into parts, and will be.
        mig: "nvmlDeviceGetMigMode" (device: Handle, now: *mut c_uint, next: *mut c_uint);
    }
}

/// What NVML says of a GPU; `None` is what it doesn't know of this one.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Condition {
    /// NVLinks that are up.
    pub nvlinks: u32,
    /// Errors of memory that couldn't be corrected, since the driver was loaded.
    pub uncorrected: Option<u64>,
    /// Bits of [`reason`].
    pub throttled: Option<u64>,
    /// Watts that it may take, and that it was sold with.
    pub watts: Option<(f64, f64)>,
    /// Whether it is cut into parts.
    pub mig: Option<bool>,
}

/// Why a clock is held back, `nvmlClocksThrottleReasons`.
pub mod reason {
    /// The limit of power.
    pub const POWER: u64 = 0x4;
    /// The hardware slows itself down: heat, or its supply.
    pub const HARDWARE: u64 = 0x8;
    /// Heat, by the driver.
    pub const HEAT: u64 = 0x20;
    /// Heat, by the hardware.
    pub const HARDWARE_HEAT: u64 = 0x40;
    /// The supply asks for it.
    pub const POWER_BRAKE: u64 = 0x80;
}

/// Most links that a GPU has.
const MOST_LINKS: u32 = 18;

/// Opens NVML.
///
/// # Errors
/// With every place where it was looked for.
pub fn open(search: &Search) -> Result<Nvml, NotLoaded> {
    let cure = "It comes with the driver; a run doesn't need it.";
    search.open(&Wanted { name: "NVML", files: &["libnvidia-ml.so.1"], cure }, |library: Library| Nvml::load(library))
}

impl Nvml {
    /// Begins, and tells the driver's version.
    ///
    /// # Errors
    /// The library's.
    pub fn begin(&self) -> Result<String, CallError> {
        let mut text = [0u8; 96];
        // SAFETY: the first call, and a place whose length is told.
        unsafe {
            self.init()?;
            self.driver_version(text.as_mut_ptr().cast(), 96)?;
        }
        let end = text.iter().position(|b| *b == 0).unwrap_or(text.len());
        Ok(String::from_utf8_lossy(&text[..end]).into_owned())
    }

    /// How the GPU at this place of the bus is.
    ///
    /// # Errors
    /// If there is none.
    pub fn condition(&self, bus: &str) -> Result<Condition, CallError> {
        let (bus, mut device) = (CString::new(bus.replace('\0', "")).unwrap_or_default(), std::ptr::null_mut());
        // SAFETY: places that outlive the call.
        unsafe { self.device(bus.as_ptr(), &raw mut device) }?;
        let is_up = |link: &u32| {
            let mut up = 0;
            // SAFETY: as above. A link that isn't there is an error.
            unsafe { self.nvlink_state(device, *link, &raw mut up) }.is_ok() && up == 1
        };
        let (mut count, mut reasons, mut limit, mut sold, mut now, mut next) = (0, 0, 0, 0, 0, 0);
        // SAFETY: as above; what fails isn't told.
        unsafe {
            Ok(Condition {
                nvlinks: (0..MOST_LINKS).filter(is_up).count() as u32,
                uncorrected: self.ecc_errors(device, 1, 0, &raw mut count).ok().map(|()| count),
                throttled: self.throttled(device, &raw mut reasons).ok().map(|()| reasons),
                watts: (self.power_limit(device, &raw mut limit))
                    .and_then(|()| self.power_default(device, &raw mut sold))
                    .ok()
                    .map(|()| (f64::from(limit) / 1e3, f64::from(sold) / 1e3)),
                mig: self.mig(device, &raw mut now, &raw mut next).ok().map(|()| now == 1),
            })
        }
    }
}
