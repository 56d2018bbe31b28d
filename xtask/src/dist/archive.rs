//! The tarball and the Debian package. Same files, same bytes: times and owners are fixed.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{Builder, EntryType, Header};

use super::{GLIBC, Machine, OTHER_NAMES, Parts, SUMMARY, VERSION};
use crate::{output, root};

/// Documents that go along.
const DOCUMENTS: [&str; 3] = ["README.md", "CHANGELOG.md", "LICENSE"];
/// Folders that the quickstart reads.
const FOLDERS: [&str; 2] = ["examples", "data"];

/// Name and content of the tarball: a folder that runs where it is unpacked.
pub(super) fn tarball(machine: &Machine, parts: &Parts) -> Result<(String, Vec<u8>)> {
    let folder = format!("ferrotune-{VERSION}-{}-linux", machine.name);
    let mut tree = Tree::new();
    tree.program(&folder, parts)?;
    tree.documents(&folder, parts)?;
    Ok((format!("{folder}.tar.gz"), tree.finish()?))
}

/// Name and content of the Debian package.
pub(super) fn deb(machine: &Machine, parts: &Parts) -> Result<(String, Vec<u8>)> {
    let mut data = Tree::new();
    data.program("./usr/bin", parts)?;
    data.documents("./usr/share/doc/ferrotune", parts)?;
    let size = data.bytes.div_ceil(1024);
    let control = format!(
        "Package: ferrotune\nVersion: {VERSION}\nArchitecture: {}\nMaintainer: The ferrotune authors <ferrotune@localhost>\n\
         Installed-Size: {size}\nDepends: libc6 (>= {}.{}), libgcc-s1 | libgcc1\nSection: science\nPriority: optional\n\
         Description: {SUMMARY}\n One binary, no Python. Also started as llamafactory-cli or lmf.\n",
        machine.debian, GLIBC.0, GLIBC.1
    );
    let mut meta = Tree::new();
    meta.file("./control", control.as_bytes(), 0o644)?;
    let mut deb = b"!<arch>\n".to_vec();
    for (name, content) in
        [("debian-binary", b"2.0\n".to_vec()), ("control.tar.gz", meta.finish()?), ("data.tar.gz", data.finish()?)]
    {
        member(&mut deb, name, &content);
    }
    Ok((format!("ferrotune_{VERSION}_{}.deb", machine.debian), deb))
}

/// A member of an `ar` archive: a header of fixed columns, the content, and a byte to make it even.
fn member(archive: &mut Vec<u8>, name: &str, content: &[u8]) {
    let header = format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100_644, content.len());
    archive.extend_from_slice(header.as_bytes());
    archive.extend_from_slice(content);
    if content.len() % 2 == 1 {
        archive.push(b'\n');
    }
}

/// A compressed tar archive in the making.
struct Tree {
    builder: Builder<GzEncoder<Vec<u8>>>,
    /// Folders that have their entry; dpkg creates none by itself.
    folders: BTreeSet<String>,
    /// Sum of the contents.
    bytes: u64,
}

impl Tree {
    fn new() -> Tree {
        Tree {
            builder: Builder::new(GzEncoder::new(Vec::new(), Compression::best())),
            folders: BTreeSet::new(),
            bytes: 0,
        }
    }

    fn header(kind: EntryType, size: u64, mode: u32) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(mode);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header
    }

    /// Appends under the name as it is: `append_data` would drop the `./` that dpkg expects of its members.
    fn entry(&mut self, path: &str, mut header: Header, content: &[u8]) -> Result<()> {
        set_path(&mut header, path)?;
        self.builder.append(&header, content).with_context(|| format!("packing {path}"))
    }

    /// Appends an entry for each folder above `path` that has none.
    fn folders_of(&mut self, path: &str) -> Result<()> {
        for (slash, _) in path.match_indices('/') {
            let folder = &path[..=slash];
            if self.folders.insert(folder.to_owned()) {
                self.entry(folder, Tree::header(EntryType::Directory, 0, 0o755), &[])?;
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &str, content: &[u8], mode: u32) -> Result<()> {
        self.folders_of(path)?;
        self.bytes += content.len() as u64;
        self.entry(path, Tree::header(EntryType::Regular, content.len() as u64, mode), content)
    }

    /// The program and its other names.
    fn program(&mut self, folder: &str, parts: &Parts) -> Result<()> {
        self.file(&format!("{folder}/ferrotune"), &parts.binary, 0o755)?;
        for name in OTHER_NAMES {
            let mut header = Tree::header(EntryType::Symlink, 0, 0o777);
            header.set_link_name("ferrotune")?;
            self.entry(&format!("{folder}/{name}"), header, &[])?;
        }
        Ok(())
    }

    /// Documents, licences, and what the quickstart needs, as committed.
    fn documents(&mut self, folder: &str, parts: &Parts) -> Result<()> {
        for name in DOCUMENTS {
            self.copy(folder, name)?;
        }
        self.file(&format!("{folder}/THIRD-PARTY-LICENCES"), &parts.notices, 0o644)?;
        let mut git = std::process::Command::new("git");
        let listed = output(git.args(["ls-files", "-z", "--"]).args(FOLDERS).current_dir(root()))?;
        for name in std::str::from_utf8(&listed)?.split('\0').filter(|name| !name.is_empty()) {
            self.copy(folder, name)?;
        }
        Ok(())
    }

    fn copy(&mut self, folder: &str, name: &str) -> Result<()> {
        let content = std::fs::read(root().join(name)).with_context(|| format!("reading {name}"))?;
        self.file(&format!("{folder}/{name}"), &content, 0o644)
    }

    fn finish(self) -> Result<Vec<u8>> {
        Ok(self.builder.into_inner()?.finish()?)
    }
}

/// Writes the name as it is, and seals the header.
fn set_path(header: &mut Header, path: &str) -> Result<()> {
    let name = &mut header.as_gnu_mut().context("a header of another kind")?.name;
    ensure!(path.len() < name.len() && Path::new(path).is_relative(), "{path}: too long a name for a plain header");
    name[..path.len()].copy_from_slice(path.as_bytes());
    header.set_cksum();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ar_member_has_fixed_columns() {
        let mut archive = Vec::new();
        member(&mut archive, "debian-binary", b"2.0");
        assert_eq!(archive, b"debian-binary   0           0     0     100644  3         `\n2.0\n",);
    }

    #[test]
    fn packing_twice_gives_the_same_bytes() {
        let pack = || {
            let mut tree = Tree::new();
            tree.program("./usr/bin", &Parts { binary: vec![1; 1000], notices: Vec::new() }).unwrap();
            tree.finish().unwrap()
        };
        let bytes = pack();
        assert_eq!(bytes, pack());
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&*bytes));
        let entries: Vec<(String, u32, Option<String>)> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let link = entry.link_name().unwrap().map(|link| link.display().to_string());
                (String::from_utf8(entry.path_bytes().to_vec()).unwrap(), entry.header().mode().unwrap(), link)
            })
            .collect();
        let link = Some("ferrotune".to_owned());
        assert_eq!(
            entries,
            [
                ("./".to_owned(), 0o755, None),
                ("./usr/".to_owned(), 0o755, None),
                ("./usr/bin/".to_owned(), 0o755, None),
                ("./usr/bin/ferrotune".to_owned(), 0o755, None),
                ("./usr/bin/llamafactory-cli".to_owned(), 0o777, link.clone()),
                ("./usr/bin/lmf".to_owned(), 0o777, link),
            ]
        );
    }
}
