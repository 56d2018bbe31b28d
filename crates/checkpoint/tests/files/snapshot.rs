//! Snapshots: whole or not there, whatever happens, `kill -9` and a full disk included.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ferrotune_checkpoint::{
    Draft, Dtype, Error, FolderWriter, OutTensor, Snapshot, SnapshotState, SnapshotWriter, TensorSource,
    latest_snapshot, list_snapshots,
};
use serde_json::json;

use crate::common::Random;

/// Files that can be checked: tensors, JSON and bytes, all made of the step.
fn fill(folder: &FolderWriter, step: u64, size: usize) -> Result<(), Error> {
    let values = vec![step as f32; size];
    let tensors =
        vec![OutTensor::f32("m", [size], Dtype::F32, &values), OutTensor::bytes("flags", [2], Dtype::U8, &[1, 2])];
    folder.tensors("optimizer.safetensors", tensors)?;
    folder.json("ferrotune_state.json", &json!({"step": step}))?;
    folder.bytes("README.md", format!("step {step}").as_bytes())
}

fn check(snapshot: &Snapshot) {
    let step = snapshot.step();
    let values = snapshot.tensors("optimizer.safetensors").unwrap().read_f32("m").unwrap();
    assert!(values.iter().all(|&v| v == step as f32));
    assert_eq!(snapshot.json("ferrotune_state.json").unwrap(), json!({"step": step}));
    assert_eq!(snapshot.bytes("README.md").unwrap(), format!("step {step}").as_bytes());
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn snapshots_are_listed_by_step_and_replaced() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(latest_snapshot(&dir.path().join("none")).unwrap(), None);
    let writer = SnapshotWriter::open(dir.path()).unwrap();
    for step in [9, 10, 100, 10] {
        let path = writer.write(step, |folder| fill(folder, step, 50)).unwrap();
        check(&Snapshot::open(&path).unwrap());
    }
    let steps: Vec<_> = list_snapshots(dir.path()).unwrap().iter().map(|s| s.step).collect();
    assert_eq!(steps, [9, 10, 100]);
    let latest = latest_snapshot(dir.path()).unwrap().unwrap();
    check(&latest);
    assert_eq!(latest.step(), 100);
    assert_eq!(names(dir.path()), ["checkpoint-10", "checkpoint-100", "checkpoint-9"]);
    let inside = ["DONE", "README.md", "ferrotune_state.json", "optimizer.safetensors"];
    assert_eq!(names(latest.path()), inside);
}

#[test]
fn pruning_spares_the_newest_the_best_and_strangers() {
    let dir = tempfile::tempdir().unwrap();
    let writer = SnapshotWriter::open(dir.path()).unwrap();
    fs::create_dir(dir.path().join("checkpoint-1")).unwrap();
    for step in 2..=6 {
        writer.write(step, |folder| fill(folder, step, 5)).unwrap();
    }
    assert_eq!(writer.prune(3, &[2]).unwrap(), [3, 4]);
    assert_eq!(names(dir.path()), ["checkpoint-1", "checkpoint-2", "checkpoint-5", "checkpoint-6"]);
    assert_eq!(writer.prune(0, &[2]).unwrap(), [5]);
    assert_eq!(writer.prune(1, &[]).unwrap(), [2]);
    assert_eq!(writer.prune(1, &[]).unwrap(), Vec::<u64>::new());
    check(&latest_snapshot(dir.path()).unwrap().unwrap());
}

#[test]
fn what_is_not_whole_does_not_count() {
    let dir = tempfile::tempdir().unwrap();
    let writer = SnapshotWriter::open(dir.path()).unwrap();
    for step in 1..=5 {
        writer.write(step, |folder| fill(folder, step, 5)).unwrap();
    }
    let path = |step: u64| dir.path().join(format!("checkpoint-{step}"));
    fs::remove_file(path(2).join("DONE")).unwrap();
    fs::write(path(3).join("README.md"), "").unwrap();
    fs::remove_file(path(4).join("README.md")).unwrap();
    fs::write(path(5).join("DONE"), "{").unwrap();
    let states: Vec<_> = list_snapshots(dir.path()).unwrap().into_iter().map(|s| s.state).collect();
    assert_eq!(states[..2], [SnapshotState::Whole, SnapshotState::Unmarked]);
    assert!(states[2..].iter().all(|s| matches!(s, SnapshotState::Damaged(_))), "{states:?}");
    assert_eq!(latest_snapshot(dir.path()).unwrap().unwrap().step(), 1);
    let told = |path: PathBuf| Snapshot::open(&path).unwrap_err().to_string();
    assert!(told(path(2)).ends_with("it has no DONE, so another program wrote it or it was not copied whole"));
    assert!(told(path(3)).ends_with("README.md has 0 bytes instead of 6"));
    assert!(told(path(4)).ends_with("README.md is missing"));
    assert!(told(path(9)).ends_with("there is no such folder"));
    assert!(told(dir.path().into()).ends_with("expected a folder named checkpoint-N"));
}

#[test]
fn a_failed_save_leaves_everything_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let writer = SnapshotWriter::open(dir.path()).unwrap();
    writer.write(1, |folder| fill(folder, 1, 5)).unwrap();
    for step in [1, 2] {
        let failed = writer.write(step, |folder| {
            fill(folder, 77, 5)?;
            Err(Error::Unwritable { path: "x".into(), reason: "no".into() })
        });
        assert_eq!(failed.unwrap_err().to_string(), "cannot write x: no");
        assert_eq!(names(dir.path()), ["checkpoint-1"]);
        check(&latest_snapshot(dir.path()).unwrap().unwrap());
    }
}

#[test]
fn several_write_one_draft() {
    let dir = tempfile::tempdir().unwrap();
    let writer = SnapshotWriter::open(dir.path()).unwrap();
    let parts: Vec<(String, u64)> = (0..3)
        .map(|rank| {
            let file = format!("part-{rank}");
            Draft::new(dir.path(), 4, 77).folder().unwrap().bytes(&file, &[rank; 10]).unwrap();
            (file, 10)
        })
        .collect();
    let draft = Draft::new(dir.path(), 4, 77);
    let with = |name: &str, size| [&parts[..], &[(name.to_owned(), size)]].concat();
    let told = |expected: &[(String, u64)]| writer.publish(&draft, expected).unwrap_err().to_string();
    assert!(told(&with("part-3", 10)).contains("part-3: No such file"), "{}", told(&with("part-3", 10)));
    assert!(told(&with("part-2", 11)).ends_with("its writer made it 11 bytes long, here it has 10"));
    assert_eq!(latest_snapshot(dir.path()).unwrap(), None);
    let path = writer.publish(&draft, &parts).unwrap();
    assert_eq!(Snapshot::open(&path).unwrap().bytes("part-2").unwrap(), [2; 10]);
    assert_eq!(names(dir.path()), ["checkpoint-4"]);
    let other = Draft::new(dir.path(), 4, 78);
    other.folder().unwrap();
    other.discard();
    assert_eq!(names(dir.path()), ["checkpoint-4"]);
}

/// A folder that holds 256 KiB, if this process may mount one.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"]).arg(dir.path()).stderr(Stdio::null());
        mount.status().is_ok_and(|status| status.success()).then_some(Self(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_or_read_only_disk_is_an_error_that_leaves_the_last_snapshot() {
    // Without the right to mount, `a_failed_save_leaves_everything_as_it_was` covers the same way out.
    let Some(disk) = SmallDisk::mount() else {
        eprintln!("not run: mounting a small disk needs root");
        return;
    };
    let dir = disk.0.path();
    let writer = SnapshotWriter::open(dir).unwrap();
    writer.write(1, |folder| fill(folder, 1, 20_000)).unwrap();
    let error = writer.write(2, |folder| fill(folder, 2, 60_000)).unwrap_err();
    assert!(matches!(&error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull), "{error}");
    assert!(error.to_string().contains("optimizer.safetensors"), "{error}");
    assert_eq!(names(dir), ["checkpoint-1"]);
    check(&latest_snapshot(dir).unwrap().unwrap());

    let remount = Command::new("mount").args(["-o", "remount,ro"]).arg(dir).status().unwrap();
    assert!(remount.success());
    let error = writer.write(2, |folder| fill(folder, 2, 5)).unwrap_err();
    assert!(error.to_string().starts_with("cannot create"), "{error}");
    check(&latest_snapshot(dir).unwrap().unwrap());
}

#[test]
fn two_runs_cannot_share_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let first = SnapshotWriter::open(dir.path()).unwrap();
    let error = SnapshotWriter::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("another run is writing there"), "{error}");
    drop(first);
    SnapshotWriter::open(dir.path()).unwrap();
}

#[test]
fn leftovers_are_finished_or_swept() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let make = |from: u64, to: &str| {
        let writer = SnapshotWriter::open(dir.path()).unwrap();
        writer.write(from, |folder| fill(folder, from, 5)).unwrap();
        fs::rename(at(&format!("checkpoint-{from}")), at(to)).unwrap();
    };
    // Made in this order, because every start sweeps.
    make(5, "keep-5");
    make(6, "keep-6");
    make(7, "keep-7");
    make(8, "keep-8");
    fs::rename(at("keep-5"), at("checkpoint-5.tmp-0123456789abcdef")).unwrap(); // killed before the rename
    fs::rename(at("keep-6"), at("checkpoint-6.old-0123456789abcdef")).unwrap(); // killed between two renames
    fs::rename(at("keep-7"), at("checkpoint-7.gone-0123456789abcdef")).unwrap(); // killed while removing
    fs::rename(at("keep-8"), at("checkpoint-8")).unwrap();
    fs::create_dir(at("checkpoint-9.tmp-0123456789abcdef")).unwrap(); // killed while writing
    fs::create_dir(at("checkpoint-8.old-0123456789abcdef")).unwrap(); // killed before the removal
    fs::write(at("trainer_state.json.tmp-0123456789abcdef"), "{").unwrap();
    // Not ours.
    fs::write(at("notes.tmp-mine"), "").unwrap();
    fs::create_dir(at("checkpoint-3")).unwrap();
    fs::create_dir(at("data.tmp-0123456789abcdef")).unwrap();
    drop(SnapshotWriter::open(dir.path()).unwrap());
    let expected =
        ["checkpoint-3", "checkpoint-5", "checkpoint-6", "checkpoint-8", "data.tmp-0123456789abcdef", "notes.tmp-mine"];
    assert_eq!(names(dir.path()), expected);
    for step in [5, 6, 8] {
        check(&Snapshot::open(&at(&format!("checkpoint-{step}"))).unwrap());
    }
}

/// Writes snapshots until it is killed; started by the test below, in a process of its own.
#[test]
#[ignore = "the child of killed_at_any_moment"]
fn child_that_saves() {
    let dir = PathBuf::from(std::env::var_os("SNAPSHOT_DIR").expect("SNAPSHOT_DIR"));
    let writer = SnapshotWriter::open(&dir).unwrap();
    let start = latest_snapshot(&dir).unwrap().map_or(0, |s| s.step());
    for step in start + 1.. {
        writer.write(step, |folder| fill(folder, step, 3000)).unwrap();
        // A second write of a step goes through the replacement.
        writer.write(step, |folder| fill(folder, step, 3000)).unwrap();
        writer.prune(2, &[]).unwrap();
    }
}

#[test]
fn killed_at_any_moment() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random(99);
    let newest = || list_snapshots(dir.path()).unwrap().last().map_or(0, |s| s.step);
    let unfinished = || {
        let of_a_save = |name: &String| [".tmp-", ".old-", ".gone-"].iter().any(|mark| name.contains(mark));
        names(dir.path()).iter().filter(|name| of_a_save(name)).count()
    };
    let (mut last, mut interrupted) = (0, 0);
    for round in 0..25 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "snapshot::child_that_saves", "--ignored"])
            .env("SNAPSHOT_DIR", dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while newest() <= last && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(random.below(20_000) as u64));
        child.kill().unwrap();
        child.wait().unwrap();
        interrupted += unfinished();
        drop(SnapshotWriter::open(dir.path()).unwrap());
        assert_eq!(unfinished(), 0, "round {round}");
        let found = list_snapshots(dir.path()).unwrap();
        for snapshot in &found {
            assert_eq!(snapshot.state, SnapshotState::Whole, "round {round}");
            check(&Snapshot::open(&snapshot.path).unwrap());
        }
        assert!(newest() > last, "round {round}: {last} was there, now {}", newest());
        last = newest();
    }
    assert!(interrupted > 0, "no kill met a save");
}
