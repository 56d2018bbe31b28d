//! The datasets of a plan: found in the registry, opened, sampled, and what is learnt about each.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use ferrotune_config::plan::{DataPlan, Stage};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::convert::is_empty;
use crate::error::{DataError, nearest};
use crate::numpy::Legacy;
use crate::pyjson;
use crate::read::{FileType, Source, data_files, one_type};
use crate::registry::{DatasetEntry, Formatting, Registry};
use crate::report::{Absent, DatasetReport, Dropped, QuirkCounts, Quirks, Reject, Unmapped};

/// A dataset in use.
pub(super) struct Dataset {
    pub(super) entry: DatasetEntry,
    pub(super) for_eval: bool,
    pub(super) files: Vec<PathBuf>,
    file_type: FileType,
    sources: Vec<Source>,
    /// First row of each source, then the number of all rows.
    starts: Vec<u64>,
    /// The rows in use, if not simply the first ones.
    sampled: Option<Vec<u64>>,
    len: u64,
    report: DatasetReport,
    /// Rows already reported as dropped, in the order of the report.
    dropped: HashSet<u64>,
    dropped_rows: Vec<u64>,
    /// Rows in which a column is present, and in which it holds something.
    seen: HashMap<String, (u64, u64)>,
    /// Rows dropped up to the last [`Dataset::tally`].
    told: usize,
}

/// What is known of a dataset after some of its rows; the dropped rows are those since the tally before.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Tally {
    used: u64,
    kept: u64,
    quirks: QuirkCounts,
    seen: HashMap<String, (u64, u64)>,
    dropped: Vec<(u64, Dropped)>,
}

/// The datasets that `plan` names, training first, and what to say about it.
pub(super) fn find(plan: &DataPlan) -> Result<(Vec<Dataset>, Vec<String>), DataError> {
    let registry = Registry::open(&plan.dir)?;
    let (mut notes, mut faults) = (Vec::new(), Vec::new());
    let mut datasets: Vec<Dataset> = Vec::new();
    let train = plan.datasets.iter().map(|name| (name, false));
    for (name, for_eval) in train.chain(plan.eval_datasets.iter().map(|name| (name, true))) {
        if datasets.iter().any(|dataset| dataset.entry.name == *name && dataset.for_eval == for_eval) {
            notes.push(format!("dataset `{name}` is named twice and used once, as in LLaMA-Factory"));
            continue;
        }
        let found = registry.entry(name, plan.stage).and_then(|entry| Ok((files(plan, &entry)?, entry)));
        let ((file_type, files), mut entry) = match found {
            Ok(found) => found,
            Err(error) => {
                faults.push(error);
                continue;
            }
        };
        if file_type == FileType::Text && plan.stage == Stage::Pretrain && !entry.columns_given {
            entry.columns.prompt = Some("text".to_owned());
        }
        let report = DatasetReport {
            name: name.clone(),
            files: files.clone(),
            notes: entry.notes.clone(),
            ..DatasetReport::default()
        };
        datasets.push(Dataset {
            entry,
            for_eval,
            files,
            file_type,
            sources: Vec::new(),
            starts: vec![0],
            sampled: None,
            len: 0,
            report,
            dropped: HashSet::new(),
            dropped_rows: Vec::new(),
            seen: HashMap::new(),
            told: 0,
        });
    }
    if !faults.is_empty() {
        faults.extend(unreadable(plan, &mut datasets)?);
    }
    DataError::all(faults)?;
    Ok((datasets, notes))
}

/// What else is wrong with the datasets of a plan that can't be carried out, so that all is told at once.
fn unreadable(plan: &DataPlan, datasets: &mut [Dataset]) -> Result<Vec<DataError>, DataError> {
    let scratch =
        tempfile::tempdir().map_err(|source| DataError::CacheFolder { path: std::env::temp_dir(), source })?;
    let mut random = Legacy::new(plan.seed);
    let mut open = |dataset: &mut Dataset| dataset.open(scratch.path(), plan.max_samples, &mut random).err();
    Ok(datasets.iter_mut().filter_map(&mut open).collect())
}

/// The files of a dataset: those it names, or those that were brought here.
fn files(plan: &DataPlan, entry: &DatasetEntry) -> Result<(FileType, Vec<PathBuf>), DataError> {
    match (&entry.remote, plan.fetched.get(&entry.name)) {
        (None, _) => data_files(&entry.name, &entry.path),
        (Some(_), Some(files)) => one_type(&entry.name, &entry.path, files.clone()),
        (Some(_), None) => Err(DataError::NotFetched { dataset: entry.name.clone() }),
    }
}

impl Dataset {
    /// Finds the rows of its files, and draws those in use.
    pub(super) fn open(
        &mut self,
        scratch: &Path,
        max_samples: Option<usize>,
        random: &mut Legacy,
    ) -> Result<(), DataError> {
        let (mut rows, mut faults) = (0, Vec::new());
        for file in &self.files {
            match Source::open(file, self.file_type, scratch) {
                Ok(source) => {
                    rows += source.len() as u64;
                    self.starts.push(rows);
                    self.sources.push(source);
                }
                Err(error) => faults.push(error.of(&self.entry.name)),
            }
        }
        DataError::all(faults)?;
        if rows == 0 {
            return Err(DataError::EmptyDataset { dataset: self.entry.name.clone(), path: self.entry.path.clone() });
        }
        self.report.rows_read = rows;
        self.len = rows;
        if let Some(count) = self.entry.num_samples {
            let mut sampled = random.permutation(rows);
            sampled.truncate(count as usize);
            let missing = count - sampled.len() as u64;
            sampled.extend(random.choice(rows, missing));
            self.sampled = Some(sampled);
            self.len = count;
        }
        self.len = self.len.min(max_samples.map_or(u64::MAX, |most| most as u64));
        Ok(())
    }

    /// Rows in use.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// The row of the files that is the `nth` in use.
    pub(super) fn row(&self, nth: u64) -> u64 {
        self.sampled.as_ref().map_or(nth, |rows| rows[nth as usize])
    }

    /// Reads a row of the files; also the line at which it begins.
    pub(super) fn read(&self, row: u64) -> (Result<Value, Reject>, u64) {
        let (source, row) = self.place(row);
        (source.read(row), source.line(row))
    }

    fn place(&self, row: u64) -> (&Source, usize) {
        let source = self.starts.partition_point(|&start| start <= row) - 1;
        (&self.sources[source], (row - self.starts[source]) as usize)
    }

    /// Notes which columns a row has.
    pub(super) fn saw(&mut self, columns: &[(String, bool)]) {
        // Rows whose keys are data would fill the memory; nobody reads that many names.
        const MOST: usize = 1000;
        for (column, holds) in columns {
            if self.seen.len() < MOST && !self.seen.contains_key(column) {
                self.seen.insert(column.clone(), (0, 0));
            }
            if let Some((present, filled)) = self.seen.get_mut(column) {
                *present += 1;
                *filled += u64::from(*holds);
            }
        }
    }

    pub(super) fn used(&mut self) {
        self.report.rows_used += 1;
    }

    pub(super) fn kept(&mut self, quirks: Quirks) {
        self.report.rows_kept += 1;
        self.report.quirks.add(quirks);
    }

    /// Notes a row that is left out; a row used twice is noted once.
    pub(super) fn dropped(&mut self, row: u64, reject: Reject) -> Dropped {
        let (source, number) = self.place(row);
        let dropped = Dropped {
            file: source.path().to_path_buf(),
            line: reject.line,
            row: number as u64 + 1,
            fault: reject.fault,
            detail: reject.detail,
        };
        if self.dropped.insert(row) {
            self.dropped_rows.push(row);
            self.report.dropped.push(dropped.clone());
        }
        dropped
    }

    /// What is known so far.
    pub(super) fn tally(&mut self) -> Tally {
        let new = std::mem::replace(&mut self.told, self.report.dropped.len());
        let rows = self.dropped_rows[new..].iter().copied();
        Tally {
            used: self.report.rows_used,
            kept: self.report.rows_kept,
            quirks: self.report.quirks,
            seen: self.seen.clone(),
            dropped: rows.zip(self.report.dropped[new..].iter().cloned()).collect(),
        }
    }

    /// Takes over what another process knew.
    pub(super) fn recall(&mut self, tally: Tally) {
        self.report.rows_used = tally.used;
        self.report.rows_kept = tally.kept;
        self.report.quirks = tally.quirks;
        self.seen = tally.seen;
        for (row, dropped) in tally.dropped {
            self.dropped.insert(row);
            self.dropped_rows.push(row);
            self.report.dropped.push(dropped);
        }
        self.told = self.report.dropped.len();
    }

    /// That none of its rows can be used.
    pub(super) fn no_row_kept(&self) -> DataError {
        let name = &self.entry.name;
        DataError::NoRowKept {
            set: format!("dataset `{name}`"),
            rows: self.report.rows_used,
            reasons: reasons(&[self]),
        }
        .of(name)
    }

    pub(super) fn check_unchanged(&self) -> Result<(), DataError> {
        self.sources.iter().try_for_each(Source::check_unchanged)
    }

    pub(super) fn into_report(mut self) -> DatasetReport {
        let mapped = || self.entry.columns.read_by(self.entry.formatting);
        for (name, column) in mapped() {
            if self.entry.columns_given && !self.seen.contains_key(column) && self.report.rows_kept > 0 {
                let like = nearest(column, self.seen.keys().map(String::as_str)).map(str::to_owned);
                self.report.absent.push(Absent { key: name.to_owned(), column: column.to_owned(), like });
            }
        }
        let read: HashSet<&str> = mapped().map(|(_, column)| column).collect();
        let mut unmapped: Vec<Unmapped> = self
            .seen
            .iter()
            .filter(|(column, (_, filled))| *filled > 0 && !read.contains(column.as_str()))
            .map(|(column, (_, filled))| Unmapped { column: column.clone(), rows: *filled })
            .collect();
        unmapped.sort_by(|a, b| b.rows.cmp(&a.rows).then_with(|| a.column.cmp(&b.column)));
        self.report.columns_cure = cure(&self.entry, &unmapped);
        self.report.unmapped = unmapped;
        self.report
    }
}

/// The columns of a row, and which of them hold something; also, as `messages[].weight`, what its turns hold that no
/// format reads.
pub(super) fn columns_of(row: &Value, entry: &DatasetEntry) -> Vec<(String, bool)> {
    let Value::Object(columns) = row else { return Vec::new() };
    let mut all: Vec<_> = columns.iter().map(|(column, value)| (column.clone(), !is_empty(value))).collect();
    let messages = entry.columns.messages.as_ref().filter(|_| entry.formatting != Formatting::Alpaca);
    if let Some((column, Value::Array(turns))) = messages.and_then(|column| columns.get_key_value(column)) {
        let mut unread: Vec<&str> =
            turns.iter().filter_map(Value::as_object).flat_map(|turn| unread(turn, entry)).collect();
        unread.sort_unstable();
        unread.dedup();
        all.extend(unread.into_iter().map(|key| (format!("{column}[].{key}"), true)));
    }
    all
}

/// The keys of a turn that hold something and aren't read. Names and numbers of calls are left out: a conversation is
/// complete without them.
fn unread<'a>(turn: &'a Map<String, Value>, entry: &'a DatasetEntry) -> impl Iterator<Item = &'a str> {
    const LABELS: [&str; 3] = ["id", "name", "tool_call_id"];
    let read = |key: &str| {
        let tags = &entry.tags;
        [&tags.role_tag, &tags.content_tag].into_iter().any(|tag| tag.as_deref() == Some(key))
            || LABELS.contains(&key)
            || (entry.formatting == Formatting::OpenAi && key == "tool_calls")
    };
    turn.iter().filter(move |(key, value)| !read(key) && !is_empty(value)).map(|(key, _)| key.as_str())
}

/// The `columns` that map everything read so far and the unmapped columns named like known ones.
fn cure(entry: &DatasetEntry, unmapped: &[Unmapped]) -> Option<String> {
    let worth_mapping: &[&str] = match entry.formatting {
        Formatting::Alpaca => &["history", "system", "tools"],
        Formatting::ShareGpt | Formatting::OpenAi => &["system", "tools"],
    };
    let mut all: Map<String, Value> =
        entry.columns.read_by(entry.formatting).map(|(name, column)| (name.to_owned(), column.into())).collect();
    let before = all.len();
    for &name in worth_mapping {
        if !all.contains_key(name) && unmapped.iter().any(|unmapped| unmapped.column == name) {
            all.insert(name.to_owned(), name.into());
        }
    }
    (all.len() > before).then(|| pyjson::dumps(&Value::Object(all), None))
}

/// The fault of a set of which no row can be used: of each of its datasets, so that each has its place in the recipe.
pub(super) fn unusable(set: String, rows: u64, behind: &[&Dataset]) -> DataError {
    let without = |dataset: &&&Dataset| dataset.report.rows_used > 0 && dataset.report.rows_kept == 0;
    let empty: Vec<&Dataset> = behind.iter().filter(without).copied().collect();
    match (&empty[..], behind) {
        ([], [first, ..]) | ([_], [first]) => {
            DataError::NoRowKept { set, rows, reasons: reasons(behind) }.of(&first.entry.name)
        }
        ([], []) => DataError::NoRowKept { set, rows, reasons: String::new() },
        _ => DataError::Several(empty.into_iter().map(Dataset::no_row_kept).collect()),
    }
}

/// Why rows were dropped, a line a reason with its first place, and what the rows hold.
fn reasons(datasets: &[&Dataset]) -> String {
    const SHOWN: usize = 12;
    let mut lines = String::new();
    for dataset in datasets {
        let report = &dataset.report;
        for (fault, count) in report.faults() {
            let Some(first) = report.dropped.iter().find(|dropped| dropped.fault == fault) else { continue };
            lines += &format!("\n  {count}: {}, first at {}", first.reason(), first.place());
        }
        let mut columns: Vec<_> = dataset.seen.keys().map(|column| format!("`{column}`")).collect();
        if report.rows_kept == 0 && !columns.is_empty() {
            columns.sort();
            columns.truncate(SHOWN);
            lines += &format!("\n  the rows of `{}` have the columns {}", report.name, columns.join(", "));
        }
        for note in report.notes.iter().filter(|_| report.rows_kept == 0) {
            lines += &format!("\n  note on `{}`: {note}", report.name);
        }
    }
    lines
}
