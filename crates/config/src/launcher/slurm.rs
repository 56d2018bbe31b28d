//! Tasks of `srun`: their numbers, and the machines behind Slurm's list of names.

use super::reader::{Fallback, Reader, shown};
use super::started::{Started, port_of};
use super::{MAX_NODES, MAX_PROCESSES};
use crate::env;

/// Whether this process is a task of `srun`, and not the script of a batch job, which has numbers too.
pub(super) fn is_step(r: &Reader<'_>) -> bool {
    [env::SLURM_STEP_NUM_TASKS, env::SLURM_STEP_ID, env::SLURM_STEPID, env::SLURM_STEP_NODELIST]
        .into_iter()
        .any(|name| r.is_set(name))
}

/// One of several tasks of `srun`.
pub(super) fn started(r: &mut Reader<'_>) -> Option<Started> {
    let names = [env::SLURM_STEP_NUM_TASKS, env::SLURM_NTASKS, env::SLURM_NPROCS];
    let name = names.into_iter().find(|name| r.is_set(name))?;
    let world = r.count(name, MAX_NODES * MAX_PROCESSES).filter(|world| *world > 1)?;
    if !is_step(r) {
        let message = format!("is {world}, but `srun` did not start this process: it trains alone");
        r.note(name, &message, "write `srun ferrotune train ...` in the batch script");
        return None;
    }
    let rank = r.number(env::SLURM_PROCID)?;
    let node = r.number(env::SLURM_NODEID);
    let nodes = [env::SLURM_STEP_NUM_NODES, env::SLURM_NNODES, env::SLURM_JOB_NUM_NODES]
        .into_iter()
        .find(|name| r.is_set(name))
        .and_then(|name| r.count(name, MAX_NODES));
    let local = r.number(env::SLURM_LOCALID).zip(tasks_here(r, node, nodes, world));
    note_order(r, rank, node, local);
    let job = r.number(env::SLURM_JOB_ID);
    let step =
        r.text(env::SLURM_STEP_ID).or_else(|| r.text(env::SLURM_STEPID)).and_then(|step| step.parse::<u64>().ok());
    let number = job.map(|job| (job as u64).wrapping_add(step.unwrap_or(0).wrapping_mul(101)));
    let host = first_host(r).or_else(|| (nodes == Some(1)).then(|| "127.0.0.1".to_owned()));
    Some(Started {
        by: "srun",
        names: (env::SLURM_PROCID, name),
        rank,
        world,
        local,
        node,
        nodes,
        meeting: Fallback { host, port: number.map(port_of) },
        run_id: job.map(|job| format!("slurm-{job}.{}", step.unwrap_or(0))),
        restart: 0,
    })
}

/// Tasks on this machine.
fn tasks_here(r: &mut Reader<'_>, node: Option<usize>, nodes: Option<usize>, world: usize) -> Option<usize> {
    let list = [env::SLURM_STEP_TASKS_PER_NODE, env::SLURM_TASKS_PER_NODE];
    let listed = list.into_iter().find_map(|name| r.text(name).map(|text| (name, text)));
    if let Some((name, text)) = listed {
        let here = nth_count(&text, node.unwrap_or(0));
        if here.is_none() {
            let message = format!("is '{}', which says nothing of machine {}", shown(&text), node.unwrap_or(0));
            r.error(name, &message, "Slurm writes it as in 8(x2),4");
        }
        return here;
    }
    let even = nodes.filter(|nodes| world.is_multiple_of(*nodes)).map(|nodes| world / nodes);
    r.count(env::SLURM_NTASKS_PER_NODE, MAX_PROCESSES).or(even)
}

/// The `n`th of counts written as `8(x2),4`, which means 8, 8, 4.
fn nth_count(text: &str, n: usize) -> Option<usize> {
    let mut before = 0usize;
    for part in text.split(',') {
        let (count, times) = match part.trim().split_once("(x") {
            Some((count, times)) => (count, times.strip_suffix(')')?.parse().ok()?),
            None => (part.trim(), 1usize),
        };
        let count: usize = count.parse().ok()?;
        before = before.checked_add(times)?;
        if n < before {
            return Some(count).filter(|count| (1..=MAX_PROCESSES).contains(count));
        }
    }
    None
}

/// Shards and stages of a model lie on neighbouring ranks, so a machine's ranks should be neighbours.
fn note_order(r: &mut Reader<'_>, rank: usize, node: Option<usize>, local: Option<(usize, usize)>) {
    if let (Some(node), Some((local_rank, here))) = (node, local)
        && here > 1
        && node.checked_mul(here).and_then(|before| before.checked_add(local_rank)) != Some(rank)
        && r.text(env::SLURM_DISTRIBUTION).is_some_and(|order| order.starts_with("cyclic"))
    {
        let help = "use `srun --distribution=block`: what ranks of one machine share then stays inside it";
        r.note(env::SLURM_DISTRIBUTION, "deals neighbouring ranks to different machines", help);
    }
}

/// The first machine of the step, or of the job.
pub(super) fn first_host(r: &mut Reader<'_>) -> Option<String> {
    let names = [env::SLURM_STEP_NODELIST, env::SLURM_JOB_NODELIST, env::SLURM_NODELIST];
    let (name, text) = names.into_iter().find_map(|name| r.text(name).map(|text| (name, text)))?;
    let first = hosts(&text).and_then(|hosts| hosts.into_iter().next());
    if first.is_none() {
        let help = "set MASTER_ADDR to the address of the first machine; `scontrol show hostnames` lists them";
        if !r.is_set(env::MASTER_ADDR) {
            r.error(name, &format!("is '{}', which is no list of machines", shown(&text)), help);
        }
        return None;
    }
    first.map(|host| r.host(name, &host))
}

/// Slurm's list of machines, written out: `n[01-03,7],m1` is n01, n02, n03, n7, m1. `None` if it is malformed or names
/// more than [`MAX_NODES`].
fn hosts(text: &str) -> Option<Vec<String>> {
    let mut all = Vec::new();
    for part in split_outside(text)? {
        let mut names = vec![String::new()];
        let mut rest = part;
        while let Some((before, after)) = rest.split_once('[') {
            let (inside, behind) = after.split_once(']')?;
            let numbers = numbers(inside)?;
            if numbers.len().checked_mul(names.len())? > MAX_NODES {
                return None;
            }
            let longer = |name: &String| numbers.iter().map(move |n| format!("{name}{before}{n}")).collect::<Vec<_>>();
            names = names.iter().flat_map(longer).collect();
            rest = behind;
        }
        if rest.contains(']') {
            return None;
        }
        all.extend(names.into_iter().map(|name| name + rest));
        if all.len() > MAX_NODES || all.iter().any(String::is_empty) {
            return None;
        }
    }
    Some(all)
}

/// Parts between the commas that stand outside of brackets.
fn split_outside(text: &str) -> Option<Vec<&str>> {
    let (mut parts, mut start, mut inside) = (Vec::new(), 0, false);
    for (at, c) in text.char_indices() {
        match c {
            '[' if inside => return None,
            '[' => inside = true,
            ']' => inside = false,
            ',' if !inside => {
                parts.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(text[start..].trim());
    (!inside).then_some(parts)
}

/// `01-03,7` as 01, 02, 03, 7.
fn numbers(text: &str) -> Option<Vec<String>> {
    let mut all = Vec::new();
    for part in text.split(',') {
        let part = part.trim();
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        let is_number = |s: &str| !s.is_empty() && s.len() <= 18 && s.bytes().all(|b| b.is_ascii_digit());
        if !is_number(low) || !is_number(high) {
            return None;
        }
        let (first, last): (u64, u64) = (low.parse().ok()?, high.parse().ok()?);
        if last < first || last - first >= (MAX_NODES - all.len().min(MAX_NODES)) as u64 {
            return None;
        }
        let width = low.len();
        all.extend((first..=last).map(|n| format!("{n:0width$}")));
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_machines_are_written_out() {
        let cases: &[(&str, &[&str])] = &[
            ("n1", &["n1"]),
            ("n[01-03,7],m1", &["n01", "n02", "n03", "n7", "m1"]),
            ("gpu[098-101]", &["gpu098", "gpu099", "gpu100", "gpu101"]),
            ("r[1-2]n[0,3].x", &["r1n0.x", "r1n3.x", "r2n0.x", "r2n3.x"]),
            ("a, b", &["a", "b"]),
        ];
        for (text, expected) in cases {
            assert_eq!(hosts(text).unwrap(), *expected, "{text}");
        }
        for text in ["", "n[", "n]", "n[1", "n[[1]]", "n[2-1]", "n[a]", "n[0-99999999]", "n[1-9999][1-9999]", "a,,b"] {
            assert_eq!(hosts(text), None, "{text}");
        }
    }

    #[test]
    fn counts_of_tasks_are_read() {
        let counts = |text| (0..5).map(|n| nth_count(text, n)).collect::<Vec<_>>();
        assert_eq!(counts("8(x2),4"), [Some(8), Some(8), Some(4), None, None]);
        assert_eq!(counts("2"), [Some(2), None, None, None, None]);
        for text in ["", "x", "8(x", "8(xa)", "0", "9999999"] {
            assert_eq!(nth_count(text, 0), None, "{text}");
        }
        assert_eq!(nth_count("1(x18446744073709551615),1(x2)", usize::MAX), None);
    }
}
