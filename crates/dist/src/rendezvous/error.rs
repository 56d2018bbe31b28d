//! Why a run can't start, each with what to do about it.

use std::net::SocketAddr;

/// An error of the meeting of the ranks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, serde::Serialize, serde::Deserialize)]
pub enum JoinError {
    /// The name of the master's machine means nothing here.
    #[error(
        "MASTER_ADDR={host} can't be resolved on this machine: {reason}; write the address of the machine with NODE_RANK=0"
    )]
    NoSuchHost {
        /// The name.
        host: String,
        /// What the system said.
        reason: String,
    },
    /// The master's address is no address of the machine that should be it.
    #[error(
        "MASTER_ADDR={host} isn't an address of this machine, which is the first of the run (NODE_RANK=0); its addresses are \
         {own}. Start NODE_RANK=0 on the machine that has {host}, or write one of these on all machines (`launch`: --master-addr)"
    )]
    NotHere {
        /// As written.
        host: String,
        /// Addresses that it has.
        own: String,
    },
    /// Somebody else listens where the master should.
    #[error(
        "port {port} on {host} is taken by another process of this machine; choose another MASTER_PORT on all machines (`launch`: --port), or end that process"
    )]
    PortTaken {
        /// As written.
        host: String,
        /// The port.
        port: u16,
    },
    /// The system refused a socket.
    #[error("cannot {action}: {reason}")]
    System {
        /// What was tried.
        action: String,
        /// What the system said.
        reason: String,
    },
    /// No interface is left to use.
    #[error("{words} leaves no network interface with an address; this machine has {own}")]
    NoInterface {
        /// The variable and its value.
        words: String,
        /// Interfaces and addresses.
        own: String,
    },
    /// Nobody answered where the master should be, for as long as was to be waited.
    #[error("the master was not reached at {host}:{port} for {seconds} s: {reason}")]
    Unreached {
        /// As written.
        host: String,
        /// The port.
        port: u16,
        /// How long it was tried.
        seconds: u64,
        /// What the last attempt showed, and what that may mean.
        reason: String,
    },
    /// The master's address is of a network that this machine has no way to.
    #[error(
        "no network of this machine leads to the master's address {at} (MASTER_ADDR={host}); its own addresses are {own}. Write \
         the address by which this machine reaches the one with NODE_RANK=0"
    )]
    NoNetwork {
        /// As written.
        host: String,
        /// Where that is.
        at: SocketAddr,
        /// Addresses that it has.
        own: String,
    },
    /// What answers at the master's address isn't one.
    #[error("what listens at {at} is no master of this program ({reason}); is MASTER_PORT used by something else?")]
    NoMaster {
        /// Where.
        at: SocketAddr,
        /// What it did.
        reason: String,
    },
    /// The master speaks another version of the protocol.
    #[error("{host} runs ferrotune {theirs} and this machine {ours}: put the same build on all machines")]
    Build {
        /// The other machine.
        host: String,
        /// Its build.
        theirs: String,
        /// Ours.
        ours: String,
    },
    /// Two processes have one place.
    #[error(
        "two processes came as {place}: {first} and {second}; give each machine its own NODE_RANK (0 to number of machines - 1)"
    )]
    Duplicate {
        /// The place.
        place: String,
        /// Host and process.
        first: String,
        /// Host and process.
        second: String,
    },
    /// There is no such place.
    #[error("{who} came as {place}, but the run has {shape}; NODE_RANK goes from 0 to number of machines - 1")]
    Outside {
        /// Host and process.
        who: String,
        /// What it said.
        place: String,
        /// What there is.
        shape: String,
    },
    /// As many machines are there as may be.
    #[error("{who} came too late: the run has all of its {max} machines; raise MAX_NNODES or leave this one out")]
    Full {
        /// Host and process.
        who: String,
        /// Most machines.
        max: usize,
    },
    /// Two machines were started with different numbers.
    #[error(
        "{theirs_of} was started for {theirs}, {ours_of} for {ours}: NNODES and NPROC_PER_NODE must be the same everywhere"
    )]
    World {
        /// The other.
        theirs_of: String,
        /// What it said.
        theirs: String,
        /// The master.
        ours_of: String,
        /// What it says.
        ours: String,
    },
    /// Two machines are about to do different things.
    #[error("machines differ:{}\nThe run would not be one: make them equal and start again", list(.0))]
    Differs(Vec<Difference>),
    /// A process that claims the same but doesn't know the token.
    #[error("{who} doesn't know this job's token; set the same FERROTUNE_JOB_TOKEN everywhere, or nowhere")]
    Token {
        /// Host and address.
        who: String,
    },
    /// Some never came.
    #[error("after {seconds} s of waiting, {missing}; of the run are here: {present}")]
    Missing {
        /// How long.
        seconds: u64,
        /// Who.
        missing: String,
        /// Who came.
        present: String,
    },
    /// Two ranks can't reach each other.
    #[error(
        "rank {from} ({from_host}) can't reach rank {to} ({to_host}) at {address}: {reason}; is a firewall between them, or has \
         {to_host} several networks? NCCL_SOCKET_IFNAME names the interface to use"
    )]
    NoWay {
        /// Who tried.
        from: usize,
        /// Its machine.
        from_host: String,
        /// Whom.
        to: usize,
        /// Its machine.
        to_host: String,
        /// Where.
        address: SocketAddr,
        /// What was seen.
        reason: String,
    },
    /// A process left before the run began.
    #[error("rank {rank} ({host}) left before the run began: {reason}; see its own output")]
    Left {
        /// Which.
        rank: usize,
        /// Its machine.
        host: String,
        /// What was seen.
        reason: String,
    },
    /// The master left.
    #[error("the master at {at} left before the run began: {reason}; see the output of rank 0")]
    MasterLeft {
        /// Where it was.
        at: SocketAddr,
        /// What was seen.
        reason: String,
    },
}

/// Something that two machines don't have in common.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Difference {
    /// What.
    pub what: String,
    /// The master's machine.
    pub ours_of: String,
    /// Its value.
    pub ours: String,
    /// The other machine.
    pub theirs_of: String,
    /// Its value.
    pub theirs: String,
}

fn list(differences: &[Difference]) -> String {
    let line = |d: &Difference| {
        let Difference { what, ours_of, ours, theirs_of, theirs } = d;
        format!("\n  {what}: {ours} on {ours_of}, {theirs} on {theirs_of}")
    };
    differences.iter().map(line).collect()
}
