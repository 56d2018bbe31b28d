//! Which hosts a run is started on: a list on the command line, or a file as DeepSpeed and MPI have them.

use anyhow::{Context, Result, bail};
use std::path::Path;

/// A host and how many processes it gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host {
    /// What ssh is told: `host` or `user@host`.
    pub(super) target: String,
    /// Processes; `None` leaves it to the host's own devices.
    pub(super) slots: Option<usize>,
}

impl Host {
    /// One of a list: `host`, `user@host`, `host:8`.
    fn parse(text: &str) -> Result<Self> {
        let (target, slots) = match text.rsplit_once(':') {
            // Of an address of IPv6 the last part is none of ours, unless brackets end it.
            Some((target, slots)) if !target.contains(':') || target.ends_with(']') => (target, Some(slots)),
            _ => (text, None),
        };
        let count = slots.map(|slots| count(slots).with_context(|| format!("in `{text}`"))).transpose()?;
        Self::new(target, count)
    }

    fn new(target: &str, slots: Option<usize>) -> Result<Self> {
        // ssh would take a leading dash for an option, and a shell in between much else for its own.
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "@.-_:[]%".contains(c);
        if target.is_empty() || target.starts_with('-') || !target.chars().all(is_plain) {
            bail!("`{target}` is no name of a host: write host1,user@host2 or host1:8 with a number of processes");
        }
        Ok(Self { target: target.to_owned(), slots })
    }

    /// Without the user.
    pub(super) fn name(&self) -> &str {
        self.target.rsplit_once('@').map_or(&self.target, |(_, host)| host)
    }
}

fn count(text: &str) -> Result<usize> {
    match text.parse() {
        Ok(count @ 1..=1024) => Ok(count),
        _ => bail!("`{text}` is no number of processes"),
    }
}

/// A list of hosts, commas between them.
///
/// # Errors
/// If one is none, or is there twice.
pub(super) fn parse_list(text: &str) -> Result<Vec<Host>> {
    let hosts: Result<Vec<Host>> = text.split(',').map(|host| Host::parse(host.trim())).collect();
    distinct(hosts?)
}

/// A file with a host a line: `host`, or `host slots=8`; `#` begins a comment.
///
/// # Errors
/// If the file can't be read, a line is none, or a host is there twice.
pub(super) fn read_file(path: &Path) -> Result<Vec<Host>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut hosts = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let Some(host) = words.next() else { continue };
        let place = || format!("{}, line {number}", path.display());
        let mut host = Host::parse(host).with_context(place)?;
        for word in words {
            match word.split_once('=') {
                Some(("slots" | "max_slots" | "max-slots", slots)) => {
                    host.slots = Some(count(slots).with_context(place)?);
                }
                _ => bail!("{}: `{word}` is not known; write `host slots=8`", place()),
            }
        }
        hosts.push(host);
    }
    if hosts.is_empty() {
        bail!("{} names no host", path.display());
    }
    distinct(hosts)
}

fn distinct(hosts: Vec<Host>) -> Result<Vec<Host>> {
    for (number, host) in hosts.iter().enumerate() {
        if hosts[..number].iter().any(|other| other.name() == host.name()) {
            bail!("{} is named twice: a host is one node; give it more processes with {}:2", host.name(), host.name());
        }
    }
    Ok(hosts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(target: &str, slots: Option<usize>) -> Host {
        Host { target: target.into(), slots }
    }

    #[test]
    fn lists_are_read_as_mpirun_reads_them() {
        let found = parse_list("a, me@b.example:8,[fe80::1]:2,fd00::7").unwrap();
        let want = [host("a", None), host("me@b.example", Some(8)), host("[fe80::1]", Some(2)), host("fd00::7", None)];
        assert_eq!(found, want);
        assert_eq!(found[1].name(), "b.example");
        for (wrong, word) in [
            ("a,,b", "no name"),
            ("-oProxyCommand=x", "no name"),
            ("a;rm", "no name"),
            ("a:0", "no number"),
            ("a,b@a", "twice"),
        ] {
            let error = format!("{:#}", parse_list(wrong).unwrap_err());
            assert!(error.contains(word), "{wrong}: {error}");
        }
    }

    #[test]
    fn files_are_read_as_deepspeed_and_mpi_have_them() {
        let file = |text: &str| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), text).unwrap();
            read_file(file.path())
        };
        let found = file("# ours\nworker-1 slots=8\n\nworker-2:4   # half\nme@worker-3 max_slots=2\n").unwrap();
        assert_eq!(found, [host("worker-1", Some(8)), host("worker-2", Some(4)), host("me@worker-3", Some(2))]);
        for (wrong, word) in
            [("", "names no host"), ("a gpus=3", "line 1: `gpus=3`"), ("a\nb slots=x", "line 2"), ("a\na", "twice")]
        {
            let error = format!("{:#}", file(wrong).unwrap_err());
            assert!(error.contains(word), "{wrong}: {error}");
        }
    }
}
