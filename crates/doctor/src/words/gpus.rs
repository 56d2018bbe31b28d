//! GPUs, their libraries and the ways between them.

use super::{bytes, outcome};
use crate::facts::{Acs, Facts, Gpu, Library, Machine, Outcome, PciLink, Way, What};

/// Lines on drivers, libraries and GPUs.
pub(super) fn lines(facts: &Facts, lines: &mut Vec<String>) {
    let (machine, gpus) = (&facts.machine, &facts.gpus);
    if let Some(driver) = &machine.driver {
        let open = if driver.open { " (the open one)" } else { "" };
        lines.push(format!("- NVIDIA kernel driver: {}{open}", driver.version));
    }
    let nothing = gpus.devices.is_empty() && machine.slots.is_empty();
    for library in &gpus.libraries {
        // Where there is no GPU it doesn't matter where libraries would have been.
        if library.found.is_some() || !nothing {
            library_lines(library, lines);
        }
    }
    if gpus.devices.is_empty() {
        lines.push("- GPUs: none".to_owned());
    }
    lines.extend(gpus.devices.iter().map(|gpu| gpu_line(gpu, machine)));
    let seen = |address: &str| gpus.devices.iter().any(|gpu| gpu.address == address);
    lines.extend(
        machine
            .slots
            .iter()
            .filter(|slot| !seen(&slot.address))
            .map(|slot| format!("- NVIDIA device at {}: not seen by the driver", slot.address)),
    );
    if !nothing {
        bus(machine, lines);
        ways(facts, lines);
    }
}

fn library_lines(library: &Library, lines: &mut Vec<String>) {
    if let Some(found) = &library.found {
        let version = found.version.as_deref().unwrap_or("of unknown version");
        lines.push(format!("- {}: {version}, {}", library.name, found.file));
        return;
    }
    lines.push(format!("- {}: none that can be used", library.name));
    lines.extend(library.unusable.iter().map(|(file, what)| format!("    {file}: {what}")));
    lines.extend(library.empty.iter().map(|place| format!("    {place}: nothing there")));
}

fn gpu_line(gpu: &Gpu, machine: &Machine) -> String {
    let (major, minor) = gpu.capability;
    let mut text = format!(
        "- GPU {}: {}, {}, compute capability {major}.{minor}, {}",
        gpu.number,
        gpu.name,
        bytes(gpu.memory),
        gpu.address
    );
    if let Some(slot) = machine.slot(&gpu.address) {
        text += &slot.link.map(|now| format!(", {}", link(now, slot.most))).unwrap_or_default();
        text += &slot.node.map(|node| format!(", memory node {node}")).unwrap_or_default();
    }
    if let Some(health) = &gpu.health {
        if health.nvlinks > 0 {
            text += &format!(", {} NVLinks", health.nvlinks);
        }
        if !health.held_back.is_empty() {
            text += &format!(", held back by {}", health.held_back.join(" and "));
        }
    }
    text
}

/// `PCIe 4.0 x16`; at rest a link slows down, so the most it can counts.
fn link(now: PciLink, most: Option<PciLink>) -> String {
    let transfers = most.unwrap_or(now).transfers;
    let generations = [(2.5e9, "1.0"), (5e9, "2.0"), (8e9, "3.0"), (16e9, "4.0"), (32e9, "5.0"), (64e9, "6.0")];
    let generation = generations.iter().find(|(of, _)| (of - transfers).abs() < 1e8).map_or("", |(_, name)| name);
    let narrow =
        most.filter(|most| most.lanes > now.lanes).map(|most| format!(" of {}", most.lanes)).unwrap_or_default();
    format!("PCIe {generation} x{}{narrow}", now.lanes)
}

fn bus(machine: &Machine, lines: &mut Vec<String>) {
    let units = &machine.iommu.units;
    let asked = match &machine.iommu.asked[..] {
        [] => String::new(),
        words => format!("; the kernel was started with {}", words.join(" ")),
    };
    let mut kinds: Vec<&str> = machine.slots.iter().filter_map(|slot| slot.translation.as_deref()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let kinds = if kinds.is_empty() { String::new() } else { format!("; GPUs' addresses: {}", kinds.join(", ")) };
    let state = if units.is_empty() { "not in use".to_owned() } else { format!("in use, {} units", units.len()) };
    lines.push(format!("- IOMMU: {state}{kinds}{asked}"));
    if machine.bridges.is_empty() {
        return;
    }
    let count = |acs| machine.bridges.iter().filter(|bridge| bridge.acs == acs).count();
    let kinds = [
        (Acs::Redirects, "redirect peers' traffic"),
        (Acs::Off, "have it switched off"),
        (Acs::None, "have none"),
        (Acs::Unreadable, "tell root alone"),
    ];
    let told: Vec<String> = kinds
        .iter()
        .filter(|(acs, _)| count(*acs) > 0)
        .map(|(acs, words)| format!("{} {words}", count(*acs)))
        .collect();
    lines.push(format!("- ACS of the {} bridges above GPUs: {}", machine.bridges.len(), told.join(", ")));
}

/// The matrix of ways, with `nvidia-smi topo -m`'s names.
fn ways(facts: &Facts, lines: &mut Vec<String>) {
    if facts.gpus.pairs.is_empty() {
        return;
    }
    lines.push(
        "- Ways from GPU (row) to GPU (column); NV: NVLink, PIX: one switch, PXB: several, PHB: host bridge, NODE: memory node, \
         SYS: between processors, in brackets without direct copies:"
            .to_owned(),
    );
    let cell = |from, to| {
        let Some(pair) = facts.gpus.pair(from, to) else { return "-".to_owned() };
        let name = match pair.way {
            Way::Unknown => "?",
            Way::Nvlink => "NV",
            Way::Switch => "PIX",
            Way::Switches => "PXB",
            Way::HostBridge => "PHB",
            Way::Node => "NODE",
            Way::System => "SYS",
        };
        if pair.access { name.to_owned() } else { format!("({name})") }
    };
    lines.extend(matrix(facts, &cell));
}

/// Copies between all pairs in GB/s, and what was wrong with any.
pub(super) fn copies(facts: &Facts) -> String {
    let mut of = facts.trials.iter().filter(|trial| matches!(trial.what, What::Copy { .. })).peekable();
    if of.peek().is_none() {
        return String::new();
    }
    let first = |from, to| facts.trials.iter().find(|trial| trial.what == What::Copy { from, to });
    let cell = |from, to| match first(from, to).map(|trial| &trial.outcome) {
        None => "-".to_owned(),
        Some(Outcome::Right { rate, .. }) => format!("{:.1}", rate / 1e9),
        Some(Outcome::Wrong(_)) => "WRONG".to_owned(),
        Some(Outcome::Failed(_)) => "FAILS".to_owned(),
        Some(Outcome::Hung(_)) => "HANGS".to_owned(),
        Some(Outcome::Skipped(_)) => "skipped".to_owned(),
    };
    let mut text = "  copies from GPU (row) to GPU (column), GB/s:\n".to_owned();
    matrix(facts, &cell).iter().for_each(|line| text += &format!("{line}\n"));
    for trial in of.filter(|trial| !matches!(trial.outcome, Outcome::Right { .. })) {
        if let What::Copy { from, to } = trial.what {
            text += &format!("    GPU {from} to {to}: {}\n", outcome(&trial.outcome));
        }
    }
    text
}

fn matrix(facts: &Facts, cell: &dyn Fn(usize, usize) -> String) -> Vec<String> {
    let numbers: Vec<usize> = facts.gpus.devices.iter().map(|gpu| gpu.number).collect();
    let row = |head: String, cells: Vec<String>| {
        let cells: String = cells.iter().map(|cell| format!("{cell:>9}")).collect();
        format!("    {head:>4}{cells}").trim_end().to_owned()
    };
    let mut lines = vec![row(String::new(), numbers.iter().map(ToString::to_string).collect())];
    lines.extend(numbers.iter().map(|from| row(from.to_string(), numbers.iter().map(|to| cell(*from, *to)).collect())));
    lines
}
