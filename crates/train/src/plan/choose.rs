//! Picks the fastest split that fits, with the figures of all others.

use super::{Candidate, Demand, Estimate, Links, across, simulate, traffic};
use crate::Result;
use std::cmp::Ordering;

/// What a choice depends on. Ranks that are to choose alike agree on all of it first, on what was measured above all.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// A step.
    pub demand: &'a Demand,
    /// Micro-batches of a step, over all ranks.
    pub micro_batches: usize,
    /// The wires, as measured.
    pub links: &'a Links,
    /// Transfers run beside computing.
    pub overlap: bool,
    /// Bytes that the rank with the least memory can have; `None` if unknown, and then everything fits.
    pub capacity: Option<u64>,
}

/// One candidate, looked at.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The split.
    pub candidate: Candidate,
    /// Bytes that the fullest rank needs.
    pub needed: u64,
    /// Whether it can have them.
    pub fits: bool,
    /// Its time.
    pub estimate: Estimate,
    /// Most bytes that a rank sends in a step.
    pub sent: u64,
    /// Most bytes that leave a node in a step.
    pub across: u64,
}

/// Looks at all `candidates`: those that fit come first, the fastest in front; of equals the one that was named first. The
/// others follow, the smallest in front. `needed` gives the bytes of a candidate's fullest rank.
///
/// # Errors
/// Those of `needed`.
pub fn choose(
    question: &Question<'_>,
    candidates: Vec<Candidate>,
    needed: &dyn Fn(&Candidate) -> Result<u64>,
) -> Result<Vec<Choice>> {
    let look = |candidate: Candidate| needed(&candidate).map(|needed| look(question, candidate, needed));
    let mut choices: Vec<Choice> = candidates.into_iter().map(look).collect::<Result<_>>()?;
    // A stable sort, so equals keep their order.
    choices.sort_by(Choice::by_worth);
    Ok(choices)
}

impl Choice {
    /// Those that fit before those that don't; then the faster one, or of those that don't the smaller one.
    pub fn by_worth(&self, other: &Self) -> Ordering {
        let (a, b) = (self, other);
        let fit = b.fits.cmp(&a.fits);
        fit.then_with(|| if a.fits { a.estimate.step.total_cmp(&b.estimate.step) } else { a.needed.cmp(&b.needed) })
    }
}

/// The one to take, if any fits.
pub fn best(choices: &[Choice]) -> Option<&Choice> {
    choices.first().filter(|choice| choice.fits)
}

fn look(question: &Question<'_>, candidate: Candidate, needed: u64) -> Choice {
    let Question { demand, micro_batches, links, overlap, capacity } = *question;
    let estimate = simulate(demand, &candidate, micro_batches, links, overlap);
    let (mut sent, mut nodes) = (0, vec![0_u64; candidate.layout.world().div_ceil(links.per_node)]);
    for rank in 0..candidate.layout.world() {
        let bytes = traffic(demand, &candidate, micro_batches, rank);
        sent = sent.max(bytes.iter().sum());
        nodes[rank / links.per_node] += across(&bytes, rank, links);
    }
    let across = nodes.into_iter().max().unwrap_or(0);
    let fits = capacity.is_none_or(|capacity| needed <= capacity);
    Choice { candidate, needed, fits, estimate, sent, across }
}
