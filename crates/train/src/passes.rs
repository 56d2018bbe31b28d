//! Forward and backward passes of a step's micro-batches, on one rank of a pipe of stages.
//!
//! The schedule is 1F1B (Narayanan et al. 2021, <https://arxiv.org/abs/2104.04473>): a stage first runs as many forward
//! passes as there are stages behind it, then one backward pass for each forward pass, then the backward passes that are
//! left. So no stage holds more micro-batches than there are stages. With three stages and four micro-batches:
//!
//! ```text
//! stage 0   F0 F1 F2 .. .. B0 F3 B1 .. B2 .. B3
//! stage 1   .. F0 F1 .. B0 F2 B1 F3 B2 .. B3
//! stage 2   .. .. F0 B0 F1 B1 F2 B2 F3 B3
//! ```
//!
//! One stage is the same schedule: forward and backward in turn.

use crate::Result;
use crate::engine::Engine;
use crate::gauge::Gauge;
use crate::router_loss::RouterLoss;
use crate::step::{Sample, batch};
use ferrotune_dist::Ticket;
use ferrotune_model::{Batch, LossOptions, Model, NoiseSettings};
use ferrotune_tensor::{DType, Kind, Segment, Tape, Tensor, Var, ops};
use std::collections::VecDeque;
use std::rc::Rc;

/// What all passes of a step share.
pub(crate) struct Passes<'a> {
    pub(crate) model: &'a Model,
    pub(crate) engine: &'a Engine,
    pub(crate) loss: LossOptions,
    pub(crate) noise: NoiseSettings,
    /// Blocks are recomputed in the backward pass.
    pub(crate) recompute: bool,
    /// The loss on the balance of experts.
    pub(crate) router: Option<&'a RouterLoss>,
}

/// A micro-batch between its forward and its backward pass.
struct Flight<'t> {
    tape: Tape<'t>,
    input: Option<Var>,
    output: Var,
}

impl Passes<'_> {
    /// Adds the gradients of all micro-batches and leaves this rank's shares of the loss, which are 0 on all stages but the last,
    /// in `gauge`: nobody waits for the device.
    ///
    /// # Errors
    /// If memory runs out or a rank is lost.
    pub(crate) fn run(&self, micro_batches: &[Vec<Sample<'_>>], gauge: &Gauge) -> Result<()> {
        let behind = self.engine.division().spans.len() - 1 - self.engine.division().mesh.place().stage;
        let recompute = |segment: Segment| self.recompute && self.model.is_block(segment);
        let (mut flying, mut sent) = (VecDeque::new(), Vec::new());
        let mut done = 0;
        if micro_batches.len() > 1 {
            self.census(micro_batches)?;
        }
        for (number, samples) in micro_batches.iter().enumerate() {
            let tape = Tape::new(self.engine.device(), self.engine, &recompute);
            flying.push_back(self.forward(tape, samples, &mut sent, &gauge.loss(number))?);
            if number >= behind {
                done += 1;
                self.backward(flying.pop_front(), done == micro_batches.len(), &mut sent)?;
            }
        }
        while !flying.is_empty() {
            done += 1;
            self.backward(flying.pop_front(), done == micro_batches.len(), &mut sent)?;
        }
        sent.into_iter().try_for_each(Ticket::wait)?;
        Ok(())
    }

    /// Runs all micro-batches forward, the head left out, so that their routers count.
    fn census(&self, micro_batches: &[Vec<Sample<'_>>]) -> Result<()> {
        let (engine, Some(router)) = (self.engine, self.router) else { return Ok(()) };
        let span = engine.division().span();
        let span = span.start..span.end.min(self.model.segments() - 1);
        for samples in micro_batches {
            let batch = batch(self.model, engine, samples, Some(self.noise), Some(router.balance()));
            let input = receive(self.model, engine, &batch)?.map(Var::constant);
            let tape = Tape::forward_only(engine.device(), engine);
            let output = self.model.forward(&tape, &batch, span.clone(), input, self.loss);
            if !engine.division().is_last() {
                pass_on(engine, &output).wait()?;
            }
            engine.check()?;
        }
        router.settle(engine.comm())
    }

    fn forward<'t>(
        &self,
        tape: Tape<'t>,
        samples: &[Sample<'_>],
        sent: &mut Vec<Ticket>,
        loss: &Tensor,
    ) -> Result<Flight<'t>> {
        let balance = self.router.map(RouterLoss::balance);
        let batch = batch(self.model, self.engine, samples, Some(self.noise), balance);
        let input = receive(self.model, self.engine, &batch)?
            .map(|x| if self.engine.trains_before() { tape.leaf(x) } else { Var::constant(x) });
        let span = self.engine.division().span();
        let output = self.model.forward(&tape, &batch, span, input.clone(), self.loss);
        if self.engine.division().is_last() {
            self.engine.check()?;
            ops::copy(loss, &output.value);
        } else {
            sent.push(pass_on(self.engine, &output));
        }
        Ok(Flight { tape, input, output })
    }

    fn backward(&self, flight: Option<Flight<'_>>, last: bool, sent: &mut Vec<Ticket>) -> Result<()> {
        let Some(Flight { tape, input, output }) = flight else { return Ok(()) };
        let (engine, pipe) = (self.engine, &self.engine.division().mesh.pipe);
        if let Some(router) = self.router {
            router.settle(engine.comm())?;
        }
        engine.begin_micro_batch(last);
        let seed = if engine.division().is_last() {
            Tensor::from_f32(engine.device(), &[1.0], [1], Kind::ActGrad)
        } else if output.needs_grad() {
            let seed = output.value.empty_like(Kind::ActGrad);
            pipe.recv(&seed, pipe.rank() + 1).wait()?;
            seed
        } else {
            return Ok(());
        };
        let gradient = tape.backward(&output, seed, input.as_ref());
        drop(output);
        if let Some(input) = input.filter(Var::needs_grad) {
            // Where nothing flowed back, zeros do: the stage before waits for as many bytes either way.
            let gradient = gradient.unwrap_or_else(|| {
                let zeros = input.value.empty_like(Kind::ActGrad);
                zeros.zero();
                zeros
            });
            sent.push(pipe.send(&gradient, pipe.rank() - 1));
        }
        engine.check()
    }
}

/// The residual stream from the stage before; `None` on the first.
pub(crate) fn receive(model: &Model, engine: &Engine, batch: &Rc<Batch>) -> Result<Option<Tensor>> {
    if engine.division().is_first() {
        return Ok(None);
    }
    let shape = [batch.tokens(), model.config().hidden_size];
    let x = engine.device().empty(shape, stream_dtype(model), Kind::Act);
    let pipe = &engine.division().mesh.pipe;
    pipe.recv(&x, pipe.rank() - 1).wait()?;
    Ok(Some(x))
}

/// Sends the residual stream to the next stage.
pub(crate) fn pass_on(engine: &Engine, x: &Var) -> Ticket {
    let pipe = &engine.division().mesh.pipe;
    pipe.send(&x.value, pipe.rank() + 1)
}

/// Element type of the residual stream.
fn stream_dtype(model: &Model) -> DType {
    model.activations()
}
