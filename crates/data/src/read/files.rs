//! Which files a `file_name` means: a file, a folder, or a pattern in the last part of its path.

use std::fs;
use std::path::{Path, PathBuf};

use super::FileType;
use crate::error::DataError;

/// The data files of `path` in the order of their names, all of one type.
///
/// # Errors
/// Nothing there, nothing usable there, or files of several types.
pub(crate) fn data_files(dataset: &str, path: &Path) -> Result<(FileType, Vec<PathBuf>), DataError> {
    let missing = || DataError::MissingFile { dataset: dataset.to_owned(), path: path.to_path_buf() };
    let files = if path.is_dir() {
        list(path, |_| true)?
    } else if path.exists() {
        vec![path.to_path_buf()]
    } else {
        let pattern = path.file_name().and_then(|name| name.to_str()).filter(|name| name.contains(['*', '?']));
        let (Some(pattern), Some(folder)) = (pattern, path.parent()) else { return Err(missing()) };
        if !folder.is_dir() {
            return Err(missing());
        }
        list(folder, |name| matches(pattern.as_bytes(), name.as_bytes()))?
    };
    let mut typed = None;
    for file in &files {
        let file_type = file_type(dataset, file)?;
        match &typed {
            None => typed = Some((file_type, file)),
            Some((first_type, first)) if kin(*first_type) != kin(file_type) => {
                return Err(DataError::MixedFiles {
                    dataset: dataset.to_owned(),
                    first: (*first).clone(),
                    second: file.clone(),
                });
            }
            Some(_) => {}
        }
    }
    match typed {
        None => Err(DataError::NoFiles { dataset: dataset.to_owned(), path: path.to_path_buf() }),
        Some((file_type, _)) => Ok((file_type, files)),
    }
}

/// JSON and JSON lines may stand side by side: which of them a file is, its content says.
fn kin(file_type: FileType) -> FileType {
    if file_type == FileType::JsonLines { FileType::Json } else { file_type }
}

fn list(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>, DataError> {
    let io = |error| DataError::io("list", folder, error);
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with('.') && wanted(&name) {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

/// The type that the ending of `path` says.
pub(crate) fn file_type(dataset: &str, path: &Path) -> Result<FileType, DataError> {
    let inner = if is_gzip(path) { path.file_stem().map_or(path, Path::new) } else { path };
    let ending = inner.extension().map(|ending| ending.to_string_lossy().to_lowercase());
    let hint = match ending.as_deref() {
        Some("json") => return Ok(FileType::Json),
        Some("jsonl") => return Ok(FileType::JsonLines),
        Some("csv") => return Ok(FileType::Csv),
        Some("parquet") if inner == path => return Ok(FileType::Parquet),
        Some("txt") => return Ok(FileType::Text),
        Some("arrow") => "; save it as parquet (`Dataset.to_parquet`)",
        Some("parquet") => "; decompress it first: pages inside are compressed already",
        Some("zst" | "xz" | "bz2" | "zip") => "; decompress it first",
        _ if path.is_dir() => "; a folder inside a data folder isn't read",
        _ => "",
    };
    Err(DataError::FileType { dataset: dataset.to_owned(), path: path.to_path_buf(), hint })
}

/// Whether the name says that the file is compressed with gzip.
pub(super) fn is_gzip(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gz"))
}

/// Whether `name` fits `pattern`, in which `*` stands for any bytes and `?` for one.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star = None;
    while n < name.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, n));
            p += 1;
        } else if p < pattern.len() && (pattern[p] == b'?' || pattern[p] == name[n]) {
            p += 1;
            n += 1;
        } else if let Some((at, from)) = star {
            star = Some((at, from + 1));
            p = at + 1;
            n = from + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, fits) in [
            ("*.json", "a.json", true),
            ("*.json", "a.jsonl", false),
            ("part-?-*.parquet", "part-3-of-9.parquet", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXcYb", false),
            ("?", "", false),
            ("**", "", true),
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), fits, "{pattern} {name}");
        }
    }

    #[test]
    fn files_folders_and_patterns() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str| fs::write(dir.path().join(name), "").unwrap();
        let names = |path: &str| {
            let (_, files) = data_files("d", &dir.path().join(path))?;
            let name = |file: &PathBuf| file.file_name().unwrap().to_str().unwrap().to_owned();
            Ok::<Vec<String>, DataError>(files.iter().map(name).collect())
        };
        let message = |path: &str| {
            let text = names(path).unwrap_err().to_string();
            text.replace(&dir.path().display().to_string(), "DIR")
        };
        assert_eq!(message("."), "dataset `d`: DIR/. holds no data file (json, jsonl, csv, parquet, txt)");
        write("b.json");
        write("a.jsonl");
        write(".hidden");
        assert_eq!(names(".").unwrap(), ["a.jsonl", "b.json"]);
        assert_eq!(names("b.json").unwrap(), ["b.json"]);
        assert_eq!(names("*.json").unwrap(), ["b.json"]);
        assert_eq!(message("c.json"), "dataset `d`: there is no DIR/c.json; `file_name` is relative to `dataset_dir`");
        assert_eq!(
            message("no/*.json"),
            "dataset `d`: there is no DIR/no/*.json; `file_name` is relative to `dataset_dir`"
        );
        write("c.csv");
        assert_eq!(
            message("."),
            "dataset `d`: DIR/./a.jsonl and DIR/./c.csv are not of one type; a folder must hold data files of one \
             type only"
        );
        write("d.arrow");
        assert_eq!(
            message("d.arrow"),
            "dataset `d`: DIR/d.arrow is not a json, jsonl, csv, parquet or txt file; save it as parquet \
             (`Dataset.to_parquet`)"
        );
        fs::create_dir(dir.path().join("e")).unwrap();
        fs::create_dir(dir.path().join("e/f")).unwrap();
        assert_eq!(
            message("e"),
            "dataset `d`: DIR/e/f is not a json, jsonl, csv, parquet or txt file; a folder inside a data folder \
             isn't read"
        );
    }
}
