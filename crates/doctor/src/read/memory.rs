//! Memory, its nodes, and room on file systems.

use super::files::{child_names, line, number, text};
use crate::facts::{Memory, Node};
use std::path::Path;

pub(super) fn read(root: &Path) -> Memory {
    let info = text(&root.join("proc/meminfo")).unwrap_or_default();
    let limit = number::<u64>(&root.join("sys/fs/cgroup/memory.max"));
    let used = number::<u64>(&root.join("sys/fs/cgroup/memory.current")).unwrap_or(0);
    let available = kib(&info, "MemAvailable:");
    let left = limit.map(|limit| limit.saturating_sub(used));
    let shm = root.join("dev/shm");
    Memory {
        total: kib(&info, "MemTotal:"),
        available: match (available, left) {
            (Some(available), Some(left)) => Some(available.min(left)),
            (available, left) => available.or(left),
        },
        limit,
        shm: shm.is_dir().then(|| space(&shm)).flatten(),
        pinned: pinned(&text(&root.join("proc/self/limits")).unwrap_or_default()),
    }
}

/// Bytes of a line such as `MemTotal: 263748 kB`.
fn kib(info: &str, key: &str) -> Option<u64> {
    let rest = info.lines().find_map(|line| line.trim_start().strip_prefix(key))?;
    rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// `Max locked memory  8388608  8388608  bytes`; `u64::MAX` where there is no limit.
fn pinned(limits: &str) -> Option<u64> {
    let rest = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    let soft = rest.split_whitespace().next()?;
    if soft == "unlimited" { Some(u64::MAX) } else { soft.parse().ok() }
}

/// Nodes of memory.
pub(super) fn nodes(root: &Path) -> Vec<Node> {
    let folder = root.join("sys/devices/system/node");
    let of = |name: String| {
        let (number, node) = (name.strip_prefix("node")?.parse().ok()?, folder.join(&name));
        let info = text(&node.join("meminfo")).unwrap_or_default();
        // `Node 0 MemTotal:  131868 kB`.
        let own = info.lines().filter_map(|line| line.split_once("MemTotal:")).map(|(_, rest)| rest).next();
        let memory = own.and_then(|rest| kib(&format!("MemTotal:{rest}"), "MemTotal:"));
        Some(Node { number, processors: line(&node.join("cpulist")).unwrap_or_default(), memory })
    };
    let mut nodes: Vec<Node> = child_names(&folder).into_iter().filter_map(of).collect();
    nodes.sort_by_key(|node| node.number);
    nodes
}

/// Bytes of a file system, and those that this user may still write.
pub(super) fn space(folder: &Path) -> Option<(u64, u64)> {
    let found = rustix::fs::statvfs(folder).ok()?;
    Some((found.f_blocks.checked_mul(found.f_frsize)?, found.f_bavail.checked_mul(found.f_frsize)?))
}
