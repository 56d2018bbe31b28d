//! The NCCL of NVIDIA, where there is a GPU: what one can try of it, as a rank alone.

use super::all_collectives;
use super::gpus::{PATIENCE, over};
use ferrotune_dist::Comm;
use ferrotune_tensor::cuda::{Libraries, Search, Surroundings, nccl};
use std::path::PathBuf;

#[test]
fn one_rank_of_nvidias_nccl() {
    let folder = |name| std::env::var_os(name).map(PathBuf::from);
    let search = Search::new(&Surroundings {
        chosen: folder("FERROTUNE_CUDA_LIBRARIES"),
        conda: folder("CONDA_PREFIX"),
        virtual_env: folder("VIRTUAL_ENV"),
        program: None,
        home: folder("HOME"),
    });
    let Ok(Some(libraries)) = Libraries::find(&search) else { return println!("left out: there is no GPU") };
    let driver = libraries.driver().version().unwrap();
    let Ok(nccl) = nccl::open(&search, driver) else { return println!("left out: there is no NCCL") };
    println!("NCCL {}", nccl.version().unwrap());
    let rank = over((&libraries, &nccl), (0, 0), Vec::new(), PATIENCE);
    [1, 1009, 1 << 20].iter().for_each(|length| all_collectives(&rank.comm, &rank.device, *length));
    rank.device.synchronize().unwrap();
    assert_eq!(rank.comm.ended(), None);
}
