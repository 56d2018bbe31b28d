//! What is said of ranks and wires that were measured, and of the ways to split a run over them.

use crate::ui;
use crate::world::World;
use ferrotune_config::plan::Plan;
use ferrotune_train::plan::{Choice, Link, Probe, Rates};
use ferrotune_train::{Split, Way};

/// Says how several ranks were measured.
pub(super) fn tell_measured(world: &World, probe: &Probe, rates: &Rates) {
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
}

/// Says how a run is divided over several ranks.
pub(super) fn tell_divided(plan: &Plan, world: &World, split: &Split) {
    if !world.is_first() || world.comm.world() == 1 {
        return;
    }
    ui::say(&format!("strategy: {}", split.shape.candidate));
    // A run that goes on has no choice.
    if plan.parallel.strategy.is_none() && split.ways.len() > 1 {
        ui::say(&table(&split.ways));
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
