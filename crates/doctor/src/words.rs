//! Facts and findings as a page of text that can be copied into an issue.

mod gpus;

use crate::expect::{SLOW, should};
use crate::facts::{Disk, Facts, Machine, Memory, Outcome, Processor, Trial, What};
use crate::rules::{Finding, Weight};
use std::fmt::Write as _;

/// What only the program knows.
#[derive(Debug, Clone, Copy)]
pub struct Program<'a> {
    /// Its version.
    pub version: &'a str,
    /// Variables of the environment that matter to it, without secrets.
    pub variables: &'a [(String, String)],
}

/// The page.
pub fn page(program: &Program<'_>, facts: &Facts, findings: &[Finding]) -> String {
    let mut lines = vec![format!("- `ferrotune` version: {}", program.version)];
    machine(&facts.machine, &mut lines);
    gpus::lines(facts, &mut lines);
    lines.extend(program.variables.iter().map(|(name, value)| format!("- {name}={value}")));
    let mut text = lines.join("\n") + "\n";
    // Writing to a String can't fail.
    if !facts.trials.is_empty() {
        text += "\nTried:\n";
        let kernels = facts.trials.iter().filter(|trial| !matches!(trial.what, What::Copy { .. }));
        kernels.for_each(|trial| text += &tried(facts, trial));
        text += &gpus::copies(facts);
    }
    let _ = write!(text, "\n{}", found(findings));
    text
}

fn machine(machine: &Machine, lines: &mut Vec<String>) {
    let kernel = machine.kernel.as_ref().map(|kernel| format!(", kernel {kernel}")).unwrap_or_default();
    let inside = machine.container.as_ref().map(|name| format!(", in a container ({name})")).unwrap_or_default();
    let is_virtual = if machine.is_virtual { ", a virtual machine" } else { "" };
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    lines.push(format!("- Platform: {os} {arch}{kernel}{is_virtual}{inside}"));
    processor(&machine.processor, lines);
    lines.push(format!("- Memory: {}", memory(&machine.memory)));
    if machine.numa.len() > 1 {
        lines.extend(machine.numa.iter().map(|node| {
            let memory = node.memory.map(|memory| format!(", {}", bytes(memory))).unwrap_or_default();
            format!("- Memory node {}: processors {}{memory}", node.number, node.processors)
        }));
    }
    lines.extend(machine.disks.iter().map(disk));
    for interface in
        machine.network.iter().filter(|interface| interface.name != "lo" && !interface.addresses.is_empty())
    {
        let speed = interface.speed.map(|speed| format!(", {:.0} Gb/s", speed / 1e9)).unwrap_or_default();
        let state = if interface.up { "" } else { ", down" };
        let used = if interface.allowed { "" } else { ", not to be used" };
        lines.push(format!("- Network {}: {}{speed}{state}{used}", interface.name, interface.addresses.join(", ")));
    }
    lines.extend(machine.rdma.iter().map(|port| {
        let rate = port.rate.map(|rate| format!(", {:.0} Gb/s", rate / 1e9)).unwrap_or_default();
        format!("- RDMA port {}: {} {}{rate}", port.name, port.layer, port.state)
    }));
}

fn processor(processor: &Processor, lines: &mut Vec<String>) {
    let model = processor.model.as_deref().unwrap_or("unknown");
    let cores = processor.cores.map(|cores| format!("{cores} cores, ")).unwrap_or_default();
    let clock = processor.clock.map(|clock| format!(", {:.2} GHz", clock / 1e9)).unwrap_or_default();
    let quota =
        processor.quota.map(|quota| format!(", {quota:.1} of them by the container's limit")).unwrap_or_default();
    lines.push(format!("- Processor: {model}, {cores}{} threads{clock}{quota}", processor.threads));
    lines.push(format!("- Instructions used: {}", processor.kernels));
}

fn memory(memory: &Memory) -> String {
    let shown = |bytes_of: Option<u64>| bytes_of.map_or_else(|| "unknown".to_owned(), bytes);
    let mut text = format!("{}, {} available", shown(memory.total), shown(memory.available));
    if let Some(limit) = memory.limit {
        text += &format!(", at most {} by the container's limit", bytes(limit));
    }
    if let Some((total, free)) = memory.shm {
        text += &format!("; /dev/shm {}, {} free", bytes(total), bytes(free));
    }
    text
}

fn disk(disk: &Disk) -> String {
    format!("- Disk of {} ({}): {} of {} free", disk.what, disk.folder, bytes(disk.free), bytes(disk.total))
}

/// A line of what was tried.
fn tried(facts: &Facts, trial: &Trial) -> String {
    let size = if trial.size.is_empty() { String::new() } else { format!(" ({})", trial.size) };
    let (mark, mut text) = match &trial.outcome {
        Outcome::Right { rate: got, telling } => {
            let beside = should(facts, &trial.what).filter(|_| *telling);
            let slow = beside.as_ref().is_some_and(|should| *got < SLOW * should.rate);
            let beside =
                beside.map(|should| format!(", should reach {}", rate(&trial.what, should.rate))).unwrap_or_default();
            let small = if *telling { "" } else { ", too small to tell how fast it is" };
            (if slow { "slow" } else { "ok" }, format!("{}{beside}{small}", rate(&trial.what, *got)))
        }
        Outcome::Skipped(_) => ("-", outcome(&trial.outcome)),
        bad => ("BAD", outcome(bad)),
    };
    text.insert_str(0, &format!("  {mark:<5}{}{size}: ", subject(&trial.what)));
    text + "\n"
}

fn found(findings: &[Finding]) -> String {
    let count = |weight| findings.iter().filter(|finding| finding.weight == weight).count();
    let mut text = String::new();
    for finding in findings {
        let head = match finding.weight {
            Weight::Problem => "problem",
            Weight::Advice => "advice",
            Weight::Note => "note",
        };
        let _ = writeln!(text, "{head}: {}", finding.what);
        if !finding.cure.is_empty() {
            let _ = writeln!(text, "  cure: {}", finding.cure);
        }
    }
    let problems = count(Weight::Problem);
    let verdict = match problems {
        0 => "no problem found".to_owned(),
        1 => "1 problem found".to_owned(),
        many => format!("{many} problems found"),
    };
    if text.is_empty() { verdict } else { format!("{text}\n{verdict}") }
}

/// How a trial went, in words.
pub(crate) fn outcome(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Right { .. } => "right".to_owned(),
        Outcome::Wrong(words) => format!("wrong values: {words}"),
        Outcome::Failed(words) => format!("failed: {words}"),
        Outcome::Hung(seconds) => format!("nothing came of it within {seconds:.0} s"),
        Outcome::Skipped(why) => format!("not tried, since {why}"),
    }
}

/// What is tried, wherever.
pub(crate) fn kind(what: &What) -> String {
    match what {
        What::Product { dtype, .. } => format!("{dtype} product"),
        What::Attention { .. } => "attention".to_owned(),
        What::AttentionGradients { .. } => "attention's gradients".to_owned(),
        What::Copy { .. } => "copy".to_owned(),
        What::AllReduce { direct: true, .. } => "sum by NCCL".to_owned(),
        What::AllReduce { direct: false, .. } => "sum by NCCL with NCCL_P2P_DISABLE=1".to_owned(),
    }
}

/// What is tried, and where.
pub(crate) fn subject(what: &What) -> String {
    let place = |gpu: &Option<usize>| gpu.map_or_else(|| "processor".to_owned(), |gpu| format!("GPU {gpu}"));
    match what {
        What::Product { gpu, .. } | What::Attention { gpu } | What::AttentionGradients { gpu } => {
            format!("{}: {}", place(gpu), kind(what))
        }
        What::Copy { from, to } => format!("GPU {from} to {to}: copy"),
        What::AllReduce { ranks, .. } => format!("{ranks} GPUs: {}", kind(what)),
    }
}

/// How fast, in the unit that people use for it.
pub(crate) fn rate(what: &What, rate: f64) -> String {
    match what {
        What::Copy { .. } | What::AllReduce { .. } => format!("{:.1} GB/s", rate / 1e9),
        _ if rate >= 1e12 => format!("{:.1} TFLOP/s", rate / 1e12),
        _ => format!("{:.1} GFLOP/s", rate / 1e9),
    }
}

/// Bytes as people read them.
pub(crate) fn bytes(count: u64) -> String {
    let units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    let unit = (1..units.len()).rev().find(|unit| count >= 1 << (10 * unit)).unwrap_or(0);
    let value = count as f64 / (1u64 << (10 * unit)) as f64;
    if value >= 100.0 || unit == 0 {
        format!("{value:.0} {}", units[unit])
    } else {
        format!("{value:.1} {}", units[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_read_as_people_write_them() {
        let shown = [0, 1023, 64 << 20, (45 << 30) + (1 << 29), 3 << 40].map(bytes);
        assert_eq!(shown, ["0 bytes", "1023 bytes", "64.0 MiB", "45.5 GiB", "3.0 TiB"]);
    }
}
