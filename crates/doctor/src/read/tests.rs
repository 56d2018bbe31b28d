//! Machines of paper: a server of NVLinks, one of PCI Express, and files that say nonsense.

use super::bus::acs;
use super::{Here, machine};
use crate::facts::{Acs, Machine};
use std::fs;

/// Files and folders below a root.
struct Root(tempfile::TempDir);

impl Root {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, path: &str, bytes: impl AsRef<[u8]>) -> &Self {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
        self
    }

    /// A device of the bus below others, as `pci0000:16/0000:16:01.0/0000:17:00.0`.
    fn device(&self, place: &str, files: &[(&str, &str)]) -> &Self {
        let name = place.rsplit('/').next().unwrap();
        for (file, text) in files {
            self.file(&format!("sys/devices/{place}/{file}"), text);
        }
        let bus = self.0.path().join("sys/bus/pci/devices");
        fs::create_dir_all(&bus).unwrap();
        std::os::unix::fs::symlink(format!("../../../devices/{place}"), bus.join(name)).unwrap();
        self
    }

    fn read(&self) -> Machine {
        let addresses = [("eth0".to_owned(), "10.0.0.7".to_owned())];
        machine(&Here { root: self.0.path(), addresses: &addresses, allows: &|name| name != "docker0", folders: &[] })
    }
}

/// Configuration whose extended part begins with a capability of another kind and has Access Control Services next.
fn configuration(control: u16) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    bytes[256..260].copy_from_slice(&(0x0001u32 | 1 << 16 | 0x148 << 20).to_le_bytes());
    bytes[0x148..0x14c].copy_from_slice(&(0x000du32 | 1 << 16).to_le_bytes());
    bytes[0x14e..0x150].copy_from_slice(&control.to_le_bytes());
    bytes
}

const GPU: [(&str, &str); 7] = [
    ("vendor", "0x10de\n"),
    ("class", "0x030200\n"),
    ("numa_node", "1\n"),
    ("current_link_speed", "2.5 GT/s PCIe\n"),
    ("current_link_width", "8\n"),
    ("max_link_speed", "16.0 GT/s PCIe\n"),
    ("max_link_width", "16\n"),
];

#[test]
fn a_server_of_pci_express_is_read() {
    let root = Root::new();
    root.device("pci0000:16/0000:16:01.0/0000:17:00.0", &GPU)
        .device("pci0000:16/0000:16:03.0/0000:2a:00.0", &GPU)
        .device("pci0000:16/0000:16:01.0", &[("vendor", "0x8086\n"), ("class", "0x060400\n")])
        .device("pci0000:16/0000:16:03.0", &[("vendor", "0x8086\n"), ("class", "0x060400\n")])
        .device("pci0000:00/0000:00:1f.0", &[("vendor", "0x10de\n"), ("class", "0x068000\n")]);
    root.file("sys/devices/pci0000:16/0000:16:01.0/config", configuration(0x1d));
    root.file("sys/devices/pci0000:16/0000:16:03.0/config", &configuration(0)[..64]);
    root.file("sys/devices/pci0000:16/0000:16:01.0/0000:17:00.0/iommu_group/type", "DMA-FQ\n");
    root.file("proc/cmdline", "quiet intel_iommu=on iommu=strict\n").file("sys/class/iommu/dmar0/x", "");
    root.file(
        "proc/driver/nvidia/version",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\nGCC version:  gcc 12.2.0\n",
    );
    let machine = root.read();
    assert_eq!(machine.slots.len(), 2, "a bridge of NVIDIA's is no GPU");
    let slot = machine.slot("0000:17:00.0").unwrap();
    assert_eq!(slot.above, ["pci0000:16", "0000:16:01.0"]);
    assert_eq!((slot.node, slot.link.unwrap().lanes, slot.most.unwrap().transfers), (Some(1), 8, 16e9));
    assert_eq!(slot.translation.as_deref(), Some("DMA-FQ"));
    assert!((slot.most.unwrap().bandwidth() / 1e9 - 31.5).abs() < 0.05);
    let acs: Vec<_> = machine.bridges.iter().map(|bridge| (bridge.address.as_str(), bridge.acs)).collect();
    assert_eq!(acs, [("0000:16:01.0", Acs::Redirects), ("0000:16:03.0", Acs::Unreadable)]);
    assert_eq!(machine.iommu.units, ["dmar0"]);
    assert_eq!(machine.iommu.asked, ["intel_iommu=on", "iommu=strict"]);
    let driver = machine.driver.unwrap();
    assert!(driver.open && driver.version == "570.86.15" && !driver.peermem);
}

#[test]
fn processor_memory_and_network_are_read() {
    let root = Root::new();
    let cpu = |core: u32| {
        format!(
            "processor\t: 0\nmodel name\t: A Processor\nphysical id\t: 0\ncore id\t\t: {core}\ncpu MHz\t\t: 2400.0\nflags\t\t: fpu \
             hypervisor avx2\n\n"
        )
    };
    root.file("proc/cpuinfo", cpu(0) + &cpu(0) + &cpu(1)).file("sys/fs/cgroup/cpu.max", "150000 100000\n");
    root.file("proc/meminfo", "MemTotal:       1048576 kB\nMemAvailable:    524288 kB\n");
    root.file("sys/fs/cgroup/memory.max", "268435456\n").file("sys/fs/cgroup/memory.current", "67108864\n");
    root.file(
        "proc/self/limits",
        "Limit  Soft  Hard  Units\nMax locked memory         8388608    unlimited     bytes\n",
    );
    root.file("sys/devices/system/node/node1/cpulist", "8-15\n").file("sys/devices/system/node/node0/cpulist", "0-7\n");
    root.file("sys/devices/system/node/node0/meminfo", "Node 0 MemTotal:       1024 kB\nNode 0 MemFree: 1 kB\n");
    root.file("sys/class/net/eth0/operstate", "up\n").file("sys/class/net/eth0/speed", "100000\n");
    root.file("sys/class/net/eth0/device/vendor", "0x15b3\n").file("sys/class/net/docker0/speed", "-1\n");
    root.file("sys/class/infiniband/mlx5_0/ports/1/state", "4: ACTIVE\n");
    root.file("sys/class/infiniband/mlx5_0/ports/1/rate", "400 Gb/sec (4X NDR)\n");
    root.file("sys/class/infiniband/mlx5_0/ports/1/link_layer", "InfiniBand\n").file(".dockerenv", "");
    let machine = root.read();
    let processor = &machine.processor;
    assert_eq!((processor.model.as_deref(), processor.cores), (Some("A Processor"), Some(2)));
    assert_eq!((processor.clock, processor.quota, machine.is_virtual), (Some(2.4e9), Some(1.5), true));
    assert_eq!((machine.memory.total, machine.memory.limit), (Some(1 << 30), Some(256 << 20)));
    assert_eq!((machine.memory.available, machine.memory.pinned), (Some(192 << 20), Some(8 << 20)));
    let nodes: Vec<_> = machine.numa.iter().map(|node| (node.number, node.processors.as_str(), node.memory)).collect();
    assert_eq!(nodes, [(0, "0-7", Some(1 << 20)), (1, "8-15", None)]);
    let [docker, eth] = &machine.network[..] else { panic!("{:?}", machine.network) };
    assert!(!docker.allowed && docker.speed.is_none() && !docker.up);
    assert_eq!((eth.addresses[0].as_str(), eth.speed, eth.is_device, eth.up), ("10.0.0.7", Some(100e9), true, true));
    let port = &machine.rdma[0];
    assert_eq!((port.name.as_str(), port.state.as_str(), port.rate), ("mlx5_0:1", "ACTIVE", Some(400e9)));
    assert_eq!(machine.container.as_deref(), Some("Docker"));
}

#[test]
fn nothing_and_nonsense_are_no_facts() {
    let empty = Root::new().read();
    assert_eq!(
        Machine { processor: Default::default(), ..empty },
        Machine { processor: Default::default(), ..Machine::default() }
    );
    let root = Root::new();
    let mut odd = GPU.to_vec();
    odd[2..].iter_mut().for_each(|(_, text)| *text = "99999999999999999999 \u{1b}[31m GT/s");
    root.device("pci0000:16/0000:17:00.0", &odd);
    let binary: &[u8] = &[0xff, 0xfe, 0];
    for file in ["proc/cpuinfo", "proc/meminfo", "proc/cmdline", "proc/driver/nvidia/version", "sys/fs/cgroup/cpu.max"]
    {
        root.file(file, binary);
    }
    root.file("sys/class/net/eth0/speed", "1e300\n").file("sys/devices/system/node/nodeX/cpulist", "\n");
    let machine = root.read();
    let slot = &machine.slots[0];
    assert!(slot.node.is_none() && slot.link.is_none() && slot.most.is_none());
    assert!(machine.driver.is_none() && machine.numa.is_empty() && machine.network[0].speed.is_none());
    // A folder where a file should be, and a link in a circle.
    let root = Root::new();
    root.file("proc/cpuinfo/inside", "");
    std::os::unix::fs::symlink("meminfo", root.0.path().join("proc/meminfo")).unwrap();
    assert!(root.read().memory.total.is_none());
}

#[test]
fn capabilities_are_followed_and_never_in_circles() {
    assert_eq!(acs(&[]), Acs::Unreadable);
    assert_eq!(acs(&[0; 64]), Acs::Unreadable);
    assert_eq!(acs(&[0; 4096]), Acs::None);
    assert_eq!(acs(&[0xff; 4096]), Acs::None, "a device that doesn't answer reads as ones");
    assert_eq!(acs(&configuration(0)), Acs::Off);
    assert_eq!(acs(&configuration(0b1)), Acs::Off, "source validation alone redirects nothing");
    assert_eq!(acs(&configuration(0b100)), Acs::Redirects);
    assert_eq!(acs(&configuration(0b1000)), Acs::Redirects);
    // Cut off inside the capability.
    assert_eq!(acs(&configuration(0b100)[..0x14e]), Acs::Unreadable);
    let mut circle = configuration(0b100);
    circle[0x148..0x14c].copy_from_slice(&(0x0002u32 | 1 << 16 | 0x100 << 20).to_le_bytes());
    assert_eq!(acs(&circle), Acs::None);
    // Chains to everywhere.
    for seed in 0..2000u32 {
        let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
        let random = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as u8
        });
        let bytes: Vec<u8> = random.take(256 + (seed as usize * 7) % 3840).collect();
        acs(&bytes);
    }
}
