//! LLaMA-Factory's own launch: a fixed number of machines, or an elastic one if `RDZV_ID` is set.
//!
//! torchrun's `PET_` variables, which Kubernetes operators set, mean the same.

use super::reader::{Fallback, Reader, shown};
use super::{Agent, MAX_NODES, MAX_PROCESSES, Master, Nodes, Place, Role, Worker};
use crate::env;

/// Port of torchrun's rendezvous if its endpoint names none.
const RENDEZVOUS_PORT: u16 = 29400;

const NNODES: (&str, &str) = (env::NNODES, env::PET_NNODES);
const NODE_RANK: (&str, &str) = (env::NODE_RANK, env::PET_NODE_RANK);
const NPROC: (&str, &str) = (env::NPROC_PER_NODE, env::PET_NPROC_PER_NODE);

/// Machines as typed, if typed.
pub(super) fn node_count(r: &mut Reader<'_>) -> Option<usize> {
    r.agreed(NNODES, |r, name| {
        if let Some(text) = r.text(name).filter(|text| text.contains(':')) {
            let message = format!("is '{}', a range, and RDZV_ID is not set", shown(&text));
            let help = "set RDZV_ID to a name of the run, the same on all machines, or write one number";
            r.error(name, &message, help);
            return None;
        }
        r.count(name, MAX_NODES)
    })
}

/// This machine's number as typed, if typed.
pub(super) fn node_rank(r: &mut Reader<'_>) -> Option<usize> {
    r.agreed(NODE_RANK, Reader::number)
}

/// Processes on this machine as typed, if typed as a number.
pub(super) fn typed_processes(r: &mut Reader<'_>) -> Option<usize> {
    r.agreed(NPROC, |r, name| match r.text(name).as_deref() {
        // torchrun's words for "one a device".
        Some("auto" | "gpu") => None,
        _ => r.count(name, MAX_PROCESSES),
    })
}

/// Processes on this machine: as typed; else one a device of `CUDA_VISIBLE_DEVICES` if the run is a `distributed` one.
pub(super) fn processes(r: &mut Reader<'_>, distributed: bool) -> usize {
    if let Some(typed) = typed_processes(r) {
        return typed;
    }
    let devices = r.text(env::CUDA_VISIBLE_DEVICES).map_or(0, |list| {
        let valid = |device: &&str| !device.is_empty() && !device.starts_with('-') && *device != "NoDevFiles";
        list.split(',').map(str::trim).take_while(valid).count().min(MAX_PROCESSES)
    });
    if !distributed || devices < 2 {
        return 1;
    }
    r.note(
        env::CUDA_VISIBLE_DEVICES,
        &format!("names {devices} devices, so {devices} processes train; this build lets them share the processor"),
        "set NPROC_PER_NODE for another number of processes",
    );
    devices
}

/// Whether a distributed run is asked for even on one machine.
pub(super) fn is_forced(r: &mut Reader<'_>) -> bool {
    let Some(value) = r.text(env::FORCE_TORCHRUN) else {
        return false;
    };
    let value = value.to_ascii_lowercase();
    if matches!(value.as_str(), "yes" | "on") {
        r.note(env::FORCE_TORCHRUN, &format!("is on; LLaMA-Factory takes '{value}' for off"), "write 1");
    }
    env::is_on(&value)
}

pub(super) fn max_restarts(r: &mut Reader<'_>) -> usize {
    r.agreed((env::MAX_RESTARTS, env::PET_MAX_RESTARTS), Reader::number).unwrap_or(0)
}

/// A fixed number of machines.
pub(super) fn fixed(r: &mut Reader<'_>) -> Place {
    let (pods, pod) = pods(r);
    let typed = node_count(r);
    let distributed = is_forced(r) || typed.is_some_and(|nodes| nodes > 1);
    let processes = processes(r, distributed);
    check_world(r, pods, typed, processes);
    let count = typed.or(pods).unwrap_or(1);
    let node = node(r, count, pod);
    let max_restarts = max_restarts(r);
    if max_restarts > 0 && r.is_set(env::MAX_RESTARTS) {
        r.note(env::MAX_RESTARTS, "is obeyed; LLaMA-Factory does so with RDZV_ID only", "");
    }
    for name in [env::MIN_NNODES, env::MAX_NNODES] {
        if r.is_set(name) {
            r.note(name, "has no effect without RDZV_ID", "set RDZV_ID for a run whose number of machines may change");
        }
    }
    let several = format!("there are {count} machines");
    let master = r.master((count > 1).then_some(&several), Fallback::default());
    note_loopback(r, master.as_ref(), node);
    if typed.or(pods).is_none() {
        note_alone(r);
    }
    Place { role: role(count, node, processes, max_restarts), master, run_id: None }
}

/// What is to be done on machine `node` of `count`.
pub(super) fn role(count: usize, node: usize, processes: usize, max_restarts: usize) -> Role {
    match (count, processes, max_restarts) {
        (1, 1, 0) => Role::Alone,
        // Nothing to start and nothing to start again: this process is its machine's only worker.
        (_, 1, 0) => Role::Worker(Worker { rank: node, world: count, local_rank: 0, local_world: 1, node, restart: 0 }),
        _ => Role::Agent(Agent { nodes: Nodes::Fixed { count, node }, processes, max_restarts }),
    }
}

/// `WORLD_SIZE` and `RANK` as an operator gives them to a pod, or a user to a process: without a `LOCAL_RANK`.
fn pods(r: &mut Reader<'_>) -> (Option<usize>, Option<usize>) {
    let world = r.count(env::WORLD_SIZE, MAX_NODES);
    let rank = r.number(env::RANK);
    if world.is_some_and(|world| world > 1) && rank.is_none() && !r.is_set(env::RANK) && node_rank(r).is_none() {
        let message = "is set without RANK: which of the processes is this one?";
        r.error(env::WORLD_SIZE, message, "set RANK, from 0, or unset WORLD_SIZE");
    }
    (world, rank)
}

/// `WORLD_SIZE` beside `NNODES`: machines, or all processes.
fn check_world(r: &mut Reader<'_>, pods: Option<usize>, typed: Option<usize>, processes: usize) {
    match (pods, typed) {
        (Some(world), Some(nodes)) if world != nodes && world != nodes.saturating_mul(processes) => {
            let message = format!("is {world}, but NNODES is {nodes}, of {processes} processes each");
            r.error(
                env::WORLD_SIZE,
                &message,
                "unset WORLD_SIZE and RANK: NNODES, NODE_RANK and NPROC_PER_NODE say it all",
            );
        }
        (Some(world @ 2..), None) if processes > 1 => {
            let message = format!("is taken for NNODES={world}: {processes} processes are started on each machine");
            r.note(env::WORLD_SIZE, &message, "write NNODES and NODE_RANK");
        }
        _ => {}
    }
}

fn node(r: &mut Reader<'_>, count: usize, rank: Option<usize>) -> usize {
    let typed = node_rank(r);
    let (name, node) = match (typed, rank) {
        (Some(node), _) => (env::NODE_RANK, node),
        (None, Some(rank)) => {
            if !r.is_set(env::WORLD_SIZE) {
                r.note(
                    env::RANK,
                    &format!("is taken for NODE_RANK={rank}"),
                    "write NODE_RANK; LLaMA-Factory ignores RANK",
                );
            }
            (env::RANK, rank)
        }
        (None, None) if count == 1 => return 0,
        (None, None) => match r.number(env::JOB_COMPLETION_INDEX) {
            Some(index) => (env::JOB_COMPLETION_INDEX, index),
            None => {
                if ![NODE_RANK.0, NODE_RANK.1, env::RANK].into_iter().any(|name| r.is_set(name)) {
                    let help = "set NODE_RANK on each machine, from 0";
                    r.note(env::NODE_RANK, "is not set: this machine is taken for number 0, the master", help);
                }
                return 0;
            }
        },
    };
    if node >= count {
        let s = if count == 1 { "" } else { "s" };
        let help = "machines count from 0; NNODES is their number";
        r.error(
            name,
            &format!("is {node}, but there {} {count} machine{s}", if count == 1 { "is" } else { "are" }),
            help,
        );
    }
    node.min(count - 1)
}

/// One machine, and words of several.
fn note_alone(r: &mut Reader<'_>) {
    let of_others = |r: &Reader<'_>, name| r.text(name).is_some_and(|text| !is_loopback(&text));
    if let Some(set) = [env::MASTER_ADDR, env::NODE_RANK].into_iter().find(|name| of_others(r, name)) {
        let message = format!("is not set, and {set} is: this machine trains alone");
        r.note(env::NNODES, &message, "set NNODES to the number of machines, the same on all of them");
    }
}

fn is_loopback(host: &str) -> bool {
    host.starts_with("127.") || matches!(host, "localhost" | "::1")
}

/// Every machine takes a loopback address for itself.
fn note_loopback(r: &mut Reader<'_>, master: Option<&Master>, node: usize) {
    let Some(master) = master.filter(|m| node > 0 && is_loopback(&m.host)) else {
        return;
    };
    let message = format!("is {}, by which every machine means itself", master.host);
    r.note(
        env::MASTER_ADDR,
        &message,
        "unless all run on this machine, write the address of machine 0 that this one reaches",
    );
}

/// A number of machines within a range.
pub(super) fn elastic(r: &mut Reader<'_>, id: String) -> Place {
    let (min, max) = range(r);
    let hint = node_rank(r).or_else(|| r.number(env::JOB_COMPLETION_INDEX));
    let forced = is_forced(r);
    let processes = processes(r, forced || max > 1);
    let max_restarts = max_restarts(r);
    let endpoint = r.endpoint(env::RDZV_ENDPOINT, RENDEZVOUS_PORT);
    let master = match endpoint.or_else(|| r.endpoint(env::PET_RDZV_ENDPOINT, RENDEZVOUS_PORT)) {
        Some(endpoint) => Some(endpoint),
        None => {
            let several = format!("there are up to {max} machines");
            r.master((max > 1).then_some(&several), Fallback::default())
        }
    };
    let nodes = Nodes::Elastic { min, max, hint };
    Place { role: Role::Agent(Agent { nodes, processes, max_restarts }), master, run_id: Some(id) }
}

/// Fewest and most machines: `MIN_NNODES` and `MAX_NNODES` where both are set, as in LLaMA-Factory, else `NNODES`.
fn range(r: &mut Reader<'_>) -> (usize, usize) {
    let (min, max) = (r.count(env::MIN_NNODES, MAX_NODES), r.count(env::MAX_NNODES, MAX_NODES));
    for (name, other) in [(env::MIN_NNODES, env::MAX_NNODES), (env::MAX_NNODES, env::MIN_NNODES)] {
        if r.is_set(name) && !r.is_set(other) {
            r.error(name, &format!("is set without {other}"), "set both, or write NNODES=1:3");
        }
    }
    let name = if r.is_set(env::NNODES) { env::NNODES } else { env::PET_NNODES };
    let typed = r.text(name).and_then(|text| {
        let number = |part: &str| part.trim().parse().ok().filter(|n| (1..=MAX_NODES).contains(n));
        let range = match text.split_once(':') {
            Some((low, high)) => number(low).zip(number(high)),
            None => number(&text).map(|n| (n, n)),
        };
        if range.is_none() {
            let message = format!("is '{}', neither a number of machines nor a range of them", shown(&text));
            r.error(name, &message, "write a number, or fewest and most as in NNODES=1:3");
        }
        range.map(|range| (text, range))
    });
    let (low, high) = match (min.zip(max), typed) {
        (Some((min, max)), Some((text, (low, high)))) if low < min || high > max => {
            let message = format!("is {}, but MIN_NNODES and MAX_NNODES are {min} and {max}", shown(&text));
            r.error(name, &message, "unset NNODES");
            (min, max)
        }
        (Some(both), _) => both,
        (None, Some((_, range))) => range,
        (None, None) => (1, 1),
    };
    if low > high {
        let name = if min.is_some() { env::MIN_NNODES } else { name };
        r.error(
            name,
            &format!("asks for at least {low} machines and at most {high}"),
            "write the smaller number first",
        );
    }
    (low, high.max(low))
}
