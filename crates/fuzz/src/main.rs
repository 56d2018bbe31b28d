//! Feeds the readers of everything that comes from outside with bytes that nobody would write, and counts what they reach.
//!
//! `cargo xtask fuzz [TARGET] [SECONDS] [SEED]` builds this with counters at every branch of our crates and runs it; it
//! works on a stable compiler. Inputs that reach something new are kept and mutated further (as libFuzzer does it). A
//! finding is a panic, a run of more than seconds, or a single allocation far beyond the input; it is written to a file, and
//! the same file replays it. What was found and cured stays in `fixtures/fuzz`, from where every run begins.

#![expect(clippy::print_stdout, reason = "a program for the one who runs it")]

mod campaign;
mod coverage;
mod memory;
mod mutate;
mod targets;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use campaign::Campaign;
use targets::Target;

/// 30 minutes of a processor a target.
const SECONDS: u64 = 30 * 60;

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [replay, name, file] = &arguments[..]
        && replay == "replay"
    {
        let input = std::fs::read(file).with_context(|| format!("can't read {file}"))?;
        println!("{}", target(name)?.run(&input));
        return Ok(ExitCode::SUCCESS);
    }
    let chosen = match arguments.first().map(String::as_str) {
        None | Some("all") => targets::all(),
        Some(name) => vec![target(name)?],
    };
    let number = |i: usize, default: u64| {
        arguments.get(i).map_or(Ok(default), |text| text.parse().with_context(|| format!("`{text}` is no number")))
    };
    let (seconds, seed) = (number(1, SECONDS)?, number(2, 1)?);
    let findings = PathBuf::from(arguments.get(3).map_or("target/fuzz-findings", String::as_str));
    let mut found = 0;
    for target in chosen {
        let mut campaign = Campaign::new(target, seed);
        campaign.run(Duration::from_secs(seconds), u64::MAX);
        print!("{}", campaign.report());
        for (kind, input) in campaign.findings() {
            std::fs::create_dir_all(&findings)?;
            let path = findings.join(format!("{}-{found}", target.name));
            std::fs::write(&path, input)?;
            println!("  FINDING {kind}\n    replay: cargo xtask fuzz replay {} {}", target.name, path.display());
            found += 1;
        }
    }
    Ok(if found == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn target(name: &str) -> Result<&'static Target> {
    let known = targets::all();
    match known.iter().find(|target| target.name == name) {
        Some(target) => Ok(target),
        None => {
            let names: Vec<&str> = known.iter().map(|target| target.name).collect();
            bail!("no target `{name}`; there are all, {}", names.join(", "))
        }
    }
}
