//! `cargo xtask mutants [COUNT] [SEED]`: kernels made wrong one line at a time, each of which the kernels' tests must notice.
//! What survives changes nothing, or is a test that is missing; the task lists it and fails only if a whole kind of mistake
//! goes unnoticed more often than not, or if a kernel has no test at all.
//!
//! A mutant is tried on the tests that launch its kernel, the fastest first, until one fails; as many mutants at a time as
//! there are processors.

mod mutate;
mod tests;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail, ensure};

use crate::root;
use mutate::Mutation;
use tests::Tests;

/// A file of PTX as it was when the task began.
struct Source {
    name: String,
    text: String,
}

/// A changed line of a file, which is given by its number.
struct Mutant {
    file: usize,
    kernel: String,
    mutation: Mutation,
}

impl Mutant {
    /// What it is, with the line before and after.
    fn describe(&self, file: &str, before: &str) -> String {
        let Mutation { kind, line, text } = &self.mutation;
        let after = if text.is_empty() { "nothing" } else { text };
        format!("{kind}, {file}:{}, {}: {} -> {after}", line + 1, self.kernel, before.trim())
    }
}

pub(crate) fn task(arguments: &[String]) -> Result<()> {
    let number = |at: usize, otherwise: u64| match arguments.get(at) {
        None => Ok(otherwise),
        Some(text) => text.parse().with_context(|| format!("{text} is no number")),
    };
    let (count, seed) = (number(0, 300)? as usize, number(1, 1)?);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(root().join("kernels/ptx"))? {
        let path = entry?.path();
        files.push(Source { name: name_of(&path).to_owned(), text: std::fs::read_to_string(&path)? });
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    let tests = Tests::find()?;
    for file in &files {
        for kernel in kernels(&file.text) {
            ensure!(tests.of(&kernel).next().is_some(), "no test launches {kernel}");
        }
    }
    println!("{} tests launch the kernels of {} files", tests.len(), files.len());
    let chosen = chosen(&files, count, seed);
    let results = all(&tests, &files, &chosen)?;
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

/// By kind: how many there were, and how many were noticed.
type Results = BTreeMap<&'static str, (usize, usize)>;

/// Tries all mutants, on as many threads as there are processors, each with a copy of the PTX.
fn all(tests: &Tests, files: &[Source], mutants: &[Mutant]) -> Result<Results> {
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Results::new()));
    let work = || -> Result<()> {
        let folder = tempfile::tempdir()?;
        for file in files {
            std::fs::write(folder.path().join(&file.name), &file.text)?;
        }
        while let Some(mutant) = mutants.get(next.fetch_add(1, Ordering::Relaxed)) {
            let killed = try_one(tests, &files[mutant.file], mutant, folder.path())?;
            let mut results = results.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let (all, dead) = results.entry(mutant.mutation.kind).or_default();
            *all += 1;
            *dead += usize::from(killed);
        }
        Ok(())
    };
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|_| bail!("a thread panicked")))
    })?;
    Ok(results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
}

fn name_of(file: &Path) -> &str {
    file.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// The kernel that a line of PTX begins, if it does.
fn entry(line: &str) -> Option<&str> {
    line.split_once(".entry ").map(|(_, name)| name.trim_end_matches('('))
}

fn kernels(ptx: &str) -> Vec<String> {
    ptx.lines().filter_map(entry).map(str::to_owned).collect()
}

/// `count` mutants: a kind is drawn, then a place, so that rare kinds aren't drowned.
fn chosen(files: &[Source], count: usize, seed: u64) -> Vec<Mutant> {
    let mut kinds: BTreeMap<&str, Vec<Mutant>> = BTreeMap::new();
    for (file, Source { text, .. }) in files.iter().enumerate() {
        let mut kernel = "";
        let of_line: Vec<&str> = text
            .lines()
            .map(|line| {
                kernel = entry(line).unwrap_or(kernel);
                kernel
            })
            .collect();
        for mutation in mutate::all(text) {
            let kernel = of_line[mutation.line].to_owned();
            kinds.entry(mutation.kind).or_default().push(Mutant { file, kernel, mutation });
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
    chosen
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
fn try_one(tests: &Tests, file: &Source, mutant: &Mutant, folder: &Path) -> Result<bool> {
    let mut lines: Vec<&str> = file.text.lines().collect();
    let before = lines[mutant.mutation.line];
    lines[mutant.mutation.line] = &mutant.mutation.text;
    let place = folder.join(&file.name);
    std::fs::write(&place, lines.join("\n") + "\n")?;
    let killed = tests.notice(&mutant.kernel, folder)?;
    if !killed {
        println!("survived: {}", mutant.describe(&file.name, before));
    }
    std::fs::write(place, &file.text)?;
    Ok(killed)
}
