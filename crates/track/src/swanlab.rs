//! The folder of an offline run of SwanLab, which `swanlab sync` uploads.
//!
//! `swanlog/run-DATE-ID/run-ID.swanlab` is a journal of protobuf `Record`s (SwanLab 0.10's `record.proto`), `files/config.yaml`
//! the configuration, `media` what records name. Names are those of transformers' callback. A run that goes on goes on with
//! its file.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::journal::Journal;
use crate::memory::Memory;
use crate::protobuf::{Message, field, number};
use crate::run::{Ending, Lengths, Run, Sample};
use crate::settings::Swanlab;
use crate::{SINGLE, Tracker, ids, slashed};

/// `:SWL`, the lower half of the CRC-32 of "SwanLab", and version 2.
const IDENT: [u8; 7] = *b":SWL\xd6\xe1\x02";

/// Fields of `Record`.
mod of_record {
    pub(super) const NUMBER: u64 = 1;
    pub(super) const TIME: u64 = 2;
    pub(super) const START: u64 = 10;
    pub(super) const FINISH: u64 = 11;
    pub(super) const COLUMN: u64 = 12;
    pub(super) const SCALAR: u64 = 13;
    pub(super) const MEDIA: u64 = 14;
    pub(super) const SAVE: u64 = 20;
}
/// Records of these kinds have a number of their own; all others are counted.
mod numbered {
    pub(super) const START: i64 = -1;
    pub(super) const FINISH: i64 = -2;
    pub(super) const CONFIG: i64 = -3;
    pub(super) const METADATA: i64 = -4;
}
/// `ColumnClass.CUSTOM`.
const CUSTOM: u64 = 1;
/// `ColumnType`.
const SCALAR: u64 = 1;
const TEXT: u64 = 4;
/// `SectionType.PUBLIC`.
const PUBLIC: u64 = 3;
/// `SaveType`.
const CONFIG: u64 = 1;
const METADATA: u64 = 2;
/// `RunState`.
const FINISHED: u64 = 1;
const CRASHED: u64 = 2;
const ABORTED: u64 = 3;

/// Which run it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Place {
    folder: PathBuf,
    id: String,
}

/// An offline run.
#[derive(Debug)]
struct OfflineRun {
    place: Place,
    journal: Journal,
    records: i64,
    /// Columns that the file has.
    columns: BTreeSet<String>,
}

/// Begins a run, or goes on with the one of the earlier session.
pub(crate) fn open(settings: &Swanlab, run: &Run, memory: &Memory) -> Result<Box<dyn Tracker>> {
    let earlier = memory.recall::<Place>("swanlab").filter(|place| place.journal().exists());
    let this = match earlier.filter(|place| settings.id.as_ref().is_none_or(|id| *id == place.id)) {
        Some(place) => OfflineRun::go_on(place, run.done)?,
        None => OfflineRun::begin(settings, run)?,
    };
    memory.keep("swanlab", &this.place)?;
    Ok(Box::new(this))
}

impl Place {
    fn journal(&self) -> PathBuf {
        self.folder.join(format!("run-{}.swanlab", self.id))
    }
}

impl OfflineRun {
    fn begin(settings: &Swanlab, run: &Run) -> Result<Self> {
        let id = settings.id.clone().unwrap_or_else(ids::short);
        let folder = settings.folder.join(format!("run-{}-{id}", run.now.format("%Y%m%d_%H%M%S")));
        for part in ["files", "media/text"] {
            let part = folder.join(part);
            fs::create_dir_all(&part).map_err(Error::io("create", &part))?;
        }
        // Records name files by where they are, and the folder may be relative.
        let folder = folder.canonicalize().map_err(Error::io("find", &folder))?;
        let time = run.now.unix_seconds as f64;
        let place = Place { folder, id };
        let journal = Journal::create(place.journal(), IDENT)?;
        let mut this = Self { place, journal, records: 0, columns: BTreeSet::new() };
        let id = this.place.id.clone();
        this.record(numbered::START, time, of_record::START, |start| {
            start.text(1, &settings.project);
            start.text(2, &settings.workspace);
            start.text(4, &settings.name);
            start.text(5, &settings.description);
            settings.tags.iter().for_each(|tag| start.text(6, tag));
            start.text(10, &id);
            start.timestamp(12, time);
        })?;
        this.save((numbered::CONFIG, CONFIG), "config", "config.yaml", (time, config(run)))?;
        let metadata = json!({ "_version": 2, "runtime": { "hostname": run.host, "pid": run.process }, "swanlab": {
            "version": concat!("ferrotune ", env!("CARGO_PKG_VERSION")), "run_dir": this.place.folder } });
        this.save((numbered::METADATA, METADATA), "metadata", "swanlab-metadata.json", (time, metadata.to_string()))?;
        Ok(this)
    }

    /// Keeps what earlier sessions wrote up to `done`, but for their ends.
    fn go_on(place: Place, done: u64) -> Result<Self> {
        let (mut columns, mut counted) = (BTreeSet::new(), 0);
        let keep = |record: &[u8]| {
            let row = field(record, of_record::SCALAR).or_else(|| field(record, of_record::MEDIA));
            // `uint64` or not: a step that is left out is 0.
            let is_beyond = row.is_some_and(|row| number(row, 2).unwrap_or(0) > done);
            let is_kept = !is_beyond && field(record, of_record::FINISH).is_none();
            if is_kept && let Some(key) = field(record, of_record::COLUMN).and_then(|column| field(column, 3)) {
                columns.insert(String::from_utf8_lossy(key).into_owned());
            }
            let own = number(record, of_record::NUMBER).unwrap_or(0).cast_signed();
            counted = if is_kept { counted.max(own) } else { counted };
            is_kept
        };
        let (journal, _) = Journal::resume(place.journal(), IDENT, keep)?;
        Ok(Self { place, journal, records: counted, columns })
    }

    fn record(&mut self, number: i64, time: f64, kind: u64, fill: impl FnOnce(&mut Message)) -> Result<()> {
        self.journal.append(&Message::build(|record| {
            record.signed(of_record::NUMBER, number);
            record.timestamp(of_record::TIME, time);
            record.message(kind, fill);
        }))
    }

    fn counted(&mut self, time: f64, kind: u64, fill: impl FnOnce(&mut Message)) -> Result<()> {
        self.records += 1;
        self.record(self.records, time, kind, fill)
    }

    /// Writes one of the run's files, and a record of it.
    fn save(&mut self, (number, kind): (i64, u64), name: &str, file: &str, (time, text): (f64, String)) -> Result<()> {
        let path = self.place.folder.join("files").join(file);
        fs::write(&path, text).map_err(Error::io("write", &path))?;
        self.record(number, time, of_record::SAVE, |save| {
            save.text(1, name);
            save.text(2, &path.to_string_lossy());
            save.integer(5, kind);
        })
    }

    /// Says once what a column is.
    fn column(&mut self, time: f64, key: &str, kind: u64) -> Result<()> {
        if !self.columns.insert(key.to_owned()) {
            return Ok(());
        }
        let section = key.split_once('/').map_or("", |(section, _)| section);
        self.counted(time, of_record::COLUMN, |column| {
            column.integer(1, CUSTOM);
            column.integer(2, kind);
            column.text(3, key);
            column.text(5, section);
            column.integer(6, PUBLIC);
        })
    }

    fn scalar(&mut self, time: f64, step: u64, key: &str, value: f64) -> Result<()> {
        self.column(time, key, SCALAR)?;
        self.counted(time, of_record::SCALAR, |scalar| {
            scalar.text(1, key);
            scalar.integer(2, step);
            scalar.integer(3, SCALAR);
            scalar.timestamp(4, time);
            scalar.message(5, |of| of.double(1, value));
        })
    }

    fn text(&mut self, time: f64, step: u64, key: &str, text: &str) -> Result<()> {
        self.column(time, key, TEXT)?;
        let sha: String = Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect();
        let name = format!("{step:03}-{}.txt", &sha[..8]);
        let path = self.place.folder.join("media/text").join(&name);
        fs::write(&path, text).map_err(Error::io("write", &path))?;
        self.counted(time, of_record::MEDIA, |media| {
            media.text(1, key);
            media.integer(2, step);
            media.integer(3, TEXT);
            media.timestamp(4, time);
            media.message(5, |value| {
                value.message(1, |item| {
                    item.text(1, &name);
                    item.text(2, &sha);
                    item.integer(3, text.len() as u64);
                });
            });
        })
    }
}

/// `config.yaml`: of each setting its value and its place. JSON is YAML.
fn config(run: &Run) -> String {
    let mut settings = run.settings();
    settings.insert("model_num_parameters".into(), run.parameters.into());
    settings.insert("model_num_trainable_parameters".into(), run.trainable.into());
    let mut out = String::new();
    for (place, (key, value)) in settings.iter().enumerate() {
        let key = Value::from(key.as_str());
        // Writing to a String can't fail.
        let _ = writeln!(out, "{key}:\n  desc: ''\n  sort: {place}\n  value: {value}");
    }
    out
}

impl Tracker for OfflineRun {
    fn place(&self) -> String {
        let folder = self.journal.path().parent().unwrap_or(Path::new("."));
        format!("offline; `swanlab sync {}` uploads the run", folder.display())
    }

    fn row(&mut self, time: f64, step: u64, values: &[(String, f64)]) -> Result<()> {
        for (name, value) in values {
            let is_single = SINGLE.contains(&name.as_str());
            let key = if is_single { format!("single_value/{name}") } else { slashed(name) };
            self.scalar(time, step, &key, *value)?;
        }
        self.scalar(time, step, "train/global_step", step as f64)
    }

    fn samples(&mut self, time: f64, step: u64, samples: &[Sample]) -> Result<()> {
        for (number, Sample { prompt, answer }) in (1..).zip(samples) {
            self.text(time, step, &format!("samples/{number}"), &format!("{prompt}\n\n{answer}"))?;
        }
        Ok(())
    }

    fn lengths(&mut self, time: f64, lengths: &Lengths) -> Result<()> {
        let ranges = lengths.borders.windows(2).zip(&lengths.counts);
        let lines = ranges.map(|(border, count)| format!("{:.0} to {:.0}: {count}\n", border[0], border[1]));
        self.text(time, 0, "data/row_lengths", &lines.collect::<String>())
    }

    fn end(&mut self, time: f64, ending: &Ending) -> Result<()> {
        self.record(numbered::FINISH, time, of_record::FINISH, |finish| {
            finish.integer(
                1,
                match ending {
                    Ending::Finished => FINISHED,
                    Ending::Interrupted => ABORTED,
                    Ending::Failed(_) => CRASHED,
                },
            );
            if let Ending::Failed(reason) = ending {
                finish.text(2, reason);
            }
            finish.timestamp(3, time);
        })
    }
}
