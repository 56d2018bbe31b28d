//! Ranks and their collectives. One rank is [`Solo`], for which each collective is the identity, so that there is one
//! code path for 1 and N.
#![forbid(unsafe_code)]

mod comm;
mod mesh;
mod pulse;
mod solo;

pub use comm::{Comm, CommError, Ticket};
pub use mesh::{Layout, Mesh, Place};
pub use pulse::{Activity, Beat, Pulse};
pub use solo::Solo;
