//! How the collectives of a rank end before their time: one error, the first, for all of its threads.

use crate::CommError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

type Wake = Box<dyn FnOnce() + Send>;

/// The end of a rank's communication, shared by whatever may notice it: its worker, its control connection, its owner.
#[derive(Default)]
pub struct Abort {
    set: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    error: Option<CommError>,
    wakes: Vec<Wake>,
}

impl Abort {
    /// Ends it with `error` unless it has ended already, and wakes all who wait. Returns whether `error` was the first.
    pub fn set(&self, error: CommError) -> bool {
        let mut state = self.state();
        if state.error.is_some() {
            return false;
        }
        state.error = Some(error);
        self.set.store(true, Ordering::Release);
        let wakes = std::mem::take(&mut state.wakes);
        drop(state);
        wakes.into_iter().for_each(|wake| wake());
        true
    }

    /// Why it ended, if it has; one atomic read where it hasn't.
    pub fn get(&self) -> Option<CommError> {
        if self.set.load(Ordering::Acquire) { self.state().error.clone() } else { None }
    }

    /// Has `wake` called, once and from any thread, when it ends; at once if it has already.
    pub fn on_set(&self, wake: impl FnOnce() + Send + 'static) {
        let mut state = self.state();
        if state.error.is_none() {
            return state.wakes.push(Box::new(wake));
        }
        drop(state);
        wake();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing is ever half written under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a rank tells the others when `error` ends it: `rank` on `host`, which was `doing` something.
pub fn told(error: &CommError, rank: usize, host: &str, doing: &str) -> CommError {
    let reason = match error {
        CommError::PeerLost { .. } | CommError::PeerFailed { .. } => return error.clone(),
        CommError::Ended(reason) => reason.clone(),
        CommError::OutOfStep { .. } => error.to_string(),
    };
    CommError::PeerFailed { rank, host: host.into(), reason, doing: doing.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn the_first_error_wins_and_each_waiter_is_woken_once() {
        let abort = Abort::default();
        let woken = Arc::new(AtomicUsize::new(0));
        let wake = |by: usize| {
            let woken = woken.clone();
            move || {
                woken.fetch_add(by, Ordering::Relaxed);
            }
        };
        abort.on_set(wake(1));
        assert_eq!((abort.get(), woken.load(Ordering::Relaxed)), (None, 0));
        assert!(abort.set(CommError::Ended("a".into())));
        assert!(!abort.set(CommError::Ended("b".into())));
        abort.on_set(wake(10));
        assert_eq!((abort.get(), woken.load(Ordering::Relaxed)), (Some(CommError::Ended("a".into())), 11));
    }

    #[test]
    fn a_rank_names_itself_to_the_others() {
        let own = told(&CommError::Ended("disk full".into()), 2, "b", "saving a checkpoint");
        assert_eq!(own.to_string(), "rank 2 (b) stopped: disk full; it was saving a checkpoint");
        let lost =
            CommError::PeerLost { rank: 1, host: "a".into(), reason: "silent".into(), doing: "evaluating".into() };
        assert_eq!(told(&lost, 2, "b", "x"), lost);
    }
}
