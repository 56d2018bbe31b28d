//! NCCL on one GPU: communicators, and their work in streams of their own.
//!
//! ```text
//! work         ... kernels | mark ......... kernels that don't need the result ... | wait | kernels that do
//!                              \                                                   /
//! collectives                  wait | begins, all_reduce, ends -------------------
//! ```
//!
//! Nothing here waits for the GPU: the stream of a communicator waits by an event for the work before a call, and the work
//! waits by the call's [`Mark`] for its end. Communicators don't block either: making one and, now and then, a call goes on
//! behind our back, until [`Communicator::state`] says that it is done. Any thread may look at a communicator or abort it.

use super::driver::{self, flag};
use super::gpu::{Gpu, Token, lock};
use super::nccl::{Address, Config, Nccl, UniqueId, code, element, reduction};
use super::{CallError, Library};
use crate::{DType, Device, Tensor};
use std::ffi::c_int;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// NCCL in use on a GPU. Clones share it.
#[derive(Clone)]
pub struct Collectives(Arc<Inner>);

struct Inner {
    gpu: Arc<Gpu>,
    nccl: Nccl,
    /// Of all communicators that share one.
    stream: Token,
    /// Events that nobody uses, with times.
    events: Mutex<Vec<Token>>,
}

/// Where the work of a communicator queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// With that of all others that share this queue, in the order of the calls: ranks that call in one order can't wait for
    /// each other.
    Shared,
    /// By itself: it waits for nobody else's.
    Own,
}

/// Values of a GPU. Whoever holds this keeps their tensor alive.
#[derive(Debug, Clone, Copy)]
pub struct Operand {
    at: Address,
    bytes: usize,
    dtype: DType,
}

impl Operand {
    /// The values of a tensor; `None` if there are none, since its device doesn't execute or isn't a GPU.
    pub fn of(tensor: &Tensor) -> Option<Self> {
        tensor.device().gpu()?;
        tensor.executes().then(|| Self { at: tensor.address(), bytes: tensor.bytes(), dtype: tensor.dtype() })
    }
}

/// A call, the same at all ranks of a communicator.
#[derive(Debug, Clone)]
pub enum Call {
    /// Sums over all ranks, in place.
    AllReduce(Operand),
    /// Sums `full` over all ranks; this rank's part of it goes to `shard`.
    ReduceScatter {
        /// As many shards as there are ranks.
        full: Operand,
        /// Elsewhere, or this rank's part of `full`.
        shard: Operand,
    },
    /// Puts all ranks' shards end to end.
    AllGather {
        /// Elsewhere, or this rank's part of `full`.
        shard: Operand,
        /// As many shards as there are ranks.
        full: Operand,
    },
    /// Copies from one rank to all.
    Broadcast {
        /// What is copied.
        buffer: Operand,
        /// Which rank's.
        root: usize,
    },
    /// Sends to a rank.
    Send(Operand, usize),
    /// Receives what a rank sends.
    Receive(Operand, usize),
    /// Messages to some ranks and from some, all under way at once: each with the other rank.
    Swap {
        /// What is sent.
        out: Vec<(Operand, usize)>,
        /// Where what comes is put.
        into: Vec<(Operand, usize)>,
    },
}

/// How a communicator is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// The next call may be made.
    Ready,
    /// It is being made, or its last call isn't in the stream yet.
    Working,
    /// It works no more.
    Failed(CallError),
}

/// A call's place in its stream.
pub struct Mark {
    of: Arc<Inner>,
    begin: Token,
    end: Token,
}

/// Ranks that NCCL has brought together.
pub struct Communicator {
    of: Arc<Inner>,
    /// `None` once it was aborted.
    handle: Mutex<Option<Token>>,
    stream: Token,
    queue: Queue,
}

/// Communication begins before kernels that are launched at the same time.
const PRIORITY: c_int = -1;

impl Inner {
    fn event(&self) -> Result<Token, CallError> {
        if let Some(event) = lock(&self.events).pop() {
            return Ok(event);
        }
        let mut event = std::ptr::null_mut();
        // SAFETY: `event` outlives the call.
        unsafe { self.gpu.here().create_event(&raw mut event, flag::EVENT_TIMED) }?;
        Ok(Token::new(event))
    }

    /// Sets a mark behind all of a stream so far.
    fn record(&self, stream: Token) -> Result<Token, CallError> {
        let event = self.event()?;
        // SAFETY: event and stream live.
        unsafe { self.gpu.here().record_event(event.handle(), stream.handle()) }?;
        Ok(event)
    }

    /// What follows in `stream` waits for a mark.
    fn wait(&self, stream: Token, event: Token) -> Result<(), CallError> {
        // SAFETY: as above. A wait holds on to the mark, not to the event, which may be recorded again.
        unsafe { self.gpu.here().wait_event(stream.handle(), event.handle(), 0) }
    }

    fn stream(&self) -> Result<Token, CallError> {
        stream(&self.gpu)
    }
}

fn stream(gpu: &Gpu) -> Result<Token, CallError> {
    let mut stream = std::ptr::null_mut();
    // SAFETY: `stream` outlives the call.
    unsafe { gpu.here().create_stream(&raw mut stream, flag::STREAM_NON_BLOCKING, PRIORITY) }?;
    Ok(Token::new(stream))
}

impl Drop for Inner {
    fn drop(&mut self) {
        let driver = self.gpu.here();
        for event in lock(&self.events).drain(..) {
            // SAFETY: an event that nobody uses. Errors have nowhere to go.
            let _ = unsafe { driver.destroy_event(event.handle()) };
        }
        // SAFETY: no communicator is left that uses it.
        let _ = unsafe { driver.destroy_stream(self.stream.handle()) };
    }
}

impl Collectives {
    /// NCCL on `device`; `None` unless that is a GPU.
    ///
    /// # Errors
    /// The driver's.
    pub fn new(device: &Device, nccl: Nccl) -> Result<Option<Self>, CallError> {
        let Some(gpu) = device.shared_gpu() else { return Ok(None) };
        let stream = stream(&gpu)?;
        Ok(Some(Self(Arc::new(Inner { gpu, nccl, stream, events: Mutex::default() }))))
    }

    /// The library.
    pub fn library(&self) -> &Library {
        self.0.nccl.library()
    }

    /// Identity of a communicator to be made: one rank asks for it and tells the others.
    ///
    /// # Errors
    /// NCCL's.
    pub fn unique_id(&self) -> Result<UniqueId, CallError> {
        let mut id = UniqueId { bytes: [0; 128] };
        self.0.gpu.here();
        // SAFETY: `id` outlives the call.
        unsafe { self.0.nccl.get_unique_id(&raw mut id) }.map(|()| id)
    }

    /// Begins to make the communicator `id`, as `rank` of `ranks`.
    ///
    /// # Errors
    /// NCCL's.
    pub fn join(&self, id: &UniqueId, rank: usize, ranks: usize, queue: Queue) -> Result<Communicator, CallError> {
        let own = || self.0.stream();
        let stream = if queue == Queue::Own { own()? } else { self.0.stream };
        let (mut handle, mut config) = (std::ptr::null_mut(), Config::non_blocking());
        let (ranks, rank) = (number(ranks), number(rank));
        self.0.gpu.here();
        // SAFETY: places that outlive the call, in this thread's context.
        let begun = unsafe { self.0.nccl.init(&raw mut handle, ranks, *id, rank, &raw mut config) };
        going_on(begun)?;
        Ok(Communicator { of: self.0.clone(), handle: Mutex::new(Some(Token::new(handle))), stream, queue })
    }
}

/// Ranks and their numbers fit easily.
fn number(of: usize) -> c_int {
    c_int::try_from(of).unwrap_or(c_int::MAX)
}

/// A call that goes on isn't one that failed.
fn going_on(result: Result<(), CallError>) -> Result<(), CallError> {
    match result {
        Err(error) if error.code == code::IN_PROGRESS => Ok(()),
        result => result,
    }
}

/// What a communicator that was aborted says.
fn aborted() -> CallError {
    CallError { call: "a call of an aborted communicator", code: 0, name: "aborted".to_owned() }
}

impl Communicator {
    /// How it is.
    pub fn state(&self) -> State {
        let handle = lock(&self.handle);
        let Some(handle) = *handle else { return State::Failed(aborted()) };
        let mut error = 0;
        // SAFETY: a communicator that lives as long as the lock is held, and a place that outlives the call.
        if let Err(error) = unsafe { self.of.nccl.async_error(handle.handle(), &raw mut error) } {
            return State::Failed(error);
        }
        match error {
            0 => State::Ready,
            code::IN_PROGRESS => State::Working,
            code => State::Failed(CallError { call: "NCCL", code, name: self.of.nccl.name_of(code) }),
        }
    }

    /// All work of the GPU so far, for a call that comes after it.
    ///
    /// # Errors
    /// The driver's.
    pub fn work_so_far(&self) -> Result<Before, CallError> {
        Ok(Before { event: self.of.record(self.of.gpu.work)? })
    }

    /// Makes a call that comes after some work, and is in the stream once [`state`](Self::state) is ready again.
    /// [`mark`](Self::mark) must follow then.
    ///
    /// # Errors
    /// NCCL's.
    pub fn launch(&self, call: &Call, before: Before) -> Result<Launched, CallError> {
        // Not earlier: calls that are made before this one don't wait for what it waits for.
        self.of.wait(self.stream, before.event)?;
        lock(&self.of.events).push(before.event);
        let begin = self.of.record(self.stream)?;
        let handle = lock(&self.handle);
        let Some(handle) = *handle else { return Err(aborted()) };
        self.of.gpu.here();
        going_on(self.of.make(call, handle, self.stream))?;
        Ok(Launched { begin })
    }

    /// The place behind a call.
    ///
    /// # Errors
    /// The driver's.
    pub fn mark(&self, launched: Launched) -> Result<Mark, CallError> {
        let end = self.of.record(self.stream)?;
        Ok(Mark { of: self.of.clone(), begin: launched.begin, end })
    }

    /// Ends what is under way, wherever it waits. All later calls fail.
    pub fn abort(&self) {
        let handle = lock(&self.handle).take();
        if let Some(handle) = handle {
            self.of.gpu.here();
            // SAFETY: a communicator that nobody can reach any more. What it says changes nothing.
            let _ = unsafe { self.of.nccl.abort(handle.handle()) };
        }
    }

    /// Begins its orderly end.
    pub fn finalize(&self) {
        if let Some(handle) = &*lock(&self.handle) {
            self.of.gpu.here();
            // SAFETY: a communicator that lives as long as the lock is held. `state` tells what became of it.
            let _ = unsafe { self.of.nccl.finalize(handle.handle()) };
        }
    }

    /// Gives all back, after [`finalize`](Self::finalize) has come to its end.
    pub fn destroy(&self) {
        let handle = lock(&self.handle).take();
        if let Some(handle) = handle {
            self.of.gpu.here();
            // SAFETY: as for `abort`.
            let _ = unsafe { self.of.nccl.destroy(handle.handle()) };
        }
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        self.abort();
        if self.queue == Queue::Own {
            // SAFETY: its own stream; the driver lets its work end.
            let _ = unsafe { self.of.gpu.here().destroy_stream(self.stream.handle()) };
        }
    }
}

/// Work that a call comes after.
#[derive(Debug, Clone, Copy)]
pub struct Before {
    event: Token,
}

/// A call that isn't marked yet.
#[derive(Debug, Clone, Copy)]
pub struct Launched {
    begin: Token,
}

impl Inner {
    fn make(&self, call: &Call, communicator: Token, stream: Token) -> Result<(), CallError> {
        let (nccl, communicator, stream, sum) = (&self.nccl, communicator.handle(), stream.handle(), reduction::SUM);
        // SAFETY: values of tensors of this GPU that the caller keeps alive, of the sizes that are told; a communicator that
        // lives, and its stream.
        unsafe {
            match call {
                Call::AllReduce(x) => {
                    let (count, of) = x.elements();
                    nccl.all_reduce(x.at, x.at, count, of, sum, communicator, stream)
                }
                Call::ReduceScatter { full, shard } => {
                    let (count, of) = shard.elements();
                    nccl.reduce_scatter(full.at, shard.at, count, of, sum, communicator, stream)
                }
                Call::AllGather { shard, full } => {
                    nccl.all_gather(shard.at, full.at, shard.bytes, element::U8, communicator, stream)
                }
                Call::Broadcast { buffer: Operand { at, bytes, .. }, root } => {
                    nccl.broadcast(*at, *at, *bytes, element::U8, number(*root), communicator, stream)
                }
                Call::Send(x, to) => nccl.send(x.at, x.bytes, element::U8, number(*to), communicator, stream),
                Call::Receive(x, from) => nccl.receive(x.at, x.bytes, element::U8, number(*from), communicator, stream),
                Call::Swap { out, into } => {
                    nccl.group_start()?;
                    let sent = out.iter().try_for_each(|(x, to)| {
                        going_on(nccl.send(x.at, x.bytes, element::U8, number(*to), communicator, stream))
                    });
                    let asked = sent.and_then(|()| {
                        into.iter().try_for_each(|(x, from)| {
                            going_on(nccl.receive(x.at, x.bytes, element::U8, number(*from), communicator, stream))
                        })
                    });
                    // A group that was begun is ended, whatever came of it: it is this thread's.
                    let ended = nccl.group_end();
                    asked.and(ended)
                }
            }
        }
    }
}

impl Operand {
    /// How long they are together.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many there are, and of which type.
    ///
    /// # Panics
    /// If they can't be summed.
    fn elements(&self) -> (usize, c_int) {
        let of = match self.dtype {
            DType::F32 => element::F32,
            DType::Bf16 => element::BF16,
            DType::F16 => element::F16,
            other => panic!("a sum of {other}"),
        };
        (self.bytes / self.dtype.bytes(1), of)
    }
}

impl Mark {
    /// All work of the GPU from here on comes after the call's end. The host doesn't wait.
    pub fn hold_work(&self) {
        let told = self.of.wait(self.of.gpu.work, self.end);
        self.of.gpu.note(told);
    }

    /// Whether the call has come to its end.
    ///
    /// # Errors
    /// The driver's.
    pub fn passed(&self) -> Result<bool, CallError> {
        // SAFETY: an event that lives as long as this.
        match unsafe { self.of.gpu.here().query_event(self.end.handle()) } {
            Ok(()) => Ok(true),
            Err(error) if error.code == driver::code::NOT_READY => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// How long it took, from the moment at which it was its turn; `None` before its end.
    pub fn took(&self) -> Option<Duration> {
        let mut milliseconds = 0.0;
        let (begin, end) = (self.begin.handle(), self.end.handle());
        // SAFETY: events that live as long as this, and a place that outlives the call.
        unsafe { self.of.gpu.here().elapsed(&raw mut milliseconds, begin, end) }.ok()?;
        Some(Duration::from_secs_f32(milliseconds.max(0.0) / 1e3))
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        lock(&self.of.events).extend([self.begin, self.end]);
    }
}
