//! What each host prints, in a file where the run was launched: `OUTPUT_DIR/logs/HOST.log`. That of the launch before is kept
//! as `HOST.previous.log`.

use crate::ui;
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

/// One host's log.
pub(super) struct Log {
    path: PathBuf,
    /// None once it couldn't be written any more.
    file: Option<File>,
}

impl Log {
    /// Makes the file, and the folders above it.
    ///
    /// # Errors
    /// If it can't be made.
    pub(super) fn open(output: &Path, host: &str) -> Result<Self> {
        let folder = output.join("logs");
        let path = folder.join(format!("{host}.log"));
        let make = || {
            fs::create_dir_all(&folder)?;
            // There may be none, and whatever else goes wrong shows when the file is made.
            let _ = fs::rename(&path, folder.join(format!("{host}.previous.log")));
            File::create(&path)
        };
        let file = make().with_context(|| format!("cannot write {}; choose another output_dir", path.display()))?;
        Ok(Self { path, file: Some(file) })
    }

    /// Adds a line. A log that can't be written any more is told of once, and ends no run.
    pub(super) fn line(&mut self, text: &str) {
        let Some(file) = &mut self.file else { return };
        if let Err(error) = writeln!(file, "{text}") {
            ui::warning(&format!("cannot write {} any more: {error}", self.path.display()));
            self.file = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Log;
    use std::fs;

    #[test]
    fn the_log_of_the_launch_before_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        for text in ["old", "new"] {
            Log::open(folder.path(), "a").unwrap().line(text);
        }
        let read = |name: &str| fs::read_to_string(folder.path().join("logs").join(name)).unwrap();
        assert_eq!([read("a.log"), read("a.previous.log")], ["new\n", "old\n"]);
    }

    #[test]
    fn a_log_that_is_full_ends_no_run() {
        let mut log = Log { path: "/dev/full".into(), file: fs::File::create("/dev/full").ok() };
        log.line("a");
        assert!(log.file.is_none());
        log.line("b");
    }
}
