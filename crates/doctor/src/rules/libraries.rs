//! Drivers and libraries that are missing, too old, or don't go together.

use super::{Finding, Weight, listed};
use crate::facts::{Facts, Library};

/// Oldest CUDA that a driver must run.
const OLDEST: i32 = 12_000;

pub(super) fn judge(facts: &Facts, found: &mut Vec<Finding>) {
    let (gpus, machine) = (&facts.gpus, &facts.machine);
    let slots: Vec<String> = machine.slots.iter().map(|slot| slot.address.clone()).collect();
    let driver = gpus.library("NVIDIA driver");
    let has_driver = gpus.has("NVIDIA driver");
    if let Some(refused) = &gpus.refused {
        found.push(Finding::new(
            Weight::Problem,
            "driver-refuses",
            format!("the NVIDIA driver can't be used: {refused}"),
            cure_of_refusal(refused),
        ));
    } else if let Some(library) = driver.filter(|library| !library.unusable.is_empty() && !has_driver) {
        found.push(unusable("driver-unusable", library));
    } else if gpus.devices.is_empty() && slots.is_empty() {
        found.push(Finding::new(Weight::Note, "no-gpu", "no GPU: runs use the processor", ""));
    } else if gpus.devices.is_empty() && has_driver {
        let what = format!("the driver shows no GPU, though NVIDIA devices are on the bus ({})", listed(&slots));
        let cure = "CUDA_VISIBLE_DEVICES may hide them: unset it; in a container, start it with `--gpus all`";
        found.push(Finding::new(Weight::Problem, "gpus-hidden", what, cure));
    } else if gpus.devices.is_empty() {
        let what = format!("NVIDIA devices are on the bus ({}), but there is no driver for them", listed(&slots));
        found.push(Finding::new(Weight::Problem, "no-driver", what, cure_without_driver(facts)));
    }
    if let Some(cuda) = gpus.cuda.filter(|cuda| *cuda < OLDEST) {
        let what = format!("the NVIDIA driver runs CUDA {}.{} at most; 12.0 is needed", cuda / 1000, cuda % 1000 / 10);
        found.push(Finding::new(Weight::Problem, "driver-old", what, "install driver 525 or newer"));
    }
    if gpus.devices.is_empty() {
        return;
    }
    let needed = [("cublasLt", "cublaslt", 1), ("NCCL", "nccl", 2)];
    for (name, key, from) in needed {
        let missing = gpus.library(name).filter(|library| library.found.is_none() && gpus.devices.len() >= from);
        match (missing, key) {
            (Some(library), "cublaslt") if library.unusable.is_empty() => {
                found.push(missing_library("cublaslt-missing", library))
            }
            (Some(library), "cublaslt") => found.push(unusable("cublaslt-unusable", library)),
            (Some(library), _) if library.unusable.is_empty() => found.push(missing_library("nccl-missing", library)),
            (Some(library), _) => found.push(unusable("nccl-unusable", library)),
            (None, _) => {}
        }
    }
}

fn missing_library(name: &'static str, library: &Library) -> Finding {
    let places = library.empty.len();
    let what = format!("{} isn't in any of the {places} places where it is looked for (see above)", library.name);
    Finding::new(Weight::Problem, name, what, library.cure.as_str())
}

fn unusable(name: &'static str, library: &Library) -> Finding {
    let files: Vec<String> = library.unusable.iter().map(|(path, what)| format!("{path}: {what}")).collect();
    let what = format!("{} can't be used: {}", library.name, files.join("; "));
    Finding::new(Weight::Problem, name, what, library.cure.as_str())
}

/// The driver's codes that have a cure of their own, in `cuda.h`.
fn cure_of_refusal(refused: &str) -> &'static str {
    let cures = [
        (
            "(803)",
            "library and kernel module of the driver are of different versions: restart the machine; in a container, \
                   restart the container",
        ),
        (
            "(802)",
            "NVSwitch waits for its manager: `sudo systemctl start nvidia-fabricmanager`, of the driver's own version",
        ),
        (
            "(804)",
            "the compatibility library of a newer CUDA doesn't suit this card: take its folder out of LD_LIBRARY_PATH",
        ),
        ("(801)", "the driver's library is a stub: take its folder out of LD_LIBRARY_PATH"),
        ("(101)", "CUDA_VISIBLE_DEVICES names a GPU that isn't there"),
        ("didn't answer", "a GPU has hung: `sudo dmesg | grep -i xid` names it; restart the machine"),
    ];
    let cure = cures.iter().find(|(mark, _)| refused.contains(mark));
    cure.map_or("`nvidia-smi` shows whether the driver runs, and `sudo dmesg | grep -i nvrm` why not", |(_, cure)| cure)
}

fn cure_without_driver(facts: &Facts) -> &'static str {
    match (&facts.machine.container, &facts.machine.driver) {
        (Some(_), _) => {
            "start the container with `--gpus all`, which NVIDIA's Container Toolkit understands; in Kubernetes, ask for \
             `nvidia.com/gpu`"
        }
        (None, Some(_)) => {
            "its kernel module runs, but libcuda.so.1 is missing: install the driver's package of libraries"
        }
        (None, None) => "install NVIDIA's driver, version 525 or newer, and restart; `nvidia-smi` then lists the GPUs",
    }
}
