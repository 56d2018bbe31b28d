//! Point-to-point messages between the ranks of a run: all that the rings need to know of threads or sockets.
//!
//! One thread a rank, its worker, uses a transport. Each message begins with a [`Head`], which its receiver compares with
//! what it expects, so that ranks out of step find out at once and by name.

use crate::CommError;
use ferrotune_tensor::Lent;
use std::sync::Arc;

/// What a call of [`Comm`](crate::Comm) does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Op {
    /// [`all_reduce`](crate::Comm::all_reduce).
    AllReduce,
    /// [`reduce_scatter`](crate::Comm::reduce_scatter).
    ReduceScatter,
    /// [`all_gather`](crate::Comm::all_gather).
    AllGather,
    /// [`broadcast`](crate::Comm::broadcast).
    Broadcast,
    /// [`send`](crate::Comm::send) and [`recv`](crate::Comm::recv), which meet.
    Send,
    /// [`sum`](crate::Comm::sum).
    Sum,
    /// [`exchange`](crate::Comm::exchange).
    Exchange,
    /// [`barrier`](crate::Comm::barrier).
    Barrier,
}

impl Op {
    const ALL: [(Self, &str); 8] = [
        (Self::AllReduce, "all_reduce"),
        (Self::ReduceScatter, "reduce_scatter"),
        (Self::AllGather, "all_gather"),
        (Self::Broadcast, "broadcast"),
        (Self::Send, "send and recv"),
        (Self::Sum, "sum"),
        (Self::Exchange, "exchange"),
        (Self::Barrier, "barrier"),
    ];

    /// Its name in messages.
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// From its number, as it came over the wire.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).map(|(op, _)| *op)
    }
}

/// One call, the same at all of its ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// What it does.
    pub op: Op,
    /// A number made of the world ranks of its group.
    pub group: u64,
    /// Which call of its group it is; for sends, which between these two ranks.
    pub sequence: u64,
    /// Bytes of the whole buffer; 0 where ranks bring different lengths.
    pub bytes: u64,
}

impl std::fmt::Display for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { op, group, sequence, bytes } = *self;
        write!(f, "{} number {sequence} of {bytes} bytes in group {group:016x}", op.name())
    }
}

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The call that it is part of.
    pub call: Call,
    /// How many messages its sender sent to its receiver in this call before.
    pub step: u32,
    /// Bytes that follow.
    pub length: u64,
}

impl Head {
    /// Compares what `rank` sent with what this rank expects.
    ///
    /// # Errors
    /// [`CommError::OutOfStep`] unless both are equal.
    pub fn check(&self, expected: &Self, rank: usize) -> Result<(), CommError> {
        if self == expected {
            return Ok(());
        }
        let name = |head: &Self| match self.call == expected.call {
            true => format!("{}, message {} of {} bytes", head.call, head.step, head.length),
            false => head.call.to_string(),
        };
        Err(CommError::OutOfStep { rank, theirs: name(self), ours: name(expected) })
    }
}

/// A message to be sent.
pub struct Outgoing<'a> {
    /// World rank of the receiver.
    pub to: usize,
    /// What it is; `length` is that of `bytes`.
    pub head: Head,
    /// Its content.
    pub bytes: &'a [u8],
}

/// A message to be received.
pub struct Incoming<'a> {
    /// World rank of the sender.
    pub from: usize,
    /// What it must be; `length` is that of `bytes`.
    pub head: Head,
    /// Where its content goes.
    pub bytes: &'a mut [u8],
}

/// Told how a posted message ended, once its loan is dropped.
pub type Finish = Box<dyn FnOnce(Result<(), CommError>) + Send>;

/// Ends a [`Transport::idle`] from any thread.
pub type Waker = Arc<dyn Fn() + Send + Sync>;

/// Moves messages between this rank and the others, in order between any two. World ranks throughout.
pub trait Transport: Send {
    /// This process's number.
    fn rank(&self) -> usize;

    /// How many there are.
    fn world(&self) -> usize;

    /// Sends one message and receives another, both at once; returns when the one has left and the other is there.
    ///
    /// # Errors
    /// If the run has ended, a rank is lost, or what came isn't what is expected.
    fn duplex(&mut self, out: Option<Outgoing<'_>>, into: Option<Incoming<'_>>) -> Result<(), CommError>;

    /// Sends a message without waiting for its receiver, behind all that was sent to it before.
    fn post(&mut self, to: usize, head: Head, loan: Lent, finish: Finish);

    /// Waits until it is woken or a little while, and meanwhile sends what is posted and notices who is gone.
    ///
    /// # Errors
    /// If a rank is lost.
    fn idle(&mut self) -> Result<(), CommError>;

    /// What ends [`idle`](Self::idle); never forgotten if called before it begins.
    fn waker(&self) -> Waker;

    /// Sends what is posted and says goodbye, so that the end of this rank is no loss to the others.
    fn finish(&mut self);

    /// Tells the others, as far as they can be reached at once, that `error` ended this rank.
    fn abandon(&mut self, error: &CommError);
}
