//! Event files that TensorBoard shows, with the tags that transformers writes.
//!
//! An event file is a sequence of records: length, masked CRC of the length, a protobuf `Event`, masked CRC of that
//! (TensorFlow's `record_writer.cc`). The messages used are so few that they are written by hand: `Event`
//! (`event.proto`), `Summary` and `SummaryMetadata` (`summary.proto`), `TensorProto` (`tensor.proto`).

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use super::row::LogRow;
use crate::error::{Error, Result};

/// The version of the format, in the first record of every file.
const VERSION: &str = "brain.Event:2";
/// `SessionLog.SessionStatus.START`.
const START: u64 = 1;
/// `DataType.DT_STRING`.
const DT_STRING: u64 = 7;

/// Who writes an event file, for its name.
#[derive(Debug, Clone, Copy)]
pub struct Writer<'a> {
    /// The machine's name.
    pub host: &'a str,
    /// The process.
    pub process: u32,
    /// Seconds since 1970.
    pub time: f64,
}

/// An open event file.
#[derive(Debug)]
pub struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Begins an event file in `folder`. A run that goes on after `resumed` steps makes TensorBoard forget what earlier
    /// files say of later ones.
    ///
    /// # Errors
    /// [`Error::Io`] if folder or file can't be made.
    pub fn create(folder: &Path, writer: Writer<'_>, resumed: Option<u64>) -> Result<Self> {
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let host: String = writer.host.chars().map(|c| if c == '/' || c.is_control() { '_' } else { c }).collect();
        let stem = format!("events.out.tfevents.{:010}.{host}.{}", writer.time as u64, writer.process);
        let (path, file) = create_new(folder, &stem)?;
        let mut events = Self { path, file };
        let step = resumed.map_or(0, |done| done + 1);
        events.record(&event(writer.time, step, |event| event.bytes(3, VERSION.as_bytes())))?;
        if resumed.is_some() {
            let start = Message::build(|log| log.integer(1, START));
            events.record(&event(writer.time, step, |event| event.bytes(7, &start)))?;
        }
        Ok(events)
    }

    /// Where the file lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds the numbers of a row, each under its tag: `train/loss`, `eval/loss`, `train/epoch`. `time` is in seconds
    /// since 1970.
    ///
    /// # Errors
    /// [`Error::Io`] if the file can't be written.
    pub fn row(&mut self, row: &LogRow, time: f64) -> Result<()> {
        let numbers = row.values().chain([("epoch", row.when.epoch)]);
        let summary = Message::build(|summary| {
            for (name, number) in numbers {
                let value = Message::build(|value| {
                    value.bytes(1, tag(name).as_bytes());
                    value.float(2, number as f32);
                });
                summary.bytes(1, &value);
            }
        });
        self.record(&event(time, row.when.step, |event| event.bytes(5, &summary)))
    }

    /// Adds a text, such as the recipe; TensorBoard shows it as Markdown.
    ///
    /// # Errors
    /// [`Error::Io`] if the file can't be written.
    pub fn text(&mut self, name: &str, text: &str, time: f64) -> Result<()> {
        let plugin = Message::build(|plugin| plugin.bytes(1, b"text"));
        let metadata = Message::build(|metadata| metadata.bytes(1, &plugin));
        let one = Message::build(|size| size.integer(1, 1));
        let shape = Message::build(|shape| shape.bytes(2, &one));
        let tensor = Message::build(|tensor| {
            tensor.integer(1, DT_STRING);
            tensor.bytes(2, &shape);
            tensor.bytes(8, text.as_bytes());
        });
        let value = Message::build(|value| {
            value.bytes(1, format!("{name}/text_summary").as_bytes());
            value.bytes(8, &tensor);
            value.bytes(9, &metadata);
        });
        let summary = Message::build(|summary| summary.bytes(1, &value));
        self.record(&event(time, 0, |event| event.bytes(5, &summary)))
    }

    /// One write a record, so that a killed run leaves at most one torn record, at the end, which readers skip.
    fn record(&mut self, event: &[u8]) -> Result<()> {
        let length = (event.len() as u64).to_le_bytes();
        let record = [&length[..], &masked_crc(&length), event, &masked_crc(event)].concat();
        self.file.write_all(&record).map_err(Error::io("write", &self.path))
    }
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

/// `eval_loss` is `eval/loss`; everything else belongs to training.
fn tag(name: &str) -> String {
    match name.strip_prefix("eval_") {
        Some(name) => format!("eval/{name}"),
        None => format!("train/{name}"),
    }
}

fn event(time: f64, step: u64, fill: impl FnOnce(&mut Message)) -> Vec<u8> {
    Message::build(|event| {
        event.double(1, time);
        event.integer(2, step);
        fill(event);
    })
}

/// A protobuf message being written, <https://protobuf.dev/programming-guides/encoding>.
struct Message(Vec<u8>);

impl Message {
    fn build(fill: impl FnOnce(&mut Self)) -> Vec<u8> {
        let mut message = Self(Vec::new());
        fill(&mut message);
        message.0
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn key(&mut self, field: u64, wire_type: u64) {
        self.varint(field << 3 | wire_type);
    }

    fn integer(&mut self, field: u64, value: u64) {
        self.key(field, 0);
        self.varint(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.key(field, 1);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.key(field, 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
    }

    fn float(&mut self, field: u64, value: f32) {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
    }
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
mod tests {
    use super::*;
    use crate::report::row::When;

    const WRITER: Writer<'_> = Writer { host: "box/1", process: 7, time: 1_700_000_000.5 };

    fn row() -> LogRow {
        LogRow::step(When { step: 300, epoch: 0.5 }, 2.5, 1.0, 5e-5)
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

    /// The bytes are those of TensorBoard's own protobuf classes (2.21), which leave out a step of 0.
    #[test]
    fn a_row_is_these_bytes() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut file = EventFile::create(&folder.path().join("new"), WRITER, None).expect("writable");
        assert!(file.path().ends_with("new/events.out.tfevents.1700000000.box_1.7.0"));
        file.row(&row(), 1_700_000_001.0).expect("writable");
        let events = events(file.path());
        assert_eq!(events[0], b"\x09\0\0\x20\x40\xfc\x54\xd9\x41\x10\x00\x1a\x0dbrain.Event:2");
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
        let file = EventFile::create(folder.path(), WRITER, Some(4)).expect("writable");
        let events = events(file.path());
        assert!(events[1].ends_with(b"\x10\x05\x3a\x02\x08\x01"), "{:?}", events[1]);
        let second = EventFile::create(folder.path(), WRITER, None).expect("writable");
        assert!(second.path() != file.path() && second.path().ends_with("events.out.tfevents.1700000000.box_1.7.1"));
    }

    #[test]
    fn texts_are_tensors_of_the_text_plugin() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut file = EventFile::create(folder.path(), WRITER, None).expect("writable");
        file.text("recipe", "stage: sft", 1_700_000_000.5).expect("writable");
        let expected = [
            &b"\x10\x00\x2a\x37\x0a\x35\x0a\x13recipe/text_summary"[..],
            b"\x42\x14\x08\x07\x12\x04\x12\x02\x08\x01\x42\x0astage: sft\x4a\x08\x0a\x06\x0a\x04text",
        ]
        .concat();
        assert_eq!(events(file.path())[1][9..], expected);
    }

    #[test]
    fn a_folder_that_can_t_be_made_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("runs"), "").expect("writable");
        let error = EventFile::create(&folder.path().join("runs"), WRITER, None).expect_err("a file").to_string();
        assert!(error.starts_with("cannot create "), "{error}");
    }
}
