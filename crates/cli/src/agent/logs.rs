//! What workers print, in files: `OUTPUT_DIR/logs/rank-3.log`, and `rank-3.attempt-2.log` of a later attempt. Those of the
//! run before are kept as `rank-3.previous.log`. At the end the errors are read from them, so that each is shown once.

use super::worker::{Ended, Place};
use crate::environment;
use crate::failure::Failure;
use anyhow::Context;
use ferrotune_config::env;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Largest log; what is older goes into `.older`, and what was in there goes.
const LARGEST: u64 = 64 << 20;
/// How much of a log's end is searched for an error.
const TAIL: u64 = 64 << 10;
/// Lines of an error that are shown.
const LINES: usize = 40;
/// Lines that are shown of a log without one.
const LAST_LINES: usize = 5;

/// The logs of an attempt.
#[derive(Debug)]
pub(super) struct Logs {
    folder: PathBuf,
    attempt: usize,
}

impl Logs {
    /// Makes the folder.
    ///
    /// # Errors
    /// If it can't be made.
    pub(super) fn open(output: &Path) -> Result<Self, Failure> {
        let folder = output.join("logs");
        fs::create_dir_all(&folder)
            .with_context(|| {
                format!("cannot create {} for the ranks' logs; choose another output_dir", folder.display())
            })
            .map_err(Failure::Other)?;
        Ok(Self { folder, attempt: 1 })
    }

    /// The next attempt has logs of its own.
    pub(super) fn attempt(&mut self, number: usize) {
        self.attempt = number;
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    fn path(&self, place: Place, attempt: usize) -> PathBuf {
        let name = match place.rank {
            Some(rank) => format!("rank-{rank}"),
            None => format!("{}-{}", environment::host(), place.local),
        };
        let attempt = if attempt > 1 { format!(".attempt-{attempt}") } else { String::new() };
        self.folder.join(format!("{name}{attempt}.log"))
    }

    /// Makes a worker write to its log: the first of a machine beside the terminal that it shares, the others alone.
    ///
    /// # Errors
    /// If the file can't be made.
    pub(super) fn attach(&self, command: &mut Command, place: Place) -> Result<(), Failure> {
        let path = self.path(place, self.attempt);
        if self.attempt == 1 {
            // There may be none, and whatever else goes wrong shows when the file is made.
            let _ = fs::rename(&path, path.with_extension("previous.log"));
            (2..)
                .map(|attempt| self.path(place, attempt))
                .take_while(|old| fs::remove_file(old).is_ok())
                .for_each(drop);
        }
        let file = || -> Result<File, Failure> {
            let file = OpenOptions::new().create(true).append(true).open(&path);
            file.with_context(|| format!("cannot write {}", path.display())).map_err(Failure::Other)
        };
        if place.local == 0 {
            file()?;
            command.env(env::FERROTUNE_LOG, &path);
        } else {
            command.stdout(Stdio::from(file()?)).stderr(Stdio::from(file()?));
        }
        Ok(())
    }

    /// Halves logs that have grown too large. Writers append, so they go on at the new end.
    pub(super) fn bound(&self, places: impl Iterator<Item = Place>) {
        for path in places.map(|place| self.path(place, self.attempt)) {
            if fs::metadata(&path).is_ok_and(|file| file.len() > LARGEST) {
                // A log that can't be shortened is no reason to end a run.
                let _ = fs::copy(&path, path.with_extension("older.log"));
                let _ = OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(0));
            }
        }
    }

    /// The error that a worker ended with, or its last lines.
    pub(super) fn error(&self, place: Place) -> Option<String> {
        let mut file = File::open(self.path(place, self.attempt)).ok()?;
        let len = file.metadata().ok()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(TAIL))).ok()?;
        let mut bytes = Vec::new();
        file.take(TAIL).read_to_end(&mut bytes).ok()?;
        last_error(&String::from_utf8_lossy(&bytes))
    }

    /// The errors of all workers that failed by themselves, each once with all who ended with it, in the order of their ends.
    pub(super) fn errors(&self, ended: &[Ended]) -> Vec<(String, Vec<Place>)> {
        let mut failed: Vec<&Ended> = ended.iter().filter(|end| end.failed() && end.killed.is_none()).collect();
        failed.sort_by_key(|end| (end.is_consequence(), end.at));
        let mut errors: Vec<(String, Vec<Place>)> = Vec::new();
        for end in failed {
            let Some(text) = self.error(end.place) else { continue };
            match errors.iter_mut().find(|(other, _)| *other == text) {
                Some((_, places)) => places.push(end.place),
                None => errors.push((text, vec![end.place])),
            }
        }
        errors
    }
}

/// The last error in a log, or its last lines if it has none; nothing of an empty one.
fn last_error(log: &str) -> Option<String> {
    let lines: Vec<&str> = log.lines().collect();
    let error = lines.iter().rposition(|line| line.starts_with("error: "));
    let from = error.unwrap_or(lines.len().saturating_sub(LAST_LINES));
    let text = lines[from..].iter().take(LINES).copied().collect::<Vec<_>>().join("\n");
    Some(text.trim_end().to_owned()).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::last_error;

    #[test]
    fn the_last_error_of_a_log_with_all_its_lines() {
        assert_eq!(last_error(""), None);
        assert_eq!(
            last_error("a\nerror: old\nb\nerror: new\n --> r.yaml:1\n"),
            Some("error: new\n --> r.yaml:1".into())
        );
        assert_eq!(last_error("1\n2\n3\n4\n5\n6\n7\n"), Some("3\n4\n5\n6\n7".into()));
    }
}
