//! The JSON schema of `dataset_info.json` says what the registry says.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

#[path = "../../config/tests/schema/validator.rs"]
mod validator;

use std::fs;
use std::path::{Path, PathBuf};

use ferrotune_config::plan::Stage;
use ferrotune_data::registry::Registry;
use ferrotune_data::schema::dataset_info_schema;
use serde_json::{Value, json};
use validator::faults;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn the_committed_schema_is_up_to_date() {
    let path = root().join("docs/dataset_info.schema.json");
    let written = fs::read_to_string(path).unwrap_or_default().replace("\r\n", "\n");
    assert!(
        written == format!("{:#}\n", dataset_info_schema()),
        "run `cargo run -p ferrotune-data --example reference schema > docs/dataset_info.schema.json`"
    );
}

#[test]
fn our_own_registry_is_valid() {
    let registry = fs::read_to_string(root().join("data/dataset_info.json")).unwrap();
    let registry: Value = serde_json::from_str(&registry).unwrap();
    assert!(!registry.as_object().unwrap().is_empty());
    assert_eq!(faults(&dataset_info_schema(), &registry), Vec::<String>::new());
}

/// Whether the registry reads an entry and has nothing to say about it.
fn is_fine(entry: &Value) -> bool {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("dataset_info.json"), json!({ "d": entry }).to_string()).unwrap();
    let registry = Registry::open(folder.path()).unwrap();
    registry.entry("d", Stage::Sft).is_ok_and(|entry| entry.notes.is_empty())
}

#[test]
fn schema_and_registry_agree() {
    let schema = dataset_info_schema();
    for (entry, expected) in [
        (json!({ "file_name": "a.json" }), true),
        (
            json!({ "file_name": "a.json", "formatting": "sharegpt", "columns": { "messages": "m", "tools": null } }),
            true,
        ),
        (json!({ "hf_hub_url": "a/b", "subset": "x", "split": "test", "num_samples": 5 }), true),
        (json!({ "cloud_file_name": "s3://a/b.jsonl", "tags": { "role_tag": "role" } }), true),
        (json!({}), false),
        (json!({ "formatting": "alpaca" }), false),
        (json!({ "file_name": 7 }), false),
        (json!({ "file_name": "a.json", "formatting": "sharegtp" }), false),
        (json!({ "file_name": "a.json", "formating": "sharegpt" }), false),
        (json!({ "file_name": "a.json", "columns": { "promt": "q" } }), false),
        (json!({ "file_name": "a.json", "columns": { "prompt": 1 } }), false),
        (json!({ "file_name": "a.json", "tags": ["role"] }), false),
        (json!({ "file_name": "a.json", "num_samples": 0 }), false),
        (json!({ "file_name": "a.json", "ranking": "yes" }), false),
        (json!("a.json"), false),
    ] {
        let found = faults(&schema, &json!({ "d": entry }));
        assert_eq!(found.is_empty(), expected, "{entry}: {found:?}");
        assert_eq!(is_fine(&entry), expected, "{entry}");
    }
}
