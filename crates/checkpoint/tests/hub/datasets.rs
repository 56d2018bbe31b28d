//! Data sets of the hub and of cloud stores: which files, once, and from the cache.

use std::path::Path;

use ferrotune_checkpoint::hub::{DatasetPart, HubSettings, Secret, Silent, resolve_cloud, resolve_dataset};

use crate::server::{Reply, Repo, Server, part};
use crate::{NOBODY, settings};

const README: &str =
    "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/a-*\n---\n";

fn repo() -> Repo {
    let mut repo = Repo::tiny();
    repo.files.clear();
    for (name, text) in
        [("README.md", README), ("data/a-1.json", "[1]"), ("data/a-2.json", "[2]"), ("data/b.json", "[3]")]
    {
        repo.files.insert(name, text.into());
    }
    repo
}

fn names(files: &[std::path::PathBuf]) -> Vec<String> {
    files
        .iter()
        .map(|file| format!("{} {}", file.file_name().unwrap().display(), std::fs::read_to_string(file).unwrap()))
        .collect()
}

#[test]
fn a_data_set_is_fetched_once_and_only_what_is_meant() {
    let home = tempfile::tempdir().unwrap();
    let repo = repo();
    let there = repo.clone();
    let cdn = Server::start(move |request| there.cdn(request));
    let address = cdn.address;
    let hub = Server::start(move |request| {
        // The same hub, under the addresses of data sets.
        let mut request = request.clone();
        if !request.path.contains("/datasets/") {
            return Reply::status(404);
        }
        request.path = request.path.replace("/api/datasets/", "/api/models/").replace("/datasets/", "/");
        repo.hub(&request, &address)
    });
    let settings = settings(home.path(), &hub.address);
    let part = DatasetPart::default();
    let files = resolve_dataset("o/m", part, &settings, &Silent).unwrap();
    assert_eq!(names(&files), ["a-1.json [1]", "a-2.json [2]"]);
    assert!(files[0].starts_with(home.path().join("hf/datasets--o--m/snapshots")), "{}", files[0].display());
    assert!(!files[0].with_file_name("b.json").exists());
    let asked = hub.requests().len();
    assert_eq!(resolve_dataset("o/m", part, &settings, &Silent).unwrap(), files);
    assert_eq!(hub.requests().len(), asked, "nothing is asked of what is whole in the cache");
    let offline = HubSettings { offline: true, ..settings.clone() };
    assert_eq!(resolve_dataset("o/m", part, &offline, &Silent).unwrap(), files);
    let test = DatasetPart { split: Some("test"), ..part };
    let error = resolve_dataset("o/m", test, &settings, &Silent).unwrap_err().to_string();
    assert!(error.contains("no split `test`"), "{error}");
    let error = resolve_dataset("o/other/x", part, &settings, &Silent).unwrap_err().to_string();
    assert!(error.contains("has no data set `o/other/x`"), "{error}");
    // As Python's library leaves it: without a listing, and nobody to ask.
    std::fs::remove_dir_all(home.path().join("hf/datasets--o--m/trees")).unwrap();
    let mut alone = offline;
    alone.hugging_face.endpoint = NOBODY.to_owned();
    assert_eq!(resolve_dataset("o/m", part, &alone, &Silent).unwrap(), files);
}

fn s3(home: &Path, endpoint: &str) -> HubSettings {
    let mut settings = settings(home, NOBODY);
    settings.cloud.s3_endpoint = Some(endpoint.to_owned());
    settings.cloud.s3_key = Some(("ID".to_owned(), Secret::new("SECRET")));
    settings
}

#[test]
fn files_of_a_bucket_are_fetched_again_only_when_they_change() {
    let home = tempfile::tempdir().unwrap();
    let tag = std::sync::Arc::new(std::sync::Mutex::new("1".to_owned()));
    let theirs = std::sync::Arc::clone(&tag);
    let store = Server::start(move |request| {
        let signed = request.path.contains("X-Amz-Signature=") && request.path.contains("X-Amz-Credential=ID%2F");
        let tag = theirs.lock().unwrap().clone();
        match request.path.split('?').next() {
            _ if !signed => Reply::status(403),
            Some("/bucket") => Reply::ok(format!(
                "<ListBucketResult><Contents><Key>d/rows.json</Key><Size>3</Size><ETag>{tag}</ETag></Contents>\
                 <Contents><Key>d/pic.png</Key><Size>9</Size><ETag>x</ETag></Contents></ListBucketResult>"
            )),
            Some("/bucket/d/rows.json") => part(format!("[{tag}]").as_bytes(), request),
            _ => Reply::status(404),
        }
    });
    let settings = s3(home.path(), &store.address);
    let fetch = |url: &str| resolve_cloud(url, &settings, &Silent);
    assert_eq!(names(&fetch("s3://bucket/d").unwrap()), ["rows.json [1]"]);
    assert_eq!(names(&fetch("s3://bucket/d/rows.json").unwrap()), ["rows.json [1]"]);
    assert_eq!(store.lines("/bucket/d/rows.json").len(), 1, "the same file isn't fetched twice");
    *tag.lock().unwrap() = "2".to_owned();
    assert_eq!(names(&fetch("s3://bucket/d").unwrap()), ["rows.json [2]"]);
    let offline = HubSettings { offline: true, ..settings.clone() };
    assert_eq!(names(&resolve_cloud("s3://bucket/d", &offline, &Silent).unwrap()), ["rows.json [2]"]);
    let error = fetch("s3://bucket/none").unwrap_err().to_string();
    assert!(error.contains("holds no data file") && error.contains("d/rows.json"), "{error}");
    let mut anonymous = settings.clone();
    anonymous.cloud.s3_key = None;
    let error = resolve_cloud("s3://bucket/d", &anonymous, &Silent).unwrap_err().to_string();
    assert!(error.contains("403") && error.contains("AWS_ACCESS_KEY_ID"), "{error}");
    let error = fetch("s3://other/d").unwrap_err().to_string();
    assert!(error.contains("has no data set `s3://other/d`") && !error.contains("Signature"), "{error}");
}

#[test]
fn files_of_googles_store() {
    let home = tempfile::tempdir().unwrap();
    let store = Server::start(|request| match request.path.split('?').next() {
        Some("/storage/v1/b/bucket/o") => {
            Reply::ok(r#"{"items": [{"name": "d/a b.jsonl", "size": "2", "etag": "t"}]}"#)
        }
        Some("/storage/v1/b/bucket/o/d%2Fa%20b.jsonl") => part(b"{}", request),
        _ => Reply::status(404),
    });
    let mut settings = settings(home.path(), NOBODY);
    settings.cloud.google_endpoint = Some(store.address);
    assert_eq!(names(&resolve_cloud("gs://bucket/d", &settings, &Silent).unwrap()), ["a b.jsonl {}"]);
}

/// The address of a store on this machine, as Google's own tools print and take it.
#[test]
fn an_emulator_is_named_with_or_without_a_scheme() {
    for (given, expected) in [("127.0.0.1:9", "http://127.0.0.1:9"), ("https://store:9/", "https://store:9")] {
        let var = |name: &str| (name == "STORAGE_EMULATOR_HOST").then(|| given.into());
        let settings = HubSettings::from_vars(var, "/home/u".into());
        assert_eq!(settings.cloud.google_endpoint.as_deref(), Some(expected));
    }
}
