//! Which libraries there are, and which GPUs: each by itself, whatever is wrong with the others.

use crate::facts::{Found, Gpu, Gpus, Health, Library, Pair, Way};
use ferrotune_tensor::cuda::nvml::{self, Nvml, reason};
use ferrotune_tensor::cuda::{NotLoaded, Search, Sight, blas, driver, nccl, reach, sight};

/// Newest CUDA to look for libraries of, where no driver says.
const NEWEST: i32 = 13_000;

pub(super) fn survey(search: &Search) -> Gpus {
    let mut gpus = Gpus::default();
    let driver = keep(&mut gpus, "NVIDIA driver", driver::open(search), |driver| {
        let version = driver.version().ok().map(|v| format!("CUDA {}.{}", v / 1000, v % 1000 / 10));
        (driver.library().path().display().to_string(), version)
    });
    // Begun before anything else is asked.
    let begun = driver.as_ref().map(|driver| driver.begin().and_then(|()| driver.count()));
    gpus.cuda = driver.as_ref().and_then(|driver| driver.version().ok());
    let cuda = gpus.cuda.unwrap_or(NEWEST);
    keep(&mut gpus, "cublasLt", blas::open(search, cuda), |blas| {
        (blas.library().path().display().to_string(), blas.version())
    });
    keep(&mut gpus, "NCCL", nccl::open(search, cuda), |nccl| {
        (nccl.library().path().display().to_string(), nccl.version().ok())
    });
    let mut told = None;
    let nvml = keep(&mut gpus, "NVML", nvml::open(search), |nvml| {
        told = nvml.begin().ok();
        (nvml.library().path().display().to_string(), told.clone())
    });
    let nvml = nvml.filter(|_| told.is_some());
    match (driver, begun) {
        (Some(driver), Some(Ok(count))) => {
            for number in 0..count {
                match sight(&driver, number) {
                    Ok(seen) => gpus.devices.push(gpu(number, &seen, nvml.as_ref())),
                    Err(error) => gpus.refused = Some(format!("GPU {number}: {error}")),
                }
            }
            gpus.pairs = pairs(&driver, count);
        }
        (Some(_), Some(Err(error))) if error.code != driver::code::NO_DEVICE => gpus.refused = Some(error.to_string()),
        _ => {}
    }
    gpus
}

/// Writes down a library, and hands it on.
fn keep<T>(
    gpus: &mut Gpus,
    name: &str,
    opened: Result<T, NotLoaded>,
    about: impl FnOnce(&T) -> (String, Option<String>),
) -> Option<T> {
    let mut library = Library { name: name.to_owned(), ..Library::default() };
    let found = match opened {
        Ok(found) => {
            let (file, version) = about(&found);
            library.found = Some(Found { file, version });
            Some(found)
        }
        Err(missing) => {
            library.unusable =
                missing.unusable.iter().map(|(path, what)| (path.display().to_string(), what.clone())).collect();
            library.empty = missing.empty;
            library.cure = missing.cure;
            None
        }
    };
    gpus.libraries.push(library);
    found
}

fn gpu(number: usize, seen: &Sight, nvml: Option<&Nvml>) -> Gpu {
    let mode = match seen.mode {
        Some(2) => Some("prohibited".to_owned()),
        Some(1 | 3) => Some("exclusive".to_owned()),
        _ => None,
    };
    Gpu {
        number,
        name: seen.about.name.clone(),
        memory: seen.about.memory,
        capability: seen.about.capability,
        multiprocessors: seen.about.multiprocessors,
        clock: seen.clock,
        ecc: seen.ecc,
        mode,
        address: address(&seen.bus),
        health: nvml.and_then(|nvml| nvml.condition(&seen.bus).ok()).map(|found| Health {
            nvlinks: found.nvlinks,
            uncorrected: found.uncorrected,
            held_back: found.throttled.map(held_back).unwrap_or_default(),
            watts: found.watts,
            mig: found.mig,
        }),
    }
}

/// The driver writes capitals, and now and then eight digits of domain; the system four and small ones.
fn address(bus: &str) -> String {
    let small = bus.to_ascii_lowercase();
    let short = small.strip_prefix("0000").filter(|rest| rest.find(':') == Some(4));
    short.unwrap_or(&small).to_owned()
}

fn held_back(bits: u64) -> Vec<String> {
    let names = [
        (reason::POWER, "its limit of power"),
        (reason::HEAT | reason::HARDWARE_HEAT, "heat"),
        (reason::POWER_BRAKE, "its power supply"),
        (reason::HARDWARE, "the hardware itself (heat or power)"),
    ];
    names.iter().filter(|(reason, _)| bits & reason != 0).map(|(_, name)| (*name).to_owned()).collect()
}

fn pairs(driver: &driver::Driver, count: usize) -> Vec<Pair> {
    let all = (0..count).flat_map(|from| (0..count).map(move |to| (from, to))).filter(|(from, to)| from != to);
    let of = |(from, to)| {
        let found = reach(driver, to, from).ok()?;
        Some(Pair { from, to, access: found.access, atomics: found.atomics, way: Way::Unknown })
    };
    all.filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_the_system_does() {
        assert_eq!(address("0000:2A:00.0"), "0000:2a:00.0");
        assert_eq!(address("00000001:2A:00.0"), "0001:2a:00.0");
        assert_eq!(address("10000001:2A:00.0"), "10000001:2a:00.0");
    }

    #[test]
    fn reasons_of_a_slow_clock_are_words() {
        assert!(held_back(1).is_empty(), "an idle GPU is not held back");
        assert_eq!(held_back(0x60), ["heat"]);
        assert_eq!(held_back(0x4 | 0x8).len(), 2);
    }
}
