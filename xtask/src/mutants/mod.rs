//! `cargo xtask mutants [COUNT] [SEED]`: kernels made wrong one line at a time, each of which the kernels' tests must notice.
//! What survives changes nothing, or is a test that is missing; the task lists it and fails only if a whole kind of mistake
//! goes unnoticed more often than not, or if a kernel has no test at all.
//!
//! `cargo xtask mutants --again FILE` tries those once more that FILE, the output of an earlier run, lists as survivors: whether
//! a new test notices them. Lines of PTX that have changed since are no survivors any more.
//!
//! A mutant is tried on the tests that launch its kernel, the fastest first, until one fails; as many mutants at a time as
//! there are processors.

mod mutate;
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail, ensure};

use crate::root;
use mutate::Mutation;
use tests::Tests;

/// How the line of a survivor begins.
const SURVIVED: &str = "survived: ";

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
    let mut files = Vec::new();
    for entry in std::fs::read_dir(root().join("kernels/ptx"))? {
        let path = entry?.path();
        files.push(Source { name: name_of(&path).to_owned(), text: std::fs::read_to_string(&path)? });
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    let chosen = match arguments {
        [word, file] if word == "--again" => again(&files, &std::fs::read_to_string(file)?)?,
        _ => {
            let number = |at: usize, otherwise: u64| match arguments.get(at) {
                None => Ok(otherwise),
                Some(text) => text.parse().with_context(|| format!("{text} is no number")),
            };
            chosen(&files, number(0, 300)? as usize, number(1, 1)?)
        }
    };
    let tests = Tests::find()?;
    for file in &files {
        for kernel in kernels(&file.text) {
            ensure!(tests.of(&kernel).next().is_some(), "no test launches {kernel}");
        }
    }
    println!("{} tests launch the kernels of {} files; {} mutants", tests.len(), files.len(), chosen.len());
    let Results { kinds, files, .. } = all(&tests, &files, &chosen)?;
    table("file", &files);
    table("kind of mistake", &kinds);
    let drawn = !arguments.iter().any(|word| word == "--again");
    if let Some((kind, _)) = kinds.iter().find(|(_, (all, dead))| drawn && dead * 2 < *all) {
        bail!("most mistakes of the kind `{kind}` went unnoticed");
    }
    Ok(())
}

/// By name: how many there were, and how many were noticed.
type Counts<'a> = BTreeMap<&'a str, (usize, usize)>;

#[derive(Default)]
struct Results<'a> {
    tried: usize,
    kinds: Counts<'a>,
    files: Counts<'a>,
}

fn table(title: &str, counts: &Counts) {
    println!("\n{title:20} noticed");
    for (name, (all, dead)) in counts {
        println!("{name:20} {dead:4} of {all}");
    }
    let (all, dead) = counts.values().fold((0, 0), |sum, (all, dead)| (sum.0 + all, sum.1 + dead));
    println!("{:20} {dead:4} of {all}", "all");
}

/// Tries all mutants, on as many threads as there are processors, each with a copy of the PTX.
fn all<'a>(tests: &Tests, files: &'a [Source], mutants: &[Mutant]) -> Result<Results<'a>> {
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Results::default()));
    let work = || -> Result<()> {
        let folder = tempfile::tempdir()?;
        for file in files {
            std::fs::write(folder.path().join(&file.name), &file.text)?;
        }
        while let Some(mutant) = mutants.get(next.fetch_add(1, Ordering::Relaxed)) {
            let killed = try_one(tests, &files[mutant.file], mutant, folder.path())?;
            let mut results = results.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            results.tried += 1;
            if results.tried % 20 == 0 {
                println!("tried {} of {}", results.tried, mutants.len());
            }
            let Results { kinds, files: of_files, .. } = &mut *results;
            for counts in
                [kinds.entry(mutant.mutation.kind).or_default(), of_files.entry(&files[mutant.file].name).or_default()]
            {
                counts.0 += 1;
                counts.1 += usize::from(killed);
            }
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

/// All mutants of all files.
fn possible(files: &[Source]) -> Vec<Mutant> {
    let mut found = Vec::new();
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
            found.push(Mutant { file, kernel: of_line[mutation.line].to_owned(), mutation });
        }
    }
    found
}

/// `count` mutants: a kind is drawn, then a file, then a place, so that neither rare kinds nor short files are drowned.
fn chosen(files: &[Source], count: usize, seed: u64) -> Vec<Mutant> {
    let mut kinds: BTreeMap<&str, BTreeMap<usize, Vec<Mutant>>> = BTreeMap::new();
    for mutant in possible(files) {
        kinds.entry(mutant.mutation.kind).or_default().entry(mutant.file).or_default().push(mutant);
    }
    let lists = |files: BTreeMap<usize, Vec<Mutant>>| files.into_values().collect::<Vec<_>>();
    let mut kinds: Vec<_> = kinds.into_values().map(lists).collect();
    let (mut state, mut chosen) = (seed, Vec::new());
    while chosen.len() < count && !kinds.is_empty() {
        let kind = below(&mut state, kinds.len());
        let file = below(&mut state, kinds[kind].len());
        let places = &mut kinds[kind][file];
        chosen.push(places.swap_remove(below(&mut state, places.len())));
        if places.is_empty() {
            kinds[kind].swap_remove(file);
        }
        if kinds[kind].is_empty() {
            kinds.swap_remove(kind);
        }
    }
    chosen
}

/// The mutants that an earlier run's output lists as survivors.
fn again(files: &[Source], told: &str) -> Result<Vec<Mutant>> {
    let listed: BTreeSet<&str> = told.lines().filter_map(|line| line.trim().strip_prefix(SURVIVED)).collect();
    let mut found = possible(files);
    found.retain(|mutant| {
        let Source { name, text } = &files[mutant.file];
        let before = text.lines().nth(mutant.mutation.line).unwrap_or_default();
        listed.contains(mutant.describe(name, before).as_str())
    });
    ensure!(!found.is_empty(), "no line of that file says `{SURVIVED}` of a mutant of today's PTX");
    Ok(found)
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
        println!("{SURVIVED}{}", mutant.describe(&file.name, before));
    }
    std::fs::write(place, &file.text)?;
    Ok(killed)
}
