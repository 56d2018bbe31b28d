//! Uploads to a hub made of a few lines: repository, storage in one and in many parts, commit, and all that fails on the way.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use ferrotune_checkpoint::hub::{HubError, HubSettings, Secret, Token, Uploader};
use serde_json::{Value, json};

use crate::server::{Reply, Request, Server, sha256};
use crate::{Heard, NOBODY, settings};

/// Bytes of a part, where a file goes in parts.
const PART: usize = 1000;
const SECRET: &str = "hf_sesame";

/// What the hub holds.
#[derive(Default)]
struct Held {
    created: Vec<Value>,
    /// Whole objects by digest, and parts by address.
    storage: BTreeMap<String, Vec<u8>>,
    verified: usize,
    commits: Vec<Vec<Value>>,
    /// Requests by kind.
    counts: BTreeMap<&'static str, usize>,
}

/// A hub that asks `spoil` before it answers: a reply instead, by the kind of request and how many of that came before.
struct Hub {
    server: Server,
    held: Arc<Mutex<Held>>,
}

impl Hub {
    fn start(in_parts: bool, spoil: impl Fn(&str, usize) -> Option<Reply> + Send + Sync + 'static) -> Self {
        let held = Arc::new(Mutex::new(Held::default()));
        let state = held.clone();
        let server = Server::start(move |request| {
            let kind = kind(request);
            let count = {
                let mut held = state.lock().unwrap();
                let count = held.counts.entry(kind).or_default();
                *count += 1;
                *count - 1
            };
            match spoil(kind, count) {
                Some(reply) => reply,
                None => answer(kind, request, &mut state.lock().unwrap(), in_parts),
            }
        });
        Self { server, held }
    }

    fn settings(&self, home: &Path) -> HubSettings {
        let mut settings = settings(home, &self.server.address);
        settings.hugging_face.token = Token::Given(Secret::new(SECRET));
        settings
    }

    fn upload(&self, folder: &Path) -> Result<(String, Heard), HubError> {
        let heard = Heard::default();
        let home = tempfile::tempdir().unwrap();
        let uploader = Uploader::new(&self.settings(home.path()), "me/mine")?;
        uploader.create(true)?;
        Ok((uploader.send(folder, "a model", &heard)?, heard))
    }
}

fn kind(request: &Request) -> &'static str {
    match request.path.split('?').next().unwrap() {
        "/api/repos/create" => "create",
        "/api/models/me/mine/preupload/main" => "preupload",
        "/me/mine.git/info/lfs/objects/batch" => "batch",
        "/verify" => "verify",
        "/api/models/me/mine/commit/main" => "commit",
        path if path.starts_with("/storage/") && request.method == "PUT" => "put",
        path if path.starts_with("/storage/") => "complete",
        _ => "other",
    }
}

fn answer(kind: &str, request: &Request, held: &mut Held, in_parts: bool) -> Reply {
    let ours = request.headers.get("authorization").map(String::as_str) == Some("Bearer hf_sesame");
    let host = format!("http://{}", request.headers["host"]);
    let body = || serde_json::from_slice::<Value>(&request.body).unwrap();
    let json = |value: Value| Reply::ok(value.to_string());
    if kind == "put" {
        assert!(!request.headers.contains_key("authorization"), "the storage must not see the token");
        held.storage.insert(request.path.clone(), request.body.clone());
        return Reply::ok("").with("etag", format!("\"{}\"", sha256(&request.body)));
    }
    assert!(ours, "{kind} without the token");
    match kind {
        "create" => {
            held.created.push(body());
            json(json!({"url": format!("{host}/me/mine")}))
        }
        "preupload" => {
            let mode = |file: &Value| if file["path"].as_str().unwrap().ends_with(".json") { "regular" } else { "lfs" };
            let body = body();
            let files = body["files"].as_array().unwrap();
            json(
                json!({"files": files.iter().map(|f| json!({"path": f["path"], "uploadMode": mode(f)})).collect::<Vec<_>>()}),
            )
        }
        "batch" => {
            let body = body();
            let object = |object: &Value| {
                let (oid, size) = (object["oid"].as_str().unwrap(), object["size"].as_u64().unwrap() as usize);
                let has = held.storage.keys().any(|path| path.contains(oid));
                if has {
                    return json!({"oid": oid, "size": size});
                }
                let href = format!("{host}/storage/{oid}?X-Amz-Signature=open-door");
                let mut header = serde_json::Map::new();
                if in_parts {
                    header.insert("chunk_size".into(), PART.to_string().into());
                    for part in 1..=size.div_ceil(PART) {
                        header.insert(
                            format!("{part:05}"),
                            format!("{host}/storage/part-{part}-{oid}?X-Amz-Signature=x").into(),
                        );
                    }
                }
                json!({"oid": oid, "size": size, "actions": {
                    "upload": {"href": href, "header": header}, "verify": {"href": format!("{host}/verify")}}})
            };
            json(json!({"objects": body["objects"].as_array().unwrap().iter().map(object).collect::<Vec<_>>()}))
        }
        "complete" => {
            let tags: Vec<String> = body()["parts"]
                .as_array()
                .unwrap()
                .iter()
                .map(|part| part["etag"].as_str().unwrap().to_owned())
                .collect();
            let part = |(i, tag): (usize, &String)| {
                let start = format!("/storage/part-{}-", i + 1);
                let (_, bytes) = held.storage.iter().find(|(path, _)| path.starts_with(&start)).unwrap();
                assert_eq!(*tag, format!("\"{}\"", sha256(bytes)));
                bytes.clone()
            };
            let whole: Vec<u8> = tags.iter().enumerate().flat_map(part).collect();
            held.storage.insert(request.path.clone(), whole);
            Reply::ok("")
        }
        "verify" => {
            held.verified += 1;
            Reply::ok("")
        }
        "commit" => {
            let text = String::from_utf8(request.body.clone()).unwrap();
            held.commits.push(text.lines().map(|line| serde_json::from_str(line).unwrap()).collect());
            json(json!({"commitUrl": "u", "commitOid": "o"}))
        }
        _ => Reply::status(404),
    }
}

/// A folder with a small file, a large one, an empty one, and what is not uploaded.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
    write("config.json", br#"{"a": 1}"#);
    write("model.safetensors", &weights());
    write("empty.json", b"");
    write(".hidden", b"x");
    write("model.safetensors.tmp-0123456789abcdef", b"half");
    fs::create_dir(dir.path().join("deploy")).unwrap();
    dir
}

fn weights() -> Vec<u8> {
    (0..2500u32).map(|i| (i * 7 % 251) as u8).collect()
}

/// The object that the storage ended with.
fn stored(held: &Held) -> Vec<u8> {
    let name = format!("/storage/{}", sha256(&weights()));
    held.storage.iter().find(|(path, _)| path.starts_with(&name)).unwrap().1.clone()
}

#[test]
fn a_folder_is_one_commit_whether_it_goes_whole_or_in_parts() {
    for in_parts in [false, true] {
        let hub = Hub::start(in_parts, |_, _| None);
        let folder = folder();
        let (url, heard) = hub.upload(folder.path()).unwrap();
        assert_eq!(url, format!("{}/me/mine", hub.server.address));
        assert_eq!(heard.stages(), ["uploading model.safetensors Some(2500)"]);
        assert!(heard.is_over() && heard.bytes() == 2500, "{}", heard.bytes());
        let held = hub.held.lock().unwrap();
        assert_eq!(held.created, [json!({"name": "mine", "organization": "me", "private": true})]);
        assert_eq!((stored(&held), held.verified), (weights(), 1));
        let expected = [
            json!({"key": "header", "value": {"summary": "a model", "description": ""}}),
            json!({"key": "file", "value": {"content": "eyJhIjogMX0=", "path": "config.json", "encoding": "base64"}}),
            json!({"key": "file", "value": {"content": "", "path": "empty.json", "encoding": "base64"}}),
            json!({"key": "lfsFile", "value": {"path": "model.safetensors", "algo": "sha256", "oid": sha256(&weights()),
                   "size": 2500}}),
        ];
        assert_eq!(held.commits, [expected], "in parts: {in_parts}");
    }
}

#[test]
fn what_is_there_is_not_sent_again() {
    let hub = Hub::start(false, |kind, count| (kind == "commit" && count == 0).then(|| Reply::status(400)));
    let folder = folder();
    let error = hub.upload(folder.path()).map(drop).unwrap_err();
    assert!(matches!(error, HubError::Rejected { status: 400, .. }), "{error}");
    hub.upload(folder.path()).unwrap();
    let held = hub.held.lock().unwrap();
    assert_eq!((held.counts["put"], held.commits.len()), (1, 1));
}

#[test]
fn passing_failures_pass() {
    // Each kind of request fails twice, in another way each, before it is answered.
    let hub = Hub::start(true, |kind, count| match (kind, count) {
        ("put", 1) => Some(Reply { cut: Some(0), raw: Some(Vec::new()), ..Reply::default() }),
        (_, 0) => Some(Reply::status(503)),
        ("put", _) => None,
        (_, 1) => {
            Some(Reply { raw: Some(b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{".to_vec()), ..Reply::default() })
        }
        _ => None,
    });
    let folder = folder();
    let (_, heard) = hub.upload(folder.path()).unwrap();
    assert_eq!(heard.bytes(), 2500, "what is sent again is no progress");
    let held = hub.held.lock().unwrap();
    assert_eq!((stored(&held), held.commits.len()), (weights(), 1));
}

#[test]
fn lasting_failures_say_what_to_do_and_no_secret() {
    let refused =
        |status: u16| Reply { body: br#"{"error": "You don't have the rights"}"#.to_vec(), ..Reply::status(status) };
    let cases: [(&str, Reply, &str); 8] = [
        ("create", refused(401), "(HTTP 401: You don't have the rights); the token is no longer valid"),
        ("create", refused(403), "(HTTP 403: You don't have the rights); the token needs write access"),
        ("commit", refused(403), "`me/mine`: http"),
        ("preupload", refused(404), "HTTP 404: You don't have the rights"),
        ("batch", Reply::status(500), "HTTP 500, also when tried again"),
        ("put", Reply::status(403), "HTTP 403"),
        ("put", Reply::status(502), "HTTP 502, also when tried again"),
        ("preupload", Reply::ok("<html>log in</html>"), "not the answer of a hub: not JSON"),
    ];
    for (spoilt, reply, expected) in cases {
        let hub = Hub::start(false, move |kind, _| (kind == spoilt).then(|| reply.clone()));
        let folder = folder();
        let error = hub.upload(folder.path()).map(drop).unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(error.to_string().contains(expected), "{spoilt}: {error}");
        assert!(!text.contains("sesame") && !text.contains("open-door"), "{text}");
        assert!(hub.held.lock().unwrap().commits.is_empty());
    }
}

#[test]
fn hostile_answers_are_refused() {
    let object = |actions: Value| json!({"objects": [{"oid": sha256(&weights()), "actions": actions}]}).to_string();
    let upload = |header: Value| json!({"upload": {"href": format!("{NOBODY}/x"), "header": header}});
    let cases = [
        (json!({"objects": []}).to_string(), "nothing on model.safetensors"),
        (object(upload(json!({"chunk_size": 0}))), "it wants parts of 0 bytes"),
        (object(upload(json!({"chunk_size": "1000", "1": format!("{NOBODY}/x")}))), "no connection"),
        (object(upload(json!({"chunk_size": 1000, "7": "x"}))), "no address for part 1"),
        (
            json!({"objects": [{"oid": sha256(&weights()), "error": {"code": 422, "message": "too large"}}]})
                .to_string(),
            "too large",
        ),
    ];
    for (body, expected) in cases {
        let hub = Hub::start(false, move |kind, _| (kind == "batch").then(|| Reply::ok(body.clone())));
        let folder = folder();
        let error = hub.upload(folder.path()).map(drop).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn an_upload_that_cannot_be_is_refused_before_anybody_is_asked() {
    let home = tempfile::tempdir().unwrap();
    let base = settings(home.path(), NOBODY);
    let refused = |settings: HubSettings| Uploader::new(&settings, "me/mine").map(drop).unwrap_err().to_string();
    let error = refused(base.clone());
    assert!(error.contains("needs an access token") && error.contains("HF_TOKEN"), "{error}");
    let with_token = || {
        let mut settings = base.clone();
        settings.hugging_face.token = Token::Given(Secret::new(SECRET));
        settings
    };
    let error = refused(HubSettings { offline: true, ..with_token() });
    assert!(error.starts_with("HF_HUB_OFFLINE: "), "{error}");
    let error = refused(HubSettings { use_modelscope: true, ..with_token() });
    assert!(error.starts_with("USE_MODELSCOPE_HUB: "), "{error}");
    let nobody = Uploader::new(&with_token(), "me/mine").unwrap().create(false).unwrap_err().to_string();
    assert!(nobody.contains("no connection") && !nobody.contains("sesame"), "{nobody}");
}
