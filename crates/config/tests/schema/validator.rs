//! A validator of the part of JSON Schema (draft 7) that our schemas use; of any other word it says so, so that no schema
//! passes by being misunderstood. Shared by the tests of two crates.

use std::cell::RefCell;
use std::collections::HashMap;

use regex::Regex;
use serde_json::Value;

thread_local! {
    /// Patterns, each compiled once.
    static PATTERNS: RefCell<HashMap<String, Regex>> = RefCell::default();
}

/// Words that say nothing about what is valid.
const TOLD: [&str; 6] = ["$schema", "title", "description", "default", "deprecationMessage", "errorMessage"];

/// What is wrong with `value`; empty if it is valid.
pub(crate) fn faults(schema: &Value, value: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    check(schema, value, "", &mut faults);
    faults
}

fn check(schema: &Value, value: &Value, at: &str, faults: &mut Vec<String>) {
    let words = schema.as_object().unwrap_or_else(|| panic!("{at}: a schema is an object, not {schema}"));
    for (word, wanted) in words.iter().filter(|(word, _)| !TOLD.contains(&word.as_str())) {
        let is_met = match word.as_str() {
            "type" => names(wanted).iter().any(|name| is(value, name)),
            "enum" => wanted.as_array().unwrap().contains(value),
            "pattern" => value.as_str().is_none_or(|text| matches(wanted.as_str().unwrap(), text)),
            "minimum" => value.as_f64().is_none_or(|x| x >= wanted.as_f64().unwrap()),
            "maximum" => value.as_f64().is_none_or(|x| x <= wanted.as_f64().unwrap()),
            "exclusiveMinimum" => value.as_f64().is_none_or(|x| x > wanted.as_f64().unwrap()),
            "exclusiveMaximum" => value.as_f64().is_none_or(|x| x < wanted.as_f64().unwrap()),
            "required" => value.as_object().is_none_or(|map| names(wanted).iter().all(|name| map.contains_key(*name))),
            "anyOf" => wanted.as_array().unwrap().iter().any(|one| self::faults(one, value).is_empty()),
            "items" => {
                let items = value.as_array().into_iter().flatten().enumerate();
                items.for_each(|(n, item)| check(wanted, item, &format!("{at}/{n}"), faults));
                true
            }
            "properties" => {
                let known =
                    value.as_object().into_iter().flatten().filter_map(|(key, v)| Some((key, v, wanted.get(key)?)));
                known.for_each(|(key, value, schema)| check(schema, value, &format!("{at}/{key}"), faults));
                true
            }
            "additionalProperties" => {
                let known = |key: &String| schema.get("properties").is_some_and(|known| known.get(key).is_some());
                for (key, value) in value.as_object().into_iter().flatten().filter(|(key, _)| !known(key)) {
                    match wanted {
                        Value::Bool(true) => {}
                        Value::Bool(false) => faults.push(format!("{at}/{key}: unknown")),
                        schema => check(schema, value, &format!("{at}/{key}"), faults),
                    }
                }
                true
            }
            other => panic!("{at}: this validator doesn't know `{other}`"),
        };
        if !is_met {
            faults.push(format!("{at}: {value} against {word} {wanted}"));
        }
    }
}

fn matches(pattern: &str, text: &str) -> bool {
    PATTERNS.with_borrow_mut(|known| {
        known.entry(pattern.to_owned()).or_insert_with(|| Regex::new(pattern).unwrap()).is_match(text)
    })
}

fn names(value: &Value) -> Vec<&str> {
    match value {
        Value::String(name) => vec![name],
        list => list.as_array().expect("a name or names").iter().map(|name| name.as_str().expect("a name")).collect(),
    }
}

fn is(value: &Value, name: &str) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.as_f64().is_some_and(|x| x.fract() == 0.0),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("no type is called `{other}`"),
    }
}
