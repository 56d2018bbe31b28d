//! Messages between the ranks of a communicator, over sockets of this machine: a connection each way, written and read by
//! threads, so that nobody ever waits for a peer to read.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// What a call is, as its peers must have it too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) op: u8,
    pub(super) of: u8,
    /// Rank whose values are sent, where it is one's.
    pub(super) root: u32,
    pub(super) count: u64,
}

/// A part of a call.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) head: Head,
    pub(super) bytes: Vec<u8>,
}

/// Bytes before a message's own.
const HEADER: usize = 24;
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(2);

/// What came, by sender and in order: values, and words that a receiver is there.
type Inbox = Arc<Mutex<Vec<[VecDeque<Message>; 2]>>>;

/// This rank's connections.
pub(super) struct Wire {
    inbox: Inbox,
    out: OnceLock<Vec<Option<Sender<Vec<u8>>>>>,
    ranks: usize,
}

/// What a message is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum About {
    Values = 0,
    Taken = 1,
}

impl Wire {
    pub(super) fn new(ranks: usize) -> Self {
        let inbox = Arc::new(Mutex::new((0..ranks).map(|_| Default::default()).collect()));
        Self { inbox, out: OnceLock::new(), ranks }
    }

    /// Connects to all ranks of `id`, each of which may come later, until `stop`.
    pub(super) fn connect(&self, id: &[u8], rank: usize, stop: &dyn Fn() -> bool) -> io::Result<()> {
        let listener = UnixListener::bind_addr(&address(id, rank)?)?;
        listener.set_nonblocking(true)?;
        let mut out: Vec<Option<Sender<Vec<u8>>>> = (0..self.ranks).map(|_| None).collect();
        let mut missing = self.ranks - 1;
        while missing > 0 || out.iter().enumerate().any(|(peer, out)| peer != rank && out.is_none()) {
            if stop() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            if let Ok((stream, _)) = listener.accept() {
                stream.set_nonblocking(false)?;
                self.hear(stream)?;
                missing -= 1;
                continue;
            }
            for (peer, out) in out.iter_mut().enumerate().filter(|(peer, out)| *peer != rank && out.is_none()) {
                if let Ok(stream) = UnixStream::connect_addr(&address(id, peer)?) {
                    *out = Some(speak(stream, rank)?);
                }
            }
            std::thread::sleep(PAUSE);
        }
        let _ = self.out.set(out);
        Ok(())
    }

    fn hear(&self, mut stream: UnixStream) -> io::Result<()> {
        let mut from = [0; 4];
        stream.read_exact(&mut from)?;
        let (from, inbox) = (u32::from_le_bytes(from) as usize, self.inbox.clone());
        std::thread::spawn(move || {
            // A peer that is gone says no more.
            while let Ok((about, message)) = read(&mut stream) {
                if let Some(of) = lock(&inbox).get_mut(from) {
                    of[about as usize].push_back(message);
                }
            }
        });
        Ok(())
    }

    pub(super) fn send(&self, to: usize, about: About, head: Head, bytes: &[u8]) {
        let mut message = vec![head.op, head.of, about as u8, 0];
        message.extend(head.root.to_le_bytes());
        message.extend(head.count.to_le_bytes());
        message.extend((bytes.len() as u64).to_le_bytes());
        message.extend(bytes);
        if let Some(Some(out)) = self.out.get().and_then(|out| out.get(to)) {
            // As above.
            let _ = out.send(message);
        }
    }

    pub(super) fn has(&self, from: usize, about: About) -> bool {
        !lock(&self.inbox)[from][about as usize].is_empty()
    }

    pub(super) fn take(&self, from: usize, about: About) -> Option<Message> {
        lock(&self.inbox)[from][about as usize].pop_front()
    }
}

fn lock(inbox: &Inbox) -> MutexGuard<'_, Vec<[VecDeque<Message>; 2]>> {
    inbox.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A name outside the file system, which goes with its last socket.
fn address(id: &[u8], rank: usize) -> io::Result<SocketAddr> {
    let id: String = id.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    SocketAddr::from_abstract_name(format!("ferrotune-fake-nccl-{id}-{rank}"))
}

fn speak(mut stream: UnixStream, rank: usize) -> io::Result<Sender<Vec<u8>>> {
    stream.write_all(&(rank as u32).to_le_bytes())?;
    let (out, messages): (_, Receiver<Vec<u8>>) = mpsc::channel();
    std::thread::spawn(move || messages.into_iter().try_for_each(|message| stream.write_all(&message)));
    Ok(out)
}

fn read(stream: &mut UnixStream) -> io::Result<(About, Message)> {
    let mut header = [0; HEADER];
    stream.read_exact(&mut header)?;
    let long = |at: usize| header[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
    let root = header[4..8].try_into().map_or(0, u32::from_le_bytes);
    let head = Head { op: header[0], of: header[1], root, count: long(8) };
    let about = if header[2] == 0 { About::Values } else { About::Taken };
    let mut bytes = vec![0; long(16) as usize];
    stream.read_exact(&mut bytes)?;
    Ok((about, Message { head, bytes }))
}
