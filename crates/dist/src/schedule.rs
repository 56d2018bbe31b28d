//! Who sends which bytes when: the ring's algorithms as sequences of steps, apart from what carries them out. The ring
//! moves the bytes, [`Imagined`](crate::Imagined) only counts them, and both follow these.
//!
//! A buffer is cut into as many parts as there are ranks, which differ by at most one element; a part travels in segments
//! of [`SEGMENT`] bytes, so that a rank adds one segment while the next one arrives, and passes a part on before it has
//! all of it. A rank sends to the next and receives from the previous one only. No step waits for a message whose sender
//! waits for a later one, so this ends however little a connection holds.

use std::ops::Range;

/// Bytes of a message: large against the cost of one, small enough that received bytes are added while in the cache.
pub(crate) const SEGMENT: usize = 256 << 10;

/// Of what a ring is made: which rank of how many, and what it moves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ring {
    pub(crate) rank: usize,
    pub(crate) world: usize,
    /// Bytes of the whole buffer.
    pub(crate) bytes: usize,
    /// Bytes of an element, which no border may cut.
    pub(crate) unit: usize,
}

/// Bytes to be sent and bytes to be received at the same time; nothing where a range is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) send: Range<usize>,
    pub(crate) recv: Range<usize>,
    /// Whether what is received is added to what is there.
    pub(crate) add: bool,
}

impl Ring {
    /// The part that belongs to the rank `i` places before `self.rank`.
    fn before(self, i: usize) -> Range<usize> {
        self.part((self.rank + 2 * self.world - i) % self.world)
    }

    /// The part of a rank.
    pub(crate) fn part(self, rank: usize) -> Range<usize> {
        let elements = (self.bytes / self.unit) as u128;
        let border = |i: usize| (elements * i as u128 / self.world as u128) as usize * self.unit;
        border(rank)..border(rank + 1)
    }

    /// Sums each part on its own rank: a part starts behind its rank and is added to by each on its way around.
    ///
    /// ```text
    /// three ranks, parts a b c; + marks a sum that has just arrived, and was made
    /// rank 0   a  b  c       a +b  c      +a  b  c      it holds the sum of a
    /// rank 1   a  b  c  ->   a  b +c  ->   a +b  c      of b
    /// rank 2   a  b  c      +a  b  c       a  b +c      of c
    ///          first 0 sends c, 1 sends a, 2 sends b, each to the next; then what it just got
    /// ```
    pub(crate) fn reduce_scatter(self) -> impl Iterator<Item = Step> {
        (1..self.world).flat_map(move |i| segments(self.before(i), self.before(i + 1), true))
    }

    /// Passes each rank's part around.
    ///
    /// ```text
    /// rank 0   a  .  .      a  .  c      a  b  c
    /// rank 1   .  b  .  ->  a  b  .  ->  a  b  c
    /// rank 2   .  .  c      .  b  c      a  b  c
    /// ```
    pub(crate) fn all_gather(self) -> impl Iterator<Item = Step> {
        (1..self.world).flat_map(move |i| segments(self.before(i - 1), self.before(i), false))
    }

    /// Sums the whole everywhere: a part is summed on its way around once, in one order, and the sum is passed around,
    /// so all ranks get the same bits, whatever the world's timing.
    pub(crate) fn all_reduce(self) -> impl Iterator<Item = Step> {
        self.reduce_scatter().chain(self.all_gather())
    }

    /// Passes the whole from `root` along the ring to the rank before it, segment behind segment.
    ///
    /// ```text
    /// root       0 1 2 3
    /// root + 1     0 1 2 3      (time goes to the right, numbers are segments received, or sent by the root)
    /// root + 2       0 1 2 3
    /// ```
    pub(crate) fn broadcast(self, root: usize) -> impl Iterator<Item = Step> {
        let place = (self.rank + self.world - root) % self.world;
        let count = self.bytes.div_ceil(SEGMENT);
        let cut = move |i: usize| i * SEGMENT..self.bytes.min((i + 1) * SEGMENT);
        // The root sends segment i in step i; the others receive it then and pass it on in step i + 1.
        let sends = place + 1 < self.world;
        (0..count + usize::from(place > 0)).map(move |i| {
            let (sent, received) = if place == 0 { (Some(i), None) } else { (i.checked_sub(1), Some(i)) };
            let send = sent.filter(|_| sends).map_or(0..0, cut);
            let recv = received.filter(|i| *i < count).map_or(0..0, cut);
            Step { send, recv, add: false }
        })
    }

    /// Bytes of `steps` that are sent.
    pub(crate) fn sent(steps: impl Iterator<Item = Step>) -> u64 {
        steps.map(|step| step.send.len() as u64).sum()
    }
}

/// Sends and receives two ranges, cut alike.
fn segments(send: Range<usize>, recv: Range<usize>, add: bool) -> impl Iterator<Item = Step> {
    let count = send.len().max(recv.len()).div_ceil(SEGMENT);
    (0..count).map(move |i| Step { send: segment(&send, i), recv: segment(&recv, i), add })
}

/// Segment `i` of `range`; empty behind its end.
pub(crate) fn segment(range: &Range<usize>, i: usize) -> Range<usize> {
    let at = |i: usize| range.end.min(range.start + i * SEGMENT);
    at(i)..at(i + 1)
}
