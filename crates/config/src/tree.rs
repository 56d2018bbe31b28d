//! The text of a recipe as a tree that remembers where everything stands.
//!
//! Scalars stay text: what `yes`, `1e-4` or `010` mean is decided by the type that the table of keys
//! gives the key, not by YAML's guesses. The parser is `saphyr-parser`; here its events become nodes,
//! with duplicate keys, aliases that explode, foreign tags and deep nesting refused.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::mem;

use saphyr_parser::{Event, Parser, ScalarStyle, Tag};

use crate::faults::{self, Fault};

/// Deepest nesting; recipes need three.
const MAX_DEPTH: usize = 64;
/// More repeated keys than this are not listed.
const MAX_TWICE: usize = 50;
/// Most values after expansion of aliases.
const MAX_NODES: usize = 100_000;

/// A place in one of a recipe's sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct At {
    /// Index of the source.
    pub source: usize,
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// In characters.
    pub len: usize,
}

/// A value and its place.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub at: At,
    pub data: Data,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Data {
    /// `quoted` scalars are never null.
    Scalar {
        text: String,
        quoted: bool,
    },
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A key of a mapping and its place.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Key {
    pub at: At,
    pub text: String,
    /// `<<` without quotes merges another mapping.
    quoted: bool,
}

impl Key {
    /// Whether its value must not be shown.
    pub(crate) fn is_secret(&self) -> bool {
        ["_token", "_api_key", "_secret", "_webhook_url"].iter().any(|end| self.text.ends_with(end))
    }

    pub(crate) fn new(text: String, at: At) -> Self {
        Self { at, text, quoted: true }
    }

    fn is_merge(&self) -> bool {
        self.text == "<<" && !self.quoted
    }
}

impl Node {
    /// A scalar that stands in no file.
    pub(crate) fn plain(text: &str, at: At) -> Self {
        Self { at, data: Data::Scalar { text: text.to_owned(), quoted: false } }
    }

    /// `null`, `~` or nothing, unquoted.
    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.data, Data::Scalar { text, quoted: false }
            if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// What a copy of the node costs: values, and long texts by their length.
    fn weight(&self) -> usize {
        1 + match &self.data {
            Data::Scalar { text, .. } => text.len() / 32,
            Data::List(items) => items.iter().map(Self::weight).sum(),
            Data::Map(pairs) => pairs.iter().map(|(key, value)| 1 + key.text.len() / 32 + value.weight()).sum(),
        }
    }
}

/// A text that could be read to its end.
#[derive(Debug, Default)]
pub(crate) struct Parsed {
    /// `None` if the text holds no value.
    pub root: Option<Node>,
    /// Keys that are written twice, with what is said of that; the first one counts.
    pub twice: Vec<(String, Fault)>,
}

impl Parsed {
    /// The value, if nothing is wrong with it.
    pub(crate) fn sound(self) -> Option<Node> {
        self.root.filter(|_| self.twice.is_empty())
    }
}

/// Reads one YAML document.
pub(crate) fn parse(text: &str, source: usize) -> Result<Parsed, Fault> {
    let mut composer = Composer::default();
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|e| faults::of_scanner(&e, text, source))?;
        let (start, end) = (span.start, span.end);
        let len = if end.line() == start.line() { end.col().saturating_sub(start.col()) } else { 1 };
        let at = At { source, line: start.line(), column: start.col() + 1, len: len.max(1) };
        if matches!(event, Event::StreamEnd) {
            break;
        }
        composer.event(event, at)?;
    }
    Ok(composer.parsed)
}

/// A list or mapping that is still open.
struct Frame {
    at: At,
    anchor: usize,
    data: Data,
    /// Key that waits for its value.
    key: Option<Key>,
    /// Line of each key so far.
    seen: HashMap<String, usize>,
}

#[derive(Default)]
struct Composer {
    parsed: Parsed,
    open: Vec<Frame>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
}

impl Composer {
    fn event(&mut self, event: Event<'_>, at: At) -> Result<(), Fault> {
        match event {
            Event::DocumentStart(_) if self.parsed.root.is_some() => Err(Fault::new(
                at,
                "a second document begins here",
                "a recipe is one document: remove the `---` line or split the file",
            )),
            Event::Scalar(text, style, anchor, tag) => {
                let quoted = style != ScalarStyle::Plain || is_string(tag.as_deref(), at)?;
                let node = Node { at, data: Data::Scalar { text: text.into_owned(), quoted } };
                self.add(node, anchor)
            }
            Event::SequenceStart(anchor, tag) => self.open(at, anchor, Data::List(Vec::new()), tag.as_deref()),
            Event::MappingStart(anchor, tag) => self.open(at, anchor, Data::Map(Vec::new()), tag.as_deref()),
            Event::SequenceEnd | Event::MappingEnd => {
                let mut frame = self.open.pop().expect("the parser closes only what it opened");
                if let Data::Map(pairs) = &mut frame.data {
                    merge(pairs)?;
                }
                self.add(Node { at: frame.at, data: frame.data }, frame.anchor)
            }
            Event::Alias(id) => {
                let Some(node) = self.anchors.get(&id) else {
                    return Err(Fault::new(at, "an alias inside its own anchor", "write the value out"));
                };
                self.nodes += node.weight();
                self.check_size(at)?;
                let node = Node { at, data: self.anchors[&id].data.clone() };
                self.add(node, 0)
            }
            _ => Ok(()),
        }
    }

    fn check_size(&self, at: At) -> Result<(), Fault> {
        if self.nodes <= MAX_NODES {
            return Ok(());
        }
        let message = format!("the recipe holds more than {MAX_NODES} values");
        Err(Fault::new(at, message, "is this file a recipe? aliases count as often as they are used"))
    }

    fn open(&mut self, at: At, anchor: usize, data: Data, tag: Option<&Tag>) -> Result<(), Fault> {
        is_string(tag, at)?;
        if self.open.len() >= MAX_DEPTH {
            let message = format!("nested more than {MAX_DEPTH} levels deep");
            return Err(Fault::new(at, message, "recipes are flat: `key: value` a line"));
        }
        if self.open.last().is_some_and(|frame| matches!(frame.data, Data::Map(_)) && frame.key.is_none()) {
            return Err(Fault::new(at, "a list or mapping stands where a key is expected", "write `key: value`"));
        }
        self.open.push(Frame { at, anchor, data, key: None, seen: HashMap::new() });
        Ok(())
    }

    /// Puts a finished node where it belongs.
    fn add(&mut self, node: Node, anchor: usize) -> Result<(), Fault> {
        self.nodes += 1;
        self.check_size(node.at)?;
        if anchor != 0 {
            self.nodes += node.weight();
            self.check_size(node.at)?;
            self.anchors.insert(anchor, node.clone());
        }
        let Some(frame) = self.open.last_mut() else {
            self.parsed.root = Some(node);
            return Ok(());
        };
        match (&mut frame.data, frame.key.take()) {
            (Data::List(items), _) => items.push(node),
            (Data::Map(pairs), Some(key)) => {
                let first = match frame.seen.entry(key.text.clone()) {
                    Entry::Occupied(first) if !key.is_merge() => Some(*first.get()),
                    Entry::Occupied(_) => None,
                    Entry::Vacant(slot) => {
                        slot.insert(key.at.line);
                        None
                    }
                };
                match first {
                    None => pairs.push((key, node)),
                    Some(line) if self.parsed.twice.len() < MAX_TWICE => {
                        let message = format!("`{}` is written twice: first on line {line}", clip(&key.text));
                        let fault = Fault::new(key.at, message, "remove one of the two");
                        self.parsed.twice.push((key.text, fault));
                    }
                    Some(_) => {}
                }
            }
            (Data::Map(_), None) => match node.data {
                Data::Scalar { text, quoted } => frame.key = Some(Key { at: node.at, text, quoted }),
                _ => {
                    return Err(Fault::new(node.at, "a key must be a name", "write `key: value`"));
                }
            },
            (Data::Scalar { .. }, _) => unreachable!("only lists and mappings are opened"),
        }
        Ok(())
    }
}

/// Replaces `<<: *base` by the base's keys, those written out winning.
fn merge(pairs: &mut Vec<(Key, Node)>) -> Result<(), Fault> {
    if !pairs.iter().any(|(key, _)| key.is_merge()) {
        return Ok(());
    }
    let (merges, own): (Vec<_>, Vec<_>) = mem::take(pairs).into_iter().partition(|(key, _)| key.is_merge());
    let mut seen: HashSet<String> = own.iter().map(|(key, _)| key.text.clone()).collect();
    *pairs = own;
    for (key, node) in merges {
        let bases = match node.data {
            Data::List(items) => items,
            data => vec![Node { at: node.at, data }],
        };
        for base in bases {
            let Data::Map(inherited) = base.data else {
                let help = "write `<<: *anchor-of-a-mapping`";
                return Err(Fault::new(key.at, "`<<` merges mappings only", help));
            };
            pairs.extend(inherited.into_iter().filter(|(name, _)| seen.insert(name.text.clone())));
        }
    }
    Ok(())
}

/// Whether a tag makes a plain scalar a string. Tags that would make it something else than data
/// are refused.
fn is_string(tag: Option<&Tag>, at: At) -> Result<bool, Fault> {
    let Some(tag) = tag else { return Ok(false) };
    match tag.suffix.as_str() {
        "str" if tag.is_yaml_core_schema() => Ok(true),
        "int" | "float" | "bool" | "null" | "map" | "seq" if tag.is_yaml_core_schema() => Ok(false),
        _ => Err(Fault::new(at, format!("the tag `{}` is not supported", clip(&tag.to_string())), "remove the tag")),
    }
}

/// At most 60 characters of a name or value, for a message.
pub(crate) fn clip(text: &str) -> String {
    let mut short: String = text.chars().take(60).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(60).is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> (String, usize, usize) {
        let fault = match parse(text, 0) {
            Ok(mut parsed) => parsed.twice.remove(0).1,
            Err(fault) => fault,
        };
        let at = fault.at.expect("has a place");
        (fault.message, at.line, at.column)
    }

    fn root(text: &str) -> Node {
        parse(text, 0).unwrap().sound().unwrap()
    }

    #[test]
    fn values_keep_their_places() {
        let root = root("a: 1\r\nb:\r\n  - x\r\n  - é y\r\n");
        let Data::Map(pairs) = root.data else { panic!("{root:?}") };
        assert_eq!((pairs[0].1.at.line, pairs[0].1.at.column, pairs[0].1.at.len), (1, 4, 1));
        let Data::List(items) = &pairs[1].1.data else { panic!() };
        assert_eq!((items[1].at.line, items[1].at.column, items[1].at.len), (4, 5, 3));
    }

    #[test]
    fn malformed_yaml_is_named_at_the_line_to_change() {
        let cases = [
            ("a: 1\n\tb: 2\n", "a tab is used for indentation", 2, 1),
            ("a:\n\t- x\n", "a tab is used for indentation", 2, 1),
            ("a: 1\nb 2\nc: 3\n", "expected `key: value`", 2, 1),
            ("a: b: c\n", "a `: ` stands where none can be", 1, 5),
            ("a: 'x\n", "a quote is opened and never closed", 1, 4),
            ("a:\n  b: 1\n c: 2\n", "the indentation fits no line above", 3, 2),
            ("a: [1, 2\n", "a `[` or `{` is not closed, or a comma is missing", 2, 1),
            ("a: *x\n", "an alias without an anchor", 1, 4),
            ("a: @x\n", "a value can't begin with this character", 1, 4),
            ("a: 1\n---\nb: 2\n", "a second document begins here", 2, 1),
            ("a: 1\nb: 2\na: 3\n", "`a` is written twice: first on line 1", 3, 1),
            ("a: &a [*a]\n", "an alias inside its own anchor", 1, 8),
            (
                "a: !!python/name:os.system x\n",
                "the tag `tag:yaml.org,2002:!python/name:os.system` is not supported",
                1,
                4,
            ),
            ("? [a]\n: 1\n", "a list or mapping stands where a key is expected", 1, 3),
            ("<<: 3\n", "`<<` merges mappings only", 1, 1),
        ];
        for (text, message, line, column) in cases {
            assert_eq!(fault(text), (message.to_owned(), line, column), "{text:?}");
        }
    }

    #[test]
    fn anchors_aliases_and_merges_work() {
        let root = root("x: &base {a: 1, b: 2}\ny:\n  b: 3\n  <<: *base\nz: *base\n");
        let Data::Map(pairs) = root.data else { panic!() };
        let Data::Map(y) = &pairs[1].1.data else { panic!() };
        let names: Vec<_> = y.iter().map(|(k, v)| (k.text.as_str(), v.at.line)).collect();
        assert_eq!(names, [("b", 3), ("a", 1)]);
        assert_eq!(pairs[2].1.at.line, 5, "an alias stands where it is used");
    }

    #[test]
    fn exploding_aliases_and_deep_nesting_are_refused() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for i in 1..12 {
            let refs = vec![format!("*a{}", i - 1); 10].join(", ");
            bomb += &format!("a{i}: &a{i} [{refs}]\n");
        }
        assert_eq!(fault(&bomb).0, "the recipe holds more than 100000 values");
        let long = format!("a: &a {}\nb: [{}]", "x".repeat(1_000_000), vec!["*a"; 1000].join(", "));
        assert_eq!(fault(&long).0, "the recipe holds more than 100000 values");
        assert_eq!(fault(&("a: ".to_owned() + &"[".repeat(70))).0, "nested more than 64 levels deep");
        let steps: String = (0..2000).map(|i| " ".repeat(i) + "a:\n").collect();
        assert_eq!(fault(&steps).0, "nested more than 64 levels deep");
    }
}
