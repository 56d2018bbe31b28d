//! Registries that are sound, and what is said of others.

use super::*;

fn registry(json: &str) -> Registry {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(FILE), json).unwrap();
    let mut registry = Registry::open(dir.path()).unwrap();
    registry.dir = "data".into();
    assert!(!registry.online);
    registry.path = "data/dataset_info.json".into();
    registry
}

fn entry(json: &str) -> Result<DatasetEntry, DataError> {
    registry(&format!("{{\"d\": {json}}}")).entry("d", Stage::Sft)
}

fn message(json: &str) -> String {
    entry(json).unwrap_err().to_string()
}

#[test]
fn without_columns_the_defaults_hold() {
    let entry = entry(r#"{"file_name": "d.json"}"#).unwrap();
    let mapped: Vec<_> = entry.columns.mapped().collect();
    assert_eq!(
        mapped,
        [("prompt", "instruction"), ("query", "input"), ("response", "output"), ("messages", "conversations")]
    );
    assert_eq!(entry.tags, Tags::default());
    assert_eq!(entry.formatting, Formatting::Alpaca);
    assert_eq!(entry.path, Path::new("data/d.json"));
    assert!(entry.notes.is_empty());
}

#[test]
fn with_columns_everything_unlisted_is_unmapped() {
    let entry = entry(r#"{"file_name": "/d.json", "columns": {"system": "sys"}, "tags": {"role_tag": "role"}}"#);
    let entry = entry.unwrap();
    assert_eq!(entry.columns.mapped().collect::<Vec<_>>(), [("system", "sys")]);
    assert_eq!(entry.tags.role_tag.as_deref(), Some("role"));
    assert_eq!(entry.tags.content_tag, None);
    assert_eq!(entry.path, Path::new("/d.json"));
}

#[test]
fn what_has_no_effect_is_noted() {
    let entry = entry(
        r#"{"file_name": "d.json", "formating": "sharegpt", "subset": "x",
            "columns": {"promt": "q", "response": "a"}}"#,
    );
    assert_eq!(
        entry.unwrap().notes,
        [
            "`formating` is unknown and has no effect; did you mean `formatting`?",
            "`subset` has no effect on a dataset of local files",
            "`columns.promt` is unknown and has no effect; did you mean `prompt`?",
        ]
    );
}

#[test]
fn unknown_names_get_a_suggestion() {
    let registry = registry(r#"{"identity": {}, "alpaca_en_demo": {}}"#);
    let message = |name| registry.entry(name, Stage::Sft).unwrap_err().to_string();
    assert_eq!(
        message("alpaca_demo"),
        "dataset `alpaca_demo` is not in data/dataset_info.json; did you mean `alpaca_en_demo`?"
    );
    assert_eq!(message("zzz"), "dataset `zzz` is not in data/dataset_info.json; it has identity, alpaca_en_demo");
}

#[test]
fn entries_that_cannot_be_used_say_why() {
    for (json, expected) in [
        ("7", "dataset `d`: `its entry` must be an object, is a number"),
        ("{}", "dataset `d`: `file_name` is missing: it names the data file or folder"),
        (r#"{"file_name": 3}"#, "dataset `d`: `file_name` must be text, is a number"),
        (
            r#"{"file_name": "d", "formatting": "chatml"}"#,
            "dataset `d`: `formatting` is `chatml`; it must be `alpaca`, `sharegpt` or `openai`",
        ),
        (r#"{"file_name": "d", "columns": ["a"]}"#, "dataset `d`: `columns` must be an object, is a list"),
        (
            r#"{"file_name": "d", "columns": {"prompt": 1}}"#,
            "dataset `d`: `columns.prompt` must be the name it has in the rows, is a number",
        ),
        (r#"{"file_name": "d", "num_samples": -1}"#, "dataset `d`: `num_samples` must be a number of rows, is -1"),
        (
            r#"{"file_name": "d", "split": "test"}"#,
            "dataset `d`: `split` is `test`, but local files have the one split `train`; put the rows in a file \
             of their own",
        ),
        (
            r#"{"om_hub_url": "a/b"}"#,
            "dataset `d` lies on a hub that isn't read (`om_hub_url: a/b`): download it and set \
             `file_name` to the file or folder instead",
        ),
        (
            r#"{"script_url": "x.py"}"#,
            "dataset `d` is made by a Python script (`script_url: x.py`), which isn't run: run it yourself, save the rows, and \
             set `file_name` to the file or folder",
        ),
        (
            r#"{"file_name": "d", "ranking": true}"#,
            "dataset `d` has `ranking: true`, which stage rm or dpo trains on; this recipe is of stage sft",
        ),
        (
            r#"{"file_name": "d", "columns": {"kto_tag": "label"}}"#,
            "dataset `d` has `columns.kto_tag`, which stage kto trains on; this recipe is of stage sft",
        ),
    ] {
        assert_eq!(message(json), expected);
    }
}

#[test]
fn registries_that_cannot_be_read_say_why() {
    let dir = tempfile::tempdir().unwrap();
    let message = |dir: &Path| {
        let text = Registry::open(dir).unwrap_err().to_string();
        text.replace(&dir.display().to_string(), "DIR")
    };
    assert_eq!(
        message(dir.path()),
        "there is no DIR/dataset_info.json; it maps the names in `dataset` to files, for example \
         {\"my_data\": {\"file_name\": \"my_data.json\"}}; `dataset_dir` says in which folder it lies"
    );
    fs::write(dir.path().join(FILE), "{\n \"a\": }").unwrap();
    assert_eq!(message(dir.path()), "DIR/dataset_info.json:2:7: expected value");
    fs::write(dir.path().join(FILE), "\u{feff}[]").unwrap();
    assert_eq!(
        message(dir.path()),
        "DIR/dataset_info.json:1:1: expected an object of dataset names, like {\"my_data\": {...}}"
    );
    let message = Registry::open(Path::new("REMOTE:o/d")).unwrap_err().to_string();
    assert_eq!(message, "the registry of `dataset_dir: REMOTE:o/d` was not downloaded");
    let online = Registry::open(Path::new("ONLINE")).unwrap();
    let entry = online.entry("o/d", Stage::Sft).unwrap();
    let hub = |hugging_face: Option<&str>, modelscope: Option<&str>, split: Option<&str>| {
        let [hugging_face, modelscope, split] = [hugging_face, modelscope, split].map(|id| id.map(str::to_owned));
        Some(Remote::Hub { hugging_face, modelscope, subset: None, split, folder: None })
    };
    assert_eq!(entry.remote, hub(Some("o/d"), Some("o/d"), None));
    let registry = r#"{"m": {"ms_hub_url": "o/m", "split": "test"}, "b": {"hf_hub_url": "o/h", "ms_hub_url": "o/m"}}"#;
    fs::write(dir.path().join(FILE), registry).unwrap();
    let named = Registry::open(dir.path()).unwrap();
    let entry = |name| named.entry(name, Stage::Sft).unwrap();
    assert_eq!((entry("m").remote, entry("m").path), (hub(None, Some("o/m"), Some("test")), "o/m".into()));
    assert_eq!((entry("b").remote, entry("b").path), (hub(Some("o/h"), Some("o/m"), None), "o/h".into()));
}
