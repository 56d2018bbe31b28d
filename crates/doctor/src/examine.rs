//! The whole examination: the machine's files, then processes that look at GPUs and try them. What hangs or ends badly is a fact
//! like any other, and the rest goes on.

use crate::facts::{Facts, Gpu, Gpus, Machine, Outcome, Pair, Slot, Trial, Way, What};
use crate::gpus::{Part, Told};
use crate::trials;
use crate::watch::{Heard, Start, Watched};
use ferrotune_tensor::Device;
use std::time::Duration;

/// How much is tried, and how long it may take.
#[derive(Debug, Clone, Copy)]
pub struct Wish {
    /// Of each kind of work on each device.
    pub each: Duration,
    /// How long a process may be silent before it counts as hung.
    pub patience: Duration,
}

/// How long the other ranks of a sum that hung are still heard.
const AFTER_A_HANG: Duration = Duration::from_secs(1);

/// Copies that hung, after which no more are tried: each costs the whole patience.
const MOST_HUNG: usize = 3;

/// Examines. `start` starts this program with the words of a part; `say` hears what is going on.
pub fn examine(machine: Machine, start: &Start<'_>, wish: Wish, say: &mut dyn FnMut(&str)) -> Facts {
    let mut facts = Facts { machine, ..Facts::default() };
    say("looking for GPUs and their libraries");
    facts.gpus = survey(start, wish.patience);
    let slots = facts.machine.slots.clone();
    ways(&mut facts.gpus, &slots);
    say("trying the processor");
    trials::all(&Device::cpu(), None, wish.each, &mut |told| {
        if let Told::Done(trial) = told {
            facts.trials.push(trial);
        }
    });
    if !facts.gpus.devices.is_empty() && facts.gpus.refused.is_none() {
        on_gpus(&mut facts, start, wish, say);
    }
    facts
}

fn on_gpus(facts: &mut Facts, start: &Start<'_>, wish: Wish, say: &mut dyn FnMut(&str)) {
    let count = facts.gpus.devices.len();
    let (direct, staged): (Vec<&Pair>, Vec<&Pair>) = facts.gpus.pairs.iter().partition(|pair| pair.access);
    let list = |pairs: Vec<&Pair>| pairs.iter().map(|pair| (pair.from, pair.to)).collect::<Vec<_>>();
    let (direct, mut staged) = (list(direct), list(staged));
    say(&format!("copying between {count} GPUs"));
    let tried = copies(start, &direct, true, wish.patience);
    // Whether the way over the host cures it.
    staged.extend(tried.iter().filter(|trial| is_bad(&trial.outcome)).filter_map(pair_of));
    let broken = tried.iter().any(|trial| is_bad(&trial.outcome));
    facts.trials.extend(tried);
    facts.trials.extend(copies(start, &staged, false, wish.patience));
    if !facts.gpus.has("cublasLt") {
        return;
    }
    say(&format!("products and attention on {count} GPUs"));
    facts.trials.extend(kernels(start, count, wish));
    if count > 1 && facts.gpus.has("NCCL") {
        say(&format!("a sum over {count} GPUs by NCCL"));
        let sum = all_reduce(start, count, true, wish.patience);
        // Whether runs are cured by what cures copies.
        let again = broken || is_bad(&sum.outcome);
        facts.trials.push(sum);
        if again {
            say("the same without direct copies");
            facts.trials.push(all_reduce(start, count, false, wish.patience));
        }
    }
}

/// Whether a trial says that something is broken.
pub(crate) fn is_bad(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Wrong(_) | Outcome::Failed(_) | Outcome::Hung(_))
}

fn pair_of(trial: &Trial) -> Option<(usize, usize)> {
    match trial.what {
        What::Copy { from, to } => Some((from, to)),
        _ => None,
    }
}

/// What a process told until its end.
struct Course {
    survey: Option<Gpus>,
    done: Vec<Trial>,
    /// What it was at when it ended, and how it ended, unless all was well.
    broken: Option<(Option<What>, Outcome)>,
}

fn course(mut watched: Watched, patience: Duration) -> Course {
    let mut course = Course { survey: None, done: Vec::new(), broken: None };
    let mut at = None;
    loop {
        match watched.next(patience) {
            Heard::Told(told) => match *told {
                Told::Survey(found) => course.survey = Some(found),
                Told::Begin(what) => at = Some(what),
                Told::Done(trial) => {
                    at = None;
                    course.done.push(trial);
                }
                Told::Identity(_) => {}
            },
            Heard::Ended(None) if at.is_none() => return course,
            Heard::Ended(words) => {
                let words = words.unwrap_or_else(|| "the process ended before it was done".to_owned());
                course.broken = Some((at, Outcome::Failed(words)));
                return course;
            }
            Heard::Silent(time) => {
                course.broken = Some((at, Outcome::Hung(time.as_secs_f64())));
                return course;
            }
        }
    }
}

fn survey(start: &Start<'_>, patience: Duration) -> Gpus {
    let refused = |words: String| Gpus { refused: Some(words), ..Gpus::default() };
    let course = match Watched::start(start, &Part::Survey) {
        // The driver wakes GPUs up one after the other.
        Ok(watched) => course(watched, 2 * patience),
        Err(words) => return refused(words),
    };
    match (course.survey, course.broken) {
        (Some(gpus), _) => gpus,
        (None, Some((_, Outcome::Hung(seconds)))) => refused(format!("the driver didn't answer within {seconds:.0} s")),
        (None, Some((_, Outcome::Failed(words)))) => refused(words),
        (None, _) => refused("nothing was told of GPUs".to_owned()),
    }
}

/// Copies one after the other, by one process as long as none hangs, so that a hang is one pair's and no other's.
fn copies(start: &Start<'_>, pairs: &[(usize, usize)], direct: bool, patience: Duration) -> Vec<Trial> {
    let (mut trials, mut hung) = (Vec::new(), 0);
    while let Some(left) = pairs.get(trials.len()..).filter(|left| !left.is_empty()) {
        let copy = |(from, to): (usize, usize)| What::Copy { from, to };
        let ended = |at: usize, outcome: Outcome| Trial { what: copy(left[at]), size: String::new(), outcome };
        if hung == MOST_HUNG {
            let words = || Outcome::Skipped(format!("{MOST_HUNG} other copies hung"));
            trials.extend((0..left.len()).map(|at| ended(at, words())));
            break;
        }
        let watched = match Watched::start(start, &Part::Copies(left.to_vec(), direct)) {
            Ok(watched) => watched,
            Err(words) => {
                trials.extend((0..left.len()).map(|at| ended(at, Outcome::Failed(words.clone()))));
                break;
            }
        };
        let course = course(watched, patience);
        let done = course.done.len().min(left.len());
        trials.extend(course.done.into_iter().take(done));
        if done < left.len() {
            let early = || Outcome::Failed("the process ended before it was done".to_owned());
            let outcome = course.broken.map_or_else(early, |(_, outcome)| outcome);
            hung += usize::from(matches!(outcome, Outcome::Hung(_)));
            trials.push(ended(done, outcome));
        }
    }
    trials
}

/// All GPUs at once, as in a run.
fn kernels(start: &Start<'_>, count: usize, wish: Wish) -> Vec<Trial> {
    let each = u64::try_from(wish.each.as_millis()).unwrap_or(u64::MAX);
    let first = |gpu: usize| What::Product { gpu: Some(gpu), dtype: "bf16".to_owned() };
    let failed = |gpu, outcome| Trial { what: first(gpu), size: String::new(), outcome };
    let started: Vec<_> = (0..count).map(|gpu| Watched::start(start, &Part::Kernels(gpu, each))).collect();
    let of = |(gpu, started): (usize, Result<Watched, String>)| {
        let course = match started {
            // Libraries of half a GB may come from a slow disk, for all of them at once.
            Ok(watched) => course(watched, 2 * patience(wish)),
            Err(words) => return vec![failed(gpu, Outcome::Failed(words))],
        };
        let broken = course.broken.map(|(what, outcome)| {
            let what = what.unwrap_or_else(|| first(gpu));
            Trial { what, size: String::new(), outcome }
        });
        course.done.into_iter().chain(broken).collect()
    };
    started.into_iter().enumerate().flat_map(of).collect()
}

fn patience(wish: Wish) -> Duration {
    wish.patience + 4 * wish.each
}

fn all_reduce(start: &Start<'_>, ranks: usize, direct: bool, patience: Duration) -> Trial {
    let what = What::AllReduce { ranks, direct };
    let failed = |outcome| Trial { what: what.clone(), size: String::new(), outcome };
    let rank =
        |rank: usize, identity: Option<String>| Watched::start(start, &Part::Rank { rank, ranks, identity, direct });
    let mut first = match rank(0, None) {
        Ok(watched) => watched,
        Err(words) => return failed(Outcome::Failed(words)),
    };
    let identity = loop {
        match first.next(2 * patience) {
            Heard::Told(told) => match *told {
                Told::Identity(identity) => break identity,
                Told::Done(trial) => return trial,
                _ => {}
            },
            Heard::Ended(words) => return failed(Outcome::Failed(words.unwrap_or_default())),
            Heard::Silent(time) => return failed(Outcome::Hung(time.as_secs_f64())),
        }
    };
    let others: Vec<_> = (1..ranks).map(|number| rank(number, Some(identity.clone()))).collect();
    let mut patience = 2 * patience;
    let courses = std::iter::once(Ok(first)).chain(others).map(|started| match started {
        Ok(watched) => {
            let course = course(watched, patience);
            // Whoever waits for the same sum has had the same time.
            if matches!(course.broken, Some((_, Outcome::Hung(_)))) {
                patience = patience.min(AFTER_A_HANG);
            }
            let broken = course.broken.map(|(_, outcome)| failed(outcome));
            broken.or_else(|| course.done.into_iter().next()).unwrap_or_else(|| failed(Outcome::Failed(String::new())))
        }
        Err(words) => failed(Outcome::Failed(words)),
    });
    let trials: Vec<Trial> = courses.collect();
    worst(trials).unwrap_or_else(|| failed(Outcome::Failed(String::new())))
}

/// What says most about a sum that all ranks took part in: wrong values, then who failed, then that it hung, which the others do
/// because of those; else the slowest.
fn worst(trials: Vec<Trial>) -> Option<Trial> {
    let weight = |outcome: &Outcome| match outcome {
        Outcome::Wrong(_) => (0, 0.0),
        Outcome::Failed(_) => (1, 0.0),
        Outcome::Hung(_) => (2, 0.0),
        Outcome::Skipped(_) => (3, 0.0),
        Outcome::Right { rate, .. } => (4, *rate),
    };
    trials
        .into_iter()
        .min_by(|a, b| weight(&a.outcome).partial_cmp(&weight(&b.outcome)).unwrap_or(std::cmp::Ordering::Equal))
}

/// Says of each pair which way lies between.
pub fn ways(gpus: &mut Gpus, slots: &[Slot]) {
    let find = |devices: &[Gpu], number: usize| {
        let gpu = devices.iter().find(|gpu| gpu.number == number)?;
        let links = gpu.health.as_ref().map(|health| health.nvlinks);
        Some((slots.iter().find(|slot| slot.address == gpu.address).cloned(), links))
    };
    for pair in &mut gpus.pairs {
        let (Some(from), Some(to)) = (find(&gpus.devices, pair.from), find(&gpus.devices, pair.to)) else { continue };
        let linked = from.1 != Some(0) && to.1 != Some(0);
        pair.way = match (from.0, to.0) {
            _ if pair.atomics && linked => Way::Nvlink,
            (Some(from), Some(to)) => over_bus(&from, &to),
            _ => Way::Unknown,
        };
    }
}

/// By what lies above both: a host bridge, its port, and the two sides of a switch, of which siblings share all but the last.
fn over_bus(from: &Slot, to: &Slot) -> Way {
    let shared = from.above.iter().zip(&to.above).take_while(|(a, b)| a == b).count();
    let apart = (from.above.len() - shared).max(to.above.len() - shared);
    match shared {
        _ if from.above.is_empty() || to.above.is_empty() => Way::Unknown,
        0 if from.node.is_some() && from.node == to.node => Way::Node,
        0 if from.node.is_some() && to.node.is_some() => Way::System,
        0 => Way::Unknown,
        1 => Way::HostBridge,
        _ if apart <= 1 => Way::Switch,
        _ => Way::Switches,
    }
}
