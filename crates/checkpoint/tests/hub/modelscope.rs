//! ModelScope: its addresses, its layout, its older layout.

use std::path::Path;

use ferrotune_checkpoint::hub::{
    DatasetPart, HubSettings, Origin, Secret, Silent, Token, Want, resolve, resolve_dataset,
};

use crate::server::{Reply, Request, Server, part, sha256};
use crate::{NOBODY, settings};

const FILES: [(&str, &[u8]); 4] = [
    ("config.json", b"{}"),
    ("tokenizer.json", b"{\"a\": 1}"),
    ("model.safetensors", b"weights"),
    ("configuration.json", b"not needed"),
];

fn hub(request: &Request) -> Reply {
    if request.path == "/api/v1/models/o/m.1/repo/files?Revision=master&Recursive=False" {
        let entry = |(name, content): &(&str, &[u8])| {
            let (size, digest) = (content.len(), sha256(content));
            format!(r#"{{"Name": "{name}", "Path": "{name}", "Type": "blob", "Size": {size}, "Sha256": "{digest}"}}"#)
        };
        let folder = r#"{"Name": "onnx", "Path": "onnx", "Type": "tree", "Size": 0, "Sha256": ""}"#.to_owned();
        let files: Vec<String> = FILES.iter().map(entry).chain([folder]).collect();
        return Reply::ok(format!(r#"{{"Code": 200, "Success": true, "Data": {{"Files": [{}]}}}}"#, files.join(",")));
    }
    let name = request.path.strip_prefix("/api/v1/models/o/m.1/repo?Revision=master&FilePath=");
    match name.and_then(|name| FILES.iter().find(|(known, _)| *known == name)) {
        Some((_, content)) => part(content, request),
        None => Reply::status(404),
    }
}

fn modelscope(home: &Path, address: &str) -> HubSettings {
    HubSettings { use_modelscope: true, revision: Some("main".into()), ..settings(home, address) }
}

#[test]
fn files_lie_as_its_own_library_lays_them_and_are_fetched_once() {
    let (server, home) = (Server::start(hub), tempfile::tempdir().unwrap());
    let mut settings = modelscope(home.path(), &server.address);
    settings.modelscope.token = Token::Given(Secret::new("sesame"));
    let found = resolve("o/m.1", &settings, Want::Everything, &Silent).unwrap();
    assert_eq!(found.path, home.path().join("ms/models/o--m.1/snapshots/master"));
    assert_eq!(found.origin, Origin::ModelScope { id: "o/m.1".into(), revision: "master".into() });
    for (name, content) in &FILES[..3] {
        assert_eq!(std::fs::read(found.path.join(name)).unwrap(), *content);
    }
    assert!(!found.path.join("configuration.json").exists());
    let request = &server.requests()[0];
    assert_eq!(request.headers["authorization"], "Bearer sesame");
    assert_eq!(request.headers["cookie"], "m_session_id=sesame");
    let again = resolve("o/m.1", &modelscope(home.path(), NOBODY), Want::Everything, &Silent).unwrap();
    assert_eq!(again, found);
}

#[test]
fn the_folder_of_an_older_library_is_completed_in_place() {
    let (server, home) = (Server::start(hub), tempfile::tempdir().unwrap());
    let older = home.path().join("ms/hub/models/o/m___1");
    std::fs::create_dir_all(&older).unwrap();
    std::fs::write(older.join("config.json"), "{}").unwrap();
    std::fs::write(older.join("tokenizer.json"), "rotten").unwrap();
    let found = resolve("o/m.1", &modelscope(home.path(), &server.address), Want::Everything, &Silent).unwrap();
    assert_eq!(found.path, older);
    assert_eq!(std::fs::read(older.join("tokenizer.json")).unwrap(), FILES[1].1);
    assert_eq!(server.lines("FilePath=").len(), 2, "the sound file is kept");
}

#[test]
fn its_refusals_are_told() {
    let home = tempfile::tempdir().unwrap();
    let says = |reply: Reply| {
        let server = Server::start(move |_| reply.clone());
        let settings = modelscope(home.path(), &server.address);
        resolve("o/m.1", &settings, Want::Everything, &Silent).unwrap_err().to_string()
    };
    assert!(says(Reply::status(404)).contains("MODELSCOPE_API_TOKEN"));
    assert!(says(Reply::status(403)).contains("refuses access"));
    assert!(says(Reply::ok(r#"{"Success": false, "Message": "gone fishing"}"#)).contains("gone fishing"));
    assert!(says(Reply::ok(r#"{"Data": {"Files": [{"Path": "a"}]}}"#)).contains("without name, size or sha256"));
    let outside = format!(r#"{{"Data": {{"Files": [{{"Path": "../a", "Size": 1, "Sha256": "{}"}}]}}}}"#, sha256(b""));
    assert!(says(Reply::ok(outside)).contains("outside of the repository"));
}

const ROWS: [(&str, &[u8]); 4] = [
    ("README.md", b"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/a-*\n---\n"),
    ("data/a-1.json", b"[1]"),
    ("data/a-2.json", b"[2]"),
    ("data/b.json", b"[3]"),
];

/// A data set of two pages: the first is full of folders; the file of rows `a-2` has no digest.
fn rows(request: &Request) -> Reply {
    let tree = "/api/v1/datasets/o/d.1/repo/tree?Revision=master&Recursive=True&PageNumber=";
    if let Some(page) = request.path.strip_prefix(tree) {
        let entry = |(name, content): &(&str, &[u8])| {
            let digest = if *name == "data/a-2.json" { String::new() } else { sha256(content) };
            format!(r#"{{"Path": "{name}", "Type": "blob", "Size": {}, "Sha256": "{digest}"}}"#, content.len())
        };
        let folder = |i| format!(r#"{{"Path": "f{i}", "Type": "tree", "Size": 0}}"#);
        let entries: Vec<String> = match page {
            "1&PageSize=200" => (0..200).map(folder).collect(),
            "2&PageSize=200" => ROWS.iter().map(entry).collect(),
            other => panic!("page {other}"),
        };
        return Reply::ok(format!(r#"{{"Success": true, "Data": {{"Files": [{}]}}}}"#, entries.join(",")));
    }
    let name = request.path.strip_prefix("/api/v1/datasets/o/d.1/repo?Revision=master&FilePath=");
    match name.and_then(|name| ROWS.iter().find(|(known, _)| name.replace("%2F", "/") == *known)) {
        Some((_, content)) => part(content, request),
        None => Reply::status(404),
    }
}

#[test]
fn a_data_set_is_listed_page_by_page_and_fetched_once() {
    let (server, home) = (Server::start(rows), tempfile::tempdir().unwrap());
    let part = DatasetPart::default();
    let of = |id: &str, settings: &HubSettings| resolve_dataset(id, part, settings, &Silent);
    let files = of("o/d.1", &modelscope(home.path(), &server.address)).unwrap();
    let folder = home.path().join("ms/datasets/o--d.1/snapshots/master");
    assert_eq!(files, ["data/a-1.json", "data/a-2.json"].map(|name| folder.join(name)));
    assert_eq!(std::fs::read(&files[1]).unwrap(), b"[2]");
    assert!(!folder.join("data/b.json").exists());
    let alone = modelscope(home.path(), NOBODY);
    assert_eq!(of("o/d.1", &alone).unwrap(), files, "what is whole in the cache is taken without asking");
    // As its own library leaves it: without a listing, and nobody to ask.
    std::fs::remove_dir_all(home.path().join("ms/datasets/o--d.1/trees")).unwrap();
    assert_eq!(of("o/d.1", &HubSettings { offline: true, ..alone.clone() }).unwrap(), files);
    assert_eq!(of("o/d.1", &alone).unwrap(), files);
    // A file that was cut off is fetched again, with a digest or without.
    files.iter().for_each(|file| std::fs::write(file, b"[").unwrap());
    assert_eq!(of("o/d.1", &modelscope(home.path(), &server.address)).unwrap(), files);
    assert_eq!(std::fs::read(&files[0]).unwrap(), b"[1]");
    assert_eq!(std::fs::read(&files[1]).unwrap(), b"[2]");
    let error = of("o/other", &modelscope(home.path(), &server.address)).unwrap_err().to_string();
    assert!(error.contains("has no data set `o/other`") && error.contains("MODELSCOPE_API_TOKEN"), "{error}");
    assert!(of("d", &alone).unwrap_err().to_string().contains("has no data set `d`"));
}

#[test]
fn a_listing_that_never_ends_is_refused() {
    let entry = r#"{"Path": "f", "Type": "tree", "Size": 0}"#;
    let page = format!(r#"{{"Data": {{"Files": [{}]}}}}"#, [entry; 200].join(","));
    let (server, home) = (Server::start(move |_| Reply::ok(page.clone())), tempfile::tempdir().unwrap());
    let settings = modelscope(home.path(), &server.address);
    let error = resolve_dataset("o/d", DatasetPart::default(), &settings, &Silent).unwrap_err().to_string();
    assert!(error.contains("it lists more than 100000 files"), "{error}");
}
