//! Ranks and their collectives. One rank is [`Solo`], for which each collective is the identity, so that there is one
//! code path for 1 and N.
#![forbid(unsafe_code)]

mod abort;
mod comm;
mod imagined;
mod mesh;
mod nccl;
mod pulse;
mod ranks;
pub mod rendezvous;
mod ring;
mod schedule;
mod solo;
mod tcp;
pub mod threads;
pub mod trace;
pub mod transport;
mod worker;

pub use abort::{Abort, told};
pub use comm::{Comm, CommError, Ticket};
pub use imagined::Imagined;
pub use mesh::{Layout, Mesh, Place};
pub use nccl::{NcclRanks, NcclSettings};
pub use pulse::{Activity, Beat, Heard, Pulse};
pub use ranks::Ranks;
pub use solo::Solo;
pub use tcp::{Link, TcpSettings, TcpTransport};
