//! The processor, out of `/proc/cpuinfo`.

use super::files::{line, number, shown};
use crate::facts::Processor;
use std::collections::BTreeSet;
use std::path::Path;

pub(super) fn read(root: &Path, cpuinfo: &str) -> Processor {
    let clocks = values(cpuinfo, "cpu MHz").filter_map(|mhz| mhz.parse::<f64>().ok()).filter(|mhz| mhz.is_finite());
    let now = clocks.fold(0.0, f64::max) * 1e6;
    let most = number::<f64>(&root.join("sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")).map(|khz| khz * 1e3);
    let clock = most.unwrap_or(now);
    Processor {
        model: values(cpuinfo, "model name").next().map(shown),
        cores: cores(cpuinfo),
        threads: rayon::current_num_threads(),
        quota: quota(&line(&root.join("sys/fs/cgroup/cpu.max")).unwrap_or_default()),
        clock: (1e8..1e11).contains(&clock).then_some(clock),
        kernels: ferrotune_tensor::cpu::features().to_string(),
    }
}

/// Values of a key, one a logical processor.
fn values<'a>(cpuinfo: &'a str, key: &'a str) -> impl Iterator<Item = &'a str> {
    let of_key = move |line: &'a str| line.strip_prefix(key)?.trim_start().strip_prefix(':');
    cpuinfo.lines().filter_map(of_key).map(str::trim)
}

/// Different pairs of socket and core.
fn cores(cpuinfo: &str) -> Option<u32> {
    let sockets = values(cpuinfo, "physical id");
    let pairs: BTreeSet<_> = sockets.zip(values(cpuinfo, "core id")).collect();
    u32::try_from(pairs.len()).ok().filter(|count| *count > 0)
}

pub(super) fn is_virtual(cpuinfo: &str) -> bool {
    values(cpuinfo, "flags").next().is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor"))
}

/// `200000 100000` is two processors; `max 100000` is no limit.
fn quota(text: &str) -> Option<f64> {
    let (time, period) = text.split_once(' ')?;
    let (time, period): (f64, f64) = (time.parse().ok()?, period.parse().ok()?);
    let share = time / period;
    (share.is_finite() && share > 0.0).then_some(share)
}
