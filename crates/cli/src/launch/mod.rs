//! `launch`: starts a run on several hosts over ssh, and shows it on one screen.
//!
//! ```text
//! launch ──ssh──► host 0   launched ──becomes──► train   the same commands as by hand: its agent, its ranks
//!        ├─ssh──► host 1   launched ──becomes──► train
//!        └─ ...            standard input is each one's lifeline: it stops when `launch` has gone
//! ```
//!
//! Hosts need nothing but ssh and a shell: the program is copied there once for each build. The recipe goes with the job;
//! data sets and local model folders have to be there. What each host prints is also kept in a file here.

mod hosts;
mod job;
mod logs;
mod master;
mod remote;
mod watch;
mod words;

pub(crate) use job::launched;

use crate::failure::Failure;
use crate::prepare::{self, Read};
use crate::{environment, ui};
use anyhow::{Context, anyhow};
use ferrotune_config::plan::Plan;
use ferrotune_config::{Verb, env};
use hosts::Host;
use job::Job;
use logs::Log;
use remote::{Program, Shell};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;
use watch::Node;

/// What the command line asks for.
#[derive(Debug, clap::Args)]
pub(crate) struct LaunchArgs {
    /// Hosts, the first of which is the master: host1,user@host2 or host1:8,host2:8 with numbers of processes; a port
    /// of ssh as ssh://host:2222.
    #[arg(short = 'H', long, value_name = "HOST,..", required_unless_present = "hostfile")]
    hosts: Option<String>,
    /// A file with a host a line: `host1 slots=8`.
    #[arg(long, value_name = "FILE", conflicts_with = "hosts")]
    hostfile: Option<PathBuf>,
    /// How hosts are reached.
    #[arg(long, value_name = "COMMAND", default_value = "ssh")]
    ssh: String,
    /// The port at which ranks meet; else MASTER_PORT, else 20000.
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// The first host's address, as the others reach it; else MASTER_ADDR, else what ssh calls it.
    #[arg(long, value_name = "ADDRESS")]
    master_addr: Option<String>,
    /// The folder to work in on every host; else the one of the same path as here.
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
    /// A variable for every node, besides those that the program reads and that are set here.
    #[arg(short = 'x', value_name = "NAME[=VALUE]")]
    variables: Vec<String>,
    /// A recipe (.yaml, .yml, .json), then overrides: `key=value` or `--key value`.
    #[arg(value_name = "RECIPE | KEY=VALUE", trailing_var_arg = true, allow_hyphen_values = true)]
    recipe: Vec<String>,
}

/// Starts a run on all hosts and watches it to its end.
///
/// # Errors
/// If the recipe is wrong, a host can't be used (all that can't are told), or the run fails.
pub(crate) fn launch(args: &LaunchArgs) -> Result<(), Failure> {
    // What is wrong with the recipe is better told here than by every host.
    let read = prepare::read(&args.recipe)?;
    let (plan, _) = Plan::resolve(&read.recipe, Verb::Train)?;
    let hosts = match (&args.hosts, &args.hostfile) {
        (Some(list), _) => hosts::parse_list(list),
        (None, Some(file)) => hosts::read_file(file),
        (None, None) => Err(anyhow!("no hosts are given: -H host1,host2")),
    };
    let (hosts, shell) = (hosts.map_err(Failure::Other)?, Shell::new(&args.ssh).map_err(Failure::Other)?);
    let program = Program::own().map_err(Failure::Other)?;
    prepare_all(&shell, &hosts, &program)?;
    let shared = Shared::new(args, read, &shell, &hosts).map_err(Failure::Other)?;
    let mut nodes = Vec::new();
    for (number, host) in hosts.iter().enumerate() {
        let job = shared.job(number, host, hosts.len());
        let log = Log::open(&plan.output.dir, host.name()).map_err(Failure::Other)?;
        nodes.push(Node::start(&shell, host, &program, &job, log).map_err(Failure::Other)?);
    }
    let (many, master) = (hosts.len(), &hosts[0].target);
    ui::note(&format!("started on {many} hosts; {master} is the master, at {}:{}", shared.master, shared.port));
    // Others find out by themselves that one has gone; who hasn't by then doesn't.
    let watched = watch::watch(nodes, plan.parallel.peer_timeout + Duration::from_secs(20), shared.is_elastic());
    if watched.is_err() {
        ui::note(&format!("what each host printed is in {}", plan.output.dir.join("logs").display()));
    }
    watched
}

/// Brings the program to all hosts at once.
fn prepare_all(shell: &Shell, hosts: &[Host], program: &Program) -> Result<(), Failure> {
    let troubles = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for host in hosts {
            scope.spawn(|| {
                let size = ui::bytes(program.len());
                let copying = || ui::note(&format!("copying this program to {} ({size})", host.target));
                if let Err(error) = shell.prepare(host, program, copying) {
                    let mut troubles = troubles.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    troubles.push(format!("{}: {error:#}", host.target));
                }
            });
        }
    });
    let mut troubles = troubles.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    troubles.sort();
    if troubles.is_empty() {
        return Ok(());
    }
    Err(Failure::Other(anyhow!("nothing was started:\n  {}", troubles.join("\n  "))))
}

/// What all nodes are told alike.
struct Shared {
    folder: PathBuf,
    recipe: Option<(String, String)>,
    arguments: Vec<String>,
    master: String,
    port: u16,
    variables: Vec<(String, String)>,
}

/// Variables that each node gets a value of its own of, or that speak of this machine alone.
const OURS: [&str; 13] = [
    env::FORCE_TORCHRUN,
    env::NNODES,
    env::NODE_RANK,
    env::NPROC_PER_NODE,
    env::MASTER_ADDR,
    env::MASTER_PORT,
    env::RANK,
    env::WORLD_SIZE,
    env::LOCAL_RANK,
    env::LOCAL_WORLD_SIZE,
    env::HOME,
    env::USER,
    env::XDG_CACHE_HOME,
];

impl Shared {
    fn new(args: &LaunchArgs, read: Read, shell: &Shell, hosts: &[Host]) -> anyhow::Result<Self> {
        let own = env::ALL.iter().map(|(name, _)| *name).filter(|name| !OURS.contains(name) && !is_of_a_launcher(name));
        let mut variables: Vec<(String, String)> =
            own.filter_map(|name| Some((name.to_owned(), environment::var(name)?))).collect();
        variables
            .extend(environment::of_nccl().into_iter().filter(|(name, _)| !env::ALL.iter().any(|(n, _)| n == name)));
        for given in &args.variables {
            let (name, value) = match given.split_once('=') {
                Some((name, value)) => (name, value.to_owned()),
                None => (
                    given.as_str(),
                    environment::any_var(given).with_context(|| format!("-x {given}: it is not set here"))?,
                ),
            };
            variables.retain(|(other, _)| other != name);
            variables.push((name.to_owned(), value));
        }
        if !variables.iter().any(|(name, _)| name == env::FERROTUNE_JOB_TOKEN) {
            variables.push((env::FERROTUNE_JOB_TOKEN.to_owned(), remote::token()?));
        }
        let folder = match &args.dir {
            Some(folder) => folder.clone(),
            None => std::env::current_dir().context("this folder has gone")?,
        };
        let (master, port) = (master::address(args, shell, hosts)?, master::port(args)?);
        let recipe = read.file.map(|name| (name, read.written));
        Ok(Self { folder, recipe, arguments: args.recipe.clone(), master, port, variables })
    }

    /// A node's part.
    fn job(&self, number: usize, host: &Host, count: usize) -> Job {
        let mut variables = self.variables.clone();
        let mut set = |name: &str, value: String| variables.push((name.to_owned(), value));
        set(env::FORCE_TORCHRUN, "1".into());
        if !self.is_elastic() {
            set(env::NNODES, count.to_string());
        }
        set(env::NODE_RANK, number.to_string());
        set(env::MASTER_ADDR, self.master.clone());
        set(env::MASTER_PORT, self.port.to_string());
        let processes = host.slots.map(|slots| slots.to_string()).or_else(|| environment::var(env::NPROC_PER_NODE));
        processes.into_iter().for_each(|count| set(env::NPROC_PER_NODE, count));
        let (folder, recipe, arguments) = (self.folder.clone(), self.recipe.clone(), self.arguments.clone());
        Job { program: environment::program(), folder, recipe, arguments, variables }
    }

    /// Whether the run goes on with fewer nodes.
    fn is_elastic(&self) -> bool {
        self.variables.iter().any(|(name, _)| name == env::RDZV_ID)
    }
}

/// Whether a variable is how another launcher speaks to its processes.
fn is_of_a_launcher(name: &str) -> bool {
    ["SLURM_", "OMPI_", "PMI_", "PMIX_", "PET_", "TORCHELASTIC_", "JOB_COMPLETION", "GROUP_", "MV2_"]
        .iter()
        .any(|start| name.starts_with(start))
}
