//! The core of the plan: what a strategy costs in memory, traffic and time, before a run begins.
//!
//! [`Demand`] is what a step moves and computes, part by part; a [`Candidate`] is one way to split it over the ranks;
//! [`traffic()`] says in closed form which bytes each rank sends then, [`simulate()`] how long a step takes on given
//! [`Links`], and [`choose`] picks the fastest candidate that fits. All of it is a pure function of its inputs, so that
//! ranks which agree on those agree on the answer. The formulas are written out in `docs/strategies.md`.

mod balance;
mod candidate;
mod choose;
mod demand;
mod links;
mod measure;
mod probe;
mod program;
mod simulate;
mod traffic;

#[cfg(test)]
mod tests;

pub use balance::{Load, balance};
pub use candidate::{Candidate, balance_of, candidates};
pub use choose::{Choice, Question, best, choose};
pub use demand::{Cost, Demand, Group, GroupKind, Rates, Rows, Trips};
pub use links::{Link, Links};
pub use measure::measure_rates;
pub use probe::{Hop, Probe};
pub use simulate::{Estimate, simulate};
pub use traffic::{across, traffic};
