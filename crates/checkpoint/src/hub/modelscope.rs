//! ModelScope and its cache.
//!
//! Its client keeps plain files, not links: `<cache>/models/<organisation>--<name>/snapshots/<revision>/<file>` since
//! version 1.38; older ones used `<cache>[/hub]/models/<organisation>/<name with ___ for a dot>`, which is taken and
//! completed where it exists, as that client does. All files have digests, so all are checked when they arrive. What a
//! revision held is noted in `trees/<revision>.json` beside the snapshots, in the form of the other hub, so that a
//! second run needs no request (the reasons are in [`hugging_face`](super::hugging_face)).
//!
//! A run reads files of a model's top folder only, so only that is listed; the server cuts a full listing off at 3,000. Data
//! sets lie beside the models (`<cache>/datasets/..`) and are listed page by page, with all their folders; of some of their
//! files the server says no digest.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::address::encode;
use super::dataset::{self, Choose, Held};
use super::error::HubError;
use super::files::{self, Lock};
use super::http::{Client, Fetch};
use super::hugging_face::Holds;
use super::listing::{Entry, Listing, Pick, looks_complete, place};
use super::partial::{Partial, sha256_of};
use super::settings::HubSettings;
use super::{Origin, Progress, Resolved, source};

/// Hugging Face's `main` is called so here; a recipe may use either.
const DEFAULT_REVISION: &str = "master";
/// Variable of its token.
const TOKEN: &str = "MODELSCOPE_API_TOKEN";
/// Files of a page of a listing, and most pages that are read.
const PAGE: usize = 200;
const MOST_PAGES: usize = 500;

/// One repository, at one revision.
pub(super) struct Repository<'a> {
    settings: &'a HubSettings,
    id: &'a str,
    revision: &'a str,
    pick: Pick<'a>,
    holds: Holds,
    /// Where its files lie.
    folder: PathBuf,
    /// Where its listing lies.
    tree: PathBuf,
}

impl<'a> Repository<'a> {
    /// The repository `id` at the revision of the settings.
    ///
    /// # Errors
    /// A revision that would name a folder outside of the snapshots.
    pub(super) fn new(settings: &'a HubSettings, id: &'a str, pick: Pick<'a>) -> Result<Repository<'a>, HubError> {
        Repository::of(settings, id, pick, Holds::Models)
    }

    /// The same for a data set.
    ///
    /// # Errors
    /// As [`Repository::new`]; an id that is none.
    pub(super) fn dataset(settings: &'a HubSettings, id: &'a str, pick: Pick<'a>) -> Result<Repository<'a>, HubError> {
        if !source::is_id(id) || !id.contains('/') {
            let (id, endpoint) = (id.to_owned(), settings.modelscope.endpoint.clone());
            return Err(HubError::NoDataset { id, endpoint, token_variable: TOKEN });
        }
        Repository::of(settings, id, pick, Holds::Datasets)
    }

    fn of(settings: &'a HubSettings, id: &'a str, pick: Pick<'a>, holds: Holds) -> Result<Repository<'a>, HubError> {
        let revision = match settings.revision.as_deref() {
            None | Some("main") => DEFAULT_REVISION,
            Some(revision) => revision,
        };
        let below = files::inside(revision).ok_or_else(|| HubError::BadRevision { revision: revision.to_owned() })?;
        let cache = &settings.modelscope.cache;
        let root = cache.join(holds.name()).join(id.replace('/', "--"));
        let folder = older_folder(cache, holds, id).unwrap_or_else(|| root.join("snapshots").join(below));
        let tree = root.join("trees").join(format!("{}.json", revision.replace('/', "--")));
        Ok(Repository { settings, id, revision, pick, holds, folder, tree })
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
        let listing = Listing::read(&self.tree)?;
        listing.is_complete(self.id, self.pick, &self.folder).then(|| self.resolved(Some(&listing)))
    }

    /// The model, if the cache seems to hold all of it: for when the hub cannot be asked.
    pub(super) fn cached_as_it_seems(&self) -> Option<Resolved> {
        looks_complete(self.pick, &self.folder).then(|| self.resolved(None))
    }

    fn client(&self) -> Result<Client, HubError> {
        let site = &self.settings.modelscope;
        let client = Client::new(&site.endpoint, site.token.read(), &self.settings.network)?;
        Ok(client.with_session_cookie("m_session_id"))
    }

    /// The files that `choose` takes of all names, given the README's text; from the cache if it is known to hold them.
    pub(super) fn files(&self, progress: &dyn Progress, choose: Choose<'_>) -> Result<Vec<PathBuf>, HubError> {
        let offline = self.settings.offline.then(|| {
            let cache = self.settings.modelscope.cache.clone();
            HubError::Offline { id: self.id.to_owned(), revision: self.revision.to_owned(), cache }
        });
        self.held(Listing::read(&self.tree)).or_else(choose, offline, || {
            let client = self.client()?;
            self.fetch_files(&client, progress, choose).map_err(|error| self.explain(error, &client))
        })
    }

    fn held(&self, listing: Option<Listing>) -> Held {
        Held { folder: self.folder.clone(), listing }
    }

    fn fetch_files(
        &self,
        client: &Client,
        progress: &dyn Progress,
        choose: Choose<'_>,
    ) -> Result<Vec<PathBuf>, HubError> {
        let listing = self.ask(client)?;
        let names: Vec<&str> = listing.names().collect();
        if let Some(readme) = dataset::first(&names) {
            self.all(client, &listing, &[readme], progress)?;
        }
        let found = self.held(None).chosen(&names, choose)?;
        let inside = |file: &PathBuf| file.strip_prefix(&self.folder).ok().and_then(Path::to_str).map(str::to_owned);
        let wanted: Vec<String> = found.iter().filter_map(inside).collect();
        self.all(client, &listing, &wanted.iter().map(String::as_str).collect::<Vec<_>>(), progress)?;
        listing.write(&self.tree)?;
        Ok(found)
    }

    /// Brings what is missing into the cache.
    pub(super) fn fetch(&self, progress: &dyn Progress) -> Result<Resolved, HubError> {
        let client = self.client()?;
        let listing = self.ask(&client).map_err(|error| self.explain(error, &client))?;
        let fetch = self.all(&client, &listing, &listing.small(self.pick), progress).and_then(|()| {
            let weights = listing.weights(self.id, self.pick, &self.folder)?;
            self.all(&client, &listing, &weights, progress)
        });
        fetch.map_err(|error| self.explain(error, &client))?;
        listing.write(&self.tree)?;
        Ok(self.resolved(Some(&listing)))
    }

    fn address(&self, rest: &str) -> String {
        format!("{}/api/v1/{}/{}/repo{rest}", self.settings.modelscope.endpoint, self.holds.name(), self.id)
    }

    fn ask(&self, client: &Client) -> Result<Listing, HubError> {
        let revision = encode(self.revision, false);
        if matches!(self.holds, Holds::Models) {
            let url = self.address(&format!("/files?Revision={revision}&Recursive=False"));
            return Listing::new(&url, page(client, &url, hashed)?.1);
        }
        let mut files = BTreeMap::new();
        for number in 1..=MOST_PAGES {
            let place = format!("/tree?Revision={revision}&Recursive=True&PageNumber={number}&PageSize={PAGE}");
            let url = self.address(&place);
            let (entries, found) = page(client, &url, sized)?;
            files.extend(found);
            if entries < PAGE {
                return Listing::new(&url, files);
            }
        }
        let most = MOST_PAGES * PAGE;
        Err(HubError::bad_reply(&self.address("/tree"), format!("it lists more than {most} files")))
    }

    fn all(&self, client: &Client, listing: &Listing, names: &[&str], progress: &dyn Progress) -> Result<(), HubError> {
        let mut missing = Vec::new();
        for (name, entry) in names.iter().filter_map(|name| listing.files.get_key_value(*name)) {
            let path = self.folder.join(name);
            if !is_sound(&path, entry)? {
                missing.push((name.as_str(), entry));
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        progress.begin(self.id, Some(missing.iter().map(|(_, entry)| entry.size).sum()));
        let result = missing.iter().try_for_each(|(name, entry)| self.one(client, name, entry, progress));
        progress.end();
        result
    }

    fn one(&self, client: &Client, name: &str, entry: &Entry, progress: &dyn Progress) -> Result<(), HubError> {
        let path = self.folder.join(name);
        let lock_name = format!("{}--{}.lock", self.id.replace('/', "--"), name.replace('/', "--"));
        let lock = Lock::wait(&self.settings.modelscope.cache.join(".lock").join(lock_name), progress)?;
        files::make_parent(&path)?;
        let url = self.address(&format!("?Revision={}&FilePath={}", encode(self.revision, false), encode(name, false)));
        let mut partial = Partial::open(&lock.partial(&path))?;
        let fetch = Fetch { url: &url, size: entry.size, sha256: entry.lfs_sha256.as_deref() };
        client.download(&fetch, &mut partial, progress)?;
        partial.publish(&path)
    }

    fn explain(&self, error: HubError, client: &Client) -> HubError {
        let (id, endpoint) = (self.id.to_owned(), self.settings.modelscope.endpoint.clone());
        match error {
            HubError::Status { status: 404, .. } if matches!(self.holds, Holds::Datasets) => {
                HubError::NoDataset { id, endpoint, token_variable: TOKEN }
            }
            HubError::Status { status: 404, .. } => HubError::not_found(id, endpoint, self.revision.to_owned(), TOKEN),
            HubError::Status { status: status @ (401 | 403), .. } => {
                HubError::Refused { id, endpoint, status, had_token: client.has_token(), token_variable: TOKEN }
            }
            other => other,
        }
    }

    fn resolved(&self, listing: Option<&Listing>) -> Resolved {
        let path = place(listing, self.id, self.pick, &self.folder);
        Resolved::new(path, Origin::ModelScope { id: self.id.to_owned(), revision: self.revision.to_owned() })
    }
}

/// The folder of a client before 1.38, if it holds anything.
fn older_folder(cache: &Path, holds: Holds, id: &str) -> Option<PathBuf> {
    let (organisation, name) = id.split_once('/')?;
    let name = name.replace('.', "___");
    let places = [cache.join(holds.name()), cache.join("hub").join(holds.name())];
    let mut folders = places.iter().map(|place| place.join(organisation).join(&name));
    folders.find(|folder| std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()))
}

/// The number of entries in a listing, folders among them, and its files.
fn page(
    client: &Client,
    url: &str,
    entry: fn(&Value) -> Option<Entry>,
) -> Result<(usize, BTreeMap<String, Entry>), HubError> {
    let answer = client.json(url)?;
    if answer.get("Success").and_then(Value::as_bool) == Some(false) {
        let message = answer.get("Message").and_then(Value::as_str).unwrap_or("no reason given");
        return Err(HubError::bad_reply(url, format!("the hub says: {message}")));
    }
    let files = answer.get("Data").and_then(|data| data.get("Files")).and_then(Value::as_array);
    let files = files.ok_or_else(|| HubError::bad_reply(url, "no files in `Data.Files`"))?;
    let blobs = files.iter().filter(|file| file.get("Type").and_then(Value::as_str) != Some("tree"));
    let named = |file: &Value| {
        let name = file.get("Path").or_else(|| file.get("Name"))?.as_str()?;
        Some((name.to_owned(), entry(file)?))
    };
    let entries: Option<BTreeMap<_, _>> = blobs.map(named).collect();
    let entries = entries.ok_or_else(|| HubError::bad_reply(url, "a file without name, size or sha256"))?;
    Ok((files.len(), entries))
}

/// A file of a model: all have digests.
fn hashed(file: &Value) -> Option<Entry> {
    sized(file).filter(|entry| entry.lfs_sha256.is_some())
}

/// A file of a data set: some have none.
fn sized(file: &Value) -> Option<Entry> {
    let size = file.get("Size")?.as_u64()?;
    let digest = file.get("Sha256").and_then(Value::as_str).filter(|digest| digest.len() == 64);
    Some(match digest {
        Some(digest) => Entry::hashed(size, digest.to_ascii_lowercase()),
        None => Entry { size, ..Entry::default() },
    })
}

/// Whether a file is there as the hub has it.
fn is_sound(path: &Path, entry: &Entry) -> Result<bool, HubError> {
    let Some(found) = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file) else { return Ok(false) };
    match &entry.lfs_sha256 {
        Some(digest) => Ok(sha256_of(path)? == *digest),
        None => Ok(found.len() == entry.size),
    }
}
