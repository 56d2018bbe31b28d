//! Which libraries, and which versions of their symbols, a Linux binary asks for.
//!
//! Read from the dynamic segment, as the loader does, so that it holds for stripped files too. Only what is needed of
//! the format is known here: 64 bits, little-endian.

use anyhow::{Context, Result, bail, ensure};

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
const DT_VERNEED: u64 = 0x6fff_fffe;
const DT_VERNEEDNUM: u64 = 0x6fff_ffff;

/// What a binary asks of the system.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    /// Shared libraries.
    pub(crate) libraries: Vec<String>,
    /// Versions of symbols, such as `GLIBC_2.28`; each once, sorted.
    pub(crate) versions: Vec<String>,
    /// The processor: `e_machine` of the header.
    pub(crate) machine: u16,
}

/// Reads the needs of the binary `bytes`. A static binary needs nothing.
pub(crate) fn needs(bytes: &[u8]) -> Result<Needs> {
    let elf = Elf { bytes };
    ensure!(bytes.starts_with(b"\x7fELF\x02\x01"), "not a 64-bit little-endian ELF file");
    let mut needs = Needs { machine: elf.u16(18)?, ..Needs::default() };
    let segments = elf.segments()?;
    let Some(dynamic) = segments.iter().find(|segment| segment.kind == PT_DYNAMIC) else { return Ok(needs) };
    let entries = elf.dynamic(dynamic)?;
    let value = |tag| entries.iter().find(|(found, _)| *found == tag).map(|(_, value)| *value);
    let strings = place(&segments, value(DT_STRTAB).context("no string table")?)?;
    for (_, name) in entries.iter().filter(|(tag, _)| *tag == DT_NEEDED) {
        needs.libraries.push(elf.text(strings, *name)?);
    }
    if let (Some(address), Some(count)) = (value(DT_VERNEED), value(DT_VERNEEDNUM)) {
        needs.versions = elf.versions(place(&segments, address)?, count, strings)?;
    }
    Ok(needs)
}

/// The newest version of glibc among `versions`, as (major, minor).
pub(crate) fn newest_glibc(versions: &[String]) -> Result<Option<(u32, u32)>> {
    let mut newest = None;
    for version in versions.iter().filter_map(|version| version.strip_prefix("GLIBC_")) {
        let mut numbers = version.split('.').map(str::parse::<u32>);
        let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
            bail!("GLIBC_{version} is no number, and so never portable");
        };
        newest = newest.max(Some((major, minor)));
    }
    Ok(newest)
}

struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    size: u64,
}

/// Where in the file the memory at `address` comes from.
fn place(segments: &[Segment], address: u64) -> Result<u64> {
    let holds = |s: &&Segment| s.kind == PT_LOAD && address >= s.address && address - s.address < s.size;
    let segment = segments.iter().find(holds).context("an address outside of all segments")?;
    segment.offset.checked_add(address - segment.address).context("an offset beyond all files")
}

struct Elf<'a> {
    bytes: &'a [u8],
}

impl Elf<'_> {
    fn at<const N: usize>(&self, offset: u64) -> Result<[u8; N]> {
        let start = usize::try_from(offset).ok();
        let slice = start.and_then(|start| self.bytes.get(start..start.checked_add(N)?));
        Ok(slice.context("the file ends too early")?.try_into().expect("the slice has N bytes"))
    }

    fn u16(&self, offset: u64) -> Result<u16> {
        self.at(offset).map(u16::from_le_bytes)
    }

    fn u32(&self, offset: u64) -> Result<u32> {
        self.at(offset).map(u32::from_le_bytes)
    }

    fn u64(&self, offset: u64) -> Result<u64> {
        self.at(offset).map(u64::from_le_bytes)
    }

    fn text(&self, table: u64, offset: u64) -> Result<String> {
        let start = table.checked_add(offset).and_then(|at| usize::try_from(at).ok());
        let rest = start.and_then(|start| self.bytes.get(start..)).context("a name beyond the end")?;
        let end = rest.iter().position(|byte| *byte == 0).context("a name without an end")?;
        Ok(String::from_utf8_lossy(&rest[..end]).into_owned())
    }

    fn segments(&self) -> Result<Vec<Segment>> {
        let (table, size, count) = (self.u64(32)?, u64::from(self.u16(54)?), u64::from(self.u16(56)?));
        ensure!(size >= 56, "program headers of {size} bytes");
        let read = |index: u64| {
            let at = table.checked_add(index * size).context("an offset beyond all files")?;
            Ok(Segment {
                kind: self.u32(at)?,
                offset: self.u64(at.saturating_add(8))?,
                address: self.u64(at.saturating_add(16))?,
                size: self.u64(at.saturating_add(32))?,
            })
        };
        (0..count).map(read).collect()
    }

    /// Tags and values, up to the end mark.
    fn dynamic(&self, segment: &Segment) -> Result<Vec<(u64, u64)>> {
        let mut entries = Vec::new();
        for index in 0..segment.size / 16 {
            let at = segment.offset.checked_add(index * 16).context("an offset beyond all files")?;
            match self.u64(at)? {
                0 => break,
                tag => entries.push((tag, self.u64(at.saturating_add(8))?)),
            }
        }
        Ok(entries)
    }

    /// The chains of libraries, and for each of versions.
    fn versions(&self, mut library: u64, count: u64, strings: u64) -> Result<Vec<String>> {
        ensure!(count <= 1000, "{count} libraries with versions");
        let mut found = Vec::new();
        for _ in 0..count {
            let number = self.u16(library.saturating_add(2))?;
            let mut version = library.saturating_add(self.u32(library.saturating_add(8))?.into());
            for _ in 0..number {
                found.push(self.text(strings, self.u32(version.saturating_add(8))?.into())?);
                version = version.saturating_add(self.u32(version.saturating_add(12))?.into());
            }
            library = library.saturating_add(self.u32(library.saturating_add(12))?.into());
        }
        found.sort();
        found.dedup();
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    fn this_very_test_needs_glibc() {
        let bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let needs = needs(&bytes).unwrap();
        assert!(needs.libraries.iter().any(|name| name == "libc.so.6"), "{needs:?}");
        assert!(newest_glibc(&needs.versions).unwrap() >= Some((2, 17)), "{needs:?}");
    }

    #[test]
    fn a_cut_or_scrambled_file_is_an_error_or_an_answer_but_no_panic() {
        let bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(needs(b"").is_err() && needs(b"#!/bin/sh").is_err());
        for length in [5, 16, 20, 63, 64, 100, 1000] {
            assert!(needs(&bytes[..length]).is_err(), "{length}");
        }
        // Each byte of the header in turn, with the extreme values.
        for at in 0..64 {
            for value in [0x00, 0x7f, 0xff] {
                let mut copy = bytes.clone();
                copy[at] = value;
                let _ = needs(&copy);
            }
        }
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        let versions = ["GLIBC_2.2.5", "GLIBC_2.28", "GLIBC_2.9", "GCC_3.0"].map(str::to_owned);
        assert_eq!(newest_glibc(&versions).unwrap(), Some((2, 28)));
        assert_eq!(newest_glibc(&[]).unwrap(), None);
        assert!(newest_glibc(&["GLIBC_PRIVATE".to_owned()]).is_err());
    }
}
