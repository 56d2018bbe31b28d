//! The folder of an offline run of Weights & Biases, which `wandb sync` uploads.
//!
//! `wandb/offline-run-DATE-ID/run-ID.wandb` is a journal of protobuf `Record`s (`wandb_internal.proto`), and `files` holds what
//! they name. Names and x-axis are those of transformers' callback. A run that goes on goes on with its file, so that there is
//! one history to upload and no step in it twice.

use std::fs;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::journal::Journal;
use crate::memory::Memory;
use crate::protobuf::{Field, Message, field, fields};
use crate::run::{Ending, Lengths, Run, Sample};
use crate::settings::Wandb;
use crate::{SINGLE, Tracker, ids, slashed};

/// `:W&B`, the lower half of the CRC-32 of "Weights & Biases", and version 0.
const IDENT: [u8; 7] = *b":W&B\xe1\xbe\x00";
/// The oldest program that can read it, as W&B's own writes it.
const MIN_CONSUMER: &str = "0.70.0";
/// The x-axis.
const STEP: &str = "train/global_step";

/// Fields of `Record`.
mod of_record {
    pub(super) const NUMBER: u64 = 1;
    pub(super) const HISTORY: u64 = 2;
    pub(super) const SUMMARY: u64 = 3;
    pub(super) const CONFIG: u64 = 5;
    pub(super) const FILES: u64 = 6;
    pub(super) const METRIC: u64 = 12;
    pub(super) const RUN: u64 = 17;
    pub(super) const EXIT: u64 = 18;
    pub(super) const HEADER: u64 = 21;
    pub(super) const INFO: u64 = 200;
}
/// `value_json` of items of a configuration, a summary and a history.
const VALUE: u64 = 16;

/// Which run it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Place {
    folder: PathBuf,
    id: String,
    /// Seconds since 1970.
    start: f64,
}

/// An offline run.
#[derive(Debug)]
struct OfflineRun {
    place: Place,
    journal: Journal,
    /// Records so far.
    records: u64,
    /// Rows of the history so far.
    rows: u64,
    /// Of all sessions of the run, as a table has them.
    answers: Vec<[Value; 3]>,
}

/// Begins a run, or goes on with the one of the earlier session.
pub(crate) fn open(settings: &Wandb, run: &Run, memory: &Memory) -> Result<Box<dyn Tracker>> {
    let earlier = memory.recall::<Place>("wandb").filter(|place| place.journal().exists());
    let this = match earlier.filter(|place| settings.id.as_ref().is_none_or(|id| *id == place.id)) {
        Some(place) => OfflineRun::go_on(place, run.done)?,
        None => OfflineRun::begin(settings, run)?,
    };
    memory.keep("wandb", &this.place)?;
    Ok(Box::new(this))
}

impl Place {
    fn journal(&self) -> PathBuf {
        self.folder.join(format!("run-{}.wandb", self.id))
    }
}

impl OfflineRun {
    fn begin(settings: &Wandb, run: &Run) -> Result<Self> {
        let id = settings.id.clone().unwrap_or_else(ids::short);
        let folder =
            settings.folder.join("wandb").join(format!("offline-run-{}-{id}", run.now.format("%Y%m%d_%H%M%S")));
        let files = folder.join("files");
        fs::create_dir_all(&files).map_err(Error::io("create", &files))?;
        let place = Place { folder, id, start: run.now.unix_seconds as f64 };
        let journal = Journal::create(place.journal(), IDENT)?;
        let mut this = Self { place, journal, records: 0, rows: 0, answers: Vec::new() };
        this.record(of_record::HEADER, |header| {
            header.message(1, |version| {
                version.text(1, "ferrotune");
                version.text(2, MIN_CONSUMER);
            });
        })?;
        let (id, start) = (this.place.id.clone(), this.place.start);
        this.record(of_record::RUN, |record| {
            record.text(1, &id);
            record.text(2, &settings.entity);
            record.text(3, &settings.project);
            record.message(4, |config| item(config, 1, &["_wandb"], &json!({})));
            record.text(6, &settings.group);
            record.text(7, &settings.job_type);
            record.text(8, &settings.name);
            record.text(9, &settings.notes);
            settings.tags.iter().for_each(|tag| record.text(10, tag));
            record.text(13, &run.host);
            record.timestamp(17, start);
        })?;
        this.record(of_record::CONFIG, |config| {
            let counts = [("model/num_parameters", run.parameters), ("model/num_trainable_parameters", run.trainable)];
            run.settings().iter().for_each(|(key, value)| item(config, 1, &[key.as_str()], value));
            counts.into_iter().for_each(|(key, count)| item(config, 1, &[key], &json!(count)));
        })?;
        this.record(of_record::METRIC, |metric| {
            metric.text(1, STEP);
            metric.message(6, |options| options.integer(3, 1));
        })?;
        this.record(of_record::METRIC, |metric| {
            metric.text(2, "*");
            metric.text(4, STEP);
            metric.message(6, |options| {
                options.integer(1, 1);
                options.integer(3, 1);
            });
        })?;
        Ok(this)
    }

    /// Keeps what earlier sessions wrote up to `done`, but for their ends.
    fn go_on(place: Place, done: u64) -> Result<Self> {
        let (mut rows, mut is_beyond) = (0, false);
        let keep = |record: &[u8]| {
            if let Some(history) = field(record, of_record::HISTORY) {
                is_beyond |= step_of(history).is_some_and(|step| step > done);
                rows += u64::from(!is_beyond);
            }
            // A row's summary stands behind it.
            !is_beyond && field(record, of_record::EXIT).is_none()
        };
        let (journal, records) = Journal::resume(place.journal(), IDENT, keep)?;
        // It is another history than the one that was uploaded.
        let uploaded = place.journal().with_extension("wandb.synced");
        if uploaded.exists() {
            fs::remove_file(&uploaded).map_err(Error::io("remove", &uploaded))?;
        }
        Ok(Self { place, journal, records: records as u64, rows, answers: Vec::new() })
    }

    fn record(&mut self, kind: u64, fill: impl FnOnce(&mut Message)) -> Result<()> {
        self.records += 1;
        let (number, id) = (self.records, &self.place.id);
        self.journal.append(&Message::build(|record| {
            record.integer(of_record::NUMBER, number);
            record.message(kind, fill);
            record.message(of_record::INFO, |info| info.text(1, id));
        }))
    }

    /// Adds a row to the history, and its values to the summary.
    fn history(&mut self, time: f64, step: u64, values: &[(Vec<&str>, Value)]) -> Result<()> {
        let own = [
            (vec![STEP], json!(step)),
            (vec!["_timestamp"], json!(time)),
            (vec!["_runtime"], json!((time - self.place.start).max(0.0))),
            (vec!["_step"], json!(self.rows)),
        ];
        let row = self.rows;
        self.record(of_record::HISTORY, |history| {
            values.iter().chain(&own).for_each(|(key, value)| item(history, 1, key, value));
            history.message(2, |number| number.integer(1, row));
        })?;
        self.rows += 1;
        self.record(of_record::SUMMARY, |summary| {
            values.iter().chain(&own).for_each(|(key, value)| item(summary, 1, key, value));
        })
    }
}

/// An item of a configuration, summary or history: a key, which may lie in others, and JSON.
fn item(message: &mut Message, number: u64, key: &[&str], value: &Value) {
    message.message(number, |item| {
        match key {
            [key] => item.text(1, key),
            nested => nested.iter().for_each(|part| item.text(2, part)),
        }
        item.text(VALUE, &value.to_string());
    });
}

/// A number as W&B's programs read it: JSON, and those that it has not.
fn number(value: f64) -> Value {
    match value {
        value if value.is_nan() => json!("NaN"),
        value if value.is_infinite() => json!(if value > 0.0 { "Infinity" } else { "-Infinity" }),
        value => json!(value),
    }
}

/// The optimiser step of a row of the history.
fn step_of(history: &[u8]) -> Option<u64> {
    let items = fields(history).filter_map(|(number, field)| match field {
        Field::Bytes(item) if number == 1 => Some(item),
        _ => None,
    });
    let mut steps = items.filter(|item| field(item, 1) == Some(STEP.as_bytes()));
    serde_json::from_slice(field(steps.next()?, VALUE)?).ok()
}

impl Tracker for OfflineRun {
    fn place(&self) -> String {
        format!("offline; `wandb sync {}` uploads the run", self.place.folder.display())
    }

    fn row(&mut self, time: f64, step: u64, values: &[(String, f64)]) -> Result<()> {
        let (single, curves): (Vec<_>, Vec<_>) = values.iter().partition(|(name, _)| SINGLE.contains(&name.as_str()));
        if !single.is_empty() {
            self.record(of_record::SUMMARY, |summary| {
                single.iter().for_each(|(name, value)| item(summary, 1, &[name.as_str()], &number(*value)));
            })?;
        }
        let curves: Vec<(String, Value)> = curves.iter().map(|(name, value)| (slashed(name), number(*value))).collect();
        let curves: Vec<_> = curves.iter().map(|(name, value)| (vec![name.as_str()], value.clone())).collect();
        self.history(time, step, &curves)
    }

    fn samples(&mut self, time: f64, step: u64, samples: &[Sample]) -> Result<()> {
        self.answers.extend(samples.iter().map(|s| [step.into(), s.prompt.clone().into(), s.answer.clone().into()]));
        let table = json!({ "columns": ["step", "prompt", "answer"], "data": self.answers }).to_string();
        let sha: String = Sha256::digest(&table).iter().map(|byte| format!("{byte:02x}")).collect();
        let name = format!("media/table/samples_{}_{}.table.json", self.rows, &sha[..20]);
        let path = self.place.folder.join("files").join(&name);
        fs::create_dir_all(path.parent().unwrap_or(&path)).map_err(Error::io("create", &path))?;
        fs::write(&path, &table).map_err(Error::io("write", &path))?;
        self.record(of_record::FILES, |files| files.message(1, |file| file.text(1, &name)))?;
        let parts = [
            ("_type", json!("table-file")),
            ("path", json!(name)),
            ("sha256", json!(sha)),
            ("size", json!(table.len())),
            ("ncols", json!(3)),
            ("nrows", json!(self.answers.len())),
        ];
        self.history(time, step, &parts.map(|(part, value)| (vec!["samples", part], value)))
    }

    fn lengths(&mut self, time: f64, lengths: &Lengths) -> Result<()> {
        let parts =
            [("_type", json!("histogram")), ("bins", json!(lengths.borders)), ("values", json!(lengths.counts))];
        self.history(time, 0, &parts.map(|(part, value)| (vec!["data/row_lengths", part], value)))
    }

    fn end(&mut self, time: f64, ending: &Ending) -> Result<()> {
        let runtime = (time - self.place.start).max(0.0) as u64;
        self.record(of_record::EXIT, |exit| {
            exit.integer(1, u64::from(*ending != Ending::Finished));
            exit.integer(2, runtime);
        })
    }
}
