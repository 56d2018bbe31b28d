//! Everything that can end the preparation of data.
//!
//! A row that can't be used is no error: it is dropped and reported (see `report`). What stands
//! here concerns a whole file, a dataset or the run, and says what, where and how to cure it.

use std::io;
use std::path::{Path, PathBuf};

use crate::encode::EncodeError;

/// Why data can't be prepared.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file can't be opened, read or written.
    #[error("can't {action} {}: {source}", path.display())]
    Io {
        /// What was tried: `read`, `write`, `list`.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no registry in the dataset folder.
    #[error(
        "there is no {}; it maps the names in `dataset` to files, for example \
         {{\"my_data\": {{\"file_name\": \"my_data.json\"}}}}; `dataset_dir` says in which folder it lies",
        path.display()
    )]
    NoRegistry {
        /// The path tried.
        path: PathBuf,
    },
    /// The registry isn't a JSON object of entries.
    #[error("{}:{line}:{column}: {message}", path.display())]
    Registry {
        /// The registry.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Counted from 1.
        column: usize,
        /// What is wrong.
        message: String,
    },
    /// `dataset_dir` names a place on a hub.
    #[error("the registry of `dataset_dir: {dir}` was not downloaded")]
    RemoteRegistry {
        /// As written in the recipe.
        dir: String,
    },
    /// A name in `dataset` or `eval_dataset` isn't in the registry.
    #[error("dataset `{name}` is not in {}{}", registry.display(), did_you_mean(.nearest, .known))]
    UnknownDataset {
        /// As written in the recipe.
        name: String,
        /// The registry.
        registry: PathBuf,
        /// The name in the registry that looks most like it.
        nearest: Option<String>,
        /// All names in the registry.
        known: Vec<String>,
    },
    /// An entry of the registry has a value that can't be used.
    #[error("dataset `{dataset}`: `{field}` {problem}")]
    Entry {
        /// Name of the entry.
        dataset: String,
        /// The field, with its parent: `columns.prompt`.
        field: String,
        /// What is wrong and how to cure it.
        problem: String,
    },
    /// An entry's data lies where it can't be fetched from.
    #[error("dataset `{dataset}` {}", unfetched(.field, .value))]
    RemoteDataset {
        /// Name of the entry.
        dataset: String,
        /// `om_hub_url` or `script_url`.
        field: String,
        /// Its value.
        value: String,
    },
    /// A dataset that lies elsewhere was not brought here: only training and looking at data do that.
    #[error("dataset `{dataset}` was not downloaded; `ferrotune data RECIPE` does it")]
    NotFetched {
        /// Name of the entry.
        dataset: String,
    },
    /// An entry holds preference pairs, which other stages train on.
    #[error("dataset `{dataset}` has {field}, which stage {stages} trains on; this recipe is of stage {stage}")]
    WrongStage {
        /// Name of the entry.
        dataset: String,
        /// What makes it so.
        field: &'static str,
        /// The stages it is for.
        stages: &'static str,
        /// The stage of the recipe.
        stage: &'static str,
    },
    /// An entry lacks what the stage is trained on.
    #[error("dataset `{dataset}` has no `{field}`, which stage {stage} needs: {means}")]
    LacksColumn {
        /// Name of the entry.
        dataset: String,
        /// What is missing.
        field: &'static str,
        /// The stage of the recipe.
        stage: &'static str,
        /// What it says.
        means: &'static str,
    },
    /// A data file is missing.
    #[error("dataset `{dataset}`: there is no {}; `file_name` is relative to `dataset_dir`", path.display())]
    MissingFile {
        /// Name of the entry.
        dataset: String,
        /// The path tried.
        path: PathBuf,
    },
    /// A folder or a pattern gives no data file.
    #[error("dataset `{dataset}`: {} holds no data file (json, jsonl, csv, parquet, arrow, txt)", path.display())]
    NoFiles {
        /// Name of the entry.
        dataset: String,
        /// The folder or pattern tried.
        path: PathBuf,
    },
    /// A folder holds files of different types, or other folders.
    #[error(
        "dataset `{dataset}`: {} and {} are not of one type; a folder must hold data files of one type only",
        first.display(),
        second.display()
    )]
    MixedFiles {
        /// Name of the entry.
        dataset: String,
        /// A file.
        first: PathBuf,
        /// Another.
        second: PathBuf,
    },
    /// A data file of a type that isn't read.
    #[error("dataset `{dataset}`: {} is not a json, jsonl, csv, parquet, arrow or txt file{}", path.display(), .hint)]
    FileType {
        /// Name of the entry.
        dataset: String,
        /// The file.
        path: PathBuf,
        /// A cure, if one is known.
        hint: &'static str,
    },
    /// A data file that holds no rows at all because of its form.
    #[error("{}{}: {problem}", path.display(), at_line(*.line))]
    File {
        /// The file.
        path: PathBuf,
        /// Counted from 1; 0 if the whole file is meant.
        line: u64,
        /// What is wrong and how to cure it.
        problem: String,
    },
    /// What is wrong with a file, and whose it is.
    #[error("{error}")]
    Of {
        /// Name of the dataset.
        dataset: String,
        /// What is wrong.
        error: Box<DataError>,
    },
    /// Several things are wrong.
    #[error("{}", one_a_line(.0))]
    Several(Vec<DataError>),
    /// A data file was written to while it was being read.
    #[error("{} changed while it was being read; start again when it is complete", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// A row can't be used and the recipe asks to stop then (`on_bad_row: error`).
    #[error("{place}: {reason}; `on_bad_row: report` leaves such rows out and goes on")]
    BadRow {
        /// File and line, and the row's number where that says more.
        place: String,
        /// Why it can't be used.
        reason: String,
    },
    /// A dataset has no rows.
    #[error("dataset `{dataset}` is empty: {} holds no rows", path.display())]
    EmptyDataset {
        /// Name of the entry.
        dataset: String,
        /// Its file or folder.
        path: PathBuf,
    },
    /// No dataset is named at all.
    #[error("no dataset is named: set `dataset` to one or more names of `dataset_info.json`")]
    NoDataset,
    /// Not one row of a set can be used.
    #[error("not one of the {rows} rows of {set} can be used:{reasons}")]
    NoRowKept {
        /// `the training set` or the evaluation set's name.
        set: String,
        /// Rows tried.
        rows: u64,
        /// A line a reason, with count and an example.
        reasons: String,
    },
    /// Stage pt: all text together doesn't fill one block.
    #[error(
        "the text of {set} has {tokens} tokens in all, fewer than one block of `cutoff_len: {cutoff_len}`; \
         give more text or a smaller `cutoff_len`"
    )]
    NoBlock {
        /// `the training set` or the evaluation set's name.
        set: String,
        /// Tokens of all rows.
        tokens: u64,
        /// Size of a block.
        cutoff_len: usize,
    },
    /// Rows are kept, but none has a token to train on.
    #[error(
        "not one token of {set} is trained on: in all {rows} rows the answer is empty or cut off by \
         `cutoff_len: {cutoff_len}`"
    )]
    NoLabels {
        /// `the training set` or the evaluation set's name.
        set: String,
        /// Rows kept.
        rows: u64,
        /// Longest row.
        cutoff_len: usize,
    },
    /// The template alone fills a row.
    #[error(
        "`cutoff_len: {cutoff_len}` leaves no room for a row: the template alone takes {template} tokens; \
         set it to {} or more", template + 1
    )]
    CutoffTooShort {
        /// Longest row.
        cutoff_len: usize,
        /// Tokens of the template around an empty question and an empty answer.
        template: usize,
    },
    /// The validation split would leave one side empty.
    #[error("`val_size: {val_size}` of {rows} rows leaves nothing to {left}; choose a smaller one")]
    ValSize {
        /// As in the recipe.
        val_size: String,
        /// Rows to split.
        rows: u64,
        /// What for.
        left: &'static str,
    },
    /// An interleaved mix that can't end or can't start.
    #[error("`mix_strategy`: {problem}")]
    Mix {
        /// What is wrong and how to cure it.
        problem: String,
    },
    /// The folder for encoded rows can't be made or written to.
    #[error("can't write to {}, where encoded rows are kept: {source}; `tokenized_path` names another folder", path.display())]
    CacheFolder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Tokenizer or template can't be used.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The thread pool can't be made.
    #[error("can't start {workers} encoding threads: {message}")]
    Threads {
        /// Threads asked for.
        workers: usize,
        /// What the system said.
        message: String,
    },
}

impl DataError {
    /// All of `errors` as one; nothing if there are none.
    pub(crate) fn all(mut errors: Vec<DataError>) -> Result<(), Self> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Self::Several(errors)),
        }
    }

    /// The dataset it is about, as the recipe names it, if it is about one.
    pub fn dataset(&self) -> Option<&str> {
        match self {
            Self::UnknownDataset { name: dataset, .. }
            | Self::Entry { dataset, .. }
            | Self::RemoteDataset { dataset, .. }
            | Self::NotFetched { dataset }
            | Self::WrongStage { dataset, .. }
            | Self::LacksColumn { dataset, .. }
            | Self::MissingFile { dataset, .. }
            | Self::NoFiles { dataset, .. }
            | Self::MixedFiles { dataset, .. }
            | Self::FileType { dataset, .. }
            | Self::EmptyDataset { dataset, .. }
            | Self::Of { dataset, .. } => Some(dataset),
            _ => None,
        }
    }

    /// The same as a fault of a dataset's.
    pub(crate) fn of(self, dataset: &str) -> Self {
        if self.dataset().is_some() { self } else { Self::Of { dataset: dataset.to_owned(), error: Box::new(self) } }
    }

    /// Wraps what the system said about `path`.
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_path_buf(), source }
    }
}

fn one_a_line(errors: &[DataError]) -> String {
    errors
        .iter()
        .map(|error| format!("\n  {error}"))
        .fold(format!("{} things are wrong:", errors.len()), |all, one| all + &one)
}

fn unfetched(field: &str, value: &str) -> String {
    match field {
        "script_url" => format!(
            "is made by a Python script (`{field}: {value}`), which isn't run: run it yourself, save the rows, and set \
             `file_name` to the file or folder"
        ),
        _ => format!(
            "lies on a hub that isn't read (`{field}: {value}`): download it and set `file_name` to the file or folder \
             instead"
        ),
    }
}

fn at_line(line: u64) -> String {
    if line == 0 { String::new() } else { format!(":{line}") }
}

fn did_you_mean(nearest: &Option<String>, known: &[String]) -> String {
    const SHOWN: usize = 12;
    if let Some(name) = nearest {
        return format!("; did you mean `{name}`?");
    }
    if known.is_empty() {
        return ", which is empty".to_owned();
    }
    let more = if known.len() > SHOWN { ", ..." } else { "" };
    let shown: Vec<_> = known.iter().take(SHOWN).map(String::as_str).collect();
    format!("; it has {}{more}", shown.join(", "))
}

/// The candidate that looks most like `name`, if one looks like it at all.
pub(crate) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    const LIKENESS: f64 = 0.75;
    let name = name.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(&name, &candidate.to_lowercase()), candidate))
        .filter(|(likeness, _)| *likeness >= LIKENESS)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}
