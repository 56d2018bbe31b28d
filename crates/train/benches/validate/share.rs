//! Where there are more processes than cores, each gets its share of one and no more: otherwise a process would compute in
//! the time in which another one waits, which no machine with a core for each of them does.

use std::fs;
use std::path::PathBuf;

/// Microseconds in which a process may use its share once.
const PERIOD: usize = 4000;

/// A control group for one process; gone when this is dropped.
pub(crate) struct Share(Option<PathBuf>);

impl Share {
    /// Holds process `pid` to an equal share of this machine's cores among `processes`.
    pub(crate) fn new(pid: u32, processes: usize) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        if processes <= cores {
            return Self(None);
        }
        let quota = PERIOD * cores / processes;
        // Version 2 has one tree, version 1 one for each kind of resource.
        let (root, settings) = if fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap_or(false) {
            ("/sys/fs/cgroup", vec![("cpu.max", format!("{quota} {PERIOD}"))])
        } else {
            let settings = [("cpu.cfs_period_us", PERIOD), ("cpu.cfs_quota_us", quota)];
            ("/sys/fs/cgroup/cpu", settings.map(|(name, value)| (name, value.to_string())).to_vec())
        };
        let group = PathBuf::from(root).join(format!("ferrotune-{pid}"));
        fs::create_dir(&group).expect("this benchmark needs root and control groups");
        for (name, value) in settings {
            fs::write(group.join(name), value).expect("a control group for processors");
        }
        fs::write(group.join("cgroup.procs"), pid.to_string()).expect("the process lives");
        Self(Some(group))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        // What can't be removed is empty, and of no harm.
        if let Some(group) = &self.0 {
            let _ = fs::remove_dir(group);
        }
    }
}
