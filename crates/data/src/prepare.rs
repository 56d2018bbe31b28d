//! From a plan to encoded rows on disk.
//!
//! Registry, readers, converter, mix, split, encoder, packing: in the order in which LLaMA-Factory
//! does it, because sampling, mixing and splitting count rows before any is dropped. Everything up
//! to the encoder works on row numbers; rows are read, converted and encoded a few thousand at a
//! time on all cores, written in order, and forgotten.

mod datasets;
mod early;
mod encode;
mod key;
mod look;
mod view;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ferrotune_config::plan::{BadRows, DataPlan, Mix, Packing, Stage};

pub use early::{Coming, begin, follow};
pub use look::look;
pub use view::{JsonLine, Sequence, Span, json_lines, sequences, spans};

use crate::clock::Moment;
use crate::conversation::Conversation;
use crate::convert::Converter;
use crate::digest::Digest;
use crate::error::DataError;
use crate::mix::{Place, mix};
use crate::numpy::Legacy;
use crate::registry::{Registry, Remote};
use crate::report::{Report, SetReport};
use crate::rows::{self, Growing, Rows};
use crate::split::{hold_out, split};
use crate::stream;
use crate::template::{Template, TemplateOptions};
use crate::tokenizer::Tokenizer;
use datasets::Dataset;
use encode::{Mark, SetEncoder};

/// Who is told how far the preparation is.
pub trait Progress: Sync {
    /// Rows of a set are being encoded: `done` of `total`. Called from one thread, with `done` rising.
    fn encoding(&self, set: &str, done: u64, total: u64);
}

/// Nobody.
impl Progress for () {
    fn encoding(&self, _set: &str, _done: u64, _total: u64) {}
}

/// What a run trains and evaluates on.
#[derive(Debug)]
pub struct Prepared {
    /// Training rows; nothing if the plan names only evaluation sets.
    pub train: Option<Rows>,
    /// Evaluation sets: `validation`, or one a dataset under its name.
    pub eval: Vec<(String, Rows)>,
    /// What happened to the data.
    pub report: Report,
    /// The template that the rows are written in, also for generating.
    pub template: Template,
    /// Tokens that the template added to the vocabulary; the embedding must have room for them.
    pub new_tokens: Vec<String>,
    /// The file that holds the rows.
    pub cache: PathBuf,
    /// Whether it was there already.
    pub from_cache: bool,
    /// Training rows are still being encoded; until then the report knows of nothing but notes.
    pub coming: Option<Coming>,
}

/// Name of the training set.
pub const TRAIN: &str = "train";
/// Name of the evaluation set if there is one.
pub const VALIDATION: &str = "validation";
/// Folder of encoded rows inside the dataset folder, unless the plan names another.
pub const CACHE: &str = ".ferrotune-cache";

/// Reads and encodes what `plan` names, or finds it in the cache. `tokenizer` gets the special
/// tokens that the template needs.
///
/// # Errors
/// See [`DataError`]; a row that can't be used is none, unless the plan says so.
pub fn prepare(plan: &DataPlan, tokenizer: &mut Tokenizer, observer: &dyn Progress) -> Result<Prepared, DataError> {
    prepare_on(Moment::now(), plan, tokenizer, observer)
}

/// [`prepare`] on another day, for templates that write the date. Rows in the cache keep theirs.
///
/// # Errors
/// As [`prepare`].
pub fn prepare_on(
    now: Moment,
    plan: &DataPlan,
    tokenizer: &mut Tokenizer,
    observer: &dyn Progress,
) -> Result<Prepared, DataError> {
    let Start { work, datasets, notes, new_tokens, found } = Start::of(now, plan, tokenizer)?;
    let from_cache = found.is_some();
    let cached = match found {
        Some(cached) => cached,
        None => work.pool.install(|| work.run(observer, None).encode(datasets, notes))?,
    };
    Ok(prepared(work, new_tokens, cached, from_cache))
}

/// What an encoding needs, owned, so that a thread can take it along.
struct Work {
    plan: DataPlan,
    tokenizer: Tokenizer,
    template: Template,
    key: Digest,
    path: PathBuf,
    pool: rayon::ThreadPool,
}

/// Everything before the encoding.
struct Start {
    work: Work,
    datasets: Vec<Dataset>,
    notes: Vec<String>,
    new_tokens: Vec<String>,
    found: Option<rows::Cached>,
}

impl Start {
    fn of(now: Moment, plan: &DataPlan, tokenizer: &mut Tokenizer) -> Result<Self, DataError> {
        if plan.datasets.is_empty() && plan.eval_datasets.is_empty() {
            return Err(DataError::NoDataset);
        }
        let (datasets, mut notes) = datasets::find(plan)?;
        tokenizer.set_split_special_tokens(plan.split_special_tokens);
        let resolved = Template::resolve(&TemplateOptions::from_plan(plan, now), tokenizer)?;
        notes.extend(resolved.notes);
        let folder = plan.cache_dir.clone().unwrap_or_else(|| plan.dir.join(CACHE));
        let pool = thread_pool(plan.workers)?;
        let key = pool.install(|| key::of(key::RULES, plan, &datasets, tokenizer, &resolved.template))?;
        let path = folder.join(key::file_name(&key));
        let found = if plan.overwrite_cache { None } else { pool.install(|| rows::open(&path, &key))? };
        if found.is_none() {
            make_folder(&folder)?;
        }
        let (plan, tokenizer, template) = (plan.clone(), tokenizer.clone(), resolved.template);
        let work = Work { plan, tokenizer, template, key, path, pool };
        Ok(Self { work, datasets, notes, new_tokens: resolved.new_tokens, found })
    }
}

impl Work {
    fn run<'a>(&'a self, observer: &'a dyn Progress, readers: Option<Arc<Growing>>) -> Run<'a> {
        let Self { plan, tokenizer, template, key, path, .. } = self;
        Run { plan, tokenizer, template, observer, key, path, readers }
    }
}

fn prepared(work: Work, new_tokens: Vec<String>, cached: rows::Cached, from_cache: bool) -> Prepared {
    let mut sets = cached.sets;
    let train = sets.iter().position(|(name, _)| name == TRAIN).map(|at| sets.remove(at).1);
    Prepared {
        train,
        eval: sets,
        report: cached.report,
        template: work.template,
        new_tokens,
        cache: work.path,
        from_cache,
        coming: None,
    }
}

/// About `count` conversations of the training sets, spread over their rows; those that can't be used are left out.
///
/// # Errors
/// As [`prepare`], but for faults of rows.
pub fn conversations(plan: &DataPlan, count: usize) -> Result<Vec<Conversation>, DataError> {
    let (datasets, _) = datasets::find(plan)?;
    let scratch = tempfile::tempdir().map_err(|source| DataError::CacheFolder { path: PathBuf::from("."), source })?;
    let mut random = Legacy::new(plan.seed);
    let mut found = Vec::new();
    let mut training: Vec<Dataset> = datasets.into_iter().filter(|dataset| !dataset.for_eval).collect();
    let share = count.div_ceil(training.len().max(1)) as u64;
    for dataset in &mut training {
        dataset.open(scratch.path(), plan.max_samples, &mut random)?;
        let step = (dataset.len() / share.max(1)).max(1);
        let usable = (0..dataset.len()).step_by(usize::try_from(step).unwrap_or(usize::MAX)).filter_map(|nth| {
            let (value, line) = dataset.read(dataset.row(nth));
            Converter::new(&dataset.entry).conversation(&value.ok()?, line).ok().map(|(conversation, _)| conversation)
        });
        found.extend(usable.take(usize::try_from(share).unwrap_or(usize::MAX)));
    }
    found.truncate(count);
    Ok(found)
}

/// The conversations that rows of a plan come from, by their [`Row::source`](crate::rows::Row::source); nothing for one that can't be used.
///
/// # Errors
/// As [`prepare`], but for faults of rows.
pub fn conversations_at(plan: &DataPlan, sources: &[(u32, u64)]) -> Result<Vec<Option<Conversation>>, DataError> {
    let (mut datasets, _) = datasets::find(plan)?;
    let scratch = tempfile::tempdir().map_err(|source| DataError::CacheFolder { path: PathBuf::from("."), source })?;
    let mut random = Legacy::new(plan.seed);
    for dataset in &mut datasets {
        dataset.open(scratch.path(), plan.max_samples, &mut random)?;
    }
    let read = |&(dataset, row): &(u32, u64)| {
        let dataset = datasets.get(dataset as usize)?;
        let (value, line) = dataset.read(row);
        Converter::new(&dataset.entry).conversation(&value.ok()?, line).ok().map(|(conversation, _)| conversation)
    };
    Ok(sources.iter().map(read).collect())
}

/// What can be said of a plan's names before any row is read: the key and what is wrong with its value, all at once.
pub fn check_names(plan: &DataPlan) -> Vec<(&'static str, DataError)> {
    let lists = [("dataset", &plan.datasets), ("eval_dataset", &plan.eval_datasets)];
    let names: Vec<_> = lists.iter().flat_map(|(key, names)| names.iter().map(move |name| (*key, name))).collect();
    if names.is_empty() {
        return Vec::new();
    }
    match Registry::open(&plan.dir) {
        Err(error) => vec![("dataset_dir", error)],
        Ok(registry) => {
            let wrong = |(key, name): (&'static str, &String)| Some((key, registry.entry(name, plan.stage).err()?));
            names.into_iter().filter_map(wrong).collect()
        }
    }
}

/// The datasets of a plan that don't lie on this machine. Faults of names are left to [`check_names`].
pub fn remote(plan: &DataPlan) -> Vec<(String, Remote)> {
    let Ok(registry) = Registry::open(&plan.dir) else { return Vec::new() };
    let names = plan.datasets.iter().chain(&plan.eval_datasets);
    let entries = names.filter_map(|name| registry.entry(name, plan.stage).ok());
    entries.filter_map(|entry| Some((entry.name, entry.remote?))).collect()
}

fn thread_pool(workers: Option<usize>) -> Result<rayon::ThreadPool, DataError> {
    let workers = workers.unwrap_or(0);
    rayon::ThreadPoolBuilder::new()
        .num_threads(workers)
        .build()
        .map_err(|error| DataError::Threads { workers, message: error.to_string() })
}

fn make_folder(folder: &Path) -> Result<(), DataError> {
    let failed = |source| DataError::CacheFolder { path: folder.to_path_buf(), source };
    fs::create_dir_all(folder).map_err(failed)?;
    // Found out now rather than after an hour of encoding.
    tempfile::tempfile_in(folder).map(drop).map_err(failed)?;
    let ignore = folder.join(".gitignore");
    if folder.ends_with(CACHE) && !ignore.exists() {
        // A dataset folder is often under version control, encoded rows never should be.
        fs::write(ignore, "*\n").map_err(failed)?;
    }
    Ok(())
}

/// What one encoding needs.
struct Run<'a> {
    plan: &'a DataPlan,
    tokenizer: &'a Tokenizer,
    template: &'a Template,
    observer: &'a dyn Progress,
    key: &'a Digest,
    path: &'a Path,
    /// Who reads training rows while they are written.
    readers: Option<Arc<Growing>>,
}

/// Rows of a set, not yet read.
struct Set {
    name: String,
    places: Vec<Place>,
}

impl Run<'_> {
    fn encode(&self, mut datasets: Vec<Dataset>, mut notes: Vec<String>) -> Result<rows::Cached, DataError> {
        let mut faults = Vec::new();
        match encode::check_cutoff(self.plan, self.tokenizer, self.template) {
            Ok(note) => notes.extend(note),
            Err(error) => faults.push(error),
        }
        let scratch = self.path.parent().unwrap_or(Path::new("."));
        let mut random = Legacy::new(self.plan.seed);
        for dataset in &mut datasets {
            faults.extend(dataset.open(scratch, self.plan.max_samples, &mut random).err());
        }
        DataError::all(faults)?;
        let sets = self.sets(&datasets)?;
        let (mut writer, marks) = match rows::Writer::begin(self.path, self.key)? {
            rows::Begun::There(cached) => return Ok(cached),
            rows::Begun::Write(writer, marks) => (writer, marks),
        };
        if let Some(readers) = &self.readers {
            writer.publish_to(Arc::clone(readers))?;
        }
        let mut report = Report { notes, ..Report::default() };
        let mut marks = marks.into_iter().peekable();
        for (number, set) in sets.iter().enumerate() {
            let apart = matches!(self.plan.stage, Stage::Pairwise | Stage::Feedback);
            writer.begin_set(&set.name, apart || self.plan.packing == Packing::Neat);
            if let (Some(readers), TRAIN) = (&self.readers, set.name.as_str()) {
                writer.settle()?;
                readers.settle(writer.sets());
            }
            let from = resume(number, set, &mut marks, &mut datasets);
            let encoder = SetEncoder::new(self.plan, self.tokenizer, self.template);
            let outcome = encoder.encode(&set.places, from, &mut datasets, &mut writer, self.observer)?;
            self.check_set(&outcome, &datasets)?;
            report.sets.push(outcome);
        }
        for dataset in &datasets {
            dataset.check_unchanged()?;
        }
        report.sets.sort_by_key(|set| set.name != TRAIN);
        report.datasets = datasets.into_iter().map(Dataset::into_report).collect();
        writer.finish(report)
    }

    /// Which rows stand in which set, in order.
    fn sets(&self, datasets: &[Dataset]) -> Result<Vec<Set>, DataError> {
        let plan = self.plan;
        let (train, eval): (Vec<_>, Vec<_>) = (0..).zip(datasets).partition(|(_, dataset)| !dataset.for_eval);
        let mut sets = Vec::new();
        if !train.is_empty() {
            let places = self.mixed(&train, true)?;
            let (training, validation) = match plan.stream {
                Some(_) => hold_out(&places, plan.val_size)?,
                None => split(&places, plan.val_size, plan.seed)?,
            };
            sets.push(Set { name: TRAIN.to_owned(), places: training });
            if !validation.is_empty() {
                sets.push(Set { name: VALIDATION.to_owned(), places: validation });
            }
        }
        if plan.eval_each {
            for (number, dataset) in eval {
                let places = (0..dataset.len()).map(|row| (number, row)).collect();
                sets.push(Set { name: dataset.entry.name.clone(), places });
            }
        } else if !eval.is_empty() {
            sets.push(Set { name: VALIDATION.to_owned(), places: self.mixed(&eval, false)? });
        }
        // Those who train while rows are encoded evaluate on whole sets.
        sets.sort_by_key(|set| plan.stream.is_some() && set.name == TRAIN);
        Ok(sets)
    }

    /// The mix of some datasets, in numbers of all; of training sets in the order of a stream, if they are streamed.
    fn mixed(&self, datasets: &[(u32, &Dataset)], train: bool) -> Result<Vec<Place>, DataError> {
        let plan = self.plan;
        let lengths: Vec<u64> = datasets.iter().map(|(_, dataset)| dataset.len()).collect();
        let shares = plan.mix_probabilities.as_deref().filter(|_| plan.mix != Mix::Concat);
        let mut places = match plan.stream.filter(|_| train) {
            Some(buffer) => stream::first_epoch(plan.mix, &lengths, shares, plan.seed, buffer)?,
            None => mix(plan.mix, &lengths, shares, plan.seed)?,
        };
        for place in &mut places {
            place.0 = datasets[place.0 as usize].0;
        }
        Ok(places)
    }

    /// A set that can't be trained or evaluated on ends the run.
    fn check_set(&self, set: &SetReport, datasets: &[Dataset]) -> Result<(), DataError> {
        let cutoff_len = self.plan.cutoff_len;
        let name = match set.name.as_str() {
            TRAIN => "the training set".to_owned(),
            other => format!("evaluation set `{other}`"),
        };
        let behind = self.behind(&set.name, datasets);
        if set.rows_kept == 0 {
            return Err(datasets::unusable(name, set.rows_used, &behind));
        }
        if set.rows == 0 && self.plan.stage == Stage::Pretrain {
            return Err(DataError::NoBlock { set: name, tokens: set.tail_tokens, cutoff_len });
        }
        if set.label_tokens == 0 && !encode::is_asked(self.plan, &set.name) {
            let fault = DataError::NoLabels { set: name, rows: set.rows_kept, cutoff_len };
            return Err(match behind.first() {
                Some(dataset) => fault.of(&dataset.entry.name),
                None => fault,
            });
        }
        Ok(())
    }

    /// The datasets that the rows of a set come from.
    fn behind<'d>(&self, set: &str, datasets: &'d [Dataset]) -> Vec<&'d Dataset> {
        let split = set == VALIDATION && !datasets.iter().any(|dataset| dataset.for_eval);
        let of = |dataset: &&Dataset| match set {
            _ if set == TRAIN || split => !dataset.for_eval,
            _ => dataset.for_eval && (!self.plan.eval_each || dataset.entry.name == set),
        };
        datasets.iter().filter(of).collect()
    }
}

/// Where the encoding of set `number` goes on, by the marks of a process that was killed; what they know of the datasets
/// is taken over.
fn resume(
    number: usize,
    set: &Set,
    marks: &mut std::iter::Peekable<std::vec::IntoIter<Mark>>,
    datasets: &mut [Dataset],
) -> Mark {
    let report = SetReport { name: set.name.clone(), ..SetReport::default() };
    let mut from = Mark { set: number, done: 0, report, datasets: Vec::new() };
    while let Some(mark) = marks.next_if(|mark| mark.set == number) {
        from = mark;
        from.datasets.drain(..).zip(&mut *datasets).for_each(|(tally, dataset)| dataset.recall(tally));
    }
    from
}

/// Ends the run at a dropped row if the plan says so.
fn stop_at(plan: &DataPlan, dropped: &crate::report::Dropped) -> Result<(), DataError> {
    if plan.bad_rows == BadRows::Report {
        return Ok(());
    }
    Err(DataError::BadRow { place: dropped.place(), reason: dropped.reason() })
}

#[cfg(test)]
mod tests;
