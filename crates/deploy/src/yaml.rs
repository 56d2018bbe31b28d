//! JSON values as YAML in blocks, so that people can read and change what is written.

use serde_json::Value;

/// The text of a value: maps and lists in blocks, texts in double quotes, which are JSON's.
pub(crate) fn to_yaml(value: &Value) -> String {
    let mut out = String::new();
    block(value, 0, &mut out);
    out
}

fn block(value: &Value, depth: usize, out: &mut String) {
    match value {
        Value::Object(entries) => {
            for (key, value) in entries {
                out.push_str(&format!("{}{}:", "  ".repeat(depth), key_text(key)));
                below(value, depth + 1, out);
            }
        }
        Value::Array(items) => {
            for item in items {
                let mut inner = String::new();
                match item {
                    Value::Object(entries) if !entries.is_empty() => block(item, depth + 1, &mut inner),
                    _ => inner = format!("{}{item}\n", "  ".repeat(depth + 1)),
                }
                // The first line of an item begins behind its dash.
                out.push_str(&format!("{}- {}", "  ".repeat(depth), inner.trim_start()));
            }
        }
        _ => out.push_str(&format!("{value}\n")),
    }
}

fn below(value: &Value, depth: usize, out: &mut String) {
    let nested = match value {
        Value::Object(entries) => !entries.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    };
    if nested {
        out.push('\n');
        block(value, depth, out);
    } else {
        // Empty ones and scalars are written alike in both languages.
        out.push_str(&format!(" {value}\n"));
    }
}

/// Keys that can't be taken for anything else stand without quotes.
fn key_text(key: &str) -> String {
    let plain = key.starts_with(|c: char| c.is_ascii_alphabetic())
        && key.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
    let word = matches!(
        key.to_ascii_lowercase().as_str(),
        "yes" | "no" | "on" | "off" | "true" | "false" | "null" | "y" | "n"
    );
    if plain && !word { key.to_owned() } else { Value::from(key).to_string() }
}
