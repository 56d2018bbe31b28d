//! Ranks whose tensors lie on GPUs: NCCL moves what the GPUs hold, and TCP all else, as it does between processors: small
//! numbers, heart-beats, the end of the run, and the identities by which NCCL brings ranks together.
//!
//! Collectives of all groups are in one stream, in the order in which they were begun, so that ranks that begin them in one
//! order can't wait for each other; a swap among all is one of them. Messages between two ranks have a communicator and a stream for each direction, since a
//! send must wait for nobody: over one communicator the stages of a pipe would wait for each other (NCCL's send ends when it is
//! received). Communicators are made when they are first needed, and end with the last handle of their group.

mod line;
mod watch;

pub(crate) use line::Queued;

use crate::comm::check_summed;
use crate::ranks::lies_in;
use crate::schedule::Ring;
use crate::{Comm, CommError, Pulse, Ranks, Solo, Ticket};
use ferrotune_tensor::cuda::nccl::UniqueId;
use ferrotune_tensor::cuda::{Call, CallError, Collectives, Communicator, Operand, Queue};
use ferrotune_tensor::{Device, Kind, Tensor};
use line::{Line, Slot};
use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use watch::Watch;

/// How patient a rank is with NCCL.
#[derive(Debug, Clone, Copy)]
pub struct NcclSettings {
    /// With its bringing ranks together.
    pub join_timeout: Duration,
    /// With a collective, once it is in its stream.
    pub collective_timeout: Duration,
}

/// All ranks of a run, or a group of them, over NCCL and TCP.
pub struct NcclRanks {
    // Before what it needs to end in order.
    members: Rc<Members>,
    shared: Rc<Shared>,
}

/// What all groups of a rank share.
struct Shared {
    nccl: Collectives,
    /// For identities on their way.
    host: Device,
    watch: Arc<Watch>,
    thread: Option<JoinHandle<()>>,
    groups: RefCell<HashMap<Arc<[usize]>, Weak<Members>>>,
}

/// A group, however many handles it has.
struct Members {
    control: Ranks,
    all: RefCell<Option<Arc<Line>>>,
    to: RefCell<HashMap<usize, Arc<Line>>>,
    from: RefCell<HashMap<usize, Arc<Line>>>,
}

impl Members {
    fn new(control: Ranks) -> Rc<Self> {
        Rc::new(Self { control, all: RefCell::default(), to: RefCell::default(), from: RefCell::default() })
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.watch.close();
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has no more to say.
            let _ = thread.join();
        }
    }
}

impl NcclRanks {
    /// The ranks of `control`, which all compute on GPUs and have found the same NCCL.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(control: Ranks, nccl: Collectives, settings: NcclSettings) -> io::Result<Self> {
        let watch = Watch::new(control.abort().clone(), control.pulse().clone(), settings);
        let name = format!("NCCL's watch of rank {}", control.rank());
        let watching = watch.clone();
        let thread = Some(std::thread::Builder::new().name(name).spawn(move || watching.run())?);
        let members = Members::new(control);
        let groups = RefCell::new(HashMap::from([(members.control.ranks().clone(), Rc::downgrade(&members))]));
        let shared = Rc::new(Shared { nccl, host: Device::cpu(), watch, thread, groups });
        Ok(Self { members, shared })
    }

    fn control(&self) -> &Ranks {
        &self.members.control
    }

    /// Where the values of tensors lie. One without can't take part, and the others must not wait for it.
    fn operands<const N: usize>(&self, tensors: [&Tensor; N]) -> Result<[Operand; N], CommError> {
        if let Some(error) = self.ended() {
            return Err(error);
        }
        let found = tensors.map(Operand::of);
        if let Some(at) = found.iter().position(Option::is_none) {
            return Err(self.control().refuse(tensors[at]));
        }
        Ok(found.map(|operand| operand.expect("all were looked at")))
    }

    /// A collective of all members, of which a ring would `send` so many bytes to the next.
    fn collective<const N: usize>(
        &self,
        tensors: [&Tensor; N],
        sends: u64,
        call: impl FnOnce([Operand; N]) -> Call,
    ) -> Ticket {
        let begin = || {
            let operands = self.operands(tensors)?;
            let line = self.line()?;
            let next = (self.rank() + 1) % self.world();
            self.control().counts(next, sends);
            self.in_turn(&line, call(operands))
        };
        self.ticket(begin(), tensors.map(Tensor::clone).to_vec())
    }

    /// Puts a collective behind all before it.
    fn in_turn(&self, line: &Arc<Line>, call: Call) -> Result<Arc<Slot>, CommError> {
        let slot = self.put(line, call)?;
        // The next collective may be another group's, and must be behind this one.
        slot.wait(self.control().abort());
        Ok(slot)
    }

    fn ticket(&self, begun: Result<Arc<Slot>, CommError>, hold: Vec<Tensor>) -> Ticket {
        match begun {
            Ok(slot) => Ticket::queued(Queued::new(slot, self.control().abort().clone()), hold),
            Err(error) => Ticket::failed(error),
        }
    }

    fn put(&self, line: &Arc<Line>, call: Call) -> Result<Arc<Slot>, CommError> {
        let watch = &self.shared.watch;
        let put = line.put(call).and_then(|slot| watch.pump(line).map(|()| slot));
        put.map_err(|error| watch.explain(&error))
    }

    /// The communicator of all members.
    fn line(&self) -> Result<Arc<Line>, CommError> {
        if let Some(line) = &*self.members.all.borrow() {
            return Ok(line.clone());
        }
        let mine = if self.rank() == 0 { self.identity()?.bytes.to_vec() } else { Vec::new() };
        let told = self.control().exchange(&mine)?;
        let bytes = told.first().and_then(|bytes| bytes.as_slice().try_into().ok());
        let id = UniqueId { bytes: bytes.ok_or_else(|| self.shared.watch.end("rank 0 sent no identity".into()))? };
        let made = self.shared.nccl.join(&id, self.rank(), self.world(), Queue::Shared);
        let line = self.keep(made, self.control().ranks().to_vec())?;
        *self.members.all.borrow_mut() = Some(line.clone());
        Ok(line)
    }

    fn identity(&self) -> Result<UniqueId, CommError> {
        self.shared.nccl.unique_id().map_err(|error| self.shared.watch.explain(&error))
    }

    fn keep(&self, made: Result<Communicator, CallError>, ranks: Vec<usize>) -> Result<Arc<Line>, CommError> {
        let communicator = made.map_err(|error| self.shared.watch.explain(&error))?;
        let line = Arc::new(Line::new(communicator, ranks, self.control().abort().clone()));
        self.shared.watch.add(&line);
        Ok(line)
    }

    /// The communicator for what this rank sends to `to`, which need not be there yet.
    fn line_to(&self, to: usize) -> Result<Arc<Line>, CommError> {
        if let Some(line) = self.members.to.borrow().get(&to) {
            return Ok(line.clone());
        }
        let id = self.identity()?;
        let words: Vec<u32> = id.bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
        self.control().send(&Tensor::from_u32(&self.shared.host, &words, Kind::Work), to).wait()?;
        let ranks = [self.rank(), to].map(|rank| self.control().ranks()[rank]).to_vec();
        let line = self.keep(self.shared.nccl.join(&id, 0, 2, Queue::Own), ranks)?;
        self.members.to.borrow_mut().insert(to, line.clone());
        Ok(line)
    }

    /// The communicator for what `from` sends to this rank.
    fn line_from(&self, from: usize) -> Result<Arc<Line>, CommError> {
        if let Some(line) = self.members.from.borrow().get(&from) {
            return Ok(line.clone());
        }
        let words = Tensor::from_u32(&self.shared.host, &[0; 32], Kind::Work);
        self.control().recv(&words, from).wait()?;
        let mut id = UniqueId { bytes: [0; 128] };
        words.with_bytes(|bytes| id.bytes.copy_from_slice(bytes));
        let ranks = [from, self.rank()].map(|rank| self.control().ranks()[rank]).to_vec();
        let line = self.keep(self.shared.nccl.join(&id, 1, 2, Queue::Own), ranks)?;
        self.members.from.borrow_mut().insert(from, line.clone());
        Ok(line)
    }

    fn ring(&self, tensor: &Tensor, unit: usize) -> Ring {
        Ring { rank: self.rank(), world: self.world(), bytes: tensor.bytes(), unit }
    }
}

/// Whether NCCL moves it.
fn is_on_gpu(tensor: &Tensor) -> bool {
    tensor.device().gpu().is_some()
}

impl Comm for NcclRanks {
    fn rank(&self) -> usize {
        self.control().rank()
    }

    fn world(&self) -> usize {
        self.control().world()
    }

    fn all_reduce(&self, buffer: &Tensor) -> Ticket {
        if !is_on_gpu(buffer) {
            return self.control().all_reduce(buffer);
        }
        check_summed(buffer.dtype());
        let sends = Ring::sent(self.ring(buffer, buffer.dtype().bytes(1)).all_reduce());
        self.collective([buffer], sends, |[buffer]| Call::AllReduce(buffer))
    }

    fn reduce_scatter(&self, full: &Tensor, shard: &Tensor) -> Ticket {
        if !is_on_gpu(full) {
            return self.control().reduce_scatter(full, shard);
        }
        check_summed(full.dtype());
        assert_eq!(full.dtype(), shard.dtype(), "sums are of one type");
        lies_in(full, shard, self.rank(), self.world());
        let sends = Ring::sent(self.ring(full, full.dtype().bytes(1)).reduce_scatter());
        self.collective([full, shard], sends, |[full, shard]| Call::ReduceScatter { full, shard })
    }

    fn all_gather(&self, shard: &Tensor, full: &Tensor) -> Ticket {
        if !is_on_gpu(full) {
            return self.control().all_gather(shard, full);
        }
        lies_in(full, shard, self.rank(), self.world());
        let sends = Ring::sent(self.ring(full, 1).all_gather());
        self.collective([shard, full], sends, |[shard, full]| Call::AllGather { shard, full })
    }

    fn broadcast(&self, buffer: &Tensor, root: usize) -> Ticket {
        if !is_on_gpu(buffer) {
            return self.control().broadcast(buffer, root);
        }
        assert!(root < self.world(), "no rank {root} among {:?}", self.control().ranks());
        let sends = Ring::sent(self.ring(buffer, 1).broadcast(root));
        self.collective([buffer], sends, |[buffer]| Call::Broadcast { buffer, root })
    }

    fn send(&self, buffer: &Tensor, to: usize) -> Ticket {
        if !is_on_gpu(buffer) {
            return self.control().send(buffer, to);
        }
        assert!(to != self.rank() && to < self.world(), "no other rank {to} among {:?}", self.control().ranks());
        let begin = || {
            let [operand] = self.operands([buffer])?;
            self.control().counts(to, buffer.bytes() as u64);
            self.put(&self.line_to(to)?, Call::Send(operand, 1))
        };
        self.ticket(begin(), vec![buffer.clone()])
    }

    fn recv(&self, buffer: &Tensor, from: usize) -> Ticket {
        if !is_on_gpu(buffer) {
            return self.control().recv(buffer, from);
        }
        assert!(from != self.rank() && from < self.world(), "no other rank {from} among {:?}", self.control().ranks());
        let begin = || {
            let [operand] = self.operands([buffer])?;
            self.put(&self.line_from(from)?, Call::Receive(operand, 0))
        };
        self.ticket(begin(), vec![buffer.clone()])
    }

    fn swap(&self, out: &[Tensor], into: &[Tensor]) -> Ticket {
        if !out.iter().chain(into).any(is_on_gpu) {
            return self.control().swap(out, into);
        }
        let (rank, mut hold) = (self.rank(), Vec::new());
        let mut begin = || -> Result<Option<Arc<Slot>>, CommError> {
            let mut messages = |tensors: &[Tensor]| -> Result<Vec<(Operand, usize)>, CommError> {
                let theirs = tensors.iter().enumerate().filter(|(peer, tensor)| *peer != rank && tensor.numel() > 0);
                theirs
                    .map(|(peer, tensor)| {
                        hold.push(tensor.clone());
                        self.operands([tensor]).map(|[operand]| (operand, peer))
                    })
                    .collect()
            };
            let (out, into) = (messages(out)?, messages(into)?);
            // One communicator for all of a group's swaps; it is made by all, also by those without a message.
            let line = self.line()?;
            if out.is_empty() && into.is_empty() {
                return Ok(None);
            }
            out.iter().for_each(|(operand, to)| self.control().counts(*to, operand.bytes() as u64));
            self.in_turn(&line, Call::Swap { out, into }).map(Some)
        };
        match begin() {
            Ok(None) => Ticket::done(hold),
            Ok(Some(slot)) => self.ticket(Ok(slot), hold),
            Err(error) => Ticket::failed(error),
        }
    }

    fn sum(&self, values: &mut [f64]) -> Result<(), CommError> {
        self.control().sum(values)
    }

    fn exchange(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
        self.control().exchange(mine)
    }

    fn barrier(&self) -> Result<(), CommError> {
        self.control().barrier()
    }

    fn group(&self, ranks: &[usize]) -> Rc<dyn Comm> {
        let Some(control) = self.control().among(ranks) else {
            return Rc::new(Solo::within(self.pulse().clone()));
        };
        let key = control.ranks().clone();
        let known = self.shared.groups.borrow().get(&key).and_then(Weak::upgrade);
        let members = known.unwrap_or_else(|| Members::new(control));
        self.shared.groups.borrow_mut().insert(key, Rc::downgrade(&members));
        Rc::new(Self { members, shared: self.shared.clone() })
    }

    fn release(&self) {
        self.members.to.borrow_mut().clear();
        self.members.from.borrow_mut().clear();
        *self.members.all.borrow_mut() = None;
    }

    fn fail(&self, reason: &str) {
        self.control().fail(reason);
    }

    fn ended(&self) -> Option<CommError> {
        self.control().ended()
    }

    fn traffic(&self) -> Vec<u64> {
        self.control().traffic()
    }

    fn pulse(&self) -> &Arc<Pulse> {
        self.control().pulse()
    }
}
