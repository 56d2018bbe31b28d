//! Joining as one who isn't the master: finds it, proves itself, and does what it is told until the run can begin.

use super::mesh::{Meshing, Unmeshed};
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
    let admitted = patiently(settings, tell, |since| enter(settings, since))?;
    take_part(settings, admitted, tell)
}

/// Comes as one who should be the master and can't be: if another is there already, both are to hear of it. None if there
/// is nobody of this run.
pub(super) fn meet_the_other(settings: &JoinSettings) -> Option<JoinError> {
    let admitted = match enter(settings, Instant::now()) {
        Ok(admitted) => admitted,
        Err(Attempt::Never(JoinError::NoMaster { .. } | JoinError::NoNetwork { .. }) | Attempt::Yet(_)) => return None,
        Err(Attempt::Never(error)) => return Some(error),
    };
    match take_part(settings, admitted, &mut |_| {}) {
        Err(JoinError::MasterLeft { .. }) | Ok(_) => None,
        Err(error) => Some(error),
    }
}

fn system(action: &str, error: &io::Error) -> JoinError {
    JoinError::System { action: action.to_owned(), reason: error.to_string() }
}

/// What an attempt came to.
pub(super) enum Attempt {
    /// Another may succeed.
    Yet(JoinError),
    /// No other will.
    Never(JoinError),
}

/// Tries until it works, since machines are started by hand, one after the other. An attempt is told when the first one
/// began.
pub(super) fn patiently<T>(
    settings: &JoinSettings,
    tell: &mut dyn FnMut(JoinEvent),
    attempt: impl Fn(Instant) -> Result<T, Attempt>,
) -> Result<T, JoinError> {
    let start = Instant::now();
    let mut said = start;
    loop {
        let last = match attempt(start) {
            Ok(done) => return Ok(done),
            Err(Attempt::Never(error)) => return Err(error),
            Err(Attempt::Yet(error)) => error,
        };
        if start.elapsed() >= settings.patience.join {
            return Err(last);
        }
        if said.elapsed() >= settings.patience.remind {
            said = Instant::now();
            tell(JoinEvent::Waiting(format!("{last}; trying again")));
        }
        std::thread::sleep(PAUSE);
    }
}

/// One attempt to reach the master and to be taken for one of the run.
fn enter(settings: &JoinSettings, since: Instant) -> Result<Admitted, Attempt> {
    prove(settings, connect(settings, since)?)
}

fn connect(settings: &JoinSettings, since: Instant) -> Result<TcpStream, Attempt> {
    let (host, port) = (settings.master.0.clone(), settings.master.1);
    let unknown = |reason: String| Attempt::Yet(JoinError::NoSuchHost { host: host.clone(), reason });
    let found = (host.as_str(), port).to_socket_addrs().map_err(|error| unknown(error.to_string()))?;
    let mut last = unknown("the name has no address".into());
    for address in found {
        match TcpStream::connect_timeout(&address, ATTEMPT) {
            Ok(stream) => return Ok(stream),
            Err(error) => {
                let host = host.clone();
                // A machine may still come up; a way to another network doesn't.
                last = if error.kind() == io::ErrorKind::NetworkUnreachable {
                    Attempt::Never(JoinError::NoNetwork { host, at: address, own: interfaces::words() })
                } else {
                    let (reason, seconds) = (meaning(address, &error), since.elapsed().as_secs());
                    Attempt::Yet(JoinError::Unreached { host, port, seconds, reason })
                };
            }
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
        io::ErrorKind::HostUnreachable => format!(
            "no machine answers for {address}, as seen from {}; is it the right address, and is that machine up?",
            interfaces::words()
        ),
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
fn prove(settings: &JoinSettings, mut stream: TcpStream) -> Result<Admitted, Attempt> {
    let message = settings.patience.message;
    let never = |action: &str| {
        let action = action.to_owned();
        move |error: io::Error| Attempt::Never(system(&action, &error))
    };
    let at = stream.peer_addr().map_err(never("ask for the master's address"))?;
    // A master that is hearing others, or one that is just ending, says nothing; what is none says something else.
    let no_master = |error: io::Error| {
        let told = JoinError::NoMaster { at, reason: error.to_string() };
        if wire::is_silence(&error) { Attempt::Yet(told) } else { Attempt::Never(told) }
    };
    let route = stream.local_addr().map_err(never("ask for the own address"))?.ip();
    let own = interfaces::own_address(settings.interfaces.as_ref(), route).map_err(Attempt::Never)?;
    let listener = TcpListener::bind((own, 0)).map_err(never(&format!("listen on {own}")))?;
    let port = listener.local_addr().map_err(never("ask for the own port"))?.port();
    let ours = nonce().map_err(never("read random bytes"))?;
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
        Greeting::Refused(error) => return Err(Attempt::Never(error)),
    };
    if !same(&proof, &settings.token.proof("master", &[&ours, &theirs])) {
        return Err(Attempt::Never(JoinError::Token { who: format!("the master at {at}") }));
    }
    let proof = Proof { proof: settings.token.proof("member", &[&theirs, &ours]), address: own, port };
    wire::send(&mut stream, &proof, message).map_err(no_master)?;
    if secret {
        wire::send(&mut stream, &settings.claims, message).map_err(no_master)?;
    }
    Ok(Admitted { stream, at, listener })
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
    let (rank, session, mut members) = loop {
        match wire::receive(&mut stream, SILENCE).map_err(left)? {
            Order::Wait(words) => words.into_iter().for_each(|words| tell(JoinEvent::Waiting(wire::tame(&words)))),
            Order::Table { rank, session, members } if (1..members.len()).contains(&rank) => {
                break (rank, session, members);
            }
            Order::Refused(error) => return Err(error),
            Order::Table { .. } | Order::Go => return Err(left(wire::nonsense("an order out of turn"))),
        }
    };
    // One that listens on all of its addresses is where it was found.
    let nowhere = members.iter_mut().filter(|member| member.address.is_unspecified());
    nowhere.for_each(|member| member.address = at.ip());
    let stop = || wire::has_news(&stream);
    let (members_of, token) = (&members, &settings.token);
    let meshing =
        Meshing { rank, members: members_of, session: &session, token, within: SILENCE, message, stop: &stop };
    let links = match meshing.connect(&listener) {
        Ok(links) => Some(links),
        Err(Unmeshed::Stopped) => None,
        Err(Unmeshed::Failed(error)) => {
            // If the master is gone, what this rank saw is all there is to tell.
            if wire::send(&mut stream, &Meshed::Failed(error.clone()), message).is_err() {
                return Err(error);
            }
            // What the master tells may be the cause of what this rank saw.
            return match wire::receive(&mut stream, SILENCE * 2) {
                Ok(Order::Refused(cause)) => Err(cause),
                _ => Err(error),
            };
        }
    };
    if links.is_some() {
        wire::send(&mut stream, &Meshed::Done, message).map_err(left)?;
    }
    match (wire::receive(&mut stream, SILENCE * 2).map_err(left)?, links) {
        (Order::Go, Some(links)) => Ok(Joined { rank, members, links }),
        (Order::Refused(error), _) => Err(error),
        _ => Err(left(wire::nonsense("an order out of turn"))),
    }
}

/// Members that misbehave after they have proven themselves.
#[cfg(test)]
pub(super) mod amiss {
    use super::*;

    fn admitted(settings: &JoinSettings) -> Admitted {
        patiently(settings, &mut |_| {}, |since| enter(settings, since)).unwrap()
    }

    /// Its process dies while it waits for the others.
    pub(in super::super) fn leaves(settings: &JoinSettings) {
        drop(admitted(settings));
    }

    /// Its process dies when all others are there.
    pub(in super::super) fn leaves_at_the_table(settings: &JoinSettings) {
        let mut admitted = admitted(settings);
        while let Order::Wait(_) = wire::receive(&mut admitted.stream, SILENCE).unwrap() {}
    }

    /// Nobody listens where it says that it does.
    pub(in super::super) fn is_deaf(settings: &JoinSettings) -> Result<Joined, JoinError> {
        let mut admitted = admitted(settings);
        admitted.listener = TcpListener::bind("127.0.0.1:0").unwrap();
        take_part(settings, admitted, &mut |_| {})
    }
}
