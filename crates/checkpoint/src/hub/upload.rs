//! A folder to a repository of the Hugging Face hub, in the steps of `huggingface_hub`: the repository is made if it isn't
//! there, the hub is asked which files are large, those go to its storage in one or many parts unless it has them already, and
//! one commit names all.
//!
//! What the storage holds is never sent again, so an upload that was cut goes on with the file it was at.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::Progress;
use super::address::{encode, same_origin};
use super::error::HubError;
use super::http::Client;
use super::partial::sha256_of;
use super::send::{Document, Part};
use super::settings::HubSettings;

const JSON: &str = "application/json";
const LFS: &str = "application/vnd.git-lfs+json";
const LINES: &str = "application/x-ndjson";
/// Files of one question.
const BATCH: usize = 100;
/// First bytes of a file by which the hub tells text from others.
const SAMPLE: u64 = 512;
/// A file that the hub wants inside the commit is a small one.
const MAX_INLINE: u64 = 32 << 20;
/// Parts of a file, at most.
const MAX_PARTS: u64 = 10_000;

/// Uploads to one repository.
pub struct Uploader {
    client: Client,
    endpoint: String,
    repository: String,
}

/// A file of the folder.
struct Local {
    name: String,
    path: PathBuf,
    size: u64,
}

/// A file that the hub has in its storage.
struct Stored {
    local: Local,
    sha256: String,
}

impl Uploader {
    /// Prepares uploads to `repository` (`user/name`); asks nobody yet.
    ///
    /// # Errors
    /// If no token is set, offline or ModelScope was asked for, or a setting can't be used.
    pub fn new(settings: &HubSettings, repository: &str) -> Result<Self, HubError> {
        let refuse = |setting: &str, problem: &str| {
            Err(HubError::Setting { setting: setting.to_owned(), problem: problem.to_owned() })
        };
        if settings.offline {
            return refuse(
                "HF_HUB_OFFLINE",
                "offline was asked for, and export_hub_model_id asks for an upload; unset one",
            );
        }
        if settings.use_modelscope {
            return refuse(
                "USE_MODELSCOPE_HUB",
                "export_hub_model_id uploads to the Hugging Face hub only, as LLaMA-Factory does; unset the variable, or upload \
                 export_dir with ModelScope's own tool",
            );
        }
        let site = &settings.hugging_face;
        let token = site.token.read().ok_or_else(|| HubError::NoToken { endpoint: site.endpoint.clone() })?;
        let client = Client::new(&site.endpoint, Some(token), &settings.network)?;
        Ok(Self { client, endpoint: site.endpoint.clone(), repository: repository.to_owned() })
    }

    /// Makes the repository, unless it is there. Asked before a long export, it also shows whether the token is any good.
    ///
    /// # Errors
    /// If the hub can't be reached, or refuses.
    pub fn create(&self, private: bool) -> Result<(), HubError> {
        let (user, name) = self.repository.split_once('/').unwrap_or(("", &self.repository));
        let body = json!({"name": name, "organization": user, "private": private});
        let url = format!("{}/api/repos/create", self.endpoint);
        // 409: it is there.
        self.post(&url, JSON, body.to_string().as_bytes(), &[409]).map(drop)
    }

    /// Uploads the plain files of a folder, in one commit, and gives back the repository's address.
    ///
    /// # Errors
    /// If a file can't be read, the hub can't be reached or refuses, also when tried again.
    pub fn send(&self, folder: &Path, message: &str, progress: &dyn Progress) -> Result<String, HubError> {
        let locals = files(folder)?;
        let mut large = self.large(&locals)?;
        // A commit of that size is refused by the hub, whatever it said of the file.
        large.extend(locals.iter().filter(|local| local.size > MAX_INLINE).map(|local| local.name.clone()));
        let (large, small): (Vec<_>, Vec<_>) = locals.into_iter().partition(|local| large.contains(&local.name));
        let mut stored = Vec::with_capacity(large.len());
        for local in large {
            let sha256 = sha256_of(&local.path)?;
            stored.push(Stored { local, sha256 });
        }
        for batch in stored.chunks(BATCH) {
            self.store(batch, progress)?;
        }
        self.commit(&small, &stored, message)?;
        Ok(format!("{}/{}", self.endpoint, self.repository))
    }

    /// Names of the files that the hub wants in its storage.
    fn large(&self, locals: &[Local]) -> Result<BTreeSet<String>, HubError> {
        let url = format!("{}/preupload/main", self.api());
        let mut large = BTreeSet::new();
        for batch in locals.chunks(BATCH) {
            let mut asked = Vec::with_capacity(batch.len());
            for local in batch {
                let sample = base64(&head(local, SAMPLE)?);
                asked.push(json!({"path": local.name, "sample": sample, "size": local.size}));
            }
            let reply = self.post(&url, JSON, json!({"files": asked}).to_string().as_bytes(), &[])?;
            let files = reply["files"].as_array().ok_or_else(|| HubError::bad_reply(&url, "it names no files"))?;
            let is_large = |file: &&Value| file["uploadMode"] == "lfs";
            large.extend(files.iter().filter(is_large).filter_map(|file| file["path"].as_str().map(str::to_owned)));
        }
        Ok(large)
    }

    /// Brings files to the storage, except those that it has.
    fn store(&self, batch: &[Stored], progress: &dyn Progress) -> Result<(), HubError> {
        let url = format!("{}/{}.git/info/lfs/objects/batch", self.endpoint, encode(&self.repository, true));
        let objects: Vec<Value> =
            batch.iter().map(|stored| json!({"oid": stored.sha256, "size": stored.local.size})).collect();
        let body = json!({"operation": "upload", "transfers": ["basic", "multipart"], "objects": objects,
                          "hash_algo": "sha256", "ref": {"name": "main"}});
        let reply = self.post(&url, LFS, body.to_string().as_bytes(), &[])?;
        let answers = reply["objects"].as_array().ok_or_else(|| HubError::bad_reply(&url, "it names no objects"))?;
        for stored in batch {
            let answer = answers.iter().find(|answer| answer["oid"] == stored.sha256.as_str());
            let answer =
                answer.ok_or_else(|| HubError::bad_reply(&url, format!("nothing on {}", stored.local.name)))?;
            if let Some(error) = answer["error"]["message"].as_str() {
                let status = answer["error"]["code"].as_u64().and_then(|code| u16::try_from(code).ok()).unwrap_or(400);
                let said = format!(": {}: {}", stored.local.name, error.chars().take(300).collect::<String>());
                return Err(self.told(HubError::Rejected { url, status, said }));
            }
            let actions = &answer["actions"];
            let Some(href) = actions["upload"]["href"].as_str() else { continue };
            progress.begin(&format!("uploading {}", stored.local.name), Some(stored.local.size));
            let result = self.transfer(stored, href, &actions["upload"]["header"], progress);
            progress.end();
            result?;
            if let Some(verify) = actions["verify"]["href"].as_str() {
                let body = json!({"oid": stored.sha256, "size": stored.local.size});
                self.post(verify, LFS, body.to_string().as_bytes(), &[])?;
            }
        }
        Ok(())
    }

    /// One file, whole or in parts of the size that the hub says.
    fn transfer(&self, stored: &Stored, href: &str, header: &Value, progress: &dyn Progress) -> Result<(), HubError> {
        let Stored { local, sha256 } = stored;
        let mut out = 0;
        let mut told = |sent: u64| {
            progress.advance(sent.saturating_sub(out));
            out = out.max(sent);
        };
        let chunk = match &header["chunk_size"] {
            Value::String(text) => text.parse().ok(),
            other => other.as_u64(),
        };
        let Some(chunk) = chunk else {
            let whole = Part { path: &local.path, start: 0, len: local.size };
            return self.client.put(href, whole, &mut told).map(drop);
        };
        let count = if chunk == 0 { u64::MAX } else { local.size.div_ceil(chunk) };
        if count > MAX_PARTS {
            return Err(HubError::bad_reply(href, format!("it wants parts of {chunk} bytes")));
        }
        let mut parts = Vec::new();
        for number in 1..=count {
            // Keys are numbers, with zeros before them or not.
            let mut keys = header.as_object().into_iter().flatten();
            let url = keys.find(|(key, _)| key.parse() == Ok(number)).and_then(|(_, url)| url.as_str());
            let url = url.ok_or_else(|| HubError::bad_reply(href, format!("no address for part {number}")))?;
            let start = (number - 1) * chunk;
            let part = Part { path: &local.path, start, len: chunk.min(local.size - start) };
            let tag = self.client.put(url, part, &mut |sent| told(start + sent))?;
            let tag = tag.ok_or_else(|| HubError::bad_reply(url, "no entity tag of a part"))?;
            parts.push(json!({"partNumber": number, "etag": tag}));
        }
        let body = json!({"oid": sha256, "parts": parts});
        self.post(href, LFS, body.to_string().as_bytes(), &[]).map(drop)
    }

    /// Names all files in one commit.
    fn commit(&self, small: &[Local], stored: &[Stored], message: &str) -> Result<(), HubError> {
        let mut lines = vec![json!({"key": "header", "value": {"summary": message, "description": ""}})];
        for local in small {
            let content = base64(&head(local, MAX_INLINE)?);
            lines.push(json!({"key": "file", "value": {"content": content, "path": local.name, "encoding": "base64"}}));
        }
        for Stored { local, sha256 } in stored {
            let value = json!({"path": local.name, "algo": "sha256", "oid": sha256, "size": local.size});
            lines.push(json!({"key": "lfsFile", "value": value}));
        }
        let body: String = lines.iter().map(|line| format!("{line}\n")).collect();
        self.post(&format!("{}/commit/main", self.api()), LINES, body.as_bytes(), &[]).map(drop)
    }

    fn api(&self) -> String {
        format!("{}/api/models/{}", self.endpoint, encode(&self.repository, true))
    }

    fn post(&self, url: &str, kind: &str, bytes: &[u8], passes: &[u16]) -> Result<Value, HubError> {
        let with_token = same_origin(&self.endpoint, url);
        self.client.post(url, Document { bytes, kind, with_token }, passes).map_err(|error| self.told(error))
    }

    /// A refusal in words that say what to do.
    fn told(&self, error: HubError) -> HubError {
        match error {
            HubError::Rejected { status: status @ (401 | 403), said, .. } => {
                HubError::UploadRefused { id: self.repository.clone(), endpoint: self.endpoint.clone(), status, said }
            }
            other => other,
        }
    }
}

/// The plain files of a folder by name, without hidden ones and those that are being written.
fn files(folder: &Path) -> Result<Vec<Local>, HubError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(HubError::io("read", folder))? {
        let entry = entry.map_err(HubError::io("read", folder))?;
        let path = entry.path();
        let metadata = entry.metadata().map_err(HubError::io("read", &path))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if metadata.is_file() && !name.starts_with('.') && !name.contains(crate::folder::TEMP) {
            found.push(Local { name, path, size: metadata.len() });
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// The first bytes of a file.
fn head(local: &Local, most: u64) -> Result<Vec<u8>, HubError> {
    let mut bytes = Vec::new();
    let file = fs::File::open(&local.path).map_err(HubError::io("open", &local.path))?;
    file.take(most).read_to_end(&mut bytes).map_err(HubError::io("read", &local.path))?;
    Ok(bytes)
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let word = group.iter().enumerate().fold(0u32, |word, (i, &byte)| word | u32::from(byte) << (16 - 8 * i));
        for i in 0..4 {
            let letter = LETTERS[(word >> (18 - 6 * i)) as usize & 63];
            out.push(if i <= group.len() { char::from(letter) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_is_that_of_the_rfc() {
        let cases =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("fooba", "Zm9vYmE=")];
        for (text, expected) in cases {
            assert_eq!(base64(text.as_bytes()), expected, "{text}");
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xfe]), "+//+");
    }
}
