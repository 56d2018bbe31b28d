//! The thread of a rank that carries out its collectives, one after the other, whatever group they are of. The order in
//! which they were begun is the only one, so ranks that begin them alike can't wait for each other.

use crate::abort::Abort;
use crate::ring::Round;
use crate::trace::Lane;
use crate::transport::{Call, Head, Incoming, Transport};
use crate::{CommError, Pulse};
use ferrotune_tensor::{DType, Lent};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError};
use std::time::Instant;

/// Bytes sent to each rank of the run, content only.
pub(crate) struct Traffic(Vec<AtomicU64>);

impl Traffic {
    pub(crate) fn new(world: usize) -> Self {
        Self((0..world).map(|_| AtomicU64::new(0)).collect())
    }

    pub(crate) fn add(&self, to: usize, bytes: usize) {
        self.0[to].fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> Vec<u64> {
        self.0.iter().map(|bytes| bytes.load(Ordering::Relaxed)).collect()
    }
}

/// What is to be done, and the buffers for it.
pub(crate) enum Work {
    AllReduce(Lent, DType),
    /// The shard is none where it lies in `full`.
    ReduceScatter {
        full: Lent,
        shard: Option<Lent>,
        of: DType,
    },
    /// As above.
    AllGather {
        shard: Option<Lent>,
        full: Lent,
    },
    Broadcast {
        buffer: Lent,
        root: usize,
    },
    /// Sends to the rank of this number in the group.
    Send(Lent, usize),
    Recv(Lent, usize),
    /// Gathers small equal parts of a flat buffer.
    Flat(Vec<u8>, Sender<Vec<u8>>),
    Exchange(Vec<u8>, Sender<Vec<Vec<u8>>>),
}

/// One call of [`Comm`](crate::Comm).
pub(crate) struct Job {
    pub(crate) call: Call,
    /// World ranks of the group.
    pub(crate) ranks: Arc<[usize]>,
    /// Number of this rank in the group.
    pub(crate) rank: usize,
    pub(crate) work: Work,
    pub(crate) done: Sender<Result<(), CommError>>,
}

pub(crate) struct Worker<T> {
    pub(crate) transport: T,
    pub(crate) jobs: Receiver<Job>,
    pub(crate) abort: Arc<Abort>,
    pub(crate) pulse: Arc<Pulse>,
    pub(crate) traffic: Arc<Traffic>,
    pub(crate) scratch: Vec<f32>,
}

impl<T: Transport> Worker<T> {
    /// Works until the rank's handles are gone.
    pub(crate) fn run(mut self) {
        loop {
            if let Some(error) = self.abort.get() {
                return self.refuse(&error);
            }
            match self.jobs.try_recv() {
                Ok(job) => self.carry_out(job),
                Err(TryRecvError::Disconnected) => return self.transport.finish(),
                Err(TryRecvError::Empty) => {
                    if let Err(error) = self.transport.idle() {
                        self.abort.set(error);
                    }
                }
            }
        }
    }

    /// Tells the others why it has ended, and then everyone who still asks.
    fn refuse(mut self, error: &CommError) {
        self.transport.abandon(error);
        for Job { work, done, .. } in self.jobs {
            drop(work);
            // Nobody may wait for this ticket any more.
            let _ = done.send(Err(error.clone()));
        }
    }

    fn carry_out(&mut self, job: Job) {
        let Job { call, ranks, rank, work, done } = job;
        self.pulse.begin();
        let (start, span) = (Instant::now(), self.pulse.trace().begin());
        let name = if matches!(work, Work::Recv(..)) { "recv" } else { call.op.name() };
        let result = match work {
            Work::Send(loan, to) => {
                let bytes = loan.bytes().len();
                self.traffic.add(ranks[to], bytes);
                let head = Head { call, step: 0, length: bytes as u64 };
                let finish = Box::new(move |result| drop(done.send(result)));
                self.transport.post(ranks[to], head, loan, finish);
                self.pulse.trace().end(span, Lane::Moving, call.bytes, || "send");
                return self.pulse.end(start.elapsed());
            }
            Work::Recv(mut loan, from) => {
                let bytes = loan.bytes_mut();
                let head = Head { call, step: 0, length: bytes.len() as u64 };
                self.transport.duplex(None, Some(Incoming { from: ranks[from], head, bytes }))
            }
            work => {
                let (transport, traffic) = (&mut self.transport, &*self.traffic);
                let (of, sent, received) = (DType::F32, 0, 0);
                let mut round = Round { transport, traffic, ranks: &ranks, rank, call, of, sent, received };
                collective(&mut round, work, &mut self.scratch)
            }
        };
        self.pulse.end(start.elapsed());
        self.pulse.trace().end(span, Lane::Moving, call.bytes, || name);
        let result = result.map_err(|error| {
            self.abort.set(error.clone());
            self.abort.get().unwrap_or(error)
        });
        // As in `refuse`; the loans are gone by now.
        let _ = done.send(result);
    }
}

/// Moves the bytes of one collective and drops its loans.
fn collective(round: &mut Round<'_>, work: Work, scratch: &mut Vec<f32>) -> Result<(), CommError> {
    match work {
        Work::AllReduce(mut buffer, of) => {
            let bytes = buffer.bytes_mut();
            round.of = of;
            round.run(round.ring(bytes.len(), of.bytes(1)).all_reduce(), bytes, scratch)
        }
        Work::ReduceScatter { mut full, shard, of } => {
            let full = full.bytes_mut();
            round.of = of;
            let ring = round.ring(full.len(), of.bytes(1));
            round.run(ring.reduce_scatter(), full, scratch)?;
            if let Some(mut shard) = shard {
                shard.bytes_mut().copy_from_slice(&full[ring.part(ring.rank)]);
            }
            Ok(())
        }
        Work::AllGather { shard, mut full } => {
            let full = full.bytes_mut();
            let ring = round.ring(full.len(), 1);
            if let Some(shard) = shard {
                full[ring.part(ring.rank)].copy_from_slice(shard.bytes());
            }
            round.run(ring.all_gather(), full, scratch)
        }
        Work::Broadcast { mut buffer, root } => {
            let bytes = buffer.bytes_mut();
            round.run(round.ring(bytes.len(), 1).broadcast(root), bytes, scratch)
        }
        Work::Flat(mut flat, back) => {
            round.run(round.ring(flat.len(), 1).all_gather(), &mut flat, scratch)?;
            // As in `refuse`.
            let _ = back.send(flat);
            Ok(())
        }
        Work::Exchange(mine, back) => {
            let all = round.exchange(mine)?;
            let _ = back.send(all);
            Ok(())
        }
        Work::Send(..) | Work::Recv(..) => unreachable!("done where they are taken from the queue"),
    }
}
