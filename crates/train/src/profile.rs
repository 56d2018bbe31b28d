//! What a rank did when, in files that Perfetto and `chrome://tracing` show: one line for the computing thread's segments,
//! one for its waits, one for its collectives. So it is seen, and not believed, that gathers and reductions run beside the
//! computation.
//!
//! The format is Chrome's: <https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU>. Times are
//! microseconds since 1970, so that the files of several ranks can be laid into one picture as far as their clocks agree.

use crate::error::{Error, Result};
use ferrotune_checkpoint::write_atomic;
use ferrotune_config::plan::ProfilePlan;
use ferrotune_dist::Pulse;
use ferrotune_dist::trace::{Lane, Span, hidden};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// Follows the steps of a rank and writes a file for each round of them.
pub(crate) struct Profiler {
    plan: ProfilePlan,
    rank: usize,
    pulse: Arc<Pulse>,
    /// Steps of this session so far.
    steps: u64,
    round: Option<Round>,
}

/// Steps that are looked at.
struct Round {
    first: u64,
    left: u64,
}

/// A file of one round.
#[derive(Debug)]
pub(crate) struct Profile {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// Share of the collectives' time that computing didn't wait for; none without collectives.
    pub(crate) hidden: Option<f64>,
}

impl Profiler {
    pub(crate) fn new(plan: ProfilePlan, rank: usize, pulse: Arc<Pulse>) -> Self {
        Self { plan, rank, pulse, steps: 0, round: None }
    }

    /// Step `number` is about to begin.
    pub(crate) fn step_begins(&mut self, number: u64) {
        let ProfilePlan { skip, active, rounds, .. } = self.plan;
        let (round, within) = (self.steps / (skip + active), self.steps % (skip + active));
        if within == skip && rounds.is_none_or(|rounds| round < rounds) {
            self.round = Some(Round { first: number, left: active });
            self.pulse.trace().start();
        }
        self.steps += 1;
    }

    /// Step `number` is over; a file, if a round is over with it. `last`: no more steps come.
    ///
    /// # Errors
    /// If it can't be written; the run needs it for nothing.
    pub(crate) fn step_ends(&mut self, number: u64, last: bool) -> Result<Option<Profile>> {
        let Some(round) = &mut self.round else { return Ok(None) };
        round.left -= 1;
        if round.left > 0 && !last {
            return Ok(None);
        }
        let first = round.first;
        self.round = None;
        let (spans, full) = self.pulse.trace().stop();
        let name = format!("rank-{}.steps-{first}-{number}.json", self.rank);
        let path = self.plan.dir.join(name);
        std::fs::create_dir_all(&self.plan.dir).map_err(Error::io("make", &self.plan.dir))?;
        write_atomic(&path, events(self.rank, &spans, full).to_string().as_bytes())?;
        let (beside, moving) = hidden(&spans);
        let share = (!moving.is_zero()).then(|| beside.as_secs_f64() / moving.as_secs_f64());
        Ok(Some(Profile { path, hidden: share }))
    }
}

fn lane(lane: Lane) -> (u8, &'static str) {
    match lane {
        Lane::Computing => (0, "computing"),
        Lane::Waiting => (1, "waiting for collectives"),
        Lane::Moving => (2, "collectives"),
    }
}

/// The spans as Chrome's events.
fn events(rank: usize, spans: &[Span], full: bool) -> Value {
    let (moment, since) = (Instant::now(), SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default());
    let micros = |time: Duration| time.as_nanos() as f64 / 1e3;
    let at = |then: Instant| micros(since.saturating_sub(moment.saturating_duration_since(then)));
    let names = [Lane::Computing, Lane::Waiting, Lane::Moving].map(|of| {
        let (thread, name) = lane(of);
        json!({"name": "thread_name", "ph": "M", "pid": rank, "tid": thread, "args": {"name": name}})
    });
    let process = json!({"name": "process_name", "ph": "M", "pid": rank, "args": {"name": format!("rank {rank}")}});
    let event = |span: &Span| {
        let mut event = json!({
            "name": span.name, "ph": "X", "pid": rank, "tid": lane(span.lane).0,
            "ts": at(span.begin), "dur": micros(span.end - span.begin),
        });
        if span.bytes > 0 {
            event["args"] = json!({"bytes": span.bytes});
        }
        event
    };
    let all: Vec<Value> = std::iter::once(process).chain(names).chain(spans.iter().map(event)).collect();
    json!({"traceEvents": all, "displayTimeUnit": "ms", "cut_off": full})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(dir: PathBuf, skip: u64, active: u64, rounds: Option<u64>) -> ProfilePlan {
        ProfilePlan { dir, skip, active, rounds }
    }

    /// Names of the files that `steps` steps leave, beginning with step `first`.
    fn files(skip: u64, active: u64, rounds: Option<u64>, steps: std::ops::RangeInclusive<u64>) -> Vec<String> {
        let folder = tempfile::tempdir().expect("a folder");
        let mut profiler = Profiler::new(plan(folder.path().join("p"), skip, active, rounds), 1, Arc::default());
        let last = *steps.end();
        let written = steps.filter_map(|number| {
            profiler.step_begins(number);
            profiler.step_ends(number, number == last).expect("writable")
        });
        written.map(|p| p.path.file_name().expect("a name").to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn rounds_are_those_of_pytorch() {
        assert_eq!(files(2, 1, Some(1), 1..=20), ["rank-1.steps-3-3.json"]);
        assert_eq!(files(1, 2, Some(2), 11..=30), ["rank-1.steps-12-13.json", "rank-1.steps-15-16.json"]);
        assert_eq!(files(0, 3, None, 1..=4), ["rank-1.steps-1-3.json", "rank-1.steps-4-4.json"]);
        assert!(files(9, 1, Some(1), 1..=4).is_empty());
    }

    #[test]
    fn a_file_holds_spans_with_their_lanes_and_bytes() {
        let folder = tempfile::tempdir().expect("a folder");
        let pulse = Arc::<Pulse>::default();
        let mut profiler = Profiler::new(plan(folder.path().into(), 0, 1, None), 3, Arc::clone(&pulse));
        profiler.step_begins(7);
        let trace = pulse.trace();
        trace.end(trace.begin(), Lane::Computing, 0, || "block 1 forward");
        trace.end(trace.begin(), Lane::Moving, 4096, || "all_gather");
        let profile = profiler.step_ends(7, false).expect("writable").expect("a round is over");
        assert_eq!(profile.hidden, Some(1.0));
        let read: Value = serde_json::from_slice(&std::fs::read(profile.path).expect("there")).expect("JSON");
        let all = read["traceEvents"].as_array().expect("a list");
        let of = |name: &str| all.iter().find(|event| event["name"] == name).expect("there");
        let (gather, block) = (of("all_gather"), of("block 1 forward"));
        assert_eq!([&gather["pid"], &gather["tid"], &gather["args"]["bytes"]], [3, 2, 4096]);
        assert_eq!((&block["tid"], block.get("args")), (&json!(0), None));
        assert!(gather["ts"].as_f64() >= block["ts"].as_f64(), "{gather} {block}");
    }
}
