//! One visit to a GPU: every test that can use one, LoRA steps of large models' shapes and of SmolLM2's real weights, and the former
//! by torch, transformers and peft as they are found there, in one go; and a record of it. The GPU may be this machine's, that of a machine that ssh reaches, or
//! one to which a folder is carried by other means:
//!
//!     cargo xtask gpu                    # here
//!     cargo xtask gpu user@machine       # builds here, runs there
//!     cargo xtask gpu --pack FOLDER      # what is to be carried, and the command that runs it
//!     cargo xtask gpu --record FOLDER    # a record of the results that came back
//!     cargo xtask gpu --paper PYTHON     # without any GPU: memory of the same steps, as planned and as peers have it
//!
//! A machine needs a driver and cublasLt, of the same kind of processor as this one; python3 with torch for the comparison. Tests
//! must pass and kernels be right before a figure counts: a failed one fails the task.

mod paper;
mod record;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{cargo, output, root};

/// What is built: cargo's arguments, the target's name, and what it is called in the folder.
const BUILT: [(&[&str], &str, &str); 4] = [
    (&["test", "--package", "ferrotune-tensor", "--test", "devices"], "devices", "test-devices"),
    (&["test", "--package", "ferrotune-train", "--test", "gpu"], "gpu", "test-gpu"),
    (&["test", "--package", "ferrotune-dist", "--test", "nccl"], "nccl", "test-nccl"),
    (&["bench", "--package", "ferrotune-train", "--bench", "gpu"], "gpu", "bench-gpu"),
];
/// What a driver of NVIDIA has on Linux, and under WSL.
const DRIVERS: [&str; 2] = ["/dev/nvidiactl", "/dev/dxg"];
const USAGE: &str = "cargo xtask gpu [HOST | --pack FOLDER | --record FOLDER | --paper PYTHON]";

/// The task.
pub(crate) fn task(arguments: &[String]) -> Result<()> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let folder = root().join("target/gpu");
    let (pack, results) = (folder.join("pack"), folder.join("results"));
    match words[..] {
        [] => {
            here(DRIVERS.iter().any(|path| Path::new(path).exists()))?;
            build(&pack)?;
            let visit = Command::new("sh").arg(pack.join("visit.sh")).arg(&results).status()?;
            keep(&results, visit.success())
        }
        ["--pack", folder] => {
            let folder = std::path::absolute(folder)?;
            build(&folder)?;
            println!(
                "{} is complete: on the machine with the GPU, `sh visit.sh RESULTS` in it; then, here,",
                folder.display()
            );
            println!("`cargo xtask gpu --record RESULTS` with what it left in that folder");
            Ok(())
        }
        ["--record", folder] => keep(Path::new(folder), true),
        ["--paper", python] => on_paper(python, &results),
        [host] if !host.starts_with('-') => {
            build(&pack)?;
            let passed = there(host, &pack, &results)?;
            keep(&results, passed)
        }
        _ => bail!("{USAGE}"),
    }
}

/// Says that there is nothing to visit before an hour of building.
fn here(driver: bool) -> Result<()> {
    if driver {
        return Ok(());
    }
    bail!(
        "there is no NVIDIA GPU on this machine ({}): nothing was run. `cargo xtask gpu HOST` runs all of it on a machine that ssh \
         reaches, `--pack FOLDER` makes a folder to carry there",
        DRIVERS.map(|path| format!("no {path}")).join(", ")
    )
}

/// The executables and scripts, in a folder that needs nothing else.
fn build(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    for (arguments, target, name) in BUILT {
        let messages =
            output(cargo(arguments).args(["--no-run", "--message-format", "json"]).stderr(Stdio::inherit()))?;
        let built = executable(&messages, target).with_context(|| format!("cargo made no executable of {target}"))?;
        carry(&built, &folder.join(name))?;
    }
    fs::write(folder.join("visit.sh"), include_str!("visit.sh"))?;
    fs::write(folder.join("peer.py"), include_str!("peer.py"))?;
    real_weights(folder)
}

/// An executable as small as it can be: debug information is most of it. Without `strip` it travels along.
fn carry(built: &Path, to: &Path) -> Result<()> {
    fs::copy(built, to).with_context(|| format!("cannot copy {}", built.display()))?;
    let _ = Command::new("strip").arg(to).status();
    Ok(())
}

/// The program, SmolLM2 and the quickstart's recipe with its data.
fn real_weights(folder: &Path) -> Result<()> {
    let program = folder.join("ferrotune");
    let built = cargo(&["build", "--release", "--package", "ferrotune", "--message-format", "json"])
        .stderr(Stdio::inherit())
        .output()?;
    let from = executable(&built.stdout, "ferrotune").context("cargo made no ferrotune")?;
    carry(&from, &program)?;
    let place = folder.join("smollm2");
    fs::create_dir_all(place.join("data"))?;
    fs::copy(root().join("examples/quickstart.yaml"), place.join("quickstart.yaml"))?;
    for entry in fs::read_dir(root().join("data"))? {
        let entry = entry?;
        // A run from here has left its encoded rows in a folder there.
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), place.join("data").join(entry.file_name()))?;
        }
    }
    if place.join("base/config.json").exists() {
        return Ok(());
    }
    let to = format!("export_dir={}", place.join("base").display());
    let model = ["model_name_or_path=smollm2-135m-instruct", "template=smollm2", "infer_dtype=bfloat16"];
    crate::run(Command::new(program).current_dir(root()).arg("export").args(model).arg(to))
}

/// The executable of a target among cargo's messages.
fn executable(messages: &[u8], target: &str) -> Option<PathBuf> {
    let lines = messages.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Value>(line).ok());
    let mut of = lines.filter(|line| line["target"]["name"] == target && line["executable"].is_string());
    of.next_back().and_then(|line| line["executable"].as_str().map(PathBuf::from))
}

/// Carries the folder to `host`, runs it there and brings the results; whether all of it passed.
fn there(host: &str, pack: &Path, results: &Path) -> Result<bool> {
    fs::create_dir_all(results)?;
    let script = "d=$(mktemp -d) && tar -xzf - -C \"$d\" && sh \"$d/visit.sh\" \"$d/results\" >&2; code=$?; \
                  tar -czf - -C \"$d/results\" . ; rm -rf \"$d\"; exit $code";
    let mut packed =
        Command::new("tar").arg("-czf").arg("-").arg("-C").arg(pack).arg(".").stdout(Stdio::piped()).spawn()?;
    let sent = packed.stdout.take().context("tar has an output")?;
    let mut ssh = Command::new("ssh").args([host, script]).stdin(sent).stdout(Stdio::piped()).spawn().context("ssh")?;
    let back = ssh.stdout.take().context("ssh has an output")?;
    let unpacked = Command::new("tar").arg("-xzf").arg("-").arg("-C").arg(results).stdin(back).status()?;
    let (packed, visit) = (packed.wait()?, ssh.wait()?);
    if !(packed.success() && unpacked.success()) {
        bail!("nothing came back from {host}");
    }
    Ok(visit.success())
}

/// Writes the record of results, and says where it is.
fn keep(results: &Path, passed: bool) -> Result<()> {
    let path = results.join("results.jsonl");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let (date, commit) = when()?;
    let record = record::of(&text, &date, &commit)?;
    let name = format!("benches/records/{date}-gpu.md");
    fs::write(root().join(&name), record.text)?;
    println!("{name}");
    if !(passed && record.passed) {
        bail!("not all of it passed: see {} and tests.log beside it", path.display());
    }
    Ok(())
}

/// Today, and the commit.
fn when() -> Result<(String, String)> {
    let line = |command: &mut Command| Ok::<_, anyhow::Error>(String::from_utf8(output(command)?)?.trim().to_owned());
    let date = line(Command::new("date").arg("+%F"))?;
    Ok((date, line(Command::new("git").args(["describe", "--always", "--dirty"]).current_dir(root()))?))
}

/// Writes the record of what is known without a GPU; `python` has torch, transformers and peft.
fn on_paper(python: &str, results: &Path) -> Result<()> {
    fs::create_dir_all(results)?;
    let path = results.join("paper.jsonl");
    // Nothing is timed, so what tests are built of does.
    let bench = ["bench", "--profile", "dev", "--package", "ferrotune-train", "--bench", "gpu", "--", "paper"];
    let ours = output(cargo(&bench).stderr(Stdio::inherit()))?;
    fs::write(&path, &ours)?;
    let peers = output(
        Command::new(python).arg(root().join("xtask/src/gpu/peer.py")).arg(&path).arg("paper").stderr(Stdio::inherit()),
    )?;
    let lines = String::from_utf8([ours, peers].concat())?;
    fs::write(&path, &lines)?;
    let (date, commit) = when()?;
    let name = format!("benches/records/{date}-gpu-paper.md");
    fs::write(root().join(&name), paper::of(&lines, &date, &commit)?)?;
    println!("{name}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_machine_without_a_gpu_is_told_at_once() {
        here(true).unwrap();
        let told = here(false).unwrap_err().to_string();
        assert!(told.contains("there is no NVIDIA GPU on this machine") && told.contains("--pack"), "{told}");
    }

    #[test]
    fn the_executable_is_the_named_targets() {
        let messages = concat!(
            "{\"target\":{\"name\":\"other\"},\"executable\":\"/a\"}\n",
            "{\"target\":{\"name\":\"gpu\"},\"executable\":null}\n",
            "{\"target\":{\"name\":\"gpu\"},\"executable\":\"/b\"}\n{\"reason\":\"build-finished\"}\n",
        );
        assert_eq!(executable(messages.as_bytes(), "gpu"), Some(PathBuf::from("/b")));
        assert_eq!(executable(messages.as_bytes(), "nccl"), None);
    }

    /// A folder whose executables are scripts.
    fn visit(bench: &str, test: &str, train: &str) -> (bool, String, String) {
        let folder = tempfile::tempdir().unwrap();
        let script = |name: &str, body: &str| {
            let path = folder.path().join(name);
            fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        };
        script("bench-gpu", bench);
        BUILT[..3].iter().for_each(|(_, _, name)| script(name, test));
        fs::write(folder.path().join("visit.sh"), include_str!("visit.sh")).unwrap();
        fs::write(folder.path().join("peer.py"), "raise SystemExit('not in this test')").unwrap();
        fs::create_dir(folder.path().join("smollm2")).unwrap();
        script("ferrotune", train);
        let results = folder.path().join("results");
        let mut command = Command::new("sh");
        // Without a python3 that may have torch.
        command.arg(folder.path().join("visit.sh")).arg("results").current_dir(&folder).env("PATH", "/usr/bin:/bin");
        let told = command.output().unwrap();
        let read = |name: &str| fs::read_to_string(results.join(name)).unwrap_or_default();
        (told.status.success(), read("results.jsonl"), String::from_utf8_lossy(&told.stderr).into_owned())
    }

    #[test]
    fn a_visit_ends_without_a_gpu_and_fails_with_a_failed_test() {
        let none = "echo 'error: there is no NVIDIA GPU on this machine' >&2; exit 1";
        let (passed, results, told) = visit(none, "exit 0", "exit 0");
        assert!(!passed && results.is_empty() && told.contains("no NVIDIA GPU"), "{results} {told}");
        let gpu = "echo \"{\\\"who\\\":\\\"bench\\\",\\\"args\\\":\\\"$*\\\"}\"";
        let train = "[ $1 = doctor ] && exit; for word; do case $word in output_dir=*) d=${word#*=};; use_cpu=*) u=${word#*=};; esac; done
            mkdir -p $d; echo \"{\\\"loss\\\":2.5,\\\"cpu\\\":$u}\" >$d/trainer_log.jsonl";
        let (passed, results, told) = visit(gpu, "test \"$FERROTUNE_TEST_GPU\" = 1", train);
        assert!(passed, "{results} {told}");
        assert!(results.contains("\"args\":\"probe\"") && results.contains("\"args\":\"\""), "{results}");
        assert_eq!(results.matches("\"passed\":true").count(), 3, "{results}");
        for (device, cpu) in [("gpu", false), ("cpu", true)] {
            let row =
                format!("{{\"who\":\"smollm2\",\"device\":\"{device}\",\"row\":{{\"loss\":2.5,\"cpu\":{cpu}}}}}\n");
            assert!(results.contains(&row), "{row} in {results}");
        }
        assert!(!visit(gpu, "exit 0", "exit 1").0, "a failed run");
        let (passed, results, _) = visit(gpu, "exit 7", train);
        assert!(!passed);
        assert_eq!(results.matches("\"passed\":false").count(), 3, "{results}");
    }
}
