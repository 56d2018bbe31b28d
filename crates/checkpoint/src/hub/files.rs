//! The few things done to the file system that need care: names that come from a server, writes that must not be seen
//! half done, and other processes that want the same file.

use std::fs::{File, OpenOptions, TryLockError};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::Progress;
use super::error::HubError;

/// `name` as a path below some folder, or `None` if it leads out of it or is no name at all.
pub(super) fn inside(name: &str) -> Option<PathBuf> {
    let good =
        |part: &str| !part.is_empty() && part != "." && part != ".." && part.len() <= 255 && !part.contains('\0');
    (name.len() <= 2048 && name.split('/').all(good)).then(|| name.split('/').collect())
}

/// Creates the folder that `path` lies in.
pub(super) fn make_parent(path: &Path) -> Result<(), HubError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(HubError::io("create the folder", folder))
}

/// Writes a small file so that a reader sees the old or the new content, never a part.
pub(super) fn write_whole(path: &Path, content: &[u8]) -> Result<(), HubError> {
    make_parent(path)?;
    let create = |temporary: &Path| {
        let mut file = File::create_new(temporary)?;
        file.write_all(content).and_then(|()| file.sync_all())
    };
    place_new(path, create).map_err(HubError::io("write", path))
}

/// Lets `create` make something under a name that nobody else uses, and renames it to `path`.
fn place_new(path: &Path, create: impl FnMut(&Path) -> std::io::Result<()>) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let made = tempfile::Builder::new().prefix(".tmp-").make_in(folder, create)?;
    made.into_temp_path().persist(path).map_err(|error| error.error)
}

/// `path` with `.suffix` after its name.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}

/// A relative link at `link` to `target`; both lie below the same folder. Where links cannot be made, a copy.
pub(super) fn link(target: &Path, link: &Path) -> Result<(), HubError> {
    if link.exists() {
        return Ok(());
    }
    make_parent(link)?;
    let relative = relative(target, link);
    place_new(link, |temporary| make_link(&relative, target, temporary)).map_err(HubError::io("link", link))
}

#[cfg(unix)]
fn make_link(relative: &Path, target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(relative, link).or_else(|_| std::fs::copy(target, link).map(|_| ()))
}

#[cfg(not(unix))]
fn make_link(_relative: &Path, target: &Path, link: &Path) -> std::io::Result<()> {
    std::fs::copy(target, link).map(|_| ())
}

/// The way from the folder of `link` to `target`.
fn relative(target: &Path, link: &Path) -> PathBuf {
    let from: Vec<_> = link.parent().map(|p| p.components().collect()).unwrap_or_default();
    let to: Vec<_> = target.components().collect();
    let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    std::iter::repeat_n(std::path::Component::ParentDir, from.len() - common)
        .chain(to[common..].iter().copied())
        .collect()
}

/// Holds a file against other processes that download it, until dropped; the kernel frees it if this process dies.
pub(super) struct Lock {
    /// `None` where the file system knows no locks.
    held: Option<File>,
}

impl Lock {
    /// Waits for the lock at `path`, telling `progress` if somebody else has it.
    pub(super) fn wait(path: &Path, progress: &dyn Progress) -> Result<Lock, HubError> {
        make_parent(path)?;
        let open = OpenOptions::new().write(true).create(true).truncate(false).open(path);
        let file = open.map_err(HubError::io("open the lock", path))?;
        let locked = match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                progress.waiting(path);
                file.lock()
            }
            Err(TryLockError::Error(error)) => Err(error),
            Ok(()) => Ok(()),
        };
        match locked {
            Ok(()) => Ok(Lock { held: Some(file) }),
            Err(error) if error.kind() == std::io::ErrorKind::Unsupported => Ok(Lock { held: None }),
            Err(source) => Err(HubError::Io { action: "lock", path: path.to_path_buf(), source }),
        }
    }

    /// The name under which `whole` grows. Without a lock two processes must not share it, at the price of resuming.
    pub(super) fn partial(&self, whole: &Path) -> PathBuf {
        match self.held {
            Some(_) => beside(whole, "incomplete"),
            None => beside(whole, &format!("{:016x}.incomplete", RandomState::new().build_hasher().finish())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_below_the_folder_pass() {
        assert_eq!(inside("a/b.json"), Some(PathBuf::from("a/b.json")));
        for bad in ["", "/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a/", "a\0b"] {
            assert_eq!(inside(bad), None, "{bad:?}");
        }
        assert_eq!(inside(&"x".repeat(256)), None);
    }

    #[test]
    fn links_are_relative() {
        assert_eq!(relative(Path::new("/c/m/blobs/e"), Path::new("/c/m/snapshots/s/f")), Path::new("../../blobs/e"));
        assert_eq!(
            relative(Path::new("/c/m/blobs/e"), Path::new("/c/m/snapshots/s/d/f")),
            Path::new("../../../blobs/e")
        );
    }

    #[test]
    fn a_dangling_link_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (blob, pointer) = (dir.path().join("blobs/e"), dir.path().join("s/f"));
        write_whole(&blob, b"x").unwrap();
        make_parent(&pointer).unwrap();
        std::os::unix::fs::symlink("nowhere", &pointer).unwrap();
        link(&blob, &pointer).unwrap();
        assert_eq!(std::fs::read(&pointer).unwrap(), b"x");
        assert_eq!(std::fs::read_link(&pointer).unwrap(), Path::new("../blobs/e"));
    }
}
