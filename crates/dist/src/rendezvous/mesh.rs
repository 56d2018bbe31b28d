//! The connections among ranks, once all are known: each connects to all lower ranks and is connected to by all higher.

use super::token::{Nonce, Token, same};
use super::wire::{self, Introduction};
use super::{JoinError, Member};
use crate::tcp::Link;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// What a rank needs to connect to the others.
pub(super) struct Meshing<'a> {
    pub(super) rank: usize,
    pub(super) members: &'a [Member],
    pub(super) listener: &'a TcpListener,
    pub(super) session: &'a Nonce,
    pub(super) token: &'a Token,
    /// For a connection to come about.
    pub(super) within: Duration,
    /// For one message.
    pub(super) message: Duration,
}

impl Meshing<'_> {
    /// Connects to all others.
    pub(super) fn connect(&self) -> Result<Vec<Link>, JoinError> {
        let deadline = Instant::now() + self.within;
        let mut links = Vec::new();
        for to in &self.members[..self.rank] {
            let stream = self.reach(to, deadline).map_err(|error| self.no_way(self.rank, to.rank, &error))?;
            links.push(Link { rank: to.rank, host: to.facts.host.clone(), stream });
        }
        while links.len() + 1 < self.members.len() {
            let missing = || (self.rank + 1..self.members.len()).find(|rank| !links.iter().any(|l| l.rank == *rank));
            match self.accept(deadline) {
                Ok((rank, stream)) if rank > self.rank && !links.iter().any(|link| link.rank == rank) => {
                    links.push(Link { rank, host: self.members[rank].facts.host.clone(), stream });
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    return Err(self.no_way(missing().unwrap_or(0), self.rank, &error));
                }
                // A stranger; the rank itself is still to come.
                Err(_) => {}
            }
        }
        links.sort_by_key(|link| link.rank);
        Ok(links)
    }

    fn no_way(&self, from: usize, to: usize, error: &io::Error) -> JoinError {
        let host = |rank: usize| self.members[rank].facts.host.clone();
        let Member { address, port, .. } = self.members[to];
        let (from_host, to_host) = (host(from), host(to));
        JoinError::NoWay {
            from,
            from_host,
            to,
            to_host,
            address: SocketAddr::new(address, port),
            reason: error.to_string(),
        }
    }

    fn proof(&self, role: &str, from: usize, to: usize) -> [u8; 32] {
        self.token.proof(role, &[self.session, &(from as u64).to_le_bytes(), &(to as u64).to_le_bytes()])
    }

    fn reach(&self, to: &Member, deadline: Instant) -> io::Result<TcpStream> {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let mut stream = TcpStream::connect_timeout(&SocketAddr::new(to.address, to.port), left)?;
        let introduction = Introduction { rank: self.rank, proof: self.proof("data", self.rank, to.rank) };
        wire::send(&mut stream, &introduction, self.message)?;
        // The other may be connecting to lower ranks still.
        let answer: Introduction = wire::receive(&mut stream, self.within)?;
        if answer.rank != to.rank || !same(&answer.proof, &self.proof("data taken", self.rank, to.rank)) {
            return Err(wire::nonsense("no proof that it is of this run"));
        }
        Ok(stream)
    }

    fn accept(&self, deadline: Instant) -> io::Result<(usize, TcpStream)> {
        self.listener.set_nonblocking(true)?;
        let mut stream = loop {
            match self.listener.accept() {
                Ok((stream, _)) => break stream,
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                Err(_) if Instant::now() >= deadline => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "no connection came"));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        stream.set_nonblocking(false)?;
        let told = |error: io::Error| io::Error::other(error.to_string());
        let Introduction { rank, proof } = wire::receive(&mut stream, self.message).map_err(told)?;
        if rank >= self.members.len() || !same(&proof, &self.proof("data", rank, self.rank)) {
            return Err(io::Error::other("no proof that it is of this run"));
        }
        let answer = Introduction { rank: self.rank, proof: self.proof("data taken", rank, self.rank) };
        wire::send(&mut stream, &answer, self.message).map_err(told)?;
        Ok((rank, stream))
    }
}
