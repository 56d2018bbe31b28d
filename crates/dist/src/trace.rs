//! What ran beside what: spans of time of a rank's computing thread and of its collectives, kept while somebody asks for
//! them. Off, it costs one look at a flag.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Most spans that are kept: some twenty megabytes, a hundred steps of a large model.
const MOST: usize = 1 << 18;

/// Whose time it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// The computing thread's. What it waited meanwhile is among it.
    Computing,
    /// The computing thread's, which stood still until a collective ended.
    Waiting,
    /// A collective's, from the moment at which it was its turn, beside computing or in its way.
    Moving,
}

/// Something that took time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Whose.
    pub lane: Lane,
    /// What it was.
    pub name: Cow<'static, str>,
    /// Bytes of the buffer that it was about; 0 for none.
    pub bytes: u64,
    /// Its first moment.
    pub begin: Instant,
    /// Its last one.
    pub end: Instant,
}

/// The spans of a rank.
#[derive(Debug, Default)]
pub struct Trace {
    on: AtomicBool,
    spans: Mutex<Vec<Span>>,
}

impl Trace {
    /// Begins to keep spans; those of earlier are forgotten.
    pub fn start(&self) {
        self.lock().clear();
        self.on.store(true, Ordering::Relaxed);
    }

    /// Ends it. The spans, and whether there were more than are kept.
    pub fn stop(&self) -> (Vec<Span>, bool) {
        self.on.store(false, Ordering::Relaxed);
        let spans = std::mem::take(&mut *self.lock());
        let full = spans.len() >= MOST;
        (spans, full)
    }

    /// Now, if spans are kept: to be given to [`end`](Self::end).
    pub fn begin(&self) -> Option<Instant> {
        self.on.load(Ordering::Relaxed).then(Instant::now)
    }

    /// Keeps a span that began at `begin` and ends now.
    pub fn end<N: Into<Cow<'static, str>>>(
        &self,
        begin: Option<Instant>,
        lane: Lane,
        bytes: u64,
        name: impl FnOnce() -> N,
    ) {
        let Some(begin) = begin else { return };
        let (name, end) = (name().into(), Instant::now());
        let mut spans = self.lock();
        if spans.len() < MOST {
            spans.push(Span { lane, name, bytes, begin, end });
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Span>> {
        // A span is pushed whole or not at all.
        self.spans.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Time in which collectives moved bytes while the computing thread didn't wait, and time in which they moved bytes at all.
pub fn hidden(spans: &[Span]) -> (Duration, Duration) {
    let of = |lane| spans.iter().filter(move |span| span.lane == lane);
    let (mut moving, mut waited) = (Duration::ZERO, Duration::ZERO);
    let mut waits = of(Lane::Waiting).peekable();
    // Spans of one lane follow each other and are kept in their order.
    for span in of(Lane::Moving) {
        moving += span.end - span.begin;
        while let Some(wait) = waits.peek() {
            waited += wait.end.min(span.end).saturating_duration_since(wait.begin.max(span.begin));
            // It may reach into the next one.
            if wait.end > span.end {
                break;
            }
            waits.next();
        }
    }
    (moving.saturating_sub(waited), moving)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(lane: Lane, origin: Instant, from: u64, to: u64) -> Span {
        let at = |millis| origin + Duration::from_millis(millis);
        Span { lane, name: "x".into(), bytes: 0, begin: at(from), end: at(to) }
    }

    #[test]
    fn spans_are_kept_only_between_start_and_stop() {
        let trace = Trace::default();
        assert_eq!(trace.begin(), None);
        trace.end(trace.begin(), Lane::Moving, 1, || "before");
        trace.start();
        trace.end(trace.begin(), Lane::Computing, 2, || format!("block {}", 3));
        let (spans, full) = trace.stop();
        assert_eq!(
            spans.iter().map(|s| (s.lane, &*s.name, s.bytes)).collect::<Vec<_>>(),
            [(Lane::Computing, "block 3", 2)]
        );
        assert!(!full && spans[0].begin <= spans[0].end);
        trace.start();
        assert!(trace.stop().0.is_empty(), "the earlier ones are forgotten");
    }

    #[test]
    fn more_than_fit_are_told() {
        let trace = Trace::default();
        trace.start();
        let begin = trace.begin();
        (0..=MOST).for_each(|_| trace.end(begin, Lane::Waiting, 0, || ""));
        let (spans, full) = trace.stop();
        assert!(full && spans.len() == MOST);
    }

    #[test]
    fn hidden_is_what_nobody_waited_for() {
        let origin = Instant::now();
        let spans = [
            span(Lane::Computing, origin, 0, 100),
            span(Lane::Moving, origin, 0, 30),
            span(Lane::Waiting, origin, 20, 40),
            span(Lane::Moving, origin, 50, 60),
        ];
        assert_eq!(hidden(&spans), (Duration::from_millis(30), Duration::from_millis(40)));
        assert_eq!(hidden(&spans[..1]), (Duration::ZERO, Duration::ZERO));
    }
}
