//! Messages over one TCP connection to each other rank, all served by the one thread that uses them: sockets don't block,
//! and whenever it would wait, it waits for all of them at once. So every rank notices the loss of any other, whoever it
//! is waiting for; posted messages go on leaving, without copies; and nothing has to be joined or woken at the end.
//!
//! An idle connection carries a beat a second. A rank of which nothing is heard for the time given, or whose connection
//! ends without a goodbye, is lost; its beats said what it was doing.

mod frame;
mod peer;

use crate::abort::{self, Abort};
use crate::transport::{Finish, Head, Incoming, Outgoing, Transport, Waker};
use crate::{CommError, Pulse};
use ferrotune_tensor::Lent;
use frame::{Frame, HEADER};
use peer::Peer;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often time is looked at: for beats, for what wasn't heard, for who is gone.
const TICK: Duration = Duration::from_millis(100);
/// How long a broken connection may be explained by somebody else's error, of which it is the consequence.
const GRACE: Duration = Duration::from_millis(250);
/// How long the others are given to hear why this rank ended.
const FAREWELL: Duration = Duration::from_millis(500);

/// A connection to another rank, on which both have proven who they are.
pub struct Link {
    /// Its number.
    pub rank: usize,
    /// The name of its machine.
    pub host: String,
    /// The connection.
    pub stream: TcpStream,
}

/// This rank, and how patient it is.
#[derive(Debug, Clone)]
pub struct TcpSettings {
    /// Its number.
    pub rank: usize,
    /// The name of its machine.
    pub host: String,
    /// How long nothing may be heard of a rank.
    pub peer_timeout: Duration,
}

/// [`Transport`] over sockets.
pub struct TcpTransport {
    settings: TcpSettings,
    /// By rank; none in its own place.
    peers: Vec<Option<Peer>>,
    abort: Arc<Abort>,
    pulse: Arc<Pulse>,
    wake: Arc<UnixStream>,
    woken: UnixStream,
    ticked: Instant,
}

/// A message of a duplex on its way out.
struct Sending<'a> {
    to: usize,
    header: [u8; HEADER],
    bytes: &'a [u8],
    sent: usize,
}

impl Sending<'_> {
    fn done(&self) -> bool {
        self.sent == HEADER + self.bytes.len()
    }
}

/// A message of a duplex on its way in.
struct Receiving<'a> {
    from: usize,
    head: Head,
    bytes: &'a mut [u8],
    have: usize,
    begun: bool,
}

impl Receiving<'_> {
    fn done(&self) -> bool {
        self.begun && self.have == self.bytes.len()
    }
}

impl TcpTransport {
    /// A transport over `links`, one to each other rank.
    ///
    /// # Errors
    /// If a rank has no link or two, or if the system refuses to set up a socket.
    pub fn new(settings: TcpSettings, links: Vec<Link>, abort: Arc<Abort>, pulse: Arc<Pulse>) -> io::Result<Self> {
        let mut peers: Vec<Option<Peer>> = (0..=links.len()).map(|_| None).collect();
        for Link { rank, host, stream } in links {
            match peers.get_mut(rank) {
                Some(place @ None) if rank != settings.rank => *place = Some(Peer::new(rank, host, stream)?),
                _ => {
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("a link to rank {rank} too many")));
                }
            }
        }
        let (wake, woken) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        Ok(Self { settings, peers, abort, pulse, wake: Arc::new(wake), woken, ticked: Instant::now() })
    }

    fn peer(&mut self, rank: usize) -> &mut Peer {
        self.peers[rank].as_mut().expect("a link to each other rank, and no messages to itself")
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Peer> {
        self.peers.iter_mut().flatten()
    }

    /// Moves what can be moved at once; returns whether that was anything.
    fn advance(&mut self, out: Option<&mut Sending<'_>>, into: Option<&mut Receiving<'_>>) -> Result<bool, CommError> {
        let mut moved = false;
        if let Some(out) = out.filter(|out| !out.done()) {
            let peer = self.peer(out.to);
            if out.sent == 0 {
                peer.flush();
            }
            if out.sent > 0 || !peer.has_queue() {
                let count = peer.write(&out.header, out.bytes, out.sent);
                out.sent += count;
                moved |= count > 0;
            }
        }
        if let Some(into) = into.filter(|into| !into.done()) {
            let world = self.peers.len();
            let peer = self.peer(into.from);
            if !into.begun
                && let Some(error) = peer.pump(world)
            {
                self.abort.set(error);
                return self.judge().map(|()| false);
            }
            let offered = peer.offers();
            let count = peer.take(&into.head, into.bytes, into.have)?;
            into.begun |= offered;
            into.have += count;
            moved |= offered || count > 0;
        }
        Ok(moved)
    }

    /// Waits until something can be moved or `most` has passed, and serves all connections; the queue of `busy` stays,
    /// and so does the message that is wanted of `wanted`.
    fn turn(&mut self, busy: Option<usize>, wanted: Option<usize>, most: Duration) {
        let mut ready = Vec::with_capacity(self.peers.len() + 1);
        let mut polled = vec![PollFd::new(&self.woken, PollFlags::IN)];
        let mut ranks = Vec::with_capacity(self.peers.len());
        for peer in self.peers.iter().flatten() {
            let rank = Some(peer.rank);
            let read = peer.readable && (rank == wanted || !peer.offers());
            let write = peer.lost.is_none() && (rank == busy || peer.has_queue());
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, read);
            flags.set(PollFlags::OUT, write);
            if !flags.is_empty() {
                polled.push(PollFd::new(&peer.stream, flags));
                ranks.push(peer.rank);
            }
        }
        let most = Timespec::try_from(most).unwrap_or(Timespec { tv_sec: 0, tv_nsec: 0 });
        // What goes wrong in here (a signal, no memory) is tried again; what goes wrong with a connection shows there.
        if poll(&mut polled, Some(&most)).is_ok() {
            ready.extend(polled.iter().map(PollFd::revents));
        }
        drop(polled);
        if ready.first().is_some_and(|ready| !ready.is_empty()) {
            let mut bytes = [0; 64];
            while matches!((&self.woken).read(&mut bytes), Ok(count) if count > 0) {}
        }
        let world = self.peers.len();
        for (rank, ready) in ranks.into_iter().zip(ready.into_iter().skip(1)) {
            let peer = self.peer(rank);
            let bad = ready.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL);
            let error = if bad || ready.contains(PollFlags::IN) { peer.pump(world) } else { None };
            if Some(rank) != busy && peer.lost.is_none() {
                peer.flush();
            }
            if bad && peer.offers() && Some(rank) != wanted {
                peer.lose("its connection broke");
                peer.readable = false;
            }
            if let Some(error) = error {
                self.abort.set(error);
            }
        }
        self.tick(busy);
    }

    /// Sends beats where nothing else was sent, and declares lost what wasn't heard.
    fn tick(&mut self, busy: Option<usize>) {
        let now = Instant::now();
        if now - self.ticked < TICK {
            return;
        }
        let patience = self.settings.peer_timeout;
        // A process that stood still itself hasn't listened either.
        let stood_still = now - self.ticked > (patience / 2).max(TICK * 10);
        self.ticked = now;
        let beat = self.pulse.beat();
        let period = (patience / 4).min(Duration::from_secs(1));
        for peer in self.all() {
            if stood_still {
                peer.heard = now;
            }
            if peer.readable && !peer.offers() && now - peer.heard > patience {
                peer.lose(format!("nothing was heard of it for {:.1} s", (now - peer.heard).as_secs_f64()));
            }
            // Also where messages pass all the time: they keep a connection alive, but don't say what their sender does.
            let idle = now - peer.sent.min(peer.told) >= period && !peer.has_queue();
            if idle && Some(peer.rank) != busy && peer.lost.is_none() && !peer.bye {
                peer.told = now;
                peer.queue(Frame::Beat(beat), Vec::new());
                peer.flush();
            }
        }
        self.pulse.hears(self.peers.iter().flatten().map(Peer::heard_of).collect());
    }

    /// Why the run is over, if it is.
    fn judge(&self) -> Result<(), CommError> {
        if let Some(error) = self.abort.get() {
            return Err(error);
        }
        let lost = self.peers.iter().flatten().filter_map(|peer| Some((peer.lost.as_ref()?, peer)));
        // The others' connections break because of the first one's end.
        let Some((lost, peer)) = lost.min_by_key(|(lost, _)| lost.at) else { return Ok(()) };
        if !lost.certain && lost.at.elapsed() < GRACE { Ok(()) } else { Err(peer.gone(&lost.reason)) }
    }

    /// Whether `rank`, of which something is wanted, has said goodbye.
    fn needs(&self, rank: Option<usize>) -> Result<(), CommError> {
        let peer = rank.and_then(|rank| self.peers[rank].as_ref()).filter(|peer| peer.bye && !peer.offers());
        peer.map_or(Ok(()), |peer| Err(peer.gone(peer::ENDED)))
    }

    fn exchange(&mut self, out: &mut Option<Sending<'_>>, into: &mut Option<Receiving<'_>>) -> Result<(), CommError> {
        self.judge()?;
        if self.ticked.elapsed() > TICK {
            self.turn(None, into.as_ref().map(|into| into.from), Duration::ZERO);
            self.judge()?;
        }
        loop {
            let moved = self.advance(out.as_mut(), into.as_mut())?;
            let busy = out.as_ref().filter(|out| !out.done()).map(|out| out.to);
            let wanted = into.as_ref().filter(|into| !into.done()).map(|into| into.from);
            if busy.is_none() && wanted.is_none() {
                return Ok(());
            }
            if !moved {
                self.needs(busy)?;
                self.needs(wanted)?;
                self.turn(busy, wanted, TICK);
                self.judge()?;
            }
        }
    }

    /// Serves the connections until `done` of each that still works, but no longer than `most`.
    fn settle(&mut self, most: Duration, done: impl Fn(&Peer) -> bool) {
        let start = Instant::now();
        let world = self.peers.len();
        let mut left = most;
        while self.all().any(|peer| peer.lost.is_none() && peer.readable && !done(peer)) {
            self.turn(None, None, left.min(TICK));
            self.all().for_each(|peer| peer.discard(world));
            match most.checked_sub(start.elapsed()) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    }
}

impl Transport for TcpTransport {
    fn rank(&self) -> usize {
        self.settings.rank
    }

    fn world(&self) -> usize {
        self.peers.len()
    }

    fn duplex(&mut self, out: Option<Outgoing<'_>>, into: Option<Incoming<'_>>) -> Result<(), CommError> {
        let sending = |Outgoing { to, head, bytes }| Sending { to, header: Frame::Data(head).encode(), bytes, sent: 0 };
        let mut out = out.map(sending);
        let receiving = |Incoming { from, head, bytes }| Receiving { from, head, bytes, have: 0, begun: false };
        let mut into = into.map(receiving);
        let result = self.exchange(&mut out, &mut into);
        if let (Err(_), Some(Sending { to, header, bytes, sent })) = (&result, out)
            && (1..HEADER + bytes.len()).contains(&sent)
        {
            // What ends the run is told behind it.
            self.peer(to).queue_rest(header, bytes, sent);
        }
        result
    }

    fn post(&mut self, to: usize, head: Head, loan: Lent, finish: Finish) {
        let peer = self.peer(to);
        peer.post(head, loan, finish);
        peer.flush();
    }

    fn idle(&mut self) -> Result<(), CommError> {
        self.turn(None, None, TICK);
        self.judge()
    }

    fn waker(&self) -> Waker {
        let wake = self.wake.clone();
        // A pipe that is full wakes as well.
        Arc::new(move || drop((&*wake).write(&[1])))
    }

    fn finish(&mut self) {
        for peer in self.all() {
            peer.queue(Frame::Bye, Vec::new());
            peer.flush();
        }
        self.settle(self.settings.peer_timeout, |peer| peer.has_all && !peer.has_queue());
        self.close(&CommError::Ended("it ended its part of the run".into()));
    }

    fn abandon(&mut self, error: &CommError) {
        let told = abort::told(error, self.settings.rank, &self.settings.host, &self.pulse.beat().to_string());
        let text = frame::encode_error(&told);
        for peer in self.all() {
            peer.queue(Frame::Abort(text.len()), text.clone());
            peer.flush();
        }
        self.settle(FAREWELL, |peer| !peer.has_queue());
        for peer in self.all() {
            // Closing with bytes unread would drop what is still on its way. It may be closed already.
            let _ = peer.stream.shutdown(Shutdown::Write);
        }
        self.settle(FAREWELL, |_| false);
        self.close(error);
    }
}

impl TcpTransport {
    /// Ends all connections; posted messages that have not left fail with `error`.
    fn close(&mut self, error: &CommError) {
        for peer in self.all() {
            peer.forget(error);
            // It may be closed already.
            let _ = peer.stream.shutdown(Shutdown::Both);
        }
        self.peers.iter_mut().for_each(|peer| *peer = None);
    }
}
