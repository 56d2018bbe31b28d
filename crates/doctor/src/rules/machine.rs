//! The machine around GPUs: shared memory, threads, disks, network.

use super::{Finding, Weight, listed};
use crate::facts::{Facts, Interface};

/// Shared memory that NCCL may take a GPU, where peers can't reach each other: its buffers are some MiB a channel and peer.
const SHM_A_GPU: u64 = 64 << 20;
/// Free bytes of a disk that the smallest run needs for its checkpoints.
const DISK: u64 = 1 << 30;
/// Pinned memory that network cards need.
const PINNED: u64 = 1 << 30;

pub(super) fn judge(facts: &Facts, found: &mut Vec<Finding>) {
    shared_memory(facts, found);
    processor(facts, found);
    for disk in facts.machine.disks.iter().filter(|disk| disk.free < DISK) {
        let what = format!("{} MiB are left on the disk of {} ({})", disk.free >> 20, disk.folder, disk.what);
        found.push(Finding::new(Weight::Advice, "disk-full", what, "make room, or name another folder"));
    }
    network(&facts.machine.network, found);
    rdma(facts, found);
}

fn shared_memory(facts: &Facts, found: &mut Vec<Finding>) {
    let gpus = facts.gpus.devices.len() as u64;
    let Some((_, free)) = facts.machine.memory.shm.filter(|_| gpus > 1) else { return };
    if free < gpus * SHM_A_GPU {
        let what =
            format!("/dev/shm has {} MiB; NCCL may need {} for {gpus} GPUs", free >> 20, (gpus * SHM_A_GPU) >> 20);
        let cure = match facts.machine.container.as_deref() {
            Some("Kubernetes") => "mount an `emptyDir` with `medium: Memory` on /dev/shm",
            Some(_) => "start the container with `--shm-size=1g` or `--ipc=host`",
            None => "`sudo mount -o remount,size=8g /dev/shm`",
        };
        found.push(Finding::new(Weight::Problem, "shm-small", what, cure));
    }
}

fn processor(facts: &Facts, found: &mut Vec<Finding>) {
    let processor = &facts.machine.processor;
    if let Some(quota) = processor.quota.filter(|quota| *quota + 0.5 < processor.threads as f64) {
        let what = format!("{} threads share the {quota:.1} processors that the container may use", processor.threads);
        let cure = format!("RAYON_NUM_THREADS={:.0}, or a larger share", quota.max(1.0).round());
        found.push(Finding::new(Weight::Advice, "threads-many", what, cure));
    }
    if processor.kernels == "portable" && cfg!(target_arch = "x86_64") {
        let what = "the processor shows neither AVX-512 nor AVX2: kernels take the slowest way";
        let cure = "in a virtual machine, give it the host's processor (`-cpu host`)";
        found.push(Finding::new(Weight::Note, "kernels-portable", what, cure));
    }
}

fn network(interfaces: &[Interface], found: &mut Vec<Finding>) {
    let others: Vec<&Interface> = interfaces.iter().filter(|interface| interface.name != "lo").collect();
    let usable = interfaces.iter().any(|interface| interface.allowed && !interface.addresses.is_empty());
    if !usable && !interfaces.is_empty() {
        let names: Vec<String> = others.iter().map(|interface| interface.name.clone()).collect();
        let what = format!(
            "NCCL_SOCKET_IFNAME (or GLOO_SOCKET_IFNAME) leaves no interface with an address; there are {}",
            listed(&names)
        );
        found.push(Finding::new(Weight::Problem, "network-none", what, "name one of them, or unset it"));
    }
    let down: Vec<String> = others
        .iter()
        .filter(|interface| {
            interface.allowed && interface.is_device && !interface.up && !interface.addresses.is_empty()
        })
        .map(|interface| interface.name.clone())
        .collect();
    if !down.is_empty() {
        let what = format!("{} is down, though it has an address and a run may use it", listed(&down));
        let cure = "`ip link` shows it; leave it out with NCCL_SOCKET_IFNAME=^NAME";
        found.push(Finding::new(Weight::Advice, "network-down", what, cure));
    }
}

fn rdma(facts: &Facts, found: &mut Vec<Finding>) {
    let machine = &facts.machine;
    if facts.gpus.devices.is_empty() || machine.rdma.is_empty() {
        return;
    }
    let down: Vec<String> =
        machine.rdma.iter().filter(|port| port.state != "ACTIVE").map(|port| port.name.clone()).collect();
    if down.len() == machine.rdma.len() {
        let what = format!("no port of InfiniBand or RoCE is active ({})", listed(&down));
        let cure = "look at cable and switch (`ibstat`); NCCL goes over TCP meanwhile";
        found.push(Finding::new(Weight::Advice, "rdma-down", what, cure));
        return;
    }
    if machine.driver.as_ref().is_some_and(|driver| !driver.peermem) {
        let what = "network cards can't reach GPUs' memory: the module nvidia_peermem isn't loaded";
        found.push(Finding::new(Weight::Advice, "peermem-missing", what, "`sudo modprobe nvidia-peermem`"));
    }
    if let Some(pinned) = machine.memory.pinned.filter(|pinned| *pinned < PINNED) {
        let what = format!("a process may pin {} MiB of memory, which network cards need more of", pinned >> 20);
        found.push(Finding::new(
            Weight::Advice,
            "pinned-little",
            what,
            "`ulimit -l unlimited`; in a container, `--ulimit memlock=-1`",
        ));
    }
}
