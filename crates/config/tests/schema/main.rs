//! The JSON schema of recipes says what the program says.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

mod validator;

use std::fs;
use std::path::{Path, PathBuf};

use ferrotune_config::keys::{self, Kind, State};
use ferrotune_config::plan::Plan;
use ferrotune_config::{Recipe, Verb, recipe_schema};
use serde_json::{Value, json};
use validator::faults;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Every recipe below a folder of the repository, as an editor reads it.
fn recipes(folder: &str) -> Vec<(PathBuf, Value)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root().join(folder)).unwrap() {
        let path = entry.unwrap().path();
        let inner = if path.is_dir() { path.join("train.yaml") } else { path };
        if inner.extension().is_some_and(|ending| ending == "yaml") && inner.exists() {
            let recipe = Recipe::parse("r.yaml", &fs::read(&inner).unwrap()).unwrap();
            found.push((inner, typed(recipe.to_json())));
        }
    }
    found
}

/// Scalars with the types that YAML 1.2 gives them.
fn typed(value: Value) -> Value {
    match value {
        Value::String(text) => match serde_json::from_str(&text) {
            Ok(scalar @ (Value::Number(_) | Value::Bool(_) | Value::Null)) => scalar,
            _ => text.into(),
        },
        Value::Array(items) => items.into_iter().map(typed).collect(),
        Value::Object(map) => {
            map.into_iter().map(|(key, value)| (key, typed(value))).collect::<serde_json::Map<_, _>>().into()
        }
        other => other,
    }
}

#[test]
fn the_committed_schema_is_up_to_date() {
    let written = fs::read_to_string(root().join("docs/recipe.schema.json")).unwrap_or_default().replace("\r\n", "\n");
    assert!(
        written == format!("{:#}\n", recipe_schema()),
        "run `cargo run -p ferrotune-config --example recipe_schema > docs/recipe.schema.json`"
    );
}

#[test]
fn every_recipe_of_the_repository_is_valid() {
    let schema = recipe_schema();
    for (folder, expected) in [("examples", 4), ("fixtures/recipes", 2), ("fixtures/train", 15)] {
        let recipes = recipes(folder);
        assert!(recipes.len() >= expected, "{folder}: {}", recipes.len());
        for (path, recipe) in recipes {
            assert_eq!(faults(&schema, &recipe), Vec::<String>::new(), "{}", path.display());
        }
    }
}

#[test]
fn wrong_recipes_are_not() {
    let schema = recipe_schema();
    for (wrong, expected) in [
        (json!({ "lora_rnak": 8 }), "/lora_rnak: unknown"),
        (json!({ "lora_rank": "eight" }), "/lora_rank: "),
        (json!({ "lora_rank": 0 }), "/lora_rank: 0 against minimum 1"),
        (json!({ "lora_rank": 1.5 }), "/lora_rank: "),
        (json!({ "bf16": "maybe" }), "/bf16: "),
        (json!({ "learning_rate": [1] }), "/learning_rate: "),
        (json!({ "adam_beta1": 1 }), "/adam_beta1: 1 against exclusiveMaximum 1"),
        (json!({ "save_strategy": "sometimes" }), "/save_strategy: "),
        (json!({ "optim": "lomo" }), "/optim: "),
        (json!({ "fp8": true }), "/fp8: true against enum [false,null]"),
        (json!({ "dataset": { "a": 1 } }), "/dataset: "),
        (json!({ "output_dir": "${HOME}/x" }), "/output_dir: "),
        (json!(["a"]), ": "),
    ] {
        let found = faults(&schema, &wrong);
        assert!(found.len() == 1 && found[0].starts_with(expected), "{wrong}: {found:?}");
    }
}

/// What the program says about one key's value alone: whether its type is another's, or it isn't supported.
fn is_refused(name: &str, value: &Value) -> bool {
    let text = format!("model_name_or_path: m\ndataset: d\noutput_dir: o\n{name}: {value}\n");
    let own = ["model_name_or_path", "dataset", "output_dir"];
    let text = if own.contains(&name) { format!("{name}: {value}\n") } else { text };
    let Ok(recipe) = Recipe::parse("r.yaml", text.as_bytes()) else { return true };
    let name = keys::canonical(keys::find(name).unwrap()).name;
    let errors = Plan::resolve(&recipe, Verb::Train).map_or_else(|errors| errors.0, |_| Vec::new());
    let typed = format!("`{name}`: ");
    let unsupported = format!("`{name}` is not supported");
    errors.iter().any(|error| error.message.starts_with(&typed) || error.message == unsupported)
}

#[test]
fn schema_and_program_agree_on_every_key() {
    let schema = recipe_schema();
    let values = [
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(7),
        json!(0.5),
        json!(1e3),
        json!("yes"),
        json!("auto"),
        json!("1e"),
        json!("abc"),
        json!("a,b"),
        json!("0.5, 0.5"),
        json!("{a: 1}"),
        json!("${HOME}"),
        json!(""),
        json!(["a", "b"]),
        json!([0.5, 1]),
        json!([["a"]]),
        json!({ "a": 1 }),
        json!("epoch"),
    ];
    let mut tried = 0;
    for key in keys::all() {
        let of = keys::canonical(key);
        for value in &values {
            let is_only_default = matches!(of.state, State::Unsupported(_));
            // The schema of a key that isn't supported has its default in one spelling, and that of a number doesn't look into
            // texts. What some keys read of a value further is their own.
            let as_text = value.is_string() && matches!(of.kind, Kind::Int(_) | Kind::Float(_));
            let further =
                ["deepspeed", "fsdp", "fsdp_config", "lr_scheduler_kwargs", "rope_scaling"].contains(&of.name);
            if is_only_default && !(value.is_null() || value.is_boolean()) || as_text && value != "abc" || further {
                continue;
            }
            let found = faults(&schema, &json!({ key.name: value }));
            assert_eq!(!found.is_empty(), is_refused(key.name, value), "{}: {value}: {found:?}", key.name);
            tried += 1;
        }
    }
    assert!(tried > 5000, "{tried}");
}

#[test]
fn editors_get_something_to_show_about_every_key() {
    let schema = recipe_schema();
    for key in keys::all() {
        let property = &schema["properties"][key.name];
        assert!(property["description"].as_str().is_some_and(|text| text.len() > 5), "{}", key.name);
        let is_old = matches!(key.state, State::Alias(_) | State::Old(..));
        assert_eq!(property["deprecationMessage"].is_string(), is_old, "{}", key.name);
        let is_refused = matches!(key.state, State::Unsupported(_));
        assert_eq!(property["errorMessage"].is_string(), is_refused, "{}", key.name);
        if let Some(default) = property.get("default") {
            assert_eq!(faults(property, default), Vec::<String>::new(), "{}", key.name);
        }
    }
}
