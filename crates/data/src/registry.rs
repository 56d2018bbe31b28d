//! `dataset_info.json`: what a dataset's name stands for.
//!
//! The rules are LLaMA-Factory's, the sharp one included: as soon as an entry has `columns`, every
//! column it doesn't list is unmapped, not at its default; the same for `tags`. What an entry says
//! that has no effect is noted, never ignored in silence.

use std::fs;
use std::path::{Path, PathBuf};

use ferrotune_config::plan::Stage;
use serde_json::{Map, Value};

use crate::error::{DataError, nearest};

/// How the rows of a dataset are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Formatting {
    /// A question and an answer in columns.
    Alpaca,
    /// A list of turns.
    ShareGpt,
    /// A list of messages as OpenAI's API takes them.
    OpenAi,
}

impl Formatting {
    /// Whether rows of this form are read from the column that the registry calls `name`.
    pub(crate) fn reads(self, name: &str) -> bool {
        let unread: &[&str] = match self {
            Self::Alpaca => &["messages"],
            Self::ShareGpt | Self::OpenAi => &["prompt", "query", "response", "history"],
        };
        !unread.contains(&name)
    }
}

/// Which column of a row holds what; `None` is never read.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are the names of the registry's columns")]
pub struct Columns {
    pub prompt: Option<String>,
    pub query: Option<String>,
    pub response: Option<String>,
    pub history: Option<String>,
    pub messages: Option<String>,
    pub system: Option<String>,
    pub tools: Option<String>,
    pub images: Option<String>,
    pub videos: Option<String>,
    pub audios: Option<String>,
    pub chosen: Option<String>,
    pub rejected: Option<String>,
    pub kto_tag: Option<String>,
}

impl Columns {
    /// Names in the registry.
    pub(crate) const NAMES: [&'static str; 13] = [
        "prompt", "query", "response", "history", "messages", "system", "tools", "images", "videos", "audios",
        "chosen", "rejected", "kto_tag",
    ];

    fn get(&self, name: &str) -> Option<&str> {
        let column = match name {
            "prompt" => &self.prompt,
            "query" => &self.query,
            "response" => &self.response,
            "history" => &self.history,
            "messages" => &self.messages,
            "system" => &self.system,
            "tools" => &self.tools,
            "images" => &self.images,
            "videos" => &self.videos,
            "audios" => &self.audios,
            "chosen" => &self.chosen,
            "rejected" => &self.rejected,
            _ => &self.kto_tag,
        };
        column.as_deref()
    }

    /// The mapped columns that rows of this formatting are read from: (name in the registry, column).
    pub fn read_by(&self, formatting: Formatting) -> impl Iterator<Item = (&'static str, &str)> {
        self.mapped().filter(move |(name, _)| formatting.reads(name))
    }

    /// The mapped columns: (name in the registry, column of the rows).
    pub fn mapped(&self) -> impl Iterator<Item = (&'static str, &str)> {
        Self::NAMES.into_iter().filter_map(|name| Some((name, self.get(name)?)))
    }
}

impl Default for Columns {
    fn default() -> Self {
        let none = || None;
        Self {
            prompt: Some("instruction".into()),
            query: Some("input".into()),
            response: Some("output".into()),
            messages: Some("conversations".into()),
            history: none(),
            system: none(),
            tools: none(),
            images: none(),
            videos: none(),
            audios: none(),
            chosen: none(),
            rejected: none(),
            kto_tag: none(),
        }
    }
}

/// How a turn says who speaks; `None` matches nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are the names of the registry's tags")]
pub struct Tags {
    pub role_tag: Option<String>,
    pub content_tag: Option<String>,
    pub user_tag: Option<String>,
    pub assistant_tag: Option<String>,
    pub observation_tag: Option<String>,
    pub function_tag: Option<String>,
    pub system_tag: Option<String>,
}

impl Tags {
    /// Names in the registry.
    pub(crate) const NAMES: [&'static str; 7] =
        ["role_tag", "content_tag", "user_tag", "assistant_tag", "observation_tag", "function_tag", "system_tag"];
}

impl Tags {
    /// What they are, in the order of [`Tags::NAMES`].
    pub(crate) fn values(&self) -> [Option<&str>; 7] {
        [
            &self.role_tag,
            &self.content_tag,
            &self.user_tag,
            &self.assistant_tag,
            &self.observation_tag,
            &self.function_tag,
            &self.system_tag,
        ]
        .map(Option::as_deref)
    }
}

impl Default for Tags {
    fn default() -> Self {
        let tag = |name: &str| Some(name.to_owned());
        Self {
            role_tag: tag("from"),
            content_tag: tag("value"),
            user_tag: tag("human"),
            assistant_tag: tag("gpt"),
            observation_tag: tag("observation"),
            function_tag: tag("function_call"),
            system_tag: tag("system"),
        }
    }
}

/// One dataset, as its entry describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatasetEntry {
    /// Its name in the registry.
    pub name: String,
    /// File, folder or pattern; absolute, or relative to `dataset_dir` and joined with it. Of a remote one its id or address.
    pub path: PathBuf,
    /// Where it lies, if not in files.
    pub remote: Option<Remote>,
    /// How its rows are written.
    pub formatting: Formatting,
    /// Which column holds what.
    pub columns: Columns,
    /// Whether the entry has `columns` at all.
    pub columns_given: bool,
    /// How turns say who speaks.
    pub tags: Tags,
    /// Draw this many rows: each once in random order, then again at random if there are fewer.
    pub num_samples: Option<u64>,
    /// What the entry says that has no effect.
    pub notes: Vec<String>,
}

/// The entries of `dataset_info.json`, those of unused datasets unread.
#[derive(Debug, Clone)]
pub struct Registry {
    path: PathBuf,
    dir: PathBuf,
    entries: Map<String, Value>,
    /// Every name is an id of a hub.
    online: bool,
}

const FILE: &str = "dataset_info.json";
/// Fields of an entry, and what they do.
pub(crate) const FIELDS: [(&str, &str); 15] = [
    (
        "file_name",
        "a file, a folder, or a path with patterns (`*`, `?`, and `**` for any folders); relative to `dataset_dir`",
    ),
    ("formatting", "`alpaca` if not set, `sharegpt`, `openai`"),
    ("ranking", "`true`: rows hold a chosen and a rejected answer, for stages rm and dpo"),
    ("columns", "which column of a row holds what"),
    ("tags", "how a turn says who speaks"),
    ("num_samples", "draw so many rows at random: each once, then again if there are fewer"),
    ("subset", "configuration of a dataset on a hub"),
    ("split", "of a dataset on a hub, `train` if not set; files have the one split `train`"),
    ("folder", "only files below it, of a dataset on a hub"),
    ("hf_hub_url", "id of a dataset on Hugging Face; it is downloaded once"),
    (
        "ms_hub_url",
        "id of a dataset on ModelScope, taken if there is no `hf_hub_url` or `USE_MODELSCOPE_HUB` is set; it is downloaded once",
    ),
    ("om_hub_url", "a dataset on OpenMind: not read, download it"),
    ("script_url", "a dataset that a Python script makes: not read, run the script and save what it gives"),
    ("cloud_file_name", "a file, or a folder of files, in a cloud store (`s3://`, `gs://`); it is downloaded once"),
    ("file_sha1", "without effect: the cache goes by the content"),
];
/// Fields that say where else than in a file a dataset lies, in LLaMA-Factory's order of preference.
pub(crate) const REMOTE_FIELDS: [&str; 5] = ["hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name"];
/// `dataset_dir` of this name: names of datasets are ids of a hub.
const ONLINE: &str = "ONLINE";
/// Begins a `dataset_dir` whose registry lies in a repository of data sets of Hugging Face.
const REMOTE: &str = "REMOTE:";

/// The repository in which the registry of such a `dataset_dir` lies.
pub fn remote_registry(dir: &Path) -> Option<&str> {
    dir.to_str()?.strip_prefix(REMOTE)
}

/// Whether names of datasets are ids of a hub.
pub fn is_online(dir: &Path) -> bool {
    dir.as_os_str() == ONLINE
}

/// Where a dataset lies that isn't on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remote {
    /// On a hub, or on both.
    Hub {
        /// Its id on Hugging Face.
        hugging_face: Option<String>,
        /// Its id on ModelScope.
        modelscope: Option<String>,
        /// The configuration, if not the default one.
        subset: Option<String>,
        /// `train` if not given.
        split: Option<String>,
        /// Only files below it.
        folder: Option<String>,
    },
    /// In a cloud store: `s3://`, `gs://` or `gcs://`.
    Cloud {
        /// The address of a file or a folder.
        url: String,
    },
}

impl Registry {
    /// Reads the registry of `dir`.
    ///
    /// # Errors
    /// A `dir` on a hub, a missing or unreadable file, JSON that is broken or no object.
    pub fn open(dir: &Path) -> Result<Self, DataError> {
        if is_online(dir) {
            let (path, dir) = (dir.to_path_buf(), PathBuf::new());
            return Ok(Self { path, dir, entries: Map::new(), online: true });
        }
        let written = dir.to_string_lossy();
        if written.starts_with(REMOTE) {
            return Err(DataError::RemoteRegistry { dir: written.into_owned() });
        }
        let path = dir.join(FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(DataError::NoRegistry { path }),
            Err(error) => return Err(DataError::io("read", &path, error)),
        };
        let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
        let broken = |line, column, message| DataError::Registry { path: path.clone(), line, column, message };
        let value: Value =
            serde_json::from_slice(text).map_err(|error| broken(error.line(), error.column(), bare_message(&error)))?;
        let Value::Object(entries) = value else {
            return Err(broken(1, 1, "expected an object of dataset names, like {\"my_data\": {...}}".to_owned()));
        };
        Ok(Self { path: path.clone(), dir: dir.to_path_buf(), entries, online: false })
    }

    /// Where the registry lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names it holds, in its order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The entry called `name`, for use in `stage`.
    ///
    /// # Errors
    /// An unknown name, a field of a wrong type, a dataset that isn't a local file, one for another stage.
    pub fn entry(&self, name: &str, stage: Stage) -> Result<DatasetEntry, DataError> {
        let bare;
        let value = match self.entries.get(name) {
            None if self.online => {
                bare = serde_json::json!({"hf_hub_url": name, "ms_hub_url": name});
                Some(&bare)
            }
            found => found,
        };
        let Some(value) = value else {
            return Err(DataError::UnknownDataset {
                name: name.to_owned(),
                registry: self.path.clone(),
                nearest: nearest(name, self.names()).map(str::to_owned),
                known: self.names().map(str::to_owned).collect(),
            });
        };
        let Value::Object(fields) = value else {
            return Err(problem(name, "", format!("must be an object, is {}", kind(value))));
        };
        let mut notes = Vec::new();
        note_unknown(&mut notes, "field", fields, &FIELDS.map(|(field, _)| field));
        let remote = remote(name, fields)?;
        if remote.is_none() {
            note_ineffective(&mut notes, name, fields)?;
        }
        let columns = self.columns(name, fields, &mut notes)?;
        check_stage(name, fields, &columns, stage)?;
        let path = match (&remote, text(name, fields, "file_name")?) {
            (Some(Remote::Hub { hugging_face, modelscope, .. }), _) => {
                PathBuf::from(hugging_face.as_ref().or(modelscope.as_ref()).map_or("", String::as_str))
            }
            (Some(Remote::Cloud { url }), _) => PathBuf::from(url),
            (None, Some(file_name)) => self.dir.join(file_name),
            (None, None) => {
                return Err(problem(name, "file_name", "is missing: it names the data file or folder".to_owned()));
            }
        };
        Ok(DatasetEntry {
            name: name.to_owned(),
            path,
            remote,
            formatting: formatting(name, fields)?,
            columns: columns.unwrap_or_default(),
            columns_given: fields.get("columns").is_some_and(|columns| !columns.is_null()),
            tags: tags(name, fields, &mut notes)?.unwrap_or_default(),
            num_samples: num_samples(name, fields)?,
            notes,
        })
    }

    fn columns(
        &self,
        name: &str,
        fields: &Map<String, Value>,
        notes: &mut Vec<String>,
    ) -> Result<Option<Columns>, DataError> {
        let Some(mut take) = Renames::of(name, fields, "columns", &Columns::NAMES, notes)? else { return Ok(None) };
        Ok(Some(Columns {
            prompt: take.next("prompt")?,
            query: take.next("query")?,
            response: take.next("response")?,
            history: take.next("history")?,
            messages: take.next("messages")?,
            system: take.next("system")?,
            tools: take.next("tools")?,
            images: take.next("images")?,
            videos: take.next("videos")?,
            audios: take.next("audios")?,
            chosen: take.next("chosen")?,
            rejected: take.next("rejected")?,
            kto_tag: take.next("kto_tag")?,
        }))
    }
}

fn tags(name: &str, fields: &Map<String, Value>, notes: &mut Vec<String>) -> Result<Option<Tags>, DataError> {
    let Some(mut take) = Renames::of(name, fields, "tags", &Tags::NAMES, notes)? else { return Ok(None) };
    Ok(Some(Tags {
        role_tag: take.next("role_tag")?,
        content_tag: take.next("content_tag")?,
        user_tag: take.next("user_tag")?,
        assistant_tag: take.next("assistant_tag")?,
        observation_tag: take.next("observation_tag")?,
        function_tag: take.next("function_tag")?,
        system_tag: take.next("system_tag")?,
    }))
}

/// The `columns` or `tags` of an entry: a name here, a name in the rows.
struct Renames<'a> {
    dataset: &'a str,
    field: &'static str,
    map: &'a Map<String, Value>,
}

impl<'a> Renames<'a> {
    fn of(
        dataset: &'a str,
        fields: &'a Map<String, Value>,
        field: &'static str,
        known: &[&str],
        notes: &mut Vec<String>,
    ) -> Result<Option<Self>, DataError> {
        match fields.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(map)) => {
                note_unknown(notes, field, map, known);
                Ok(Some(Self { dataset, field, map }))
            }
            Some(other) => Err(problem(dataset, field, format!("must be an object, is {}", kind(other)))),
        }
    }

    fn next(&mut self, name: &str) -> Result<Option<String>, DataError> {
        match self.map.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Err(problem(
                self.dataset,
                &format!("{}.{name}", self.field),
                format!("must be the name it has in the rows, is {}", kind(other)),
            )),
        }
    }
}

/// Where else than in a file the dataset lies.
fn remote(name: &str, fields: &Map<String, Value>) -> Result<Option<Remote>, DataError> {
    let given = |field: &str| fields.get(field).is_some_and(|value| !value.is_null());
    let Some(field) = REMOTE_FIELDS.into_iter().find(|field| given(field)) else { return Ok(None) };
    let value = text(name, fields, field)?.unwrap_or_default().to_owned();
    let part =
        |field| Ok::<_, DataError>(text(name, fields, field)?.filter(|text| !text.is_empty()).map(str::to_owned));
    match field {
        "hf_hub_url" | "ms_hub_url" => Ok(Some(Remote::Hub {
            hugging_face: part("hf_hub_url")?,
            modelscope: part("ms_hub_url")?,
            subset: part("subset")?,
            split: part("split")?,
            folder: part("folder")?,
        })),
        "cloud_file_name" if ["s3://", "gs://", "gcs://"].iter().any(|scheme| value.starts_with(scheme)) => {
            Ok(Some(Remote::Cloud { url: value }))
        }
        "cloud_file_name" => {
            Err(problem(name, field, format!("is `{value}`; it must begin with s3://, gs:// or gcs://")))
        }
        _ => Err(DataError::RemoteDataset { dataset: name.to_owned(), field: field.to_owned(), value }),
    }
}

fn formatting(name: &str, fields: &Map<String, Value>) -> Result<Formatting, DataError> {
    match text(name, fields, "formatting")? {
        None | Some("alpaca") => Ok(Formatting::Alpaca),
        Some("sharegpt") => Ok(Formatting::ShareGpt),
        Some("openai") => Ok(Formatting::OpenAi),
        Some(other) => {
            Err(problem(name, "formatting", format!("is `{other}`; it must be `alpaca`, `sharegpt` or `openai`")))
        }
    }
}

fn num_samples(name: &str, fields: &Map<String, Value>) -> Result<Option<u64>, DataError> {
    match fields.get("num_samples") {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64() {
            Some(count) if count > 0 && u32::try_from(count).is_ok() => Ok(Some(count)),
            _ => Err(problem(name, "num_samples", format!("must be a number of rows, is {value}"))),
        },
    }
}

/// Fields that only datasets of a hub use.
fn note_ineffective(notes: &mut Vec<String>, name: &str, fields: &Map<String, Value>) -> Result<(), DataError> {
    for field in ["subset", "folder"] {
        if fields.get(field).is_some_and(|value| !value.is_null()) {
            notes.push(format!("`{field}` has no effect on a dataset of local files"));
        }
    }
    match text(name, fields, "split")? {
        None | Some("train") => Ok(()),
        Some(split) => Err(problem(
            name,
            "split",
            format!("is `{split}`, but local files have the one split `train`; put the rows in a file of their own"),
        )),
    }
}

fn check_stage(
    name: &str,
    fields: &Map<String, Value>,
    columns: &Option<Columns>,
    stage: Stage,
) -> Result<(), DataError> {
    let named = match stage {
        Stage::Pretrain => "pt",
        Stage::Sft => "sft",
        Stage::Pairwise => "rm or dpo",
        Stage::Feedback => "kto",
    };
    let wrong = |field, stages| Err(DataError::WrongStage { dataset: name.to_owned(), field, stages, stage: named });
    let ranking = match fields.get("ranking") {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::Bool(true)) => true,
        Some(other) => return Err(problem(name, "ranking", format!("must be true or false, is {}", kind(other)))),
    };
    let mapped = |column: fn(&Columns) -> &Option<String>| columns.as_ref().is_some_and(|all| column(all).is_some());
    let lacks = |field, means| Err(DataError::LacksColumn { dataset: name.to_owned(), field, stage: named, means });
    match stage {
        Stage::Pairwise if !ranking => {
            lacks("ranking", "`\"ranking\": true`, and `columns` with `chosen` and `rejected`")
        }
        Stage::Pairwise if !mapped(|columns| &columns.chosen) => {
            lacks("columns.chosen", "the column of the preferred answer")
        }
        Stage::Pairwise if !mapped(|columns| &columns.rejected) => {
            lacks("columns.rejected", "the column of the other answer")
        }
        Stage::Pairwise => Ok(()),
        _ if ranking => wrong("`ranking: true`", "rm or dpo"),
        Stage::Feedback if !mapped(|columns| &columns.kto_tag) => {
            lacks("columns.kto_tag", "the column that says `true` of answers that are wanted")
        }
        Stage::Pretrain | Stage::Sft if mapped(|columns| &columns.kto_tag) => wrong("`columns.kto_tag`", "kto"),
        _ => Ok(()),
    }
}

fn text<'a>(name: &str, fields: &'a Map<String, Value>, field: &str) -> Result<Option<&'a str>, DataError> {
    match fields.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(problem(name, field, format!("must be text, is {}", kind(other)))),
    }
}

fn note_unknown(notes: &mut Vec<String>, what: &str, map: &Map<String, Value>, known: &[&str]) {
    for unknown in map.keys().filter(|key| !known.contains(&key.as_str())) {
        let cure = match nearest(unknown, known.iter().copied()) {
            Some(name) => format!("; did you mean `{name}`?"),
            None => format!("; known are {}", known.join(", ")),
        };
        let place = if what == "field" { String::new() } else { format!("{what}.") };
        notes.push(format!("`{place}{unknown}` is unknown and has no effect{cure}"));
    }
}

fn problem(dataset: &str, field: &str, problem: String) -> DataError {
    let field = if field.is_empty() { "its entry" } else { field };
    DataError::Entry { dataset: dataset.to_owned(), field: field.to_owned(), problem }
}

/// What a value is, in words.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// What serde_json says without its own position, which is said elsewhere.
pub(crate) fn bare_message(error: &serde_json::Error) -> String {
    let message = error.to_string();
    match message.rfind(" at line ") {
        Some(end) => message[..end].to_owned(),
        None => message,
    }
}

#[cfg(test)]
mod tests;
