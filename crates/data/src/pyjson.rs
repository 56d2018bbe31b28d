//! JSON and values written as Python writes them.
//!
//! Tool descriptions and calls become part of the prompt, so one space more or a float spelled
//! differently is another token: [`dumps`] follows `json.dumps(ensure_ascii=False)` and [`text`]
//! follows `str()`.

use std::fmt::Write as _;

use std::borrow::Cow;

use serde_json::{Number, Value};

/// Begins a text that stands for a whole number beyond 64 bits, which [`Value`] would round. It is no character, so no
/// text that means something begins with it.
const WHOLE: char = '\u{10ffff}';
/// The shortest number of digits that may be beyond 64 bits.
const MANY: usize = 19;

/// A value from JSON text, with all digits of whole numbers of any size: tracking numbers and the like have more than
/// 64 bits hold, and Python keeps them.
///
/// # Errors
/// If it isn't JSON.
pub(crate) fn parse(text: &str) -> serde_json::Result<Value> {
    let value = serde_json::from_str(text)?;
    if !has_long_number(text.as_bytes()) {
        return Ok(value);
    }
    match with_whole_numbers(text) {
        Cow::Borrowed(_) => Ok(value),
        Cow::Owned(marked) => serde_json::from_str(&marked),
    }
}

/// Whether so many digits stand in a row. One of them stands at a multiple of their number, so few bytes are looked at.
fn has_long_number(text: &[u8]) -> bool {
    (0..text.len()).step_by(MANY).any(|at| {
        let digits_after = text[at..].iter().take_while(|byte| byte.is_ascii_digit()).take(MANY).count();
        let digits_before = text[..at].iter().rev().take_while(|byte| byte.is_ascii_digit()).take(MANY).count();
        digits_after > 0 && digits_after + digits_before >= MANY
    })
}

/// Sound JSON in which whole numbers beyond 64 bits are marked texts.
fn with_whole_numbers(text: &str) -> Cow<'_, str> {
    let (mut out, mut told) = (String::new(), 0);
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => {
                at += 1;
                while at < bytes.len() && bytes[at] != b'"' {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                at += 1;
            }
            b'-' | b'0'..=b'9' => {
                let rest = &bytes[at..];
                let end = rest.iter().position(|byte| !matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E'));
                let end = at + end.unwrap_or(rest.len());
                let number = &text[at..end];
                let whole = number.bytes().skip(1).all(|byte| byte.is_ascii_digit());
                if number.len() >= MANY && whole && number.parse::<i64>().is_err() && number.parse::<u64>().is_err() {
                    out += &text[told..at];
                    out.extend(['"', WHOLE]);
                    out += number;
                    out.push('"');
                    told = end;
                }
                at = end;
            }
            _ => at += 1,
        }
    }
    if told == 0 { Cow::Borrowed(text) } else { Cow::Owned(out + &text[told..]) }
}

/// The digits of a whole number beyond 64 bits, if `text` stands for one.
pub(crate) fn whole(text: &str) -> Option<&str> {
    text.strip_prefix(WHOLE)
}

/// `value` as `json.dumps(value, ensure_ascii=False, indent=indent)` writes it: `", "` and `": "`
/// between items on one line; with an indent, an item a line. Keys stay in their order.
pub(crate) fn dumps(value: &Value, indent: Option<usize>) -> String {
    let mut out = String::new();
    let layout = match indent {
        None => Layout { item: ", ", colon: ": ", indent: None },
        Some(n) => Layout { item: ",", colon: ": ", indent: Some(n) },
    };
    write_json(&mut out, value, &layout, 0);
    out
}

/// `value` in JSON with chosen separators (`json.dumps(..., separators=(item, colon))`).
pub(crate) fn dumps_with(value: &Value, layout: &Layout<'_>) -> String {
    let mut out = String::new();
    write_json(&mut out, value, layout, 0);
    out
}

/// Separators and indentation of JSON text.
pub(crate) struct Layout<'a> {
    /// Between items; a new line and the indentation follow if there is one.
    pub(crate) item: &'a str,
    /// Between a key and its value.
    pub(crate) colon: &'a str,
    /// Spaces a level; `None` writes one line.
    pub(crate) indent: Option<usize>,
}

/// `value` as `str(value)` writes it: a string as it stands, the rest in Python's spelling.
pub(crate) fn text(value: &Value) -> String {
    match value {
        Value::String(s) => whole(s).unwrap_or(s).to_owned(),
        other => {
            let mut out = String::new();
            write_repr(&mut out, other);
            out
        }
    }
}

/// Whether Python takes `value` for true.
pub(crate) fn truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(b) => *b,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(s) => !s.is_empty(),
        Value::Array(a) => !a.is_empty(),
        Value::Object(o) => !o.is_empty(),
    }
}

// Nesting is bounded: values come out of serde_json, which refuses more than 128 levels.
fn write_json(out: &mut String, value: &Value, layout: &Layout<'_>, depth: usize) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        Value::Number(n) => out.push_str(&number(n)),
        Value::String(s) => match whole(s) {
            Some(digits) => out.push_str(digits),
            None => write_json_string(out, s),
        },
        Value::Array(items) if items.is_empty() => out.push_str("[]"),
        Value::Object(items) if items.is_empty() => out.push_str("{}"),
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                separate(out, layout, i, depth + 1);
                write_json(out, item, layout, depth + 1);
            }
            break_line(out, layout, depth);
            out.push(']');
        }
        Value::Object(items) => {
            out.push('{');
            for (i, (key, item)) in items.iter().enumerate() {
                separate(out, layout, i, depth + 1);
                write_json_string(out, key);
                out.push_str(layout.colon);
                write_json(out, item, layout, depth + 1);
            }
            break_line(out, layout, depth);
            out.push('}');
        }
    }
}

fn separate(out: &mut String, layout: &Layout<'_>, index: usize, depth: usize) {
    if index > 0 {
        out.push_str(layout.item);
    }
    break_line(out, layout, depth);
}

fn break_line(out: &mut String, layout: &Layout<'_>, depth: usize) {
    if let Some(n) = layout.indent {
        out.push('\n');
        out.extend(std::iter::repeat_n(' ', n * depth));
    }
}

fn write_json_string(out: &mut String, s: &str) {
    out.push('"');
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' => write_escape(out, "\\u", u32::from(c), 4),
            c => out.push(c),
        }
    }
    out.push('"');
}

fn write_escape(out: &mut String, prefix: &str, code: u32, width: usize) {
    write!(out, "{prefix}{code:0width$x}").expect("writing to a string can't fail");
}

/// A number as `repr()` writes it: shortest digits that read back as the same number, an exponent
/// below 1e-4 and from 1e16 on.
pub(crate) fn number(n: &Number) -> String {
    match n.as_f64() {
        Some(f) if n.is_f64() => float(f),
        _ => n.to_string(),
    }
}

fn float(f: f64) -> String {
    let magnitude = f.abs();
    if magnitude != 0.0 && !(1e-4..1e16).contains(&magnitude) {
        let scientific = format!("{f:e}");
        let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(rest) => ('-', rest),
            None => ('+', exponent),
        };
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    format!("{f:?}")
}

fn write_repr(out: &mut String, value: &Value) {
    match value {
        Value::Null => out.push_str("None"),
        Value::Bool(b) => out.push_str(if *b { "True" } else { "False" }),
        Value::Number(n) => out.push_str(&number(n)),
        Value::String(s) => match whole(s) {
            Some(digits) => out.push_str(digits),
            None => write_repr_string(out, s),
        },
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                write_repr(out, item);
            }
            out.push(']');
        }
        Value::Object(items) => {
            out.push('{');
            for (i, (key, item)) in items.iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                write_repr_string(out, key);
                out.push_str(": ");
                write_repr(out, item);
            }
            out.push('}');
        }
    }
}

fn write_repr_string(out: &mut String, s: &str) {
    let quote = if s.contains('\'') && !s.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in s.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if c < ' ' || ('\u{7f}'..='\u{a0}').contains(&c) || c == '\u{ad}' => {
                write_escape(out, "\\x", u32::from(c), 2);
            }
            c => out.push(c),
        }
    }
    out.push(quote);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn json_is_spelled_as_python_spells_it() {
        let value = json!({"a": [1, 2.0, 1e-5, 1e22, -0.0001, 1e16, 123456.5], "é\u{1}\"": null, "e": [], "o": {}});
        assert_eq!(
            dumps(&value, None),
            "{\"a\": [1, 2.0, 1e-05, 1e+22, -0.0001, 1e+16, 123456.5], \"é\\u0001\\\"\": null, \"e\": [], \"o\": {}}"
        );
        assert_eq!(dumps(&json!({"a": [1, {}]}), Some(4)), "{\n    \"a\": [\n        1,\n        {}\n    ]\n}");
    }

    #[test]
    fn whole_numbers_keep_their_digits() {
        let written = r#"{"a": [92748999985493513042, -9223372036854775809, 18446744073709551615], "b": "92748999985493513042 \" 1"}"#;
        let value = parse(written).unwrap();
        assert_eq!(dumps(&value, None), written);
        assert_eq!(text(&value["a"]), "[92748999985493513042, -9223372036854775809, 18446744073709551615]");
        assert_eq!(text(&parse("92748999985493513042").unwrap()), "92748999985493513042");
        let rounded = parse("[92748999985493513042.5, 9274899998549351304e2, 1e30]").unwrap();
        assert_eq!(dumps(&rounded, None), "[9.27489999854935e+19, 9.274899998549351e+20, 1e+30]");
        assert!(parse("[92748999985493513042").is_err());
    }

    #[test]
    fn values_print_as_str_prints_them() {
        assert_eq!(text(&json!(["it's", "a \"b\"", true, null, 1.5])), "[\"it's\", 'a \"b\"', True, None, 1.5]");
        assert_eq!(text(&json!("plain")), "plain");
        assert_eq!(text(&json!({"k": "v\n"})), "{'k': 'v\\n'}");
    }
}
