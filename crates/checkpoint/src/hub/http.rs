//! Requests to a hub: bounded, timed, retried, resumed.
//!
//! On `ureq` and not on the `hf-hub` crate: its version 1 brings tokio and reqwest into a program that otherwise needs
//! neither, knows no ModelScope, and hides the points that matter here (which host sees the token, what a cut
//! connection leaves behind). Redirects are followed by hand for the first of these: a hub answers with the address of
//! another host, which must not get the `Authorization` header.

use std::io::Read;
use std::time::Duration;

use serde_json::Value;
use ureq::http::{HeaderMap, Response, Uri, header};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, Proxy};

use super::Progress;
use super::address::{same_origin, target};
use super::error::HubError;
use super::partial::Partial;
use super::settings::{Network, Secret};

/// A listing of 100,000 files with their digests is about 25 MB.
pub(super) const MAX_JSON: u64 = 32 << 20;
const MAX_REDIRECTS: usize = 10;
/// Longest wait that a server may ask for with `Retry-After`.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);
const CHUNK: usize = 256 << 10;

/// Talks to one hub.
pub(super) struct Client {
    pub(super) agent: Agent,
    pub(super) token: Option<Secret>,
    /// Name of the cookie that carries the token as well.
    session_cookie: Option<&'static str>,
    tries: u32,
    backoff: Duration,
}

/// What to download, and what it must be.
pub(super) struct Fetch<'a> {
    /// Address.
    pub(super) url: &'a str,
    /// Exact number of bytes.
    pub(super) size: u64,
    /// Digest of the whole, hexadecimal, if the hub promised one.
    pub(super) sha256: Option<&'a str>,
}

/// The last answer of a chain of redirects, and the headers of all of them.
pub(super) struct Reply {
    url: String,
    response: Response<Body>,
    passed: Vec<HeaderMap>,
}

impl Reply {
    /// The first header of this name on the way, from the first address to the last.
    pub(super) fn header(&self, name: &str) -> Result<Option<&str>, HubError> {
        let all = self.passed.iter().chain([self.response.headers()]);
        let Some(value) = all.filter_map(|headers| headers.get(name)).next() else {
            return Ok(None);
        };
        let text = value.to_str().map_err(|_| HubError::bad_reply(&self.url, format!("{name} is not text")))?;
        Ok(Some(text))
    }
}

/// One request, before redirects.
#[derive(Clone, Copy, Default)]
struct Ask {
    head: bool,
    /// First byte wanted.
    from: u64,
    /// Header that, once seen, makes a redirect to another host pointless to follow.
    until: Option<&'static str>,
}

impl Client {
    /// A client for the hub at `endpoint`.
    ///
    /// # Errors
    /// An endpoint that is no `http(s)` address, an unusable proxy, certificates that cannot be read.
    pub(super) fn new(endpoint: &str, token: Option<Secret>, network: &Network) -> Result<Client, HubError> {
        let scheme = endpoint.parse::<Uri>().ok().and_then(|uri| uri.scheme_str().map(str::to_owned));
        let proxy = match scheme.as_deref() {
            Some("https") => &network.https_proxy,
            Some("http") => &network.http_proxy,
            _ => {
                let problem = "not an address; it reads https://host or http://host".to_owned();
                return Err(HubError::Setting { setting: format!("endpoint `{endpoint}`"), problem });
            }
        };
        if token.is_some() && scheme.as_deref() == Some("http") {
            tracing::warn!(endpoint, "the token is sent unencrypted; an https endpoint would hide it");
        }
        let agent = Agent::config_builder()
            .max_redirects(0)
            .http_status_as_error(false)
            .user_agent(concat!("ferrotune/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .proxy(proxy.as_deref().map(|p| use_proxy(p, network.no_proxy.as_deref())).transpose()?)
            .tls_config(TlsConfig::builder().root_certs(root_certificates(network)?).build())
            .timeout_resolve(Some(network.connect_timeout))
            .timeout_connect(Some(network.connect_timeout))
            .timeout_send_request(Some(network.read_timeout))
            .timeout_recv_response(Some(network.read_timeout))
            .timeout_per_read(Some(network.read_timeout))
            .build()
            .new_agent();
        Ok(Client { agent, token, session_cookie: None, tries: network.tries.max(1), backoff: network.backoff })
    }

    /// Sends the token as this cookie too, for a hub whose older addresses know no other way.
    pub(super) fn with_session_cookie(mut self, name: &'static str) -> Client {
        self.session_cookie = Some(name);
        self
    }

    /// Whether requests carry a token.
    pub(super) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// The JSON document at `url`.
    pub(super) fn json(&self, url: &str) -> Result<Value, HubError> {
        self.retry(|| {
            let bytes = self.small(url)?;
            serde_json::from_slice(&bytes).map_err(|e| HubError::bad_reply(url, format!("not JSON: {e}")))
        })
    }

    /// The text at `url`.
    pub(super) fn text(&self, url: &str) -> Result<String, HubError> {
        self.retry(|| {
            let bytes = self.small(url)?;
            String::from_utf8(bytes).map_err(|_| HubError::bad_reply(url, "not UTF-8 text".to_owned()))
        })
    }

    fn small(&self, url: &str) -> Result<Vec<u8>, HubError> {
        let reply = self.follow(url, Ask::default())?;
        let mut bytes = Vec::new();
        let body = reply.response.into_body().into_with_config().limit(MAX_JSON).reader();
        body.take(MAX_JSON).read_to_end(&mut bytes).map_err(|e| broken_read(url, &e))?;
        Ok(bytes)
    }

    /// The headers of `url`. A redirect to another host is not followed once `until` was seen: the address behind it
    /// is signed for one download, not for questions.
    pub(super) fn head(&self, url: &str, until: &'static str) -> Result<Reply, HubError> {
        self.retry(|| self.follow(url, Ask { head: true, until: Some(until), ..Ask::default() }))
    }

    /// Completes `partial` with the bytes of `fetch.url`, from where an earlier attempt or run stopped. Bytes that a
    /// server makes us fetch twice are reported once.
    pub(super) fn download(
        &self,
        fetch: &Fetch<'_>,
        partial: &mut Partial,
        progress: &dyn Progress,
    ) -> Result<(), HubError> {
        partial.keep_at_most(fetch.size)?;
        let mut reported = partial.len();
        let resumed = reported > 0;
        progress.advance(reported);
        let mut complete = |partial: &mut Partial| {
            while partial.len() < fetch.size {
                self.retry_while_growing(partial, |partial| {
                    let result = self.stream(fetch, partial, &mut |len| {
                        progress.advance(len.saturating_sub(reported));
                        reported = reported.max(len);
                    });
                    result.map_err(|error| patient(error, partial.len()))
                })?;
            }
            partial.verify(fetch.url, fetch.sha256)
        };
        match complete(partial) {
            // What an earlier run left may be at fault; `verify` has emptied it.
            Err(HubError::Checksum { .. }) if resumed => complete(partial),
            result => result,
        }
    }

    /// One request for what is missing.
    fn stream(&self, fetch: &Fetch<'_>, partial: &mut Partial, grown: &mut dyn FnMut(u64)) -> Result<(), HubError> {
        let reply = match self.follow(fetch.url, Ask { from: partial.len(), ..Ask::default() }) {
            Err(HubError::Status { status: 416, .. }) if partial.len() > 0 => {
                partial.restart()?;
                self.follow(fetch.url, Ask::default())?
            }
            other => other?,
        };
        if partial.len() > 0 && !continues_at(&reply.response, partial.len()) {
            partial.restart()?;
        }
        let room = fetch.size - partial.len();
        let mut body = reply.response.into_body().into_reader().take(room.saturating_add(1));
        let mut chunk = vec![0; CHUNK];
        loop {
            let count = body.read(&mut chunk).map_err(|e| broken_read(fetch.url, &e))?;
            if count == 0 {
                break;
            }
            if partial.len() + count as u64 > fetch.size {
                partial.restart()?;
                return Err(HubError::bad_reply(fetch.url, format!("sends more than {} bytes", fetch.size)));
            }
            partial.write(&chunk[..count])?;
            grown(partial.len());
        }
        if partial.len() < fetch.size {
            let reason = format!("the connection ended after {} of {} bytes", partial.len(), fetch.size);
            return Err(HubError::Interrupted { url: fetch.url.to_owned(), reason, after: None });
        }
        Ok(())
    }

    /// Sends the request and follows redirects. The token goes to the origin of `url` and nowhere else.
    fn follow(&self, url: &str, ask: Ask) -> Result<Reply, HubError> {
        let mut at = url.to_owned();
        let mut passed = Vec::new();
        while passed.len() <= MAX_REDIRECTS {
            let response = self.send(&at, ask, same_origin(url, &at))?;
            if !response.status().is_redirection() {
                return check_status(Reply { url: at, response, passed });
            }
            let next = target(&at, response.headers())?;
            let known =
                |name| response.headers().contains_key(name) || passed.iter().any(|h: &HeaderMap| h.contains_key(name));
            if ask.until.is_some_and(known) && !same_origin(&at, &next) {
                return Ok(Reply { url: at, response, passed });
            }
            passed.push(response.headers().clone());
            at = next;
        }
        Err(HubError::bad_reply(url, format!("more than {MAX_REDIRECTS} redirects")))
    }

    fn send(&self, url: &str, ask: Ask, with_token: bool) -> Result<Response<Body>, HubError> {
        let mut request = if ask.head { self.agent.head(url) } else { self.agent.get(url) };
        if let Some(token) = self.token.as_ref().filter(|_| with_token) {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.expose()));
            if let Some(name) = self.session_cookie {
                request = request.header(header::COOKIE, format!("{name}={}", token.expose()));
            }
        }
        if ask.from > 0 {
            request = request.header(header::RANGE, format!("bytes={}-", ask.from));
        }
        request.call().map_err(|error| network_error(url, error))
    }

    /// Attempts until one succeeds, or fails for good, or too many have failed in a row.
    pub(super) fn retry<T>(&self, mut attempt: impl FnMut() -> Result<T, HubError>) -> Result<T, HubError> {
        let mut failures = 0;
        loop {
            let error = match attempt() {
                Err(error @ HubError::Interrupted { .. }) => error,
                result => return result,
            };
            failures += 1;
            if failures >= self.tries {
                return Err(error);
            }
            tracing::debug!(%error, failures, "trying again");
            let asked = if let HubError::Interrupted { after, .. } = error { after } else { None };
            std::thread::sleep(asked.unwrap_or(self.backoff * 2u32.saturating_pow(failures - 1)));
        }
    }

    /// Like [`Client::retry`], but an attempt that brought bytes is no failure.
    fn retry_while_growing(
        &self,
        partial: &mut Partial,
        mut attempt: impl FnMut(&mut Partial) -> Result<(), HubError>,
    ) -> Result<(), HubError> {
        let before = partial.len();
        self.retry(|| match attempt(partial) {
            Err(HubError::Interrupted { .. }) if partial.len() > before => {
                std::thread::sleep(self.backoff);
                Ok(())
            }
            other => other,
        })
    }
}

/// In the middle of a file an unreachable host is taken for a passing failure: it was there a moment ago.
fn patient(error: HubError, received: u64) -> HubError {
    match error {
        HubError::Unreachable { url, reason } if received > 0 => HubError::Interrupted { url, reason, after: None },
        other => other,
    }
}

fn check_status(reply: Reply) -> Result<Reply, HubError> {
    match failure(&reply.url, &reply.response) {
        None => Ok(reply),
        Some(error) => Err(error),
    }
}

/// What an answer's status says of its request, unless that succeeded.
pub(super) fn failure(url: &str, response: &Response<Body>) -> Option<HubError> {
    let status = response.status();
    if status.is_success() {
        return None;
    }
    if status.is_server_error() || matches!(status.as_u16(), 408 | 429) {
        let header = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
        let asked = header.and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
        let after = asked.map(|wait| wait.min(MAX_RETRY_AFTER));
        return Some(HubError::Interrupted { url: shown(url), reason: format!("HTTP {}", status.as_u16()), after });
    }
    Some(HubError::Status { url: shown(url), status: status.as_u16() })
}

/// Whether the answer to a request for the bytes from `from` on is exactly that. A server may send the whole instead.
fn continues_at(response: &Response<Body>, from: u64) -> bool {
    let range = response.headers().get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let start = range.and_then(|text| text.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok());
    response.status().as_u16() == 206 && start == Some(from)
}

fn use_proxy(proxy: &str, no_proxy: Option<&str>) -> Result<Proxy, HubError> {
    let unusable = |_| HubError::Setting {
        // The address may hold a password.
        setting: "proxy (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY)".to_owned(),
        problem: "not usable; it reads http://host:port or https://host:port".to_owned(),
    };
    let parsed = Proxy::new(proxy).map_err(unusable)?;
    let Some(no_proxy) = no_proxy else {
        return Ok(parsed);
    };
    let mut builder = Proxy::builder(parsed.protocol()).host(parsed.host()).port(parsed.port());
    if let Some(name) = parsed.username() {
        builder = builder.username(name);
    }
    if let Some(password) = parsed.password() {
        builder = builder.password(password);
    }
    no_proxy
        .split(',')
        .map(str::trim)
        .filter(|host| !host.is_empty())
        .fold(builder, |b, host| b.no_proxy(host))
        .build()
        .map_err(unusable)
}

fn root_certificates(network: &Network) -> Result<RootCerts, HubError> {
    let Some(path) = &network.ca_bundle else {
        return Ok(RootCerts::WebPki);
    };
    let pem = std::fs::read(path).map_err(HubError::io("read the certificates (SSL_CERT_FILE)", path))?;
    let found: Vec<_> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if found.is_empty() {
        let setting = format!("SSL_CERT_FILE or REQUESTS_CA_BUNDLE ({})", path.display());
        return Err(HubError::Setting { setting, problem: "holds no certificate in PEM form".to_owned() });
    }
    Ok(RootCerts::new_with_certs(&found))
}

/// An address as it may be shown: what stands behind the question mark may be a signature that opens a door.
pub(super) fn shown(url: &str) -> String {
    url.split(['?', '#']).next().unwrap_or(url).to_owned()
}

/// Sorts the failures of a request: nobody there, a passing failure, or an answer that is none.
pub(super) fn network_error(url: &str, error: ureq::Error) -> HubError {
    use ureq::{Error, Timeout};
    let reason = error.to_string();
    let url = shown(url);
    match error {
        Error::Io(e) => io_error(&url, &e),
        Error::HostNotFound
        | Error::ConnectionFailed
        | Error::ConnectProxyFailed(_)
        | Error::InvalidProxyUrl
        | Error::Tls(_)
        | Error::Rustls(_)
        | Error::Timeout(Timeout::Resolve | Timeout::Connect) => HubError::Unreachable { url, reason },
        Error::Timeout(_) | Error::BodyStalled => HubError::Interrupted { url, reason, after: None },
        _ => HubError::BadReply { url, what: reason },
    }
}

fn io_error(url: &str, error: &std::io::Error) -> HubError {
    use std::io::ErrorKind as Kind;
    let (url, reason) = (url.to_owned(), error.to_string());
    match error.kind() {
        Kind::ConnectionReset | Kind::ConnectionAborted | Kind::BrokenPipe | Kind::UnexpectedEof | Kind::TimedOut => {
            HubError::Interrupted { url, reason, after: None }
        }
        _ => HubError::Unreachable { url, reason },
    }
}

/// The connection was there: whatever broke it may pass.
pub(super) fn broken_read(url: &str, error: &std::io::Error) -> HubError {
    HubError::Interrupted { url: shown(url), reason: error.to_string(), after: None }
}
