//! A value as its key's type has it.
//!
//! Text is read generously (`"1"` is a number, `yes` is true, `1_000` is a thousand), because command
//! lines and older YAML know no types; but a value is never guessed away.

use crate::keys::{Choices, Kind, Range, nearest_of};
use crate::tree::{Data, Node, clip, parse};

/// A typed value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Bool(bool),
    Auto,
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<String>),
    Floats(Vec<f64>),
    Map(Vec<(String, Node)>),
    /// Of a key without meaning here: what was written.
    Any(Data),
}

/// Why a value isn't of its key's type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mismatch {
    /// "expected ..., found ...".
    pub message: String,
    pub help: Option<String>,
}

/// Reads a value that isn't null.
pub(crate) fn coerce(kind: Kind, node: &Node) -> Result<Value, Mismatch> {
    let expected = |what: &str| mismatch(format!("expected {what}, found {}", describe(node)));
    let text = match &node.data {
        Data::Scalar { text, .. } => Some(text.as_str()),
        _ => None,
    };
    if let Some(text) = text.filter(|text| text.contains("${") && text.contains('}')) {
        return Err(Mismatch {
            message: format!("'{}' is not filled in", clip(text)),
            help: Some("`${...}` stays as it is in LLaMA-Factory too: write the value itself".to_owned()),
        });
    }
    match kind {
        Kind::Bool => text.and_then(boolean).map(Value::Bool).ok_or_else(|| expected("true or false")),
        Kind::BoolOrAuto if text == Some("auto") => Ok(Value::Auto),
        Kind::BoolOrAuto => text.and_then(boolean).map(Value::Bool).ok_or_else(|| expected("true, false or auto")),
        Kind::Int(min) => {
            let number = text.and_then(whole).ok_or_else(|| expected("a whole number"))?;
            let wanted = || expected(&format!("a whole number of at least {min}"));
            if number < min { Err(wanted()) } else { Ok(Value::Int(number)) }
        }
        Kind::Float(range) => {
            let number = text.and_then(float).ok_or_else(|| expected("a number"))?;
            if allows(range, number) { Ok(Value::Float(number)) } else { Err(expected(name(range))) }
        }
        Kind::Text | Kind::Path => text.map(|text| Value::Text(text.to_owned())).ok_or_else(|| expected("text")),
        Kind::List => names(node).map(Value::List).ok_or_else(|| expected("names, as `a,b` or `[a, b]`")),
        Kind::Floats => {
            let numbers = names(node).and_then(|names| names.iter().map(|name| float(name)).collect());
            numbers.map(Value::Floats).ok_or_else(|| expected("numbers, as `0.5,0.5` or `[0.5, 0.5]`"))
        }
        Kind::Choice(choices) => {
            let text = text.ok_or_else(|| expected(&one_of(choices)))?;
            choose(choices, text).map(Value::Text)
        }
        Kind::Map => mapping(node).map(Value::Map).ok_or_else(|| expected("a mapping, as `{name: value}`")),
        Kind::Any => Ok(Value::Any(node.data.clone())),
    }
}

fn mismatch(message: String) -> Mismatch {
    Mismatch { message, help: None }
}

/// YAML 1.1's booleans, and argparse's.
pub(crate) fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "y" | "t" | "1" => Some(true),
        "false" | "no" | "off" | "n" | "f" | "0" => Some(false),
        _ => None,
    }
}

/// A whole number; `8.0` and `1e3` are whole, `010` is not taken (YAML 1.1 says eight).
fn whole(text: &str) -> Option<i64> {
    let digits = text.replace('_', "");
    let unsigned = digits.trim_start_matches(['-', '+']);
    if unsigned.len() > 1 && unsigned.starts_with('0') && unsigned.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    if let Some(hex) = unsigned.strip_prefix("0x") {
        return i64::from_str_radix(hex, 16).ok().filter(|_| !digits.starts_with(['-', '+']));
    }
    let exact = |x: f64| x.fract() == 0.0 && x.abs() < 9.007_199_254_740_992e15;
    #[expect(clippy::cast_possible_truncation, reason = "whole and below 2^53")]
    let from_float = || float(text).filter(|x| exact(*x)).map(|x| x as i64);
    digits.parse().ok().or_else(from_float)
}

/// A number as Python or YAML writes it; infinities and NaN are none.
pub(crate) fn float(text: &str) -> Option<f64> {
    let digits = text.replace('_', "");
    // Rust's parser also takes `inf`, `nan` and `infinity`.
    let looks = digits.bytes().any(|b| b.is_ascii_digit()) && digits.bytes().all(|b| b"0123456789+-.eE".contains(&b));
    digits.parse().ok().filter(|x: &f64| looks && x.is_finite())
}

fn allows(range: Range, number: f64) -> bool {
    match range {
        Range::Any => true,
        Range::NotNegative => number >= 0.0,
        Range::Positive => number > 0.0,
        Range::Share => (0.0..1.0).contains(&number),
    }
}

fn name(range: Range) -> &'static str {
    match range {
        Range::Any => "a number",
        Range::NotNegative => "a number of at least 0",
        Range::Positive => "a number above 0",
        Range::Share => "a number of at least 0 and below 1",
    }
}

/// A YAML list of scalars, or text with commas; empty items don't count.
fn names(node: &Node) -> Option<Vec<String>> {
    let trimmed = |text: &str| text.trim().to_owned();
    let items: Vec<String> = match &node.data {
        Data::Scalar { text, .. } => text.split(',').map(trimmed).collect(),
        Data::List(items) => items
            .iter()
            .map(|item| match &item.data {
                Data::Scalar { text, .. } => Some(trimmed(text)),
                _ => None,
            })
            .collect::<Option<_>>()?,
        Data::Map(_) => return None,
    };
    Some(items.into_iter().filter(|item| !item.is_empty()).collect())
}

/// A mapping, or text in braces, as the command line and old recipes give it.
fn mapping(node: &Node) -> Option<Vec<(String, Node)>> {
    let pairs = match &node.data {
        Data::Map(pairs) => pairs.clone(),
        Data::Scalar { text, .. } if text.trim_start().starts_with('{') => {
            match parse(text, node.at.source).ok()?.sound()?.data {
                Data::Map(pairs) => pairs,
                _ => return None,
            }
        }
        _ => return None,
    };
    let inside_text = matches!(node.data, Data::Scalar { .. });
    let place = |mut value: Node| {
        if inside_text {
            value.at = node.at;
        }
        value
    };
    Some(pairs.into_iter().map(|(key, value)| (key.text, place(value))).collect())
}

fn choose(choices: &'static Choices, text: &str) -> Result<String, Mismatch> {
    if choices.here.contains(&text) {
        return Ok(text.to_owned());
    }
    if choices.elsewhere.contains(&text) {
        return Err(Mismatch { message: format!("'{text}' is not supported"), help: Some(choices.instead.to_owned()) });
    }
    let meant = nearest_of(text, choices.here.iter().copied());
    Err(Mismatch {
        message: format!("expected {}, found '{}'", one_of(choices), clip(text)),
        help: meant.map(|name| format!("did you mean '{name}'?")),
    })
}

fn one_of(choices: &Choices) -> String {
    format!("one of {}", choices.here.join(", "))
}

fn describe(node: &Node) -> String {
    match &node.data {
        Data::Scalar { text, .. } => format!("'{}'", clip(text)),
        Data::List(_) => "a list".to_owned(),
        Data::Map(_) => "a mapping".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::At;

    fn node(text: &str) -> Node {
        Node::plain(text, At { source: 0, line: 1, column: 1, len: 1 })
    }

    fn error(kind: Kind, text: &str) -> String {
        coerce(kind, &node(text)).expect_err("must be refused").message
    }

    #[test]
    fn numbers_are_read_as_python_writes_them() {
        for (text, number) in
            [("1e-4", 1e-4), ("1.0e-5", 1e-5), (".5", 0.5), ("1_000", 1000.0), ("-0.0", 0.0), ("3", 3.0)]
        {
            assert_eq!(coerce(Kind::Float(Range::Any), &node(text)), Ok(Value::Float(number)), "{text}");
        }
        for (text, number) in
            [("8", 8), ("8.0", 8), ("1e3", 1000), ("-1", -1), ("0x10", 16), ("+2", 2), ("1_000", 1000)]
        {
            assert_eq!(coerce(Kind::Int(i64::MIN), &node(text)), Ok(Value::Int(number)), "{text}");
        }
        for text in ["nan", ".inf", "inf", "1,5", "1e", "0x", "", "e", "1e400", "١"] {
            assert_eq!(error(Kind::Float(Range::Any), text), format!("expected a number, found '{text}'"));
        }
        for text in ["010", "1.5", "99999999999999999999", "1:30"] {
            assert_eq!(error(Kind::Int(i64::MIN), text), format!("expected a whole number, found '{text}'"));
        }
    }

    #[test]
    fn ranges_are_named() {
        assert_eq!(error(Kind::Int(1), "0"), "expected a whole number of at least 1, found '0'");
        assert_eq!(error(Kind::Float(Range::Share), "1.0"), "expected a number of at least 0 and below 1, found '1.0'");
        assert_eq!(error(Kind::Float(Range::Positive), "0"), "expected a number above 0, found '0'");
        assert_eq!(error(Kind::Float(Range::NotNegative), "-1"), "expected a number of at least 0, found '-1'");
    }

    #[test]
    fn booleans_have_many_names() {
        for text in ["true", "True", "TRUE", "yes", "on", "y", "1", "t"] {
            assert_eq!(coerce(Kind::Bool, &node(text)), Ok(Value::Bool(true)), "{text}");
        }
        for text in ["false", "no", "Off", "n", "0"] {
            assert_eq!(coerce(Kind::Bool, &node(text)), Ok(Value::Bool(false)), "{text}");
        }
        assert_eq!(error(Kind::Bool, "2"), "expected true or false, found '2'");
        assert_eq!(error(Kind::Bool, "auto"), "expected true or false, found 'auto'");
        assert_eq!(coerce(Kind::BoolOrAuto, &node("auto")), Ok(Value::Auto));
    }

    #[test]
    fn lists_come_with_commas_or_brackets() {
        let expected = Ok(Value::List(vec!["a".into(), "b".into()]));
        assert_eq!(coerce(Kind::List, &node("a, b,")), expected);
        let list = parse("[a, b]", 0).unwrap().sound().unwrap();
        assert_eq!(coerce(Kind::List, &list), expected);
        let nested = parse("[a, [b]]", 0).unwrap().sound().unwrap();
        assert_eq!(
            coerce(Kind::List, &nested).unwrap_err().message,
            "expected names, as `a,b` or `[a, b]`, found a list"
        );
        assert_eq!(
            coerce(Kind::Floats, &node("0.5,x")).unwrap_err().message,
            "expected numbers, as `0.5,0.5` or `[0.5, 0.5]`, found '0.5,x'"
        );
    }

    #[test]
    fn interpolations_are_refused() {
        assert_eq!(error(Kind::Text, "${oc.env:HOME}/x"), "'${oc.env:HOME}/x' is not filled in");
    }
}
