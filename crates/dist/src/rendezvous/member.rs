//! Joining as one who isn't the master: finds it, proves itself, and does what it is told until the run can begin.

use super::mesh::Meshing;
use super::token::{nonce, same};
use super::wire::{self, Greeting, Hello, MAGIC, Meshed, Order, Proof};
use super::{JoinError, JoinEvent, JoinSettings, Joined, interfaces};
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// How long one attempt to reach the master may take.
const ATTEMPT: Duration = Duration::from_secs(5);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(300);
/// The master says something each second; so long it may be silent.
const SILENCE: Duration = Duration::from_secs(10);

pub(super) fn join(settings: &JoinSettings, tell: &mut dyn FnMut(JoinEvent)) -> Result<Joined, JoinError> {
    let stream = reach(settings, tell)?;
    take_part(settings, prove(settings, stream)?, tell)
}

fn system(action: &str, error: &io::Error) -> JoinError {
    JoinError::System { action: action.to_owned(), reason: error.to_string() }
}

/// Tries until the master is there: machines are started by hand, one after the other.
fn reach(settings: &JoinSettings, tell: &mut dyn FnMut(JoinEvent)) -> Result<TcpStream, JoinError> {
    let (host, port) = (&settings.master.0, settings.master.1);
    let start = Instant::now();
    let mut said = start;
    loop {
        let reason = match attempt(host, port) {
            Ok(stream) => return Ok(stream),
            Err(reason) => reason,
        };
        let waited = start.elapsed();
        if waited >= settings.patience.join {
            return match reason {
                Attempt::NoName(reason) => Err(JoinError::NoSuchHost { host: host.clone(), reason }),
                Attempt::Failed(reason) => {
                    let seconds = waited.as_secs();
                    Err(JoinError::Unreached { host: host.clone(), port, seconds, reason })
                }
            };
        }
        if said.elapsed() >= settings.patience.remind {
            said = Instant::now();
            let (Attempt::NoName(reason) | Attempt::Failed(reason)) = &reason;
            let seconds = waited.as_secs();
            tell(JoinEvent::Waiting(format!("the master is not reached at {host}:{port} after {seconds} s: {reason}")));
        }
        std::thread::sleep(PAUSE);
    }
}

enum Attempt {
    NoName(String),
    Failed(String),
}

fn attempt(host: &str, port: u16) -> Result<TcpStream, Attempt> {
    let found = (host, port).to_socket_addrs().map_err(|error| Attempt::NoName(error.to_string()))?;
    let mut last = Attempt::NoName("the name has no address".into());
    for address in found {
        match TcpStream::connect_timeout(&address, ATTEMPT) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = Attempt::Failed(meaning(address, &error)),
        }
    }
    Err(last)
}

/// What a failed connection may mean.
fn meaning(address: SocketAddr, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => format!(
            "{address} is there, but nobody listens at this port; is NODE_RANK=0 started, with the same MASTER_PORT?"
        ),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => format!(
            "{address} doesn't answer; is it the right address, and does a firewall let port {} pass?",
            address.port()
        ),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            format!("there is no way to {address} from here, whose addresses are {}", interfaces::words())
        }
        _ => format!("{address}: {error}"),
    }
}

/// A member that the master has taken for one of the run.
struct Admitted {
    stream: TcpStream,
    at: SocketAddr,
    listener: TcpListener,
}

/// From the first word to the proof.
fn prove(settings: &JoinSettings, mut stream: TcpStream) -> Result<Admitted, JoinError> {
    let message = settings.patience.message;
    let at = stream.peer_addr().map_err(|error| system("ask for the master's address", &error))?;
    let no_master = |error: io::Error| JoinError::NoMaster { at, reason: error.to_string() };
    let route = stream.local_addr().map_err(|error| system("ask for the own address", &error))?.ip();
    let own = interfaces::own_address(settings.interfaces.as_ref(), route)?;
    let listener = TcpListener::bind((own, 0)).map_err(|error| system(&format!("listen on {own}"), &error))?;
    let port = listener.local_addr().map_err(|error| system("ask for the own port", &error))?.port();
    let ours = nonce().map_err(|error| system("read random bytes", &error))?;
    let secret = settings.token.is_secret();
    let hello = Hello {
        build: super::master::build(settings),
        seat: settings.seat.clone(),
        local_rank: settings.local_rank,
        local_world: settings.local_world,
        claims: if secret { Vec::new() } else { settings.claims.clone() },
        facts: settings.facts.clone(),
        nonce: ours,
    };
    stream.write_all(MAGIC).and_then(|()| wire::send(&mut stream, &hello, message)).map_err(no_master)?;
    let (theirs, proof) = match wire::receive(&mut stream, message * 2).map_err(no_master)? {
        Greeting::Challenge { nonce, proof } => (nonce, proof),
        Greeting::Refused(error) => return Err(error),
    };
    if !same(&proof, &settings.token.proof("master", &[&ours, &theirs])) {
        return Err(JoinError::Token { who: format!("the master at {at}") });
    }
    let proof = Proof { proof: settings.token.proof("member", &[&theirs, &ours]), address: own, port };
    wire::send(&mut stream, &proof, message).map_err(no_master)?;
    if secret {
        wire::send(&mut stream, &settings.claims, message).map_err(no_master)?;
    }
    Ok(Admitted { stream, at, listener })
}

/// A member whose process dies when it has proven itself.
#[cfg(test)]
pub(super) fn prove_and_leave(settings: &JoinSettings) {
    let stream = reach(settings, &mut |_| {}).expect("the master is there");
    drop(prove(settings, stream).expect("it is one of the run"));
}

/// From the proof to the beginning of the run.
fn take_part(
    settings: &JoinSettings,
    admitted: Admitted,
    tell: &mut dyn FnMut(JoinEvent),
) -> Result<Joined, JoinError> {
    let Admitted { mut stream, at, listener } = admitted;
    let message = settings.patience.message;
    let left = |error: io::Error| JoinError::MasterLeft { at, reason: error.to_string() };
    let (rank, session, members) = loop {
        match wire::receive(&mut stream, SILENCE).map_err(left)? {
            Order::Wait(words) => words.into_iter().for_each(|words| tell(JoinEvent::Waiting(wire::tame(&words)))),
            Order::Table { rank, session, members } if rank < members.len() => break (rank, session, members),
            Order::Refused(error) => return Err(error),
            Order::Table { .. } | Order::Go => return Err(left(wire::nonsense("an order out of turn"))),
        }
    };
    let meshing = Meshing {
        rank,
        members: &members,
        listener: &listener,
        session: &session,
        token: &settings.token,
        within: SILENCE,
        message,
    };
    let links = meshing.connect();
    let report = match &links {
        Ok(_) => Meshed::Done,
        Err(error) => Meshed::Failed(error.clone()),
    };
    wire::send(&mut stream, &report, message).map_err(left)?;
    match wire::receive(&mut stream, SILENCE * 2).map_err(left) {
        Ok(Order::Go) => Ok(Joined { rank, members, links: links? }),
        // What the master tells may be the cause of what this rank saw.
        Ok(Order::Refused(error)) => Err(error),
        Ok(_) => Err(left(wire::nonsense("an order out of turn"))),
        Err(error) => links.and(Err(error)),
    }
}
