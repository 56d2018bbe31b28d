//! The files of a repository at one commit, and which of them a run needs.
//!
//! A listing is kept as `trees/<commit>.json`, in the form that `huggingface_hub` 2 uses, so that either side knows
//! later whether a snapshot is whole. That is what makes a second run possible without any request.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Want;
use super::error::HubError;
use super::files;

const FORMAT: u32 = 1;
const INDEX: &str = "model.safetensors.index.json";
/// A listing or an index above this is no listing.
const MAX_BYTES: u64 = 64 << 20;

/// One file of a repository.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// Bytes.
    pub(super) size: u64,
    /// Its git object, which is also the entity tag of a small file.
    pub(super) blob_id: String,
    /// Digest of a large file, which is also its entity tag.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) lfs_sha256: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    /// The same as `size`, where there is a digest.
    pub(super) lfs_size: Option<u64>,
}

impl Entry {
    /// A file whose digest is known.
    pub(super) fn hashed(size: u64, sha256: String) -> Entry {
        Entry { size, blob_id: String::new(), lfs_size: Some(size), lfs_sha256: Some(sha256) }
    }
}

/// The files of a repository, by path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Listing {
    format_version: u32,
    pub(super) files: BTreeMap<String, Entry>,
}

/// What a run wants of a repository.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pick<'a> {
    pub(super) want: Want,
    /// The one file of the repository that was named (`organisation/name/file.gguf`).
    pub(super) file: Option<&'a str>,
}

impl Listing {
    /// Checks names: one that leads out of its folder makes the whole listing suspect.
    pub(super) fn new(url: &str, files: BTreeMap<String, Entry>) -> Result<Listing, HubError> {
        match files.keys().find(|name| files::inside(name).is_none()) {
            Some(name) => Err(HubError::bad_reply(url, format!("it lists a file `{name}`, outside of the repository"))),
            None => Ok(Listing { format_version: FORMAT, files }),
        }
    }

    /// The listing kept at `path`; `None` if there is none, or none that this version understands.
    pub(super) fn read(path: &Path) -> Option<Listing> {
        let listing: Listing = serde_json::from_slice(&read_small(path)?).ok()?;
        let sound = listing.format_version == FORMAT && listing.files.keys().all(|name| files::inside(name).is_some());
        sound.then_some(listing)
    }

    /// Keeps the listing at `path`.
    pub(super) fn write(&self, path: &Path) -> Result<(), HubError> {
        let text = serde_json::to_vec(self).expect("strings and numbers are always JSON");
        files::write_whole(path, &text)
    }

    /// The small files: configuration, tokenizer, templates, the index of the weights. For a repository of GGUF files
    /// nothing, as all that is inside.
    pub(super) fn small(&self, pick: Pick<'_>) -> Vec<&str> {
        if self.gguf_only() || pick.file.is_some() {
            return Vec::new();
        }
        let wanted = |name: &&str| is_small(name) || (pick.want == Want::Everything && *name == INDEX);
        self.names().filter(wanted).collect()
    }

    /// The large files. `folder` holds the small ones by now.
    pub(super) fn weights(&self, id: &str, pick: Pick<'_>, folder: &Path) -> Result<Vec<&str>, HubError> {
        if let Some(file) = pick.file {
            return self
                .names()
                .find(|name| *name == file)
                .map(|name| vec![name])
                .ok_or_else(|| self.no_such_file(id, file));
        }
        if self.gguf_only() {
            return self.only_gguf(id).map(|name| vec![name]);
        }
        if pick.want == Want::TokenizerOnly {
            return Ok(Vec::new());
        }
        let mut weights: Vec<&str> = self.names().filter(|name| *name == "adapter_model.safetensors").collect();
        if self.files.contains_key("model.safetensors") {
            weights.push("model.safetensors");
        } else if self.files.contains_key(INDEX) {
            weights.extend(self.shards(id, &folder.join(INDEX))?);
        }
        if weights.is_empty() { Err(self.no_weights(id)) } else { Ok(weights) }
    }

    /// Whether everything that `pick` wants lies in `folder`.
    pub(super) fn is_complete(&self, id: &str, pick: Pick<'_>, folder: &Path) -> bool {
        let here = |name: &&str| folder.join(name).is_file();
        self.small(pick).iter().all(here) && self.weights(id, pick, folder).is_ok_and(|names| names.iter().all(here))
    }

    /// The GGUF file that stands for the model, if it is one.
    pub(super) fn gguf(&self, id: &str, pick: Pick<'_>) -> Option<&str> {
        match pick.file {
            Some(file) => self.names().find(|name| *name == file),
            None => self.gguf_only().then(|| self.only_gguf(id).ok()).flatten(),
        }
    }

    /// All names, in order.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    fn ending(&self, end: &str) -> Vec<&str> {
        self.names().filter(|name| name.to_ascii_lowercase().ends_with(end)).collect()
    }

    fn gguf_only(&self) -> bool {
        self.ending(".safetensors").is_empty() && !self.ending(".gguf").is_empty()
    }

    fn only_gguf(&self, id: &str) -> Result<&str, HubError> {
        let found = self.ending(".gguf");
        match found[..] {
            [one] => Ok(one),
            _ => Err(HubError::NothingToLoad {
                id: id.to_owned(),
                wanted: "single GGUF file".to_owned(),
                found: found.join(", "),
                cure: format!("name one of them: {id}/{}", found.first().copied().unwrap_or("file.gguf")),
            }),
        }
    }

    fn no_such_file(&self, id: &str, file: &str) -> HubError {
        HubError::NothingToLoad {
            id: id.to_owned(),
            wanted: format!("`{file}`"),
            found: some(&self.ending(".gguf")),
            cure: "name one of its GGUF files".to_owned(),
        }
    }

    fn no_weights(&self, id: &str) -> HubError {
        let pickled = [self.ending(".bin"), self.ending(".pth"), self.ending(".pt")].concat();
        HubError::NothingToLoad {
            id: id.to_owned(),
            wanted: "model.safetensors or model.safetensors.index.json".to_owned(),
            found: some(&pickled),
            cure: "pickled weights are not read, as they run code: look for a revision or a copy of the model in \
                   safetensors form (often the branch refs/pr/1)"
                .to_owned(),
        }
    }

    /// The shards that the index names, each of which must be listed.
    fn shards(&self, id: &str, index: &Path) -> Result<Vec<&str>, HubError> {
        let bad = |what: String| HubError::bad_reply(&format!("{id}/{INDEX}"), what);
        let names = shards_of(index).ok_or_else(|| bad("it has no `weight_map` of file names".to_owned()))?;
        let listed = |name: &String| match self.files.get_key_value(name) {
            Some((known, _)) => Ok(known.as_str()),
            None => Err(bad(format!("it names `{name}`, which the repository lacks"))),
        };
        names.iter().map(listed).collect()
    }
}

/// Whether a folder without a listing, as older Python libraries leave it, looks like what `pick` wants.
pub(super) fn looks_complete(pick: Pick<'_>, folder: &Path) -> bool {
    let has = |name: &str| folder.join(name).is_file();
    if let Some(file) = pick.file {
        return has(file);
    }
    let tokenizer = ["tokenizer.json", "tokenizer.model", "vocab.json"].iter().any(|name| has(name));
    let sharded = || shards_of(&folder.join(INDEX)).is_some_and(|names| names.iter().all(|name| has(name)));
    let model =
        has("config.json") && tokenizer && (pick.want == Want::TokenizerOnly || has("model.safetensors") || sharded());
    model || (has("adapter_config.json") && has("adapter_model.safetensors"))
}

/// The file names in the index at `path`, each once; `None` if there is no sound index.
fn shards_of(path: &Path) -> Option<Vec<String>> {
    let index: Value = serde_json::from_slice(&read_small(path)?).ok()?;
    let map = index.get("weight_map")?.as_object()?;
    let mut names = map.values().map(|name| Some(name.as_str()?.to_owned())).collect::<Option<Vec<_>>>()?;
    names.sort_unstable();
    names.dedup();
    (!names.is_empty() && names.iter().all(|name| files::inside(name).is_some())).then_some(names)
}

fn is_small(name: &str) -> bool {
    const EXACT: [&str; 9] = [
        "config.json",
        "generation_config.json",
        "adapter_config.json",
        "vocab.json",
        "merges.txt",
        "special_tokens_map.json",
        "added_tokens.json",
        "spiece.model",
        "sentencepiece.bpe.model",
    ];
    let templates = || {
        name.strip_prefix("additional_chat_templates/")
            .is_some_and(|file| !file.contains('/') && file.ends_with(".jinja"))
    };
    EXACT.contains(&name)
        || templates()
        || (!name.contains('/')
            && (name.starts_with("tokenizer") || name.starts_with("chat_template") || name.ends_with(".jinja")))
}

/// The first few names, for an error.
fn some(names: &[&str]) -> String {
    let shown = names[..names.len().min(3)].join(", ");
    match names.len() {
        0 => "none of another kind either".to_owned(),
        1..=3 => shown,
        more => format!("{shown} and {} more", more - 3),
    }
}

fn read_small(path: &Path) -> Option<Vec<u8>> {
    let small = std::fs::metadata(path).ok()?.len() <= MAX_BYTES;
    small.then(|| std::fs::read(path).ok()).flatten()
}

/// Where the model lies once its files do: the GGUF file or the folder.
pub(super) fn place(listing: Option<&Listing>, id: &str, pick: Pick<'_>, folder: &Path) -> PathBuf {
    let gguf = match listing {
        Some(listing) => listing.gguf(id, pick),
        None => pick.file,
    };
    gguf.map_or_else(|| folder.to_path_buf(), |file| folder.join(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Pick<'_> = Pick { want: Want::Everything, file: None };
    const TOKENIZER: Pick<'_> = Pick { want: Want::TokenizerOnly, file: None };

    fn listing(names: &[&str]) -> Listing {
        let entry = |name: &&str| ((*name).to_owned(), Entry { size: 1, blob_id: "b".into(), ..Entry::default() });
        Listing::new("u", names.iter().map(entry).collect()).unwrap()
    }

    #[test]
    fn only_what_a_run_needs() {
        let l = listing(&[
            "README.md",
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "chat_template.jinja",
            "x/tokenizer.json",
            "model.safetensors",
            "pytorch_model.bin",
            "model.fp16.safetensors",
            "onnx/model.onnx",
            "tokenizer.model",
            "additional_chat_templates/tool_use.jinja",
        ]);
        let small = [
            "additional_chat_templates/tool_use.jinja",
            "chat_template.jinja",
            "config.json",
            "tokenizer.json",
            "tokenizer.model",
            "tokenizer_config.json",
        ];
        assert_eq!(l.small(ALL), small);
        assert_eq!(l.weights("m", ALL, Path::new("/none")).unwrap(), ["model.safetensors"]);
        assert_eq!(l.small(TOKENIZER), small);
        assert!(l.weights("m", TOKENIZER, Path::new("/none")).unwrap().is_empty());
    }

    #[test]
    fn shards_are_those_of_the_index() {
        let dir = tempfile::tempdir().unwrap();
        let l = listing(&["config.json", INDEX, "a.safetensors", "b.safetensors", "consolidated.safetensors"]);
        let index = |text: &str| std::fs::write(dir.path().join(INDEX), text).unwrap();
        index(r#"{"weight_map": {"x": "b.safetensors", "y": "a.safetensors", "z": "b.safetensors"}}"#);
        assert_eq!(l.weights("m", ALL, dir.path()).unwrap(), ["a.safetensors", "b.safetensors"]);
        for hostile in [
            r#"{"weight_map": {"x": "../../etc/passwd"}}"#,
            r#"{"weight_map": {"x": "c.safetensors"}}"#,
            r#"{"weight_map": {"x": 3}}"#,
            r#"{"weight_map": {}}"#,
            "{",
        ] {
            index(hostile);
            assert!(matches!(l.weights("m", ALL, dir.path()), Err(HubError::BadReply { .. })), "{hostile}");
        }
    }

    #[test]
    fn pickles_and_heaps_of_gguf_files_are_refused_by_name() {
        let error = listing(&["config.json", "pytorch_model.bin"]).weights("m", ALL, Path::new("/")).unwrap_err();
        assert!(error.to_string().contains("pytorch_model.bin"), "{error}");
        let two = listing(&["q4.gguf", "q8.gguf"]);
        let error = two.weights("o/m", ALL, Path::new("/")).unwrap_err();
        assert!(error.to_string().contains("o/m/q4.gguf"), "{error}");
        let named = Pick { want: Want::Everything, file: Some("q8.gguf") };
        assert_eq!(two.weights("o/m", named, Path::new("/")).unwrap(), ["q8.gguf"]);
        let one = listing(&["README.md", "q4.gguf"]);
        assert_eq!(place(Some(&one), "o/m", TOKENIZER, Path::new("/s")), Path::new("/s/q4.gguf"));
    }

    #[test]
    fn a_listing_that_leads_outside_is_refused() {
        for name in ["../../x", "/etc/passwd", "a/../b"] {
            let files = BTreeMap::from([(name.to_owned(), Entry::default())]);
            assert!(Listing::new("u", files).is_err(), "{name}");
        }
    }

    #[test]
    fn listings_are_kept_in_the_form_of_the_python_library() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trees/c.json");
        let mut l = listing(&["config.json"]);
        l.files.insert("m.safetensors".into(), Entry { blob_id: "g".into(), ..Entry::hashed(7, "s".into()) });
        l.write(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(
            text,
            r#"{"format_version":1,"files":{"config.json":{"size":1,"blob_id":"b"},"m.safetensors":{"size":7,"blob_id":"g","lfs_sha256":"s","lfs_size":7}}}"#
        );
        assert_eq!(Listing::read(&path), Some(l));
        std::fs::write(&path, r#"{"format_version":2,"files":{}}"#).unwrap();
        assert_eq!(Listing::read(&path), None);
    }
}
