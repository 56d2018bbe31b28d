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
    /// Whether the census has ended; where one rank counted alone, the counts are still where they were made.
    settled: Cell<bool>,
    /// The loss before its coefficient, once it is known.
    value: Cell<Option<f64>>,
}

impl RouterLoss {
    /// The loss over `tokens` tokens; `None` without a coefficient or without experts.
    pub(crate) fn new(model: &Model, engine: &Engine, coefficient: f64, tokens: f64) -> Option<Self> {
        let moe = model.config().moe.as_ref().filter(|_| coefficient != 0.0)?;
        let blocks = moe.sparse.iter().filter(|sparse| **sparse).count();
        let balance = Rc::new(Balance::new(engine.device(), moe.experts));
        let choosers = blocks as f64 * tokens;
        let (settled, value) = (Cell::default(), Cell::default());
        (choosers > 0.0).then_some(Self { balance, coefficient, choosers, settled, value })
    }

    /// What a batch is given, so that its routers count and are priced.
    pub(crate) fn balance(&self) -> Rc<Balance> {
        self.balance.clone()
    }

    /// Ends the census over the ranks of `comm`, which are all that counted; only the first call does something.
    ///
    /// # Errors
    /// If a rank is lost.
    pub(crate) fn settle(&self, comm: &dyn Comm) -> Result<()> {
        if self.settled.replace(true) {
            return Ok(());
        }
        if comm.world() == 1 {
            // Nobody waits for the device.
            self.balance.close_at(self.coefficient * self.scale());
            return Ok(());
        }
        let mut census = self.balance.census();
        comm.sum(&mut census)?;
        let price = self.coefficient * self.scale();
        let choices = &census[..self.balance.experts()];
        self.balance.close(&choices.iter().map(|count| (price * count) as f32).collect::<Vec<_>>());
        self.value.set(Some(self.of(&census)));
        Ok(())
    }

    /// `E / (L T)^2`.
    fn scale(&self) -> f64 {
        self.balance.experts() as f64 / self.choosers.powi(2)
    }

    /// The loss that a census makes.
    fn of(&self, census: &[f64]) -> f64 {
        let (choices, sums) = census.split_at(self.balance.experts());
        self.scale() * choices.iter().zip(sums).map(|(count, sum)| count * sum).sum::<f64>()
    }

    /// The loss before its coefficient, and what it adds to the step's; 0 before it is settled. A GPU may be waited for.
    pub(crate) fn value(&self) -> (f64, f64) {
        let here = || self.settled.get().then(|| self.of(&self.balance.census()));
        let value = self.value.get().or_else(here).unwrap_or(0.0);
        (value, self.coefficient * value)
    }
}
