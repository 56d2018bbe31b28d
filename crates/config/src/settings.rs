//! A recipe laid over the table of keys: typed values, defaults, and everything that is to be said
//! about single keys. What keys mean together is in `resolve`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use crate::diagnostic::{Diagnostic, Diagnostics, Severity};
use crate::env;
use crate::keys::{self, Key, Kind, State};
use crate::recipe::{Entry, Recipe};
use crate::tree::{At, Node, clip};
use crate::value::{Value, coerce};

/// More errors than this help nobody.
const MAX_ERRORS: usize = 100;

/// Typed values of a recipe, and what was found while reading them.
pub(crate) struct Settings<'r> {
    recipe: &'r Recipe,
    written: BTreeMap<&'static str, Written<'r>>,
    errors: Vec<(Option<At>, Diagnostic)>,
    notes: Vec<(Option<At>, Diagnostic)>,
    /// Keys that are written twice, so that it isn't known which counts.
    doubled: BTreeSet<&'static str>,
}

struct Written<'r> {
    /// `None` is an explicit null, or a value that was refused.
    value: Option<Value>,
    node: &'r Node,
    /// The spelling that was used.
    name: &'static str,
    key_at: At,
}

impl<'r> Settings<'r> {
    /// Reads every key of a recipe.
    pub(crate) fn new(recipe: &'r Recipe) -> Self {
        let mut settings =
            Self { recipe, written: BTreeMap::new(), errors: Vec::new(), notes: Vec::new(), doubled: BTreeSet::new() };
        for (key, fault) in &recipe.twice {
            settings.error_help(fault.at, fault.message.clone(), fault.help.map(str::to_owned));
            let name = keys::find(key).map(|row| keys::canonical(row).name);
            settings.doubled.extend(name);
        }
        for entry in &recipe.entries {
            if settings.errors.len() >= MAX_ERRORS {
                let message = format!("more than {MAX_ERRORS} errors; the rest is not shown");
                settings.error_at(None, message, "is this file a recipe?");
                break;
            }
            settings.read(entry);
        }
        settings.read_paths();
        settings
    }

    fn read(&mut self, entry: &'r Entry) {
        let (name, at) = (entry.key.text.as_str(), entry.key.at);
        let Some(row) = keys::find(name) else {
            let upper = name.to_ascii_uppercase();
            let variable = env::ALL.iter().find(|(variable, _)| *variable == upper);
            let help = match (variable, keys::nearest(name)) {
                (Some((variable, _)), _) => {
                    format!("{variable} is a variable of the environment: write {variable}=... in front of the command")
                }
                (None, Some(nearest)) => format!("did you mean `{nearest}`?"),
                (None, None) => "see the list of keys in docs/recipe-keys.md".to_owned(),
            };
            let message = format!("unknown key `{}`", clip(name));
            return if !self.recipe.allows_unknown {
                self.error_at(Some(at), message, &help);
            } else if self.notes.len() < MAX_ERRORS {
                self.note_at(Some(at), format!("{message} is left out"), &help);
            };
        };
        let key = keys::canonical(row);
        if let Some(other) = self.written.get(key.name) {
            // Within a file two spellings contradict each other; a later source wins.
            if other.key_at.source == at.source && self.recipe.is_file(at.source) {
                let (first, line) = (other.name, other.key_at.line);
                let message = format!("`{}` and `{first}` are the same key: `{first}` stands on line {line}", row.name);
                self.doubled.insert(key.name);
                return self.error_at(Some(at), message, "remove one of the two");
            }
        }
        let value = if entry.value.is_null() { None } else { self.typed(key, &entry.value) };
        if row.name != key.name && !entry.value.is_null() {
            let message = format!("`{}` is an old spelling of `{}`", row.name, key.name);
            self.note_at(Some(at), message, &format!("write `{}`", key.name));
        }
        if let Some(value) = &value {
            self.judge(key, value, at);
        }
        self.written.insert(key.name, Written { value, node: &entry.value, name: row.name, key_at: at });
    }

    fn typed(&mut self, key: &Key, node: &Node) -> Option<Value> {
        match coerce(key.kind, node) {
            Ok(value) => Some(value),
            Err(mismatch) => {
                let message = format!("`{}`: {}", key.name, mismatch.message);
                let help =
                    mismatch.help.unwrap_or_else(|| format!("write, for example, `{}: {}`", key.name, key.example()));
                self.error_at(Some(node.at), message, &help);
                None
            }
        }
    }

    /// What is to be said about a key whatever the others are.
    fn judge(&mut self, key: &'static Key, value: &Value, at: At) {
        if default_of(key).as_ref() == Some(value) {
            return;
        }
        match key.state {
            State::NoEffect(why) => self.note_at(Some(at), format!("`{}` has no effect: {why}", key.name), ""),
            State::Unsupported(instead) => {
                let off = default_of(key).is_none() && *value == Value::Bool(false);
                if !off {
                    self.error_at(Some(at), format!("`{}` is not supported", key.name), instead);
                }
            }
            State::Old(_, now) => {
                self.note_at(Some(at), format!("`{}` is an old spelling", key.name), &format!("write {now}"))
            }
            State::Works(_) | State::Alias(_) => {}
        }
    }

    /// Puts the home folder where a path begins with `~/`.
    fn read_paths(&mut self) {
        let home = self.recipe.home.clone();
        let mut homeless = Vec::new();
        for (name, written) in &mut self.written {
            let is_path = keys::find(name).is_some_and(|key| key.kind == Kind::Path) || *name == "adapter_name_or_path";
            let texts: &mut [String] = match &mut written.value {
                Some(Value::Text(text)) if is_path => std::slice::from_mut(text),
                Some(Value::List(items)) if is_path => items,
                _ => continue,
            };
            for text in texts {
                let Some(rest) = text.strip_prefix("~/") else {
                    continue;
                };
                match home.as_ref().and_then(|home| home.to_str()) {
                    Some(home) => *text = format!("{home}/{rest}"),
                    None => homeless.push((written.node.at, *name)),
                }
            }
        }
        for (at, name) in homeless {
            let message = format!("`{name}`: `~` stands for a home folder, and none is known");
            self.error_at(Some(at), message, "write the whole path");
        }
    }

    /// Whether the key is in the recipe with a value that isn't null.
    pub(crate) fn is_set(&self, name: &'static str) -> bool {
        self.written.get(name).is_some_and(|written| !written.node.is_null())
    }

    /// Whether the key says something other than its default.
    pub(crate) fn says(&self, name: &'static str) -> bool {
        keys::find(name).is_none_or(|key| self.value(name) != default_of(key))
    }

    /// The value as written.
    pub(crate) fn node(&self, name: &'static str) -> Option<&'r Node> {
        self.written.get(name).map(|written| written.node).filter(|node| !node.is_null())
    }

    /// A value in words, the default's where none is written.
    pub(crate) fn shown(&self, name: &'static str) -> String {
        match self.value(name) {
            Some(Value::Bool(value)) => value.to_string(),
            Some(Value::Int(value)) => value.to_string(),
            Some(Value::Float(value)) => value.to_string(),
            Some(Value::Text(text)) => text,
            Some(Value::List(items)) => items.join(", "),
            _ => self.node(name).map(crate::common::text).unwrap_or_default(),
        }
    }

    /// Whether the key is in the recipe as null.
    pub(crate) fn is_null(&self, name: &'static str) -> bool {
        self.written.get(name).is_some_and(|written| written.node.is_null())
    }

    /// Whether a needed key is missing. One whose value was refused has had its error.
    pub(crate) fn lacks(&self, name: &'static str) -> bool {
        let refused = self.is_set(name) && self.written.get(name).is_some_and(|written| written.value.is_none());
        let empty = match self.value(name) {
            Some(Value::Text(text)) => text.is_empty(),
            Some(Value::List(items)) => items.is_empty(),
            value => value.is_none(),
        };
        empty && !refused
    }

    /// Whether what the recipe says by this key isn't known: a value that was refused, two values, or a file that is no recipe.
    pub(crate) fn is_unclear(&self, name: &'static str) -> bool {
        let refused = self.is_set(name) && self.written.get(name).is_some_and(|written| written.value.is_none());
        refused || self.doubled.contains(name) || self.errors.len() >= MAX_ERRORS
    }

    fn value(&self, name: &'static str) -> Option<Value> {
        let key = keys::find(name).expect("resolve asks for keys of the table; a test walks through all");
        self.written.get(name).and_then(|written| written.value.clone()).or_else(|| default_of(key))
    }

    pub(crate) fn bool(&self, name: &'static str) -> bool {
        self.opt_bool(name).unwrap_or(false)
    }

    pub(crate) fn opt_bool(&self, name: &'static str) -> Option<bool> {
        match self.value(name) {
            Some(Value::Bool(value)) => Some(value),
            _ => None,
        }
    }

    pub(crate) fn opt_int(&self, name: &'static str) -> Option<i64> {
        match self.value(name) {
            Some(Value::Int(value)) => Some(value),
            _ => None,
        }
    }

    /// A whole number whose row has a default.
    pub(crate) fn int(&self, name: &'static str) -> i64 {
        self.opt_int(name).expect("the row has a whole default")
    }

    /// A whole number that the table keeps at 0 or above.
    pub(crate) fn count(&self, name: &'static str) -> usize {
        usize::try_from(self.int(name)).unwrap_or(usize::MAX)
    }

    pub(crate) fn opt_count(&self, name: &'static str) -> Option<usize> {
        self.opt_int(name).map(|n| usize::try_from(n).unwrap_or(usize::MAX))
    }

    pub(crate) fn opt_float(&self, name: &'static str) -> Option<f64> {
        match self.value(name) {
            Some(Value::Float(value)) => Some(value),
            _ => None,
        }
    }

    /// A number whose row has a default.
    pub(crate) fn float(&self, name: &'static str) -> f64 {
        self.opt_float(name).expect("the row has a number as default")
    }

    pub(crate) fn opt_text(&self, name: &'static str) -> Option<String> {
        match self.value(name) {
            Some(Value::Text(value)) => Some(value),
            _ => None,
        }
    }

    pub(crate) fn text(&self, name: &'static str) -> String {
        self.opt_text(name).unwrap_or_default()
    }

    pub(crate) fn opt_path(&self, name: &'static str) -> Option<PathBuf> {
        self.opt_text(name).filter(|text| !text.is_empty()).map(PathBuf::from)
    }

    pub(crate) fn list(&self, name: &'static str) -> Vec<String> {
        match self.value(name) {
            Some(Value::List(items)) => items,
            _ => Vec::new(),
        }
    }

    pub(crate) fn opt_floats(&self, name: &'static str) -> Option<Vec<f64>> {
        match self.value(name) {
            Some(Value::Floats(items)) => Some(items),
            _ => None,
        }
    }

    pub(crate) fn map(&self, name: &'static str) -> Vec<(String, Node)> {
        match self.value(name) {
            Some(Value::Map(pairs)) => pairs,
            _ => Vec::new(),
        }
    }

    /// An error at a key's value, or about the recipe if the key isn't written.
    pub(crate) fn error(&mut self, name: &'static str, message: impl Into<String>, help: &str) {
        let at = self.written.get(name).map(|written| written.node.at);
        self.error_at(at, message.into(), help);
    }

    /// A note at a key's value.
    pub(crate) fn note(&mut self, name: &'static str, message: impl Into<String>, help: &str) {
        let at = self.written.get(name).map(|written| written.node.at);
        self.note_at(at, message.into(), help);
    }

    pub(crate) fn error_at(&mut self, at: Option<At>, message: String, help: &str) {
        self.error_help(at, message, Some(help.to_owned()));
    }

    /// An error about a place in another file that the recipe names.
    pub(crate) fn error_in(&mut self, file: &Recipe, at: At, message: String, help: &str) {
        let diagnostic = file.diagnostic(Severity::Error, Some(at), (message, Some(help.to_owned())));
        self.errors.push((None, diagnostic));
    }

    fn error_help(&mut self, at: Option<At>, message: String, help: Option<String>) {
        let diagnostic = self.recipe.diagnostic(Severity::Error, at, (message, help));
        self.errors.push((at, diagnostic));
    }

    fn note_at(&mut self, at: Option<At>, message: String, help: &str) {
        let help = (!help.is_empty()).then(|| help.to_owned());
        let diagnostic = self.recipe.diagnostic(Severity::Note, at, (message, help));
        self.notes.push((at, diagnostic));
    }

    /// The notes, or all errors; both in the order of the sources, what has no place last.
    pub(crate) fn finish(self) -> Result<Vec<Diagnostic>, Diagnostics> {
        let ordered = |mut list: Vec<(Option<At>, Diagnostic)>| {
            list.sort_by_key(|(at, _)| (at.is_none(), *at));
            list.into_iter().map(|(_, diagnostic)| diagnostic).collect::<Vec<_>>()
        };
        if self.errors.is_empty() { Ok(ordered(self.notes)) } else { Err(Diagnostics(ordered(self.errors))) }
    }
}

/// A row's default; `None` if it is null.
fn default_of(key: &Key) -> Option<Value> {
    if key.default == "null" {
        return None;
    }
    let nowhere = At { source: 0, line: 1, column: 1, len: 1 };
    Some(
        coerce(key.kind, &Node::plain(key.default, nowhere))
            .expect("defaults have their row's type; a test checks all"),
    )
}
