//! One target, run again and again.

use std::cell::Cell;
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, Once};
use std::time::Duration;

use crate::coverage::Coverage;
use crate::memory;
use crate::mutate::{Random, mutate};
use crate::targets::Target;

/// A run that takes longer of a processor is a finding: inputs have some kilobytes.
const SLOW: Duration = Duration::from_secs(5);
/// Findings of one campaign; more are most likely the same.
const MOST: usize = 10;

/// Where the last panic was.
static PANIC: Mutex<String> = Mutex::new(String::new());

thread_local! {
    /// Whether a target runs in this thread.
    static RUNNING: Cell<bool> = const { Cell::new(false) };
}

/// What this process has had of the processors. A clock would count what others had, and hours in which a machine slept.
fn spent() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(spent.tv_sec.unsigned_abs(), u32::try_from(spent.tv_nsec).unwrap_or(0))
}

/// A target's panic is noted instead of printed; any other is printed as ever.
fn notice_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| match (RUNNING.get(), PANIC.lock()) {
            (true, Ok(mut place)) => *place = info.to_string(),
            _ => usual(info),
        }));
    });
}

pub(crate) struct Campaign {
    target: &'static Target,
    random: Random,
    seed: u64,
    corpus: Vec<Vec<u8>>,
    coverage: Coverage,
    runs: u64,
    time: Duration,
    findings: Vec<(String, Vec<u8>)>,
    /// What was found, so that the same thing counts once.
    kinds: HashSet<String>,
}

impl Campaign {
    pub(crate) fn new(target: &'static Target, seed: u64) -> Self {
        notice_panics();
        let mut campaign = Self {
            target,
            random: Random::new(seed),
            seed,
            corpus: Vec::new(),
            coverage: Coverage::default(),
            runs: 0,
            time: Duration::ZERO,
            findings: Vec::new(),
            kinds: HashSet::new(),
        };
        for input in target.seeds() {
            campaign.one(input.clone());
            if !campaign.corpus.contains(&input) {
                campaign.corpus.push(input);
            }
        }
        campaign
    }

    /// Runs until so much time of a processor or so many runs are over.
    pub(crate) fn run(&mut self, time: Duration, runs: u64) {
        let start = spent();
        let end = self.runs.saturating_add(runs);
        while spent().saturating_sub(start) < time && self.runs < end && self.findings.len() < MOST {
            let [one, other] = [0; 2].map(|_| self.random.below(self.corpus.len()));
            let input = mutate(&self.corpus[one], &self.corpus[other], self.target.words, &mut self.random);
            self.one(input);
        }
        self.time += spent().saturating_sub(start);
    }

    fn one(&mut self, input: Vec<u8>) {
        Coverage::reset();
        memory::take_largest();
        let start = spent();
        RUNNING.set(true);
        let said = catch_unwind(AssertUnwindSafe(|| self.target.run(&input)));
        RUNNING.set(false);
        let took = spent().saturating_sub(start);
        let largest = memory::take_largest();
        self.runs += 1;
        let finding = match &said {
            Err(_) => Some(PANIC.lock().map(|place| place.clone()).unwrap_or_default()),
            Ok(_) if took > SLOW => Some(format!("{:.0} seconds", took.as_secs_f64())),
            Ok(_) if largest > self.target.most_bytes => Some(format!("{} MiB in one allocation", largest >> 20)),
            Ok(_) => None,
        };
        if let Some(kind) = finding {
            if self.kinds.insert(kind.clone()) {
                self.findings.push((kind, input));
            }
        } else if said.is_ok_and(|said| self.coverage.is_new(&said)) {
            self.corpus.push(input);
        }
    }

    pub(crate) fn findings(&self) -> &[(String, Vec<u8>)] {
        &self.findings
    }

    /// What the campaign did, in a line.
    pub(crate) fn report(&self) -> String {
        let (reached, all, said) = self.coverage.totals();
        let edges = match all {
            0 => String::new(),
            _ => format!("{reached} of {all} branches of our crates, "),
        };
        format!(
            "{:12} seed {}: {} runs in {:.0} s of a processor, {edges}{said} different outcomes, {} inputs kept, {} findings\n",
            self.target.name,
            self.seed,
            self.runs,
            self.time.as_secs_f64(),
            self.corpus.len(),
            self.findings.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::targets;

    /// What the gate has time for: readers of data files and of the registry, for a moment. The other targets have tests of
    /// hostile input in their own crates; `cargo xtask fuzz` runs all of them, and for longer.
    #[test]
    fn no_reader_of_data_breaks_in_some_dozens_of_runs() {
        for name in ["json", "jsonl", "csv", "text", "parquet", "arrow", "packed", "registry"] {
            let target = targets::all().into_iter().find(|target| target.name == name).expect("a target");
            let mut campaign = Campaign::new(target, 1);
            campaign.run(Duration::from_secs(1), 100);
            let kinds: Vec<&String> = campaign.findings().iter().map(|(kind, _)| kind).collect();
            assert!(kinds.is_empty(), "{name}: {kinds:?}");
            assert!(campaign.corpus.len() > target.seeds().len(), "{name}: nothing new was reached");
        }
    }

    #[test]
    fn computing_is_counted() {
        let before = spent();
        std::hint::black_box((0..20_000_000_u64).fold(0, |sum: u64, i| sum ^ std::hint::black_box(i)));
        let computed = spent().saturating_sub(before);
        assert!(computed > Duration::from_millis(1), "{computed:?}");
    }

    #[test]
    fn what_goes_wrong_is_found() {
        static BROKEN: Target = Target {
            name: "broken",
            run: |input| ["ok", "no"][input.len()].to_owned(),
            most_bytes: 1 << 20,
            words: &["xx"],
            seeds: || vec![b"a".to_vec()],
        };
        static GREEDY: Target = Target {
            name: "greedy",
            run: |input| vec![0_u8; input.len() << 20].len().to_string(),
            most_bytes: 1 << 20,
            words: &[],
            seeds: || vec![b"ab".to_vec()],
        };
        for target in [&BROKEN, &GREEDY] {
            let mut campaign = Campaign::new(target, 1);
            campaign.run(Duration::from_secs(5), 1000);
            assert!(!campaign.findings().is_empty(), "{}", target.name);
        }
    }
}
