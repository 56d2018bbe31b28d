//! How the processes of a run find each other, make sure that they are about to do the same thing, and end up with one
//! proven connection to each other.
//!
//! ```text
//! member                        master (rank 0)
//!   | -- Hello: seat, claims, nonce -->  |   compares claims: a difference ends the run for all, by name
//!   | <----- Challenge: nonce, proof --  |   both prove that they know the job's token
//!   | -- Proof, where it listens ----->  |   a seat taken twice ends the run for all
//!   | <---------- Waiting, and on whom-  |   each second, so that either notices the other's end
//!   | <---------------- Table, session-  |   all seats are taken
//!   |  connects to all lower ranks, accepts all higher ones, each with a proof
//!   | -- Meshed, or what wasn't reached> |
//!   | <---------------------------- Go-  |
//! ```
//!
//! Claims come before the proof, since the token may be derived from what is claimed, and a differing recipe could
//! otherwise not be named; where the token is a secret of its own, nothing is believed before the proof. Everything that
//! is read is bounded in size and time, and a stranger costs a thread for some seconds.
//!
//! A derived token keeps runs apart and strangers out, but not somebody who makes up other claims on purpose, which ends
//! the meeting by name; a secret token does.

mod error;
mod interfaces;
mod master;
mod member;
mod mesh;
mod token;
mod wire;

#[cfg(test)]
mod amiss;
#[cfg(test)]
mod tests;

pub use error::JoinError;
pub use interfaces::{Interface, all as interfaces};
pub use token::Token;

use crate::tcp::{Link, TcpSettings, TcpTransport};
use crate::{Abort, Comm, Pulse, Ranks, Solo};
use member::Attempt;
use std::io;
use std::net::{IpAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Something that must be the same on all ranks: what it is, and its value in short.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Claim {
    /// In words: "recipe key learning_rate", "data file x.json".
    pub what: String,
    /// What is compared; a digest where it is long or secret.
    pub value: String,
}

/// What the others are told of a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Facts {
    /// Its name.
    pub host: String,
    /// Number of the process.
    pub pid: u32,
    /// Threads that compute in this process.
    pub threads: usize,
    /// Bytes of memory that can be had, if known.
    pub memory: Option<u64>,
}

/// A process's place in the run.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Seat {
    /// Whoever started it numbered it.
    Numbered {
        /// Among all, from 0; 0 is the master.
        rank: usize,
        /// All processes.
        world: usize,
    },
    /// Machines are numbered as they come, the master's first.
    Arriving {
        /// What makes the processes of one machine know each other.
        node: String,
        /// Fewest machines.
        min: usize,
        /// Most machines.
        max: usize,
    },
}

/// How long to wait for what.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For all to come.
    pub join: Duration,
    /// Until it is said who is missing, and again each time.
    pub remind: Duration,
    /// For more machines to come, where enough are there.
    pub quiet: Duration,
    /// For a message that is due.
    pub message: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { join: seconds(15 * 60), remind: seconds(30), quiet: seconds(10), message: seconds(5) }
    }
}

/// Which network interfaces may be used.
#[derive(Clone)]
pub struct Allowed {
    /// As the user wrote it, with the variable's name.
    pub words: String,
    /// Whether an interface of this name may be.
    pub allows: Arc<dyn Fn(&str) -> bool + Send + Sync>,
}

/// What a process needs to know to join.
#[derive(Clone)]
pub struct JoinSettings {
    /// Its place.
    pub seat: Seat,
    /// Its number on its machine.
    pub local_rank: usize,
    /// Processes on its machine.
    pub local_world: usize,
    /// Name or address of the master's machine, and port.
    pub master: (String, u16),
    /// Interfaces it may use; `None` for any.
    pub interfaces: Option<Allowed>,
    /// What every connection proves to know.
    pub token: Token,
    /// What must be the same everywhere.
    pub claims: Vec<Claim>,
    /// What it tells of itself.
    pub facts: Facts,
    /// How long it waits.
    pub patience: Patience,
}

/// A rank and where it is.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Member {
    /// Its number.
    pub rank: usize,
    /// Its machine's number.
    pub node: usize,
    /// Its number on its machine.
    pub local_rank: usize,
    /// Where it listens.
    pub address: IpAddr,
    /// The port there.
    pub port: u16,
    /// What it told of itself.
    pub facts: Facts,
}

/// Something worth showing while the ranks come together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JoinEvent {
    /// Who is still missing, and where this process has looked.
    Waiting(String),
    /// Somebody who isn't of this run was turned away.
    Stranger(String),
}

/// A process that has joined.
pub struct Joined {
    /// Its number.
    pub rank: usize,
    /// All ranks, in order.
    pub members: Vec<Member>,
    /// A connection to each other rank.
    pub links: Vec<Link>,
}

impl Joined {
    /// Puts collectives over the connections. `pulse` is what this rank tells of itself from now on; a rank of which
    /// nothing is heard for `peer_timeout` is lost.
    ///
    /// # Errors
    /// If the system refuses a socket or a thread.
    pub fn connect(self, pulse: Arc<Pulse>, peer_timeout: Duration) -> io::Result<Rc<dyn Comm>> {
        if self.members.len() == 1 {
            return Ok(Rc::new(Solo::within(pulse)));
        }
        Ok(Rc::new(self.ranks(pulse, peer_timeout)?))
    }

    /// The same for several ranks, which may use it beside something faster.
    ///
    /// # Errors
    /// If the system refuses a socket or a thread.
    pub fn ranks(self, pulse: Arc<Pulse>, peer_timeout: Duration) -> io::Result<Ranks> {
        let host = self.members[self.rank].facts.host.clone();
        let settings = TcpSettings { rank: self.rank, host, peer_timeout };
        let abort = Arc::new(Abort::default());
        let transport = TcpTransport::new(settings, self.links, abort.clone(), pulse.clone())?;
        Ranks::start(transport, abort, pulse)
    }
}

/// Joins the run.
///
/// # Errors
/// With the first definite reason why the run can't start, the same on all processes that were reached; or after
/// `patience.join`, with what was missing.
pub fn join(settings: &JoinSettings, tell: &mut dyn FnMut(JoinEvent)) -> Result<Joined, JoinError> {
    let cannot = |error: &JoinError| matches!(error, JoinError::NotHere { .. } | JoinError::PortTaken { .. });
    match &settings.seat {
        Seat::Numbered { rank: 0, .. } => match listen(settings, tell) {
            Ok(listener) => master::join(settings, listener, tell),
            // Two machines with NODE_RANK=0: the one that has the address is told as well.
            Err(error) if cannot(&error) => Err(member::meet_the_other(settings).unwrap_or(error)),
            Err(error) => Err(error),
        },
        Seat::Numbered { .. } => member::join(settings, tell),
        // Who is on the master's machine and comes first is the master.
        Seat::Arriving { .. } if settings.local_rank == 0 => match listen(settings, tell) {
            Ok(listener) => master::join(settings, listener, tell),
            Err(error) if cannot(&error) => member::join(settings, tell),
            Err(error) => Err(error),
        },
        Seat::Arriving { .. } => member::join(settings, tell),
    }
}

/// Listens as the master; its own name may become known only a little after its start, as in Kubernetes.
fn listen(settings: &JoinSettings, tell: &mut dyn FnMut(JoinEvent)) -> Result<TcpListener, JoinError> {
    let attempt = |_| {
        master::listen(settings).map_err(|error| match error {
            JoinError::NoSuchHost { .. } => Attempt::Yet(error),
            error => Attempt::Never(error),
        })
    };
    member::patiently(settings, tell, attempt)
}
