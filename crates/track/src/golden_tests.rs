//! The files of one small run, byte by byte against those that the trackers' own packages make of it: `fixtures/trackers/make.py`.

use std::fs;
use std::path::{Path, PathBuf};

use ferrotune_data::clock::Moment;
use serde_json::{Value, json};

use crate::journal::records;
use crate::memory::Memory;
use crate::run::{Ending, Lengths, Run, Sample};
use crate::settings::{Swanlab, Wandb};
use crate::{Tracker, swanlab, tensorboard, wandb};

const START: f64 = 1_700_000_000.0;
const WANDB: [u8; 7] = *b":W&B\xe1\xbe\x00";
const SWANLAB: [u8; 7] = *b":SWL\xd6\xe1\x02";

fn fixture(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/trackers").join(name)).unwrap()
}

fn run(output: &Path, done: u64) -> Run {
    let map = |value: Value| value.as_object().cloned().unwrap_or_default();
    Run {
        output: output.to_path_buf(),
        recipe: map(json!({ "learning_rate": 0.5, "dataset": ["a", "b"] })),
        model: map(json!({ "hidden_size": 64 })),
        parameters: 100,
        trainable: 10,
        done,
        host: "box".into(),
        user: "me".into(),
        process: 7,
        now: Moment { unix_seconds: 1_700_000_000 },
    }
}

fn row(tracker: &mut dyn Tracker, after: f64, step: u64, values: &[(&str, f64)]) {
    let values: Vec<_> = values.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
    tracker.row(START + after, step, &values).unwrap();
}

fn tell(tracker: &mut dyn Tracker) {
    tracker.lengths(START + 0.5, &Lengths::of([3, 5, 3].into_iter()).unwrap()).unwrap();
    row(tracker, 1.25, 1, &[("loss", 2.5), ("learning_rate", 0.5), ("epoch", 0.5)]);
    row(tracker, 2.0, 2, &[("eval_loss", 1.5), ("epoch", 1.0)]);
    row(tracker, 3.0, 2, &[("train_loss", 2.0), ("train_runtime", 3.5), ("epoch", 1.0)]);
    tracker.samples(START + 3.5, 2, &[Sample { prompt: "p".into(), answer: "a".into() }]).unwrap();
    tracker.end(START + 4.0, &Ending::Finished).unwrap();
}

/// The one file below `folder` with this ending.
fn only(folder: &Path, ending: &str) -> PathBuf {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|own| own == ending) {
                found.push(path);
            }
        }
    }
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

fn of_wandb(folder: &Path) -> Wandb {
    let (id, tags) = (Some("abcd1234".into()), vec!["t".into()]);
    Wandb { folder: folder.to_path_buf(), project: "p".into(), name: "first".into(), id, tags, ..Wandb::default() }
}

fn of_swanlab(folder: &Path) -> Swanlab {
    let (id, tags) = (Some("abcd1234".into()), vec!["t".into()]);
    Swanlab { folder: folder.join("log"), project: "p".into(), name: "first".into(), id, tags, ..Swanlab::default() }
}

#[test]
fn event_files_are_tensorboard_s() {
    let folder = tempfile::tempdir().unwrap();
    let mut events = tensorboard::tests::create(folder.path(), START);
    tell(&mut events);
    let written = fs::read(only(folder.path(), "0")).unwrap();
    assert!(written == fixture("events.tfevents"), "{}", String::from_utf8_lossy(&written));
}

#[test]
fn journals_are_wandb_s() {
    let folder = tempfile::tempdir().unwrap();
    let run = run(folder.path(), 0);
    let mut tracker = wandb::open(&of_wandb(folder.path()), &run, &Memory::open(folder.path(), 0)).unwrap();
    tell(&mut *tracker);
    let path = only(folder.path(), "wandb");
    assert!(path.ends_with("wandb/offline-run-20231114_221320-abcd1234/run-abcd1234.wandb"), "{}", path.display());
    let (written, golden) = (fs::read(&path).unwrap(), fixture("run.wandb"));
    for (n, (ours, theirs)) in records(&written, WANDB).zip(records(&golden, WANDB)).enumerate() {
        assert!(
            ours == theirs,
            "record {n}:\n{}\n{}",
            String::from_utf8_lossy(&ours),
            String::from_utf8_lossy(&theirs)
        );
    }
    assert!(written == golden);
    let tables = path.parent().unwrap().join("files/media/table");
    let table = fs::read_to_string(only(&tables, "json")).unwrap();
    assert_eq!(table, r#"{"columns":["step","prompt","answer"],"data":[[2,"p","a"]]}"#);
}

#[test]
fn journals_are_swanlab_s() {
    let folder = tempfile::tempdir().unwrap();
    let run = run(folder.path(), 0);
    let mut tracker = swanlab::open(&of_swanlab(folder.path()), &run, &Memory::open(folder.path(), 0)).unwrap();
    tell(&mut *tracker);
    let (written, golden) = (fs::read(only(folder.path(), "swanlab")).unwrap(), fixture("run.swanlab"));
    let mut ours: Vec<_> = records(&written, SWANLAB).collect();
    let saved: Vec<_> = ours.drain(1..3).collect();
    for (record, file) in saved.iter().zip(["files/config.yaml", "files/swanlab-metadata.json"]) {
        let path = only(folder.path(), "swanlab").parent().unwrap().join(file);
        let name = path.to_string_lossy().into_owned();
        assert!(String::from_utf8_lossy(record).contains(&name) && path.exists(), "{name}");
    }
    let theirs: Vec<_> = records(&golden, SWANLAB).collect();
    for (n, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        assert!(ours == theirs, "record {n}:\n{}\n{}", String::from_utf8_lossy(ours), String::from_utf8_lossy(theirs));
    }
    assert_eq!(ours.len(), theirs.len());
}

/// A run that was killed after its third row, and goes on after its first step.
#[test]
fn a_run_that_goes_on_has_one_history() {
    for (ident, ending) in [(WANDB, "wandb"), (SWANLAB, "swanlab")] {
        let folder = tempfile::tempdir().unwrap();
        let open = |done| {
            let (run, memory) = (run(folder.path(), done), Memory::open(folder.path(), done));
            match ending {
                "wandb" => wandb::open(&of_wandb(folder.path()), &run, &memory),
                _ => swanlab::open(&of_swanlab(folder.path()), &run, &memory),
            }
        };
        let mut whole = open(0).unwrap();
        row(&mut *whole, 1.0, 1, &[("loss", 3.0)]);
        row(&mut *whole, 2.0, 2, &[("loss", 2.0)]);
        whole.end(START + 3.0, &Ending::Finished).unwrap();
        drop(whole);
        let path = only(folder.path(), ending);
        let expected = fs::read(&path).unwrap();

        // The same, but for a step that was made twice, an end in between, and a torn record.
        fs::remove_file(&path).unwrap();
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
        let mut killed = open(0).unwrap();
        row(&mut *killed, 1.0, 1, &[("loss", 3.0)]);
        row(&mut *killed, 1.5, 2, &[("loss", 9.0)]);
        row(&mut *killed, 1.75, 3, &[("loss", 9.0)]);
        killed.end(START + 1.75, &Ending::Interrupted).unwrap();
        drop(killed);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        let mut resumed = open(1).unwrap();
        row(&mut *resumed, 2.0, 2, &[("loss", 2.0)]);
        resumed.end(START + 3.0, &Ending::Finished).unwrap();
        let found = fs::read(only(folder.path(), ending)).unwrap();
        for (n, (ours, theirs)) in records(&found, ident).zip(records(&expected, ident)).enumerate() {
            let text = String::from_utf8_lossy;
            assert!(ours == theirs, "{ending} {n}:\n{}\n{}", text(&ours), text(&theirs));
        }
        assert!(found == expected, "{ending}");
    }
}
