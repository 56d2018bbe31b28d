//! As much of JSON Schema as the schema of compose files uses; a keyword beyond that fails the test.

use serde_json::{Map, Value};
use std::path::Path;

pub(crate) struct Schema {
    root: Value,
}

/// Keywords that say nothing about what is valid.
const SILENT: [&str; 8] = ["description", "title", "default", "deprecated", "$schema", "$id", "definitions", "format"];

impl Schema {
    pub(crate) fn read(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/deploy").join(name);
        Self { root: serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() }
    }

    /// What is wrong with a value, with its place.
    pub(crate) fn faults(&self, value: &Value) -> Vec<String> {
        self.check(&self.root, value, "")
    }

    fn check(&self, schema: &Value, value: &Value, at: &str) -> Vec<String> {
        let rules = match schema {
            Value::Bool(allowed) => return if *allowed { vec![] } else { vec![format!("{at} is not allowed")] },
            Value::Object(rules) => rules,
            other => panic!("no schema: {other}"),
        };
        let mut faults = Vec::new();
        for (keyword, rule) in rules {
            faults.extend(match keyword.as_str() {
                "$ref" => self.check(self.root.pointer(&rule.as_str().unwrap()[1..]).unwrap(), value, at),
                "type" => wrong(is_of_type(rule, value), || format!("{at} is no {rule}")),
                "enum" => wrong(rule.as_array().unwrap().contains(value), || format!("{at} is none of {rule}")),
                "oneOf" => {
                    let fit = rule.as_array().unwrap().iter().filter(|s| self.check(s, value, at).is_empty()).count();
                    wrong(fit == 1, || format!("{at} fits {fit} of {}", rule.as_array().unwrap().len()))
                }
                "minimum" => {
                    wrong(value.as_f64().is_none_or(|n| n >= rule.as_f64().unwrap()), || format!("{at} is small"))
                }
                "maximum" => {
                    wrong(value.as_f64().is_none_or(|n| n <= rule.as_f64().unwrap()), || format!("{at} is large"))
                }
                "uniqueItems" => {
                    let items = value.as_array().map_or(&[][..], Vec::as_slice);
                    let twice = items.iter().enumerate().any(|(i, item)| items[..i].contains(item));
                    wrong(!twice, || format!("{at} has an item twice"))
                }
                "required" => {
                    let has = |name: &Value| value.get(name.as_str().unwrap()).is_some() || !value.is_object();
                    let missing = rule.as_array().unwrap().iter().filter(|name| !has(name));
                    missing.map(|name| format!("{at} lacks {name}")).collect()
                }
                "items" => {
                    let items = value.as_array().map_or(&[][..], Vec::as_slice).iter().enumerate();
                    items.flat_map(|(i, item)| self.check(rule, item, &format!("{at}[{i}]"))).collect()
                }
                // Beside each other, below.
                "properties" | "patternProperties" | "additionalProperties" => vec![],
                "pattern" => panic!("{at}: a pattern, which nothing that is written meets"),
                silent => wrong(SILENT.contains(&silent), || panic!("unknown keyword {silent}")),
            });
        }
        if let Value::Object(entries) = value {
            faults.extend(self.check_entries(rules, entries, at));
        }
        faults
    }

    fn check_entries(&self, rules: &Map<String, Value>, entries: &Map<String, Value>, at: &str) -> Vec<String> {
        let mut faults = Vec::new();
        for (key, value) in entries {
            let at = format!("{at}.{key}");
            let named = rules.get("properties").and_then(|all| all.get(key));
            let patterns = rules.get("patternProperties").and_then(Value::as_object);
            let matching = patterns.into_iter().flatten().filter(|(pattern, _)| matches_key(pattern, key));
            let mut known: Vec<&Value> = named.into_iter().chain(matching.map(|(_, schema)| schema)).collect();
            if known.is_empty() {
                known.extend(rules.get("additionalProperties"));
            }
            faults.extend(known.into_iter().flat_map(|schema| self.check(schema, value, &at)));
        }
        faults
    }
}

fn wrong(fine: bool, fault: impl FnOnce() -> String) -> Vec<String> {
    if fine { vec![] } else { vec![fault()] }
}

fn is_of_type(rule: &Value, value: &Value) -> bool {
    let one = |name: &Value| match name.as_str().unwrap() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        other => panic!("unknown type {other}"),
    };
    rule.as_array().map_or_else(|| one(rule), |names| names.iter().any(one))
}

/// The few patterns of keys in the schema.
fn matches_key(pattern: &str, key: &str) -> bool {
    let of = |more: &str| !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c));
    match pattern {
        "^x-" => key.starts_with("x-"),
        "^[a-zA-Z0-9._-]+$" => of("._-"),
        "^[a-z]+$" => !key.is_empty() && key.chars().all(|c| c.is_ascii_lowercase()),
        ".+" | "^.+$" => !key.is_empty(),
        other => panic!("unknown pattern {other}"),
    }
}
