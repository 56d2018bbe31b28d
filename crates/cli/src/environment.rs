//! The only place that reads the environment; everything else gets values.

use std::path::PathBuf;

/// A variable, if it is set and is text.
pub(crate) fn var(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// The user's home folder.
pub(crate) fn home() -> Option<PathBuf> {
    var(ferrotune_config::env::HOME).filter(|home| !home.is_empty()).map(PathBuf::from)
}

/// How the program was called, for commands to go on with: a build's own path where it isn't on the search path.
pub(crate) fn program() -> String {
    std::env::args().next().filter(|name| !name.is_empty()).unwrap_or_else(|| "ferrotune".to_owned())
}

/// Bytes of memory that this process may still take: what the system has available, within the limit of its container.
pub(crate) fn available_memory() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    let read = |file: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{file}")).ok()?.trim().parse::<u64>().ok();
    let limit = read("memory.max").map(|max| max.saturating_sub(read("memory.current").unwrap_or(0)));
    Some((kib * 1024).min(limit.unwrap_or(u64::MAX)))
}
