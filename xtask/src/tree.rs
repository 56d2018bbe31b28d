//! The tree in the README names every file, and no file that isn't there.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{output, root};

/// Files that are in the tree of no README: what every crate has, and what tools read.
const LEFT_OUT: &[&str] = &["Cargo.toml", "Cargo.lock", "clippy.toml", "rustfmt.toml", "LICENSE", "README.md"];

/// Compares the README's tree with what git tracks.
pub(crate) fn check(_: &[String]) -> Result<()> {
    let readme = std::fs::read_to_string(root().join("README.md")).context("reading README.md")?;
    let listed = output(Command::new("git").args(["ls-files", "-z"]).current_dir(root()))?;
    let files = std::str::from_utf8(&listed)?.split('\0').filter(|name| !name.is_empty());
    // What is deleted in the working tree is about to be no file.
    let files: Vec<&str> = files.filter(|name| root().join(name).exists()).collect();
    let tree = Tree::parse(&readme)?;
    let faults = tree.faults(&files);
    if !faults.is_empty() {
        bail!("README.md, \"The tree\":\n  {}", faults.join("\n  "));
    }
    println!("{} entries of the README's tree stand for {} files", tree.entries.len(), files.len());
    Ok(())
}

/// Paths of the tree, folders with a slash at the end, and whether an entry has others inside it.
struct Tree {
    entries: BTreeMap<String, bool>,
}

impl Tree {
    /// Reads the indented block below the heading "The tree": two spaces a level.
    fn parse(readme: &str) -> Result<Self> {
        let block = readme.split("\n## The tree\n").nth(1).and_then(|rest| rest.split("```").nth(1));
        let block = block.context("README.md has no block of text below \"The tree\"")?;
        let mut entries = BTreeMap::new();
        let mut above: Vec<String> = Vec::new();
        for line in block.lines().skip(1).filter(|line| !line.trim().is_empty()) {
            let level = (line.len() - line.trim_start().len()) / 2;
            let name = line.split_whitespace().next().unwrap_or_default();
            above.truncate(level);
            if above.len() < level {
                bail!("README.md, \"The tree\": `{name}` is indented below nothing");
            }
            let path = above.concat() + name;
            for parent in (1..=above.len()).map(|n| above[..n].concat()) {
                entries.insert(parent, true);
            }
            if name.ends_with('/') {
                above.push(name.to_owned());
            }
            entries.entry(path).or_insert(false);
        }
        Ok(Self { entries })
    }

    fn faults(&self, files: &[&str]) -> Vec<String> {
        let mut faults: Vec<String> =
            files.iter().filter(|file| !self.stands_for(file)).map(|file| format!("{file} is missing")).collect();
        let mut known: BTreeSet<String> = files.iter().map(|file| (*file).to_owned()).collect();
        known.extend(files.iter().flat_map(|file| folders(file)));
        let gone = self.entries.keys().filter(|entry| !known.contains(*entry));
        faults.extend(gone.map(|entry| format!("{entry} is no file or folder")));
        faults
    }

    /// A file is named itself, or the innermost listed folder around it is told of as a whole.
    fn stands_for(&self, file: &str) -> bool {
        let name = file.rsplit('/').next().unwrap_or(file);
        let around = folders(file).filter_map(|folder| self.entries.get(&folder)).next();
        LEFT_OUT.contains(&name)
            || file.starts_with('.')
            || self.entries.contains_key(file)
            || around.is_some_and(|has_entries| !has_entries)
    }
}

/// The folders around a file, the innermost first, each with a slash at its end.
fn folders(file: &str) -> impl Iterator<Item = String> + '_ {
    file.rmatch_indices('/').map(|(at, _)| file[..=at].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const README: &str =
        "# x\n## The tree\n\n```text\na/    things\n  b.rs  one\n  c/\n    d.rs  two\n  e/    many\nf.md  text\n```\n";

    #[test]
    fn what_is_missing_and_what_is_gone_is_told() {
        let tree = Tree::parse(README).expect("a tree");
        let whole = ["a/b.rs", "a/c/d.rs", "a/e/1", "a/e/deep/2", "f.md", "a/Cargo.toml", ".ci/run"];
        assert_eq!(tree.faults(&whole), Vec::<String>::new());
        assert_eq!(tree.faults(&[&whole[..], &["a/c/new.rs"]].concat()), ["a/c/new.rs is missing"]);
        assert_eq!(tree.faults(&[&whole[..], &["g/h.rs"]].concat()), ["g/h.rs is missing"]);
        assert_eq!(tree.faults(&whole[1..]), ["a/b.rs is no file or folder"]);
    }

    #[test]
    fn an_entry_below_nothing_is_told() {
        assert!(Tree::parse("\n## The tree\n```text\na/\n    b.rs\n```").is_err());
        assert!(Tree::parse("nothing").is_err());
    }
}
