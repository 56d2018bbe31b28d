//! One data connection: frames on their way out, and where the reading stands. Nothing here blocks.

use super::frame::{Frame, HEADER, decode_error};
use crate::transport::{Finish, Head};
use crate::{Beat, CommError, Heard};
use ferrotune_tensor::Lent;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::TcpStream;
use std::time::Instant;

/// What is the matter with a rank that said goodbye, for those who still want something of it.
pub(super) const ENDED: &str = "it had ended its part of the run";

/// Where the reading stands.
enum Inbound {
    /// In a header, of which so many bytes are there.
    Header([u8; HEADER], usize),
    /// Behind the header of a message that nobody has asked for yet; its bytes stay in the socket.
    Message(Head),
    /// Inside a message that is being taken, so many bytes before its end.
    Body(u64),
    /// Inside the text of an abort.
    Text(Vec<u8>, usize),
}

/// A frame to be sent, and how much of it is.
struct Queued {
    header: [u8; HEADER],
    body: Body,
    sent: usize,
}

enum Body {
    Owned(Vec<u8>),
    Posted(Lent, Finish),
}

/// How a connection came to its end.
pub(super) struct Lost {
    pub(super) at: Instant,
    /// It needs no other explanation.
    pub(super) certain: bool,
    pub(super) reason: String,
}

pub(super) struct Peer {
    pub(super) rank: usize,
    pub(super) host: String,
    pub(super) stream: TcpStream,
    inbound: Inbound,
    queue: VecDeque<Queued>,
    /// When the last byte came, and the last one went.
    pub(super) heard: Instant,
    pub(super) sent: Instant,
    /// When it was last told how this rank is.
    pub(super) told: Instant,
    beat: Beat,
    /// It said goodbye.
    pub(super) bye: bool,
    /// It has all that was sent before our goodbye.
    pub(super) has_all: bool,
    /// There may be more to read.
    pub(super) readable: bool,
    /// None as long as nothing is wrong with the connection.
    pub(super) lost: Option<Lost>,
}

impl Peer {
    pub(super) fn new(rank: usize, host: String, stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let now = Instant::now();
        Ok(Self {
            rank,
            host,
            stream,
            inbound: Inbound::Header([0; HEADER], 0),
            queue: VecDeque::new(),
            heard: now,
            sent: now,
            told: now,
            beat: Beat::default(),
            bye: false,
            has_all: false,
            readable: true,
            lost: None,
        })
    }

    /// What was last heard of it.
    pub(super) fn heard_of(&self) -> Heard {
        Heard { rank: self.rank, host: self.host.clone(), beat: self.beat, at: self.heard }
    }

    /// The error of a run that lost it.
    pub(super) fn gone(&self, reason: &str) -> CommError {
        let (host, doing) = (self.host.clone(), self.beat.to_string());
        CommError::PeerLost { rank: self.rank, host, reason: reason.into(), doing }
    }

    pub(super) fn lose(&mut self, reason: impl Into<String>) {
        // After a goodbye, the end of a connection is no loss.
        if self.lost.is_none() && !self.bye {
            self.lost = Some(Lost { at: Instant::now(), certain: false, reason: reason.into() });
        }
    }

    /// Whether the reading stands before a message that hasn't been asked for.
    pub(super) fn offers(&self) -> bool {
        matches!(self.inbound, Inbound::Message(_))
    }

    /// Whether frames wait to be sent and can be.
    pub(super) fn has_queue(&self) -> bool {
        !self.queue.is_empty()
    }

    pub(super) fn queue(&mut self, frame: Frame, body: Vec<u8>) {
        self.queue.push_back(Queued { header: frame.encode(), body: Body::Owned(body), sent: 0 });
    }

    pub(super) fn post(&mut self, head: Head, loan: Lent, finish: Finish) {
        if self.bye {
            drop(loan);
            return finish(Err(self.gone(ENDED)));
        }
        self.queue.push_back(Queued { header: Frame::Data(head).encode(), body: Body::Posted(loan, finish), sent: 0 });
    }

    /// Queues, before all else, the rest of a frame that was begun by [`write`](Self::write).
    pub(super) fn queue_rest(&mut self, header: [u8; HEADER], body: &[u8], sent: usize) {
        self.queue.push_front(Queued { header, body: Body::Owned(body.to_vec()), sent });
    }

    /// Sends of the queue what the socket takes.
    pub(super) fn flush(&mut self) {
        while let Some(mut first) = self.queue.pop_front() {
            let body = match &first.body {
                Body::Owned(bytes) => bytes,
                Body::Posted(loan, _) => loan.bytes(),
            };
            first.sent += self.write(&first.header, body, first.sent);
            if first.sent < HEADER + body.len() {
                return self.queue.push_front(first);
            }
            if let Body::Posted(loan, finish) = first.body {
                drop(loan);
                finish(Ok(()));
            }
        }
    }

    /// Drops what couldn't be sent.
    pub(super) fn forget(&mut self, error: &CommError) {
        for queued in self.queue.drain(..) {
            if let Body::Posted(loan, finish) = queued.body {
                drop(loan);
                finish(Err(error.clone()));
            }
        }
    }

    /// Writes of a frame, of which `sent` bytes are sent, what the socket takes; returns how much that was.
    pub(super) fn write(&mut self, header: &[u8; HEADER], body: &[u8], sent: usize) -> usize {
        let mut at = sent;
        while at < HEADER + body.len() && self.lost.is_none() {
            let parts = [IoSlice::new(&header[at.min(HEADER)..]), IoSlice::new(&body[at.saturating_sub(HEADER)..])];
            match self.stream.write_vectored(&parts[usize::from(at >= HEADER)..]) {
                Ok(0) => {
                    self.lose("its connection takes no more bytes");
                    break;
                }
                Ok(count) => at += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => {
                    self.lose(format!("its connection broke: {error}"));
                    break;
                }
            }
        }
        if at > sent {
            self.sent = Instant::now();
        }
        at - sent
    }

    /// Reads what comes before the next message, and handles it; returns the error of a peer that ended the run.
    pub(super) fn pump(&mut self, world: usize) -> Option<CommError> {
        while self.readable {
            let buffer = match &mut self.inbound {
                Inbound::Message(_) | Inbound::Body(_) => return None,
                Inbound::Header(bytes, have) => &mut bytes[*have..],
                Inbound::Text(bytes, have) => &mut bytes[*have..],
            };
            let got = read(&self.stream, buffer);
            let count = self.heed(got)?;
            match &mut self.inbound {
                Inbound::Header(bytes, have) => {
                    *have += count;
                    if *have == HEADER {
                        let frame = Frame::decode(bytes);
                        self.frame(frame);
                    }
                }
                Inbound::Text(bytes, have) => {
                    *have += count;
                    if *have == bytes.len() {
                        let error = decode_error(bytes, world);
                        self.inbound = Inbound::Header([0; HEADER], 0);
                        match error {
                            Some(error) => return Some(error),
                            None => self.garbage(),
                        }
                    }
                }
                Inbound::Message(_) | Inbound::Body(_) => {}
            }
        }
        None
    }

    fn frame(&mut self, frame: Option<Frame>) {
        self.inbound = Inbound::Header([0; HEADER], 0);
        match frame {
            Some(Frame::Data(head)) if !self.bye => self.inbound = Inbound::Message(head),
            Some(Frame::Beat(beat)) => self.beat = beat,
            Some(Frame::Bye) => {
                if self.queue.iter().any(|queued| matches!(queued.body, Body::Posted(..))) {
                    self.lose("it had ended its part of the run before it took what was sent to it");
                }
                self.bye = true;
                self.queue(Frame::Heard, Vec::new());
            }
            Some(Frame::Heard) => self.has_all = true,
            Some(Frame::Abort(length)) if length > 0 => self.inbound = Inbound::Text(vec![0; length], 0),
            Some(Frame::Data(_) | Frame::Abort(_)) | None => self.garbage(),
        }
    }

    fn garbage(&mut self) {
        self.bye = false;
        self.lose("it sent bytes that make no sense");
        self.lost.iter_mut().for_each(|lost| lost.certain = true);
        self.readable = false;
    }

    /// Reads what there is of the message that must be `head` into `bytes`, from `have` on; returns how much that was.
    /// Nothing as long as its header isn't there.
    ///
    /// # Errors
    /// If it is another message.
    pub(super) fn take(&mut self, head: &Head, bytes: &mut [u8], have: usize) -> Result<usize, CommError> {
        if let Inbound::Message(theirs) = &self.inbound {
            theirs.check(head, self.rank)?;
            self.inbound = Inbound::Body(theirs.length);
            // It may have come long ago.
            self.heard = Instant::now();
        }
        let mut at = have;
        while self.readable && at < bytes.len() && self.inside() {
            let got = read(&self.stream, &mut bytes[at..]);
            let Some(count) = self.heed(got) else { break };
            self.advance(count);
            at += count;
        }
        self.advance(0);
        Ok(at - have)
    }

    /// So many bytes more of a message are read.
    fn advance(&mut self, count: usize) {
        if let Inbound::Body(left) = &mut self.inbound {
            *left = left.saturating_sub(count as u64);
            if *left == 0 {
                self.inbound = Inbound::Header([0; HEADER], 0);
            }
        }
    }

    /// Whether the reading stands inside a message.
    pub(super) fn inside(&self) -> bool {
        matches!(self.inbound, Inbound::Body(_))
    }

    /// Reads and drops messages that nobody will ask for any more.
    pub(super) fn discard(&mut self, world: usize) {
        let mut sink = vec![0; 64 << 10];
        loop {
            // What it says about the run no longer matters.
            let _ = self.pump(world);
            let left = match self.inbound {
                Inbound::Message(Head { length, .. }) | Inbound::Body(length) => length,
                Inbound::Header(..) | Inbound::Text(..) => return,
            };
            self.inbound = Inbound::Body(left);
            let most = sink.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let got = if most > 0 { read(&self.stream, &mut sink[..most]) } else { Ok(1) };
            let Some(count) = self.heed(got) else { return };
            self.advance(count);
        }
    }

    /// Takes note of what a read brought; none if that were no bytes.
    fn heed(&mut self, got: io::Result<usize>) -> Option<usize> {
        match got {
            Ok(0) => {
                self.readable = false;
                self.lose("its connection ended");
            }
            Ok(count) => {
                self.heard = Instant::now();
                return Some(count);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => {
                self.readable = false;
                self.lose(format!("its connection broke: {error}"));
            }
        }
        None
    }
}

fn read(mut stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
