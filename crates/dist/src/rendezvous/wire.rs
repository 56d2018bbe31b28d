//! Messages of the meeting: a length, then JSON. Whoever sends too much, too slowly or nonsense is no longer listened to.

use super::token::Nonce;
use super::{Claim, Facts, JoinError, Member, Seat};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::net::{IpAddr, TcpStream};
use std::time::{Duration, Instant};

/// First bytes of every connection.
pub(super) const MAGIC: &[u8; 16] = b"ferrotune join 1";
/// Longest message.
const MOST: usize = 1 << 20;
/// Most claims of one process, and longest part of one.
const CLAIMS: usize = 1024;
const CLAIM: usize = 512;

/// A member's first message.
#[derive(Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) build: String,
    pub(super) seat: Seat,
    pub(super) local_rank: usize,
    pub(super) local_world: usize,
    pub(super) claims: Vec<Claim>,
    pub(super) facts: Facts,
    pub(super) nonce: Nonce,
}

impl Hello {
    /// Makes what a stranger could have sent fit to be shown.
    pub(super) fn tamed(mut self) -> Self {
        self.claims.truncate(CLAIMS);
        for claim in &mut self.claims {
            claim.what = tame(&claim.what);
            claim.value = tame(&claim.value);
        }
        self.facts.host = tame(&self.facts.host);
        self.build = tame(&self.build);
        self
    }
}

/// Text of somebody else's, without control characters and not too long.
pub(super) fn tame(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(CLAIM).collect()
}

/// What the master sends first.
#[derive(Serialize, Deserialize)]
pub(super) enum Greeting {
    Challenge { nonce: Nonce, proof: [u8; 32] },
    Refused(JoinError),
}

/// A member's second message.
#[derive(Serialize, Deserialize)]
pub(super) struct Proof {
    pub(super) proof: [u8; 32],
    pub(super) address: IpAddr,
    pub(super) port: u16,
}

/// What the master sends to members whose proof is good.
#[derive(Serialize, Deserialize)]
pub(super) enum Order {
    /// Not all are here; in words, now and then.
    Wait(Option<String>),
    /// All are here.
    Table { rank: usize, session: Nonce, members: Vec<Member> },
    /// All are connected.
    Go,
    /// There will be no run.
    Refused(JoinError),
}

/// What a member says once it has tried to reach the others.
#[derive(Serialize, Deserialize)]
pub(super) enum Meshed {
    Done,
    Failed(JoinError),
}

/// First message on a connection between two ranks.
#[derive(Serialize, Deserialize)]
pub(super) struct Introduction {
    pub(super) rank: usize,
    pub(super) nonce: Nonce,
}

/// The answer to it; the proof of the one who connects comes last.
#[derive(Serialize, Deserialize)]
pub(super) struct Answer {
    pub(super) nonce: Nonce,
    pub(super) proof: [u8; 32],
}

/// Sends a message.
pub(super) fn send(stream: &mut TcpStream, message: &impl Serialize, within: Duration) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    if body.len() > MOST {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("a message of {} bytes", body.len())));
    }
    let mut bytes = (body.len() as u32).to_le_bytes().to_vec();
    bytes.extend(body);
    stream.set_write_timeout(Some(within))?;
    stream.write_all(&bytes)
}

/// Receives a message, whole within a time.
pub(super) fn receive<M: DeserializeOwned>(stream: &mut TcpStream, within: Duration) -> io::Result<M> {
    let deadline = Instant::now() + within;
    let mut length = [0; 4];
    read(stream, &mut length, deadline)?;
    let first = length;
    let length = u32::from_le_bytes(length) as usize;
    if length > MOST {
        // Other programs greet in text, by which they are known.
        if let Ok(text) = std::str::from_utf8(&first)
            && text.bytes().all(|byte| byte.is_ascii_graphic())
        {
            return Err(nonsense(&format!("`{text}...`, which is another program's greeting")));
        }
        return Err(nonsense(&format!("a message of {length} bytes")));
    }
    let mut body = Vec::new();
    // Memory follows what has really come.
    while body.len() < length {
        let from = body.len();
        body.resize(length.min(from + (64 << 10)), 0);
        read(stream, &mut body[from..], deadline)?;
    }
    serde_json::from_slice(&body).map_err(|error| nonsense(&format!("a message that is none ({error})")))
}

/// Fills `to` before `deadline`.
pub(super) fn read(stream: &mut TcpStream, to: &mut [u8], deadline: Instant) -> io::Result<()> {
    let mut have = 0;
    while have < to.len() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it said nothing in time"));
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut to[have..]) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection")),
            Ok(count) => have += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "it said nothing in time"));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether the other side is waiting to be heard, or has just ended: what may be better another time.
pub(super) fn is_silence(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, TimedOut, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | TimedOut | ConnectionReset | ConnectionAborted | BrokenPipe)
}

/// Whether there is something to be read, or the end, without waiting.
pub(super) fn has_news(stream: &TcpStream) -> bool {
    let peeked = stream.set_nonblocking(true).and_then(|()| stream.peek(&mut [0]));
    let blocks_again = stream.set_nonblocking(false).is_ok();
    let waits = matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
    !(waits && blocks_again)
}

pub(super) fn nonsense(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("it sent {what}"))
}
