//! Which device this process computes on.

use crate::failure::Failure;
use crate::{environment, ui};
use anyhow::anyhow;
use ferrotune_config::env;
use ferrotune_dist::{NcclRanks, NcclSettings, Ranks};
use ferrotune_tensor::Device;
use ferrotune_tensor::cuda::{Collectives, Libraries, Options, Search, Surroundings, nccl};
use std::path::PathBuf;
use std::time::Duration;

/// Where libraries of CUDA may lie, as far as the environment says.
pub(crate) fn surroundings() -> Surroundings {
    let folder = |name| environment::var(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    Surroundings {
        chosen: folder(env::FERROTUNE_CUDA_LIBRARIES),
        conda: folder(env::CONDA_PREFIX),
        virtual_env: folder(env::VIRTUAL_ENV),
        program: std::env::current_exe().ok(),
        home: environment::home(),
    }
}

/// The GPU of process `local_rank` of this machine, or the processor where there is no GPU or the recipe wants none; told in
/// one line by the first process.
///
/// # Errors
/// If there are GPUs that can't be used, with all that was looked at, or fewer than processes.
pub(crate) fn device(local_rank: usize, use_cpu: bool) -> Result<Device, Failure> {
    if use_cpu {
        return Ok(Device::cpu());
    }
    let told = local_rank == 0;
    let found = Libraries::find(&Search::new(&surroundings()));
    let advice = "`use_cpu: true` trains on the processor instead";
    let Some(libraries) = found.map_err(|error| Failure::Other(anyhow!("{error}\n{advice}")))? else {
        if told {
            ui::say("device: the processor, since there is no NVIDIA GPU");
        }
        return Ok(Device::cpu());
    };
    let refused = |error: ferrotune_tensor::cuda::CallError| Failure::Other(anyhow!("the GPU: {error}; {advice}"));
    let gpus = libraries.devices().map_err(refused)?;
    let Some(about) = gpus.get(local_rank) else {
        return Err(Failure::Other(anyhow!(
            "process {local_rank} of this machine has no GPU of its own: it sees {}. Start as many processes as there are \
             GPUs (NPROC_PER_NODE); {advice}",
            gpus.len()
        )));
    };
    if told {
        let (version, library) = (libraries.driver().version().map_err(refused)?, libraries.blas().library().path());
        ui::say(&format!(
            "device: {} ({}), driver for CUDA {}.{}, {}",
            about.name,
            ui::bytes(about.memory),
            version / 1000,
            version % 1000 / 10,
            library.display()
        ));
    }
    Device::cuda(&libraries, &Options { device: local_rank, ..Options::default() }).map_err(refused)
}

/// How long NCCL may take to bring ranks together, which have met before, and how long one collective may take.
const NCCL_JOINS: Duration = Duration::from_secs(120);
const NCCL_MOVES: Duration = Duration::from_secs(30 * 60);

/// NCCL on a GPU, with its version; `None` on the processor.
///
/// # Errors
/// If there is none that can be used, with all that was looked at.
pub(crate) fn collectives(device: &Device) -> Result<Option<(Collectives, String)>, Failure> {
    if device.gpu().is_none() {
        return Ok(None);
    }
    let refused = |error: ferrotune_tensor::cuda::CallError| Failure::Other(anyhow!("NCCL: {error}"));
    let search = Search::new(&surroundings());
    let libraries = Libraries::find(&search).map_err(|error| Failure::Other(error.into()))?;
    let driver = libraries.map(|libraries| libraries.driver().version()).transpose().map_err(refused)?;
    let nccl = nccl::open(&search, driver.unwrap_or(0)).map_err(|error| Failure::Other(error.into()))?;
    let version = nccl.version().map_err(refused)?;
    Ok(Collectives::new(device, nccl).map_err(refused)?.map(|collectives| (collectives, version)))
}

/// Ranks that NCCL joins beside the connections that they have. `patience` is the user's with missing ranks.
///
/// # Errors
/// If the system gives no thread.
pub(crate) fn joined(ranks: &Ranks, collectives: Collectives, patience: Duration) -> Result<NcclRanks, Failure> {
    let settings = NcclSettings { join_timeout: patience.min(NCCL_JOINS), collective_timeout: NCCL_MOVES };
    Ok(NcclRanks::start(ranks.clone(), collectives, settings)?)
}
