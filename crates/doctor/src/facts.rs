//! What was found, as plain structures: all that rules and words know. `--format json` prints them.
//!
//! `None` is what couldn't be found out: a file that isn't there or can't be read is no fact.

use serde::{Deserialize, Serialize};

/// All of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// The program and what it runs on.
    pub machine: Machine,
    /// GPUs, and the libraries that they need.
    pub gpus: Gpus,
    /// What was tried, and how it went.
    pub trials: Vec<Trial>,
}

/// A machine as the system's files show it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Release of the kernel.
    pub kernel: Option<String>,
    /// The container that this runs in: `docker`, `kubernetes` and so on.
    pub container: Option<String>,
    /// Whether the processor says that it is a virtual machine's.
    pub is_virtual: bool,
    /// The processor.
    pub processor: Processor,
    /// Memory.
    pub memory: Memory,
    /// Nodes of memory, with the processors close to each.
    pub numa: Vec<Node>,
    /// Folders that a run writes to.
    pub disks: Vec<Disk>,
    /// Whether and how devices see memory through a translation.
    pub iommu: Iommu,
    /// NVIDIA's display devices and accelerators on the bus, whether or not a driver knows them.
    pub slots: Vec<Slot>,
    /// Bridges above them.
    pub bridges: Vec<Bridge>,
    /// NVIDIA's kernel driver.
    pub driver: Option<KernelDriver>,
    /// Network interfaces.
    pub network: Vec<Interface>,
    /// Ports of InfiniBand or RoCE.
    pub rdma: Vec<RdmaPort>,
}

/// A processor.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Processor {
    /// Its maker's name of it.
    pub model: Option<String>,
    /// Cores, without their second threads.
    pub cores: Option<u32>,
    /// Threads that the program uses.
    pub threads: usize,
    /// Processors' worth of time that the container may use.
    pub quota: Option<f64>,
    /// The highest clock, Hz, or the present one where the system tells no other.
    pub clock: Option<f64>,
    /// Instructions that the program's kernels use.
    pub kernels: String,
}

/// Memory, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// All.
    pub total: Option<u64>,
    /// What may still be taken, within the container's limit.
    pub available: Option<u64>,
    /// The container's limit.
    pub limit: Option<u64>,
    /// Size of `/dev/shm`, and what of it is free.
    pub shm: Option<(u64, u64)>,
    /// Most that a process may pin.
    pub pinned: Option<u64>,
}

/// A node of memory.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Its number.
    pub number: u32,
    /// Its processors, as the system writes lists: `0-15,32-47`.
    pub processors: String,
    /// Bytes.
    pub memory: Option<u64>,
}

/// A file system that a run writes to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Disk {
    /// What for.
    pub what: String,
    /// A folder on it.
    pub folder: String,
    /// Bytes, and how many of them this user may still write.
    pub total: u64,
    /// See `total`.
    pub free: u64,
}

/// The translation of devices' addresses.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Iommu {
    /// Units that are in use.
    pub units: Vec<String>,
    /// What the kernel was asked at its start.
    pub asked: Vec<String>,
}

/// An NVIDIA device on the bus.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Slot {
    /// Its address, as `0000:17:00.0`.
    pub address: String,
    /// Addresses of bridges from the host's on down to it; the first is the host bridge, as `pci0000:16`.
    pub above: Vec<String>,
    /// Node of memory that it is close to.
    pub node: Option<u32>,
    /// Its link now.
    pub link: Option<PciLink>,
    /// The most that it can.
    pub most: Option<PciLink>,
    /// How its addresses are translated: `identity` is not at all.
    pub translation: Option<String>,
}

/// A link of PCI Express.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct PciLink {
    /// Transfers a second of a lane.
    pub transfers: f64,
    /// Lanes.
    pub lanes: u32,
}

/// A bridge above an NVIDIA device.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Bridge {
    /// Its address.
    pub address: String,
    /// Its Access Control Services.
    pub acs: Acs,
}

/// Access Control Services of a bridge, which may send peers' traffic up to the processor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Acs {
    /// Only root may read the part of its configuration that says so.
    #[default]
    Unreadable,
    /// It has none.
    None,
    /// It has them, switched off.
    Off,
    /// Requests or completions between peers are sent up.
    Redirects,
}

/// NVIDIA's kernel driver.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct KernelDriver {
    /// Such as 550.54.15.
    pub version: String,
    /// Whether it is the open one.
    pub open: bool,
    /// Whether network cards may reach GPUs' memory (`nvidia_peermem`).
    pub peermem: bool,
}

/// A network interface.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// Whether it is up.
    pub up: bool,
    /// Bits a second, where its driver tells.
    pub speed: Option<f64>,
    /// Most bytes of a packet.
    pub mtu: Option<u32>,
    /// Whether it has hardware of its own.
    pub is_device: bool,
    /// Whether a run may use it, by NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME.
    pub allowed: bool,
}

/// A port of InfiniBand or RoCE.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RdmaPort {
    /// Device and port, as `mlx5_0:1`.
    pub name: String,
    /// `ACTIVE` when it works.
    pub state: String,
    /// `InfiniBand` or `Ethernet`.
    pub layer: String,
    /// Bits a second.
    pub rate: Option<f64>,
}

/// GPUs and their libraries.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Gpus {
    /// Each library that is looked for.
    pub libraries: Vec<Library>,
    /// Newest CUDA that the driver runs: 1000 major + 10 minor.
    pub cuda: Option<i32>,
    /// Why the driver can't be used, though it is there.
    pub refused: Option<String>,
    /// GPUs that the process may see.
    pub devices: Vec<Gpu>,
    /// Each ordered pair of them.
    pub pairs: Vec<Pair>,
}

/// A library.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Library {
    /// As people call it.
    pub name: String,
    /// Its file and version, if one can be used.
    pub found: Option<Found>,
    /// Files of its name that can't be, with the reason.
    pub unusable: Vec<(String, String)>,
    /// Places without one; empty if it was found.
    pub empty: Vec<String>,
    /// What brings it.
    pub cure: String,
}

/// A library's file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// Where it is.
    pub file: String,
    /// What it says of itself.
    pub version: Option<String>,
}

/// A GPU.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Gpu {
    /// Its number, among those that the process may see.
    pub number: usize,
    /// NVIDIA's name of it.
    pub name: String,
    /// Bytes.
    pub memory: u64,
    /// Compute capability.
    pub capability: (i32, i32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Hz at the most.
    pub clock: Option<f64>,
    /// Whether its memory corrects errors.
    pub ecc: Option<bool>,
    /// Whether only one process, or none, may use it: `exclusive`, `prohibited`.
    pub mode: Option<String>,
    /// Its address on the bus, in the system's small letters.
    pub address: String,
    /// What its management library says.
    pub health: Option<Health>,
}

/// What NVML says of a GPU.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// NVLinks that are up.
    pub nvlinks: u32,
    /// Errors of its memory since the driver was loaded that couldn't be corrected.
    pub uncorrected: Option<u64>,
    /// Why its clock is held back now, in words.
    pub held_back: Vec<String>,
    /// Watts that it may take, and that it was sold with.
    pub watts: Option<(f64, f64)>,
    /// Whether it is cut into parts.
    pub mig: Option<bool>,
}

/// An ordered pair of GPUs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// Whose memory is read.
    pub from: usize,
    /// By whom.
    pub to: usize,
    /// Whether the driver lets one reach the other's memory.
    pub access: bool,
    /// Whether atomic operations work on the other's memory, as over NVLink alone.
    pub atomics: bool,
    /// The way between them.
    pub way: Way,
}

/// The way between two GPUs, as `nvidia-smi topo -m` names it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// The bus doesn't say.
    #[default]
    Unknown,
    /// NVLink.
    Nvlink,
    /// One switch of PCI Express.
    Switch,
    /// Several switches.
    Switches,
    /// The host bridge.
    HostBridge,
    /// Host bridges of one node of memory.
    Node,
    /// The link between two processors.
    System,
}

/// Something that was tried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// What.
    pub what: What,
    /// Of which size.
    pub size: String,
    /// How it went.
    pub outcome: Outcome,
}

/// What is tried. GPUs by their numbers; `None` is the processor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// A product of matrices, bf16 or f32.
    Product {
        /// Where.
        gpu: Option<usize>,
        /// Type of the operands.
        dtype: String,
    },
    /// Causal attention in bf16.
    Attention {
        /// Where.
        gpu: Option<usize>,
    },
    /// Forward and backward pass of the same, for the gradients.
    AttentionGradients {
        /// Where.
        gpu: Option<usize>,
    },
    /// A copy from one GPU to another.
    Copy {
        /// Whose memory is read.
        from: usize,
        /// Whose is written.
        to: usize,
    },
    /// A sum over all GPUs by NCCL.
    AllReduce {
        /// How many.
        ranks: usize,
        /// Whether NCCL may copy directly; else it has `NCCL_P2P_DISABLE=1`.
        direct: bool,
    },
}

/// How it went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The values are right.
    Right {
        /// Operations or bytes a second.
        rate: f64,
        /// Whether so large a piece of work tells what the hardware can.
        telling: bool,
    },
    /// The values are wrong.
    Wrong(String),
    /// A call failed, or the process ended.
    Failed(String),
    /// Nothing came of it in so many seconds.
    Hung(f64),
    /// It wasn't tried, for this reason.
    Skipped(String),
}

impl Gpus {
    /// Whether a library can be used.
    pub fn has(&self, library: &str) -> bool {
        self.library(library).is_some_and(|library| library.found.is_some())
    }

    /// What is known of a library.
    pub fn library(&self, name: &str) -> Option<&Library> {
        self.libraries.iter().find(|library| library.name == name)
    }

    /// The pair, if the driver told of it.
    pub fn pair(&self, from: usize, to: usize) -> Option<&Pair> {
        self.pairs.iter().find(|pair| (pair.from, pair.to) == (from, to))
    }
}

impl Machine {
    /// The device at an address.
    pub fn slot(&self, address: &str) -> Option<&Slot> {
        self.slots.iter().find(|slot| slot.address == address)
    }
}

impl PciLink {
    /// Bytes a second in one direction, less what the encoding of lines takes.
    pub fn bandwidth(&self) -> f64 {
        let efficiency = if self.transfers <= 5e9 { 0.8 } else { 128.0 / 130.0 };
        self.transfers * efficiency * f64::from(self.lanes) / 8.0
    }
}
