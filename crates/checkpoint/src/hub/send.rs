//! What is sent to a hub: documents, and parts of files. Tried again as a download is, and never redirected: what is written
//! goes to the address it was meant for.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use ureq::http::{Response, header};
use ureq::{Body, SendBody};

use super::error::HubError;
use super::http::{Client, MAX_JSON, broken_read, failure, network_error, shown};

/// The slowest line that is waited for, in bytes a second, beside a minute for its pauses.
const SLOWEST: u64 = 16 << 10;
const PAUSES: Duration = Duration::from_secs(60);
/// Letters of a server's words that are shown.
const SAID: usize = 300;

/// A stretch of a file.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) path: &'a Path,
    pub(super) start: u64,
    pub(super) len: u64,
}

/// A document to be posted.
#[derive(Clone, Copy)]
pub(super) struct Document<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) kind: &'a str,
    /// Whether the address may see the token: the hub's own may, another that an answer names may not.
    pub(super) with_token: bool,
}

impl Client {
    /// Posts a document and gives back the answer; `null` for an empty one. `passes` are statuses that are no
    /// failure.
    pub(super) fn post(&self, url: &str, document: Document<'_>, passes: &[u16]) -> Result<Value, HubError> {
        self.retry(|| {
            let mut request = self.agent.post(url).header(header::CONTENT_TYPE, document.kind);
            request = request.header(header::ACCEPT, "application/vnd.git-lfs+json, application/json");
            if let Some(token) = self.token.as_ref().filter(|_| document.with_token) {
                request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.expose()));
            }
            let response = request.send(document.bytes).map_err(|error| network_error(url, error))?;
            let passed = passes.contains(&response.status().as_u16());
            let response = if passed { response } else { accepted(url, response)? };
            let text = text_of(url, response)?;
            match text.is_empty() || passed {
                true => Ok(Value::Null),
                false => serde_json::from_slice(&text).map_err(|e| HubError::bad_reply(url, format!("not JSON: {e}"))),
            }
        })
    }

    /// Puts a part of a file to a signed address, without the token, and gives back its entity tag. `sent` hears how many bytes
    /// are out; after a failure it hears them again.
    pub(super) fn put(&self, url: &str, part: Part<'_>, sent: &mut dyn FnMut(u64)) -> Result<Option<String>, HubError> {
        self.retry(|| {
            let mut file = File::open(part.path).map_err(HubError::io("open", part.path))?;
            file.seek(SeekFrom::Start(part.start)).map_err(HubError::io("read", part.path))?;
            let mut reader = Counted { inner: file.take(part.len), done: 0, told: sent };
            let patience = PAUSES + Duration::from_secs(part.len / SLOWEST);
            let request = self.agent.put(url).header(header::CONTENT_LENGTH, part.len.to_string());
            let request = request.config().timeout_send_body(Some(patience)).build();
            let result = request.send(SendBody::from_reader(&mut reader));
            if reader.done < part.len && reader.inner.limit() > 0 && reader.ended() {
                return Err(HubError::Changed { path: part.path.to_path_buf() });
            }
            let response = accepted(url, result.map_err(|error| network_error(url, error))?)?;
            let tag = response.headers().get(header::ETAG).and_then(|tag| tag.to_str().ok()).map(str::to_owned);
            Ok(tag)
        })
    }
}

/// The answer, or what its status says with the server's own words.
fn accepted(url: &str, response: Response<Body>) -> Result<Response<Body>, HubError> {
    match failure(url, &response) {
        None => Ok(response),
        Some(HubError::Status { status, .. }) => {
            let said = said(&text_of(url, response).unwrap_or_default());
            Err(HubError::Rejected { url: shown(url), status, said })
        }
        Some(other) => Err(other),
    }
}

fn text_of(url: &str, response: Response<Body>) -> Result<Vec<u8>, HubError> {
    let mut bytes = Vec::new();
    let body = response.into_body().into_with_config().limit(MAX_JSON).reader();
    body.take(MAX_JSON).read_to_end(&mut bytes).map_err(|e| broken_read(url, &e))?;
    Ok(bytes)
}

/// What a hub says of a failure, on one line.
fn said(text: &[u8]) -> String {
    let json: Option<Value> = serde_json::from_slice(text).ok();
    let words = json.as_ref().and_then(|json| json["error"].as_str().or_else(|| json["message"].as_str()));
    let line: String = words.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
    let line: String = line.chars().filter(|c| !c.is_control()).take(SAID).collect();
    if line.is_empty() { line } else { format!(": {line}") }
}

/// A reader that tells how far it is.
struct Counted<'a> {
    inner: std::io::Take<File>,
    done: u64,
    told: &'a mut dyn FnMut(u64),
}

impl Counted<'_> {
    /// Whether the file has no more, though it should.
    fn ended(&mut self) -> bool {
        matches!(self.inner.read(&mut [0]), Ok(0))
    }
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.done += count as u64;
        (self.told)(self.done);
        Ok(count)
    }
}
