//! Files in cloud stores: `s3://bucket/key` and `gs://bucket/key`, one file or all below a folder.
//!
//! Our own few requests over the hub's client, and not `object_store`: that brings tokio, hyper and reqwest for a listing
//! and a download. Requests to S3, and to all stores that speak its interface (`AWS_ENDPOINT_URL`), are signed in their
//! address (Signature Version 4, <https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html>), so that
//! they can be resumed like any other; without credentials they are anonymous. Google's store takes a token. Files lie
//! under `cloud` in our own cache, each with the entity tag it had; while the tag is the same they aren't fetched again.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::Progress;
use super::address::encode;
use super::dataset::{is_data, walk};
use super::error::HubError;
use super::files::{self, Lock};
use super::http::{Client, Fetch};
use super::partial::Partial;
use super::settings::{CloudSettings, HubSettings, Secret};

/// Seconds for which a signed address is good.
const EXPIRES: u64 = 6 * 60 * 60;
/// Most pages of a listing, a thousand names each.
const PAGES: usize = 1000;

/// A file in a store.
#[derive(Debug, PartialEq, Eq)]
struct Object {
    key: String,
    size: u64,
    tag: String,
}

/// A page of a listing, and where the next one begins.
type Page = (Vec<Object>, Option<String>);

/// The files at `url`, downloaded where the cache doesn't hold them as they are.
///
/// # Errors
/// As [`super::resolve`]; or an address without data files.
pub fn resolve_cloud(url: &str, settings: &HubSettings, progress: &dyn Progress) -> Result<Vec<PathBuf>, HubError> {
    let place = Place::parse(url)?;
    let root = settings.own_cache.join("cloud").join(place.store.name()).join(place.bucket);
    if settings.offline {
        let here: Vec<String> = walk(&root).into_iter().filter(|key| is_data(key) && place.holds(key)).collect();
        let offline = || HubError::Offline { id: url.to_owned(), revision: "latest".to_owned(), cache: root.clone() };
        return if here.is_empty() { Err(offline()) } else { Ok(here.iter().map(|key| root.join(key)).collect()) };
    }
    let cloud = Cloud::new(&place, settings)?;
    let objects = cloud.list().map_err(|error| cloud.explain(error, url))?;
    let wanted: Vec<&Object> =
        objects.iter().filter(|object| is_data(&object.key) && place.holds(&object.key)).collect();
    if wanted.is_empty() {
        let found = objects.iter().take(3).map(|object| object.key.as_str()).collect::<Vec<_>>().join(", ");
        return Err(HubError::NothingToLoad {
            id: url.to_owned(),
            wanted: "data file".to_owned(),
            found: if found.is_empty() { "nothing at all".to_owned() } else { found },
            cure: "name a file, or a folder of files, of type json, jsonl, csv, parquet, arrow or txt".to_owned(),
        });
    }
    let missing: Vec<&Object> = wanted.iter().copied().filter(|object| !is_here(&root, object)).collect();
    if !missing.is_empty() {
        progress.begin(url, Some(missing.iter().map(|object| object.size).sum()));
        let result = missing.iter().try_for_each(|object| cloud.fetch(object, &root, progress));
        progress.end();
        result.map_err(|error| cloud.explain(error, url))?;
    }
    Ok(wanted.iter().map(|object| root.join(&object.key)).collect())
}

/// Where a file's entity tag is kept.
fn tag_path(root: &Path, key: &str) -> PathBuf {
    files::beside(&root.join(key), "etag")
}

fn is_here(root: &Path, object: &Object) -> bool {
    let path = root.join(&object.key);
    path.metadata().is_ok_and(|file| file.len() == object.size)
        && std::fs::read_to_string(tag_path(root, &object.key)).is_ok_and(|tag| tag == object.tag)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Store {
    S3,
    Google,
}

impl Store {
    fn name(self) -> &'static str {
        match self {
            Store::S3 => "s3",
            Store::Google => "gs",
        }
    }
}

/// An address, taken apart.
#[derive(Debug, PartialEq, Eq)]
struct Place<'a> {
    store: Store,
    bucket: &'a str,
    /// Of a file, or of a folder without the slash at its end.
    key: &'a str,
}

impl<'a> Place<'a> {
    fn parse(url: &'a str) -> Result<Place<'a>, HubError> {
        let bad = || HubError::Setting {
            setting: format!("address `{url}`"),
            problem: "no place in a cloud store; it reads s3://bucket/file or gs://bucket/folder".to_owned(),
        };
        let (scheme, rest) = url.split_once("://").ok_or_else(bad)?;
        let store = match scheme {
            "s3" => Store::S3,
            "gs" | "gcs" => Store::Google,
            _ => return Err(bad()),
        };
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        let key = key.trim_end_matches('/');
        if bucket.len() < 3 && !bucket.is_empty() {
            return Err(HubError::Setting {
                setting: format!("address `{url}`"),
                problem: format!("in bucket `{bucket}`, which no store has: names of buckets have 3 letters or more"),
            });
        }
        let named = !bucket.is_empty()
            && bucket.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
            && !bucket.contains("..");
        let sound = named && (key.is_empty() || files::inside(key).is_some());
        if sound { Ok(Place { store, bucket, key }) } else { Err(bad()) }
    }

    /// Whether a file is this one, or lies below this folder; with a name that stays in its folder.
    fn holds(&self, key: &str) -> bool {
        let below = key.strip_prefix(self.key).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        (self.key.is_empty() || below) && files::inside(key).is_some()
    }
}

struct Cloud<'a> {
    place: &'a Place<'a>,
    settings: &'a CloudSettings,
    endpoint: String,
    client: Client,
    locks: PathBuf,
}

impl<'a> Cloud<'a> {
    fn new(place: &'a Place<'a>, settings: &'a HubSettings) -> Result<Cloud<'a>, HubError> {
        let cloud = &settings.cloud;
        let (endpoint, token) = match place.store {
            Store::S3 => {
                let usual = || format!("https://s3.{}.amazonaws.com", cloud.region);
                (cloud.s3_endpoint.clone().unwrap_or_else(usual), None)
            }
            Store::Google => {
                let usual = || "https://storage.googleapis.com".to_owned();
                (cloud.google_endpoint.clone().unwrap_or_else(usual), cloud.google_token.clone())
            }
        };
        let client = Client::new(&endpoint, token, &settings.network)?;
        Ok(Cloud { place, settings: cloud, endpoint, client, locks: settings.own_cache.join("cloud").join(".locks") })
    }

    fn list(&self) -> Result<Vec<Object>, HubError> {
        let (mut all, mut next) = (Vec::new(), None);
        for _ in 0..PAGES {
            let (objects, more) = match self.place.store {
                Store::S3 => self.page_of_s3(next.as_deref())?,
                Store::Google => self.page_of_google(next.as_deref())?,
            };
            all.extend(objects);
            next = more;
            if next.is_none() {
                break;
            }
        }
        Ok(all)
    }

    fn page_of_s3(&self, next: Option<&str>) -> Result<Page, HubError> {
        let mut query = vec![("list-type", "2"), ("prefix", self.place.key)];
        query.extend(next.map(|next| ("continuation-token", next)));
        let path = format!("/{}", self.place.bucket);
        let text = self.client.text(&self.address_of_s3(&path, &query))?;
        s3_page(&text).ok_or_else(|| HubError::bad_reply(&format!("{}{path}", self.endpoint), "no listing".to_owned()))
    }

    fn page_of_google(&self, next: Option<&str>) -> Result<Page, HubError> {
        let Place { bucket, key, .. } = self.place;
        let mut url = format!(
            "{}/storage/v1/b/{bucket}/o?prefix={}&fields=items(name,size,etag),nextPageToken",
            self.endpoint,
            encode(key, false)
        );
        next.iter().for_each(|next| url.push_str(&format!("&pageToken={}", encode(next, false))));
        let answer = self.client.json(&url)?;
        let object = |item: &Value| {
            let text = |key: &str| item.get(key).and_then(Value::as_str);
            Some(Object {
                key: text("name")?.to_owned(),
                size: text("size")?.parse().ok()?,
                tag: text("etag")?.to_owned(),
            })
        };
        let items = answer.get("items").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let objects: Option<Vec<Object>> = items.iter().map(object).collect();
        let objects =
            objects.ok_or_else(|| HubError::bad_reply(&url, "a file without name, size or etag".to_owned()))?;
        Ok((objects, answer.get("nextPageToken").and_then(Value::as_str).map(str::to_owned)))
    }

    fn fetch(&self, object: &Object, root: &Path, progress: &dyn Progress) -> Result<(), HubError> {
        let path = root.join(&object.key);
        let name = format!("{}-{}-{}.lock", self.place.store.name(), self.place.bucket, object.key.replace('/', "--"));
        let lock = Lock::wait(&self.locks.join(name), progress)?;
        if is_here(root, object) {
            return Ok(());
        }
        files::make_parent(&path)?;
        let url = match self.place.store {
            Store::S3 => self.address_of_s3(&format!("/{}/{}", self.place.bucket, encode(&object.key, true)), &[]),
            Store::Google => {
                let Place { bucket, .. } = self.place;
                format!("{}/storage/v1/b/{bucket}/o/{}?alt=media", self.endpoint, encode(&object.key, false))
            }
        };
        let mut partial = Partial::open(&lock.partial(&path))?;
        self.client.download(&Fetch { url: &url, size: object.size, sha256: None }, &mut partial, progress)?;
        partial.publish(&path)?;
        files::write_whole(&tag_path(root, &object.key), object.tag.as_bytes())
    }

    /// An address of S3, signed if there are credentials. `path` is encoded already.
    fn address_of_s3(&self, path: &str, query: &[(&str, &str)]) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let host = self.endpoint.split("://").nth(1).unwrap_or_default();
        let query = match &self.settings.s3_key {
            None => canonical(query),
            Some((id, secret)) => {
                let session = self.settings.s3_session.as_ref();
                signed(
                    &Signer { id, secret, session, region: &self.settings.region, expires: EXPIRES },
                    now,
                    (host, path),
                    query,
                )
            }
        };
        let mark = if query.is_empty() { "" } else { "?" };
        format!("{}{path}{mark}{query}", self.endpoint)
    }

    /// Turns a bare HTTP status into what it means here; nothing signed is shown.
    fn explain(&self, error: HubError, url: &str) -> HubError {
        let (had_token, variable) = match self.place.store {
            Store::S3 => {
                (self.settings.s3_key.is_some(), "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_REGION)")
            }
            Store::Google => {
                (self.settings.google_token.is_some(), "CLOUDSDK_AUTH_ACCESS_TOKEN (`gcloud auth print-access-token`)")
            }
        };
        match error {
            HubError::Status { status: status @ (401 | 403), .. } => HubError::Refused {
                id: url.to_owned(),
                endpoint: self.endpoint.clone(),
                status,
                had_token,
                token_variable: variable,
            },
            HubError::Status { status: 404, .. } => {
                HubError::NoDataset { id: url.to_owned(), endpoint: self.endpoint.clone(), token_variable: variable }
            }
            other => other.without_query(),
        }
    }
}

/// A page of S3's `ListObjectsV2`: its XML is flat, and only texts of known elements are taken.
fn s3_page(xml: &str) -> Option<Page> {
    fn element<'x>(xml: &'x str, name: &str) -> Option<&'x str> {
        let (_, after) = xml.split_once(&format!("<{name}>"))?;
        Some(after.split_once(&format!("</{name}>"))?.0)
    }
    let text = |xml: &str, name: &str| element(xml, name).map(unescape);
    if !xml.contains("<ListBucketResult") {
        return None;
    }
    let contents = xml.split("<Contents>").skip(1);
    let object = |xml: &str| {
        Some(Object { key: text(xml, "Key")?, size: text(xml, "Size")?.parse().ok()?, tag: text(xml, "ETag")? })
    };
    let objects = contents.map(object).collect::<Option<Vec<Object>>>()?;
    Some((objects, text(xml, "NextContinuationToken")))
}

fn unescape(text: &str) -> String {
    let entities = [("&quot;", "\""), ("&apos;", "'"), ("&lt;", "<"), ("&gt;", ">"), ("&#34;", "\""), ("&amp;", "&")];
    entities.iter().fold(text.to_owned(), |text, (entity, letter)| text.replace(entity, letter))
}

/// Who signs, where and for how long.
struct Signer<'a> {
    id: &'a str,
    secret: &'a Secret,
    session: Option<&'a Secret>,
    region: &'a str,
    /// Seconds.
    expires: u64,
}

/// The query of a signed address.
fn signed(signer: &Signer<'_>, unix_seconds: u64, (host, path): (&str, &str), query: &[(&str, &str)]) -> String {
    let (date, time) = timestamp(unix_seconds);
    let scope = format!("{date}/{}/s3/aws4_request", signer.region);
    let (credential, expires) = (format!("{}/{scope}", signer.id), signer.expires.to_string());
    let mut all = query.to_vec();
    all.extend([
        ("X-Amz-Algorithm", "AWS4-HMAC-SHA256"),
        ("X-Amz-Credential", credential.as_str()),
        ("X-Amz-Date", time.as_str()),
        ("X-Amz-Expires", expires.as_str()),
        ("X-Amz-SignedHeaders", "host"),
    ]);
    all.extend(signer.session.map(|session| ("X-Amz-Security-Token", session.expose())));
    let query = canonical(&all);
    let request = format!("GET\n{path}\n{query}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD");
    let to_sign = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", hex(&Sha256::digest(request)));
    let secret = format!("AWS4{}", signer.secret.expose());
    let parts = [date.as_str(), signer.region, "s3", "aws4_request"];
    let key = parts.iter().fold(secret.into_bytes(), |key, part| hmac(&key, part.as_bytes()).to_vec());
    format!("{query}&X-Amz-Signature={}", hex(&hmac(&key, to_sign.as_bytes())))
}

/// A query in the order and spelling that is signed.
fn canonical(query: &[(&str, &str)]) -> String {
    let mut pairs: Vec<String> =
        query.iter().map(|(name, value)| format!("{}={}", encode(name, false), encode(value, false))).collect();
    pairs.sort();
    pairs.join("&")
}

/// HMAC-SHA256, RFC 2104.
fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    const BLOCK: usize = 64;
    let mut block = [0; BLOCK];
    match key.len() > BLOCK {
        true => block[..32].copy_from_slice(&Sha256::digest(key)),
        false => block[..key.len()].copy_from_slice(key),
    }
    let padded = |pad: u8| block.map(|byte| byte ^ pad);
    let inner = Sha256::new_with_prefix(padded(0x36)).chain_update(message).finalize();
    Sha256::new_with_prefix(padded(0x5c)).chain_update(inner).finalize().into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Date and time as signatures write them: `20130524`, `20130524T000000Z`. By the days of eras of 400 years,
/// <https://howardhinnant.github.io/date_algorithms.html>.
fn timestamp(unix_seconds: u64) -> (String, String) {
    let (days, seconds) = (unix_seconds / 86_400 + 719_468, unix_seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let (day, month) =
        (day_of_year - (153 * shifted + 2) / 5 + 1, if shifted < 10 { shifted + 3 } else { shifted - 9 });
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let date = format!("{year:04}{month:02}{day:02}");
    let time = format!("{date}T{:02}{:02}{:02}Z", seconds / 3600, seconds / 60 % 60, seconds % 60);
    (date, time)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of Amazon's own documentation.
    #[test]
    fn addresses_are_signed_as_amazon_signs_them() {
        let secret = Secret::new("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY");
        let signer =
            Signer { id: "AKIAIOSFODNN7EXAMPLE", secret: &secret, session: None, region: "us-east-1", expires: 86_400 };
        let query = signed(&signer, 1_369_353_600, ("examplebucket.s3.amazonaws.com", "/test.txt"), &[]);
        assert_eq!(
            query.rsplit_once('=').unwrap().1,
            "aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
        );
    }

    #[test]
    fn times() {
        assert_eq!(timestamp(1_369_353_600).1, "20130524T000000Z");
        assert_eq!(timestamp(951_827_696).1, "20000229T123456Z");
        assert_eq!(timestamp(1_795_392_000 - 1).1, "20261122T235959Z");
    }

    #[test]
    fn addresses() {
        let key = |url| Place::parse(url).map(|place| (place.store, place.bucket, place.key)).ok();
        assert_eq!(key("s3://bucket/a/b.json"), Some((Store::S3, "bucket", "a/b.json")));
        assert_eq!(key("gcs://bucket/a/"), Some((Store::Google, "bucket", "a")));
        assert_eq!(key("gs://bucket"), Some((Store::Google, "bucket", "")));
        for bad in ["s3://", "s3:///a", "s3://b/..", "http://bucket/a", "s3://bucket/a//b", "s3://a..b/c", "bucket/a"] {
            assert_eq!(key(bad), None, "{bad}");
        }
        let short = Place::parse("s3://ab/x.jsonl").unwrap_err().to_string();
        assert!(short.contains("bucket `ab`") && short.contains("3 letters"), "{short}");
        let place = Place::parse("s3://bucket/a").unwrap();
        assert!(place.holds("a") && place.holds("a/b") && !place.holds("ab") && !place.holds("a/../b"));
    }

    #[test]
    fn listings() {
        let xml = "<?xml?><ListBucketResult xmlns=\"x\"><Name>b</Name><Contents><Key>a&amp;b.json</Key><ETag>&quot;t&quot;</ETag>\
                   <Size>3</Size></Contents><NextContinuationToken>n</NextContinuationToken></ListBucketResult>";
        let object = Object { key: "a&b.json".into(), size: 3, tag: "\"t\"".into() };
        assert_eq!(s3_page(xml), Some((vec![object], Some("n".into()))));
        assert_eq!(s3_page("<ListBucketResult></ListBucketResult>"), Some((vec![], None)));
        for bad in ["", "<Error/>", "<ListBucketResult><Contents><Key>a</Key><Size>-1</Size></Contents>"] {
            assert_eq!(s3_page(bad), None, "{bad}");
        }
    }
}
