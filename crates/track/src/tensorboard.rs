//! Event files that TensorBoard shows, with the tags that transformers writes.
//!
//! An event file is a sequence of records: length, masked CRC of the length, a protobuf `Event`, masked CRC of that
//! (TensorFlow's `record_writer.cc`). The messages are `Event` (`event.proto`), `Summary`, `HistogramProto` and
//! `SummaryMetadata` (`summary.proto`), `TensorProto` (`tensor.proto`).

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::memory::Memory;
use crate::protobuf::Message;
use crate::run::{Ending, Lengths, Run, Sample};
use crate::settings::TensorBoard;
use crate::{Tracker, slashed};

/// The version of the format, in the first record of every file.
const VERSION: &str = "brain.Event:2";
/// `SessionLog.SessionStatus.START`.
const START: u64 = 1;
/// `DataType.DT_STRING`.
const DT_STRING: u64 = 7;

/// Begins an event file, in the folder of the run if it goes on.
pub(crate) fn open(settings: &TensorBoard, run: &Run, memory: &Memory) -> Result<Box<dyn Tracker>> {
    let new = || run.output.join("runs").join(format!("{}_{}", run.now.format("%b%d_%H-%M-%S"), plain(&run.host)));
    let folder = settings.folder.clone().or_else(|| memory.recall("tensorboard")).unwrap_or_else(new);
    let time = run.now.unix_seconds as f64;
    let resumed = (run.done > 0).then_some(run.done);
    let mut events = EventFile::create(&folder, (&run.host, run.process), time, resumed)?;
    let json = |settings: &Map<String, Value>| format!("{:#}", Value::Object(settings.clone()));
    if resumed.is_none() {
        events.text("args", &json(&run.recipe), (time, 0))?;
        events.text("model_config", &json(&run.model), (time, 0))?;
    }
    memory.keep("tensorboard", &folder)?;
    Ok(Box::new(events))
}

/// An open event file.
#[derive(Debug)]
struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Begins an event file in `folder`. A run that goes on after `resumed` steps makes TensorBoard forget what earlier
    /// files say of later ones.
    fn create(folder: &Path, (host, process): (&str, u32), time: f64, resumed: Option<u64>) -> Result<Self> {
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let stem = format!("events.out.tfevents.{:010}.{}.{process}", time as u64, plain(host));
        let (path, file) = create_new(folder, &stem)?;
        let mut events = Self { path, file };
        let step = resumed.map_or(0, |done| done + 1);
        events.record(&event((time, step), |event| event.text(3, VERSION)))?;
        if resumed.is_some() {
            events.record(&event((time, step), |event| event.message(7, |log| log.integer(1, START))))?;
        }
        Ok(events)
    }

    /// Adds a text; TensorBoard shows it as Markdown.
    fn text(&mut self, name: &str, text: &str, when: (f64, u64)) -> Result<()> {
        self.values(when, |summary| {
            summary.message(1, |value| {
                value.text(1, &format!("{name}/text_summary"));
                value.message(8, |tensor| {
                    tensor.integer(1, DT_STRING);
                    tensor.message(2, |shape| shape.message(2, |size| size.integer(1, 1)));
                    tensor.bytes(8, text.as_bytes());
                });
                value.message(9, |metadata| metadata.message(1, |plugin| plugin.text(1, "text")));
            });
        })
    }

    fn values(&mut self, when: (f64, u64), fill: impl FnOnce(&mut Message)) -> Result<()> {
        self.record(&event(when, |event| event.message(5, fill)))
    }

    /// One write a record, so that a killed run leaves at most one torn record, at the end, which readers skip.
    fn record(&mut self, event: &[u8]) -> Result<()> {
        let length = (event.len() as u64).to_le_bytes();
        let record = [&length[..], &masked_crc(&length), event, &masked_crc(event)].concat();
        self.file.write_all(&record).map_err(Error::io("write", &self.path))
    }
}

impl Tracker for EventFile {
    fn place(&self) -> String {
        format!("tensorboard --logdir {}", self.path.parent().unwrap_or(&self.path).display())
    }

    fn row(&mut self, time: f64, step: u64, values: &[(String, f64)]) -> Result<()> {
        self.values((time, step), |summary| {
            for (name, number) in values {
                summary.message(1, |value| {
                    value.text(1, &slashed(name));
                    value.float(2, *number as f32);
                });
            }
        })
    }

    fn samples(&mut self, time: f64, step: u64, samples: &[Sample]) -> Result<()> {
        for (number, Sample { prompt, answer }) in (1..).zip(samples) {
            let quoted: String = prompt.lines().map(|line| format!("> {line}\n")).collect();
            self.text(&format!("sample_{number}"), &format!("{quoted}\n{answer}"), (time, step))?;
        }
        Ok(())
    }

    fn lengths(&mut self, time: f64, lengths: &Lengths) -> Result<()> {
        let counts: Vec<f64> = lengths.counts.iter().map(|&count| count as f64).collect();
        self.values((time, 0), |summary| {
            summary.message(1, |value| {
                value.text(1, "data/row_lengths");
                value.message(5, |histogram| {
                    histogram.double(1, lengths.min);
                    histogram.double(2, lengths.max);
                    histogram.double(3, lengths.rows() as f64);
                    histogram.double(4, lengths.sum);
                    histogram.double(5, lengths.squares);
                    histogram.doubles(6, &lengths.borders[1..]);
                    histogram.doubles(7, &counts);
                });
            });
        })
    }

    fn end(&mut self, _: f64, _: &Ending) -> Result<()> {
        self.file.sync_data().map_err(Error::io("write", &self.path))
    }
}

/// A machine's name as a part of a file's.
fn plain(host: &str) -> String {
    host.chars().map(|c| if c == '/' || c.is_control() { '_' } else { c }).collect()
}

/// Begins a file of a name that no file has yet: a process may write several within a second.
fn create_new(folder: &Path, stem: &str) -> Result<(PathBuf, File)> {
    let mut number = 0_u64;
    loop {
        let path = folder.join(format!("{stem}.{number}"));
        match File::create_new(&path) {
            Ok(file) => return Ok((path, file)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(Error::io("create", &path)(error)),
        }
    }
}

fn event((time, step): (f64, u64), fill: impl FnOnce(&mut Message)) -> Vec<u8> {
    Message::build(|event| {
        event.double(1, time);
        event.integer(2, step);
        fill(event);
    })
}

/// CRC-32C, rotated and shifted, so that a CRC of data that holds CRCs stays good.
fn masked_crc(bytes: &[u8]) -> [u8; 4] {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// CRC-32 with Castagnoli's polynomial, bit by bit: event files are short.
fn crc32c(bytes: &[u8]) -> u32 {
    let bit = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| bit(crc)))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const TIME: f64 = 1_700_000_000.5;

    fn begin(folder: &Path, resumed: Option<u64>) -> EventFile {
        EventFile::create(folder, ("box/1", 7), TIME, resumed).expect("writable")
    }

    pub(crate) fn create(folder: &Path, time: f64) -> impl Tracker {
        EventFile::create(folder, ("box", 7), time, None).expect("writable")
    }

    /// Events of a file, their CRCs checked.
    fn events(path: &Path) -> Vec<Vec<u8>> {
        let bytes = fs::read(path).expect("written");
        let (mut rest, mut events) = (&bytes[..], Vec::new());
        while !rest.is_empty() {
            let (length, after) = rest.split_at(8);
            let size = u64::from_le_bytes(length.try_into().expect("8 bytes")) as usize;
            assert_eq!(after[..4], masked_crc(length));
            assert_eq!(after[4 + size..8 + size], masked_crc(&after[4..4 + size]));
            events.push(after[4..4 + size].to_vec());
            rest = &after[8 + size..];
        }
        events
    }

    /// The check value of the CRC catalogue, and one of RFC 3720 (appendix B.4).
    #[test]
    fn crc_is_castagnoli_s() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    /// The bytes are those of TensorBoard's own protobuf classes (2.21).
    #[test]
    fn a_row_is_these_bytes() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut file = begin(&folder.path().join("new"), None);
        assert!(file.path.ends_with("new/events.out.tfevents.1700000000.box_1.7.0"));
        let row = [("grad_norm", 1.0), ("learning_rate", 5e-5), ("loss", 2.5), ("epoch", 0.5)];
        file.row(1_700_000_001.0, 300, &row.map(|(name, value)| (name.to_owned(), value))).expect("writable");
        let events = events(&file.path);
        assert_eq!(events[0], b"\x09\0\0\x20\x40\xfc\x54\xd9\x41\x1a\x0dbrain.Event:2");
        let summary = [
            &b"\x0a\x16\x0a\x0ftrain/grad_norm\x15\0\0\x80\x3f"[..],
            b"\x0a\x1a\x0a\x13train/learning_rate\x15\x17\xb7\x51\x38",
            b"\x0a\x11\x0a\x0atrain/loss\x15\0\0\x20\x40",
            b"\x0a\x12\x0a\x0btrain/epoch\x15\0\0\0\x3f",
        ]
        .concat();
        assert_eq!(events[1], [&b"\x09\0\0\x40\x40\xfc\x54\xd9\x41\x10\xac\x02\x2a\x5b"[..], &summary].concat());
        assert_eq!(events.len(), 2);
    }

    #[test]
    fn a_resumed_run_says_from_where() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = begin(folder.path(), Some(4));
        let events = events(&file.path);
        assert!(events[1].ends_with(b"\x10\x05\x3a\x02\x08\x01"), "{:?}", events[1]);
        let second = begin(folder.path(), None);
        assert!(second.path != file.path && second.path.ends_with("events.out.tfevents.1700000000.box_1.7.1"));
    }

    #[test]
    fn texts_are_tensors_of_the_text_plugin() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut file = begin(folder.path(), None);
        file.text("recipe", "stage: sft", (TIME, 0)).expect("writable");
        let expected = [
            &b"\x2a\x37\x0a\x35\x0a\x13recipe/text_summary"[..],
            b"\x42\x14\x08\x07\x12\x04\x12\x02\x08\x01\x42\x0astage: sft\x4a\x08\x0a\x06\x0a\x04text",
        ]
        .concat();
        assert_eq!(events(&file.path)[1][9..], expected);
    }

    #[test]
    fn a_folder_that_can_t_be_made_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("runs"), "").expect("writable");
        let error =
            EventFile::create(&folder.path().join("runs"), ("a", 1), TIME, None).expect_err("a file").to_string();
        assert!(error.starts_with("cannot create "), "{error}");
    }
}
