//! The ranks of a run: whether this process is one of several, how they meet, and what they make sure of before weights are
//! read.

use crate::failure::Failure;
use crate::prepare::Resolved;
use crate::{environment, liveness, ui};
use anyhow::anyhow;
use ferrotune_config::env;
use ferrotune_config::launcher::{Agent, Launch, Nodes, Role, Worker};
use ferrotune_data::prepare::Prepared;
use ferrotune_dist::rendezvous::{Allowed, Claim, Facts, JoinEvent, JoinSettings, Member, Patience, Seat, Token, join};
use ferrotune_dist::{Comm, Pulse, Solo};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

/// This process among the ranks of its run.
pub(crate) struct World {
    /// All ranks.
    pub(crate) comm: Rc<dyn Comm>,
    /// This process on its machine, from 0.
    pub(crate) local_rank: usize,
    /// Processes on a machine.
    pub(crate) per_node: usize,
    /// Ranks whose rows make a step, where machines come and go: as many as there may be.
    pub(crate) ranks_of_a_step: Option<usize>,
    /// The machine of each rank.
    hosts: Vec<String>,
}

/// Bytes of a file that are looked at whole; of longer ones, as many again in pieces.
const WHOLE: u64 = 4 << 20;
/// Pieces of a long file.
const PIECES: u64 = 64;

impl World {
    /// One process.
    fn solo() -> Self {
        Self { comm: Rc::new(Solo::default()), local_rank: 0, per_node: 1, ranks_of_a_step: None, hosts: Vec::new() }
    }

    /// Meets the other ranks, if there are any.
    ///
    /// # Errors
    /// If the run can't start, with the reason; all ranks that were reached get the same one.
    pub(crate) fn join(resolved: &Resolved) -> Result<Self, Failure> {
        let launch = &resolved.launch;
        let (seat, local_rank, per_node, ranks_of_a_step) = match &launch.role {
            Role::Alone => return Ok(Self::solo()),
            Role::Worker(Worker { world: 1, .. }) => return Ok(Self::solo()),
            Role::Worker(Worker { rank, world, local_rank, local_world, .. }) => {
                (Seat::Numbered { rank: *rank, world: *world }, *local_rank, *local_world, None)
            }
            Role::Agent(agent) => arriving(agent)?,
        };
        let Some(master) = &launch.master else {
            return Err(Failure::Other(anyhow!(
                "MASTER_ADDR and MASTER_PORT are not set, and there are several processes"
            )));
        };
        let plan = &resolved.plan.parallel;
        let claims = claims(resolved);
        let token = launch.token.as_ref().map_or_else(
            || Token::derived(claims.iter().flat_map(|claim| [claim.what.as_bytes(), claim.value.as_bytes()])),
            |secret| Token::secret(secret.as_bytes()),
        );
        let settings = JoinSettings {
            seat,
            local_rank,
            local_world: per_node,
            master: (master.host.clone(), master.port),
            interfaces: launch.interfaces.clone().map(|interfaces| Allowed {
                words: format!("{}={}", interfaces.variable, interfaces.names.join(",")),
                allows: Arc::new(move |name| interfaces.allows(name)),
            }),
            token,
            claims,
            facts: Facts {
                host: environment::host(),
                pid: std::process::id(),
                threads: rayon::current_num_threads(),
                memory: environment::available_memory(),
            },
            patience: Patience { join: plan.join_timeout, ..Patience::default() },
        };
        let joined = join(&settings, &mut |event| match event {
            JoinEvent::Waiting(words) => ui::note(&words),
            JoinEvent::Stranger(words) => ui::warning(&words),
        })?;
        if joined.rank == 0 {
            ui::say(&table(&joined.members));
        }
        let hosts = joined.members.iter().map(|member| member.facts.host.clone()).collect();
        let comm = joined.connect(Arc::<Pulse>::default(), plan.peer_timeout)?;
        Ok(Self { comm, local_rank, per_node, ranks_of_a_step, hosts })
    }

    /// Whether this rank speaks for the run.
    pub(crate) fn is_first(&self) -> bool {
        self.comm.rank() == 0
    }

    /// A rank as messages call it.
    pub(crate) fn name(&self, rank: usize) -> String {
        self.hosts.get(rank).map_or_else(|| format!("rank {rank}"), |host| format!("rank {rank} ({host})"))
    }

    /// Does `work` on the first process of each machine, then on the others, which find in its caches what it has made.
    ///
    /// # Errors
    /// That of `work`, which the other ranks are told of; or theirs.
    pub(crate) fn in_turn<R>(&self, work: impl FnOnce() -> Result<R, Failure>) -> Result<R, Failure> {
        if self.local_rank == 0 {
            let result = work()?;
            self.comm.barrier()?;
            return Ok(result);
        }
        self.comm.barrier()?;
        work()
    }

    /// Makes sure that all ranks have the same: `mine` names things and gives their values in short.
    ///
    /// # Errors
    /// With what differs, and where.
    pub(crate) fn agree(&self, mine: &[Claim]) -> Result<(), Failure> {
        let told = self.comm.exchange(&serde_json::to_vec(&(environment::host(), mine))?)?;
        let told: Vec<(String, Vec<Claim>)> =
            told.iter().map(|bytes| serde_json::from_slice(bytes)).collect::<Result<_, _>>()?;
        let Some((host, first)) = told.first() else { return Ok(()) };
        let mut differences = Vec::new();
        for (rank, (other, claims)) in told.iter().enumerate().skip(1) {
            for (ours, theirs) in first.iter().zip(claims).filter(|(ours, theirs)| ours != theirs) {
                differences.push(format!(
                    "\n  {}: {} on rank 0 ({host}), {} on rank {rank} ({other})",
                    ours.what, ours.value, theirs.value
                ));
            }
        }
        if differences.is_empty() {
            return Ok(());
        }
        Err(Failure::Other(anyhow!(
            "the ranks don't have the same:{}\nThe run would not be one: make them equal and start again",
            differences.concat()
        )))
    }

    /// The smallest of all ranks' numbers, if all know theirs.
    ///
    /// # Errors
    /// If a rank is lost.
    pub(crate) fn least(&self, mine: Option<u64>) -> Result<Option<u64>, Failure> {
        let told = self.comm.exchange(&mine.unwrap_or(0).to_le_bytes())?;
        let numbers = told.iter().map(|bytes| bytes.as_slice().try_into().map(u64::from_le_bytes).unwrap_or(0));
        Ok(numbers.min().filter(|&least| least > 0))
    }
}

/// A worker of an elastic run: its agent has told it which process of its machine it is.
fn arriving(agent: &Agent) -> Result<(Seat, usize, usize, Option<usize>), Failure> {
    let Nodes::Elastic { min, max, .. } = agent.nodes else {
        return Err(Failure::Other(anyhow!("an agent didn't tell this process its rank")));
    };
    let local = environment::var(env::LOCAL_RANK).and_then(|text| text.parse().ok()).unwrap_or(0);
    let node = format!("{} {}", environment::host(), environment::parent());
    Ok((Seat::Arriving { node, min, max }, local, agent.processes, Some(max * agent.processes)))
}

/// Whether this process is to start others instead of training itself.
pub(crate) fn agent_of(launch: &Launch) -> Option<&Agent> {
    match &launch.role {
        Role::Agent(agent) if environment::var(liveness::LIFELINE).is_none() => Some(agent),
        _ => None,
    }
}

/// What must be the same everywhere, and is known without reading data or weights.
fn claims(resolved: &Resolved) -> Vec<Claim> {
    let mut claims = vec![Claim { what: "build".into(), value: build() }];
    claims.extend(resolved.recipe.common().into_iter().map(|(key, value)| {
        let value = if value.len() > 80 { digest(value.as_bytes()) } else { value };
        Claim { what: format!("recipe key {key}"), value }
    }));
    let registry = resolved.plan.data.dir.join("dataset_info.json");
    if let Some(value) = fingerprint(&registry) {
        claims.push(Claim { what: "dataset_info.json".into(), value });
    }
    claims
}

/// What is known once data is encoded and the model's files are there.
pub(crate) fn claims_on_files(model: &Path, prepared: &Prepared) -> Vec<Claim> {
    let mut claims = Vec::new();
    let cache = prepared.cache.file_stem().map(|name| name.to_string_lossy().into_owned());
    claims.push(Claim { what: "the data".into(), value: cache.unwrap_or_default() });
    let mut files: Vec<_> = match std::fs::read_dir(model) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(_) => vec![model.to_path_buf()],
    };
    files.sort();
    let is_model = |path: &&std::path::PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        [".safetensors", ".gguf", "config.json", "tokenizer.json", "tokenizer_config.json"]
            .iter()
            .any(|end| name.ends_with(end))
    };
    let mut whole = Sha256::new();
    for path in files.iter().filter(is_model) {
        whole.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        whole.update(fingerprint(path).unwrap_or_default());
    }
    claims.push(Claim { what: "the model's files".into(), value: hex(&whole.finalize()) });
    claims
}

/// This very program, by its version and a look at its bytes.
fn build() -> String {
    let bytes = fingerprint(Path::new("/proc/self/exe")).unwrap_or_default();
    format!("{} ({bytes})", env!("CARGO_PKG_VERSION"))
}

/// A file's length and content in short: short ones are read whole, of long ones pieces all over.
fn fingerprint(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    let mut hash = Sha256::new();
    hash.update(length.to_le_bytes());
    if length <= WHOLE {
        let mut bytes = Vec::new();
        file.by_ref().take(WHOLE).read_to_end(&mut bytes).ok()?;
        hash.update(bytes);
    } else {
        let mut piece = vec![0; (WHOLE / PIECES) as usize];
        for number in 0..PIECES {
            let at = (length - piece.len() as u64) / (PIECES - 1) * number;
            file.read_exact_at(&mut piece, at).ok()?;
            hash.update(&piece);
        }
    }
    Some(hex(&hash.finalize()))
}

fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The ranks, one a line.
fn table(members: &[Member]) -> String {
    let width = members.iter().map(|member| member.facts.host.chars().count()).max().unwrap_or(0).max(4);
    let mut text =
        format!("{:>4} {:>4}  {:width$}  {:>22} {:>7} {:>10}", "rank", "node", "host", "address", "threads", "memory");
    for Member { rank, node, address, port, facts, .. } in members {
        let memory = facts.memory.map_or_else(|| "unknown".to_owned(), ui::bytes);
        let at = std::net::SocketAddr::new(*address, *port).to_string();
        text += &format!("\n{rank:>4} {node:>4}  {:width$}  {at:>22} {:>7} {memory:>10}", facts.host, facts.threads);
    }
    text
}
