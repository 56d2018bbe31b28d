//! The ranks of a run: whether this process is one of several, how they meet, and what they make sure of before weights are
//! read.

use crate::failure::Failure;
use crate::prepare::Resolved;
use crate::{environment, gpus, ui};
use anyhow::anyhow;
use ferrotune_config::env;
use ferrotune_config::launcher::{Agent, Launch, Nodes, Role, Worker};
use ferrotune_data::prepare::Prepared;
use ferrotune_dist::rendezvous::{Allowed, Claim, Facts, JoinEvent, JoinSettings, Member, Patience, Seat, Token, join};
use ferrotune_dist::{Comm, Pulse, Ranks, Solo};
use ferrotune_tensor::Device;
use sha2::{Digest, Sha256};
use std::cell::Cell;
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
    /// What it computes on.
    pub(crate) device: Device,
    /// This process on its machine, from 0.
    pub(crate) local_rank: usize,
    /// Processes on a machine.
    pub(crate) per_node: usize,
    /// Ranks whose rows make a step, where machines come and go: as many as there may be.
    pub(crate) ranks_of_a_step: Option<usize>,
    /// The machine of each rank.
    hosts: Vec<String>,
    /// The run ends for a reason that every rank finds by itself, at the same place: nobody need be told.
    all_know: Cell<bool>,
}

/// Bytes of a file that are looked at whole; of longer ones, as many again in pieces.
const WHOLE: u64 = 4 << 20;
/// Differences that are shown.
const SHOWN: usize = 8;
/// Pieces of a long file.
const PIECES: u64 = 64;

impl World {
    /// One process.
    fn solo(use_cpu: bool) -> Result<Self, Failure> {
        let (comm, device, all_know) = (Rc::new(Solo::default()), gpus::device(0, use_cpu)?, Cell::default());
        Ok(Self { comm, device, local_rank: 0, per_node: 1, ranks_of_a_step: None, hosts: Vec::new(), all_know })
    }

    /// Meets the other ranks, if there are any.
    ///
    /// # Errors
    /// If the run can't start, with the reason; all ranks that were reached get the same one.
    pub(crate) fn join(resolved: &Resolved) -> Result<Self, Failure> {
        let (launch, use_cpu) = (&resolved.launch, resolved.plan.parallel.use_cpu);
        let (seat, local_rank, per_node, ranks_of_a_step) = match &launch.role {
            Role::Alone => return Self::solo(use_cpu),
            Role::Worker(Worker { world: 1, .. }) => return Self::solo(use_cpu),
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
        let device = gpus::device(local_rank, use_cpu)?;
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
        let (pulse, all_know) = (Arc::<Pulse>::default(), Cell::default());
        if joined.members.len() == 1 {
            let comm = joined.connect(pulse, plan.peer_timeout)?;
            return Ok(Self { comm, device, local_rank, per_node, ranks_of_a_step, hosts, all_know });
        }
        let ranks = joined.ranks(pulse, plan.peer_timeout)?;
        let comm = Rc::new(ranks.clone());
        let mut world = Self { comm, device, local_rank, per_node, ranks_of_a_step, hosts, all_know };
        let equipped = world.equip(&ranks, resolved);
        equipped.inspect_err(|failure| world.fail(&failure.words()))?;
        Ok(world)
    }

    /// Lets NCCL move what lies on GPUs, if the ranks compute on these.
    fn equip(&mut self, ranks: &Ranks, resolved: &Resolved) -> Result<(), Failure> {
        let plan = &resolved.plan.parallel;
        let found = gpus::collectives(&self.device)?;
        let value = found.as_ref().map_or_else(|| "the processor".into(), |(_, version)| format!("NCCL {version}"));
        // Of two versions NCCL would hang, or say that the other one is gone.
        self.agree(&[Claim { what: "what sums gradients".into(), value }], Vec::new)?;
        if let Some((collectives, version)) = found {
            if self.is_first() {
                ui::say(&format!("NCCL {version}, {}", collectives.library().path().display()));
            }
            self.comm = Rc::new(gpus::joined(ranks, collectives, plan.join_timeout)?);
        }
        Ok(())
    }

    /// Whether this rank speaks for the run.
    pub(crate) fn is_first(&self) -> bool {
        self.comm.rank() == 0
    }

    /// Takes note that the run ends for a reason that every rank finds by itself at this place. Telling the others would only
    /// reach those that are about to find it, and make them say that this one stopped.
    pub(crate) fn all_know(&self) {
        self.all_know.set(true);
    }

    /// Tells the others why this rank ends its part, unless they know.
    pub(crate) fn fail(&self, reason: &str) {
        if !self.all_know.get() {
            self.comm.fail(reason);
        }
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

    /// Makes sure that all ranks have the same: `mine` names things and gives their values in short. If they differ, the
    /// parts in `closer` are compared, too.
    ///
    /// # Errors
    /// With what differs, and where.
    pub(crate) fn agree(&self, mine: &[Claim], closer: impl FnOnce() -> Vec<Claim>) -> Result<(), Failure> {
        let found = differences(&self.told(mine)?);
        if found.is_empty() {
            return Ok(());
        }
        // All have found a difference, so all ask each other once more.
        let parts = differences(&self.told(&closer())?);
        let found = if parts.is_empty() { found } else { parts };
        let more = found.len().saturating_sub(SHOWN);
        let mut text: String = found.iter().take(SHOWN).map(|line| format!("\n  {line}")).collect();
        if more > 0 {
            text += &format!("\n  and {more} more");
        }
        self.all_know();
        Err(Failure::Other(anyhow!(
            "the ranks don't have the same:{text}\nThe run would not be one: make them equal and start again"
        )))
    }

    /// The machine and the claims of each rank.
    fn told(&self, mine: &[Claim]) -> Result<Vec<(String, Vec<Claim>)>, Failure> {
        let told = self.comm.exchange(&serde_json::to_vec(&(environment::host(), mine))?)?;
        Ok(told.iter().map(|bytes| serde_json::from_slice(bytes)).collect::<Result<_, _>>()?)
    }

    /// What the first rank says that lacks something, with its name where there are several; nothing if none does. All ranks
    /// hear the same.
    ///
    /// # Errors
    /// If a rank is lost.
    pub(crate) fn lacking(&self, mine: Option<String>) -> Result<Option<String>, Failure> {
        let told = self.comm.exchange(mine.unwrap_or_default().as_bytes())?;
        let named = |(rank, words): (usize, &Vec<u8>)| {
            let words = String::from_utf8_lossy(words);
            if told.len() > 1 { format!("{}: {words}", self.name(rank)) } else { words.into_owned() }
        };
        Ok(told.iter().enumerate().find(|(_, words)| !words.is_empty()).map(named))
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
        Role::Agent(agent) if environment::var(env::FERROTUNE_LIFELINE).is_none() => Some(agent),
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
    let cache = prepared.cache.file_stem().map(|name| name.to_string_lossy().into_owned());
    let files = claims_on_model(model).into_iter().flat_map(|claim| [claim.what, claim.value]);
    let whole = digest(files.collect::<Vec<_>>().join("\n").as_bytes());
    vec![
        Claim { what: "the data".into(), value: cache.unwrap_or_default() },
        Claim { what: "the model's files".into(), value: whole },
    ]
}

/// The same, file by file.
pub(crate) fn claims_on_each_file(model: &Path, prepared: &Prepared) -> Vec<Claim> {
    let sets = prepared.report.datasets.iter();
    let files = sets.flat_map(|set| set.files.iter().map(move |file| (&set.name, file)));
    let data = files.map(|(set, file)| claim_on(&format!("{} of dataset {set}", name(file)), file));
    data.chain(claims_on_model(model)).collect()
}

/// What a model is made of.
fn claims_on_model(model: &Path) -> Vec<Claim> {
    let mut files: Vec<_> = match std::fs::read_dir(model) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(_) => vec![model.to_path_buf()],
    };
    files.sort();
    let ends = [".safetensors", ".gguf", "config.json", "tokenizer.json", "tokenizer_config.json"];
    let of_model = files.iter().filter(|path| ends.iter().any(|end| name(path).ends_with(end)));
    of_model.map(|path| claim_on(&format!("{} of the model", name(path)), path)).collect()
}

fn claim_on(what: &str, path: &Path) -> Claim {
    let size = std::fs::metadata(path).map_or(0, |file| file.len());
    let seen = fingerprint(path).map_or_else(|| "unreadable".to_owned(), |seen| format!("{size} bytes ({seen})"));
    Claim { what: what.to_owned(), value: seen }
}

/// A file's own name.
fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// What isn't the same on all ranks as on the first, a line a thing and machine.
fn differences(told: &[(String, Vec<Claim>)]) -> Vec<String> {
    let Some(((host, first), others)) = told.split_first() else { return Vec::new() };
    let mut found = Vec::new();
    for (rank, (other, claims)) in (1..).zip(others) {
        let value = |claims: &[Claim], what: &str| {
            let claim = claims.iter().find(|claim| claim.what == what);
            claim.map_or_else(|| "nothing".to_owned(), |claim| claim.value.clone())
        };
        let is_new = |claim: &&Claim| !first.iter().any(|ours| ours.what == claim.what);
        for Claim { what, .. } in first.iter().chain(claims.iter().filter(is_new)) {
            let (ours, theirs) = (value(first, what), value(claims, what));
            if ours != theirs {
                found.push(format!("{what}: {ours} on rank 0 ({host}), {theirs} on rank {rank} ({other})"));
            }
        }
    }
    found
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

#[cfg(test)]
mod tests {
    use super::differences;
    use ferrotune_dist::rendezvous::Claim;

    #[test]
    fn what_differs_is_told_by_its_name_and_what_only_one_has_too() {
        let has = |host: &str, claims: &[(&str, &str)]| {
            let claim = |(what, value): &(&str, &str)| Claim { what: (*what).into(), value: (*value).into() };
            (host.to_owned(), claims.iter().map(claim).collect())
        };
        let same = has("a", &[("x", "1"), ("y", "2")]);
        assert!(differences(&[same.clone(), same.clone(), same.clone()]).is_empty());
        let told = [same, has("b", &[("y", "2"), ("x", "1")]), has("c", &[("x", "3"), ("z", "4")])];
        let want = [
            "x: 1 on rank 0 (a), 3 on rank 2 (c)",
            "y: 2 on rank 0 (a), nothing on rank 2 (c)",
            "z: nothing on rank 0 (a), 4 on rank 2 (c)",
        ];
        assert_eq!(differences(&told), want);
    }
}
