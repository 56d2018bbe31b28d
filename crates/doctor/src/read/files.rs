//! The system's little files, read with a bound.

use std::fs::File;
use std::io::Read;
use std::path::Path;

/// `/proc/cpuinfo` of the largest machines is about half of this.
const MOST: u64 = 1 << 20;
/// Entries of a folder that are looked at.
const MOST_ENTRIES: usize = 4096;

/// A file's bytes, up to `most`.
pub(super) fn bytes(path: &Path, most: u64) -> Option<Vec<u8>> {
    // A pipe that lies here would be waited for.
    let is_file = path.metadata().is_ok_and(|found| found.is_file());
    let mut read = Vec::new();
    File::open(path).ok().filter(|_| is_file)?.take(most).read_to_end(&mut read).ok()?;
    Some(read)
}

/// A file's text.
pub(super) fn text(path: &Path) -> Option<String> {
    String::from_utf8(bytes(path, MOST)?).ok()
}

/// A file's first line, without what a terminal would obey; `None` if it is empty.
pub(super) fn line(path: &Path) -> Option<String> {
    let text = text(path)?;
    let first = shown(text.lines().next()?.trim());
    (!first.is_empty()).then_some(first)
}

/// A file that is a number.
pub(super) fn number<T: std::str::FromStr>(path: &Path) -> Option<T> {
    line(path)?.parse().ok()
}

/// Names in a folder, in order; none where there is no such folder.
pub(super) fn child_names(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.take(MOST_ENTRIES).map(|name| shown(&name)).collect();
    names.sort();
    names
}

/// Text of the system's on a page: printable, and not endless.
pub(super) fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}
