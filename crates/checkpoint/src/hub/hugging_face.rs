//! The Hugging Face hub and the cache that all its clients share.
//!
//! The layout is that of `huggingface_hub`, so that a model fetched by Python is not fetched again, and the other way
//! round:
//!
//! ```text
//! <cache>/models--<organisation>--<name>/
//!     refs/<revision>                the commit that a branch or tag meant when it was last asked for
//!     blobs/<entity tag>             contents: sha256 of a large file, git object of a small one
//!     snapshots/<commit>/<file>      relative links to the blobs
//!     trees/<commit>.json            what the repository holds at that commit
//! <cache>/.locks/models--<organisation>--<name>/<entity tag>.lock
//! ```
//!
//! One departure: `huggingface_hub` asks the hub on each run what `main` means and takes the cache when nobody answers.
//! Here a snapshot known to be whole is taken without asking. A run that is resumed or repeated must not get other
//! weights because somebody pushed in between; it also starts at once, and behind a dead network too. To follow a
//! branch, delete `refs/<branch>`, or name the new commit.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use super::address::encode;
use super::dataset::{Choose, Held};
use super::error::HubError;
use super::files::{self, Lock};
use super::http::{Client, Fetch};
use super::listing::{Entry, Listing, Pick, looks_complete, place};
use super::partial::Partial;
use super::settings::HubSettings;
use super::{Origin, Progress, Resolved, dataset, source};

const COMMIT: &str = "x-repo-commit";
const DEFAULT_REVISION: &str = "main";
/// Connections at a time. The hub's storage serves one connection slower than most lines are.
const WORKERS: usize = 4;

/// One repository, at one revision.
pub(super) struct Repository<'a> {
    settings: &'a HubSettings,
    id: &'a str,
    revision: &'a str,
    pick: Pick<'a>,
    holds: Holds,
    /// `<cache>/models--organisation--name`.
    root: PathBuf,
}

/// What a repository holds: hubs and their caches keep models and data sets apart.
#[derive(Clone, Copy, Debug)]
pub(super) enum Holds {
    Models,
    Datasets,
}

impl Holds {
    /// In the interface, and in the cache.
    pub(super) fn name(self) -> &'static str {
        match self {
            Holds::Models => "models",
            Holds::Datasets => "datasets",
        }
    }

    /// Before the id in the address of a file.
    fn prefix(self) -> &'static str {
        match self {
            Holds::Models => "",
            Holds::Datasets => "datasets/",
        }
    }
}

/// A file to fetch, as the hub describes it.
struct Remote {
    url: String,
    etag: String,
    size: u64,
}

impl<'a> Repository<'a> {
    /// The repository `id` at the revision of the settings.
    ///
    /// # Errors
    /// A revision that would name a file outside of `refs`.
    pub(super) fn new(settings: &'a HubSettings, id: &'a str, pick: Pick<'a>) -> Result<Repository<'a>, HubError> {
        Repository::of(settings, id, pick, Holds::Models)
    }

    /// The same for a data set.
    ///
    /// # Errors
    /// As [`Repository::new`]; an id that is none.
    pub(super) fn dataset(settings: &'a HubSettings, id: &'a str, pick: Pick<'a>) -> Result<Repository<'a>, HubError> {
        if !source::is_id(id) {
            let (id, endpoint) = (id.to_owned(), settings.hugging_face.endpoint.clone());
            return Err(HubError::NoDataset { id, endpoint, token_variable: "HF_TOKEN" });
        }
        Repository::of(settings, id, pick, Holds::Datasets)
    }

    fn of(settings: &'a HubSettings, id: &'a str, pick: Pick<'a>, holds: Holds) -> Result<Repository<'a>, HubError> {
        let revision = settings.revision.as_deref().unwrap_or(DEFAULT_REVISION);
        if files::inside(revision).is_none() {
            return Err(HubError::BadRevision { revision: revision.to_owned() });
        }
        let root = settings.hugging_face.cache.join(folder_name(holds, id));
        Ok(Repository { settings, id, revision, pick, holds, root })
    }

    /// Its hub id.
    pub(super) fn id(&self) -> &str {
        self.id
    }

    /// Branch, tag or commit.
    pub(super) fn revision(&self) -> &str {
        self.revision
    }

    /// The model, if the cache is known to hold all of it. Sends no request.
    pub(super) fn cached(&self) -> Option<Resolved> {
        let commit = self.known_commit()?;
        let listing = Listing::read(&self.tree(&commit))?;
        let folder = self.snapshot(&commit);
        listing.is_complete(self.id, self.pick, &folder).then(|| self.resolved(Some(&listing), &commit))
    }

    /// The model, if the cache seems to hold all of it: for when the hub cannot be asked.
    pub(super) fn cached_as_it_seems(&self) -> Option<Resolved> {
        let commit = self.known_commit()?;
        looks_complete(self.pick, &self.snapshot(&commit)).then(|| self.resolved(None, &commit))
    }

    /// The files that `choose` takes of all names, given the README's text; from the cache if it is known to hold them.
    pub(super) fn files(&self, progress: &dyn Progress, choose: Choose<'_>) -> Result<Vec<PathBuf>, HubError> {
        let fetch = || self.fetch_files(progress, choose);
        let offline = self.settings.offline.then(|| {
            let cache = self.settings.hugging_face.cache.clone();
            HubError::Offline { id: self.id.to_owned(), revision: self.revision.to_owned(), cache }
        });
        match (self.known_commit(), offline) {
            (Some(commit), offline) => {
                let held = Held { folder: self.snapshot(&commit), listing: Listing::read(&self.tree(&commit)) };
                held.or_else(choose, offline, fetch)
            }
            (None, Some(error)) => Err(error),
            (None, None) => fetch(),
        }
    }

    fn fetch_files(&self, progress: &dyn Progress, choose: Choose<'_>) -> Result<Vec<PathBuf>, HubError> {
        let site = &self.settings.hugging_face;
        let client = Client::new(&site.endpoint, site.token.read(), &self.settings.network)?;
        let (commit, listing) = self.ask(&client).map_err(|error| self.explain(error, &client))?;
        if commit != self.revision {
            files::write_whole(&self.root.join("refs").join(self.revision), commit.as_bytes())?;
        }
        if listing.files.values().all(|entry| !entry.blob_id.is_empty()) {
            listing.write(&self.tree(&commit))?;
        }
        let snapshot = self.snapshot(&commit);
        let names: Vec<&str> = listing.names().collect();
        let run = Run { repository: self, client: &client, commit: &commit, listing: &listing, progress };
        let readme = match dataset::first(&names) {
            None => None,
            Some(name) => {
                run.all(&[name]).map_err(|error| self.explain(error, &client))?;
                std::fs::read_to_string(snapshot.join(name)).ok()
            }
        };
        let chosen = choose(&names, readme.as_deref())?;
        let wanted: Vec<&str> = chosen.iter().map(String::as_str).collect();
        run.all(&wanted).map_err(|error| self.explain(error, &client))?;
        Ok(chosen.iter().map(|name| snapshot.join(name)).collect())
    }

    /// Brings what is missing into the cache.
    pub(super) fn fetch(&self, progress: &dyn Progress) -> Result<Resolved, HubError> {
        let site = &self.settings.hugging_face;
        let client = Client::new(&site.endpoint, site.token.read(), &self.settings.network)?;
        let (commit, listing) = self.ask(&client).map_err(|error| self.explain(error, &client))?;
        if commit != self.revision {
            files::write_whole(&self.root.join("refs").join(self.revision), commit.as_bytes())?;
        }
        // A mirror that tells no sizes gives nothing worth keeping; then each run asks again.
        if listing.files.values().all(|entry| !entry.blob_id.is_empty()) {
            listing.write(&self.tree(&commit))?;
        }
        let run = Run { repository: self, client: &client, commit: &commit, listing: &listing, progress };
        let fetch = run.all(&listing.small(self.pick)).and_then(|()| {
            let weights = listing.weights(self.id, self.pick, &self.snapshot(&commit))?;
            run.all(&weights)
        });
        fetch.map_err(|error| self.explain(error, &client))?;
        Ok(self.resolved(Some(&listing), &commit))
    }

    /// The commit that the revision means, and its files.
    fn ask(&self, client: &Client) -> Result<(String, Listing), HubError> {
        let endpoint = &self.settings.hugging_face.endpoint;
        let url = format!(
            "{endpoint}/api/{}/{}/revision/{}?blobs=true",
            self.holds.name(),
            self.id,
            encode(self.revision, false)
        );
        let answer = client.json(&url)?;
        let commit = answer.get("sha").and_then(Value::as_str).filter(|sha| is_commit(sha));
        let commit = commit.ok_or_else(|| HubError::bad_reply(&url, "no commit in `sha`"))?.to_owned();
        let siblings = answer.get("siblings").and_then(Value::as_array);
        let siblings = siblings.ok_or_else(|| HubError::bad_reply(&url, "no files in `siblings`"))?;
        let entries: Option<BTreeMap<_, _>> = siblings.iter().map(entry).collect();
        let entries = entries.ok_or_else(|| HubError::bad_reply(&url, "a file without a name in `siblings`"))?;
        Ok((commit, Listing::new(&url, entries)?))
    }

    /// Turns a bare HTTP status into what it means here.
    fn explain(&self, error: HubError, client: &Client) -> HubError {
        let (id, endpoint) = (self.id.to_owned(), self.settings.hugging_face.endpoint.clone());
        match error {
            // Without a token the hub says 401 for what it hides and for what doesn't exist alike.
            HubError::Status { status: 404, .. } if matches!(self.holds, Holds::Datasets) => {
                HubError::NoDataset { id, endpoint, token_variable: "HF_TOKEN" }
            }
            HubError::Status { status: 404, .. } => {
                HubError::not_found(id, endpoint, self.revision.to_owned(), "HF_TOKEN")
            }
            HubError::Status { status: status @ (401 | 403), .. } => {
                HubError::Refused { id, endpoint, status, had_token: client.has_token(), token_variable: "HF_TOKEN" }
            }
            other => other,
        }
    }

    fn known_commit(&self) -> Option<String> {
        if is_commit(self.revision) {
            return Some(self.revision.to_owned());
        }
        let text = std::fs::read_to_string(self.root.join("refs").join(self.revision)).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    fn tree(&self, commit: &str) -> PathBuf {
        self.root.join("trees").join(format!("{commit}.json"))
    }

    fn resolved(&self, listing: Option<&Listing>, commit: &str) -> Resolved {
        let path = place(listing, self.id, self.pick, &self.snapshot(commit));
        Resolved::new(path, Origin::HuggingFace { id: self.id.to_owned(), commit: commit.to_owned() })
    }
}

/// A download of several files of one commit.
struct Run<'a> {
    repository: &'a Repository<'a>,
    client: &'a Client,
    commit: &'a str,
    listing: &'a Listing,
    progress: &'a dyn Progress,
}

impl Run<'_> {
    /// Fetches `names`, a few at a time; the first failure stops the rest.
    fn all(&self, names: &[&str]) -> Result<(), HubError> {
        let snapshot = self.repository.snapshot(self.commit);
        let missing: Vec<&str> = names.iter().copied().filter(|name| !snapshot.join(name).is_file()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let total = missing.iter().map(|name| self.listing.files.get(*name).map_or(0, |entry| entry.size)).sum();
        self.progress.begin(self.repository.id, (total > 0).then_some(total));
        let next = AtomicUsize::new(0);
        let work = || {
            while let Some(name) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(error) = self.one(name) {
                    next.store(missing.len(), Ordering::Relaxed);
                    return Err(error);
                }
            }
            Ok(())
        };
        let results: Vec<Result<(), HubError>> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..WORKERS.min(missing.len())).map(|_| scope.spawn(work)).collect();
            workers.into_iter().map(|w| w.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
        });
        self.progress.end();
        results.into_iter().collect()
    }

    fn one(&self, name: &str) -> Result<(), HubError> {
        let root = &self.repository.root;
        let pointer = self.repository.snapshot(self.commit).join(name);
        let remote = self.describe(name)?;
        let blob = root.join("blobs").join(&remote.etag);
        let folder = root.file_name().unwrap_or_default();
        let locks = self.repository.settings.hugging_face.cache.join(".locks").join(folder);
        let lock = Lock::wait(&locks.join(format!("{}.lock", remote.etag)), self.progress)?;
        if blob.is_file() {
            self.progress.advance(remote.size);
        } else {
            files::make_parent(&blob)?;
            let mut partial = Partial::open(&lock.partial(&blob))?;
            let digest = Some(remote.etag.as_str()).filter(|etag| is_sha256(etag));
            let fetch = Fetch { url: &remote.url, size: remote.size, sha256: digest };
            self.client.download(&fetch, &mut partial, self.progress)?;
            partial.publish(&blob)?;
        }
        files::link(&blob, &pointer)
    }

    /// Address, entity tag and size of a file. What the listing knows already and the cache holds needs no request.
    fn describe(&self, name: &str) -> Result<Remote, HubError> {
        let Repository { id, settings, root, holds, .. } = self.repository;
        let (endpoint, prefix) = (&settings.hugging_face.endpoint, holds.prefix());
        let url = format!("{endpoint}/{prefix}{id}/resolve/{}/{}", self.commit, encode(name, true));
        let listed = self.listing.files.get(name).filter(|entry| !entry.blob_id.is_empty());
        if let Some(entry) = listed {
            let etag = entry.lfs_sha256.as_ref().unwrap_or(&entry.blob_id);
            if root.join("blobs").join(etag).is_file() {
                return Ok(Remote { url, etag: etag.clone(), size: entry.size });
            }
        }
        let reply = self.client.head(&url, COMMIT)?;
        if let Some(commit) = reply.header(COMMIT)?.filter(|commit| *commit != self.commit) {
            return Err(HubError::bad_reply(
                &url,
                format!("it is of commit `{commit}`, asked for was {}", self.commit),
            ));
        }
        let etag = match reply.header("x-linked-etag")? {
            Some(linked) => linked,
            None => reply.header("etag")?.ok_or_else(|| HubError::bad_reply(&url, "no entity tag"))?,
        };
        let etag = entity_tag(etag).ok_or_else(|| HubError::bad_reply(&url, format!("entity tag `{etag}`")))?;
        if let Some(sha256) = listed.and_then(|entry| entry.lfs_sha256.as_ref()).filter(|sha256| **sha256 != etag) {
            return Err(HubError::bad_reply(&url, format!("it has the digest {etag}, listed was {sha256}")));
        }
        let size = match (reply.header("x-linked-size")?, listed) {
            (Some(size), _) => size.trim().parse().ok(),
            (None, Some(entry)) => Some(entry.size),
            (None, None) => reply.header("content-length")?.and_then(|size| size.trim().parse().ok()),
        };
        let size = size.ok_or_else(|| HubError::bad_reply(&url, "no size, or none that is a number"))?;
        Ok(Remote { url, etag, size })
    }
}

/// The folder of a repository in the cache.
fn folder_name(holds: Holds, id: &str) -> String {
    format!("{}--{}", holds.name(), id.replace('/', "--"))
}

fn entry(sibling: &Value) -> Option<(String, Entry)> {
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let name = text(sibling, "rfilename")?;
    let size = sibling.get("size").and_then(Value::as_u64);
    let digest = sibling.get("lfs").and_then(|lfs| text(lfs, "sha256")).filter(|digest| is_sha256(digest));
    let known = size.zip(text(sibling, "blobId").and_then(|blob| entity_tag(&blob)));
    let entry = match (known, digest) {
        (Some((size, blob_id)), Some(digest)) => Entry { blob_id, ..Entry::hashed(size, digest) },
        (Some((size, blob_id)), None) => Entry { size, blob_id, ..Entry::default() },
        (None, _) => Entry::default(),
    };
    Some((name, entry))
}

/// The tag without its quotes; `None` if it could not name a file in `blobs`.
fn entity_tag(raw: &str) -> Option<String> {
    let tag = raw.trim().trim_start_matches("W/").trim_matches('"');
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (!tag.is_empty() && tag.len() <= 128 && !tag.starts_with('.') && tag.bytes().all(plain)).then(|| tag.to_owned())
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_names_a_file_or_is_refused() {
        assert_eq!(entity_tag("W/\"abc-1\""), Some("abc-1".to_owned()));
        assert_eq!(entity_tag("\"d41d8cd9\""), Some("d41d8cd9".to_owned()));
        for bad in ["", "\"\"", "../x", "..", "a/b", "a\\b", "a b", ".hidden"] {
            assert_eq!(entity_tag(bad), None, "{bad:?}");
        }
        assert_eq!(entity_tag(&"a".repeat(129)), None);
    }
}
