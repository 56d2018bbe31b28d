//! What a rank is doing: written by the loop and its collectives, read by the heart-beat that tells the others. Plain
//! atomics, so that writing costs nothing.

use crate::trace::Trace;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What a rank is busy with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Activity {
    /// Starting and meeting the others.
    #[default]
    Joining,
    /// Reading and encoding data.
    Data,
    /// Reading weights.
    Loading,
    /// In a forward pass.
    Forward,
    /// In a backward pass.
    Backward,
    /// Bringing gradients together and updating weights.
    Updating,
    /// Evaluating.
    Evaluating,
    /// Writing a checkpoint.
    Saving,
    /// Done.
    Finished,
}

impl Activity {
    const ALL: [Self; 9] = [
        Self::Joining,
        Self::Data,
        Self::Loading,
        Self::Forward,
        Self::Backward,
        Self::Updating,
        Self::Evaluating,
        Self::Saving,
        Self::Finished,
    ];

    /// From its number, as it came over the wire.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// In words that follow "it was".
    pub fn words(self) -> &'static str {
        match self {
            Self::Joining => "starting",
            Self::Data => "reading data",
            Self::Loading => "loading weights",
            Self::Forward => "in a forward pass",
            Self::Backward => "in a backward pass",
            Self::Updating => "updating weights",
            Self::Evaluating => "evaluating",
            Self::Saving => "saving a checkpoint",
            Self::Finished => "finished",
        }
    }
}

/// The state of a rank at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Beat {
    /// Optimiser step under way, from 1; 0 before the first.
    pub step: u64,
    /// What it is busy with.
    pub activity: Activity,
    /// Collectives begun so far.
    pub collectives: u64,
    /// Whether it is inside a collective, waiting or moving bytes.
    pub in_collective: bool,
    /// Tokens trained on by this rank.
    pub tokens: u64,
    /// Bytes of tensors in use.
    pub memory: u64,
    /// Microseconds that collectives took, beside or in the way of computing.
    pub communicating: u64,
    /// Microseconds that computing waited for them.
    pub waiting: u64,
}

impl std::fmt::Display for Beat {
    /// "in a forward pass of step 12, in collective 340".
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.activity.words())?;
        if self.step > 0 {
            write!(f, ", step {}", self.step)?;
        }
        if self.in_collective { write!(f, ", in its collective {}", self.collectives) } else { Ok(()) }
    }
}

/// Another rank, as it was last heard of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// Its number.
    pub rank: usize,
    /// The name of its machine.
    pub host: String,
    /// What it said of itself.
    pub beat: Beat,
    /// When anything came from it.
    pub at: Instant,
}

/// The live state of this rank.
#[derive(Debug, Default)]
pub struct Pulse {
    others: Mutex<Vec<Heard>>,
    step: AtomicU64,
    activity: AtomicU8,
    collectives: AtomicU64,
    in_collective: AtomicU64,
    tokens: AtomicU64,
    memory: AtomicU64,
    communicating: AtomicU64,
    waiting: AtomicU64,
    trace: Trace,
}

impl Pulse {
    /// What ran when, if somebody asks for it.
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// Step `step` begins (from 1).
    pub fn step(&self, step: u64) {
        self.step.store(step, Ordering::Relaxed);
    }

    /// Something else begins.
    pub fn does(&self, activity: Activity) {
        self.activity.store(activity as u8, Ordering::Relaxed);
    }

    /// This rank has trained on so many tokens more and holds so many bytes.
    pub fn trained(&self, tokens: u64, memory: u64) {
        self.tokens.fetch_add(tokens, Ordering::Relaxed);
        self.memory.store(memory, Ordering::Relaxed);
    }

    /// A collective begins to move bytes; returns its number.
    pub fn begin(&self) -> u64 {
        self.in_collective.fetch_add(1, Ordering::Relaxed);
        self.collectives.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// It has ended, after `took`.
    pub fn end(&self, took: Duration) {
        self.in_collective.fetch_sub(1, Ordering::Relaxed);
        self.communicating.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
    }

    /// Computing stood still for so long.
    pub fn waited(&self, time: Duration) {
        self.waiting.fetch_add(time.as_micros() as u64, Ordering::Relaxed);
    }

    /// Takes note of what was heard of the others.
    pub fn hears(&self, others: Vec<Heard>) {
        *self.others.lock().unwrap_or_else(PoisonError::into_inner) = others;
    }

    /// What was last heard of the others; a second old at most.
    pub fn others(&self) -> Vec<Heard> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The state now.
    pub fn beat(&self) -> Beat {
        let get = |value: &AtomicU64| value.load(Ordering::Relaxed);
        Beat {
            step: get(&self.step),
            activity: Activity::from_number(self.activity.load(Ordering::Relaxed)).unwrap_or_default(),
            collectives: get(&self.collectives),
            in_collective: get(&self.in_collective) > 0,
            tokens: get(&self.tokens),
            memory: get(&self.memory),
            communicating: get(&self.communicating),
            waiting: get(&self.waiting),
        }
    }
}
