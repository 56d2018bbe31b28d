//! JSON and values written as Python writes them.
//!
//! Tool descriptions and calls become part of the prompt, so one space more or a float spelled
//! differently is another token: [`dumps`] follows `json.dumps(ensure_ascii=False)` and [`text`]
//! follows `str()`.

use std::fmt::Write as _;

use serde_json::{Number, Value};

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
        Value::String(s) => s.clone(),
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
        Value::String(s) => write_json_string(out, s),
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
        Value::String(s) => write_repr_string(out, s),
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
    fn values_print_as_str_prints_them() {
        assert_eq!(text(&json!(["it's", "a \"b\"", true, null, 1.5])), "[\"it's\", 'a \"b\"', True, None, 1.5]");
        assert_eq!(text(&json!("plain")), "plain");
        assert_eq!(text(&json!({"k": "v\n"})), "{'k': 'v\\n'}");
    }
}
