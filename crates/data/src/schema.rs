//! A JSON schema of `dataset_info.json`, written from the registry's tables, so that editors complete and check it.

use serde_json::{Map, Value, json};

use crate::registry::{Columns, FIELDS, REMOTE_FIELDS, Tags};

/// The schema, as `docs/dataset_info.schema.json` has it.
#[must_use]
pub fn dataset_info_schema() -> Value {
    let mut fields = Map::new();
    for (name, meaning) in FIELDS {
        let mut schema = match name {
            "formatting" => json!({ "enum": ["alpaca", "sharegpt", "openai", null] }),
            "ranking" => json!({ "type": ["boolean", "null"] }),
            "columns" => renames(&Columns::NAMES),
            "tags" => renames(&Tags::NAMES),
            "num_samples" => json!({ "type": ["integer", "null"], "minimum": 1 }),
            _ => json!({ "type": ["string", "null"] }),
        };
        schema["description"] = meaning.into();
        fields.insert(name.to_owned(), schema);
    }
    let lies: Vec<Value> =
        ["file_name"].iter().chain(&REMOTE_FIELDS).map(|field| json!({ "required": [field] })).collect();
    json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "dataset_info.json",
        "description": "What the names of datasets stand for.",
        "type": "object",
        "additionalProperties": {
            "type": "object",
            "properties": fields,
            "additionalProperties": false,
            "anyOf": lies,
        },
    })
}

/// What columns or tags are called in the rows.
fn renames(names: &[&str]) -> Value {
    let properties: Map<String, Value> =
        names.iter().map(|&name| (name.to_owned(), json!({ "type": ["string", "null"] }))).collect();
    json!({ "type": ["object", "null"], "properties": properties, "additionalProperties": false })
}
