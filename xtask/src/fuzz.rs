//! Fuzzing with a stable compiler: `crates/fuzz`, built with a counter at every branch of the crates that read what comes
//! from outside.
//!
//! Counters come from LLVM's own pass, which any rustc takes; only our crates get them, so that all others are compiled
//! once. Cargo has a place for a program between itself and the compiler for just the crates of a workspace; this program
//! stands there, too ([`compile`]).

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::{cargo, run};

/// Crates with counters.
const COUNTED: [&str; 3] = ["ferrotune_config", "ferrotune_data", "ferrotune_checkpoint"];
const FLAGS: [&str; 4] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=3",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Ccodegen-units=1",
];

/// `[TARGET|all] [SECONDS] [SEED]`, 1800 seconds of a processor a target if not said; or `replay TARGET FILE`.
pub(crate) fn task(arguments: &[String]) -> Result<()> {
    let this = std::env::current_exe().context("where this program lies isn't known")?;
    let mut command = cargo(&["run", "--quiet", "--package", "ferrotune-fuzz", "--"]);
    // A cache of compiled crates would keep those with counters apart only if it knew of them.
    run(command.args(arguments).env("RUSTC_WORKSPACE_WRAPPER", this).env("RUSTC_WRAPPER", ""))
}

/// Whether cargo calls this program in the compiler's place.
pub(crate) fn is_compiler(first: Option<&OsString>) -> bool {
    first.is_some_and(|first| Path::new(first).file_stem().is_some_and(|stem| stem == "rustc"))
}

/// Calls the compiler as asked, with counters for the crates that have them.
pub(crate) fn compile(arguments: &[OsString]) -> Result<ExitCode> {
    let (rustc, rest) = arguments.split_first().context("no compiler is named")?;
    let counted = rest.windows(2).any(|pair| pair[0] == "--crate-name" && COUNTED.iter().any(|name| pair[1] == *name));
    let mut command = Command::new(rustc);
    command.args(rest).args(FLAGS.iter().filter(|_| counted));
    let status = command.status().with_context(|| format!("cannot start {}", rustc.display()))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
