//! The connections among ranks, once all are known: each connects to all lower ranks and is connected to by all higher.
//! Whoever connects is heard in a thread of its own, so that a stranger holds up nobody.

use super::token::{Nonce, Token, nonce, same};
use super::wire::{self, Answer, Introduction};
use super::{JoinError, Member};
use crate::tcp::Link;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

/// Connections of strangers that are heard at a time.
const STRANGERS: usize = 64;
/// Between two looks at whether it still matters.
const LOOK: Duration = Duration::from_millis(50);
/// So much longer than those who connect do those who are connected to wait: the former know what is wrong.
const LONGER: Duration = Duration::from_secs(2);

/// What a rank needs to connect to the others.
pub(super) struct Meshing<'a> {
    pub(super) rank: usize,
    pub(super) members: &'a [Member],
    pub(super) session: &'a Nonce,
    pub(super) token: &'a Token,
    /// For all connections to come about.
    pub(super) within: Duration,
    /// For one message.
    pub(super) message: Duration,
    /// Whether the meeting has failed elsewhere.
    pub(super) stop: &'a dyn Fn() -> bool,
}

/// Why a rank isn't connected to all others.
pub(super) enum Unmeshed {
    /// It found out why the run can't be.
    Failed(JoinError),
    /// Somebody else did.
    Stopped,
}

/// What proves that a connection is one of this session, from one rank to another.
#[derive(Clone)]
struct Prover {
    token: Token,
    session: Nonce,
}

impl Prover {
    fn proof(&self, role: &str, [from, to]: [usize; 2], [first, second]: [&Nonce; 2]) -> [u8; 32] {
        let (from, to) = ((from as u64).to_le_bytes(), (to as u64).to_le_bytes());
        self.token.proof(role, &[&self.session, &from, &to, first, second])
    }

    /// Says that this is rank `from`, to what should be rank `to`.
    fn call(&self, stream: &mut TcpStream, [from, to]: [usize; 2], message: Duration) -> io::Result<()> {
        let ours = nonce()?;
        wire::send(stream, &Introduction { rank: from, nonce: ours }, message)?;
        let Answer { nonce: theirs, proof } = wire::receive(stream, message)?;
        if !same(&proof, &self.proof("data taken", [from, to], [&ours, &theirs])) {
            return Err(wire::nonsense("no proof that it is of this run"));
        }
        wire::send(stream, &self.proof("data", [from, to], [&theirs, &ours]), message)
    }

    /// Finds out which rank calls rank `to`.
    fn answer(&self, stream: &mut TcpStream, to: usize, message: Duration) -> io::Result<usize> {
        stream.set_nonblocking(false)?;
        let Introduction { rank: from, nonce: theirs } = wire::receive(stream, message)?;
        let ours = nonce()?;
        let proof = self.proof("data taken", [from, to], [&theirs, &ours]);
        wire::send(stream, &Answer { nonce: ours, proof }, message)?;
        let proof: [u8; 32] = wire::receive(stream, message)?;
        if !same(&proof, &self.proof("data", [from, to], [&ours, &theirs])) {
            return Err(wire::nonsense("no proof that it is of this run"));
        }
        Ok(from)
    }
}

/// Hears who connects, until it is dropped.
struct Ear {
    arrivals: Receiver<(usize, TcpStream)>,
    closed: Arc<AtomicBool>,
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::Relaxed);
    }
}

impl Ear {
    fn open(listener: TcpListener, prover: Prover, [rank, world]: [usize; 2], message: Duration) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let (tell, arrivals) = mpsc::channel();
        let closed = Arc::new(AtomicBool::new(false));
        let until = closed.clone();
        let hear = move |mut stream: TcpStream, tell: &Sender<(usize, TcpStream)>| {
            if let Ok(from) = prover.answer(&mut stream, rank, message) {
                // The meeting may be over.
                let _ = tell.send((from, stream));
            }
        };
        let hear = Arc::new(hear);
        let keep = move || {
            let heard = Arc::new(AtomicUsize::new(0));
            while !until.load(Ordering::Relaxed) {
                if heard.load(Ordering::Relaxed) < STRANGERS + world
                    && let Ok((stream, _)) = listener.accept()
                {
                    let (hear, tell, busy) = (hear.clone(), tell.clone(), heard.clone());
                    heard.fetch_add(1, Ordering::Relaxed);
                    let one = move || {
                        hear(stream, &tell);
                        busy.fetch_sub(1, Ordering::Relaxed);
                    };
                    if std::thread::Builder::new().name("rendezvous".into()).spawn(one).is_err() {
                        heard.fetch_sub(1, Ordering::Relaxed);
                    }
                    continue;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        };
        std::thread::Builder::new().name("rendezvous".into()).spawn(keep)?;
        Ok(Self { arrivals, closed })
    }
}

impl Meshing<'_> {
    /// Connects to all others.
    pub(super) fn connect(&self, listener: &TcpListener) -> Result<Vec<Link>, Unmeshed> {
        let (world, deadline) = (self.members.len(), Instant::now() + self.within);
        let prover = Prover { token: self.token.clone(), session: *self.session };
        let opened = listener.try_clone();
        let opened = opened.and_then(|own| Ear::open(own, prover.clone(), [self.rank, world], self.message));
        let ear = opened.map_err(|error| {
            Unmeshed::Failed(JoinError::System {
                action: "listen for the other ranks".into(),
                reason: error.to_string(),
            })
        })?;
        let mut links = Vec::new();
        for to in &self.members[..self.rank] {
            if (self.stop)() {
                return Err(Unmeshed::Stopped);
            }
            let stream = self.reach(to, &prover, deadline).map_err(|error| self.no_way(self.rank, to.rank, &error))?;
            links.push(Link { rank: to.rank, host: to.facts.host.clone(), stream });
        }
        let late = deadline + LONGER;
        while links.len() + 1 < world {
            match ear.arrivals.recv_timeout(LOOK) {
                Ok((rank, stream))
                    if rank > self.rank && rank < world && !links.iter().any(|link| link.rank == rank) =>
                {
                    links.push(Link { rank, host: self.members[rank].facts.host.clone(), stream });
                }
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) if (self.stop)() => return Err(Unmeshed::Stopped),
                Err(RecvTimeoutError::Timeout) if Instant::now() < late => {}
                Err(_) => {
                    let is_there = |rank: &usize| links.iter().any(|link| link.rank == *rank);
                    let missing = (self.rank + 1..world).find(|rank| !is_there(rank)).unwrap_or(0);
                    let error = io::Error::new(io::ErrorKind::TimedOut, "no connection came");
                    return Err(self.no_way(missing, self.rank, &error));
                }
            }
        }
        links.sort_by_key(|link| link.rank);
        Ok(links)
    }

    fn no_way(&self, from: usize, to: usize, error: &io::Error) -> Unmeshed {
        let host = |rank: usize| self.members[rank].facts.host.clone();
        let Member { address, port, .. } = self.members[to];
        let (from_host, to_host, address) = (host(from), host(to), SocketAddr::new(address, port));
        let reason = match error.kind() {
            io::ErrorKind::WouldBlock => "it doesn't answer".into(),
            _ => error.to_string(),
        };
        Unmeshed::Failed(JoinError::NoWay { from, from_host, to, to_host, address, reason })
    }

    fn reach(&self, to: &Member, prover: &Prover, deadline: Instant) -> io::Result<TcpStream> {
        let at = SocketAddr::new(to.address, to.port);
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            let mut stream = TcpStream::connect_timeout(&at, left)?;
            match prover.call(&mut stream, [self.rank, to.rank], self.message) {
                Ok(()) => return Ok(stream),
                // It may have had to hear too many others.
                Err(error) if wire::is_silence(&error) && Instant::now() < deadline && !(self.stop)() => {
                    std::thread::sleep(LOOK);
                }
                Err(error) => return Err(error),
            }
        }
    }
}
