//! Which files a `file_name` means: a file, a folder, or a path with patterns in its parts.

use std::fs;
use std::path::{Path, PathBuf};

use super::pack::Packing;
use super::{ENDINGS, FileType};
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
        match fitting(path)? {
            Some(files) => files,
            None => return Err(missing()),
        }
    };
    one_type(dataset, path, files)
}

/// The type of `files`, found at `path`, all of one type.
///
/// # Errors
/// As [`data_files`].
pub(crate) fn one_type(dataset: &str, path: &Path, files: Vec<PathBuf>) -> Result<(FileType, Vec<PathBuf>), DataError> {
    let mut typed = None;
    for file in &files {
        let file_type = file_type(dataset, file).map_err(|error| among(error, path, file))?;
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

/// A file of no known type, told with a cure if it lies among others.
fn among(error: DataError, path: &Path, file: &Path) -> DataError {
    match error {
        DataError::FileType { dataset, path: found, hint: "" } if path != file => DataError::FileType {
            dataset,
            path: found,
            hint: "; take it away, or name the data files by a pattern such as `folder/*.jsonl`",
        },
        other => other,
    }
}

/// The files that fit a path with patterns in its parts (`**`: any number of folders); nothing if it has none, or if the
/// folder before the first of them isn't there.
fn fitting(path: &Path) -> Result<Option<Vec<PathBuf>>, DataError> {
    let parts: Vec<&str> = path.iter().map(|part| part.to_str().unwrap_or_default()).collect();
    let Some(first) = parts.iter().position(|part| part.contains(['*', '?'])) else { return Ok(None) };
    let root: PathBuf = path.iter().take(first).collect();
    let root = if first == 0 { PathBuf::from(".") } else { root };
    if !root.is_dir() {
        return Ok(None);
    }
    let mut files = Vec::new();
    walk(&root, &parts[first..], &mut files)?;
    files.sort();
    files.dedup();
    Ok(Some(files))
}

fn walk(folder: &Path, parts: &[&str], files: &mut Vec<PathBuf>) -> Result<(), DataError> {
    let Some((&part, rest)) = parts.split_first() else { return Ok(()) };
    if part == "**" {
        walk(folder, rest, files)?;
    }
    for path in list(folder, |name| part == "**" || matches(part.as_bytes(), name.as_bytes()))? {
        // A link to a folder could lead around in circles.
        let is_folder = path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
        match rest {
            _ if part == "**" && is_folder => walk(&path, parts, files)?,
            [] if path.is_file() => files.push(path),
            _ if part != "**" && path.is_dir() => walk(&path, rest, files)?,
            _ => {}
        }
    }
    Ok(())
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
    let inner = if packed(path).is_some() { path.file_stem().map_or(path, Path::new) } else { path };
    let ending = inner.extension().map(|ending| ending.to_string_lossy().to_lowercase());
    let is = |endings: &[&str]| ending.as_deref().is_some_and(|ending| endings.contains(&ending));
    if let Some((_, file_type, _)) = ENDINGS.iter().find(|(endings, ..)| is(endings)) {
        return Ok(*file_type);
    }
    let hint = match ending.as_deref() {
        Some("xz" | "bz2" | "zip") => "; decompress it first",
        _ if path.is_dir() => {
            "; a folder inside a data folder isn't read; a pattern such as `folder/**/*.json` goes into folders"
        }
        _ => "",
    };
    Err(DataError::FileType { dataset: dataset.to_owned(), path: path.to_path_buf(), hint })
}

/// How the name says that the file is packed.
pub(super) fn packed(path: &Path) -> Option<Packing> {
    let ending = path.extension()?.to_str()?.to_ascii_lowercase();
    match ending.as_str() {
        "gz" => Some(Packing::Gzip),
        "zst" => Some(Packing::Zstandard),
        _ => None,
    }
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
        assert_eq!(message("."), "dataset `d`: DIR/. holds no data file (json, jsonl, csv, parquet, arrow, txt)");
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
        write("d.xz");
        assert_eq!(
            message("d.xz"),
            "dataset `d`: DIR/d.xz is not a json, jsonl, csv, parquet, arrow or txt file; decompress it first"
        );
        fs::create_dir(dir.path().join("e")).unwrap();
        fs::create_dir(dir.path().join("e/f")).unwrap();
        assert_eq!(
            message("e"),
            "dataset `d`: DIR/e/f is not a json, jsonl, csv, parquet, arrow or txt file; a folder inside a data folder \
             isn't read; a pattern such as `folder/**/*.json` goes into folders"
        );
        fs::create_dir(dir.path().join("e/f/g")).unwrap();
        for name in ["e/f/h.json", "e/f/g/h.json", "e/f/g/i.json.zst"] {
            write(name);
        }
        let below = |path: &str| {
            let (_, files) = data_files("d", &dir.path().join(path)).unwrap();
            let below = |file: &PathBuf| file.strip_prefix(dir.path()).unwrap().display().to_string();
            files.iter().map(below).collect::<Vec<_>>()
        };
        assert_eq!(below("e/**/*.json"), ["e/f/g/h.json", "e/f/h.json"]);
        assert_eq!(below("e/*/g/*"), ["e/f/g/h.json", "e/f/g/i.json.zst"]);
        assert_eq!(below("**/h.json"), ["e/f/g/h.json", "e/f/h.json"]);
        assert_eq!(
            message("e/*/none*"),
            "dataset `d`: DIR/e/*/none* holds no data file (json, jsonl, csv, parquet, arrow, txt)"
        );
    }
}
