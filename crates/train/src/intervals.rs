//! When a run logs, evaluates and saves, once it is known how many steps it has.

use crate::{Error, Result};
use ferrotune_config::plan::{Interval, Plan};

/// The intervals of a run; none is a share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Intervals {
    pub(crate) log: Interval,
    pub(crate) eval: Interval,
    pub(crate) save: Interval,
}

impl Intervals {
    /// Those of a plan over a run of `total` steps.
    ///
    /// # Errors
    /// If the best checkpoint is wanted, and rounding makes shares of which some evaluated steps are never saved.
    pub(crate) fn new(plan: &Plan, total: u64) -> Result<Self> {
        let (log, eval, save) = (plan.output.log, plan.eval.every, plan.output.save);
        let found = Self { log: log.within(total), eval: eval.within(total), save: save.within(total) };
        match (found.eval, found.save) {
            (Interval::Steps(eval), Interval::Steps(save)) if plan.eval.load_best && !save.is_multiple_of(eval) => {
                Err(Error::BestNotSaved { total, eval, save })
            }
            _ => Ok(found),
        }
    }
}

/// The steps of an interval that has them, as a trainer state wants them.
pub(crate) fn steps(interval: Interval) -> Option<u64> {
    match interval {
        Interval::Steps(steps) => Some(steps),
        Interval::Never | Interval::Epoch | Interval::Share(_) => None,
    }
}
