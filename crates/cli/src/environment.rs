//! The only place that reads the environment; everything else gets values.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::SystemTime;

/// A variable of the program's own tables, if it is set and is text.
pub(crate) fn var(name: &str) -> Option<String> {
    debug_assert!(ferrotune_config::env::is_known(name), "{name} is read and is not in the table of variables");
    any_var(name)
}

/// A variable that the user names, if it is set and is text.
pub(crate) fn any_var(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Variables that NCCL reads by itself, of which there are dozens.
pub(crate) fn of_nccl() -> Vec<(String, String)> {
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok().filter(|name| name.starts_with("NCCL_"))?, value.into_string().ok()?))
    };
    let mut found: Vec<_> = std::env::vars_os().filter_map(text).collect();
    found.sort();
    found
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

/// Bytes of memory that this process has resident now, and the most that it ever had.
pub(crate) fn resident() -> Option<(u64, u64)> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let read = |name: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
    };
    Some((read("VmRSS:")?, read("VmHWM:")?))
}

/// This machine's name, as people know it.
pub(crate) fn host() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() { "this machine".to_owned() } else { name }
}

/// Number of the process that started this one.
pub(crate) fn parent() -> u32 {
    std::os::unix::process::parent_id()
}

/// Seconds since 1970, with their fraction.
pub(crate) fn now() -> f64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0.0, |time| time.as_secs_f64())
}

/// Seconds since 1970.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_secs())
}

/// This very program, called with other words, even if its file was replaced since.
pub(crate) fn itself() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0(program());
    command
}

/// This very program, called as this process was, even if its file was replaced since.
pub(crate) fn again() -> Command {
    let mut command = itself();
    command.args(std::env::args_os().skip(1));
    command
}
