//! What GPUs say of themselves.

use super::{Finding, Weight};
use crate::facts::{Facts, Gpu};

pub(super) fn judge(facts: &Facts, found: &mut Vec<Finding>) {
    for gpu in &facts.gpus.devices {
        of(gpu, found);
    }
}

fn of(gpu: &Gpu, found: &mut Vec<Finding>) {
    let name = format!("GPU {} ({})", gpu.number, gpu.name);
    let mut say = |weight, key, what: String, cure: &str| found.push(Finding::new(weight, key, what, cure));
    if gpu.capability < (8, 0) {
        let (major, minor) = gpu.capability;
        let what = format!("{name} has compute capability {major}.{minor}; kernels need 8.0 (Ampere) or newer");
        say(Weight::Problem, "gpu-old", what, "hide it with CUDA_VISIBLE_DEVICES");
    }
    if gpu.mode.as_deref() == Some("prohibited") {
        let what = format!("{name} lets no process use it");
        say(Weight::Problem, "gpu-prohibited", what, "`sudo nvidia-smi -c 0`");
    }
    let Some(health) = &gpu.health else { return };
    if let Some(errors) = health.uncorrected.filter(|errors| *errors > 0) {
        let what = format!("{name} had {errors} errors of memory that couldn't be corrected");
        let cure = "restart it (`sudo nvidia-smi -r`, or the machine), which takes bad rows out of use; if they come again, have \
                    it replaced";
        say(Weight::Problem, "gpu-memory-errors", what, cure);
    }
    if health.mig == Some(true) {
        let what = format!("{name} is cut into parts (MIG); a run uses one of them, and NCCL joins none");
        say(Weight::Advice, "gpu-in-parts", what, "`sudo nvidia-smi -mig 0` makes it whole");
    }
    if !health.held_back.is_empty() {
        let what = format!("{name} is held back by {}", health.held_back.join(" and "));
        say(
            Weight::Advice,
            "gpu-held-back",
            what,
            "`nvidia-smi -q -d PERFORMANCE,TEMPERATURE,POWER`; look at fans and supply",
        );
    }
    if let Some((limit, sold)) = health.watts.filter(|(limit, sold)| *limit < 0.9 * *sold) {
        let what = format!("{name} may take {limit:.0} W of the {sold:.0} W that it was sold with");
        say(
            Weight::Advice,
            "gpu-power-limit",
            what,
            &format!("`sudo nvidia-smi -pl {sold:.0}`, if the supply allows it"),
        );
    }
}
