//! The loss on how evenly experts are used, over a whole optimiser step.
//!
//! With `E` experts, `L` blocks that have them and `T` tokens in the step, over all micro-batches and ranks; `C_e` how often
//! expert `e` was chosen, and `S_e` the sum of its probabilities, over all these tokens and blocks:
//!
//! ```text
//! aux = E / (L T)^2  sum_e C_e S_e          loss = cross-entropy + coefficient * aux
//! ```
//!
//! That is transformers' `load_balancing_loss_func` of the whole step as one batch, all blocks together as it has them. (It
//! takes each micro-batch by itself and adds the results, so there the loss depends on how rows are split. Qwen3 was itself
//! trained with the balance of global batches, <https://arxiv.org/abs/2501.11873>.) Counts are constants to the backward
//! pass. They must be known before it begins: where a step has several micro-batches a rank, all of them are run forward
//! once to count; where it has one, the counts are summed between its two passes.

use crate::Result;
use crate::engine::Engine;
use ferrotune_config::plan::Plan;
use ferrotune_dist::Comm;
use ferrotune_model::{Config, Model};
use ferrotune_tensor::ops::Balance;
use std::cell::Cell;
use std::rc::Rc;

/// Weight of the loss on the balance of experts: the recipe's, or the model's own; 0 for none.
pub fn router_aux_loss(plan: &Plan, config: &Config) -> f64 {
    let Some(moe) = &config.moe else { return 0.0 };
    plan.train.router_aux_loss.unwrap_or(moe.router_aux_loss)
}

/// The loss of one step, or of one batch of an evaluation.
pub(crate) struct RouterLoss {
    balance: Rc<Balance>,
    coefficient: f64,
    /// Blocks with experts times tokens.
    choosers: f64,
    /// Whether the census has ended.
    settled: Cell<bool>,
}

impl RouterLoss {
    /// The loss over `tokens` tokens; `None` without a coefficient or without experts.
    pub(crate) fn new(model: &Model, engine: &Engine, coefficient: f64, tokens: f64) -> Option<Self> {
        let moe = model.config().moe.as_ref().filter(|_| coefficient != 0.0)?;
        let blocks = moe.sparse.iter().filter(|sparse| **sparse).count();
        let balance = Rc::new(Balance::new(engine.device(), moe.experts));
        let choosers = blocks as f64 * tokens;
        (choosers > 0.0).then_some(Self { balance, coefficient, choosers, settled: Cell::default() })
    }

    /// What a batch is given, so that its routers count and are priced.
    pub(crate) fn balance(&self) -> Rc<Balance> {
        self.balance.clone()
    }

    /// Ends the census over the ranks of `comm`, which are all that counted; only the first call does something. Nobody waits
    /// for a device.
    ///
    /// # Errors
    /// If a rank is lost.
    pub(crate) fn settle(&self, comm: &dyn Comm) -> Result<()> {
        if !self.settled.replace(true) {
            comm.all_reduce(self.balance.counted()).wait()?;
            self.balance.close_at(self.coefficient * self.scale());
        }
        Ok(())
    }

    /// `E / (L T)^2`.
    fn scale(&self) -> f64 {
        self.balance.experts() as f64 / self.choosers.powi(2)
    }

    /// The loss before its coefficient, and what it adds to the step's; 0 before it is settled. A GPU is waited for.
    pub(crate) fn value(&self) -> (f64, f64) {
        if !self.settled.get() {
            return (0.0, 0.0);
        }
        let census = self.balance.census();
        let (choices, sums) = census.split_at(self.balance.experts());
        let value = self.scale() * choices.iter().zip(sums).map(|(count, sum)| count * sum).sum::<f64>();
        (value, self.coefficient * value)
    }
}
