//! Gemma 4's own notation for tools and calls: keys bare, text between `<|"|>` marks.

use serde_json::{Map, Value};

use super::Call;
use super::prompt::{name_of, unwrap_or_self};
use crate::encode::DropReason;
use crate::pyjson::{number, text, truthy, whole};

const QUOTE: &str = "<|\"|>";

fn quoted(text: &str) -> String {
    format!("{QUOTE}{text}{QUOTE}")
}

/// A field of an object, unless it is missing, empty or zero.
fn field<'a>(object: &'a Value, key: &str) -> Option<&'a Value> {
    object.get(key).filter(|value| truthy(value))
}

fn upper(value: &Value) -> String {
    text(value).to_uppercase()
}

pub(super) fn describe(tools: &[Value]) -> Result<String, DropReason> {
    let declarations: Result<Vec<_>, _> = tools.iter().map(|tool| declare(unwrap_or_self(tool))).collect();
    Ok(declarations?.join("\n"))
}

fn declare(tool: &Value) -> Result<String, DropReason> {
    let description = tool.get("description").map(text).unwrap_or_default();
    let mut out = format!("declaration:{}{{description:{}", name_of(tool)?, quoted(&description));
    if let Some(parameters) = field(tool, "parameters") {
        out += &format!(",parameters:{{{}}}", declare_parameters(parameters));
    }
    if let Some(response) = field(tool, "response") {
        let mut parts = Vec::new();
        if let Some(description) = field(response, "description") {
            parts.push(format!("description:{}", quoted(&text(description))));
        }
        let kind = response.get("type").map(upper).unwrap_or_default();
        if kind == "OBJECT" {
            parts.push(format!("type:{}", quoted(&kind)));
        }
        out += &format!(",response:{{{}}}", parts.join(","));
    }
    Ok(out + "}")
}

fn declare_parameters(parameters: &Value) -> String {
    let mut parts = Vec::new();
    if let Some(properties) = field(parameters, "properties").and_then(Value::as_object) {
        let properties: Vec<_> = properties.iter().map(|(name, schema)| declare_property(name, schema)).collect();
        parts.push(format!("properties:{{{}}}", properties.join(",")));
    }
    if let Some(required) = field(parameters, "required").and_then(Value::as_array) {
        let required: Vec<_> = required.iter().map(|name| quoted(&text(name))).collect();
        parts.push(format!("required:[{}]", required.join(",")));
    }
    if let Some(kind) = field(parameters, "type") {
        parts.push(format!("type:{}", quoted(&upper(kind))));
    }
    parts.join(",")
}

fn declare_property(name: &str, schema: &Value) -> String {
    let mut parts = Vec::new();
    if let Some(description) = field(schema, "description") {
        parts.push(format!("description:{}", quoted(&text(description))));
    }
    if let Some(kind) = field(schema, "type") {
        parts.push(format!("type:{}", quoted(&upper(kind))));
    }
    format!("{name}:{{{}}}", parts.join(","))
}

pub(super) fn write_calls(calls: &[Call]) -> String {
    let write = |call: &Call| {
        let arguments = match &call.arguments {
            Value::Object(arguments) => fields(arguments),
            Value::String(text) => text.clone(),
            other => value(other),
        };
        format!("<|tool_call>call:{}{{{arguments}}}<tool_call|>", text(&call.name))
    };
    calls.iter().map(write).collect()
}

/// `key:value` pairs in the order of their keys.
fn fields(object: &Map<String, Value>) -> String {
    let mut pairs: Vec<_> = object.iter().collect();
    pairs.sort_by_key(|(key, _)| key.as_str());
    let pairs: Vec<_> = pairs.iter().map(|(key, item)| format!("{key}:{}", value(item))).collect();
    pairs.join(",")
}

fn value(item: &Value) -> String {
    match item {
        Value::Null => "null".to_owned(),
        Value::Bool(b) => b.to_string(),
        Value::Number(n) => number(n),
        Value::String(text) => whole(text).map_or_else(|| quoted(text), str::to_owned),
        Value::Array(items) => format!("[{}]", items.iter().map(value).collect::<Vec<_>>().join(",")),
        Value::Object(object) => format!("{{{}}}", fields(object)),
    }
}
