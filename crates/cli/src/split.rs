//! How a run is split over its ranks: what is measured for that, what is decided, and what is said of it.

use crate::failure::Failure;
use crate::prepare::{Fitted, Resolved};
use crate::world::World;
use crate::{environment, ui};
use anyhow::anyhow;
use ferrotune_config::plan::{Interval, Plan};
use ferrotune_data::prepare::Prepared;
use ferrotune_train::plan::{Choice, Link, Probe, Rates, measure_rates};
use ferrotune_train::save::split_before;
use ferrotune_train::{Circumstances, Load, Split, divide, longest_batch, step_options};
use serde_json::Value;

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
) -> Result<Split, Failure> {
    let plan = &resolved.plan;
    let options = step_options(plan, false);
    let budget = plan.parallel.max_tokens_per_micro_batch;
    let rows = prepared.train.as_ref().filter(|_| fitted.trains());
    let lengths = rows.map_or_else(Vec::new, |rows| longest_batch(rows, plan.train.micro_batch, budget));
    let ranks = world.comm.world();
    check_rows(plan, world.ranks_of_a_step.unwrap_or(ranks)).inspect_err(|_| world.all_know())?;
    let load = Load {
        model: fitted.model(),
        options: &options,
        recompute: plan.model.recompute,
        lengths: &lengths,
        micro_batches: plan.train.accumulation * world.ranks_of_a_step.unwrap_or(ranks),
        saved: (plan.output.save != Interval::Never).then(|| fitted.saved_bytes(config)),
        profile: world.device.profile(),
    };
    // A GPU is one process's; the processes of a machine share its memory.
    let shared = || environment::available_memory().map(|free| free / world.per_node as u64);
    let available = world.least(world.device.free_memory().or_else(shared))?;
    let per_node = world.per_node.min(ranks);
    let device = &world.device;
    let probe = Probe::new(&*world.comm, device, per_node)?;
    // One rank has nothing to choose from.
    let rates = if ranks > 1 { measure_rates(load.model, device, &lengths, &*world.comm)? } else { Rates::even(1.0) };
    let before = split_before(&*world.comm, plan, world.local_rank == 0)?;
    let (links, before) = (probe.links, before.as_ref());
    let among = Circumstances { world: ranks, per_node, available, links, rates, before };
    let split = divide(&load, &plan.parallel, &among).inspect_err(|_| world.all_know());
    let split = split.map_err(|error| resolved.place(error))?;
    if world.is_first() && ranks > 1 {
        ui::say(&measured(&probe, &rates));
        for (hop, middle) in probe.slow() {
            let [from, to] = [hop.from, hop.to].map(|rank| world.name(rank));
            ui::warning(&format!(
                "the wire from {from} to {to} carries {}, others of its kind {}: every step waits for it. Look at its card, \
                 cable and switch port, and at NCCL_SOCKET_IFNAME",
                bandwidth(hop.bandwidth),
                bandwidth(middle)
            ));
        }
        ui::say(&format!("strategy: {}", split.shape.candidate));
        // A run that goes on has no choice.
        if plan.parallel.strategy.is_none() && split.choices.len() > 1 {
            ui::say(&table(&split.choices));
        }
    }
    Ok(split)
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
fn table(choices: &[Choice]) -> String {
    let mut text = format!(
        "  {:26} {:>13} {:>9} {:>10} {:>8} {:>7} {:>14}",
        "", "memory a rank", "s a step", "computing", "bubble", "wires", "out of a node"
    );
    for Choice { candidate, needed, fits, estimate, across, .. } in choices {
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
