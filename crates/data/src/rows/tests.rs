use std::fs;
use std::path::Path;

use super::*;
use crate::report::{DatasetReport, Report};

const KEY: [u8; 32] = [7; 32];

fn row<'a>(ids: &'a [u32], labels: &'a [i32], segments: &'a [u32], source: (u32, u64)) -> Row<'a> {
    Row { input_ids: ids, labels, segments, isolated: false, source }
}

fn write(path: &Path) -> Cached {
    let mut writer = Writer::new(path).unwrap();
    writer.begin_set("train", false);
    writer.push(row(&[1, 2, 3], &[-100, 2, 3], &[3], (0, 0))).unwrap();
    writer.push(row(&[4, 5], &[-100, -100], &[1, 1], (0, 2))).unwrap();
    writer.begin_set("validation", true);
    writer.push(row(&[6], &[6], &[1], (1, 9))).unwrap();
    let report =
        Report { datasets: vec![DatasetReport { name: "d".into(), ..DatasetReport::default() }], ..Report::default() };
    writer.finish(&KEY, report).unwrap()
}

fn check(cached: &Cached) {
    assert_eq!(cached.report.datasets[0].name, "d");
    let [(train_name, train), (validation_name, validation)] = &cached.sets[..] else { panic!("two sets") };
    assert_eq!((train_name.as_str(), validation_name.as_str()), ("train", "validation"));
    assert_eq!((train.len(), train.tokens(), train.label_tokens(), train.max_len()), (2, 5, 2, 3));
    assert_eq!(train.get(0), row(&[1, 2, 3], &[-100, 2, 3], &[3], (0, 0)));
    assert_eq!(train.get(1), row(&[4, 5], &[-100, -100], &[1, 1], (0, 2)));
    assert_eq!(train.size(0), (3, 2));
    assert_eq!((train.largest_id(), validation.largest_id()), (5, 6));
    assert_eq!(validation.get(0), Row { isolated: true, ..row(&[6], &[6], &[1], (1, 9)) });
    assert_eq!(train.iter().len(), 2);
}

#[test]
fn what_is_written_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.rows");
    assert!(open(&path, &KEY).unwrap().is_none());
    check(&write(&path));
    check(&open(&path, &KEY).unwrap().unwrap());
    assert!(open(&path, &[8; 32]).unwrap().is_none(), "another key");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
}

#[test]
fn an_unfinished_file_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.rows");
    let mut writer = Writer::new(&path).unwrap();
    writer.begin_set("train", false);
    writer.push(row(&[1], &[1], &[1], (0, 0))).unwrap();
    drop(writer);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn every_flipped_byte_and_every_truncation_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.rows");
    drop(write(&path));
    let whole = fs::read(&path).unwrap();
    let mut number = 0;
    let mut found_out = |bytes: &[u8]| {
        // A new name each time: overwriting a file waits for the disk.
        number += 1;
        let path = dir.path().join(number.to_string());
        fs::write(&path, bytes).unwrap();
        let opened = open(&path, &KEY).unwrap();
        fs::remove_file(&path).unwrap();
        opened.is_none()
    };
    for position in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[position] ^= 1 << (position % 8);
        assert!(found_out(&bytes), "byte {position} of {}", whole.len());
    }
    for len in 0..whole.len() {
        assert!(found_out(&whole[..len]), "{len} of {} bytes", whole.len());
    }
    assert!(found_out(&[whole.as_slice(), b"x"].concat()), "a byte too many");
    assert!(!found_out(&whole));
}

#[test]
fn writers_of_the_same_file_do_not_disturb_readers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.rows");
    let before = write(&path);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..5).for_each(|_| check(&write(&path))));
        }
    });
    check(&before);
    check(&open(&path, &KEY).unwrap().unwrap());
}

#[test]
fn a_missing_folder_is_an_error_with_its_path() {
    let error = Writer::new(Path::new("no/such/folder/a.rows")).unwrap_err().to_string();
    assert!(error.starts_with("can't write no/such/folder/a.rows: "), "{error}");
}

#[test]
fn what_killed_processes_left_is_removed_after_a_day() {
    let dir = tempfile::tempdir().unwrap();
    let leave = |name: &str, hours: u64| {
        let file = fs::File::create(dir.path().join(name)).unwrap();
        let time = std::time::SystemTime::now() - std::time::Duration::from_secs(hours * 3600);
        file.set_modified(time).unwrap();
    };
    leave(".rows-old", 25);
    leave(".rows-new", 1);
    leave("other", 25);
    write(&dir.path().join("a.rows"));
    let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, [".rows-new", "a.rows", "other"]);
}
