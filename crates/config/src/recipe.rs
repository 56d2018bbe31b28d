//! A recipe as the user wrote it: keys, values and their places; nothing is interpreted here.
//!
//! A recipe comes from a YAML or JSON file, from the command line, or from a file and overrides after
//! it. Every source is kept, so that a message can show the line or the argument it speaks of.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use crate::diagnostic::{Diagnostic, Diagnostics, Severity, Span};
use crate::faults::Fault;
use crate::tree::{self, At, Data, Key, Node};
use crate::value::{Value, coerce};
use crate::{json, keys, overrides};

/// Longest file that is taken for a recipe, in bytes.
const MAX_BYTES: usize = 4 << 20;

/// What the user wrote, with the place of each key and value.
#[derive(Debug, Clone, Default)]
pub struct Recipe {
    sources: Vec<Source>,
    pub(crate) entries: Vec<Entry>,
    /// Keys that a file holds twice; reported with everything else that is wrong.
    pub(crate) twice: Vec<(String, Fault)>,
    pub(crate) home: Option<PathBuf>,
    pub(crate) allows_unknown: bool,
}

/// A file or a command line.
#[derive(Debug, Clone)]
struct Source {
    name: String,
    text: String,
    is_file: bool,
    /// Byte offset of each line.
    lines: Vec<usize>,
}

/// A key as written. Later sources win over earlier ones.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub key: Key,
    pub value: Node,
}

impl Recipe {
    /// Reads a file's contents: JSON if the name ends in `.json`, YAML otherwise.
    ///
    /// # Errors
    /// What makes the text unreadable: invalid UTF-8, or the first mistake of syntax.
    pub fn parse(name: &str, bytes: &[u8]) -> Result<Self, Diagnostics> {
        let mut recipe = Self::default();
        let text = decode(name, bytes)?;
        let is_json = Path::new(name).extension().is_some_and(|e| e.eq_ignore_ascii_case("json"));
        recipe.push_source(name, text, true);
        let parsed = if is_json { json::parse(text, 0) } else { tree::parse(text, 0) };
        let parsed = parsed.map_err(|fault| recipe.report(vec![fault]))?;
        recipe.twice = parsed.twice;
        recipe.entries = match parsed.root {
            Some(Node { data: Data::Map(pairs), .. }) => {
                pairs.into_iter().map(|(key, value)| Entry { key, value }).collect()
            }
            Some(node) if !node.is_null() => {
                let what = if matches!(node.data, Data::List(_)) { "a list" } else { "a single value" };
                let fault = Fault {
                    at: Some(node.at),
                    message: format!("a recipe is keys and values, but this file is {what}"),
                    help: Some("write `key: value`, one a line, without leading dashes"),
                };
                return Err(recipe.report(vec![fault]));
            }
            _ => {
                let fault = Fault {
                    at: None,
                    message: "the recipe is empty".to_owned(),
                    help: Some("write at least `model_name_or_path`, `stage`, `dataset` and `output_dir`"),
                };
                return Err(recipe.report(vec![fault]));
            }
        };
        Ok(recipe)
    }

    /// A recipe that is written on the command line alone: `--key value`, `--key=value`, `--flag`,
    /// `key=value`.
    ///
    /// # Errors
    /// Arguments that are none of these.
    pub fn from_args(args: &[String]) -> Result<Self, Diagnostics> {
        let mut recipe = Self::default();
        recipe.apply(args)?;
        Ok(recipe)
    }

    /// Lays overrides over the recipe; the last of several wins. Takes the forms of [`Self::from_args`].
    ///
    /// # Errors
    /// Arguments that are none of these, and values in brackets or braces that aren't YAML.
    pub fn apply(&mut self, args: &[String]) -> Result<(), Diagnostics> {
        if args.is_empty() {
            return Ok(());
        }
        let source = self.sources.len();
        self.push_source("command line", &overrides::as_line(args), false);
        match overrides::parse(args, source) {
            Ok(given) => {
                for over in given {
                    self.set(over);
                }
                Ok(())
            }
            Err(faults) => Err(self.report(faults)),
        }
    }

    /// The home folder that `~/` in a path stands for. Without it such paths are errors.
    #[must_use]
    pub fn with_home(mut self, home: Option<PathBuf>) -> Self {
        self.home = home;
        self
    }

    /// Whether unknown keys are left out with a note (`ALLOW_EXTRA_ARGS=1`) instead of being errors.
    #[must_use]
    pub fn with_unknown_keys(mut self, allowed: bool) -> Self {
        self.allows_unknown = allowed;
        self
    }

    /// The keys as written, in order, each once.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|entry| entry.key.text.as_str())
    }

    /// The recipe with its overrides as one JSON object of texts, lists and objects, which reads as the same recipe;
    /// without access tokens.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let open = self.entries.iter().filter(|entry| !entry.key.is_secret());
        open.map(|entry| (entry.key.text.clone(), as_json(&entry.value))).collect::<serde_json::Map<_, _>>().into()
    }

    /// The same as values of their keys' types, by the keys' newest names, as trackers want them; what isn't of its key's type
    /// is as YAML 1.2 has it.
    #[must_use]
    pub fn to_typed_json(&self) -> serde_json::Map<String, serde_json::Value> {
        let open = self.entries.iter().filter(|entry| !entry.key.is_secret());
        open.map(|entry| {
            let key = keys::find(&entry.key.text).map(keys::canonical);
            let value = key.and_then(|key| coerce(key.kind, &entry.value).ok());
            let name = key.map_or(entry.key.text.as_str(), |key| key.name);
            let null = entry.value.is_null();
            (name.to_owned(), if null { serde_json::Value::Null } else { typed(value, &entry.value) })
        })
        .collect()
    }

    /// Name of the file, or `command line`.
    #[must_use]
    pub fn name(&self) -> &str {
        self.sources.first().map_or("command line", |source| source.name.as_str())
    }

    /// An error that was found elsewhere about the value of a key, with its place in this recipe.
    #[must_use]
    pub fn error_at(&self, key: &str, message: String) -> Diagnostic {
        let at = self.written(key).map(|value| value.at);
        self.diagnostic(Severity::Error, at, (message, None))
    }

    /// As [`Self::error_at`], about one item of a value that is a list, with the item's place.
    #[must_use]
    pub fn error_at_item(&self, key: &str, item: &str, message: String) -> Diagnostic {
        let is_item = |node: &&Node| matches!(&node.data, Data::Scalar { text, .. } if text.trim() == item);
        let at = self.written(key).map(|value| match &value.data {
            Data::List(items) => items.iter().find(is_item).map_or(value.at, |node| node.at),
            _ => self.item_within(value.at, item),
        });
        self.diagnostic(Severity::Error, at, (message, None))
    }

    /// Whether a value that is a list has this item.
    #[must_use]
    pub fn lists(&self, key: &str, item: &str) -> bool {
        self.written(key).is_some_and(|value| match &value.data {
            Data::Scalar { text, .. } => text.split(',').any(|part| part.trim() == item),
            Data::List(items) => {
                items.iter().any(|node| matches!(&node.data, Data::Scalar { text, .. } if text.trim() == item))
            }
            Data::Map(_) => false,
        })
    }

    /// The value of a key, whatever spelling of the key the recipe has.
    fn written(&self, key: &str) -> Option<&Node> {
        let means =
            |written: &str| written == key || keys::find(written).is_some_and(|k| keys::canonical(k).name == key);
        self.entries.iter().find(|entry| means(&entry.key.text)).map(|entry| &entry.value)
    }

    /// The place of `item` in a text with commas at `at`.
    fn item_within(&self, at: At, item: &str) -> At {
        let line = self.sources.get(at.source).map_or("", |source| source.line(at.line));
        let text: String = line.chars().skip(at.column.saturating_sub(1)).take(at.len).collect();
        let around = |c: char| c.is_whitespace() || matches!(c, '"' | '\'');
        let mut column = at.column;
        for part in text.split(',') {
            let bare = part.trim_start_matches(around);
            if bare.trim_end_matches(around) == item {
                let before = part.chars().count() - bare.chars().count();
                return At { column: column + before, len: item.chars().count(), ..at };
            }
            column += part.chars().count() + 1;
        }
        at
    }

    /// A message about a place in this recipe, or about the recipe as a whole.
    pub(crate) fn diagnostic(&self, severity: Severity, at: Option<At>, text: (String, Option<String>)) -> Diagnostic {
        let (message, help) = text;
        let place = at.and_then(|at| Some((at, self.sources.get(at.source)?)));
        let file = place.map_or_else(|| self.name(), |(_, source)| &source.name).to_owned();
        let span = place.map(|(at, source)| Span::new(&self.shown(source.line(at.line)), at.line, at.column, at.len));
        Diagnostic { severity, file, span, message, help }
    }

    /// Whether a source is a file, where a key stands once, and not a command line, where the last wins.
    pub(crate) fn is_file(&self, source: usize) -> bool {
        self.sources.get(source).is_some_and(|source| source.is_file)
    }

    /// A line as it may be shown: messages end up in logs, and tokens must not.
    fn shown<'a>(&self, line: &'a str) -> Cow<'a, str> {
        let mut shown = Cow::Borrowed(line);
        for entry in self.entries.iter().filter(|entry| entry.key.is_secret()) {
            if let Data::Scalar { text, .. } = &entry.value.data
                && text.len() >= 8
                && shown.contains(text)
            {
                shown = Cow::Owned(shown.replace(text, &"*".repeat(text.chars().count())));
            }
        }
        shown
    }

    fn report(&self, faults: Vec<Fault>) -> Diagnostics {
        let report = |fault: Fault| {
            let help = fault.help.map(str::to_owned);
            self.diagnostic(Severity::Error, fault.at, (fault.message, help))
        };
        Diagnostics(faults.into_iter().map(report).collect())
    }

    fn push_source(&mut self, name: &str, text: &str, is_file: bool) {
        let starts = text.match_indices('\n').map(|(index, _)| index + 1);
        self.sources.push(Source {
            name: name.to_owned(),
            text: text.to_owned(),
            is_file,
            lines: std::iter::once(0).chain(starts).collect(),
        });
    }

    /// Replaces a key's value; `a.b` reaches into the mapping of `a`.
    fn set(&mut self, over: overrides::Override) {
        let overrides::Override { key, path, value } = over;
        let value = path.into_iter().rev().fold(value, |inner, name| {
            let at = inner.at;
            Node { at, data: Data::Map(vec![(Key::new(name, at), inner)]) }
        });
        // At the end, so that entries stand in the order of their sources.
        let mut entry = Entry { key, value };
        if let Some(index) = self.entries.iter().position(|below| below.key.text == entry.key.text) {
            let mut below = self.entries.remove(index).value;
            lay_over(&mut below, entry.value);
            entry.value = below;
        }
        self.entries.push(entry);
    }
}

/// Mappings merge key by key, everything else is replaced.
fn lay_over(below: &mut Node, above: Node) {
    match (&mut below.data, above.data) {
        (Data::Map(old), Data::Map(new)) => {
            for (key, value) in new {
                match old.iter_mut().find(|(k, _)| k.text == key.text) {
                    Some((_, slot)) => lay_over(slot, value),
                    None => old.push((key, value)),
                }
            }
        }
        (data, new) => *data = new,
    }
    below.at = above.at;
}

impl Source {
    fn line(&self, number: usize) -> &str {
        let start = self.lines.get(number.saturating_sub(1)).copied().unwrap_or(self.text.len());
        let end = self.lines.get(number).copied().unwrap_or(self.text.len());
        &self.text[start..end]
    }
}

fn as_json(node: &Node) -> serde_json::Value {
    match &node.data {
        _ if node.is_null() => serde_json::Value::Null,
        Data::Scalar { text, .. } => text.clone().into(),
        Data::List(items) => items.iter().map(as_json).collect(),
        Data::Map(pairs) => {
            let open = pairs.iter().filter(|(key, _)| !key.is_secret());
            open.map(|(key, value)| (key.text.clone(), as_json(value))).collect::<serde_json::Map<_, _>>().into()
        }
    }
}

/// A value of a key's type as JSON.
fn typed(value: Option<Value>, node: &Node) -> serde_json::Value {
    match value {
        Some(Value::Bool(is_on)) => is_on.into(),
        Some(Value::Int(whole)) => whole.into(),
        Some(Value::Float(number)) => number.into(),
        Some(Value::Text(text)) => text.into(),
        Some(Value::List(items)) => items.into(),
        Some(Value::Floats(numbers)) => numbers.into(),
        Some(Value::Auto) => "auto".into(),
        Some(Value::Map(_) | Value::Any(_)) | None => untyped(as_json(node)),
    }
}

/// Scalars that read as JSON's, and all others as text.
fn untyped(value: serde_json::Value) -> serde_json::Value {
    use serde_json::Value as Json;
    match value {
        Json::String(text) => match serde_json::from_str(&text) {
            Ok(scalar @ (Json::Number(_) | Json::Bool(_))) => scalar,
            _ => text.into(),
        },
        Json::Array(items) => items.into_iter().map(untyped).collect(),
        Json::Object(map) => map.into_iter().map(|(key, value)| (key, untyped(value))).collect(),
        other => other,
    }
}

/// The text of a file, without a byte order mark.
fn decode<'a>(name: &str, bytes: &'a [u8]) -> Result<&'a str, Diagnostics> {
    let fail = |span, message: String, help: &str| {
        let help = Some(help.to_owned());
        Diagnostics::from(Diagnostic { severity: Severity::Error, file: name.to_owned(), span, message, help })
    };
    if bytes.len() > MAX_BYTES {
        let message = format!("{} bytes are too many for a recipe", bytes.len());
        return Err(fail(None, message, "is this a data file? a recipe is a short YAML or JSON file"));
    }
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(fail(None, "the file is in UTF-16".to_owned(), "save it as UTF-8"));
    }
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let good = std::str::from_utf8(&bytes[..e.valid_up_to()]).unwrap_or_default();
        let (line, last) = (good.matches('\n').count() + 1, good.rsplit('\n').next().unwrap_or_default());
        let shown = String::from_utf8_lossy(&bytes[good.len() - last.len()..]).lines().next().map(str::to_owned);
        let span = Span::new(&shown.unwrap_or_default(), line, last.chars().count() + 1, 1);
        let message = format!("invalid UTF-8 at byte {} of the file", e.valid_up_to());
        fail(Some(span), message, "save the file as UTF-8")
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}
