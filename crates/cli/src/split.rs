//! How a run is split over its ranks: what is measured for that, what is decided, and what is said of it.

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
use ferrotune_train::plan::{Choice, Link, Probe, Rates, measure_rates};
use ferrotune_train::save::split_before;
use ferrotune_train::{
    Circumstances, Error, Limit, Load, MemoryPlan, Room, Split, Way, divide, evaluated_rows, expected_memory,
    expected_step, longest_batch, longest_evaluation, middle_batch, step_options, widest_answers,
};
use serde_json::Value;
use std::time::Duration;

/// How long a run measures its ranks before it begins.
const PATIENCE: Duration = Duration::from_millis(2400);

/// A run's split, and what is foretold of it.
pub(crate) struct Planned {
    pub(crate) split: Split,
    /// Rows of the longest micro-batch, in tokens, and how many rows one may have.
    pub(crate) longest: (Vec<usize>, Limit),
    pub(crate) foretold: Foretold,
}

/// Measures ranks and wires, and splits the run. `config` is the model's config.json.
///
/// # Errors
/// If nothing that the recipe allows fits, or a rank is lost.
pub(crate) fn split(
    resolved: &Resolved,
    world: &World,
    fitted: &Fitted,
    config: &Value,
    prepared: &Prepared,
) -> Result<Planned, Failure> {
    let before = environment::resident();
    let plan = &resolved.plan;
    let options = step_options(plan, fitted.model().config(), false);
    let budget = plan.parallel.max_tokens_per_micro_batch;
    let train = prepared.train.as_ref().filter(|_| fitted.trains());
    // What will come of a stream is known only in that it won't be longer.
    let (growing, whole): (Vec<&Rows>, Vec<&Rows>) = train.into_iter().partition(|_| prepared.coming.is_some());
    let rows: Vec<usize> = whole.into_iter().flat_map(sizes).collect();
    let to_come = growing.iter().flat_map(|rows| vec![rows.max_len(); plan.train.micro_batch]);
    let lengths = longest_batch(rows.iter().copied().chain(to_come).collect(), plan.train.micro_batch, budget);
    let looked_at = evaluated_rows(prepared.eval.iter().map(|(_, rows)| rows), plan);
    let evaluated = longest_evaluation(&looked_at, plan);
    let ranks = world.comm.world();
    let of_a_step = world.ranks_of_a_step.unwrap_or(ranks);
    check_rows(plan, of_a_step).inspect_err(|_| world.all_know())?;
    let mut load = Load {
        model: fitted.model(),
        options: &options,
        recompute: plan.model.recompute,
        lengths: &lengths,
        evaluated: &evaluated,
        answers: widest_answers(&looked_at, plan),
        micro_batches: plan.train.accumulation * of_a_step,
        copied: fitted.copied(plan, config),
    };
    // A GPU is one process's; the processes of a machine share its memory.
    let shared = || environment::available_memory().map(|free| free / world.per_node as u64);
    let available = world.least(world.device.free_memory().or_else(shared))?;
    let per_node = world.per_node.min(ranks);
    let device = &world.device;
    let probe = Probe::new(&*world.comm, device, per_node)?;
    let batch = if rows.is_empty() { None } else { middle_batch(&rows, plan) }.unwrap_or_else(|| lengths.clone());
    let rates = measure_rates(fitted.model(), device, &batch, &*world.comm, PATIENCE)?;
    let earlier = split_before(&*world.comm, plan, world.local_rank == 0)?;
    let room = match device.profile() {
        Profile::Cpu => Room::Shared(available),
        Profile::Cuda => Room::Free(available),
    };
    let among = Circumstances { world: ranks, per_node, room, links: probe.links, rates, before: earlier.as_ref() };
    let shrinks = plan.parallel.fits_micro_batch;
    let mut limit = Limit { written: plan.train.micro_batch, rows: None, shrinks };
    let split = loop {
        let most = load.lengths.len();
        match divide(&load, &plan.parallel, &among) {
            // Where several ranks fill micro-batches by tokens, they'd cut them into different numbers.
            Err(Error::DoesNotFit { .. }) if shrinks && most > 1 && (ranks == 1 || budget.is_none()) => {
                load.lengths = &lengths[..most.div_ceil(2)];
                limit.rows = Some(load.lengths.len());
                load.micro_batches = limit.pieces() * plan.train.accumulation * of_a_step;
            }
            other => break other,
        }
    };
    let split = split.inspect_err(|_| world.all_know()).map_err(|error| resolved.place(error))?;
    tell_limit(world, limit);
    tell(plan, world, &probe, &rates, &split);
    let way = split.ways.first().filter(|_| !rows.is_empty());
    let step = way.map(|way| expected_step(&load, plan, (&rows, of_a_step), &among, way)).transpose()?;
    // What the process has of its own, and the rows, which are mapped and stay.
    let shown = plan.train.micro_batch * plan.train.accumulation;
    let train = train.map_or(0, |rows| read(rows.tokens(), shown as u64, plan.train.length));
    let mapped = train + prepared.eval.iter().map(|(_, rows)| 8 * rows.tokens()).sum::<u64>();
    // What lies on a GPU isn't the process's memory.
    let before = before.filter(|_| !room.has_own_host());
    let measured = device.track().extent;
    let of = |before| -> Result<u64, Error> {
        let memory = expected_memory(&load, plan, (&rows, of_a_step), room, &split)?;
        Ok(resident(before, &memory, measured) + mapped)
    };
    let resident = before.map(of).transpose()?;
    Ok(Planned { split, longest: (load.lengths.to_vec(), limit), foretold: Foretold { resident, step } })
}

/// Says that micro-batches have fewer rows than are written.
fn tell_limit(world: &World, limit: Limit) {
    if let Some(rows) = limit.rows.filter(|_| world.is_first()) {
        ui::warning(&format!(
            "auto_find_batch_size: {} rows at a time don't fit into memory, {rows} do; steps keep their rows, so the result is \
             the same",
            limit.written
        ));
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

/// Says how several ranks were measured and divided.
fn tell(plan: &Plan, world: &World, probe: &Probe, rates: &Rates, split: &Split) {
    if !world.is_first() || world.comm.world() == 1 {
        return;
    }
    ui::say(&measured(probe, rates));
    for (hop, usual) in probe.slow() {
        let [from, to] = [hop.from, hop.to].map(|rank| world.name(rank));
        ui::warning(&format!(
            "the wire from {from} to {to} carries {}, others of its kind {}: every step waits for it. Look at its card, cable and \
             switch port, and at NCCL_SOCKET_IFNAME",
            bandwidth(hop.bandwidth),
            bandwidth(usual)
        ));
    }
    ui::say(&format!("strategy: {}", split.shape.candidate));
    // A run that goes on has no choice.
    if plan.parallel.strategy.is_none() && split.ways.len() > 1 {
        ui::say(&table(&split.ways));
    }
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

/// What was measured, in two lines.
fn measured(probe: &Probe, rates: &Rates) -> String {
    let kinds = [("inside a node", &probe.links.inside), ("between nodes", &probe.links.across)];
    let wires: Vec<String> = kinds
        .iter()
        .zip(&probe.hops)
        .filter(|(_, hops)| !hops.is_empty())
        .map(|((name, link), _)| wire(name, link))
        .collect();
    format!(
        "wires: {}\nslowest rank: {:.1} GFLOP/s in blocks, {:.1} in the head, updates of {:.0} million parameters a second",
        wires.join("; "),
        rates.blocks / 1e9,
        rates.head / 1e9,
        rates.update / 1e6
    )
}

fn wire(name: &str, link: &Link) -> String {
    let Link { bandwidth: alone, shared, latency } = link;
    let together = if (shared / alone - 1.0).abs() < 0.1 {
        String::new()
    } else {
        format!(" ({} all together)", bandwidth(*shared))
    };
    format!("{name} {} a rank{together}, {:.0} us", bandwidth(*alone), latency * 1e6)
}

/// Bytes a second as people read them.
fn bandwidth(rate: f64) -> String {
    if rate >= 1e9 { format!("{:.2} GB/s", rate / 1e9) } else { format!("{:.1} MB/s", rate / 1e6) }
}

/// All splits that were looked at, the best first.
fn table(ways: &[Way]) -> String {
    let mut text = format!(
        "  {:26} {:>13} {:>9} {:>10} {:>8} {:>7} {:>14}",
        "", "memory a rank", "s a step", "computing", "bubble", "wires", "out of a node"
    );
    for Choice { candidate, needed, fits, estimate, across, .. } in ways.iter().map(|way| &way.choice) {
        let (name, memory) = (candidate.to_string(), ui::bytes(*needed));
        text += &format!("\n  {name:26} {memory:>13}");
        text += &if *fits {
            format!(
                " {:>9.3} {:>10.3} {:>8.3} {:>7.3} {:>14}",
                estimate.step,
                estimate.compute,
                estimate.bubble,
                estimate.communication,
                ui::bytes(*across)
            )
        } else {
            "  doesn't fit".to_owned()
        };
    }
    text
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
