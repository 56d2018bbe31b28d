//! The loop, top to bottom: next rows, step, log?, evaluate?, save? No callbacks and no hooks; whoever listens gets
//! [`Event`]s.

use crate::clock::Pace;
use crate::cures::with_cures;
use crate::engine::Engine;
use crate::error::name_rows;
use crate::evaluate::{EvaluateOptions, evaluate};
use crate::event::{Event, Start};
use crate::intervals::{self, Intervals};
use crate::limit::{Limit, Longest, rehearse, step_within};
use crate::memory::MemoryPlan;
use crate::order::{Order, Share};
use crate::outputs::Outputs;
use crate::plan::Candidate;
use crate::predict::{Answering, predict};
use crate::profile::{Profile, Profiler};
use crate::report::{LogRow, Summary, TrainerState, When};
use crate::resume::{Pacing, changes, finished_before, position, replaced, to_resume, with_best};
use crate::save::{Pending, RunState, Saver, Snapshots};
use crate::schedule::LearningRate;
use crate::step::{Outcome, Sample, StepOptions, Votes, Work, step_options};
use crate::track::BestTracker;
use crate::{Error, Result};
use ferrotune_config::plan::{Interval, Plan, Precision, ProfilePlan, Tuning};
use ferrotune_data::rows::Rows;
use ferrotune_dist::Activity;
use ferrotune_model::Model;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Everything a run needs, made ready.
pub struct Job<'a> {
    /// What is to be done.
    pub plan: &'a Plan,
    /// The model.
    pub model: &'a Model,
    /// Its weights, loaded.
    pub engine: &'a Engine,
    /// How it is saved.
    pub saver: Saver<'a>,
    /// Rows to train on.
    pub train: &'a Rows,
    /// Rows to evaluate on, by name.
    pub eval: &'a [(String, Rows)],
    /// How rows are answered, where evaluations are by answers.
    pub answering: Option<Answering<'a>>,
    /// Memory as predicted, and whether blocks are recomputed.
    pub memory: MemoryPlan,
    /// The longest micro-batch.
    pub longest: Longest,
    /// The recipe with its overrides, without access tokens.
    pub recipe: &'a str,
    /// How many ranks' rows make a step, where that isn't the number of those present: ranks of an elastic run come and go,
    /// and a step's rows stay the same.
    pub ranks_of_a_step: Option<usize>,
    /// Set by the caller to end the run after the step under way, with a checkpoint.
    pub stop: &'a AtomicBool,
}

/// How a run ended.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Steps done.
    pub steps: u64,
    /// Steps that the recipe asks for.
    pub total: u64,
    /// Mean loss of all steps.
    pub train_loss: f64,
    /// Time of this session.
    pub runtime: Duration,
    /// Tokens a second of this session.
    pub tokens_per_second: f64,
    /// Seconds of a step in the mean of this session, without what lies between steps; nothing if it made none.
    pub step: Option<f64>,
    /// Most bytes of this rank's tensors.
    pub peak: u64,
    /// Whether the caller asked it to end before it was done; its checkpoint is there.
    pub interrupted: bool,
}

/// The order of a job's rows, as this rank sees it.
pub(crate) fn order_of(job: &Job<'_>) -> Order {
    let mesh = &job.engine.division().mesh;
    // However ranks share the work, each counts for a step's rows, as it does where ranks are replicas.
    let of_a_step = job.ranks_of_a_step.unwrap_or(mesh.world.world());
    let share = Share { rank: mesh.data_rank(), ranks: mesh.layout().data_ranks(), of_a_step };
    let budget = job.plan.parallel.max_tokens_per_micro_batch;
    match job.plan.data.stream {
        None => Order::new(job.train.len(), &job.plan.train, budget, share),
        Some(buffer) => Order::streamed(job.train, &job.plan.train, (buffer, job.plan.data.seed), budget, share),
    }
}

/// Trains.
///
/// Every rank runs this; the first one writes the logs. A rank that fails tells the others, whose errors then name it.
///
/// # Errors
/// If something isn't finite, a file can't be written, memory runs out, or a rank is lost; the last checkpoint is whole in
/// every case.
pub fn run(job: &Job<'_>, hear: &mut dyn FnMut(Event)) -> Result<Finished> {
    let result = train(job, hear);
    match &result {
        Ok(_) => job.engine.comm().pulse().does(Activity::Finished),
        Err(error) => job.engine.comm().fail(&error.to_string()),
    }
    result
}

fn train(job: &Job<'_>, hear: &mut dyn FnMut(Event)) -> Result<Finished> {
    let comm = job.engine.division().mesh.world.clone();
    let everywhere = job.plan.parallel.save_on_each_node;
    let snapshots = Snapshots::open(comm, &job.plan.output.dir, everywhere)?;
    if let Some(finished) = finished_before(job, &snapshots)? {
        hear(Event::AlreadyFinished { steps: finished.steps });
        return Ok(finished);
    }
    Session::begin(job, snapshots, hear)?.train()
}

/// A run under way.
struct Session<'a, 'h> {
    job: &'a Job<'a>,
    hear: &'h mut dyn FnMut(Event),
    options: StepOptions,
    /// Rows of a micro-batch.
    limit: Limit,
    order: Order,
    every: Intervals,
    rates: LearningRate,
    best: Option<BestTracker>,
    run: RunState,
    state: TrainerState,
    /// The first rank's.
    outputs: Option<Outputs>,
    snapshots: Snapshots,
    /// Operations of this rank that `run` doesn't count yet.
    flops: f64,
    /// A checkpoint that threads are writing.
    pending: Option<Pending>,
    pace: Pace,
    profiler: Option<Profiler>,
    /// Steps of this session, and what they took.
    stepped: (u32, Duration),
    start: Instant,
    /// Seconds of earlier sessions.
    earlier: f64,
    /// Evaluated after this step already.
    evaluated: Option<u64>,
    /// Checkpoints of a run that this one replaces; they go when this one has its own.
    replaced: Vec<u64>,
}

impl<'a, 'h> Session<'a, 'h> {
    fn begin(job: &'a Job<'a>, snapshots: Snapshots, hear: &'h mut dyn FnMut(Event)) -> Result<Self> {
        let plan = job.plan;
        if plan.eval.load_best && plan.output.save_only_model && !snapshots.model_is_everywhere() {
            return Err(Error::BestElsewhere { path: plan.output.dir.clone() });
        }
        let found = to_resume(plan, &snapshots)?;
        let read = found.as_ref().map(|found| snapshots.restore(job.engine, found)).transpose()?;
        let order = order_of(job);
        let total = order.shape().total_steps();
        let every = Intervals::new(plan, total)?;
        let mut rates = LearningRate::new(&plan.train.schedule, total)?;
        let mut best = BestTracker::new(&plan.eval);
        let (recipe, pace) = (job.recipe.to_owned(), Pacing::of(&job.plan.train, &order));
        let split = Some(Candidate::of(job.engine.division()));
        // Streamed rows are counted when they are all there; their cache tells whether they are others.
        let rows = if plan.data.stream.is_some() { 0 } else { job.train.len() as u64 };
        let mut run = RunState { rows, recipe, pace, split, ..RunState::default() };
        let mut state = fresh_state(plan, &order, every);
        if let (Some(found), Some(read)) = (found, read) {
            for change in changes(&read, &run, &found.path) {
                hear(Event::Warning(change));
            }
            let read = if plan.eval.load_best { with_best(read, &found.path, &snapshots, hear)? } else { read };
            let step = position(&read, &run.pace);
            state = TrainerState { log_history: snapshots.logs(&found)?.log_history, ..state };
            state.log_history.retain(|row| row.when.step <= step);
            best.iter_mut().for_each(|tracker| tracker.restore(read.best));
            read.plateau.iter().for_each(|plateau| rates.restore(*plateau));
            run = RunState { recipe: run.recipe, rows: run.rows, pace: run.pace, split: run.split, step, ..read };
            hear(Event::Resumed(found.path));
        }
        let scaled = plan.model.precision == Precision::F16;
        run.scale = scaled.then(|| run.scale.unwrap_or_default());
        let replaced = replaced(plan, &snapshots, run.step, hear)?;
        let rank = job.engine.comm().rank();
        let outputs = (rank == 0).then(|| Outputs::open(plan, run.step)).transpose()?;
        let earlier = run.seconds;
        let pace = Pace::new(total, run.step, Duration::from_secs_f64(run.seconds), run.tokens);
        let options = step_options(plan, job.model.config(), job.memory.recompute);
        let (trainable, parameters) = job.engine.counts();
        hear(Event::Started(Start {
            trainable,
            parameters,
            memory: job.memory.clone(),
            done: run.step,
            total,
            epochs: total as f64 / order.shape().steps_per_epoch() as f64,
            rows: (!job.train.is_growing()).then(|| job.train.len()),
            rows_per_step: order.rows_per_step(),
        }));
        let of = |plan: &ProfilePlan| Profiler::new(plan.clone(), rank, job.engine.comm().pulse().clone());
        let profiler = plan.output.profile.as_ref().map(of);
        let start = Instant::now();
        let evaluated = state.log_history.last().filter(|row| row.when.step == run.step && is_evaluation(row));
        let evaluated = evaluated.map(|row| row.when.step);
        Ok(Self {
            job,
            hear,
            options,
            limit: job.longest.limit,
            order,
            every,
            rates,
            best,
            run,
            state,
            outputs,
            snapshots,
            flops: 0.0,
            pending: None,
            pace,
            profiler,
            stepped: (0, Duration::ZERO),
            start,
            earlier,
            evaluated,
            replaced,
        })
    }

    fn train(mut self) -> Result<Finished> {
        let total = self.order.shape().total_steps();
        if self.run.step < total {
            self.rehearse()?;
        }
        if self.job.plan.eval.on_start && self.run.step == 0 {
            self.evaluate()?;
        }
        // A run that was killed after its last evaluation had enough then, and has enough now.
        let mut enough = self.best.as_ref().is_some_and(BestTracker::exhausted);
        while self.run.step < total && !enough {
            let (outcome, rate) = match self.step() {
                // All ranks see this one, and the checkpoint that is being written is sound.
                Err(error @ Error::NotFinite { .. }) => return self.finish_save().and(Err(error)),
                other => other?,
            };
            if outcome.ready {
                self.finish_save()?;
            }
            self.run.seconds = self.earlier + self.start.elapsed().as_secs_f64();
            self.log(&outcome, rate)?;
            enough = self.due(self.every.eval) && self.evaluate()?;
            let done = self.run.step == total;
            let interrupted = outcome.stop && !done && !enough;
            let last = done && matches!(self.every.save, Interval::Steps(_));
            if self.due(self.every.save) || last || interrupted {
                self.save(interrupted)?;
            }
            if interrupted {
                return self.interrupted(total);
            }
        }
        self.finish(total)
    }

    /// The longest micro-batch, where a GPU's memory could run out in the middle of the run.
    fn rehearse(&mut self) -> Result<()> {
        let (job, before) = (self.job, self.limit);
        if !job.plan.parallel.rehearses || job.engine.device().gpu().is_none() {
            return Ok(());
        }
        let done = rehearse(job.model, job.engine, &self.options, &job.longest.lengths, &mut self.limit);
        self.tell_limit(before);
        done.map_err(|error| self.with_cures(error))
    }

    /// Says that micro-batches have become smaller.
    fn tell_limit(&mut self, before: Limit) {
        if let Some(told) = self.limit.told(before) {
            (self.hear)(Event::Warning(told));
        }
    }

    fn with_cures(&self, error: Error) -> Error {
        with_cures(error, self.job.plan, &self.options, (self.job.model, self.job.engine, self.limit.rows))
    }

    /// One optimiser step.
    fn step(&mut self) -> Result<(Outcome, f64)> {
        let number = self.run.step + 1;
        let scale = self.run.scale;
        // A step that was skipped moves neither the weights nor the learning rate.
        let rate = self.rates.rate(self.run.step - scale.map_or(0, |scale| scale.skipped));
        let sample = |index| Sample { row: self.job.train.get(index), index };
        let rows = self.order.step_rows(number, |row| self.job.train.size(row).0).map_err(Error::Data)?;
        let micro_batches: Vec<Vec<Sample<'_>>> =
            rows.into_iter().map(|rows| rows.into_iter().map(sample).collect()).collect();
        let flops = || self.job.engine.device().track().flops;
        let before = flops();
        let votes = || Votes {
            stop: self.job.stop.load(Ordering::Relaxed),
            ready: self.pending.as_ref().is_some_and(Pending::is_written),
        };
        let work = Work { step: number, rate, micro_batches: &micro_batches, scale, votes: &votes };
        self.profiler.iter_mut().for_each(|profiler| profiler.step_begins(number));
        let (start, limit) = (Instant::now(), self.limit);
        let outcome = step_within(self.job.model, self.job.engine, &self.options, &work, &mut self.limit);
        self.tell_limit(limit);
        let names = &self.job.plan.data.datasets;
        let outcome = outcome.map_err(|error| match error {
            Error::NotFinite { step, loss, grad_norm, place, rows, .. } => {
                Error::NotFinite { step, loss, grad_norm, place, rows, datasets: names.clone() }
            }
            other => self.with_cures(other),
        })?;
        self.weigh(number, &outcome);
        if !(outcome.updated || outcome.overflowed) {
            let rows: Vec<_> = micro_batches.iter().flatten().map(|s| s.row.source).collect();
            (self.hear)(Event::Warning(format!(
                "step {number}: no token of {} has a label, so nothing was learnt from it; was the answer cut off by cutoff_len?",
                name_rows(&rows, names)
            )));
        }
        self.run.step = number;
        self.profiled(number);
        self.stepped = (self.stepped.0 + 1, self.stepped.1 + start.elapsed());
        let tokens = micro_batches.iter().flatten().map(|sample| sample.row.input_ids.len() as u64).sum();
        let memory = self.job.engine.device().track().peak;
        self.job.engine.comm().pulse().trained(tokens, memory);
        self.flops += flops() - before;
        self.run.tokens += outcome.tokens;
        // A forward pass that overflows has no loss; the mean is over those that have one.
        if outcome.loss.is_finite() {
            self.run.losses.add(outcome.loss);
        }
        self.pace.step(self.start.elapsed(), outcome.tokens);
        (self.hear)(Event::Stepped(self.pace.progress(self.start.elapsed()), outcome.loss));
        Ok((outcome, rate))
    }

    /// Ends a step of the profile; that it can't be written ends no run.
    fn profiled(&mut self, number: u64) {
        let last = number == self.order.shape().total_steps();
        match self.profiler.as_mut().map(|profiler| profiler.step_ends(number, last)) {
            Some(Ok(Some(Profile { path, hidden }))) => (self.hear)(Event::Profiled { path, hidden }),
            Some(Err(error)) => (self.hear)(Event::Warning(format!("no profile was written: {error}"))),
            Some(Ok(None)) | None => {}
        }
    }

    /// Brings the scale of the loss up to date with a step.
    fn weigh(&mut self, number: u64, outcome: &Outcome) {
        let Some(scale) = &mut self.run.scale else { return };
        if !outcome.overflowed {
            scale.taken();
            return;
        }
        scale.overflowed();
        let told = format!(
            "step {number}: a gradient overflowed in half precision; the step is skipped, and the loss is scaled by {} from here",
            scale.scale
        );
        (self.hear)(Event::Warning(told));
    }

    fn when(&self) -> When {
        When { step: self.run.step, epoch: self.order.shape().epoch_after(self.run.step) }
    }

    fn due(&self, interval: Interval) -> bool {
        match interval {
            Interval::Never | Interval::Share(_) => false,
            Interval::Steps(every) => self.run.step.is_multiple_of(every),
            Interval::Epoch => self.order.ends_epoch(self.run.step),
        }
    }

    fn log(&mut self, outcome: &Outcome, rate: f64) -> Result<()> {
        let first = self.job.plan.output.logging_first_step && self.run.step == 1;
        if !first && !self.due(self.every.log) {
            return Ok(());
        }
        let loss = self.run.losses.take().unwrap_or(outcome.loss);
        self.record(LogRow::step(self.when(), loss, outcome.grad_norm, rate).with_router_loss(outcome.router_loss))
    }

    fn record(&mut self, row: LogRow) -> Result<()> {
        if let Some(outputs) = &mut self.outputs {
            outputs.row(&row, &self.pace.progress(self.start.elapsed()))?;
        }
        self.state.log_history.push(row.clone());
        (self.hear)(Event::Logged(row));
        Ok(())
    }

    /// Evaluates on every set; true if the run has been without progress for long enough.
    fn evaluate(&mut self) -> Result<bool> {
        let plan = &self.job.plan.eval;
        let (several, mut rows) = (self.job.plan.data.eval_each && self.job.eval.len() > 1, Vec::new());
        for (name, set) in self.job.eval {
            let (model, engine) = (self.job.model, self.job.engine);
            let found = match self.job.answering {
                Some(how) => predict(model, engine, set, how, &mut |_, _| {})?.evaluation,
                None => {
                    let router_aux_loss = self.options.router_aux_loss;
                    let (batch_rows, accuracy) = (plan.batch, plan.accuracy);
                    evaluate(model, engine, set, EvaluateOptions { batch_rows, router_aux_loss, accuracy })?
                }
            };
            let name = several.then(|| name.clone());
            let row = LogRow::evaluation(self.when(), name.as_deref(), &found);
            rows.push(row.clone());
            self.record(row)?;
            (self.hear)(Event::Evaluated { step: self.run.step, name, found });
        }
        self.evaluated = Some(self.run.step);
        if self.run.step > 0
            && let Some(loss) =
                rows.first().and_then(|row| row.values().find(|(k, _)| k.ends_with("_loss")).map(|(_, v)| v))
        {
            self.rates.observe(loss);
        }
        let (step, best) = (self.run.step, &mut self.best);
        match best {
            Some(tracker) if step > 0 && !rows.is_empty() => {
                let verdict = tracker.observe(step, &rows)?;
                if verdict.improved {
                    self.run.best_in = None;
                }
                Ok(verdict.stop)
            }
            _ => Ok(false),
        }
    }

    /// The folder of the best checkpoint so far.
    fn best_checkpoint(&self) -> Option<PathBuf> {
        let folder = self.run.best_in.as_deref().unwrap_or(self.snapshots.dir());
        self.run.best.best.map(|best| folder.join(format!("checkpoint-{}", best.step)))
    }

    /// Brings the trainer state up to where the run stands. All ranks call it.
    fn settle(&mut self) -> Result<()> {
        let mut flops = [std::mem::take(&mut self.flops)];
        self.job.engine.comm().sum(&mut flops)?;
        self.run.flops += flops[0];
        let When { step, epoch } = self.when();
        self.state.global_step = step;
        self.state.epoch = epoch;
        self.state.total_flos = self.run.flops;
        self.state.num_input_tokens_seen = self.run.tokens;
        if let Some(best) = &self.best {
            best.describe(&mut self.state);
            self.run.best = best.state();
            let folder = self.best_checkpoint();
            self.state.best_model_checkpoint =
                folder.filter(|f| f.exists()).and_then(|f| f.to_str().map(str::to_owned));
        }
        self.run.plateau = self.rates.state();
        Ok(())
    }

    /// Begins to write a checkpoint. That of an interrupted run can always be gone on from.
    fn save(&mut self, interrupted: bool) -> Result<()> {
        self.finish_save()?;
        self.settle()?;
        let engine = self.job.engine;
        engine.comm().pulse().does(Activity::Saving);
        let files = self.job.saver.files(engine.parameters());
        let resumable = !self.job.plan.output.save_only_model || interrupted;
        let run = resumable.then_some(&self.run);
        self.pending = Some(self.snapshots.begin(engine, files, self.state.bytes(), self.run.step, run)?);
        Ok(())
    }

    /// Waits for the checkpoint that is being written, if there is one, and clears up behind it.
    fn finish_save(&mut self) -> Result<()> {
        let Some(pending) = self.pending.take() else { return Ok(()) };
        let step = pending.step;
        let path = self.snapshots.finish(pending, |slow| (self.hear)(Event::Warning(slow)))?;
        (self.hear)(Event::Saved(path));
        self.replaced.retain(|&replaced| replaced != step);
        self.snapshots.remove_steps(&std::mem::take(&mut self.replaced))?;
        self.prune()
    }

    /// Removes checkpoints that are too many.
    fn prune(&self) -> Result<()> {
        if let Some(keep) = self.job.plan.output.save_total_limit {
            let protect: Vec<u64> =
                self.run.best.best.filter(|_| self.job.plan.eval.load_best).map(|b| b.step).into_iter().collect();
            self.snapshots.prune(keep, &protect)?;
        }
        Ok(())
    }

    fn finished(&self, total: u64, interrupted: bool) -> Finished {
        Finished {
            steps: self.run.step,
            total,
            train_loss: self.run.losses.mean(),
            runtime: self.start.elapsed(),
            tokens_per_second: self.pace.progress(self.start.elapsed()).tokens_per_second,
            step: (self.stepped.0 > 0).then(|| (self.stepped.1 / self.stepped.0).as_secs_f64()),
            peak: self.job.engine.device().track().peak,
            interrupted,
        }
    }

    /// Ends a run that the user interrupted: its checkpoint is written, nothing else is claimed.
    fn interrupted(mut self, total: u64) -> Result<Finished> {
        self.finish_save()?;
        self.settle()?;
        if self.outputs.is_some() {
            self.state.write(&self.job.plan.output.dir)?;
        }
        Ok(self.finished(total, true))
    }

    fn finish(mut self, total: u64) -> Result<Finished> {
        let plan = self.job.plan;
        self.settle()?;
        let summary = Summary {
            train_loss: self.run.losses.mean(),
            total_flos: self.run.flops,
            samples: self.order.shape().samples(self.job.train.len() as u64, self.order.rows_per_step() as u64),
            steps: self.run.step,
            runtime: self.start.elapsed(),
        };
        let finished = self.finished(total, false);
        self.finish_save()?;
        // A kill may have come between the last save and its clearing up.
        self.prune()?;
        self.settle()?;
        if plan.eval.load_best
            && let Some(path) = self.best_checkpoint()
        {
            if plan.output.save_only_model {
                self.job.engine.reload(&path, matches!(plan.tuning, Tuning::Lora(_)))?;
            } else {
                let found = self.snapshots.at(&path)?;
                self.snapshots.restore(self.job.engine, &found)?;
            }
        }
        let row = LogRow::summary(self.when(), &summary);
        self.record(row.clone())?;
        let files = self.job.saver.files(self.job.engine.parameters());
        self.snapshots.write_model(self.job.engine, &files)?;
        if let Some(outputs) = &self.outputs {
            outputs.results("train", &row)?;
        }
        if plan.output.evaluate && !self.job.eval.is_empty() {
            if self.evaluated != Some(self.run.step) || plan.eval.load_best {
                self.evaluate()?;
            }
            let whole = |row: &&LogRow| row.get("eval_loss").or(row.get("eval_rouge-l")).is_some();
            let last = self.state.log_history.iter().rev().find(whole).cloned();
            if let (Some(row), Some(outputs)) = (last, &self.outputs) {
                outputs.results("eval", &row)?;
            }
        }
        self.settle()?;
        if let Some(outputs) = self.outputs {
            outputs.close(self.job, &self.state)?;
            // Last, because a summary in it says that everything else is there.
            self.state.write(&plan.output.dir)?;
        }
        Ok(finished)
    }
}

/// Whether a row of the log is of an evaluation.
fn is_evaluation(row: &LogRow) -> bool {
    row.values().any(|(name, _)| name.starts_with("eval_"))
}

fn fresh_state(plan: &Plan, order: &Order, every: Intervals) -> TrainerState {
    let mut state = TrainerState {
        max_steps: order.shape().total_steps(),
        num_train_epochs: order.shape().epochs(),
        train_batch_size: plan.train.micro_batch as u64,
        ..TrainerState::default()
    };
    state.logging_steps = intervals::steps(every.log).unwrap_or(state.logging_steps);
    state.eval_steps = intervals::steps(every.eval).unwrap_or(state.eval_steps);
    state.save_steps = intervals::steps(every.save).unwrap_or(state.save_steps);
    state
}
