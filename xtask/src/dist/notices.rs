//! The licence texts of everything that is linked into the program, as most of them ask for.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};

use crate::{cargo, licences, output};

/// One text for the target: each licence file once, headed by the crates that it came with.
pub(super) fn collect(triple: &str) -> Result<Vec<u8>> {
    let linked = linked(triple)?;
    let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut out = String::from("This program contains the following works, each under the licence it states.\n\n");
    for package in licences::packages()? {
        let text = |key: &str| package[key].as_str().unwrap_or_default();
        let name = format!("{} {}", text("name"), text("version"));
        if !linked.contains(&name) {
            continue;
        }
        // A crate of ours may hold the work of others, whose licence then lies in its folder.
        if !package["source"].is_null() {
            writeln!(out, "{name}: {} {}", text("license"), text("repository"))?;
        }
        let folder = Path::new(text("manifest_path")).parent().context("a manifest without a folder")?;
        for licence in files(folder)? {
            texts.entry(licence).or_default().insert(name.clone());
        }
    }
    for (licence, names) in &texts {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        write!(out, "\n{}\n{}\n\n{licence}\n", "-".repeat(80), names.join(", "))?;
    }
    Ok(out.into_bytes())
}

/// `name version` of every crate that is linked in, tests and build scripts left out.
fn linked(triple: &str) -> Result<BTreeSet<String>> {
    let arguments = ["tree", "--locked", "--package", "ferrotune", "--edges", "normal", "--prefix", "none"];
    let tree = output(cargo(&arguments).args(["--target", triple, "--format", "{p}"]))?;
    let tree = String::from_utf8(tree)?;
    let words = |line: &str| {
        let mut words = line.split_whitespace();
        Some(format!("{} {}", words.next()?, words.next()?.strip_prefix('v')?))
    };
    Ok(tree.lines().filter_map(words).collect())
}

/// The licence files of a crate, trimmed.
fn files(folder: &Path) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_uppercase();
        let is_licence =
            ["LICENSE", "LICENCE", "COPYING", "NOTICE", "UNLICENSE"].iter().any(|start| name.starts_with(start));
        if is_licence && path.is_file() {
            let bytes = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            texts.push(String::from_utf8_lossy(&bytes).trim().to_owned());
        }
    }
    Ok(texts)
}
