//! Committed text names no place on a machine: such a path is either a leak or a thing that works nowhere else.

use std::path::Path;

use anyhow::{Result, bail};

use crate::{output, root};

/// First parts of such paths. They are put together here, so that this file passes its own check.
const ROOTS: &[&str] = &["work", "root", "Users", "tmp", "mnt"];

/// Reads every file that git tracks.
pub(crate) fn check(_: &[String]) -> Result<()> {
    let listed = output(std::process::Command::new("git").args(["ls-files", "-z"]).current_dir(root()))?;
    let names: Vec<&str> = std::str::from_utf8(&listed)?.split('\0').filter(|name| !name.is_empty()).collect();
    let starts = starts(root());
    let mut found = Vec::new();
    for name in &names {
        // A tracked file may be deleted in the working tree, and a binary file is no text.
        let Some(text) = std::fs::read(root().join(name)).ok().and_then(|bytes| String::from_utf8(bytes).ok()) else {
            continue;
        };
        found.extend(text.lines().enumerate().filter_map(|(at, line)| {
            let start = starts.iter().find(|start| names_place(line, start))?;
            Some(format!("{name}:{}: a path that starts with {start}", at + 1))
        }));
    }
    if !found.is_empty() {
        bail!("paths of a machine in committed text:\n  {}", found.join("\n  "));
    }
    println!("{} files name no place on a machine", names.len());
    Ok(())
}

fn starts(root: &Path) -> Vec<String> {
    let mut starts: Vec<String> = ROOTS.iter().map(|name| format!("/{name}/")).collect();
    let here = format!("{}/", root.display());
    // A checkout in `/` or `/src` would forbid too much.
    if here.len() > 8 {
        starts.push(here);
    }
    starts
}

/// Whether a path in `line` begins with `start`; the middle of a path or of an
/// address is none.
fn names_place(line: &str, start: &str) -> bool {
    line.match_indices(start).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        before.is_none_or(|c| !c.is_alphanumeric() && !"._-/~}*\\".contains(c))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_told_from_its_middle() {
        let start = format!("/{}/", "tmp");
        for place in ["{start}x", "cd {start}x", "\"{start}x\"", "=({start}"] {
            assert!(names_place(&place.replace("{start}", &start), &start), "{place}");
        }
        for other in ["a{start}x", "..{start}x", "{}{start}", "https://host{start}", "~{start}x", "/tmpfile"] {
            assert!(!names_place(&other.replace("{start}", &start), &start), "{other}");
        }
    }
}
