//! `cargo xtask mutants [COUNT] [SEED]`: kernels made wrong one line at a time, each of which the kernels' tests must notice.
//! What survives changes nothing, or is a test that is missing; the task lists it and fails only if a whole kind of mistake
//! goes unnoticed more often than not.

mod mutate;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::{cargo, output, root};
use mutate::Mutation;

/// Longest that the tests of one mutant may take; the interpreter ends endless kernels long before.
const PATIENCE: Duration = Duration::from_secs(120);

/// A changed line of a file.
struct Mutant {
    file: PathBuf,
    mutation: Mutation,
}

pub(crate) fn task(arguments: &[String]) -> Result<()> {
    let number = |at: usize, otherwise: u64| match arguments.get(at) {
        None => Ok(otherwise),
        Some(text) => text.parse().with_context(|| format!("{text} is no number")),
    };
    let (count, seed) = (number(0, 300)? as usize, number(1, 1)?);
    let tests = test_binary()?;
    let mut files = Vec::new();
    for entry in std::fs::read_dir(root().join("kernels/ptx"))? {
        files.push(entry?.path());
    }
    files.sort();
    let folder = tempfile::tempdir()?;
    for file in &files {
        std::fs::copy(file, folder.path().join(name_of(file)))?;
    }
    for file in &files {
        ensure!(!noticed(&tests, file, folder.path())?, "the tests of {} fail as it is", file.display());
    }
    let mut results: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for mutant in chosen(&files, count, seed)? {
        let killed = try_one(&tests, &mutant, folder.path())?;
        let (all, dead) = results.entry(mutant.mutation.kind).or_default();
        *all += 1;
        *dead += usize::from(killed);
    }
    println!("\nkind of mistake   noticed");
    for (kind, (all, dead)) in &results {
        println!("{kind:16} {dead:4} of {all}");
    }
    let (all, dead) = results.values().fold((0, 0), |sum, (all, dead)| (sum.0 + all, sum.1 + dead));
    println!("{:16} {dead:4} of {all}", "all");
    if let Some((kind, _)) = results.iter().find(|(_, (all, dead))| dead * 2 < *all) {
        bail!("most mistakes of the kind `{kind}` went unnoticed");
    }
    Ok(())
}

fn name_of(file: &Path) -> &str {
    file.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// Builds the kernels' tests and finds their program.
fn test_binary() -> Result<PathBuf> {
    let mut build = cargo(&["test", "-p", "ferrotune-tensor", "--test", "cuda", "--no-run", "--message-format=json"]);
    let messages = output(build.stderr(Stdio::inherit()))?;
    let found = String::from_utf8(messages)?.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let named = message.get("target")?.get("name")? == "cuda";
        named.then(|| message.get("executable")?.as_str().map(PathBuf::from))?
    });
    found.context("cargo names no test program")
}

/// `count` mutants: a kind is drawn, then a place, so that rare kinds aren't drowned.
fn chosen(files: &[PathBuf], count: usize, seed: u64) -> Result<Vec<Mutant>> {
    let mut kinds: BTreeMap<&str, Vec<Mutant>> = BTreeMap::new();
    for file in files {
        for mutation in mutate::all(&std::fs::read_to_string(file)?) {
            kinds.entry(mutation.kind).or_default().push(Mutant { file: file.clone(), mutation });
        }
    }
    let (mut kinds, mut state, mut chosen) = (kinds.into_values().collect::<Vec<_>>(), seed, Vec::new());
    while chosen.len() < count && !kinds.is_empty() {
        let kind = below(&mut state, kinds.len());
        let place = below(&mut state, kinds[kind].len());
        chosen.push(kinds[kind].swap_remove(place));
        if kinds[kind].is_empty() {
            kinds.swap_remove(kind);
        }
    }
    Ok(chosen)
}

/// A number below `n`: splitmix64.
fn below(state: &mut u64, n: usize) -> usize {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ z >> 31) % n as u64) as usize
}

/// Writes the mutant over its file, runs its tests, and puts the file back.
fn try_one(tests: &Path, mutant: &Mutant, folder: &Path) -> Result<bool> {
    let (text, line) = (std::fs::read_to_string(&mutant.file)?, mutant.mutation.line);
    let mut lines: Vec<&str> = text.lines().collect();
    let (before, after) = (lines[line].trim(), mutant.mutation.text.as_str());
    lines[line] = after;
    let place = folder.join(name_of(&mutant.file));
    std::fs::write(&place, lines.join("\n") + "\n")?;
    let killed = noticed(tests, &mutant.file, folder)?;
    if !killed {
        let kernel =
            text.lines().take(line).filter_map(|l| l.split_once(".entry ")).last().map_or("", |(_, name)| name);
        let (file, kind) = (name_of(&mutant.file), mutant.mutation.kind);
        let after = if after.is_empty() { "nothing" } else { after };
        println!("survived: {kind}, {file}:{}, {}: {before} -> {after}", line + 1, kernel.trim_end_matches('('));
    }
    std::fs::copy(&mutant.file, place)?;
    Ok(killed)
}

/// Whether the tests named after the file fail with the PTX in `folder`.
fn noticed(tests: &Path, file: &Path, folder: &Path) -> Result<bool> {
    let module = file.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
    let mut child = Command::new(tests)
        .args([&format!("{module}::"), "--quiet"])
        .env("FERROTUNE_TEST_PTX", folder)
        .env("RUST_BACKTRACE", "0")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(!status.success());
        }
        if start.elapsed() > PATIENCE {
            child.kill()?;
            child.wait()?;
            return Ok(true);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
