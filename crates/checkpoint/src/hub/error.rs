//! What can go wrong between a model's name and its files, each with what to do about it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::catalogue;

/// A source that was tried in vain.
#[derive(Debug)]
pub struct Attempt {
    /// What was tried, in words a user knows.
    pub source: String,
    /// Why it gave nothing.
    pub reason: Box<HubError>,
}

/// Errors of [`resolve`](super::resolve).
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The name can only be a path, and nothing lies there.
    #[error(
        "`{given}`: no such file or folder (looked at {looked}), and it cannot be a hub id, which reads `name` or \
         `organisation/name`; give a folder, a .gguf file, a hub id, or one of: {catalogue}"
    )]
    NoSuchPath {
        /// As the recipe has it.
        given: String,
        /// The path it was taken for.
        looked: PathBuf,
        /// The short names of the catalogue.
        catalogue: String,
    },
    /// The path is a file of another kind.
    #[error("{path}: a model is a folder or a .gguf file; for a .safetensors file give the folder it lies in")]
    NotAModel {
        /// The file.
        path: PathBuf,
    },
    /// A revision that no branch, tag or commit can be called.
    #[error("revision `{revision}`: a branch, a tag or a commit has no empty part, no `..` and no leading `/`")]
    BadRevision {
        /// As given.
        revision: String,
    },
    /// The hub or the store knows no such data, or hides it.
    #[error("{endpoint} has no data set `{id}` (a private one looks the same without a token: set {token_variable})")]
    NoDataset {
        /// Id or address.
        id: String,
        /// Which hub or store.
        endpoint: String,
        /// Variable that holds its token.
        token_variable: &'static str,
    },
    /// The hub knows no such repository or revision, or hides it.
    #[error(
        "`{id}`: no folder of that name here, and {endpoint} has no such repository, revision `{revision}` (a private \
         one looks the same without a token: set {token_variable}); short names are: {catalogue}"
    )]
    NotFound {
        /// Hub id.
        id: String,
        /// Which hub.
        endpoint: String,
        /// Branch, tag or commit.
        revision: String,
        /// Variable that holds this hub's token.
        token_variable: &'static str,
        /// The short names of the catalogue.
        catalogue: String,
    },
    /// The hub refuses the files to this user.
    #[error("`{id}`: {endpoint} refuses access (HTTP {status}); {}", access_cure(endpoint, id, *had_token, token_variable))]
    Refused {
        /// Hub id.
        id: String,
        /// Which hub.
        endpoint: String,
        /// 401 or 403.
        status: u16,
        /// Whether a token was sent.
        had_token: bool,
        /// Variable that holds this hub's token.
        token_variable: &'static str,
    },
    /// The repository holds nothing that can be trained.
    #[error("`{id}` holds no {wanted} (it has {found}); {cure}")]
    NothingToLoad {
        /// Hub id.
        id: String,
        /// What was looked for.
        wanted: String,
        /// The nearest things there.
        found: String,
        /// What to do.
        cure: String,
    },
    /// Offline was asked for, and the cache doesn't have everything.
    #[error(
        "`{id}`, revision `{revision}`: not complete in {cache}, and offline was asked for; unset HF_HUB_OFFLINE, or \
         copy its folder into the cache from a machine that has it"
    )]
    Offline {
        /// Hub id.
        id: String,
        /// Branch, tag or commit.
        revision: String,
        /// Where it was looked for.
        cache: PathBuf,
    },
    /// No connection came about.
    #[error("{url}: no connection ({reason}); check the network, HTTPS_PROXY, and SSL_CERT_FILE behind a firewall")]
    Unreachable {
        /// What was asked for.
        url: String,
        /// What the network said.
        reason: String,
    },
    /// The connection or the server failed, after all retries.
    #[error("{url}: {reason}, also when tried again; what has arrived is kept, so a later run goes on from there")]
    Interrupted {
        /// What was asked for.
        url: String,
        /// The last failure.
        reason: String,
        /// How long the server asked to wait.
        after: Option<Duration>,
    },
    /// Nobody may upload there, or this user may not.
    #[error("`{id}`: {endpoint} refuses the upload (HTTP {status}{said}); {}", upload_cure(*status))]
    UploadRefused {
        /// Repository.
        id: String,
        /// Which hub.
        endpoint: String,
        /// 401 or 403.
        status: u16,
        /// The hub's own words, behind ": ", or nothing.
        said: String,
    },
    /// The hub doesn't want what it was sent.
    #[error("{url}: HTTP {status}{said}")]
    Rejected {
        /// Where it was sent.
        url: String,
        /// HTTP status code.
        status: u16,
        /// The hub's own words, behind ": ", or nothing.
        said: String,
    },
    /// An upload without a token.
    #[error(
        "export_hub_model_id: an upload needs an access token; make one with write access at {endpoint}/settings/tokens and set HF_TOKEN"
    )]
    NoToken {
        /// Which hub.
        endpoint: String,
    },
    /// A file that changed while it was uploaded.
    #[error("{path} changed while it was uploaded; run again when nothing writes to it")]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// Another HTTP status than success.
    #[error("{url}: HTTP {status}")]
    Status {
        /// What was asked for.
        url: String,
        /// HTTP status code.
        status: u16,
    },
    /// The answer is not what a hub says.
    #[error("{url}: not the answer of a hub: {what}; check the endpoint and the proxy")]
    BadReply {
        /// What was asked for.
        url: String,
        /// What is wrong with the answer.
        what: String,
    },
    /// The bytes are not the ones the source promised.
    #[error("{what}: the content has sha256 {got}, expected {expected}; the bad copy was deleted, run again")]
    Checksum {
        /// File or address.
        what: String,
        /// Promised digest, hexadecimal.
        expected: String,
        /// Digest of what arrived.
        got: String,
    },
    /// A setting that cannot be used.
    #[error("{setting}: {problem}")]
    Setting {
        /// Its name and value.
        setting: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// pip could not be started, or failed.
    #[error("`{command}`: {reason}")]
    Pip {
        /// The command line.
        command: String,
        /// Exit status and last words, or why it did not start.
        reason: String,
    },
    /// The wheel that pip brought is not the one expected.
    #[error("{wheel}: {what}")]
    Wheel {
        /// The file.
        wheel: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The disk failed.
    #[error("cannot {action} {path}: {source}{}", disk_cure(source))]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A name without an organisation that no hub gave: most likely a short name that isn't one.
    #[error("{reason}\n  `{given}` is no short name; these are: {catalogue}")]
    NoShortName {
        /// As the recipe has it.
        given: String,
        /// Why the hub gave nothing for it.
        reason: Box<HubError>,
        /// The short names of the catalogue.
        catalogue: String,
    },
    /// Every source failed.
    #[error("`{given}` could not be had from anywhere:{}\n  by hand: {by_hand}", list(tried))]
    NothingWorked {
        /// As the recipe has it.
        given: String,
        /// Each source and its failure, in the order tried.
        tried: Vec<Attempt>,
        /// How to place the files without any of them.
        by_hand: String,
    },
}

impl HubError {
    /// For `map_err` on what the standard library does with files.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HubError {
        let path = path.to_path_buf();
        move |source| HubError::Io { action, path, source }
    }

    pub(super) fn not_found(id: String, endpoint: String, revision: String, token_variable: &'static str) -> HubError {
        HubError::NotFound { id, endpoint, revision, token_variable, catalogue: catalogue::names() }
    }

    /// Adds the short names, where `given` may have been meant as one and the error doesn't list them.
    pub(super) fn with_short_names(self, given: &str) -> HubError {
        let asked_in_vain =
            self.is_refusal() || matches!(self, HubError::Offline { .. } | HubError::NothingWorked { .. });
        if given.contains('/') || !asked_in_vain {
            return self;
        }
        HubError::NoShortName { given: given.to_owned(), reason: Box::new(self), catalogue: catalogue::names() }
    }

    /// The same with addresses cut at the question mark, behind which a signature may stand.
    pub(super) fn without_query(mut self) -> HubError {
        if let HubError::Unreachable { url, .. }
        | HubError::Interrupted { url, .. }
        | HubError::Status { url, .. }
        | HubError::BadReply { url, .. }
        | HubError::Checksum { what: url, .. } = &mut self
            && let Some(at) = url.find('?')
        {
            url.truncate(at);
        }
        self
    }

    pub(super) fn bad_reply(url: &str, what: impl fmt::Display) -> HubError {
        HubError::BadReply { url: url.to_owned(), what: what.to_string() }
    }

    /// Whether the hub could not be asked, so that it says nothing about the model.
    pub(super) fn is_silence(&self) -> bool {
        matches!(self, HubError::Unreachable { .. } | HubError::Interrupted { .. })
    }

    /// Whether something answered, but not as a hub that serves this user (a proxy's log-in page, say).
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, HubError::Refused { .. } | HubError::BadReply { .. } | HubError::Status { .. })
    }
}

fn access_cure(endpoint: &str, id: &str, had_token: bool, token_variable: &str) -> String {
    let account = if had_token { "the account of the token in use" } else { "your account" };
    let token =
        if had_token { String::new() } else { format!(", make a token in its settings and set {token_variable}") };
    format!("accept the model's terms at {endpoint}/{id} with {account}{token}")
}

fn upload_cure(status: u16) -> &'static str {
    match status {
        401 => "the token is no longer valid, or never was: make one with write access and set HF_TOKEN",
        _ => {
            "the token needs write access to this user's or organisation's repositories: check its permissions, and the name"
        }
    }
}

fn disk_cure(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; free some room, or set HF_HOME to another disk",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; set HF_HOME to a folder you can write"
        }
        _ => "",
    }
}

fn list(tried: &[Attempt]) -> String {
    tried.iter().map(|attempt| format!("\n  {}: {}", attempt.source, attempt.reason)).collect()
}
