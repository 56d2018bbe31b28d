//! Keeps the folder of encoded rows from growing without end: what was used longest ago goes first.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Most bytes that files of encoded rows may take, the newest excepted: that one is needed.
pub(super) const LIMIT: u64 = 20 << 30;

/// Whether a file's name is one that the cache gives: the user may keep others in the same folder.
fn is_ours(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".rows"));
    name.is_some_and(|key| key.len() == 24 && key.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Notes that a file is in use: now, and until it is closed. Where files have no locks or owners, that only makes it
/// likelier to be encoded again one day.
pub(super) fn mark_used(file: &File) {
    if let Err(error) = file.set_modified(SystemTime::now()) {
        tracing::debug!(%error, "the time of use isn't kept");
    }
    if let Err(error) = file.try_lock_shared() {
        tracing::debug!(%error, "the file can't be locked");
    }
}

/// Removes the files that were used longest ago until those in `folder` take at most `limit` bytes; never `newest` and
/// never one in use. One that can't be removed does no harm.
pub(super) fn evict(folder: &Path, newest: &Path, limit: u64) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let mut files: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
    for path in entries.flatten().map(|entry| entry.path()) {
        if is_ours(&path)
            && let Ok(metadata) = fs::metadata(&path)
            && let Ok(used) = metadata.modified()
        {
            let used = if path == newest { SystemTime::now() } else { used };
            files.push((used, metadata.len(), path));
        }
    }
    files.sort_unstable_by(|a, b| b.cmp(a));
    let mut total = 0u64;
    for (_, bytes, path) in files {
        let in_use = || File::open(&path).is_ok_and(|file| file.try_lock().is_err());
        if path == newest || total.saturating_add(bytes) <= limit || in_use() {
            total = total.saturating_add(bytes);
            continue;
        }
        match fs::remove_file(&path) {
            Ok(()) => tracing::warn!(
                path = %path.display(),
                "encoded rows that were used longest ago are removed: the cache holds at most {} GiB",
                limit >> 30
            ),
            Err(error) => tracing::debug!(path = %path.display(), %error, "encoded rows stay"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_was_used_longest_ago_goes_first_and_what_is_in_use_stays() {
        let dir = tempfile::tempdir().unwrap();
        // Names as the cache gives them, told apart by one letter.
        let at = |name: &str| dir.path().join(format!("{}.rows", name.repeat(24)));
        let write = |name: &str, bytes: usize, age: u64| {
            fs::write(at(name), vec![0; bytes]).unwrap();
            let used = SystemTime::now() - Duration::from_secs(age);
            File::options().write(true).open(at(name)).unwrap().set_modified(used).unwrap();
        };
        for (name, bytes, age) in [("e", 30, 0), ("a", 40, 10), ("b", 40, 20), ("c", 40, 30), ("d", 40, 40)] {
            write(name, bytes, age);
        }
        let anothers = dir.path().join("table.rows");
        fs::write(&anothers, [0; 1000]).unwrap();
        let in_use = File::open(at("c")).unwrap();
        in_use.lock_shared().unwrap();
        let left = || -> Vec<bool> { ["e", "a", "b", "c", "d"].map(|name| at(name).exists()).into() };
        evict(dir.path(), &at("e"), 1000);
        assert_eq!(left(), [true; 5]);
        evict(dir.path(), &at("e"), 70);
        assert_eq!(left(), [true, true, false, true, false]);
        drop(in_use);
        evict(dir.path(), &at("e"), 1);
        assert_eq!(left(), [true, false, false, false, false]);
        assert!(anothers.exists());
    }

    #[test]
    fn an_opened_file_counts_as_used() {
        let file = tempfile::tempfile().unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        mark_used(&file);
        let used = file.metadata().unwrap().modified().unwrap();
        assert!(used.elapsed().unwrap() < Duration::from_secs(3600));
    }
}
