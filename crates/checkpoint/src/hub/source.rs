//! How a model's name is read: path, short name or hub id.

use std::path::{Path, PathBuf};

use super::catalogue::{self, CatalogueEntry};
use super::error::HubError;
use super::settings::HubSettings;

/// What a name means.
#[derive(Debug)]
pub(super) enum Source<'a> {
    /// A folder or a GGUF file that exists.
    Path(PathBuf),
    /// A short name.
    Catalogue(&'static CatalogueEntry),
    /// A repository, and the one file in it that is meant.
    Hub { id: &'a str, file: Option<&'a str> },
}

/// Reads `given`; what exists comes first.
pub(super) fn parse<'a>(given: &'a str, settings: &HubSettings) -> Result<Source<'a>, HubError> {
    let path = settings.expand(given);
    if path.is_dir() || (path.is_file() && is_gguf(&path)) {
        return Ok(Source::Path(path));
    }
    if path.is_file() {
        return Err(HubError::NotAModel { path });
    }
    if let Some(entry) = catalogue::find(given) {
        return Ok(Source::Catalogue(entry));
    }
    hub_id(given).ok_or_else(|| HubError::NoSuchPath {
        given: given.to_owned(),
        looked: std::path::absolute(&path).unwrap_or(path),
        catalogue: catalogue::names(),
    })
}

/// Whether the name says GGUF.
pub(super) fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf"))
}

/// `name`, `organisation/name` or `organisation/name/file.gguf`, by the hub's own rules for names.
fn hub_id(given: &str) -> Option<Source<'_>> {
    let (id, file) = match given.match_indices('/').nth(1) {
        Some((slash, _)) => (&given[..slash], Some(&given[slash + 1..])),
        None => (given, None),
    };
    if file.is_some_and(|file| !is_gguf(Path::new(file)) || super::files::inside(file).is_none()) {
        return None;
    }
    let whole = file.is_some() || !is_gguf(Path::new(id));
    (whole && id.split('/').all(is_name)).then_some(Source::Hub { id, file })
}

/// Whether `given` is `name` or `organisation/name`.
pub(super) fn is_id(given: &str) -> bool {
    given.split('/').count() <= 2 && given.split('/').all(is_name)
}

fn is_name(part: &str) -> bool {
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
    (1..=96).contains(&part.len())
        && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && ends(part.chars().next())
        && ends(part.chars().last())
        && !part.contains("--")
        && !part.contains("..")
        && !part.ends_with(".git")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(given: &str) -> String {
        let settings = HubSettings::from_vars(|_| None, PathBuf::from("/nowhere"));
        match parse(given, &settings) {
            Ok(Source::Path(path)) => format!("path {}", path.display()),
            Ok(Source::Catalogue(entry)) => format!("catalogue {}", entry.name),
            Ok(Source::Hub { id, file: None }) => format!("hub {id}"),
            Ok(Source::Hub { id, file: Some(file) }) => format!("hub {id} file {file}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn names_are_read_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().to_str().unwrap();
        assert_eq!(read(folder), format!("path {folder}"));
        let gguf = format!("{folder}/m.GGUF");
        std::fs::write(&gguf, "").unwrap();
        assert_eq!(read(&gguf), format!("path {gguf}"));
        let weights = format!("{folder}/m.safetensors");
        std::fs::write(&weights, "").unwrap();
        assert!(read(&weights).contains("give the folder"), "{}", read(&weights));
        assert_eq!(read("SmolLM2-135M-Instruct"), "catalogue smollm2-135m-instruct");
        assert_eq!(read("gpt2"), "hub gpt2");
        assert_eq!(read("Qwen/Qwen2.5-0.5B"), "hub Qwen/Qwen2.5-0.5B");
        assert_eq!(read("o/m-GGUF/q4/m.Q4_K.gguf"), "hub o/m-GGUF file q4/m.Q4_K.gguf");
    }

    #[test]
    fn what_can_only_be_a_path_names_both_readings() {
        for given in [
            "./missing",
            "/missing/model",
            "~/missing",
            "missing.gguf",
            "a/b/c",
            "o/m/../x.gguf",
            "a//b",
            "",
            "o/-m",
            "a b",
        ] {
            let error = read(given);
            assert!(error.contains("no such file or folder") && error.contains("hub id"), "{given}: {error}");
        }
        assert!(read("~/missing").contains("/nowhere/missing"));
    }
}
