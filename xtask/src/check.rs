//! The checks that are a cargo command each, and all checks in a row.

use anyhow::{Context, Result};

use crate::{cargo, kernels, licences, run, text, tree};

type Check = (&'static str, fn(&[String]) -> Result<()>);

/// Quick ones first; the tests last, so that a log ends with their result.
const CHECKS: &[Check] = &[
    ("format", format),
    ("text", text::check),
    ("tree", tree::check),
    ("licences", licences::check),
    ("kernels", |_| kernels::task(&["--check".to_owned()])),
    ("lint", lint),
    ("docs", docs),
    ("test", test),
];

/// All checks; the first failure ends it.
pub(crate) fn ci(_: &[String]) -> Result<()> {
    for (name, check) in CHECKS {
        println!("\n=== {name}");
        check(&[]).with_context(|| format!("check `{name}`"))?;
    }
    Ok(())
}

pub(crate) fn format(_: &[String]) -> Result<()> {
    run(&mut cargo(&["fmt", "--all", "--check"]))
}

pub(crate) fn lint(_: &[String]) -> Result<()> {
    run(&mut cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]))
}

pub(crate) fn docs(_: &[String]) -> Result<()> {
    run(cargo(&["doc", "--workspace", "--no-deps", "--locked"]).env("RUSTDOCFLAGS", "-D warnings"))
}

/// `CARGO_TERM_COLOR` and the like pass through; nothing is captured.
pub(crate) fn test(_: &[String]) -> Result<()> {
    run(&mut cargo(&["test", "--workspace"]))
}

/// Random faults for as long as asked, ten minutes if not; a failure names the seed that repeats it.
pub(crate) fn soak(arguments: &[String]) -> Result<()> {
    let seconds = arguments.first().map_or("600", String::as_str);
    let seed = arguments.get(1).map_or("1", String::as_str);
    let mut command =
        cargo(&["test", "-p", "ferrotune", "--test", "e2e", "--", "--ignored", "--nocapture", "many::soak"]);
    run(command.env("FERROTUNE_SOAK_SECONDS", seconds).env("FERROTUNE_SOAK_SEED", seed))
}
