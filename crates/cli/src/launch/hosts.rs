//! Which hosts a run is started on: a list on the command line, or a file as DeepSpeed and MPI have them.

use anyhow::{Context, Result, bail};
use std::path::Path;

/// Begins what ssh takes a port of its own from.
const URL: &str = "ssh://";
/// Most processes on a host; more is a port.
const MOST: usize = 1024;

/// A host and how many processes it gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host {
    /// What ssh is told: `host`, `user@host` or `ssh://user@host:2222`.
    pub(super) target: String,
    /// Processes; `None` leaves it to the host's own devices.
    pub(super) slots: Option<usize>,
}

impl Host {
    /// One of a list: `host`, `user@host`, `host:8` or `host*8`, and `ssh://user@host:2222` where ssh has a port of its own.
    fn parse(text: &str) -> Result<Self> {
        let (target, slots) = match text.rsplit_once('*') {
            Some((target, slots)) => (target, Some(slots)),
            None => match text.rsplit_once(':').filter(|_| !text.starts_with(URL)) {
                // Of an address of IPv6 the last part is none of ours, unless brackets end it.
                Some((target, slots)) if !target.contains(':') || target.ends_with(']') => (target, Some(slots)),
                _ => (text, None),
            },
        };
        let count = slots.map(|slots| count(slots).with_context(|| format!("in `{text}`"))).transpose()?;
        Self::new(target, count)
    }

    fn new(target: &str, slots: Option<usize>) -> Result<Self> {
        // ssh would take a leading dash for an option, and a shell in between much else for its own.
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "@.-_:[]%".contains(c);
        let name = target.strip_prefix(URL).unwrap_or(target);
        if name.is_empty() || name.starts_with('-') || !name.chars().all(is_plain) {
            bail!("`{target}` is no name of a host: write host1,user@host2 or host1:8 with a number of processes");
        }
        Ok(Self { target: target.to_owned(), slots })
    }

    /// Without the user; with the port, if there is one.
    pub(super) fn name(&self) -> &str {
        let target = self.target.strip_prefix(URL).unwrap_or(&self.target);
        target.rsplit_once('@').map_or(target, |(_, host)| host)
    }

    /// Its name or address as other programs than ssh take it.
    pub(super) fn address(&self) -> &str {
        self.parts().0.trim_matches(['[', ']'])
    }

    /// What follows `ssh` and `ssh-copy-id` when they are typed by hand.
    pub(super) fn login(&self) -> String {
        match self.parts() {
            (_, None) => self.target.clone(),
            (host, Some(port)) => {
                let user = self.target.trim_start_matches(URL).split_once('@').map(|(user, _)| format!("{user}@"));
                format!("-p {port} {}{}", user.unwrap_or_default(), host.trim_matches(['[', ']']))
            }
        }
    }

    /// The name apart from the port.
    fn parts(&self) -> (&str, Option<&str>) {
        let name = self.name();
        let apart = name.rsplit_once(':').filter(|_| self.target.starts_with(URL) && !name.ends_with(']'));
        apart.map_or((name, None), |(name, port)| (name, Some(port)))
    }
}

fn count(text: &str) -> Result<usize> {
    match text.parse() {
        Ok(count @ 1..=MOST) => Ok(count),
        Ok(port @ ..=0xffff) if port > MOST => {
            bail!(
                "`{text}` is a number of processes, as for mpirun, and too large for one; ssh's port is written ssh://host:{port}"
            )
        }
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
        let found = parse_list("a*4,ssh://me@b:2222*8,ssh://c:22").unwrap();
        assert_eq!(found, [host("a", Some(4)), host("ssh://me@b:2222", Some(8)), host("ssh://c:22", None)]);
        assert_eq!(found[1].name(), "b:2222");
        let addresses =
            |list: &str| parse_list(list).unwrap().iter().map(|h| h.address().to_owned()).collect::<Vec<_>>();
        assert_eq!(addresses("a*4,ssh://me@b:2222,ssh://c,ssh://[::2]:2222"), ["a", "b", "c", "::2"]);
        assert_eq!(found[1].login(), "-p 2222 me@b");
        assert_eq!(addresses("ssh://[::3],[::4],::5"), ["::3", "::4", "::5"]);
        for (wrong, word) in [
            ("a,,b", "no name"),
            ("-oProxyCommand=x", "no name"),
            ("a;rm", "no name"),
            ("a:0", "no number"),
            ("a*x", "no number"),
            ("me@a:2222", "ssh://host:2222"),
            ("ssh://-oProxyCommand=x", "no name"),
            ("ssh://", "no name"),
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
