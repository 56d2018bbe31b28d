//! Names that are easily typed for a launcher's variables, and that nothing reads.

use super::reader::Reader;
use crate::env;

/// What is typed, and what is meant.
const SLIPS: &[(&str, &str)] = &[
    ("NNODE", env::NNODES),
    ("NODES", env::NNODES),
    ("NUM_NODES", env::NNODES),
    ("N_NODES", env::NNODES),
    ("NODERANK", env::NODE_RANK),
    ("NODES_RANK", env::NODE_RANK),
    ("NODE_RANKS", env::NODE_RANK),
    ("MACHINE_RANK", env::NODE_RANK),
    ("MASTER_ADDRESS", env::MASTER_ADDR),
    ("MASTER_ADR", env::MASTER_ADDR),
    ("MASTER_HOST", env::MASTER_ADDR),
    ("MASTER_IP", env::MASTER_ADDR),
    ("MASTERPORT", env::MASTER_PORT),
    ("NPROC", env::NPROC_PER_NODE),
    ("NPROCS_PER_NODE", env::NPROC_PER_NODE),
    ("NPROC_PER_NODES", env::NPROC_PER_NODE),
    ("NUM_PROC_PER_NODE", env::NPROC_PER_NODE),
    ("FORCE_TORCH_RUN", env::FORCE_TORCHRUN),
    ("CUDA_VISIBLE_DEVICE", env::CUDA_VISIBLE_DEVICES),
];

/// Whether a name is one of them.
pub(crate) fn is_one(name: &str) -> bool {
    SLIPS.iter().any(|(typed, _)| *typed == name)
}

/// Notes those that are set where what is meant isn't: others may set them for purposes of their own, so it is no error.
pub(super) fn note(r: &mut Reader<'_>) {
    for (typed, meant) in SLIPS {
        if r.is_set(typed) && !r.is_set(meant) {
            r.note(typed, "is set, and nothing reads it", &format!("did you mean {meant}?"));
        }
    }
}
