//! The Hugging Face hub: layout, resume, digests, tokens, hostile answers.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ferrotune_checkpoint::hub::{HubError, HubSettings, Kind, Origin, Secret, Silent, Token, Want, resolve};
use tempfile::TempDir;

use crate::server::{COMMIT, Reply, Repo, Request, Server, blob_id, part, sha256};
use crate::{Heard, NOBODY, settings};

/// A hub with `repo`, its other host, and a home for its files.
struct World {
    hub: Server,
    cdn: Server,
    home: TempDir,
    repo: Repo,
}

impl World {
    fn new(repo: Repo) -> World {
        World::with(repo, |_| None, |_| None)
    }

    /// A world in which `hub` and `cdn` may answer otherwise than `repo` does.
    fn with(
        repo: Repo,
        hub: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static,
        cdn: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static,
    ) -> World {
        let there = repo.clone();
        let cdn = Server::start(move |r| cdn(r).unwrap_or_else(|| there.cdn(r)));
        let (here, address) = (repo.clone(), cdn.address.clone());
        let hub = Server::start(move |r| hub(r).unwrap_or_else(|| here.hub(r, &address)));
        World { hub, cdn, home: tempfile::tempdir().unwrap(), repo }
    }

    fn settings(&self) -> HubSettings {
        settings(self.home.path(), &self.hub.address)
    }

    fn root(&self) -> PathBuf {
        self.home.path().join("hf/models--o--m")
    }

    fn weights(&self) -> &[u8] {
        &self.repo.files["model.safetensors"]
    }

    /// Where the weights grow.
    fn partial(&self) -> PathBuf {
        self.root().join(format!("blobs/{}.incomplete", sha256(self.weights())))
    }

    fn resolve(&self) -> Result<PathBuf, HubError> {
        resolve("o/m", &self.settings(), Want::Everything, &Silent).map(|found| found.path)
    }

    fn error(&self) -> String {
        let error = self.resolve().unwrap_err();
        assert!(!self.root().join("snapshots").join(COMMIT).join("model.safetensors").exists());
        error.to_string()
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn files_lie_as_the_python_library_lays_them() {
    let world = World::new(Repo::tiny());
    let heard = Heard::default();
    let found = resolve("o/m", &world.settings(), Want::Everything, &heard).unwrap();
    let snapshot = world.root().join("snapshots").join(COMMIT);
    assert_eq!((&found.path, found.kind), (&snapshot, Kind::Folder));
    assert_eq!(found.origin, Origin::HuggingFace { id: "o/m".into(), commit: COMMIT.into() });
    assert_eq!(names(&snapshot), ["config.json", "model.safetensors", "tokenizer.json"], "and no pickle, no README");
    for name in names(&snapshot) {
        let content = &world.repo.files[name.as_str()];
        let tag = if name == "model.safetensors" { sha256(content) } else { blob_id(content) };
        assert_eq!(std::fs::read_link(snapshot.join(&name)).unwrap(), Path::new("../../blobs").join(&tag));
        assert_eq!(std::fs::read(snapshot.join(&name)).unwrap(), *content);
        assert!(world.home.path().join("hf/.locks/models--o--m").join(format!("{tag}.lock")).exists());
    }
    assert_eq!(std::fs::read_to_string(world.root().join("refs/main")).unwrap(), COMMIT);
    assert_eq!(names(&world.root().join("blobs")).len(), 3, "nothing half done is left");
    assert_eq!(heard.bytes(), 300_000 + 23 + 2);
    assert_eq!(heard.stages(), ["o/m Some(25)", "o/m Some(300000)"]);
    assert!(heard.is_over());
}

#[test]
fn the_second_run_sends_no_request() {
    let world = World::new(Repo::tiny());
    let first = world.resolve().unwrap();
    let dead = settings(world.home.path(), NOBODY);
    assert_eq!(resolve("o/m", &dead, Want::Everything, &Silent).unwrap().path, first);
    let offline = HubSettings { offline: true, ..dead };
    assert_eq!(resolve("o/m", &offline, Want::Everything, &Silent).unwrap().path, first);
    let pinned = HubSettings { revision: Some(COMMIT.into()), ..offline };
    assert_eq!(resolve("o/m", &pinned, Want::Everything, &Silent).unwrap().path, first);
}

#[test]
fn the_tokenizer_alone_and_later_the_rest() {
    let world = World::new(Repo::tiny());
    let folder = resolve("o/m", &world.settings(), Want::TokenizerOnly, &Silent).unwrap().path;
    assert_eq!(names(&folder), ["config.json", "tokenizer.json"]);
    assert!(world.cdn.requests().is_empty());
    assert_eq!(world.resolve().unwrap(), folder);
    assert!(folder.join("model.safetensors").is_file());
    assert_eq!(world.hub.lines("GET /o/m/resolve").len(), 3, "each file once");
}

#[test]
fn a_cut_connection_is_resumed_where_it_broke() {
    let calls = AtomicUsize::new(0);
    let repo = Repo::tiny();
    let weights = repo.files["model.safetensors"].clone();
    let world = World::with(
        repo,
        |_| None,
        move |request| {
            let reply = part(&weights, request);
            let cut = [Some(100_000), Some(0), Some(70_000), None][calls.fetch_add(1, Ordering::SeqCst).min(3)];
            Some(Reply { cut, ..reply })
        },
    );
    let heard = Heard::default();
    let folder = resolve("o/m", &world.settings(), Want::Everything, &heard).unwrap().path;
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), world.weights());
    let starts: Vec<usize> = world.cdn.requests().iter().map(Request::from).collect();
    assert_eq!(starts, [0, 100_000, 100_000, 170_000]);
    assert_eq!(heard.bytes(), 300_025, "no byte is counted twice");
}

#[test]
fn a_later_run_goes_on_from_what_an_earlier_one_left() {
    let world = World::new(Repo::tiny());
    std::fs::create_dir_all(world.root().join("blobs")).unwrap();
    std::fs::write(world.partial(), &world.weights()[..123_456]).unwrap();
    world.resolve().unwrap();
    assert_eq!(world.cdn.requests()[0].from(), 123_456);
    assert!(!world.partial().exists());
}

#[test]
fn a_rotten_or_overlong_beginning_is_fetched_anew() {
    for left in [vec![1; 1000], vec![1; 400_000], vec![1; 300_000]] {
        let world = World::new(Repo::tiny());
        std::fs::create_dir_all(world.root().join("blobs")).unwrap();
        std::fs::write(world.partial(), left).unwrap();
        let folder = world.resolve().unwrap();
        assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), world.weights());
    }
}

#[test]
fn a_server_without_ranges_sends_the_whole_again() {
    let calls = AtomicUsize::new(0);
    let repo = Repo::tiny();
    let weights = repo.files["model.safetensors"].clone();
    let world = World::with(
        repo,
        |_| None,
        move |_| {
            let cut = (calls.fetch_add(1, Ordering::SeqCst) == 0).then_some(100_000);
            Some(Reply { cut, ..Reply::ok(&*weights) })
        },
    );
    let folder = world.resolve().unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), world.weights());
}

#[test]
fn other_bytes_than_promised_are_refused() {
    let world = World::with(Repo::tiny(), |_| None, |_| Some(Reply::ok(vec![7; 300_000])));
    let error = world.error();
    assert!(error.contains(&sha256(&[7; 300_000])) && error.contains(&sha256(world.weights())), "{error}");
    assert_eq!(std::fs::metadata(world.partial()).unwrap().len(), 0, "nothing bad is kept to go on from");
}

#[test]
fn more_bytes_than_promised_are_refused() {
    let world = World::with(Repo::tiny(), |_| None, |_| Some(Reply::ok(vec![7; 900_000])));
    assert!(world.error().contains("more than 300000 bytes"));
}

#[test]
fn passing_failures_pass_and_lasting_ones_are_told() {
    let calls = AtomicUsize::new(0);
    let hiccup = move |r: &Request| {
        (r.path.starts_with("/api") && calls.fetch_add(1, Ordering::SeqCst) < 2).then(|| Reply::status(503))
    };
    World::with(Repo::tiny(), hiccup, |_| None).resolve().unwrap();
    let world = World::with(Repo::tiny(), |_| Some(Reply::status(502)), |_| None);
    let error = world.error();
    assert_eq!(world.hub.requests().len(), 3, "as often as the settings say");
    for part in ["`o/m` could not be had", "Hugging Face", "HTTP 502", "by hand", "model_name_or_path"] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn a_silent_server_is_given_up() {
    let silent = |_: &Request| Some(Reply { delay: Duration::from_secs(20), ..Reply::status(200) });
    let world = World::with(Repo::tiny(), silent, |_| None);
    let mut settings = world.settings();
    settings.network.read_timeout = Duration::from_millis(100);
    let start = Instant::now();
    let error = resolve("o/m", &settings, Want::Everything, &Silent).unwrap_err().to_string();
    assert!(start.elapsed() < Duration::from_secs(5) && error.contains("timeout"), "{error}");
}

#[test]
fn a_host_that_is_not_there_is_told_at_once() {
    let home = tempfile::tempdir().unwrap();
    let error = resolve("o/m", &settings(home.path(), NOBODY), Want::Everything, &Silent).unwrap_err();
    let HubError::NothingWorked { tried, by_hand, .. } = &error else { panic!("{error}") };
    assert!(matches!(*tried[0].reason, HubError::Unreachable { .. }), "{error}");
    assert!(by_hand.contains("/o/m"), "{by_hand}");
}

#[test]
fn a_name_that_is_nearly_a_short_name_is_answered_with_those() {
    let home = tempfile::tempdir().unwrap();
    let nobody = settings(home.path(), NOBODY);
    let offline = HubSettings { offline: true, ..settings(home.path(), NOBODY) };
    let world = World::with(Repo::tiny(), |_| Some(Reply::status(401)), |_| None);
    for settings in [&nobody, &offline, &world.settings()] {
        let told = |name: &str| resolve(name, settings, Want::Everything, &Silent).unwrap_err().to_string();
        let names = "\n  `smollm2` is no short name; these are: smollm2-135m-instruct, ";
        assert_eq!(told("smollm2").matches(names).count(), 1, "{}", told("smollm2"));
        assert!(!told("o/smollm2").contains("short name"), "{}", told("o/smollm2"));
    }
}

#[test]
fn missing_gated_and_private_models_have_cures() {
    let world = World::with(Repo::tiny(), |_| Some(Reply::status(404)), |_| None);
    let error = world.error();
    assert!(error.contains("no folder of that name") && error.contains("smollm2-135m-instruct"), "{error}");
    for status in [401, 403] {
        let world = World::with(Repo::tiny(), move |_| Some(Reply::status(status)), |_| None);
        let error = world.error();
        assert!(error.contains("accept the model's terms") && error.contains("HF_TOKEN"), "{error}");
        let given = HubSettings { hugging_face: with_token(&world), ..world.settings() };
        let error = resolve("o/m", &given, Want::Everything, &Silent).unwrap_err().to_string();
        assert!(error.contains("the token in use") && !error.contains("sesame"), "{error}");
    }
}

fn with_token(world: &World) -> ferrotune_checkpoint::hub::Site {
    let file = world.home.path().join("token");
    std::fs::write(&file, "sesame\n").unwrap();
    ferrotune_checkpoint::hub::Site { token: Token::File(file), ..world.settings().hugging_face }
}

#[test]
fn the_token_goes_to_the_hub_and_to_nobody_else() {
    let world = World::new(Repo::tiny());
    let mut settings = HubSettings { hugging_face: with_token(&world), ..world.settings() };
    resolve("o/m", &settings, Want::Everything, &Silent).unwrap();
    let bearer = |r: &Request| r.headers.get("authorization").map(String::as_str) == Some("Bearer sesame");
    assert!(world.hub.requests().iter().all(bearer));
    assert!(!world.cdn.requests().is_empty());
    assert!(world.cdn.requests().iter().all(|r| !r.headers.contains_key("authorization")));
    settings.hugging_face.token = Token::Given(Secret::new("a\r\nx-evil: 1"));
    settings.revision = Some("other".into());
    assert!(resolve("o/m", &settings, Want::Everything, &Silent).is_err(), "a token cannot smuggle a header");
    assert!(world.hub.requests().iter().all(|r| !r.headers.contains_key("x-evil")));
}

#[test]
fn redirects_end() {
    let world = World::with(Repo::tiny(), |r| Some(Reply::redirect(r.path.clone())), |_| None);
    assert!(world.error().contains("redirects"));
    assert_eq!(world.hub.requests().len(), 11);
}

#[test]
fn a_renamed_repository_is_followed_on_the_same_host() {
    let moved = |r: &Request| r.path.strip_prefix("/o/m/").map(|rest| Reply::redirect(format!("/new/{rest}")));
    let repo = Repo::tiny();
    let there = repo.clone();
    let world = World::with(
        repo,
        move |r| {
            let back = |rest: &str| Request { path: format!("/o/m/{rest}"), ..r.clone() };
            let here = r.path.strip_prefix("/new/").map(back);
            moved(r)
                .or_else(|| here.filter(|r| !r.path.ends_with(".safetensors")).map(|r| there.hub(&r, "")))
                .or_else(|| r.path.ends_with(".safetensors").then(|| large(&there, r)))
        },
        |_| None,
    );
    world.resolve().unwrap();
}

fn large(repo: &Repo, request: &Request) -> Reply {
    let content = &repo.files["model.safetensors"];
    part(content, request).with("x-repo-commit", COMMIT).with("etag", format!("\"{}\"", sha256(content)))
}

#[test]
fn answers_that_no_hub_gives() {
    let is_listing = |r: &Request| r.path.starts_with("/api");
    let listings = [
        ("<html>log in</html>", "not JSON"),
        (r#"{"siblings": []}"#, "no commit"),
        (r#"{"sha": "../../x", "siblings": []}"#, "no commit"),
        (r#"{"sha": "0123456789abcdef0123456789abcdef01234567"}"#, "no files"),
        (r#"{"sha": "0123456789abcdef0123456789abcdef01234567", "siblings": [{"size": 1}]}"#, "without a name"),
        (
            r#"{"sha": "0123456789abcdef0123456789abcdef01234567", "siblings": [{"rfilename": "../../x.jinja"}]}"#,
            "outside of the repository",
        ),
    ];
    for (listing, wanted) in listings {
        let world = World::with(Repo::tiny(), move |r| is_listing(r).then(|| Reply::ok(listing)), |_| None);
        let error = world.error();
        assert!(error.contains(wanted), "{listing}: {error}");
        assert!(!world.home.path().join("hf").exists() || names(&world.home.path().join("hf")).is_empty());
    }
    for raw in [
        "",
        "garbage\r\n\r\n",
        "HTTP/1.1 200 OK\r\nno colon here\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: -4\r\n\r\n",
    ] {
        let reply = Reply { raw: Some(raw.into()), ..Reply::default() };
        let world = World::with(Repo::tiny(), move |r| is_listing(r).then(|| reply.clone()), |_| None);
        world.error();
    }
}

#[test]
fn headers_that_no_hub_sends() {
    let bad: [(&str, &str, &str); 5] = [
        ("x-linked-etag", "\"../../../../tmp/evil\"", "entity tag"),
        ("x-linked-etag", "\"0000\"", "it has the digest"),
        ("x-linked-size", "many", "no size"),
        ("x-linked-size", "-1", "no size"),
        ("x-repo-commit", "fedcba9876543210fedcba9876543210fedcba98", "it is of commit"),
    ];
    for (name, value, wanted) in bad {
        let repo = Repo::tiny();
        let there = repo.clone();
        let world = World::with(
            repo,
            move |r| {
                let mut reply = there.hub(r, "http://127.0.0.1:9");
                let header = reply.headers.iter_mut().find(|(n, _)| *n == name)?;
                header.1 = value.to_owned();
                Some(reply)
            },
            |_| None,
        );
        let error = world.error();
        assert!(error.contains(wanted), "{name}: {value}: {error}");
    }
}

#[test]
fn what_an_older_python_library_left_is_taken_when_nobody_answers() {
    let world = World::new(Repo::tiny());
    let folder = world.resolve().unwrap();
    std::fs::remove_dir_all(world.root().join("trees")).unwrap();
    let dead = settings(world.home.path(), NOBODY);
    assert_eq!(resolve("o/m", &dead, Want::Everything, &Silent).unwrap().path, folder);
    let before = world.hub.requests().len();
    world.resolve().unwrap();
    assert_eq!(world.hub.requests().len(), before + 1, "one question, no download");
    std::fs::remove_file(folder.join("tokenizer.json")).unwrap();
    let offline = HubSettings { offline: true, ..dead };
    let error = resolve("o/m", &offline, Want::Everything, &Silent).unwrap_err().to_string();
    assert!(error.contains("offline was asked for"), "{error}");
    let blobs = world.hub.lines("GET /o/m").len();
    world.resolve().unwrap();
    assert_eq!(world.hub.lines("GET /o/m").len(), blobs, "the content is there; only its link was missing");
}

#[test]
fn shards_are_fetched_by_their_index() {
    let mut repo = Repo::tiny();
    repo.files.remove("model.safetensors");
    let index = br#"{"weight_map": {"a": "w-1.safetensors", "b": "w-2.safetensors", "c": "w-1.safetensors"}}"#;
    repo.files.insert("model.safetensors.index.json", index.to_vec());
    for name in ["w-1.safetensors", "w-2.safetensors", "consolidated.safetensors"] {
        repo.files.insert(name, name.as_bytes().to_vec());
    }
    let world = World::new(repo);
    let folder = world.resolve().unwrap();
    let wanted =
        ["config.json", "model.safetensors.index.json", "tokenizer.json", "w-1.safetensors", "w-2.safetensors"];
    assert_eq!(names(&folder), wanted);
    std::fs::remove_file(folder.join("w-2.safetensors")).unwrap();
    let offline = HubSettings { offline: true, ..world.settings() };
    assert!(resolve("o/m", &offline, Want::Everything, &Silent).is_err(), "a shard is missing");
}

#[test]
fn one_file_of_a_repository_of_gguf_files() {
    let mut repo = Repo::tiny();
    repo.files = [("a.gguf", b"a".to_vec()), ("b.gguf", b"b".to_vec())].into();
    let world = World::new(repo);
    let found = resolve("o/m/b.gguf", &world.settings(), Want::TokenizerOnly, &Silent).unwrap();
    assert_eq!((found.kind, std::fs::read(found.path).unwrap()), (Kind::Gguf, b"b".to_vec()));
    let error = resolve("o/m", &world.settings(), Want::Everything, &Silent).unwrap_err().to_string();
    assert!(error.contains("o/m/a.gguf"), "{error}");
}

#[test]
fn two_runs_at_once_fetch_once() {
    let slow = |_: &Request| -> Option<Reply> {
        std::thread::sleep(Duration::from_millis(50));
        None
    };
    let world = World::with(Repo::tiny(), |_| None, slow);
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..4).map(|_| scope.spawn(|| world.resolve().unwrap())).collect();
        runs.into_iter().for_each(|run| drop(run.join().unwrap()));
    });
    assert_eq!(world.cdn.requests().len(), 1);
}

#[test]
fn a_revision_cannot_leave_the_cache() {
    let world = World::new(Repo::tiny());
    for revision in ["../../x", "/etc", "", "a//b"] {
        let settings = HubSettings { revision: Some(revision.into()), ..world.settings() };
        let error = resolve("o/m", &settings, Want::Everything, &Silent).unwrap_err();
        assert!(matches!(error, HubError::BadRevision { .. }), "{error}");
    }
    let settings = HubSettings { revision: Some("refs/pr/1".into()), ..world.settings() };
    resolve("o/m", &settings, Want::Everything, &Silent).unwrap();
    assert!(world.root().join("refs/refs/pr/1").is_file());
    assert_eq!(world.hub.lines("/api/")[0], "GET /api/models/o/m/revision/refs%2Fpr%2F1?blobs=true");
    assert!(world.hub.requests().iter().all(|r| r.headers["user-agent"].starts_with("ferrotune/")));
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let world = World::new(Repo::tiny());
    std::fs::write(world.home.path().join("hf"), "a file where the cache should be").unwrap();
    let error = world.resolve().unwrap_err();
    assert!(matches!(error, HubError::Io { .. }) && error.to_string().contains("hf"), "{error}");
}
