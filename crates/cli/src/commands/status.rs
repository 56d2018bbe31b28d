//! `status`: how a run is at this moment, read from the file that its first rank keeps.

use crate::failure::Failure;
use crate::{environment, ui};
use anyhow::anyhow;
use ferrotune_train::report::{Phase, RankStatus, Status};
use std::path::Path;
use std::time::Duration;

/// A status this old is of a run that can't write any more.
const STALE: f64 = 10.0;
/// Time between two looks.
const EVERY: Duration = Duration::from_secs(2);

/// Shows the run in `folder`; again and again until it is over, if `watch`.
pub(crate) fn status(folder: &Path, json: bool, watch: bool) -> Result<(), Failure> {
    loop {
        let status = Status::read(folder)?.ok_or_else(|| {
            let text = "there is no status.json; no run has begun there: give the output_dir of its recipe";
            Failure::Other(anyhow!("{}: {text}", folder.display()))
        })?;
        let age = environment::now() - status.written;
        if json {
            ui::line(&serde_json::to_string_pretty(&status)?)?;
        } else {
            ui::line(&render(&status, age))?;
        }
        if !watch || status.phase != Phase::Running || age > STALE {
            return Ok(());
        }
        std::thread::sleep(EVERY);
    }
}

fn render(status: &Status, age: f64) -> String {
    let mut text = headline(status, age);
    if status.ranks.is_empty() {
        return text;
    }
    let width = status.ranks.iter().map(|rank| rank.host.chars().count()).max().unwrap_or(0).max(4);
    text += &format!(
        "\n{:>4}  {:width$} {:>8} {:>10} {:>10}  {:>7} {:>7} {:>7}  {:>6}  {}",
        "rank", "host", "step", "tokens", "memory", "compute", "comm", "waits", "heard", "doing"
    );
    status.ranks.iter().for_each(|rank| text += &row(rank, width));
    if let Some(slowest) = status.slowest() {
        text += &format!("\nrank {} ({}) is the slowest: the others wait for it", slowest.rank, slowest.host);
    }
    text
}

/// The run in a line.
fn headline(status: &Status, age: f64) -> String {
    let step = format!("step {} of {}", status.step, status.total_steps);
    let reason = status.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
    match status.phase {
        Phase::Running if age > STALE => format!(
            "dead: {step}; nothing was written for {age:.0} s, and process {} on {} said no goodbye",
            status.pid, status.host
        ),
        Phase::Running => {
            let loss = status.loss.map(|loss| format!(", loss {loss:.4}")).unwrap_or_default();
            let left = status.remaining.map(|left| format!(", {} left", ui::duration(left))).unwrap_or_default();
            format!("running: {step}{loss}, {:.0} tokens/s{left}", status.tokens_per_second)
        }
        Phase::Finished => format!("finished: {step}"),
        Phase::Interrupted => format!("interrupted: {step}; the same command goes on from there"),
        Phase::Failed => format!("failed: {step}{reason}"),
    }
}

fn row(rank: &RankStatus, width: usize) -> String {
    let share = |share: f64| format!("{:.0} %", 100.0 * share);
    let collective = rank.collective.map(|number| format!(", in collective {number}")).unwrap_or_default();
    format!(
        "\n{:>4}  {:width$} {:>8} {:>10} {:>10}  {:>7} {:>7} {:>7}  {:>4.1} s  {}{collective}",
        rank.rank,
        rank.host,
        rank.step,
        ui::grouped(rank.tokens as usize),
        ui::bytes(rank.memory),
        share(rank.computing),
        share(rank.communicating),
        share(rank.waiting),
        rank.silent,
        rank.activity
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank(rank: usize, waiting: f64) -> RankStatus {
        RankStatus {
            rank,
            host: format!("host{rank}"),
            step: 5,
            activity: "in a backward pass".into(),
            collective: (rank == 1).then_some(12),
            tokens: 1234,
            memory: 5 << 20,
            computing: 1.0 - waiting,
            communicating: 0.25,
            waiting,
            silent: 0.25,
        }
    }

    fn status(phase: Phase) -> Status {
        Status {
            phase,
            reason: None,
            started: 0.0,
            written: 100.0,
            host: "host0".into(),
            pid: 77,
            step: 5,
            total_steps: 8,
            tokens_per_second: 321.4,
            loss: Some(2.5),
            remaining: Some(75.0),
            ranks: vec![rank(0, 0.5), rank(1, 0.1)],
        }
    }

    #[test]
    fn a_run_is_shown_with_its_ranks_and_the_slowest_of_them() {
        let text = render(&status(Phase::Running), 1.0);
        assert_eq!(
            text.lines().map(str::trim_end).collect::<Vec<_>>(),
            [
                "running: step 5 of 8, loss 2.5000, 321 tokens/s, 1 min 15 s left",
                "rank  host      step     tokens     memory  compute    comm   waits   heard  doing",
                "   0  host0        5      1,234      5 MiB     50 %    25 %    50 %   0.2 s  in a backward pass",
                "   1  host1        5      1,234      5 MiB     90 %    25 %    10 %   0.2 s  in a backward pass, in collective 12",
                "rank 1 (host1) is the slowest: the others wait for it",
            ]
        );
    }

    #[test]
    fn the_dead_the_done_and_the_failed_are_told_apart() {
        let first = |status: &Status, age| render(status, age).lines().next().map(str::to_owned).unwrap_or_default();
        assert!(first(&status(Phase::Running), 60.0).starts_with("dead: step 5 of 8; nothing was written for 60 s"));
        assert_eq!(first(&status(Phase::Finished), 60.0), "finished: step 5 of 8");
        let failed = Status { reason: Some("rank 1 is gone".into()), ..status(Phase::Failed) };
        assert_eq!(first(&failed, 60.0), "failed: step 5 of 8: rank 1 is gone");
    }
}
