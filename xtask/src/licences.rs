//! Every dependency may be built into a program under Apache-2.0.
//!
//! The crates' own words are read (SPDX expressions, from `cargo metadata`); for each there must be a choice of
//! licences that are all on the list below. A new licence is a decision, made by adding a row here.

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{cargo, output};

/// Permissive, or without a condition. `MPL-2.0` and the GPL family are absent on purpose.
const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Checks the whole dependency graph, of all targets and of tests too.
pub(crate) fn check(_: &[String]) -> Result<()> {
    let packages = packages()?;
    let mut refused = Vec::new();
    for package in &packages {
        let name = package["name"].as_str().unwrap_or("?");
        match package["license"].as_str().map(fits) {
            Some(Ok(true)) => {}
            Some(Ok(false)) => refused.push(format!("{name}: {}", package["license"])),
            Some(Err(error)) => refused.push(format!("{name}: {error}")),
            None => refused.push(format!("{name}: states no licence")),
        }
    }
    if !refused.is_empty() {
        bail!("licences that are not on the list of xtask/src/licences.rs:\n  {}", refused.join("\n  "));
    }
    println!("{} packages have a licence that fits", packages.len());
    Ok(())
}

/// All packages of the dependency graph, as cargo describes them.
pub(crate) fn packages() -> Result<Vec<Value>> {
    let metadata = output(&mut cargo(&["metadata", "--format-version", "1", "--locked"]))?;
    let mut metadata: Value = serde_json::from_slice(&metadata).context("cargo metadata")?;
    match metadata["packages"].take() {
        Value::Array(packages) => Ok(packages),
        _ => bail!("cargo metadata lists no packages"),
    }
}

/// Whether `expression` offers a choice of allowed licences. `/` is the older spelling of `OR`.
fn fits(expression: &str) -> Result<bool> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut parser = Parser { words: &words, at: 0 };
    let fits = parser.any()?;
    match parser.next() {
        None => Ok(fits),
        Some(word) => bail!("`{expression}`: `{word}` is out of place"),
    }
}

struct Parser<'a> {
    words: &'a [&'a str],
    at: usize,
}

impl Parser<'_> {
    fn next(&mut self) -> Option<&str> {
        let word = self.words.get(self.at)?;
        self.at += 1;
        Some(word)
    }

    fn take(&mut self, word: &str) -> bool {
        let here = self.words.get(self.at) == Some(&word);
        self.at += usize::from(here);
        here
    }

    fn any(&mut self) -> Result<bool> {
        let mut fits = self.all()?;
        while self.take("OR") {
            fits |= self.all()?;
        }
        Ok(fits)
    }

    fn all(&mut self) -> Result<bool> {
        let mut fits = self.one()?;
        while self.take("AND") {
            fits &= self.one()?;
        }
        Ok(fits)
    }

    fn one(&mut self) -> Result<bool> {
        if self.take("(") {
            let fits = self.any()?;
            if !self.take(")") {
                bail!("a `(` that nothing closes");
            }
            return Ok(fits);
        }
        let mut licence = match self.next() {
            Some(word) if !["AND", "OR", "WITH", ")"].contains(&word) => word.to_owned(),
            _ => bail!("a licence is missing"),
        };
        if self.take("WITH") {
            licence = format!("{licence} WITH {}", self.next().context("an exception is missing")?);
        }
        Ok(ALLOWED.contains(&licence.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions() {
        for good in [
            "MIT",
            "MIT/GPL-3.0",
            "GPL-3.0 OR MIT",
            "(MIT OR GPL-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR GPL-2.0",
            "GPL-2.0 AND GPL-3.0 OR ISC",
        ] {
            assert!(fits(good).unwrap(), "{good}");
        }
        for bad in ["GPL-3.0", "MIT AND GPL-3.0", "GPL-2.0 WITH LLVM-exception", "(MIT OR ISC) AND MPL-2.0"] {
            assert!(!fits(bad).unwrap(), "{bad}");
        }
        for broken in ["", "MIT OR", "(MIT", "MIT)", "MIT ISC", "AND", "MIT WITH"] {
            assert!(fits(broken).is_err(), "{broken}");
        }
    }
}
