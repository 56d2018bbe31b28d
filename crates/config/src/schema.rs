//! A JSON schema of recipes, written from the table of keys, so that editors complete and check them.
//!
//! It is of draft 7, which every editor's YAML support knows, and says of one key what the program says of it: the same
//! spellings of a value are taken, and a key or a value that is refused here is refused there. What keys mean together is
//! beyond it; `ferrotune check` tells that.

use serde_json::{Map, Value, json};

use crate::keys::{Key, Kind, Range, State, all, canonical};
use crate::tree::{At, Node};
use crate::value::{self, coerce};

/// The dialect.
const DRAFT: &str = "http://json-schema.org/draft-07/schema#";
/// Text without `${...}`, which nothing fills in.
const TEXT: &str = r"^([^$]|\$+[^${])*\$*$";
/// YAML 1.1's booleans, and argparse's.
const BOOLEAN: &str =
    "^([Tt][Rr][Uu][Ee]|[Ff][Aa][Ll][Ss][Ee]|[Yy]([Ee][Ss])?|[Nn][Oo]?|[Oo][Nn]|[Oo][Ff][Ff]|[Tt]|[Ff]|0|1)$";
/// The same, or `auto`.
const BOOLEAN_OR_AUTO: &str =
    "^(auto|[Tt][Rr][Uu][Ee]|[Ff][Aa][Ll][Ss][Ee]|[Yy]([Ee][Ss])?|[Nn][Oo]?|[Oo][Nn]|[Oo][Ff][Ff]|[Tt]|[Ff]|0|1)$";
/// A whole number as text: `8`, `1_000`, `8.0`, `1e3`, `0x10`.
const WHOLE: &str = r"^(0x[0-9a-fA-F]+|[-+]?(0|[1-9][0-9_]*)(\.0*)?([eE]\+?[0-9]+)?)$";
/// A number as text.
const NUMBER: &str = r"^[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?$";
/// Numbers with commas as text.
const NUMBERS: &str = r"^ *([-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)? *(, *|$))*$";
/// A mapping as text, as command lines and old recipes have it.
const MAPPING: &str = r"^ *\{([^$]|\$+[^${])*\$*$";

/// The schema, as `docs/recipe.schema.json` has it.
#[must_use]
pub fn recipe_schema() -> Value {
    let properties: Map<String, Value> = all().map(|key| (key.name.to_owned(), property(key))).collect();
    json!({
        "$schema": DRAFT,
        "title": "A recipe of ferrotune",
        "description": "How a model is fine-tuned, in LLaMA-Factory's keys.",
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
    })
}

/// What a key may be, and what an editor shows about it.
fn property(key: &'static Key) -> Value {
    let of = canonical(key);
    let mut schema = match of.state {
        State::Unsupported(_) => only_default(of),
        _ => values(of.kind),
    };
    schema.insert("description".into(), description(key).into());
    let default = default(of);
    if !default.is_null() {
        schema.insert("default".into(), default);
    }
    // Neither of the two is JSON Schema's; editors show them, and every validator leaves them alone.
    match key.state {
        State::Alias(name) => {
            schema.insert("deprecationMessage".into(), format!("an old spelling: write `{name}`").into());
        }
        State::Old(_, now) => {
            schema.insert("deprecationMessage".into(), format!("an old spelling: write {now}").into());
        }
        State::Unsupported(instead) => {
            schema.insert("errorMessage".into(), format!("`{}` is not supported: {instead}", key.name).into());
        }
        State::Works(_) | State::NoEffect(_) => {}
    }
    Value::Object(schema)
}

fn description(key: &'static Key) -> String {
    let choices = match key.kind {
        Kind::Choice(choices) if !choices.elsewhere.is_empty() => {
            format!(". Not supported: {}; {}", choices.elsewhere.join(", "), choices.instead)
        }
        _ => String::new(),
    };
    match key.state {
        State::Works(meaning) | State::Old(meaning, _) => format!("{meaning}{choices}"),
        State::NoEffect(why) => format!("No effect here: {why}"),
        State::Unsupported(instead) => format!("Not supported: {instead}"),
        State::Alias(name) => format!("Another name of `{name}`: {}", description(canonical(key))),
    }
}

/// The values of a type, text that means one included.
fn values(kind: Kind) -> Map<String, Value> {
    let scalar = json!({ "type": ["string", "number", "boolean"], "pattern": TEXT });
    let number = json!({ "type": ["number", "string"], "pattern": NUMBER });
    let schema = match kind {
        Kind::Bool => {
            json!({ "type": ["boolean", "integer", "string", "null"], "minimum": 0, "maximum": 1, "pattern": BOOLEAN })
        }
        Kind::BoolOrAuto => json!({
            "type": ["boolean", "integer", "string", "null"], "minimum": 0, "maximum": 1, "pattern": BOOLEAN_OR_AUTO,
        }),
        Kind::Int(i64::MIN) => json!({ "type": ["integer", "string", "null"], "pattern": WHOLE }),
        Kind::Int(min) => json!({ "type": ["integer", "string", "null"], "minimum": min, "pattern": WHOLE }),
        Kind::Float(range) => {
            let mut schema = json!({ "type": ["number", "string", "null"], "pattern": NUMBER });
            match range {
                Range::Any => {}
                Range::NotNegative => schema["minimum"] = 0.into(),
                Range::Positive => schema["exclusiveMinimum"] = 0.into(),
                Range::Share => {
                    schema["minimum"] = 0.into();
                    schema["exclusiveMaximum"] = 1.into();
                }
            }
            schema
        }
        Kind::Text | Kind::Path => json!({ "type": ["string", "number", "boolean", "null"], "pattern": TEXT }),
        Kind::List => {
            json!({ "type": ["array", "string", "number", "boolean", "null"], "items": scalar, "pattern": TEXT })
        }
        Kind::Floats => json!({ "type": ["array", "number", "string", "null"], "items": number, "pattern": NUMBERS }),
        Kind::Choice(choices) => {
            json!({ "enum": choices.here.iter().map(|name| json!(name)).chain([Value::Null]).collect::<Vec<_>>() })
        }
        Kind::Map => json!({ "type": ["object", "string", "null"], "pattern": MAPPING }),
        Kind::Any => json!({ "pattern": TEXT }),
    };
    schema.as_object().cloned().expect("each arm is an object")
}

/// A key that isn't supported may say that it isn't used.
fn only_default(key: &Key) -> Map<String, Value> {
    let default = default(key);
    let allowed = match (default.is_null(), key.kind) {
        (true, Kind::Bool) => json!([null, false]),
        (true, _) => json!([null]),
        (false, _) => json!([default, null]),
    };
    Map::from_iter([("enum".to_owned(), allowed)])
}

/// A row's default as JSON; null if there is none.
fn default(key: &Key) -> Value {
    if key.default == "null" {
        return Value::Null;
    }
    let nowhere = At { source: 0, line: 1, column: 1, len: 1 };
    let number = |x: f64| serde_json::from_str(key.default).unwrap_or_else(|_| json!(x));
    match coerce(key.kind, &Node::plain(key.default, nowhere)) {
        Ok(value::Value::Bool(is_on)) => is_on.into(),
        Ok(value::Value::Int(whole)) => whole.into(),
        Ok(value::Value::Float(x)) => number(x),
        Ok(value::Value::Any(_)) => serde_json::from_str(key.default).unwrap_or_else(|_| key.default.into()),
        _ => key.default.into(),
    }
}
