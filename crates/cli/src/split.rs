//! How a run is split over its ranks: what is measured for that, what is decided, and what is said of it; and that each rank gets
//! the memory which that takes.

mod words;

use crate::failure::Failure;
use crate::foretold::Foretold;
use crate::prepare::{Fitted, Resolved};
use crate::world::World;
use crate::{environment, ui};
use anyhow::anyhow;
use ferrotune_config::plan::{Plan, RunLength};
use ferrotune_data::prepare::Prepared;
use ferrotune_data::rows::Rows;
use ferrotune_tensor::Profile;
use ferrotune_train::plan::{Candidate, Probe, Rates, measure_rates};
use ferrotune_train::save::{Copied, split_before};
use ferrotune_train::{
    Answers, Circumstances, Error, Limit, Load, Longest, MemoryPlan, Room, Split, StepOptions, divide, evaluated_rows,
    expected_memory, expected_step, longest_batch, longest_evaluation, middle_batch, step_options, widest_answers,
};
use serde_json::Value;
use std::time::Duration;

/// How long a run measures its ranks before it begins.
const PATIENCE: Duration = Duration::from_millis(2400);
/// Plans that are made before a run gives up on memory that others take. Each asks for less than the one before.
const PLANS: usize = 6;

/// A run's split, and what is foretold of it.
pub(crate) struct Planned {
    pub(crate) split: Split,
    pub(crate) longest: Longest,
    pub(crate) foretold: Foretold,
}

/// Measures ranks and wires, splits the run, and takes the memory that it needs on each rank's device. Where others took it
/// meanwhile and the recipe has `auto_find_batch_size`, all ranks plan again for what is left. `config` is the model's config.json.
///
/// # Errors
/// If nothing that the recipe allows fits, memory is taken by others, or a rank is lost.
pub(crate) fn split(
    resolved: &Resolved,
    world: &World,
    fitted: &Fitted,
    config: &Value,
    prepared: &Prepared,
) -> Result<Planned, Failure> {
    let plan = &resolved.plan;
    let (survey, mut available) = Survey::new(resolved, world, fitted, config, prepared)?;
    words::tell_measured(world, &survey.probe, &survey.rates);
    let (mut before, mut plans) = (survey.as_written(), 0);
    loop {
        let planned = survey.plan(available)?;
        plans += 1;
        let (memory, limit) = (&planned.split.memory, planned.longest.limit);
        limit.told(before).filter(|_| world.is_first()).iter().for_each(|told| ui::warning(told));
        words::tell_divided(plan, world, &planned.split);
        // The rest is taken by others. No rank may go on alone, nor try again alone: the others would wait for it.
        let refused = world.device.reserve(memory.needed() - memory.constant).err();
        let Some(lacking) = world.lacking(refused.map(|fault| fault.to_string()))? else { return Ok(planned) };
        if !plan.parallel.fits_micro_batch || plans == PLANS {
            world.all_know();
            return Err(taken(&lacking, plan, planned.longest.lengths.len()));
        }
        if world.is_first() {
            ui::warning(&format!("{lacking}; others have taken memory since the run was planned: it is planned again"));
        }
        world.device.give_back();
        // Whatever is said to be free now, so much was refused.
        let less = memory.needed().saturating_sub(1);
        available = Some(available_memory(world)?.map_or(less, |free| free.min(less)));
        before = limit;
    }
}

/// Why a run can't begin: memory of micro-batches of so many `rows` is taken.
fn taken(lacking: &str, plan: &Plan, rows: usize) -> Failure {
    let cure = if rows > 1 && !plan.parallel.fits_micro_batch {
        "set auto_find_batch_size: true, which plans again for what is left"
    } else {
        "take a smaller cutoff_len"
    };
    Failure::Other(anyhow!(
        "{lacking}; others have taken memory since the run was planned: end what else takes memory there, or {cure}"
    ))
}

/// Bytes that the rank with the least can have, if all know theirs.
fn available_memory(world: &World) -> Result<Option<u64>, Failure> {
    // A GPU is one process's; the processes of a machine share its memory.
    let shared = || environment::available_memory().map(|free| free / world.per_node as u64);
    world.least(world.device.free_memory().or_else(shared))
}

/// What a run is split by.
struct Survey<'a> {
    plan: &'a Plan,
    resolved: &'a Resolved,
    world: &'a World,
    fitted: &'a Fitted,
    prepared: &'a Prepared,
    options: StepOptions,
    /// Tokens of each row to train on, where all are there.
    rows: Vec<usize>,
    /// The longest micro-batch as it is written, in tokens.
    lengths: Vec<usize>,
    /// The longest evaluation batch, in tokens.
    evaluated: Vec<usize>,
    answers: Option<Answers>,
    copied: Copied,
    /// Ranks whose rows make a step.
    of_a_step: usize,
    probe: Probe,
    rates: Rates,
    /// How the run was split before that now goes on.
    earlier: Option<Candidate>,
    /// What this process had resident before it measured, and had at most.
    before: Option<(u64, u64)>,
}

impl<'a> Survey<'a> {
    /// Looks at the rows and measures ranks and wires; and what memory there is before that.
    fn new(
        resolved: &'a Resolved,
        world: &'a World,
        fitted: &'a Fitted,
        config: &Value,
        prepared: &'a Prepared,
    ) -> Result<(Self, Option<u64>), Failure> {
        let before = environment::resident();
        let plan = &resolved.plan;
        let options = step_options(plan, fitted.model().config(), false);
        let train = prepared.train.as_ref().filter(|_| fitted.trains());
        // What will come of a stream is known only in that it won't be longer.
        let (growing, whole): (Vec<&Rows>, Vec<&Rows>) = train.into_iter().partition(|_| prepared.coming.is_some());
        let rows: Vec<usize> = whole.into_iter().flat_map(sizes).collect();
        let to_come = growing.iter().flat_map(|rows| vec![rows.max_len(); plan.train.micro_batch]);
        let budget = plan.parallel.max_tokens_per_micro_batch;
        let lengths = longest_batch(rows.iter().copied().chain(to_come).collect(), plan.train.micro_batch, budget);
        let looked_at = evaluated_rows(prepared.eval.iter().map(|(_, rows)| rows), plan);
        let ranks = world.comm.world();
        let of_a_step = world.ranks_of_a_step.unwrap_or(ranks);
        check_rows(plan, of_a_step).inspect_err(|_| world.all_know())?;
        let available = available_memory(world)?;
        let probe = Probe::new(&*world.comm, &world.device, world.per_node.min(ranks))?;
        let batch = if rows.is_empty() { None } else { middle_batch(&rows, plan) }.unwrap_or_else(|| lengths.clone());
        let rates = measure_rates(fitted.model(), &world.device, &batch, &*world.comm, PATIENCE)?;
        let survey = Self {
            plan,
            resolved,
            world,
            fitted,
            prepared,
            options,
            rows,
            lengths,
            evaluated: longest_evaluation(&looked_at, plan),
            answers: widest_answers(&looked_at, plan),
            copied: fitted.copied(plan, config),
            of_a_step,
            probe,
            rates,
            earlier: split_before(&*world.comm, plan, world.local_rank == 0)?,
            before,
        };
        Ok((survey, available))
    }

    /// Micro-batches as the recipe has them.
    fn as_written(&self) -> Limit {
        Limit { written: self.plan.train.micro_batch, rows: None, shrinks: self.plan.parallel.fits_micro_batch }
    }

    /// Splits the run, where ranks can have so much memory.
    ///
    /// # Errors
    /// If nothing that the recipe allows fits. All ranks find that.
    fn plan(&self, available: Option<u64>) -> Result<Planned, Failure> {
        let Self { plan, world, of_a_step, .. } = *self;
        let ranks = world.comm.world();
        let mut load = Load {
            model: self.fitted.model(),
            options: &self.options,
            recompute: plan.model.recompute,
            lengths: &self.lengths,
            evaluated: &self.evaluated,
            answers: self.answers,
            micro_batches: plan.train.accumulation * of_a_step,
            copied: self.copied,
        };
        let room = match world.device.profile() {
            Profile::Cpu => Room::Shared(available),
            Profile::Cuda => Room::Free(available),
        };
        let (per_node, links, before) = (world.per_node.min(ranks), self.probe.links, self.earlier.as_ref());
        let among = Circumstances { world: ranks, per_node, room, links, rates: self.rates, before };
        let mut limit = self.as_written();
        let split = loop {
            let most = load.lengths.len();
            match divide(&load, &plan.parallel, &among) {
                // Where several ranks fill micro-batches by tokens, they'd cut them into different numbers.
                Err(Error::DoesNotFit { .. })
                    if limit.shrinks
                        && most > 1
                        && (ranks == 1 || plan.parallel.max_tokens_per_micro_batch.is_none()) =>
                {
                    load.lengths = &self.lengths[..most.div_ceil(2)];
                    limit.rows = Some(load.lengths.len());
                    load.micro_batches = limit.pieces() * plan.train.accumulation * of_a_step;
                }
                other => break other,
            }
        };
        let split = split.inspect_err(|_| world.all_know()).map_err(|error| self.resolved.place(error))?;
        let foretold = self.foretold(&load, &among, &split)?;
        Ok(Planned { split, longest: Longest { lengths: load.lengths.to_vec(), limit }, foretold })
    }

    /// What a run that is split so will show of itself.
    fn foretold(&self, load: &Load<'_>, among: &Circumstances<'_>, split: &Split) -> Result<Foretold, Error> {
        let (plan, rows) = (self.plan, (&self.rows[..], self.of_a_step));
        let way = split.ways.first().filter(|_| !self.rows.is_empty());
        let step = way.map(|way| expected_step(load, plan, rows, among, way)).transpose()?;
        // What the process has of its own, and the rows, which are mapped and stay.
        let shown = plan.train.micro_batch * plan.train.accumulation;
        let train = self.prepared.train.as_ref().filter(|_| self.fitted.trains());
        let train = train.map_or(0, |rows| read(rows.tokens(), shown as u64, plan.train.length));
        let mapped = train + self.prepared.eval.iter().map(|(_, rows)| 8 * rows.tokens()).sum::<u64>();
        // What lies on a GPU isn't the process's memory.
        let before = self.before.filter(|_| !among.room.has_own_host());
        let measured = self.world.device.track().extent;
        let of = |before| -> Result<u64, Error> {
            let memory = expected_memory(load, plan, rows, among.room, split)?;
            Ok(resident(before, &memory, measured) + mapped)
        };
        Ok(Foretold { resident: before.map(of).transpose()?, step })
    }
}

/// Most bytes of a process that had `now` of them, and at most `most`, before it measured and trains. The heap gives nothing
/// back: what was `measured` with, more than a tiny model takes, the process keeps.
fn resident((now, most): (u64, u64), memory: &MemoryPlan, measured: u64) -> u64 {
    (now + memory.needed() + measured.saturating_sub(memory.predicted.extent)).max(most)
}

/// What comes with a row that is read from a mapped file: the pages around it that the system has at hand.
const AROUND: u64 = 64 << 10;

/// Bytes that a process reads of rows of `tokens` in all, of which it takes `shown` a step: a short run doesn't come by them
/// all.
fn read(tokens: u64, shown: u64, length: RunLength) -> u64 {
    let all = 8 * tokens;
    match length {
        RunLength::Steps(steps) => all.min(steps.saturating_mul(shown).saturating_mul(AROUND)),
        RunLength::Epochs(_) => all,
    }
}

/// Each row's tokens.
fn sizes(rows: &Rows) -> Vec<usize> {
    (0..rows.len()).map(|i| rows.size(i).0).collect()
}

/// DeepSpeed's `train_batch_size` follows from what else is said, and must not contradict it.
fn check_rows(plan: &Plan, ranks: usize) -> Result<(), Failure> {
    let (micro_batch, accumulation) = (plan.train.micro_batch, plan.train.accumulation);
    let rows = micro_batch * accumulation * ranks;
    match plan.parallel.rows_of_a_step {
        Some(asked) if asked != rows => Err(Failure::Other(anyhow!(
            "`train_batch_size: {asked}` of DeepSpeed contradicts per_device_train_batch_size {micro_batch} x \
             gradient_accumulation_steps {accumulation} x {ranks} ranks, which are {rows} rows a step; write `auto` there"
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_measuring_takes_beyond_the_run_is_the_processs() {
        let mut memory = MemoryPlan { constant: 5, ..MemoryPlan::default() };
        memory.predicted.extent = 100;
        assert_eq!(resident((30, 40), &memory, 90), 135);
        assert_eq!(resident((30, 40), &memory, 160), 195);
        assert_eq!(resident((30, 400), &memory, 160), 400);
    }

    #[test]
    fn a_short_run_reads_what_it_shows_and_what_lies_around_it() {
        assert_eq!(read(1 << 30, 4, RunLength::Steps(2)), 8 * AROUND);
        assert_eq!(read(1000, 4, RunLength::Steps(2)), 8000, "no more than there is");
        assert_eq!(read(1 << 30, 4, RunLength::Epochs(0.1)), 8 << 30);
    }
}
