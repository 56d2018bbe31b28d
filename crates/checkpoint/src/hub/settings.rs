//! Where the hub is, where its files lie and how to talk to it.
//!
//! The names and the defaults of the variables are those of `huggingface_hub` and `modelscope`, so that one cache and
//! one login serve both worlds. This crate reads no environment: the caller hands in a function that does.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const HUGGING_FACE: &str = "https://huggingface.co";
const MODELSCOPE: &str = "https://modelscope.cn";

/// A token that never shows in a log or an error.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps `token`, without surrounding white space.
    pub fn new(token: &str) -> Secret {
        Secret(token.trim().to_owned())
    }

    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Where the token for a hub comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    /// Given outright.
    Given(Secret),
    /// The file that a login command wrote; it need not exist.
    File(PathBuf),
    /// Requests are anonymous.
    Anonymous,
}

impl Token {
    /// Reads the token. A file that is missing, empty or unreadable means an anonymous request, as it does for
    /// `huggingface_hub`: most models need no token, and those that do say so.
    pub(super) fn read(&self) -> Option<Secret> {
        match self {
            Token::Given(secret) => Some(secret.clone()),
            Token::File(path) => {
                std::fs::read_to_string(path).ok().map(|text| Secret::new(&text)).filter(|secret| !secret.0.is_empty())
            }
            Token::Anonymous => None,
        }
    }
}

/// One hub: its address, its cache on this machine, its token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Scheme and host, without a slash at the end.
    pub endpoint: String,
    /// The folder that is shared with the hub's own Python library.
    pub cache: PathBuf,
    /// Who asks.
    pub token: Token,
}

/// How to reach the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// Proxy for `https` addresses.
    pub https_proxy: Option<String>,
    /// Proxy for `http` addresses.
    pub http_proxy: Option<String>,
    /// Hosts that are reached without a proxy, comma-separated.
    pub no_proxy: Option<String>,
    /// PEM file of certificate authorities to trust instead of the built-in ones.
    pub ca_bundle: Option<PathBuf>,
    /// Longest wait for a connection (name look-up, TCP and TLS each).
    pub connect_timeout: Duration,
    /// Longest silence of a server that is connected.
    pub read_timeout: Duration,
    /// Attempts in a row that bring no byte before a transfer is given up; at least 1.
    pub tries: u32,
    /// Wait before the second attempt; it doubles with each further one.
    pub backoff: Duration,
}

impl Default for Network {
    fn default() -> Network {
        Network {
            https_proxy: None,
            http_proxy: None,
            no_proxy: None,
            ca_bundle: None,
            connect_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(30),
            tries: 5,
            backoff: Duration::from_millis(500),
        }
    }
}

/// Who asks a cloud store, and where it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CloudSettings {
    /// Region of S3's buckets.
    pub region: String,
    /// Another store that speaks S3's interface.
    pub s3_endpoint: Option<String>,
    /// Id and secret; without them requests are anonymous.
    pub s3_key: Option<(String, Secret)>,
    /// What temporary credentials need beside.
    pub s3_session: Option<Secret>,
    /// Another store that speaks Google's interface.
    pub google_endpoint: Option<String>,
    /// Without it requests are anonymous.
    pub google_token: Option<Secret>,
}

/// Everything that [`resolve`](super::resolve) needs to know besides the name of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubSettings {
    /// The Hugging Face hub, or a mirror of it.
    pub hugging_face: Site,
    /// ModelScope.
    pub modelscope: Site,
    /// Hub ids mean ModelScope instead of Hugging Face.
    pub use_modelscope: bool,
    /// Folder of what is neither hub's: models of the catalogue that came by another way.
    pub own_cache: PathBuf,
    /// Cloud stores.
    pub cloud: CloudSettings,
    /// What a leading `~` of a path stands for.
    pub home: PathBuf,
    /// Branch, tag or commit; `None` is the hub's default branch.
    pub revision: Option<String>,
    /// Send no request and start no download.
    pub offline: bool,
    /// Commands that may be pip, in the order to try them.
    pub pip: Vec<Vec<String>>,
    /// Longest run of one pip command.
    pub pip_timeout: Duration,
    /// Proxies, time-outs, retries.
    pub network: Network,
}

impl HubSettings {
    /// Reads the settings from variables (`var` looks one up) and the user's home folder. An empty variable counts as
    /// unset.
    ///
    /// `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`, `HF_TOKEN`, `HUGGING_FACE_HUB_TOKEN`,
    /// `HF_TOKEN_PATH`, `HF_HUB_OFFLINE`, `TRANSFORMERS_OFFLINE`, `USE_MODELSCOPE_HUB`, `MODELSCOPE_ENDPOINT`,
    /// `MODELSCOPE_DOMAIN`, `MODELSCOPE_CACHE`, `MODELSCOPE_API_TOKEN`, `XDG_CACHE_HOME`, `FERROTUNE_CACHE`,
    /// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_REGION`, `AWS_DEFAULT_REGION`, `AWS_PROFILE`,
    /// `AWS_SHARED_CREDENTIALS_FILE`, `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`, `CLOUDSDK_AUTH_ACCESS_TOKEN`,
    /// `STORAGE_EMULATOR_HOST`, `FERROTUNE_PIP`, `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`, `SSL_CERT_FILE`, `REQUESTS_CA_BUNDLE`.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>, home: PathBuf) -> HubSettings {
        let vars = Vars { var: &var, home: &home };
        let user_cache = vars.path("XDG_CACHE_HOME").unwrap_or_else(|| home.join(".cache"));
        HubSettings {
            hugging_face: vars.hugging_face(&user_cache),
            modelscope: vars.modelscope(&home.join(".cache")),
            use_modelscope: vars.is_true("USE_MODELSCOPE_HUB"),
            own_cache: vars.path("FERROTUNE_CACHE").unwrap_or_else(|| user_cache.join("ferrotune")),
            revision: None,
            offline: vars.is_true("HF_HUB_OFFLINE") || vars.is_true("TRANSFORMERS_OFFLINE"),
            pip: vars.pip(),
            pip_timeout: Duration::from_secs(30 * 60),
            network: vars.network(),
            cloud: vars.cloud(),
            home,
        }
    }

    /// Puts the downloads of either hub under `folder` (the recipe's `cache_dir`).
    #[must_use]
    pub fn with_cache_dir(mut self, folder: &Path) -> HubSettings {
        self.hugging_face.cache = folder.to_path_buf();
        self.modelscope.cache = folder.to_path_buf();
        self
    }

    /// The hub that an id means.
    pub(super) fn site(&self) -> &Site {
        if self.use_modelscope { &self.modelscope } else { &self.hugging_face }
    }

    /// `path` with a leading `~` replaced by the home folder.
    pub(super) fn expand(&self, path: &str) -> PathBuf {
        expand(path, &self.home)
    }
}

fn expand(path: &str, home: &Path) -> PathBuf {
    match path.strip_prefix("~/") {
        Some(rest) => home.join(rest),
        None if path == "~" => home.to_path_buf(),
        None => PathBuf::from(path),
    }
}

struct Vars<'a> {
    var: &'a dyn Fn(&str) -> Option<String>,
    home: &'a Path,
}

impl Vars<'_> {
    fn text(&self, name: &str) -> Option<String> {
        (self.var)(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.text(name).map(|value| expand(&value, self.home))
    }

    fn first(&self, names: &[&str]) -> Option<String> {
        names.iter().find_map(|name| self.text(name))
    }

    fn is_true(&self, name: &str) -> bool {
        self.text(name).is_some_and(|v| ["1", "on", "yes", "true", "y"].contains(&v.to_ascii_lowercase().as_str()))
    }

    fn cloud(&self) -> CloudSettings {
        let address = |name: &str| self.text(name).map(|url| url.trim_end_matches('/').to_owned());
        let given = self.text("AWS_ACCESS_KEY_ID").zip(self.text("AWS_SECRET_ACCESS_KEY"));
        let (key, session) = match given {
            Some(key) => (Some(key), self.text("AWS_SESSION_TOKEN")),
            None => self.shared_credentials(),
        };
        CloudSettings {
            region: self.first(&["AWS_REGION", "AWS_DEFAULT_REGION"]).unwrap_or_else(|| "us-east-1".to_owned()),
            s3_endpoint: address("AWS_ENDPOINT_URL_S3").or_else(|| address("AWS_ENDPOINT_URL")),
            s3_key: key.map(|(id, secret)| (id, Secret::new(&secret))),
            s3_session: session.map(|session| Secret::new(&session)),
            // Google's own libraries take it with and without a scheme.
            google_endpoint: address("STORAGE_EMULATOR_HOST")
                .map(|host| if host.contains("://") { host } else { format!("http://{host}") }),
            google_token: self.text("CLOUDSDK_AUTH_ACCESS_TOKEN").map(|token| Secret::new(&token)),
        }
    }

    /// Key and session of the file that `aws configure` writes.
    fn shared_credentials(&self) -> (Option<(String, String)>, Option<String>) {
        let path = self.path("AWS_SHARED_CREDENTIALS_FILE").unwrap_or_else(|| self.home.join(".aws/credentials"));
        let profile = self.text("AWS_PROFILE").unwrap_or_else(|| "default".to_owned());
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let lines = text.lines().map(str::trim).skip_while(|line| *line != format!("[{profile}]")).skip(1);
        let pairs: Vec<(&str, &str)> =
            lines.take_while(|line| !line.starts_with('[')).filter_map(|line| line.split_once('=')).collect();
        let value =
            |name: &str| pairs.iter().find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_owned());
        (value("aws_access_key_id").zip(value("aws_secret_access_key")), value("aws_session_token"))
    }

    fn hugging_face(&self, user_cache: &Path) -> Site {
        let hf_home = self.path("HF_HOME").unwrap_or_else(|| user_cache.join("huggingface"));
        let cache = self.path("HF_HUB_CACHE").or_else(|| self.path("HUGGINGFACE_HUB_CACHE"));
        let token = match self.first(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]) {
            Some(token) => Token::Given(Secret::new(&token)),
            None => Token::File(self.path("HF_TOKEN_PATH").unwrap_or_else(|| hf_home.join("token"))),
        };
        Site {
            endpoint: endpoint(self.text("HF_ENDPOINT"), HUGGING_FACE),
            cache: cache.unwrap_or_else(|| hf_home.join("hub")),
            token,
        }
    }

    fn modelscope(&self, user_cache: &Path) -> Site {
        let address = self.text("MODELSCOPE_ENDPOINT").or_else(|| self.text("MODELSCOPE_DOMAIN"));
        Site {
            endpoint: endpoint(address, MODELSCOPE),
            cache: self.path("MODELSCOPE_CACHE").unwrap_or_else(|| user_cache.join("modelscope")),
            token: match self.text("MODELSCOPE_API_TOKEN") {
                Some(token) => Token::Given(Secret::new(&token)),
                None => Token::Anonymous,
            },
        }
    }

    fn pip(&self) -> Vec<Vec<String>> {
        let words = |command: &str| command.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        match self.text("FERROTUNE_PIP") {
            Some(command) => vec![words(&command)],
            None => ["pip", "pip3", "python3 -m pip"].map(words).to_vec(),
        }
    }

    fn network(&self) -> Network {
        let proxy =
            |names: &[&str]| self.first(names).map(|p| if p.contains("://") { p } else { format!("http://{p}") });
        Network {
            https_proxy: proxy(&["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]),
            http_proxy: proxy(&["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"]),
            no_proxy: self.first(&["no_proxy", "NO_PROXY"]),
            ca_bundle: self.path("SSL_CERT_FILE").or_else(|| self.path("REQUESTS_CA_BUNDLE")),
            ..Network::default()
        }
    }
}

/// An address without a scheme is meant as `https`.
fn endpoint(given: Option<String>, default: &str) -> String {
    let address = given.unwrap_or_else(|| default.to_owned());
    let address = address.trim_end_matches('/');
    if address.contains("://") { address.to_owned() } else { format!("https://{address}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(vars: &[(&str, &str)]) -> HubSettings {
        let find = |name: &str| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        HubSettings::from_vars(find, PathBuf::from("/home/u"))
    }

    #[test]
    fn nothing_set_gives_the_defaults_of_the_python_libraries() {
        let s = settings(&[]);
        assert_eq!(s.hugging_face.endpoint, "https://huggingface.co");
        assert_eq!(s.hugging_face.cache, Path::new("/home/u/.cache/huggingface/hub"));
        assert_eq!(s.hugging_face.token, Token::File("/home/u/.cache/huggingface/token".into()));
        assert_eq!(s.modelscope.cache, Path::new("/home/u/.cache/modelscope"));
        assert_eq!(s.own_cache, Path::new("/home/u/.cache/ferrotune"));
        assert!(!s.offline && !s.use_modelscope);
        assert_eq!(s.pip.len(), 3);
    }

    #[test]
    fn the_nearer_variable_wins() {
        let s = settings(&[
            ("XDG_CACHE_HOME", "/x"),
            ("HF_HOME", "~/hf"),
            ("HUGGINGFACE_HUB_CACHE", "/old"),
            ("HF_HUB_CACHE", "/hub"),
            ("HF_TOKEN", " abc\n"),
            ("HF_ENDPOINT", "https://mirror.example/"),
            ("MODELSCOPE_DOMAIN", "www.modelscope.ai"),
        ]);
        assert_eq!(s.hugging_face.cache, Path::new("/hub"));
        assert_eq!(s.hugging_face.token, Token::Given(Secret::new("abc")));
        assert_eq!(s.hugging_face.endpoint, "https://mirror.example");
        assert_eq!(s.modelscope.endpoint, "https://www.modelscope.ai");
        assert_eq!(s.own_cache, Path::new("/x/ferrotune"));
        let s = settings(&[("HF_HOME", "~/hf"), ("HF_HUB_CACHE", "")]);
        assert_eq!(s.hugging_face.cache, Path::new("/home/u/hf/hub"), "an empty variable is unset");
        assert_eq!(s.hugging_face.token, Token::File("/home/u/hf/token".into()));
    }

    #[test]
    fn switches_proxies_and_pip() {
        let s = settings(&[
            ("HF_HUB_OFFLINE", "True"),
            ("USE_MODELSCOPE_HUB", "1"),
            ("HTTPS_PROXY", "proxy.lan:3128"),
            ("FERROTUNE_PIP", "uv pip"),
        ]);
        assert!(s.offline && s.use_modelscope);
        assert_eq!(s.network.https_proxy.as_deref(), Some("http://proxy.lan:3128"));
        assert_eq!(s.network.http_proxy, None);
        assert_eq!(s.pip, [["uv", "pip"]]);
        assert!(!settings(&[("HF_HUB_OFFLINE", "0")]).offline);
    }

    #[test]
    fn a_token_is_not_shown() {
        let text = format!("{:?}", settings(&[("HF_TOKEN", "hf_sesame")]));
        assert!(!text.contains("sesame"), "{text}");
    }
}
