//! Ranks as threads of one process, for tests: the same worker and the same ring as between processes, over channels.

use crate::abort::{self, Abort};
use crate::transport::{Finish, Head, Incoming, Outgoing, Transport, Waker};
use crate::{Comm, CommError, Pulse, Ranks, Solo};
use ferrotune_tensor::Lent;
use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

/// Where all of these ranks run.
const HOST: &str = "this process";

/// Runs `body` on `world` ranks and returns what each of them returned. A rank that returns early is gone: the
/// others' next collectives with it fail.
///
/// # Panics
/// If a rank panics: all others are told and come to their end, then the panic goes on here.
pub fn run<R: Send>(world: usize, body: impl Fn(Rc<dyn Comm>) -> R + Sync) -> Vec<R> {
    let results = run_each(world, body);
    results.into_iter().map(|result| result.unwrap_or_else(|panic| resume_unwind(panic))).collect()
}

/// As [`run`], with a rank's panic as its result; the others see it fail.
///
/// # Panics
/// If the system gives no threads.
pub fn run_each<R: Send>(world: usize, body: impl Fn(Rc<dyn Comm>) -> R + Sync) -> Vec<std::thread::Result<R>> {
    let (senders, inboxes): (Vec<_>, Vec<_>) = (0..world).map(|_| mpsc::channel()).unzip();
    let body = &body;
    std::thread::scope(|scope| {
        let ranks = inboxes.into_iter().enumerate().map(|(rank, inbox)| {
            let peers = senders.clone();
            scope.spawn(move || one(rank, peers, inbox, body))
        });
        let ranks: Vec<_> = ranks.collect();
        ranks.into_iter().map(|rank| rank.join().and_then(|result| result)).collect()
    })
}

fn one<R>(
    rank: usize,
    peers: Vec<Sender<Message>>,
    inbox: Receiver<Message>,
    body: &impl Fn(Rc<dyn Comm>) -> R,
) -> std::thread::Result<R> {
    if peers.len() == 1 {
        return catch_unwind(AssertUnwindSafe(|| body(Rc::new(Solo::default()))));
    }
    let (abort, pulse) = (Arc::new(Abort::default()), Arc::new(Pulse::default()));
    let transport = Channels {
        rank,
        waiting: peers.iter().map(|_| VecDeque::new()).collect(),
        gone: vec![false; peers.len()],
        peers,
        inbox,
        abort: abort.clone(),
        pulse: pulse.clone(),
    };
    let comm: Rc<dyn Comm> = Rc::new(Ranks::start(transport, abort, pulse).expect("the system gives a thread"));
    let result = catch_unwind(AssertUnwindSafe(|| body(comm.clone())));
    if let Err(panic) = &result {
        comm.fail(&format!("it panicked: {}", words(panic.as_ref())));
    }
    result
}

fn words(panic: &(dyn Any + Send)) -> &str {
    let literal = panic.downcast_ref::<&str>().copied();
    literal.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without words")
}

enum Message {
    Data { from: usize, head: Head, bytes: Vec<u8> },
    Gone { from: usize },
    Abort(CommError),
    Wake,
}

struct Channels {
    rank: usize,
    peers: Vec<Sender<Message>>,
    inbox: Receiver<Message>,
    /// Received and not yet asked for, by sender.
    waiting: Vec<VecDeque<(Head, Vec<u8>)>>,
    gone: Vec<bool>,
    abort: Arc<Abort>,
    pulse: Arc<Pulse>,
}

impl Channels {
    fn tell(&self, to: usize, message: Message) {
        // A rank that is gone has said so, or is about to.
        let _ = self.peers[to].send(message);
    }

    fn tell_all(&self, message: impl Fn() -> Message) {
        (0..self.peers.len()).filter(|to| *to != self.rank).for_each(|to| self.tell(to, message()));
    }

    fn sort(&mut self, message: Message) {
        match message {
            Message::Data { from, head, bytes } => self.waiting[from].push_back((head, bytes)),
            Message::Gone { from } => self.gone[from] = true,
            Message::Abort(error) => {
                self.abort.set(error);
            }
            Message::Wake => {}
        }
    }

    fn wait(&mut self) -> Result<(), CommError> {
        let message = self.inbox.recv().map_err(|_| CommError::Ended("nobody is left".into()))?;
        self.sort(message);
        self.abort.get().map_or(Ok(()), Err)
    }
}

impl Transport for Channels {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.peers.len()
    }

    fn duplex(&mut self, out: Option<Outgoing<'_>>, into: Option<Incoming<'_>>) -> Result<(), CommError> {
        if let Some(Outgoing { to, head, bytes }) = out {
            self.tell(to, Message::Data { from: self.rank, head, bytes: bytes.to_vec() });
        }
        let Some(Incoming { from, head, bytes }) = into else { return Ok(()) };
        loop {
            if let Some((theirs, content)) = self.waiting[from].pop_front() {
                theirs.check(&head, from)?;
                bytes.copy_from_slice(&content);
                return Ok(());
            }
            if self.gone[from] {
                let reason = "it had ended its part of the run".into();
                let doing = crate::Activity::Finished.words().into();
                return Err(CommError::PeerLost { rank: from, host: HOST.into(), reason, doing });
            }
            self.wait()?;
        }
    }

    fn post(&mut self, to: usize, head: Head, loan: Lent, finish: Finish) {
        self.tell(to, Message::Data { from: self.rank, head, bytes: loan.bytes().to_vec() });
        drop(loan);
        finish(Ok(()));
    }

    fn idle(&mut self) -> Result<(), CommError> {
        self.wait()
    }

    fn waker(&self) -> Waker {
        let inbox = self.peers[self.rank].clone();
        // A worker that is gone needs no waking.
        Arc::new(move || drop(inbox.send(Message::Wake)))
    }

    fn finish(&mut self) {
        self.tell_all(|| Message::Gone { from: self.rank });
    }

    fn abandon(&mut self, error: &CommError) {
        let told = abort::told(error, self.rank, HOST, &self.pulse.beat().to_string());
        self.tell_all(|| Message::Abort(told.clone()));
        self.finish();
    }
}
