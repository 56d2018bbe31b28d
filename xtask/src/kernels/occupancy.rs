//! What ptxas says of each kernel on each target: registers, shared memory, spills; and how many blocks then fit an SM.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context, Result, bail, ensure};

/// An SM: registers, most warps, most blocks, bytes of shared memory, of which each block costs 1 KiB more than it asks for.
struct Sm {
    name: &'static str,
    warps: usize,
    blocks: usize,
    shared: usize,
}

/// The machine code of an SM's kernels is committed, so spills and crowded kernels are errors. Elsewhere it is the driver's, and
/// perhaps other than that of the compiler which is asked here: it is shown in the table.
const SHIPPING: usize = 4;

const REGISTERS: usize = 65536;
const SMS: [Sm; 5] = [
    Sm { name: "sm_80", warps: 64, blocks: 32, shared: 164 << 10 },
    Sm { name: "sm_86", warps: 48, blocks: 16, shared: 100 << 10 },
    Sm { name: "sm_89", warps: 48, blocks: 24, shared: 100 << 10 },
    Sm { name: "sm_90", warps: 64, blocks: 32, shared: 228 << 10 },
    Sm { name: "sm_100", warps: 64, blocks: 32, shared: 228 << 10 },
];

/// Least share of an SM's warps, in percent, where nothing else is said.
const FLOOR: usize = 50;

/// Kernels, by the beginning of their names (the first that fits counts), that are launched with shared memory beyond their
/// own or are meant to have few warps with many registers: that memory in bytes, and blocks that must fit an SM of each
/// target.
const SPECIAL: &[(&str, usize, [usize; 4])] = &[
    ("attention_plain_backward", 0, [4, 4, 4, 4]),
    ("attention_forward_bf16_64", 16 << 10, [4, 4, 4, 4]),
    ("attention_forward_f16_64", 16 << 10, [4, 4, 4, 4]),
    ("attention_forward_bf16_96", 24 << 10, [3, 3, 3, 3]),
    ("attention_forward_f16_96", 24 << 10, [3, 3, 3, 3]),
    ("attention_forward_bf16_128", 32 << 10, [2, 2, 2, 2]),
    ("attention_forward_f16_128", 32 << 10, [2, 2, 2, 2]),
    ("attention_forward_bf16_256", 64 << 10, [2, 1, 1, 2]),
    ("attention_forward_f16_256", 64 << 10, [2, 1, 1, 2]),
    ("attention_backward_queries_bf16_64", 32 << 10, [2, 2, 2, 2]),
    ("attention_backward_queries_f16_64", 32 << 10, [2, 2, 2, 2]),
    ("attention_backward_queries_bf16_96", 36 << 10, [2, 2, 2, 2]),
    ("attention_backward_queries_f16_96", 36 << 10, [2, 2, 2, 2]),
    ("attention_backward_queries_bf16_128", 48 << 10, [2, 2, 2, 2]),
    ("attention_backward_queries_f16_128", 48 << 10, [2, 2, 2, 2]),
    ("attention_backward_queries_bf16_256", 80 << 10, [2, 1, 1, 2]),
    ("attention_backward_queries_f16_256", 80 << 10, [2, 1, 1, 2]),
    ("attention_backward_keys_bf16_64", 33280, [2, 2, 2, 2]),
    ("attention_backward_keys_f16_64", 33280, [2, 2, 2, 2]),
    ("attention_backward_keys_bf16_96", 37120, [2, 2, 2, 2]),
    ("attention_backward_keys_f16_96", 37120, [2, 2, 2, 2]),
    ("attention_backward_keys_bf16_128", 49408, [2, 2, 2, 2]),
    ("attention_backward_keys_f16_128", 49408, [2, 2, 2, 2]),
    ("attention_backward_keys_bf16_256", 98560, [1, 1, 1, 1]),
    ("attention_backward_keys_f16_256", 98560, [1, 1, 1, 1]),
    ("expert_counts", 0, [16, 16, 16, 16]),
    ("expert_slots", 0, [16, 16, 16, 16]),
    ("grouped_plain", 0, [2, 2, 2, 2]),
    ("grouped_outer_plain", 0, [2, 2, 2, 2]),
    ("grouped_outer_bf16_128_128", 48 << 10, [2, 2, 2, 2]),
    ("grouped_outer_f16_128_128", 48 << 10, [2, 2, 2, 2]),
    ("grouped_outer", 30 << 10, [3, 3, 3, 3]),
    ("grouped_bf16_bf16_128", 48 << 10, [2, 2, 2, 2]),
    ("grouped_f16_f16_128", 48 << 10, [2, 2, 2, 2]),
    ("grouped", 30 << 10, [3, 3, 3, 3]),
];

/// Threads of a block where the kernel doesn't say.
const THREADS: usize = 256;

#[derive(Default)]
struct Row {
    threads: usize,
    /// Registers, shared bytes and blocks of an SM, by target.
    by_target: BTreeMap<&'static str, (usize, usize, usize)>,
    /// Targets where it spills.
    spills: Vec<String>,
}

/// All kernels of all sources.
#[derive(Default)]
pub(super) struct Table {
    rows: BTreeMap<String, Row>,
}

impl Table {
    /// Adds what was said when a source was compiled for `target`.
    pub(super) fn read(&mut self, target: &str, log: &str, ptx: &str) -> Result<()> {
        let mut kernel = None;
        for line in log.lines() {
            if let Some((_, rest)) = line.split_once("Compiling entry function '") {
                kernel = rest.split('\'').next().map(str::to_owned);
            } else if line.contains("spill stores") {
                let name = kernel.as_deref().unwrap_or_default();
                let clean = ["0 bytes stack frame", "0 bytes spill stores", "0 bytes spill loads"];
                let numbers = line.split_once(' ').map_or("", |(_, rest)| rest).trim_start();
                let spills = !clean.iter().all(|part| line.contains(&format!(" {part}")));
                ensure!(!(spills && ships(target)), "{name} on {target} spills registers: {numbers}");
                if spills {
                    self.rows.entry(name.to_owned()).or_default().spills.push(target.to_owned());
                }
            } else if let Some((_, rest)) = line.split_once(" Used ") {
                let name = kernel.take().with_context(|| format!("ptxas: {line}"))?;
                let number = |unit: &str| {
                    let part = rest.split(',').find_map(|part| part.trim().strip_suffix(unit))?;
                    part.trim().parse::<usize>().ok()
                };
                let registers = number("registers").with_context(|| format!("ptxas: {line}"))?;
                self.add(&name, target, (registers, number("bytes smem").unwrap_or(0)), ptx)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, name: &str, target: &str, (registers, shared): (usize, usize), ptx: &str) -> Result<()> {
        let sm = SMS.iter().find(|sm| sm.name == target).context("a target without its SM")?;
        let threads = bounds(ptx, name).unwrap_or(THREADS);
        let special = SPECIAL.iter().find(|(start, ..)| name.starts_with(start));
        let shared = shared + special.map_or(0, |(_, bytes, _)| *bytes);
        let blocks = sm.fit(threads, registers, shared);
        let least = match special {
            Some((_, _, floors)) => {
                SMS.iter().zip(floors).find_map(|(sm, floor)| (sm.name == target).then_some(*floor)).unwrap_or(0)
            }
            None => (sm.warps * FLOOR / 100).div_ceil(threads.div_ceil(32)).min(sm.blocks),
        };
        if blocks < least && ships(target) {
            bail!(
                "{name} on {target}: {blocks} blocks of {threads} threads fit an SM, {least} wanted ({registers} registers, {shared} bytes)"
            );
        }
        let row = self.rows.entry(name.to_owned()).or_default();
        row.threads = threads;
        row.by_target.insert(sm.name, (registers, shared, blocks));
        Ok(())
    }

    /// The table, in Markdown.
    pub(super) fn finish(&self) -> Result<String> {
        let mut text = String::from(
            "# Kernels on each target\n\nWritten by `cargo xtask kernels` from what ptxas reports: registers a thread / bytes of shared memory a block / blocks that\nfit an SM. None spills but where it says so: on sm_100, which takes what its driver makes of the PTX.\n\n| kernel | threads |",
        );
        for sm in &SMS {
            write!(text, " {} |", sm.name)?;
        }
        text.push_str("\n|---|---|---|---|---|---|---|\n");
        for (name, row) in &self.rows {
            write!(text, "| {name} | {} |", row.threads)?;
            for sm in &SMS {
                let (registers, shared, blocks) =
                    row.by_target.get(sm.name).with_context(|| format!("{name} wasn't compiled for {}", sm.name))?;
                let spills = if row.spills.iter().any(|target| target == sm.name) { ", spills" } else { "" };
                write!(text, " {registers} / {shared} / {blocks}{spills} |")?;
            }
            text.push('\n');
        }
        Ok(text)
    }
}

impl Sm {
    /// Blocks that fit at once. Registers are given out to warps by 256.
    fn fit(&self, threads: usize, registers: usize, shared: usize) -> usize {
        let warps = threads.div_ceil(32);
        let by_registers = REGISTERS / (registers * 32).next_multiple_of(256).max(256) / warps;
        let by_shared = self.shared / (shared.next_multiple_of(128) + 1024);
        self.blocks.min(self.warps / warps).min(by_registers).min(by_shared)
    }
}

fn ships(target: &str) -> bool {
    SMS[..SHIPPING].iter().any(|sm| sm.name == target)
}

/// Threads that `.maxntid` allows a kernel.
fn bounds(ptx: &str, name: &str) -> Option<usize> {
    let (_, rest) = ptx.split_once(&format!(".entry {name}("))?;
    let header = rest.split('{').next()?;
    let (_, numbers) = header.split_once(".maxntid ")?;
    numbers.lines().next()?.split(',').map(|n| n.trim().parse::<usize>().ok()).product()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_that_fit() {
        let [sm_80, _, sm_89, ..] = SMS;
        assert_eq!(sm_80.fit(256, 32, 0), 8);
        assert_eq!(sm_80.fit(128, 255, 0), 2, "65536 registers");
        assert_eq!((sm_80.fit(128, 100, 80 << 10), sm_89.fit(128, 100, 80 << 10)), (2, 1), "shared memory");
    }

    #[test]
    fn spills_and_crowded_kernels_are_errors() {
        let log = |spill: u32, registers: u32| {
            format!(
                "ptxas info    : Compiling entry function 'k' for 'sm_80'\nptxas info    : Function properties for k\n\
                 ptxas         .     0 bytes stack frame, {spill} bytes spill stores, 0 bytes spill loads\n\
                 ptxas info    : Used {registers} registers, 96 bytes smem, 400 bytes cmem[0]\n"
            )
        };
        let read = |log: &str| Table::default().read("sm_80", log, ".visible .entry k(\n)\n.maxntid 128, 1, 1\n{");
        assert!(read(&log(0, 40)).is_ok());
        assert!(read(&log(8, 40)).unwrap_err().to_string().contains("spills"));
        assert!(read(&log(0, 200)).unwrap_err().to_string().contains("blocks of 128 threads"));
        // Where another compiler has the last word it is told.
        let mut table = Table::default();
        let mut on = |target: &str, spill: u32| table.read(target, &log(spill, 40), ".visible .entry k(\n)\n{");
        assert!(["sm_80", "sm_86", "sm_89", "sm_90"].iter().all(|target| on(target, 0).is_ok()));
        on("sm_100", 8).unwrap();
        let text = table.finish().unwrap();
        assert!(text.ends_with("| 40 / 96 / 6, spills |\n") && text.matches(", spills").count() == 1, "{text}");
    }
}
