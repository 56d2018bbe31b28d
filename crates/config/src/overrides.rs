//! Keys given on the command line: `key=value`, `--key value`, `--key=value`, `--flag`, `--no_flag`.
//!
//! The shell has already split the words, so a value keeps its spaces and its colons: it is taken
//! as it is, unless it is wholly quoted, or a list or mapping in brackets for a key that isn't text.
//! `a.b=1` sets a key inside the mapping `a`.

use crate::faults::Fault;
use crate::keys::{self, Kind};
use crate::tree::{self, At, Data, Key, Node, Parsed, clip};
use crate::value::boolean;

/// One key's new value.
pub(crate) struct Override {
    pub key: Key,
    /// Names inside the key's mapping.
    pub path: Vec<String>,
    pub value: Node,
}

/// All arguments as one line, so that messages can point into it.
pub(crate) fn as_line(args: &[String]) -> String {
    args.join(" ").replace(['\n', '\r'], " ")
}

/// Reads arguments; places are columns of [`as_line`].
pub(crate) fn parse(args: &[String], source: usize) -> Result<Vec<Override>, Vec<Fault>> {
    let (mut overrides, mut faults) = (Vec::new(), Vec::new());
    let mut words = Words { args, source, next: 0, column: 1 };
    while let Some(found) = words.take_override() {
        match found {
            Ok(one) => overrides.push(one),
            Err(fault) => faults.push(fault),
        }
    }
    if faults.is_empty() { Ok(overrides) } else { Err(faults) }
}

struct Words<'a> {
    args: &'a [String],
    source: usize,
    next: usize,
    column: usize,
}

impl<'a> Words<'a> {
    fn peek(&self) -> Option<&'a str> {
        self.args.get(self.next).map(String::as_str)
    }

    fn take(&mut self) -> Option<(&'a str, At)> {
        let word = self.peek()?;
        let len = word.chars().count();
        let at = At { source: self.source, line: 1, column: self.column, len: len.max(1) };
        self.next += 1;
        self.column += len + 1;
        Some((word, at))
    }

    fn take_override(&mut self) -> Option<Result<Override, Fault>> {
        let (word, at) = self.take()?;
        let bare = word.strip_prefix("--");
        if let Some((name, value)) = bare.unwrap_or(word).split_once('=') {
            let before = word.len() - value.len();
            let start = at.column + word[..before].chars().count();
            let value_at = At { column: start, len: value.chars().count().max(1), ..at };
            return Some(build(name, at, read(kind_of(name), value, value_at)));
        }
        let Some(name) = bare.filter(|name| !name.is_empty()) else {
            return Some(Err(Fault {
                at: Some(at),
                message: format!("unexpected argument '{}'", clip(word)),
                help: Some(if is_recipe(word) {
                    "the recipe comes first, then `key=value`; variables, as NNODES=2, stand in front of the command"
                } else {
                    "write `key=value` or `--key value`; put quotes around a value with spaces"
                }),
            }));
        };
        let kind = kind_of(name);
        // `--no_x` is `--x false`, as argparse has it for flags.
        let plain_name = name.replace('-', "_");
        let negated = plain_name.strip_prefix("no_").filter(|rest| kind.is_none() && kind_of(rest) == Some(Kind::Bool));
        if let Some(rest) = negated {
            return Some(build(rest, at, Ok(Node::plain("false", at))));
        }
        let is_flag = matches!(kind, Some(Kind::Bool | Kind::BoolOrAuto));
        let takes_next = match self.peek() {
            None => false,
            Some(next) if next.starts_with("--") => false,
            Some(next) => !is_flag || boolean(next).is_some() || next == "auto",
        };
        if takes_next {
            let (value, value_at) = self.take()?;
            return Some(build(name, at, read(kind, value, value_at)));
        }
        if is_flag || kind.is_none() {
            return Some(build(name, at, Ok(Node::plain("true", at))));
        }
        Some(Err(Fault {
            at: Some(at),
            message: format!("`--{}` needs a value", clip(name)),
            help: Some("write `--key value` or `key=value`"),
        }))
    }
}

fn build(name: &str, at: At, value: Result<Node, Fault>) -> Result<Override, Fault> {
    let value = value?;
    let mut parts = name.split('.').map(str::to_owned);
    let key = parts.next().unwrap_or_default().replace('-', "_");
    let path: Vec<String> = parts.collect();
    if key.is_empty() || path.iter().any(String::is_empty) {
        let message = format!("no key before the `=` in '{}'", clip(name));
        return Err(Fault { at: Some(at), message, help: Some("write `key=value`") });
    }
    if path.len() > 8 {
        let message = format!("'{}' reaches too deep", clip(name));
        return Err(Fault { at: Some(at), message, help: Some("recipes nest two levels at most") });
    }
    Ok(Override { key: Key::new(key, at), path, value })
}

/// Whether a word looks like the name of a recipe file.
fn is_recipe(word: &str) -> bool {
    [".yaml", ".yml", ".json"].iter().any(|end| word.to_ascii_lowercase().ends_with(end))
}

/// The type of a key, or of the key that it is an old spelling of.
fn kind_of(name: &str) -> Option<Kind> {
    keys::find(&name.replace('-', "_")).map(|key| keys::canonical(key).kind)
}

/// A value as typed; YAML only where it is plainly meant.
fn read(kind: Option<Kind>, text: &str, at: At) -> Result<Node, Fault> {
    let trimmed = text.trim();
    let quoted = ['"', '\''].iter().any(|q| trimmed.len() > 1 && trimmed.starts_with(*q) && trimmed.ends_with(*q));
    if quoted {
        // `"a" and "b"` is quoted at both ends and still plain text.
        let scalar = tree::parse(trimmed, at.source).ok().and_then(Parsed::sound);
        return Ok(match scalar {
            Some(Node { data: data @ Data::Scalar { .. }, .. }) => Node { at, data },
            _ => Node::plain(text, at),
        });
    }
    if matches!(kind, Some(Kind::Text | Kind::Path)) || !trimmed.starts_with(['[', '{']) {
        return Ok(Node::plain(text, at));
    }
    let mut node = tree::parse(trimmed, at.source).ok().and_then(Parsed::sound).ok_or_else(|| Fault {
        at: Some(at),
        message: format!("'{}' is not valid YAML", clip(text)),
        help: Some("write `[a, b]` or `{name: value}`"),
    })?;
    place(&mut node, at);
    Ok(node)
}

/// Everything inside the argument stands where the argument stands.
fn place(node: &mut Node, at: At) {
    node.at = at;
    match &mut node.data {
        Data::Scalar { .. } => {}
        Data::List(items) => items.iter_mut().for_each(|item| place(item, at)),
        Data::Map(pairs) => {
            for (key, value) in pairs {
                key.at = at;
                place(value, at);
            }
        }
    }
}
