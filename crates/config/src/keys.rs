//! Every key that a recipe may hold: name, type, default, and what it does here.
//!
//! The only place that knows LLaMA-Factory's and transformers' spellings. Parsing, type errors,
//! nearest-name hints, notes about keys without effect, errors about what isn't supported, and the
//! reference page are all read off these rows. A literal test (`tests/keys.txt`) freezes the list.

mod data;
mod generation;
mod model;
mod output;
mod system;
mod training;
mod tuning;

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Key {
    /// As written in a recipe.
    pub name: &'static str,
    /// What its value must be.
    pub kind: Kind,
    /// The value if it isn't written, as YAML; `null` means none.
    pub default: &'static str,
    /// What it does here.
    pub state: State,
}

/// What a key does here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It works; what it means.
    Works(&'static str),
    /// It works, but has a newer spelling; what it means, and what to write instead.
    Old(&'static str, &'static str),
    /// Accepted without effect, and a note says why.
    NoEffect(&'static str),
    /// Anything but the default is an error; what to do instead.
    Unsupported(&'static str),
    /// Another name of a key.
    Alias(&'static str),
}

/// The type of a key's value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// `true`, `false`, and YAML 1.1's `yes`, `no`, `on`, `off`, `y`, `n`.
    Bool,
    /// The same, or `auto`.
    BoolOrAuto,
    /// A whole number, not below the given one.
    Int(i64),
    /// A number in a range.
    Float(Range),
    /// Text.
    Text,
    /// Text in which a leading `~/` is the home folder.
    Path,
    /// Names: a YAML list, or text with commas.
    List,
    /// Numbers: a YAML list, or text with commas.
    Floats,
    /// One of some names.
    Choice(&'static Choices),
    /// Names with values.
    Map,
    /// Anything: the key has no meaning here.
    Any,
}

/// Which numbers are allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Range {
    /// Any finite number.
    Any,
    /// 0 and above.
    NotNegative,
    /// Above 0.
    Positive,
    /// 0 and above, below 1.
    Share,
}

/// The names a key may have.
#[derive(Debug, PartialEq, Eq)]
pub struct Choices {
    /// Those that work.
    pub here: &'static [&'static str],
    /// Those that LLaMA-Factory knows and this program doesn't.
    pub elsewhere: &'static [&'static str],
    /// What to do instead of the latter.
    pub instead: &'static str,
}

/// The table, in groups with a title.
pub const GROUPS: &[(&str, &[Key])] = &[
    ("Model", model::KEYS),
    ("Fine-tuning", tuning::KEYS),
    ("Other ways to train", tuning::ELSEWHERE),
    ("Data", data::KEYS),
    ("Training", training::KEYS),
    ("Evaluation", training::EVALUATION),
    ("Output", output::KEYS),
    ("Generation", generation::KEYS),
    ("Export", generation::EXPORT),
    ("Processes and devices", system::KEYS),
    ("Other programs", system::ELSEWHERE),
    ("Old spellings", system::OLD),
];

/// All rows.
pub fn all() -> impl Iterator<Item = &'static Key> {
    GROUPS.iter().flat_map(|(_, keys)| keys.iter())
}

/// The row of a name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Key> {
    all().find(|key| key.name == name)
}

/// The row itself, or the row that it is another name of.
#[must_use]
pub fn canonical(key: &'static Key) -> &'static Key {
    match key.state {
        State::Alias(of) => find(of).expect("an alias names a row; a test checks all"),
        _ => key,
    }
}

/// The name that an unknown one was probably meant to be: the first in the table that is the same with more to it, as a
/// part of a name is closer in meaning than in edits; else the one hardly misspelt.
#[must_use]
pub fn nearest(name: &str) -> Option<&'static str> {
    let part = spelt_as_here(name);
    let names = || all().map(|key| key.name);
    names().find(|candidate| lengthens(&part, candidate)).or_else(|| nearest_of(name, names()))
}

/// The candidate with the fewest edits, if these are one, or at most a quarter of the name.
pub(crate) fn nearest_of(name: &str, candidates: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    let length = name.chars().count();
    // A long text is no misspelt name, and distances cost its length.
    if length > 64 {
        return None;
    }
    let name = spelt_as_here(name);
    candidates
        .map(|candidate| (strsim::damerau_levenshtein(&name, candidate), candidate))
        .min()
        .filter(|(edits, _)| *edits <= (length / 4).max(1))
        .map(|(_, candidate)| candidate)
}

fn spelt_as_here(name: &str) -> String {
    name.to_lowercase().replace('-', "_")
}

/// Whether `candidate` is `name` with more behind it, or with more words between, as `batch_size` lacks some of
/// `per_device_train_batch_size`. A word alone only counts as a beginning.
fn lengthens(name: &str, candidate: &str) -> bool {
    let mut words = candidate.split('_');
    let begins = name.len() >= 4 && candidate.starts_with(name);
    begins || name.contains('_') && name.split('_').all(|wanted| words.any(|word| word == wanted))
}

impl Key {
    /// A value that may be written: the default, or something of the type.
    pub(crate) fn example(&self) -> String {
        if self.default != "null" {
            return self.default.to_owned();
        }
        match self.kind {
            Kind::Bool | Kind::BoolOrAuto => "true".to_owned(),
            Kind::Int(min) => min.max(1).to_string(),
            Kind::Float(_) => "0.1".to_owned(),
            Kind::Text | Kind::Path | Kind::Any => "name".to_owned(),
            Kind::List => "a,b".to_owned(),
            Kind::Floats => "0.5,0.5".to_owned(),
            Kind::Choice(choices) => choices.here.first().copied().unwrap_or_default().to_owned(),
            Kind::Map => "{num_cycles: 1}".to_owned(),
        }
    }
}

impl Kind {
    /// The type in a word or two, for the reference.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Bool => "true, false".to_owned(),
            Self::BoolOrAuto => "true, false, auto".to_owned(),
            Self::Int(i64::MIN) => "whole number".to_owned(),
            Self::Int(min) => format!("whole number ≥ {min}"),
            Self::Float(Range::Any) => "number".to_owned(),
            Self::Float(Range::NotNegative) => "number ≥ 0".to_owned(),
            Self::Float(Range::Positive) => "number > 0".to_owned(),
            Self::Float(Range::Share) => "number in [0, 1)".to_owned(),
            Self::Text => "text".to_owned(),
            Self::Path => "path".to_owned(),
            Self::List => "names".to_owned(),
            Self::Floats => "numbers".to_owned(),
            Self::Choice(choices) => choices.here.join(", "),
            Self::Map => "mapping".to_owned(),
            Self::Any => "any".to_owned(),
        }
    }
}

const fn works(name: &'static str, kind: Kind, default: &'static str, meaning: &'static str) -> Key {
    Key { name, kind, default, state: State::Works(meaning) }
}

const fn no_effect(name: &'static str, kind: Kind, default: &'static str, why: &'static str) -> Key {
    Key { name, kind, default, state: State::NoEffect(why) }
}

const fn unsupported(name: &'static str, kind: Kind, default: &'static str, instead: &'static str) -> Key {
    Key { name, kind, default, state: State::Unsupported(instead) }
}

const fn alias(name: &'static str, of: &'static str) -> Key {
    Key { name, kind: Kind::Any, default: "null", state: State::Alias(of) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{At, Node};
    use crate::value::coerce;

    #[test]
    fn names_are_unique_and_aliases_point_at_real_keys() {
        let mut seen = std::collections::HashSet::new();
        for key in all() {
            assert!(seen.insert(key.name), "{} stands twice", key.name);
            if let State::Alias(of) = key.state {
                assert!(!matches!(find(of).map(|k| k.state), None | Some(State::Alias(_))), "{}", key.name);
            }
        }
    }

    #[test]
    fn defaults_have_their_own_type() {
        let at = At { source: 0, line: 1, column: 1, len: 1 };
        for key in all().filter(|key| key.default != "null") {
            assert!(coerce(key.kind, &Node::plain(key.default, at)).is_ok(), "{}: {}", key.name, key.default);
        }
    }

    #[test]
    fn texts_are_sentences_without_a_full_stop() {
        for key in all() {
            let text = match key.state {
                State::Works(t) | State::NoEffect(t) | State::Unsupported(t) | State::Old(t, _) => t,
                State::Alias(_) => continue,
            };
            assert!(!text.is_empty() && !text.ends_with('.') && !text.contains('|'), "{}", key.name);
        }
    }

    #[test]
    fn the_list_of_keys_is_frozen() {
        let names: Vec<_> = all().map(|key| key.name).collect();
        let frozen: Vec<_> = include_str!("../tests/keys.txt").lines().collect();
        assert_eq!(names, frozen, "a new key edits tests/keys.txt, the reference and CHANGELOG.md too");
    }

    #[test]
    fn near_misses_are_recognised() {
        assert_eq!(nearest("lora_rnak"), Some("lora_rank"));
        assert_eq!(nearest("learing-rate"), Some("learning_rate"));
        assert_eq!(nearest("Template"), Some("template"));
        assert_eq!(nearest("model"), Some("model_name_or_path"));
        assert_eq!(nearest("data"), Some("dataset"));
        assert_eq!(nearest("save_step"), Some("save_steps"));
        assert_eq!(nearest("per_device_batch_size"), Some("per_device_train_batch_size"));
        assert_eq!(nearest("peft_config"), None);
        assert_eq!(nearest("xyzzy"), None);
        assert_eq!(nearest(&"lora_rank".repeat(1000)), None);
    }
}
