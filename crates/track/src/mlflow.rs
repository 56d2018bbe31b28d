//! MLflow's file store: a folder an experiment, in it a folder a run, in it a file a parameter, a tag and a metric.
//!
//! The names are those of transformers' callback, which are not rewritten: `loss`, `eval_loss`. MLflow 3.7 keeps the store as it
//! is (`MLFLOW_ALLOW_FILE_STORE=true` lets its own program write there); `mlflow ui --backend-store-uri mlruns` shows it, and
//! `mlflow migrate-filestore` takes it into a database.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Component, Path, PathBuf};

use ferrotune_checkpoint::write_atomic;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::memory::Memory;
use crate::run::{Ending, Lengths, Run, Sample};
use crate::settings::Mlflow;
use crate::{Tracker, ids, python};

/// Longest parameter that MLflow takes (`MAX_PARAM_VAL_LENGTH`).
const LONGEST_PARAM: usize = 6000;
/// Longest tag.
const LONGEST_TAG: usize = 8000;
/// `RunStatus`.
const RUNNING: u8 = 1;
const FINISHED: u8 = 3;
const FAILED: u8 = 4;
const KILLED: u8 = 5;

/// Which run it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    store: PathBuf,
    experiment: String,
    run: String,
}

/// A run of a file store.
#[derive(Debug)]
struct FileRun {
    place: Place,
    name: String,
    user: String,
    /// Milliseconds since 1970.
    start: u64,
    /// All answers so far, of which MLflow shows a table.
    answers: Vec<[Value; 3]>,
}

/// Begins a run, or goes on with the one that `MLFLOW_RUN_ID` or the earlier session names.
pub(crate) fn open(settings: &Mlflow, run: &Run, memory: &Memory) -> Result<Box<dyn Tracker>> {
    let start = run.now.unix_seconds.max(0).unsigned_abs() * 1000;
    let name = settings.name.clone().unwrap_or_else(|| format!("ferrotune-{}", ids::short()));
    let earlier = memory.recall::<Place>("mlflow").filter(|place| place.folder().is_dir());
    let found = match (&settings.run_id, earlier) {
        (Some(id), earlier) => match earlier.filter(|place| place.run == *id) {
            Some(place) => Some(place),
            None => Some(find(&settings.store, id)?),
        },
        (None, earlier) => earlier,
    };
    let goes_on = found.is_some();
    let place = match found {
        Some(place) => place,
        None => {
            let name = settings.experiment.as_deref().unwrap_or("Default");
            Place {
                store: settings.store.clone(),
                experiment: experiment(&settings.store, name, start)?,
                run: ids::uuid(),
            }
        }
    };
    let mut this = FileRun { place, name, user: run.user.clone(), start, answers: Vec::new() };
    if goes_on {
        this.go_on(run.done)?;
    }
    this.begin(settings, run)?;
    memory.keep("mlflow", &this.place)?;
    Ok(Box::new(this))
}

impl Place {
    fn folder(&self) -> PathBuf {
        self.store.join(&self.experiment).join(&self.run)
    }
}

impl FileRun {
    /// Reads what an earlier session wrote, and takes back the metrics of steps that will be made again.
    fn go_on(&mut self, done: u64) -> Result<()> {
        let folder = self.place.folder();
        let meta = fs::read_to_string(folder.join("meta.yaml")).map_err(Error::io("read", &folder))?;
        self.name = yaml_text(&meta, "run_name").unwrap_or_else(|| std::mem::take(&mut self.name));
        self.start = yaml_text(&meta, "start_time").and_then(|time| time.parse().ok()).unwrap_or(self.start);
        let table = fs::read(folder.join("artifacts/samples.json")).ok();
        let table: Option<Value> = table.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        for row in table.iter().filter_map(|table| table["data"].as_array()).flatten().filter_map(Value::as_array) {
            if let [step, prompt, answer] = &row[..]
                && step.as_u64().is_some_and(|step| step <= done)
            {
                self.answers.push([step.clone(), prompt.clone(), answer.clone()]);
            }
        }
        if table.is_some() {
            self.table()?;
        }
        let mut files = Vec::new();
        files_below(&folder.join("metrics"), &mut files);
        for path in files {
            let text = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
            let is_kept =
                |line: &&str| line.trim().rsplit(' ').next().is_some_and(|s| s.parse().is_ok_and(|s: u64| s <= done));
            let kept: String = text.split_inclusive('\n').filter(|line| line.ends_with('\n')).filter(is_kept).collect();
            write_atomic(&path, kept.as_bytes())?;
        }
        Ok(())
    }

    fn begin(&self, settings: &Mlflow, run: &Run) -> Result<()> {
        let folder = self.place.folder();
        for part in ["artifacts", "metrics", "params", "tags"] {
            let part = folder.join(part);
            fs::create_dir_all(&part).map_err(Error::io("create", &part))?;
        }
        self.meta(RUNNING, None)?;
        let own = [
            ("mlflow.runName", self.name.as_str()),
            ("mlflow.user", self.user.as_str()),
            ("mlflow.source.name", "ferrotune"),
        ];
        for (name, value) in own.into_iter().chain([("mlflow.source.type", "LOCAL")]) {
            self.tag(name, value)?;
        }
        for (name, value) in &settings.tags {
            self.tag(name, &python::str(value))?;
        }
        let mut params = Vec::new();
        for (name, value) in run.settings() {
            flat(name, value, settings.flatten, &mut params);
        }
        let fitting = params.into_iter().filter(|(_, value)| value.chars().count() <= LONGEST_PARAM);
        for (name, value) in fitting.take(settings.max_params.unwrap_or(usize::MAX)) {
            // A parameter never changes: that of a run that goes on is what it began with.
            let Some(path) = inside(&folder.join("params"), &name).filter(|path| !path.exists()) else { continue };
            create_parent(&path)?;
            write_atomic(&path, value.as_bytes())?;
        }
        Ok(())
    }

    /// Writes `meta.yaml`.
    fn meta(&self, status: u8, end: Option<u64>) -> Result<()> {
        let folder = self.place.folder();
        let text = [
            ("artifact_uri", quoted(&folder.join("artifacts").to_string_lossy())),
            ("end_time", end.map_or("null".into(), |time| time.to_string())),
            ("entry_point_name", "''".into()),
            ("experiment_id", format!("'{}'", self.place.experiment)),
            ("lifecycle_stage", "active".into()),
            ("run_id", quoted(&self.place.run)),
            ("run_name", quoted(&self.name)),
            ("source_name", "''".into()),
            ("source_type", "4".into()),
            ("source_version", "''".into()),
            ("start_time", self.start.to_string()),
            ("status", status.to_string()),
            ("tags", "[]".into()),
            ("user_id", quoted(&self.user)),
        ];
        Ok(write_atomic(&folder.join("meta.yaml"), yaml(&text).as_bytes())?)
    }

    fn tag(&self, name: &str, value: &str) -> Result<()> {
        let Some(path) = inside(&self.place.folder().join("tags"), name) else { return Ok(()) };
        create_parent(&path)?;
        let value: String = value.chars().take(LONGEST_TAG).collect();
        Ok(write_atomic(&path, value.as_bytes())?)
    }

    /// Writes the answers as `mlflow.log_table` does, so that they are shown as a table.
    fn table(&self) -> Result<()> {
        self.artifact("samples.json", &json!({ "columns": ["step", "prompt", "answer"], "data": self.answers }))
    }

    fn artifact(&self, name: &str, value: &Value) -> Result<()> {
        let path = self.place.folder().join("artifacts").join(name);
        Ok(write_atomic(&path, value.to_string().as_bytes())?)
    }
}

impl Tracker for FileRun {
    fn place(&self) -> String {
        format!("mlflow ui --backend-store-uri {}, run {}", self.place.store.display(), self.place.run)
    }

    fn row(&mut self, time: f64, step: u64, values: &[(String, f64)]) -> Result<()> {
        let metrics = self.place.folder().join("metrics");
        for (name, value) in values {
            let name: String = name.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
            let Some(path) = inside(&metrics, &name) else { continue };
            create_parent(&path)?;
            let line = format!("{} {} {step}\n", milliseconds(time), python::float(*value));
            let mut file =
                OpenOptions::new().create(true).append(true).open(&path).map_err(Error::io("write", &path))?;
            file.write_all(line.as_bytes()).map_err(Error::io("write", &path))?;
        }
        Ok(())
    }

    fn samples(&mut self, _: f64, step: u64, samples: &[Sample]) -> Result<()> {
        let rows = samples.iter().map(|s| [step.into(), s.prompt.clone().into(), s.answer.clone().into()]);
        self.answers.extend(rows);
        self.table()?;
        self.tag("mlflow.loggedArtifacts", r#"[{"path": "samples.json", "type": "table"}]"#)
    }

    fn lengths(&mut self, _: f64, lengths: &Lengths) -> Result<()> {
        self.artifact("row_lengths.json", &json!({ "borders": lengths.borders, "counts": lengths.counts }))
    }

    fn end(&mut self, time: f64, ending: &Ending) -> Result<()> {
        let status = match ending {
            Ending::Finished => FINISHED,
            Ending::Interrupted => KILLED,
            Ending::Failed(_) => FAILED,
        };
        self.meta(status, Some(milliseconds(time)))
    }
}

fn milliseconds(time: f64) -> u64 {
    (time.max(0.0) * 1000.0) as u64
}

/// The run of this id, in whatever experiment.
fn find(store: &Path, id: &str) -> Result<Place> {
    let is_id = !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric());
    let experiments = fs::read_dir(store).into_iter().flatten().flatten();
    let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    experiments
        .map(name)
        .filter(|_| is_id)
        .find(|experiment| store.join(experiment).join(id).join("meta.yaml").exists())
        .map_or_else(
            || {
                let problem =
                    "no run of the store is called that; its folder is MLFLOW_TRACKING_URI, `mlruns` if not set";
                Err(Error::Variable { variable: ferrotune_config::env::MLFLOW_RUN_ID, value: id.to_owned(), problem })
            },
            |experiment| Ok(Place { store: store.to_path_buf(), experiment, run: id.to_owned() }),
        )
}

/// The id of an experiment, which is made if it isn't there. The store has one called `Default` in any case.
fn experiment(store: &Path, name: &str, time: u64) -> Result<String> {
    fs::create_dir_all(store.join(".trash")).map_err(Error::io("create", store))?;
    for entry in fs::read_dir(store).map_err(Error::io("read", store))?.flatten() {
        let meta = fs::read_to_string(entry.path().join("meta.yaml")).unwrap_or_default();
        let is_active = yaml_text(&meta, "lifecycle_stage").as_deref() == Some("active");
        if is_active && yaml_text(&meta, "name").as_deref() == Some(name) {
            return Ok(entry.file_name().to_string_lossy().into_owned());
        }
    }
    let mut made = String::new();
    for (name, id) in [("Default", "0".to_owned()), (name, ids::digits())] {
        let folder = store.join(&id);
        if name == "Default" && !made.is_empty() || folder.exists() {
            continue;
        }
        fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        let text = [
            ("artifact_location", quoted(&folder.to_string_lossy())),
            ("creation_time", time.to_string()),
            ("experiment_id", format!("'{id}'")),
            ("last_update_time", time.to_string()),
            ("lifecycle_stage", "active".into()),
            ("name", quoted(name)),
        ];
        write_atomic(&folder.join("meta.yaml"), yaml(&text).as_bytes())?;
        made = id;
    }
    Ok(made)
}

/// Parameters of a setting; with `flatten` those of its parts, as transformers' `flatten_dict` names them.
fn flat(name: String, value: Value, flatten: bool, out: &mut Vec<(String, String)>) {
    match value {
        Value::Object(map) if flatten && !map.is_empty() => {
            map.into_iter().for_each(|(key, value)| flat(format!("{name}/{key}"), value, flatten, out));
        }
        other => out.push((name, python::str(&other))),
    }
}

/// Characters of a metric's name, as transformers leaves them.
fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_-. :/".contains(c)
}

/// The file of a metric, parameter or tag; nothing if its name would lead out of the folder.
fn inside(folder: &Path, name: &str) -> Option<PathBuf> {
    let is_inside = |part: Component<'_>| matches!(part, Component::Normal(_));
    (!name.is_empty() && Path::new(name).components().all(is_inside)).then(|| folder.join(name))
}

fn create_parent(path: &Path) -> Result<()> {
    path.parent().map_or(Ok(()), |folder| fs::create_dir_all(folder).map_err(Error::io("create", folder)))
}

fn files_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => files_below(&entry.path(), found),
            Ok(kind) if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
}

fn yaml(pairs: &[(&str, String)]) -> String {
    pairs.iter().map(|(key, value)| format!("{key}: {value}\n")).collect()
}

/// Text as YAML has it between double quotes, which are JSON's.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// A text of a flat YAML file, as MLflow's own program or this one wrote it.
fn yaml_text(yaml: &str, key: &str) -> Option<String> {
    let value = yaml.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?.trim();
    if value.starts_with('"') {
        return serde_json::from_str(value).ok();
    }
    let single = value.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\''));
    Some(single.map_or_else(|| value.to_owned(), |text| text.replace("''", "'")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferrotune_data::clock::Moment;

    fn run(output: &Path, done: u64) -> Run {
        let map = |value: Value| value.as_object().cloned().unwrap_or_default();
        Run {
            output: output.to_path_buf(),
            recipe: map(json!({ "learning_rate": 5e-5, "bf16": true, "dataset": ["a", "b"], "../out": 1 })),
            model: map(json!({ "hidden_size": 64, "rope_scaling": { "factor": 2.0 } })),
            parameters: 100,
            trainable: 10,
            done,
            host: "box".into(),
            user: "me".into(),
            process: 7,
            now: Moment { unix_seconds: 1_700_000_000 },
        }
    }

    fn settings(store: &Path) -> Mlflow {
        Mlflow {
            store: store.to_path_buf(),
            experiment: Some("it's \"one\"".into()),
            name: Some("first".into()),
            ..Mlflow::default()
        }
    }

    fn values(loss: f64) -> Vec<(String, f64)> {
        vec![("loss".into(), loss), ("eval(x)/loss".into(), f64::NAN)]
    }

    fn begin(settings: &Mlflow, run: &Run) -> Box<dyn Tracker> {
        open(settings, run, &Memory::open(&run.output, run.done)).unwrap()
    }

    fn only(folder: &Path, is_one: impl Fn(&str) -> bool) -> PathBuf {
        let mut found: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()).collect();
        found.retain(|entry| is_one(&entry.file_name().to_string_lossy()));
        assert_eq!(found.len(), 1, "{found:?}");
        found[0].path()
    }

    #[test]
    fn a_run_is_laid_out_as_mlflow_s_and_goes_on_in_place() {
        let folder = tempfile::tempdir().unwrap();
        let (store, output) = (folder.path().join("mlruns"), folder.path().join("o"));
        fs::create_dir(&output).unwrap();
        let settings = settings(&store);
        let mut tracker = begin(&settings, &run(&output, 0));
        for step in 1..=3 {
            tracker.row(1_700_000_001.25, step, &values(step as f64)).unwrap();
        }
        let sample = |answer: &str| vec![Sample { prompt: "p".into(), answer: answer.into() }];
        tracker.samples(1.0, 0, &sample("before")).unwrap();
        tracker.samples(1.0, 3, &sample("after")).unwrap();
        tracker.end(1_700_000_002.0, &Ending::Interrupted).unwrap();

        let experiment = only(&store, |name| name.len() == 18);
        let meta = fs::read_to_string(experiment.join("meta.yaml")).unwrap();
        assert_eq!(yaml_text(&meta, "name").as_deref(), Some("it's \"one\""));
        assert!(store.join("0/meta.yaml").exists());
        let place = only(&experiment, |name| name.len() == 32);
        let read = |name: &str| fs::read_to_string(place.join(name)).unwrap();
        assert_eq!(read("metrics/loss"), "1700000001250 1.0 1\n1700000001250 2.0 2\n1700000001250 3.0 3\n");
        assert_eq!(read("metrics/eval_x_/loss").lines().next(), Some("1700000001250 nan 1"));
        assert_eq!(read("params/learning_rate"), "5e-05");
        assert_eq!(read("params/dataset"), "['a', 'b']");
        assert_eq!(read("params/rope_scaling"), "{'factor': 2.0}");
        assert_eq!(read("tags/mlflow.runName"), "first");
        assert!(read("meta.yaml").contains("end_time: 1700000002000\n") && read("meta.yaml").contains("status: 5\n"));
        assert!(!experiment.join("out").exists() && !place.join("out").exists(), "no name leads out of its folder");

        let mut tracker = begin(&settings, &run(&output, 2));
        tracker.row(1_700_000_009.0, 3, &values(0.5)).unwrap();
        tracker.end(1_700_000_010.0, &Ending::Finished).unwrap();
        assert_eq!(only(&experiment, |name| name.len() == 32), place, "the same run");
        assert_eq!(read("metrics/loss"), "1700000001250 1.0 1\n1700000001250 2.0 2\n1700000009000 0.5 3\n");
        assert!(read("meta.yaml").contains("status: 3\n") && read("meta.yaml").contains("start_time: 1700000000000\n"));
        let table: Value = serde_json::from_str(&read("artifacts/samples.json")).unwrap();
        assert_eq!(table, json!({ "columns": ["step", "prompt", "answer"], "data": [[0, "p", "before"]] }));
    }

    #[test]
    fn a_run_can_be_named_and_experiments_are_shared() {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("mlruns");
        let outputs = ["a", "b", "c"].map(|name| folder.path().join(name));
        outputs.iter().for_each(|output| fs::create_dir(output).unwrap());
        begin(&settings(&store), &run(&outputs[0], 0));
        begin(&settings(&store), &run(&outputs[1], 0));
        let experiment = only(&store, |name| name.len() == 18);
        let ids: Vec<String> = fs::read_dir(&experiment)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .filter(|name| name.len() == 32)
            .collect();
        assert_eq!(ids.len(), 2);
        let named = Mlflow { run_id: Some(ids[1].clone()), ..settings(&store) };
        assert!(begin(&named, &run(&outputs[2], 0)).place().ends_with(&ids[1]));
        for id in ["0123", "../0", ""] {
            let unknown = Mlflow { run_id: Some(id.into()), ..settings(&store) };
            let error = open(&unknown, &run(&outputs[2], 0), &Memory::open(&outputs[2], 0)).err().unwrap().to_string();
            assert!(error.starts_with(&format!("MLFLOW_RUN_ID={id}: no run")), "{error}");
        }
        let default = Mlflow { experiment: None, ..settings(&store) };
        begin(&default, &run(&outputs[2], 0));
        assert_eq!(fs::read_dir(store.join("0")).unwrap().count(), 2, "meta.yaml and the run");
    }

    #[test]
    fn flattened_parameters_are_named_as_transformers_names_them() {
        let mut params = Vec::new();
        flat("a".into(), json!({ "b": { "c": 1 }, "d": {} }), true, &mut params);
        assert_eq!(params, [("a/b/c".to_owned(), "1".to_owned()), ("a/d".into(), "{}".into())]);
    }
}
