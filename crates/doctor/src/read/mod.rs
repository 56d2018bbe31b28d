//! The machine as the system's files show it, below any root folder, so that tests have machines of their own.
//!
//! Files are never trusted: what isn't there, isn't text, is too long or says nonsense is no fact.

mod bus;
mod files;
mod memory;
mod network;
mod processor;
#[cfg(test)]
mod tests;

use crate::facts::{Disk, Iommu, KernelDriver, Machine};
use files::{child_names, line, text};
use std::path::{Path, PathBuf};

/// Where to look, and what only the program knows.
pub struct Here<'a> {
    /// The root of the file system.
    pub root: &'a Path,
    /// Names and addresses of network interfaces.
    pub addresses: &'a [(String, String)],
    /// Whether a run may use an interface of this name.
    pub allows: &'a dyn Fn(&str) -> bool,
    /// Folders that a run writes to, and what for.
    pub folders: &'a [(&'static str, PathBuf)],
}

/// Reads all of it.
pub fn machine(here: &Here<'_>) -> Machine {
    let root = here.root;
    let cpuinfo = text(&root.join("proc/cpuinfo"));
    let (slots, bridges) = bus::nvidia(root);
    Machine {
        kernel: line(&root.join("proc/sys/kernel/osrelease")),
        container: container(root),
        is_virtual: cpuinfo.as_deref().is_some_and(processor::is_virtual),
        processor: processor::read(root, cpuinfo.as_deref().unwrap_or_default()),
        memory: memory::read(root),
        numa: memory::nodes(root),
        disks: here.folders.iter().filter_map(|(what, folder)| disk(what, folder)).collect(),
        iommu: iommu(root),
        slots,
        bridges,
        driver: driver(root),
        network: network::interfaces(here),
        rdma: network::rdma(root),
    }
}

fn container(root: &Path) -> Option<String> {
    let marks = [
        ("run/secrets/kubernetes.io", "Kubernetes"),
        (".dockerenv", "Docker"),
        ("run/.containerenv", "Podman"),
        ("singularity", "Singularity"),
        (".singularity.d", "Apptainer"),
    ];
    let found = marks.iter().find(|(mark, _)| root.join(mark).symlink_metadata().is_ok());
    found.map(|(_, name)| (*name).to_owned())
}

fn iommu(root: &Path) -> Iommu {
    let asked = text(&root.join("proc/cmdline")).unwrap_or_default();
    let asked = asked.split_whitespace().filter(|word| word.contains("iommu")).map(files::shown).collect();
    Iommu { units: child_names(&root.join("sys/class/iommu")), asked }
}

/// NVIDIA's driver writes `NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  ...`.
fn driver(root: &Path) -> Option<KernelDriver> {
    let told =
        line(&root.join("proc/driver/nvidia/version")).or_else(|| line(&root.join("sys/module/nvidia/version")))?;
    let is_version = |word: &&str| {
        let mut parts = word.split('.');
        let numbers = parts.clone().count() >= 2 && parts.all(|part| !part.is_empty() && part.len() < 6);
        numbers && word.bytes().all(|b| b.is_ascii_digit() || b == b'.')
    };
    let version = told.split_whitespace().find(is_version)?.to_owned();
    let peermem = ["nvidia_peermem", "nv_peer_mem"].iter().any(|name| root.join("sys/module").join(name).is_dir());
    Some(KernelDriver { version, open: told.contains("Open Kernel Module"), peermem })
}

/// The file system of a folder that may not be there yet.
fn disk(what: &str, folder: &Path) -> Option<Disk> {
    let there = folder.ancestors().find(|folder| folder.is_dir())?;
    let (total, free) = memory::space(there)?;
    Some(Disk { what: what.to_owned(), folder: files::shown(&folder.to_string_lossy()), total, free })
}
