//! What is fed: a function a target, its first inputs, and words that mean something to it.

mod checkpoint;
mod config;
mod data;

use std::path::{Path, PathBuf};

/// A target.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    /// Takes an input and says in some words what became of it: inputs of which it says something new are kept.
    pub(crate) run: fn(&[u8]) -> String,
    /// Largest single allocation that is no finding.
    pub(crate) most_bytes: usize,
    pub(crate) words: &'static [&'static str],
    pub(crate) seeds: fn() -> Vec<Vec<u8>>,
}

impl Target {
    pub(crate) fn run(&self, input: &[u8]) -> String {
        (self.run)(input)
    }

    /// The first inputs: its own, and what was found once (`fixtures/fuzz/NAME-*`).
    pub(crate) fn seeds(&self) -> Vec<Vec<u8>> {
        let mut seeds = (self.seeds)();
        let prefix = format!("{}-", self.name);
        let mut paths: Vec<PathBuf> = std::fs::read_dir(fixtures().join("fuzz"))
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)))
            .collect();
        paths.sort();
        seeds.extend(paths.iter().filter_map(|path| std::fs::read(path).ok()));
        seeds
    }
}

/// All targets.
pub(crate) fn all() -> Vec<&'static Target> {
    data::TARGETS.iter().chain(config::TARGETS).chain(checkpoint::TARGETS).collect()
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(fixtures().join(name)).unwrap_or_default()
}
