//! What came of trials: copies that hang or corrupt, wrong values, and what is slower than such hardware is.

use super::links::{CURE_OF_IOMMU, cure_of_acs, is_translating, redirecting};
use super::{Finding, Weight, listed};
use crate::examine::is_bad;
use crate::expect::{SLOW, should};
use crate::facts::{Facts, Outcome, Trial, What};
use crate::words;

pub(super) fn judge(facts: &Facts, found: &mut Vec<Finding>) {
    copies(facts, found);
    for trial in &facts.trials {
        match &trial.what {
            What::Product { gpu, .. } | What::Attention { gpu } | What::AttentionGradients { gpu } => {
                kernel(facts, trial, *gpu, found);
            }
            What::AllReduce { .. } => all_reduce(facts, trial, found),
            What::Copy { .. } => {}
        }
    }
    slow(facts, found);
}

/// The pair of a copy, and whether it went the direct way.
fn copy(facts: &Facts, trial: &Trial) -> Option<((usize, usize), bool)> {
    let What::Copy { from, to } = trial.what else { return None };
    // One that came to no end has no size: the first of a pair is the direct one, where there is such.
    let first =
        facts.trials.iter().find(|other| other.what == trial.what).is_some_and(|other| std::ptr::eq(other, trial));
    let direct = facts.gpus.pair(from, to).is_some_and(|pair| pair.access) && first;
    Some(((from, to), direct))
}

fn copies(facts: &Facts, found: &mut Vec<Finding>) {
    let of = |trial| copy(facts, trial).map(|(pair, direct)| (pair, direct, trial));
    let all: Vec<((usize, usize), bool, &Trial)> = facts.trials.iter().filter_map(of).collect();
    let staged_right = |pair: (usize, usize)| {
        all.iter().any(|(of, direct, trial)| *of == pair && !direct && matches!(trial.outcome, Outcome::Right { .. }))
    };
    type Is = fn(&Outcome) -> bool;
    let kinds: [(&'static str, &str, Is); 3] = [
        ("peer-copies-hang", "hang", |outcome| matches!(outcome, Outcome::Hung(_))),
        ("peer-copies-corrupt", "arrive with other bytes", |outcome| matches!(outcome, Outcome::Wrong(_))),
        ("peer-copies-fail", "fail", |outcome| matches!(outcome, Outcome::Failed(_))),
    ];
    for (name, how, is) in kinds {
        let bad: Vec<_> = all.iter().filter(|(_, direct, trial)| *direct && is(&trial.outcome)).collect();
        let Some((_, _, first)) = bad.first() else { continue };
        let pairs: Vec<String> = bad.iter().map(|((from, to), ..)| format!("GPU {from} to {to}")).collect();
        let what = format!("direct copies from {} {how} ({})", listed(&pairs), words::outcome(&first.outcome));
        let cured = bad.iter().all(|(pair, ..)| staged_right(*pair));
        found.push(Finding::new(Weight::Problem, name, what, cure_of_copies(facts, cured)));
    }
    let bad: Vec<_> = all.iter().filter(|(_, direct, trial)| !direct && is_bad(&trial.outcome)).collect();
    if let Some((_, _, first)) = bad.first() {
        let pairs: Vec<String> = bad.iter().map(|((from, to), ..)| format!("GPU {from} to {to}")).collect();
        let what =
            format!("copies over the host from {} go wrong ({})", listed(&pairs), words::outcome(&first.outcome));
        let cure = "`sudo dmesg | grep -iE 'xid|aer'` names the device; restart, and leave it out with CUDA_VISIBLE_DEVICES until \
                    it is repaired";
        found.push(Finding::new(Weight::Problem, "host-copies-broken", what, cure));
    }
}

/// What works at once, then what cures the cause.
fn cure_of_copies(facts: &Facts, cured: bool) -> String {
    let copies = cured.then_some("over the host these copies are right");
    let mut cure = match (copies, sum(facts, false).map(|sum| &sum.outcome)) {
        (Some(copies), Some(Outcome::Right { .. })) => {
            format!("NCCL_P2P_DISABLE=1 avoids them ({copies}, and so is NCCL's sum). ")
        }
        (None, Some(Outcome::Right { .. })) => {
            "NCCL_P2P_DISABLE=1 avoids them (NCCL's sum is right with it). ".to_owned()
        }
        (_, Some(bad)) if is_bad(bad) => {
            "NCCL_P2P_DISABLE=1 would avoid them, but with it NCCL's sum goes wrong, too. ".to_owned()
        }
        (Some(copies), _) => format!("NCCL_P2P_DISABLE=1 avoids them ({copies}). "),
        (None, _) => "NCCL_P2P_DISABLE=1 avoids them. ".to_owned(),
    };
    let acs = redirecting(facts);
    if !acs.is_empty() {
        cure += &format!("The cause may be ACS, which is on at {}: {}. ", listed(&acs), cure_of_acs(&acs));
    }
    if is_translating(facts) {
        cure += &format!("The IOMMU translates GPUs' addresses: {CURE_OF_IOMMU}. ");
    }
    if acs.is_empty() && !is_translating(facts) {
        cure += "The cause is usually ACS or the IOMMU: switch both off in the firmware's setup. ";
    }
    cure.trim_end().to_owned()
}

fn place(gpu: Option<usize>) -> String {
    gpu.map_or_else(|| "the processor".to_owned(), |gpu| format!("GPU {gpu}"))
}

fn kernel(facts: &Facts, trial: &Trial, gpu: Option<usize>, found: &mut Vec<Finding>) {
    if !is_bad(&trial.outcome) {
        return;
    }
    let (kind, place) = (words::kind(&trial.what), place(gpu));
    let what = format!("{kind} on {place}: {}", words::outcome(&trial.outcome));
    let alone = facts.gpus.devices.len() > 1
        && !facts
            .trials
            .iter()
            .any(|other| words::kind(&other.what) == kind && is_bad(&other.outcome) && !std::ptr::eq(other, trial));
    let (name, cure) = match (&trial.outcome, gpu) {
        (Outcome::Wrong(_), None) => ("values-wrong", "the processor or its memory is broken: try `memtest86+`"),
        (Outcome::Wrong(_), Some(_)) if alone => {
            ("values-wrong", "only this GPU gives them: leave it out with CUDA_VISIBLE_DEVICES, and have it looked at")
        }
        (Outcome::Wrong(_), Some(_)) => {
            ("values-wrong", "try another version of cublasLt (FERROTUNE_CUDA_LIBRARIES names its folder), and tell us")
        }
        (Outcome::Failed(words), Some(_)) if words.contains("out of memory") || words.contains("OUT_OF_MEMORY") => {
            ("gpu-in-use", "other processes hold its memory: `nvidia-smi` lists them")
        }
        (Outcome::Hung(_), _) => {
            ("work-hangs", "`sudo dmesg | grep -i xid` says why; restart the GPU (`sudo nvidia-smi -r`)")
        }
        _ => ("work-fails", "`sudo dmesg | grep -i xid` says whether the GPU is broken"),
    };
    found.push(Finding::new(Weight::Problem, name, what, cure));
}

/// The sum over all GPUs by NCCL, as it comes or without direct copies.
fn sum(facts: &Facts, directly: bool) -> Option<&Trial> {
    facts.trials.iter().find(|trial| matches!(trial.what, What::AllReduce { direct, .. } if direct == directly))
}

fn all_reduce(facts: &Facts, trial: &Trial, found: &mut Vec<Finding>) {
    let direct = matches!(trial.what, What::AllReduce { direct: true, .. });
    let (name, cure) = match &trial.outcome {
        Outcome::Wrong(_) => {
            ("nccl-wrong", "a copy between GPUs corrupts: NCCL_P2P_DISABLE=1, then NCCL_SHM_DISABLE=1, tell which")
        }
        Outcome::Hung(_) => (
            "nccl-hangs",
            "NCCL_DEBUG=INFO says what it waits for; NCCL_P2P_DISABLE=1 avoids direct copies, NCCL_IB_DISABLE=1 \
                            InfiniBand, and NCCL_SOCKET_IFNAME chooses its interface",
        ),
        Outcome::Failed(_) => {
            ("nccl-fails", "NCCL_DEBUG=INFO says why; /dev/shm and NCCL's version are the usual causes")
        }
        _ => return,
    };
    // What goes wrong with direct copies and without them is one thing, and told once.
    if !direct && sum(facts, true).is_some_and(|sum| is_bad(&sum.outcome)) {
        return;
    }
    let what = format!("a {} over all GPUs: {}", words::kind(&trial.what), words::outcome(&trial.outcome));
    let cure = match sum(facts, false).map(|without| &without.outcome).filter(|_| direct) {
        Some(Outcome::Right { .. }) => "NCCL_P2P_DISABLE=1 cures it: with it the sum is right".to_owned(),
        Some(bad) if is_bad(bad) => {
            format!("{cure}. NCCL_P2P_DISABLE=1 alone doesn't cure it (with it: {})", words::outcome(bad))
        }
        _ => cure.to_owned(),
    };
    found.push(Finding::new(Weight::Problem, name, what, cure));
}

/// What is right but slow.
fn slow(facts: &Facts, found: &mut Vec<Finding>) {
    for trial in &facts.trials {
        let (Outcome::Right { rate, telling: true }, Some(should)) = (&trial.outcome, should(facts, &trial.what))
        else {
            continue;
        };
        if *rate >= SLOW * should.rate {
            continue;
        }
        let (shown, wanted) = (words::rate(&trial.what, *rate), words::rate(&trial.what, should.rate));
        let what = format!("{}: {shown}, where {wanted} should come ({})", words::subject(&trial.what), should.of);
        let (weight, name, cure) = match &trial.what {
            What::Product { gpu: None, .. } | What::Attention { gpu: None } => {
                (Weight::Note, "processor-slow", "other processes may use it; in a virtual machine, its host's too")
            }
            What::Product { .. } | What::Attention { .. } | What::AttentionGradients { .. } => (
                Weight::Problem,
                "gpu-slow",
                "other processes may use it (`nvidia-smi`), or its clock is held back (`nvidia-smi -q -d PERFORMANCE`)",
            ),
            What::Copy { .. } | What::AllReduce { .. } => (
                Weight::Advice,
                "links-slow",
                "`nvidia-smi topo -m` and `lspci -vv` show links that are narrow or slow; see also ACS and IOMMU",
            ),
        };
        found.push(Finding::new(weight, name, what, cure));
    }
}
