//! Joining as the master: listens, hears everybody out in a thread each, and decides alone.

use super::error::Difference;
use super::mesh::{Meshing, Unmeshed};
use super::token::{Nonce, nonce, same};
use super::wire::{self, Greeting, Hello, MAGIC, Meshed, Order, Proof};
use super::{Claim, JoinError, JoinEvent, JoinSettings, Joined, Member, Seat, interfaces};
use crate::tcp::Link;
use std::collections::HashSet;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

/// Connections that are heard at a time; more wait in the system's queue.
const HEARD: usize = 64;
/// How often members are told that the master is still there.
const WORD: Duration = Duration::from_secs(1);
/// How long those who come after a refusal are told of it.
const LINGER: Duration = Duration::from_millis(1500);
/// Most strangers that are told of, each machine and reason once.
const STRANGERS: usize = 100;
/// How long what a rank saw may be explained by another's end, of which it is the consequence.
const GRACE: Duration = Duration::from_millis(300);
/// Between two looks at whether a report has come.
const LOOK: Duration = Duration::from_millis(50);

/// The build that must be the same everywhere.
pub(super) fn build(settings: &JoinSettings) -> String {
    let claimed = settings.claims.iter().find(|claim| claim.what == "build");
    claimed.map_or_else(|| env!("CARGO_PKG_VERSION").to_owned(), |claim| claim.value.clone())
}

/// Listens where the others look for the master.
pub(super) fn listen(settings: &JoinSettings) -> Result<TcpListener, JoinError> {
    let (host, port) = (settings.master.0.clone(), settings.master.1);
    let found = (host.as_str(), port).to_socket_addrs();
    let found = found.map_err(|error| JoinError::NoSuchHost { host: host.clone(), reason: error.to_string() })?;
    let mut last = JoinError::NoSuchHost { host: host.clone(), reason: "the name has no address".into() };
    let is_name = host.parse::<IpAddr>().is_err() && host != "localhost";
    for found in found {
        // A machine's own name may mean 127.0.1.1 to itself, and its address to the others.
        let address = match found.ip() {
            IpAddr::V4(ip) if is_name && ip.is_loopback() => (Ipv4Addr::UNSPECIFIED, port).into(),
            IpAddr::V6(ip) if is_name && ip.is_loopback() => (Ipv6Addr::UNSPECIFIED, port).into(),
            _ => found,
        };
        match TcpListener::bind(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => {
                last = match error.kind() {
                    io::ErrorKind::AddrNotAvailable => {
                        JoinError::NotHere { host: host.clone(), own: interfaces::words() }
                    }
                    io::ErrorKind::AddrInUse => JoinError::PortTaken { host: host.clone(), port },
                    _ => JoinError::System { action: format!("listen at {address}"), reason: error.to_string() },
                };
            }
        }
    }
    Err(last)
}

/// What comes out of a connection that was heard.
enum Heard {
    Candidate(Box<Candidate>),
    Definite(JoinError),
    Stranger(SocketAddr, String),
}

/// Somebody whose proof is good.
struct Candidate {
    hello: Hello,
    address: IpAddr,
    port: u16,
    stream: TcpStream,
}

impl Candidate {
    fn who(&self) -> String {
        format!("{} (process {})", self.hello.facts.host, self.hello.facts.pid)
    }

    /// Whether it has gone since; it has nothing to say before it is asked.
    fn left(&self) -> bool {
        wire::has_news(&self.stream)
    }

    /// Its place in words.
    fn place(&self) -> String {
        match self.hello.seat {
            Seat::Numbered { rank, .. } => format!("rank {rank}"),
            Seat::Arriving { .. } => format!("local rank {} of one machine", self.hello.local_rank),
        }
    }

    /// What it says of how it got on with the others.
    fn report(&self, enough: &AtomicBool, deadline: Instant, message: Duration) -> io::Result<Meshed> {
        let mut stream = self.stream.try_clone()?;
        while !wire::has_news(&stream) {
            if enough.load(Ordering::Relaxed) || Instant::now() >= deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "it said nothing in time"));
            }
            std::thread::sleep(LOOK / 10);
        }
        wire::receive(&mut stream, message)
    }
}

/// Shared by the threads that listen.
struct Door {
    settings: JoinSettings,
    heard: AtomicUsize,
    closed: AtomicBool,
}

pub(super) fn join(
    settings: &JoinSettings,
    listener: TcpListener,
    tell: &mut dyn FnMut(JoinEvent),
) -> Result<Joined, JoinError> {
    let system =
        |action: &str, error: &io::Error| JoinError::System { action: action.to_owned(), reason: error.to_string() };
    let at = listener.local_addr().map_err(|error| system("ask for the own address", &error))?;
    let own = interfaces::own_address(settings.interfaces.as_ref(), at.ip())?;
    let data = TcpListener::bind((own, 0)).map_err(|error| system(&format!("listen on {own}"), &error))?;
    let port = data.local_addr().map_err(|error| system("ask for the own port", &error))?.port();
    let door =
        Arc::new(Door { settings: settings.clone(), heard: AtomicUsize::new(0), closed: AtomicBool::new(false) });
    let (sender, inbox) = mpsc::channel();
    let (open, to) = (door.clone(), sender);
    listener.set_nonblocking(true).map_err(|error| system("listen", &error))?;
    let doorman = std::thread::Builder::new().name("rendezvous".into());
    let doorman = doorman.spawn(move || open.keep(&listener, &to)).map_err(|error| system("start a thread", &error))?;
    let mut hall = Hall { settings, here: Vec::new(), strangers: HashSet::new() };
    let result = hall.fill(&inbox, tell).and_then(|()| hall.begin((own, port), &data));
    if let Err(error) = &result {
        hall.refuse(error, &inbox);
    }
    door.closed.store(true, Ordering::Relaxed);
    // It looks at `closed` every few milliseconds, and can't panic.
    let _ = doorman.join();
    result
}

impl Door {
    /// Hears whoever connects.
    fn keep(self: &Arc<Self>, listener: &TcpListener, to: &Sender<Heard>) {
        while !self.closed.load(Ordering::Relaxed) {
            if self.heard.load(Ordering::Relaxed) < HEARD
                && let Ok((stream, from)) = listener.accept()
            {
                self.heard.fetch_add(1, Ordering::Relaxed);
                let (door, to) = (self.clone(), to.clone());
                let hear = move || {
                    // Nobody may listen any more; then it doesn't matter.
                    let _ = to.send(door.hear(stream, from));
                    door.heard.fetch_sub(1, Ordering::Relaxed);
                };
                if std::thread::Builder::new().name("rendezvous".into()).spawn(hear).is_err() {
                    self.heard.fetch_sub(1, Ordering::Relaxed);
                }
                continue;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn hear(&self, stream: TcpStream, from: SocketAddr) -> Heard {
        match self.converse(stream, from) {
            Ok(heard) => heard,
            Err(error) => Heard::Stranger(from, error.to_string()),
        }
    }

    /// From a connection's first byte to its proof.
    fn converse(&self, mut stream: TcpStream, from: SocketAddr) -> io::Result<Heard> {
        let (settings, message) = (&self.settings, self.settings.patience.message);
        stream.set_nonblocking(false)?;
        let mut magic = [0; MAGIC.len()];
        wire::read(&mut stream, &mut magic, Instant::now() + message)?;
        if magic[..15] != MAGIC[..15] {
            return Err(wire::nonsense(&format!("\"{}\" first", magic[..12].escape_ascii())));
        }
        if magic != *MAGIC {
            let version =
                |magic: &[u8; 16]| format!("with version {} of the meeting's protocol", magic[15..].escape_ascii());
            let (host, theirs, ours) = (from.ip().to_string(), version(&magic), version(MAGIC));
            let error = JoinError::Build { host, theirs, ours };
            wire::send(&mut stream, &Greeting::Refused(error.clone()), message)?;
            return if settings.token.is_secret() { Err(io::Error::other(error)) } else { Ok(Heard::Definite(error)) };
        }
        let hello = wire::receive::<Hello>(&mut stream, message)?.tamed();
        let secret = settings.token.is_secret();
        let check = |hello: &Hello, claims: &[Claim]| -> Option<JoinError> {
            let (theirs, ours) = (hello.build.clone(), build(settings));
            if theirs != ours {
                return Some(JoinError::Build { host: hello.facts.host.clone(), theirs, ours });
            }
            differs(settings, hello).or_else(|| differences(settings, claims, &hello.facts.host))
        };
        if !secret && let Some(error) = check(&hello, &hello.claims) {
            wire::send(&mut stream, &Greeting::Refused(error.clone()), message)?;
            return Ok(Heard::Definite(error));
        }
        let ours = nonce()?;
        let challenge = settings.token.proof("master", &[&hello.nonce, &ours]);
        wire::send(&mut stream, &Greeting::Challenge { nonce: ours, proof: challenge }, message)?;
        let told = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                io::Error::other("it doesn't know this job's token, or has another FERROTUNE_JOB_TOKEN")
            }
            _ => error,
        };
        let Proof { proof, address, port } = wire::receive(&mut stream, message).map_err(told)?;
        if !same(&proof, &settings.token.proof("member", &[&ours, &hello.nonce])) {
            return Err(io::Error::other("it doesn't know this job's token"));
        }
        if secret {
            let claims: Vec<Claim> = wire::receive(&mut stream, message)?;
            if let Some(error) = check(&hello, &claims) {
                wire::send(&mut stream, &Order::Refused(error.clone()), message)?;
                return Ok(Heard::Definite(error));
            }
        }
        // A process of the master's machine is reached where the master is.
        let address = if address.is_unspecified() { from.ip() } else { address };
        Ok(Heard::Candidate(Box::new(Candidate { hello, address, port, stream })))
    }
}

/// The number of processes that one was started for.
fn words(seat: &Seat, local: usize) -> String {
    match seat {
        Seat::Numbered { world, .. } => format!("{world} processes, {local} on each machine"),
        Seat::Arriving { min, max, .. } => format!("{min} to {max} machines, {local} processes on each"),
    }
}

/// Whether a member was started for another number of processes.
fn differs(settings: &JoinSettings, hello: &Hello) -> Option<JoinError> {
    let theirs = words(&hello.seat, hello.local_world);
    let ours = words(&settings.seat, settings.local_world);
    let error = || JoinError::World {
        theirs_of: hello.facts.host.clone(),
        theirs: theirs.clone(),
        ours_of: settings.facts.host.clone(),
        ours: ours.clone(),
    };
    (theirs != ours).then(error)
}

/// What a member claims otherwise than the master.
fn differences(settings: &JoinSettings, claims: &[Claim], host: &str) -> Option<JoinError> {
    let value = |list: &[Claim], what: &str| {
        let found = list.iter().find(|claim| claim.what == what);
        found.map_or_else(|| "not there".to_owned(), |claim| claim.value.clone())
    };
    let mut names: Vec<&str> = settings.claims.iter().chain(claims).map(|claim| claim.what.as_str()).collect();
    let mut seen = HashSet::new();
    names.retain(|name| seen.insert(*name));
    let differ = names.into_iter().filter_map(|what| {
        let (ours, theirs) = (value(&settings.claims, what), wire::tame(&value(claims, what)));
        let (ours_of, theirs_of) = (settings.facts.host.clone(), host.to_owned());
        (ours != theirs).then(|| Difference { what: wire::tame(what), ours_of, ours, theirs_of, theirs })
    });
    let differ: Vec<Difference> = differ.take(20).collect();
    (!differ.is_empty()).then_some(JoinError::Differs(differ))
}

/// Those who are here.
struct Hall<'a> {
    settings: &'a JoinSettings,
    here: Vec<Candidate>,
    /// Whom, and why, it was told of.
    strangers: HashSet<(IpAddr, String)>,
}

impl Hall<'_> {
    /// Waits until all are here.
    fn fill(&mut self, inbox: &Receiver<Heard>, tell: &mut dyn FnMut(JoinEvent)) -> Result<(), JoinError> {
        let start = Instant::now();
        let (mut reminded, mut word, mut last) = (start, start, start);
        loop {
            match inbox.recv_timeout(Duration::from_millis(50)) {
                Ok(Heard::Candidate(candidate)) => {
                    last = Instant::now();
                    self.admit(*candidate, tell)?;
                }
                Ok(Heard::Definite(error)) => return Err(error),
                Ok(Heard::Stranger(from, reason)) => {
                    let words = format!("{from} was turned away: {reason}");
                    if self.strangers.len() < STRANGERS && self.strangers.insert((from.ip(), reason)) {
                        tell(JoinEvent::Stranger(words));
                    }
                }
                Err(_) => {}
            }
            self.here.retain(|candidate| !candidate.left());
            if self.complete(last.elapsed()) {
                return Ok(());
            }
            let waited = start.elapsed();
            if waited >= self.settings.patience.join {
                let (missing, present) = (self.missing(), self.present());
                return Err(JoinError::Missing { seconds: waited.as_secs(), missing, present });
            }
            if word.elapsed() >= WORD {
                word = Instant::now();
                let remind = reminded.elapsed() >= self.settings.patience.remind;
                let words = remind
                    .then(|| format!("after {} s, {}; here are {}", waited.as_secs(), self.missing(), self.present()));
                if let Some(words) = words.clone() {
                    reminded = Instant::now();
                    tell(JoinEvent::Waiting(words));
                }
                self.order(|_| Order::Wait(words.clone()));
            }
        }
    }

    fn admit(&mut self, candidate: Candidate, tell: &mut dyn FnMut(JoinEvent)) -> Result<(), JoinError> {
        self.here.retain(|other| !other.left());
        let error = self.check(&candidate);
        // The one who came last is told as well.
        self.here.push(candidate);
        match error {
            None => Ok(()),
            Some(error @ JoinError::Full { .. }) => {
                tell(JoinEvent::Stranger(error.to_string()));
                let mut late = self.here.pop().expect("it was put there just now");
                // It may have left.
                let _ = wire::send(&mut late.stream, &Order::Refused(error), self.settings.patience.message);
                Ok(())
            }
            Some(error) => Err(error),
        }
    }

    /// What is wrong with the place that a candidate came for.
    fn check(&self, candidate: &Candidate) -> Option<JoinError> {
        let Hello { seat, local_rank, local_world, .. } = &candidate.hello;
        let (who, place) = (candidate.who(), candidate.place());
        let own = format!("{} (process {})", self.settings.facts.host, self.settings.facts.pid);
        let (is_outside, is_own) = match (seat, &self.settings.seat) {
            (Seat::Numbered { rank, world }, _) => (rank >= world, *rank == 0),
            (Seat::Arriving { node, .. }, Seat::Arriving { node: ours, .. }) => {
                (local_rank >= local_world, node == ours && *local_rank == self.settings.local_rank)
            }
            (Seat::Arriving { .. }, Seat::Numbered { .. }) => (true, false),
        };
        if is_outside {
            let shape = words(&self.settings.seat, self.settings.local_world);
            return Some(JoinError::Outside { who, place, shape });
        }
        let same = |other: &&Candidate| match (&other.hello.seat, seat) {
            (Seat::Numbered { rank: other, .. }, Seat::Numbered { rank, .. }) => other == rank,
            (Seat::Arriving { node: of, .. }, Seat::Arriving { node, .. }) => {
                of == node && other.hello.local_rank == *local_rank
            }
            _ => false,
        };
        let first = self.here.iter().find(same).map(Candidate::who).or_else(|| is_own.then_some(own));
        if let Some(first) = first {
            return Some(JoinError::Duplicate { place, first, second: who });
        }
        let Seat::Arriving { node, max, .. } = seat else { return None };
        let nodes = self.nodes();
        (nodes.len() >= *max && !nodes.iter().any(|(name, _)| name == node))
            .then_some(JoinError::Full { who, max: *max })
    }

    fn complete(&self, quiet: Duration) -> bool {
        match &self.settings.seat {
            Seat::Numbered { world, .. } => self.here.len() + 1 == *world,
            Seat::Arriving { min, max, .. } => {
                let whole = self.nodes().iter().filter(|(_, count)| *count == self.settings.local_world).count();
                let all_whole = whole == self.nodes().len();
                all_whole && (whole == *max || (whole >= *min && quiet >= self.settings.patience.quiet))
            }
        }
    }

    /// Machines by arrival, the master's first, and how many of their processes are here.
    fn nodes(&self) -> Vec<(&str, usize)> {
        let own = match &self.settings.seat {
            Seat::Arriving { node, .. } => node.as_str(),
            Seat::Numbered { .. } => "",
        };
        let mut nodes = vec![(own, 1)];
        for candidate in &self.here {
            let Seat::Arriving { node, .. } = &candidate.hello.seat else { continue };
            match nodes.iter_mut().find(|(name, _)| name == node) {
                Some((_, count)) => *count += 1,
                None => nodes.push((node, 1)),
            }
        }
        nodes
    }

    fn missing(&self) -> String {
        match &self.settings.seat {
            Seat::Numbered { world, .. } => {
                let is_here = |rank: &usize| {
                    self.here.iter().any(|c| matches!(c.hello.seat, Seat::Numbered { rank: r, .. } if r == *rank))
                };
                let missing: Vec<usize> = (1..*world).filter(|rank| !is_here(rank)).collect();
                let each = self.settings.local_world.max(1);
                let mut nodes: Vec<usize> = missing.iter().map(|rank| rank / each).collect();
                nodes.dedup();
                let list = |numbers: &[usize]| numbers.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
                let (host, port) = &self.settings.master;
                let (who, they) = match missing[..] {
                    [one] => (format!("rank {one} is"), "it"),
                    _ => (format!("ranks {} are", list(&missing)), "they"),
                };
                let nodes = list(&nodes);
                format!("{who} missing (NODE_RANK {nodes}); {they} must come to MASTER_ADDR={host} MASTER_PORT={port}")
            }
            Seat::Arriving { min, max, .. } => {
                format!("{} of {min} to {max} machines are here with all their processes", self.nodes().len())
            }
        }
    }

    fn present(&self) -> String {
        let mut hosts = vec![format!("rank 0 on {}", self.settings.facts.host)];
        hosts.extend(self.here.iter().map(|candidate| match candidate.hello.seat {
            Seat::Numbered { rank, .. } => format!("rank {rank} on {}", candidate.hello.facts.host),
            Seat::Arriving { .. } => candidate.who(),
        }));
        hosts.join(", ")
    }

    /// Sends each member an order; those who don't take it have left.
    fn order(&mut self, order: impl Fn(usize) -> Order) {
        let within = self.settings.patience.message;
        let mut number = 0;
        self.here.retain_mut(|candidate| {
            number += 1;
            wire::send(&mut candidate.stream, &order(number), within).is_ok()
        });
    }

    /// Numbers all, connects them, and lets them begin.
    fn begin(&mut self, own: (IpAddr, u16), data: &TcpListener) -> Result<Joined, JoinError> {
        self.sort();
        let members = self.members(own);
        let session: Nonce = nonce()
            .map_err(|error| JoinError::System { action: "read random bytes".into(), reason: error.to_string() })?;
        self.order(|rank| Order::Table { rank, session, members: members.clone() });
        if self.here.len() + 1 < members.len() {
            let gone = (1..members.len()).find(|rank| !self.here.iter().any(|c| c.hello.facts == members[*rank].facts));
            return Err(left(&members, gone.unwrap_or(0), "its connection ended"));
        }
        let links = self.mesh(&members, &session, data)?;
        self.order(|_| Order::Go);
        Ok(Joined { rank: 0, members, links })
    }

    /// Connects this rank to all others, and hears how they got on.
    fn mesh(&self, members: &[Member], session: &Nonce, data: &TcpListener) -> Result<Vec<Link>, JoinError> {
        let message = self.settings.patience.message;
        let within = message * 2;
        let deadline = Instant::now() + within * 2;
        // Somebody failed; and nobody else's reason matters any more.
        let (failed, enough) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let (tell, reports) = mpsc::channel();
            for (number, candidate) in self.here.iter().enumerate() {
                let (tell, failed, enough) = (tell.clone(), &failed, &enough);
                let hear = move || {
                    let error = match candidate.report(enough, deadline, message) {
                        Ok(Meshed::Done) => None,
                        Ok(Meshed::Failed(error)) => Some(error),
                        Err(error) => Some(left(members, number + 1, &error.to_string())),
                    };
                    failed.fetch_or(error.is_some(), Ordering::Relaxed);
                    // Nobody listens once it is decided.
                    let _ = tell.send(error);
                };
                std::thread::Builder::new().spawn_scoped(scope, hear).map_err(|error| {
                    enough.store(true, Ordering::Relaxed);
                    JoinError::System { action: "start a thread".into(), reason: error.to_string() }
                })?;
            }
            drop(tell);
            let stop = || failed.load(Ordering::Relaxed);
            let token = &self.settings.token;
            let links = Meshing { rank: 0, members, session, token, within, message, stop: &stop }.connect(data);
            let own = match &links {
                Err(Unmeshed::Failed(error)) => Some(error.clone()),
                Ok(_) | Err(Unmeshed::Stopped) => None,
            };
            let cause = cause(own, &reports, self.here.len());
            enough.store(true, Ordering::Relaxed);
            match (cause, links) {
                (None, Ok(links)) => Ok(links),
                (Some(error), _) | (None, Err(Unmeshed::Failed(error))) => Err(error),
                (None, Err(Unmeshed::Stopped)) => Err(left(members, 0, "it was stopped for no reason")),
            }
        })
    }

    /// In the order of ranks.
    fn sort(&mut self) {
        let nodes: Vec<String> = self.nodes().into_iter().map(|(name, _)| name.to_owned()).collect();
        self.here.sort_by_key(|candidate| match &candidate.hello.seat {
            Seat::Numbered { rank, .. } => (0, *rank),
            Seat::Arriving { node, .. } => {
                (nodes.iter().position(|name| name == node).unwrap_or(nodes.len()), candidate.hello.local_rank)
            }
        });
    }

    fn members(&self, (address, port): (IpAddr, u16)) -> Vec<Member> {
        let each = self.settings.local_world.max(1);
        let facts = self.settings.facts.clone();
        let mut members = vec![Member { rank: 0, node: 0, local_rank: 0, address, port, facts }];
        for candidate in &self.here {
            let rank = members.len();
            let (address, port) = (candidate.address, candidate.port);
            let facts = candidate.hello.facts.clone();
            members.push(Member { rank, node: rank / each, local_rank: rank % each, address, port, facts });
        }
        members
    }

    /// Tells all who are here, and who come within a moment, why there is no run.
    fn refuse(&mut self, error: &JoinError, inbox: &Receiver<Heard>) {
        let end = Instant::now() + LINGER;
        loop {
            self.order(|_| Order::Refused(error.clone()));
            for mut candidate in std::mem::take(&mut self.here) {
                // Waits for its end, so that what was sent arrives before the connection goes.
                let _ = candidate.stream.shutdown(std::net::Shutdown::Write);
                let _ = candidate.stream.set_read_timeout(Some(Duration::from_millis(200)));
                let _ = candidate.stream.read(&mut [0; 1024]);
            }
            let left = end.saturating_duration_since(Instant::now());
            match inbox.recv_timeout(left) {
                _ if left.is_zero() => return,
                Ok(Heard::Candidate(candidate)) => self.here.push(*candidate),
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }
}

/// Why ranks that know each other couldn't connect: the first reason, unless one of them is gone, which explains all others.
fn cause(own: Option<JoinError>, reports: &Receiver<Option<JoinError>>, count: usize) -> Option<JoinError> {
    let mut first = own;
    let mut until = first.as_ref().map(|_| Instant::now() + GRACE);
    for _ in 0..count {
        let report = match until {
            None => reports.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(until) => reports.recv_timeout(until.saturating_duration_since(Instant::now())),
        };
        match report {
            Ok(Some(error @ JoinError::Left { .. })) => return Some(error),
            Ok(Some(error)) => {
                until = until.or_else(|| Some(Instant::now() + GRACE));
                first = first.or(Some(error));
            }
            Ok(None) => {}
            Err(_) => break,
        }
    }
    first
}

fn left(members: &[Member], rank: usize, reason: &str) -> JoinError {
    JoinError::Left { rank, host: members[rank].facts.host.clone(), reason: reason.to_owned() }
}
