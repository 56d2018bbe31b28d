use std::fs;
use std::path::Path;

use super::*;
use crate::report::{DatasetReport, Report};

const KEY: [u8; 32] = [7; 32];

fn row<'a>(ids: &'a [u32], labels: &'a [i32], segments: &'a [u32], source: (u32, u64)) -> Row<'a> {
    Row { input_ids: ids, labels, segments, isolated: false, source }
}

fn begin(path: &Path) -> Box<Writer<'_>> {
    match Writer::begin::<u64>(path, &KEY).unwrap() {
        Begun::Write(writer, marks) if marks.is_empty() => writer,
        _ => panic!("nothing is there yet"),
    }
}

fn write(path: &Path) -> Cached {
    let mut writer = match Writer::begin::<u64>(path, &KEY).unwrap() {
        Begun::Write(writer, _) => writer,
        Begun::There(cached) => return cached,
    };
    writer.begin_set("train", false);
    writer.push(row(&[1, 2, 3], &[-100, 2, 3], &[3], (0, 0))).unwrap();
    writer.push(row(&[4, 5], &[-100, -100], &[1, 1], (0, 2))).unwrap();
    writer.begin_set("validation", true);
    writer.push(row(&[6], &[6], &[1], (1, 9))).unwrap();
    let report =
        Report { datasets: vec![DatasetReport { name: "d".into(), ..DatasetReport::default() }], ..Report::default() };
    writer.finish(report).unwrap()
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
    let mut writer = begin(&path);
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
    let error = Writer::begin::<u64>(Path::new("no/such/folder/a.rows"), &KEY).err().unwrap().to_string();
    assert!(error.starts_with("can't write no/such/folder/a.rows: "), "{error}");
}

#[test]
fn what_killed_processes_left_is_removed_after_a_week() {
    let dir = tempfile::tempdir().unwrap();
    let leave = |name: &str, hours: u64| {
        let file = fs::File::create(dir.path().join(name)).unwrap();
        let time = std::time::SystemTime::now() - std::time::Duration::from_secs(hours * 3600);
        file.set_modified(time).unwrap();
    };
    leave(".rows-old", 24 * 7 + 1);
    leave(".rows-new", 24 * 7 - 1);
    leave("other", 24 * 7 + 1);
    write(&dir.path().join("a.rows"));
    let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, [".rows-new", "a.rows", "other"]);
}

/// A file of which two of three rows are marked, as a kill leaves it: without the lock.
fn killed(dir: &Path) -> std::path::PathBuf {
    let living = dir.join("living.rows");
    let mut writer = begin(&living);
    writer.begin_set("train", false);
    writer.push(row(&[1, 2, 3], &[-100, 2, 3], &[3], (0, 0))).unwrap();
    writer.mark(&1_u64).unwrap();
    writer.push(row(&[4, 5], &[-100, -100], &[1, 1], (0, 2))).unwrap();
    writer.mark(&2_u64).unwrap();
    writer.push(row(&[9; 300_000], &[9; 300_000], &[300_000], (0, 3))).unwrap();
    for end in ["", ".log"] {
        fs::copy(dir.join(format!(".rows-living{end}")), dir.join(format!(".rows-a{end}"))).unwrap();
    }
    dir.join("a.rows")
}

#[test]
fn a_killed_writer_is_gone_on_with_and_the_file_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let path = killed(dir.path());
    let Begun::Write(mut writer, marks) = Writer::begin::<u64>(&path, &KEY).unwrap() else { panic!("not there yet") };
    assert_eq!(marks, [1, 2]);
    writer.begin_set("train", false);
    writer.begin_set("validation", true);
    writer.push(row(&[6], &[6], &[1], (1, 9))).unwrap();
    let datasets = vec![DatasetReport { name: "d".into(), ..DatasetReport::default() }];
    let cached = writer.finish(Report { datasets, ..Report::default() }).unwrap();
    check(&cached);
    check(&open(&path, &KEY).unwrap().unwrap());
    let in_one_go = dir.path().join("b.rows");
    check(&write(&in_one_go));
    assert_eq!(fs::read(&path).unwrap(), fs::read(&in_one_go).unwrap());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "no temporary file stays");
}

#[test]
fn no_damage_of_what_a_kill_left_is_believed() {
    let marks = |change: &dyn Fn(&mut Vec<u8>, &mut Vec<u8>)| {
        let dir = tempfile::tempdir().unwrap();
        let path = killed(dir.path());
        let [data, log] = ["", ".log"].map(|end| dir.path().join(format!(".rows-a{end}")));
        let (mut bytes, mut records) = (fs::read(&data).unwrap(), fs::read(&log).unwrap());
        change(&mut bytes, &mut records);
        fs::write(&data, bytes).unwrap();
        fs::write(&log, records).unwrap();
        match Writer::begin::<u64>(&path, &KEY).unwrap() {
            Begun::Write(_, marks) => marks,
            Begun::There(_) => panic!("it isn't finished"),
        }
    };
    assert_eq!(marks(&|_, _| {}), [1, 2]);
    assert_eq!(marks(&|_, log| log.extend(b"ft mark")), [1, 2]);
    assert_eq!(marks(&|_, log| log.truncate(log.len() - 1)), [1]);
    assert!(marks(&|_, log| log[30] ^= 1).is_empty());
    let header = size_of_header();
    assert!(marks(&|data, _| data[header] ^= 1).is_empty());
    assert_eq!(marks(&|data, _| data[header + 28] ^= 1), [1]);
    assert_eq!(marks(&|data, _| data.truncate(header + 28)), [1]);
    assert!(marks(&|data, _| data.clear()).is_empty());
}

/// Bytes before the data; a word of data is 4 bytes, and the first row takes seven.
fn size_of_header() -> usize {
    file::HEADER as usize
}
