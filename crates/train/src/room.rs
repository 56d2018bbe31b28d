//! How much memory a rank may have, and of what kind: one for all, or a card's beside the host's.

use crate::engine::Sharding;
use crate::plan::Candidate;
use ferrotune_tensor::Profile;

/// Where a rank's bytes lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// Everything in the processor's memory: so many bytes, if that is known.
    Shared(Option<u64>),
    /// Tensors of a step on a GPU that is here, whose context is there already, communicators are not: so many bytes are free,
    /// if that is known.
    Free(Option<u64>),
    /// Tensors of a step on a card, what is kept or copied apart from them in the host's memory.
    Card {
        /// Bytes that the card shows (`nvidia-smi`): less than it is sold with.
        shown: u64,
        /// A rank's share of the host's memory, if that is known.
        host: Option<u64>,
    },
}

impl Default for Room {
    fn default() -> Self {
        Self::Shared(None)
    }
}

/// What a process takes of a card before its first tensor: CUDA's context with the kernels of its libraries (400 to 550 MiB on
/// Ampere to Hopper, as `nvidia-smi` shows for a process that only began), and cublasLt's workspace (32 MiB).
const CONTEXT: u64 = 600 << 20;
/// Buffers of one NCCL communicator: per channel and peer 4 MiB (`NCCL_BUFFSIZE`) and those of the two protocols for short
/// messages, about 10 MiB, for as many channels as it opens (2 to 4 over PCIe, up to 24 over NVLink): an allowance.
const COMMUNICATOR: u64 = 256 << 20;

/// What a communicator takes more for messages with one rank: a buffer of 4 MiB and those of the protocols for short messages, for
/// the two channels that it has for a peer, with what it takes for itself: an allowance.
const PEER: u64 = 32 << 20;

impl Room {
    /// Bytes of a card that are gone before any tensor of a run that is split so: context, and a communicator for the world and
    /// for each axis of several ranks.
    pub fn taken(split: &Candidate) -> u64 {
        CONTEXT + Self::joined(split)
    }

    /// Bytes of a card that NCCL takes, whose communicators are made when they are first needed. Where experts are spread, a shard
    /// group's has messages with each of its ranks besides its ring.
    pub fn joined(split: &Candidate) -> u64 {
        let layout = split.layout;
        let axes = [layout.world(), layout.shards, layout.stages, layout.replicas];
        let peers = if split.sharded == Sharding::Experts { layout.shards as u64 - 1 } else { 0 };
        COMMUNICATOR * axes.iter().filter(|ranks| **ranks > 1).count() as u64 + PEER * peers
    }

    /// Bytes on the device that computes.
    pub fn device(self) -> Option<u64> {
        match self {
            Self::Shared(available) | Self::Free(available) => available,
            Self::Card { shown, .. } => Some(shown),
        }
    }

    /// Bytes of host memory beside it.
    pub fn host(self) -> Option<u64> {
        match self {
            Self::Shared(_) | Self::Free(_) => None,
            Self::Card { host, .. } => host,
        }
    }

    /// Whether host memory is another memory than the device's.
    pub fn has_own_host(self) -> bool {
        self.profile() == Profile::Cuda
    }

    /// What computes there.
    pub fn profile(self) -> Profile {
        match self {
            Self::Shared(_) => Profile::Cpu,
            Self::Free(_) | Self::Card { .. } => Profile::Cuda,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferrotune_dist::Layout;

    #[test]
    fn more_groups_take_more_of_a_card() {
        let split = |[shards, stages, replicas]: [usize; 3], sharded| {
            let spans = (0..stages).map(|stage| stage..stage + 1).collect();
            Candidate { layout: Layout { shards, stages, replicas }, sharded, spans }
        };
        assert_eq!(Room::taken(&split([1, 1, 1], Sharding::Whole)), 600 << 20);
        assert_eq!(Room::taken(&split([8, 1, 1], Sharding::Weights)), (600 + 512) << 20);
        assert_eq!(Room::taken(&split([8, 1, 2], Sharding::Weights)), (600 + 768) << 20);
        assert_eq!(Room::taken(&split([8, 1, 1], Sharding::Experts)), (600 + 512 + 7 * 32) << 20);
    }
}
