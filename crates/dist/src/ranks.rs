//! A rank's handle to its worker: what the rest of the program knows as [`Comm`].

use crate::abort::Abort;
use crate::comm::check_summed;
use crate::transport::{Call, Op, Transport, Waker};
use crate::worker::{Job, Traffic, Work, Worker};
use crate::{Comm, CommError, Pulse, Solo, Ticket};
use ferrotune_tensor::Tensor;
use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;

/// All ranks of a run, or a group of them, over any transport. Clones are handles of the same.
#[derive(Clone)]
pub struct Ranks {
    shared: Rc<Shared>,
    /// World ranks, ascending.
    ranks: Arc<[usize]>,
    /// Number of this rank among them.
    rank: usize,
    counters: SharedCounters,
}

/// What all groups of a rank share.
struct Shared {
    /// None only while it is dropped.
    jobs: Option<Sender<Job>>,
    worker: Option<JoinHandle<()>>,
    wake: Waker,
    abort: Arc<Abort>,
    pulse: Arc<Pulse>,
    traffic: Arc<Traffic>,
    groups: RefCell<HashMap<Arc<[usize]>, SharedCounters>>,
}

/// Of one group, however many handles it has.
type SharedCounters = Rc<RefCell<Counters>>;

/// Calls so far in one group.
struct Counters {
    group: u64,
    calls: u64,
    sent: Vec<u64>,
    received: Vec<u64>,
}

impl Counters {
    /// The next call, as `count` counts them.
    fn next_with(&mut self, bytes: usize, count: impl FnOnce(&mut Self) -> &mut u64) -> Call {
        let sequence = count(self);
        *sequence += 1;
        let sequence = *sequence;
        Call { op: Op::Send, group: self.group, sequence, bytes: bytes as u64 }
    }
}

impl Ranks {
    /// All ranks that `transport` reaches. `abort` and `pulse` are those of the transport.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(transport: impl Transport + 'static, abort: Arc<Abort>, pulse: Arc<Pulse>) -> io::Result<Self> {
        let (rank, world) = (transport.rank(), transport.world());
        let traffic = Arc::new(Traffic::new(world));
        let (jobs, queue) = mpsc::channel();
        let wake = transport.waker();
        let worker = Worker {
            transport,
            jobs: queue,
            abort: abort.clone(),
            pulse: pulse.clone(),
            traffic: traffic.clone(),
            scratch: Vec::new(),
        };
        let name = format!("collectives of rank {rank}");
        let worker = Some(std::thread::Builder::new().name(name).spawn(move || worker.run())?);
        let on_abort = wake.clone();
        abort.on_set(move || on_abort());
        let groups = RefCell::default();
        let shared = Rc::new(Shared { jobs: Some(jobs), worker, wake, abort, pulse, traffic, groups });
        let ranks: Arc<[usize]> = (0..world).collect();
        let counters = shared.counters(&ranks);
        Ok(Self { shared, ranks, rank, counters })
    }

    fn next(&self, op: Op, bytes: usize) -> Call {
        Call { op, ..self.counters.borrow_mut().next_with(bytes, |counters| &mut counters.calls) }
    }

    fn begin(&self, call: Call, work: Work) -> Receiver<Result<(), CommError>> {
        let (done, ended) = mpsc::channel();
        let job = Job { call, ranks: self.ranks.clone(), rank: self.rank, work, done };
        let jobs = self.shared.jobs.as_ref().expect("it is taken only by drop");
        // If the worker is gone, so is `done`, and the ticket says so.
        let _ = jobs.send(job);
        (self.shared.wake)();
        ended
    }

    fn ticket(&self, call: Call, work: Work, hold: Vec<Tensor>) -> Ticket {
        if let Some(error) = self.unready(&hold) {
            return Ticket::failed(error);
        }
        Ticket::pending(self.begin(call, work), self.shared.pulse.clone(), hold)
    }

    /// A tensor without bytes can't take part, and the others must not wait for it.
    fn unready(&self, tensors: &[Tensor]) -> Option<CommError> {
        let empty = tensors.iter().find(|tensor| tensor.lend().bytes().len() != tensor.bytes())?;
        Some(self.refuse(empty))
    }

    /// Ends the run since a tensor has no bytes.
    pub(crate) fn refuse(&self, empty: &Tensor) -> CommError {
        let device = empty.device();
        let reason = match device.check() {
            Err(fault) => fault.to_string(),
            Ok(()) => format!("a tensor on {device:?}, which executes nothing, can't be sent"),
        };
        self.fail(&reason);
        self.shared.abort.get().unwrap_or(CommError::Ended(reason))
    }

    /// What ends the run of this rank.
    pub(crate) fn abort(&self) -> &Arc<Abort> {
        &self.shared.abort
    }

    /// World ranks of the group.
    pub(crate) fn ranks(&self) -> &Arc<[usize]> {
        &self.ranks
    }

    /// Counts bytes that go to a rank of the group by another way.
    pub(crate) fn counts(&self, to: usize, bytes: u64) {
        self.shared.traffic.add(self.ranks[to], bytes as usize);
    }

    /// Some of these ranks; `None` for this one alone.
    ///
    /// # Panics
    /// Unless they ascend and this one is among them.
    pub(crate) fn among(&self, ranks: &[usize]) -> Option<Self> {
        let rank = ranks.binary_search(&self.rank).expect("a rank makes groups that it belongs to");
        assert!(ranks.is_sorted_by(|a, b| a < b), "a group's ranks ascend: {ranks:?}");
        if ranks.len() == 1 {
            return None;
        }
        let ranks: Arc<[usize]> = ranks.iter().map(|rank| self.ranks[*rank]).collect();
        let counters = self.shared.counters(&ranks);
        Some(Self { shared: self.shared.clone(), ranks, rank, counters })
    }

    /// Waits for the result of something small.
    fn answer<A>(&self, ended: Receiver<Result<(), CommError>>, answer: &Receiver<A>) -> Result<A, CommError> {
        Ticket::pending(ended, self.shared.pulse.clone(), Vec::new()).wait()?;
        answer.try_recv().map_err(|_| CommError::Ended("a collective ended without a result".into()))
    }

    /// Gathers `mine`, of the same length everywhere.
    fn flat(&self, op: Op, mine: &[u8]) -> Result<Vec<u8>, CommError> {
        let mut flat = vec![0; mine.len() * self.ranks.len()];
        flat[self.rank * mine.len()..][..mine.len()].copy_from_slice(mine);
        let (back, answer) = mpsc::channel();
        let ended = self.begin(self.next(op, flat.len()), Work::Flat(flat, back));
        self.answer(ended, &answer)
    }
}

impl Shared {
    fn counters(&self, ranks: &Arc<[usize]>) -> SharedCounters {
        let new = || {
            let none = vec![0; ranks.len()];
            Rc::new(RefCell::new(Counters { group: number(ranks), calls: 0, sent: none.clone(), received: none }))
        };
        self.groups.borrow_mut().entry(ranks.clone()).or_insert_with(new).clone()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.abort.set(CommError::Ended("it panicked".into()));
        }
        self.jobs = None;
        (self.wake)();
        if let Some(worker) = self.worker.take() {
            // A worker that panicked has no more to say.
            let _ = worker.join();
        }
    }
}

/// A number for a set of ranks (FNV-1a over their numbers), the same everywhere.
fn number(ranks: &[usize]) -> u64 {
    let bytes = ranks.iter().flat_map(|rank| (*rank as u64).to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Whether `shard` is `rank`'s part of `full`.
///
/// # Panics
/// Unless `full` is `world` shards long.
pub(crate) fn lies_in(full: &Tensor, shard: &Tensor, rank: usize, world: usize) -> bool {
    let bytes = shard.bytes();
    assert_eq!(bytes * world, full.bytes(), "{full:?} isn't {world} times {shard:?}");
    full.view(rank * bytes, shard.shape(), shard.dtype()).same_bytes(shard)
}

impl Comm for Ranks {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.ranks.len()
    }

    fn all_reduce(&self, buffer: &Tensor) -> Ticket {
        check_summed(buffer.dtype());
        let call = self.next(Op::AllReduce, buffer.bytes());
        self.ticket(call, Work::AllReduce(buffer.lend(), buffer.dtype()), vec![buffer.clone()])
    }

    fn reduce_scatter(&self, full: &Tensor, shard: &Tensor) -> Ticket {
        check_summed(full.dtype());
        assert_eq!(full.dtype(), shard.dtype(), "sums are of one type");
        let call = self.next(Op::ReduceScatter, full.bytes());
        let apart = !lies_in(full, shard, self.rank, self.ranks.len());
        let (of, shard_lent) = (full.dtype(), apart.then(|| shard.lend()));
        let work = Work::ReduceScatter { full: full.lend(), shard: shard_lent, of };
        self.ticket(call, work, vec![full.clone(), shard.clone()])
    }

    fn all_gather(&self, shard: &Tensor, full: &Tensor) -> Ticket {
        let call = self.next(Op::AllGather, full.bytes());
        let apart = !lies_in(full, shard, self.rank, self.ranks.len());
        let work = Work::AllGather { shard: apart.then(|| shard.lend()), full: full.lend() };
        self.ticket(call, work, vec![shard.clone(), full.clone()])
    }

    fn broadcast(&self, buffer: &Tensor, root: usize) -> Ticket {
        assert!(root < self.ranks.len(), "no rank {root} among {:?}", self.ranks);
        let call = self.next(Op::Broadcast, buffer.bytes());
        self.ticket(call, Work::Broadcast { buffer: buffer.lend(), root }, vec![buffer.clone()])
    }

    fn send(&self, buffer: &Tensor, to: usize) -> Ticket {
        assert!(to != self.rank && to < self.ranks.len(), "no other rank {to} among {:?}", self.ranks);
        let call = self.counters.borrow_mut().next_with(buffer.bytes(), |counters| &mut counters.sent[to]);
        self.ticket(call, Work::Send(buffer.lend(), to), vec![buffer.clone()])
    }

    fn recv(&self, buffer: &Tensor, from: usize) -> Ticket {
        assert!(from != self.rank && from < self.ranks.len(), "no other rank {from} among {:?}", self.ranks);
        let call = self.counters.borrow_mut().next_with(buffer.bytes(), |counters| &mut counters.received[from]);
        self.ticket(call, Work::Recv(buffer.lend(), from), vec![buffer.clone()])
    }

    fn sum(&self, values: &mut [f64]) -> Result<(), CommError> {
        let mine: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let all = self.flat(Op::Sum, &mine)?;
        let read = |bytes: &[u8]| bytes.try_into().map_or(f64::NAN, f64::from_le_bytes);
        values.fill(0.0);
        for (i, bytes) in all.chunks_exact(8).enumerate() {
            values[i % values.len()] += read(bytes);
        }
        Ok(())
    }

    fn exchange(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
        let (back, answer) = mpsc::channel();
        let ended = self.begin(self.next(Op::Exchange, 0), Work::Exchange(mine.to_vec(), back));
        self.answer(ended, &answer)
    }

    fn barrier(&self) -> Result<(), CommError> {
        self.flat(Op::Barrier, &[0]).map(|_| ())
    }

    fn group(&self, ranks: &[usize]) -> Rc<dyn Comm> {
        match self.among(ranks) {
            Some(group) => Rc::new(group),
            None => Rc::new(Solo::within(self.shared.pulse.clone())),
        }
    }

    fn fail(&self, reason: &str) {
        self.shared.abort.set(CommError::Ended(reason.into()));
    }

    fn ended(&self) -> Option<CommError> {
        self.shared.abort.get()
    }

    fn traffic(&self) -> Vec<u64> {
        self.shared.traffic.get()
    }

    fn pulse(&self) -> &Arc<Pulse> {
        &self.shared.pulse
    }
}
