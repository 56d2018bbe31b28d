//! Which branches of our crates an input reaches.
//!
//! The compiler's `sancov-module` pass puts a counter at every edge if it is asked to (`cargo xtask fuzz` does), and tells
//! each object's counters to the function below before `main`. Without the pass there are none, and inputs are judged by
//! what the target says of them.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

/// Counters of one object: its first byte's address, and how many there are.
static COUNTERS: Mutex<Vec<(usize, usize)>> = Mutex::new(Vec::new());

/// Called by each object that has counters.
#[unsafe(no_mangle)]
extern "C" fn __sanitizer_cov_8bit_counters_init(start: *mut u8, stop: *mut u8) {
    let range = (start as usize, (stop as usize).saturating_sub(start as usize));
    let mut counters = COUNTERS.lock().unwrap_or_else(PoisonError::into_inner);
    if range.1 > 0 && !counters.contains(&range) {
        counters.push(range);
    }
}

/// Edges reached so far, and whether an input reaches new ones or an old one more often.
#[derive(Debug, Default)]
pub(crate) struct Coverage {
    /// Highest power of two of each counter.
    best: Vec<u8>,
    reached: usize,
    said: HashSet<String>,
}

impl Coverage {
    /// Sets all counters to zero.
    pub(crate) fn reset() {
        for bytes in counters() {
            bytes.fill(0);
        }
    }

    /// Whether the input just run, of which the target said `said`, is new in any way. Where edges are counted, words alone
    /// make nothing new: every recipe has other errors in another order, so nearly all inputs would be kept (123,000 of
    /// 142,000 were).
    pub(crate) fn is_new(&mut self, said: &str) -> bool {
        let counters = counters();
        let mut new = self.said.insert(generalised(said)) && counters.is_empty();
        let mut first = 0;
        for bytes in counters {
            self.best.resize(self.best.len().max(first + bytes.len()), 0);
            for (best, &count) in self.best[first..].iter_mut().zip(&*bytes).filter(|(_, count)| **count > 0) {
                let level = 1 + count.ilog2() as u8;
                if level > *best {
                    self.reached += usize::from(*best == 0);
                    *best = level;
                    new = true;
                }
            }
            first += bytes.len();
        }
        new
    }

    /// Edges reached, edges there are, and different things said.
    pub(crate) fn totals(&self) -> (usize, usize, usize) {
        let all = COUNTERS.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|(_, len)| len).sum();
        (self.reached, all, self.said.len())
    }
}

/// All counters. Campaigns run one at a time, in one thread.
fn counters() -> Vec<&'static mut [u8]> {
    let counters = COUNTERS.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: each range is a section of this program that lives as long as it does and that only generated code and this
    // module touch; other threads may count at the same time, which costs a count.
    counters.iter().map(|&(start, len)| unsafe { std::slice::from_raw_parts_mut(start as *mut u8, len) }).collect()
}

/// A message without what differs from input to input: numbers, and what stands in quotes.
fn generalised(said: &str) -> String {
    const LONGEST: usize = 200;
    let mut quoted = false;
    let general = said.chars().filter(|&c| {
        let quote = matches!(c, '`' | '"' | '\'');
        quoted ^= quote;
        quote || !(quoted || c.is_ascii_digit())
    });
    general.take(LONGEST).collect()
}
