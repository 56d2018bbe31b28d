//! The tests of the kernels: which kernels each launches, how long it takes, and whether it notices a mutant.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::{cargo, output};

/// Longest that a test of a mutant may take; the interpreter ends endless kernels long before.
const PATIENCE: Duration = Duration::from_secs(300);
/// Tests that say something about all kernels at once, and nothing about what one computes.
const ABOUT_ALL: [&str; 2] = ["common::", "traffic::"];

struct Test {
    name: String,
    takes: Duration,
    launches: BTreeSet<String>,
}

/// All tests, the fastest first.
pub(super) struct Tests {
    program: PathBuf,
    all: Vec<Test>,
}

impl Tests {
    /// Builds the tests and runs each by itself on the committed PTX.
    pub(super) fn find() -> Result<Self> {
        let program = build()?;
        let listed = output(Command::new(&program).args(["--list", "--format", "terse"]))?;
        let mut found = Self { program, all: Vec::new() };
        let folder = tempfile::tempdir()?;
        for name in String::from_utf8(listed)?.lines().filter_map(|line| line.strip_suffix(": test")) {
            if ABOUT_ALL.iter().any(|start| name.starts_with(start)) {
                continue;
            }
            let (list, start) = (folder.path().join("launches"), Instant::now());
            std::fs::write(&list, "")?;
            let fails = found.fails(name, |test| test.env("FERROTUNE_TEST_LAUNCHES", &list))?;
            ensure!(!fails, "{name} fails as it is");
            let launches = std::fs::read_to_string(&list)?.lines().map(str::to_owned).collect();
            found.all.push(Test { name: name.to_owned(), takes: start.elapsed(), launches });
        }
        found.all.sort_by_key(|test| test.takes);
        Ok(found)
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// Names of the tests that launch a kernel.
    pub(super) fn of(&self, kernel: &str) -> impl Iterator<Item = &str> {
        self.all.iter().filter(move |test| test.launches.contains(kernel)).map(|test| test.name.as_str())
    }

    /// Whether a test of the kernel fails with the PTX in `folder`.
    pub(super) fn notice(&self, kernel: &str, folder: &Path) -> Result<bool> {
        for name in self.of(kernel) {
            if self.fails(name, |test| test.env("FERROTUNE_TEST_PTX", folder))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether the test fails, or doesn't end.
    fn fails(&self, name: &str, with: impl FnOnce(&mut Command) -> &mut Command) -> Result<bool> {
        let mut test = Command::new(&self.program);
        test.args([name, "--exact", "--quiet", "--test-threads=1"]).env("RUST_BACKTRACE", "0");
        let mut child = with(&mut test).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
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
}

/// Builds the kernels' tests and finds their program.
fn build() -> Result<PathBuf> {
    let mut build = cargo(&["test", "-p", "ferrotune-tensor", "--test", "cuda", "--no-run", "--message-format=json"]);
    let messages = output(build.stderr(Stdio::inherit()))?;
    let found = String::from_utf8(messages)?.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let named = message.get("target")?.get("name")? == "cuda";
        named.then(|| message.get("executable")?.as_str().map(PathBuf::from))?
    });
    found.context("cargo names no test program")
}
