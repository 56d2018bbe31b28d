//! Which device this process computes on.

use crate::failure::Failure;
use crate::{environment, ui};
use anyhow::anyhow;
use ferrotune_config::env;
use ferrotune_tensor::Device;
use ferrotune_tensor::cuda::{Libraries, Options, Search, Surroundings};
use std::path::PathBuf;

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
