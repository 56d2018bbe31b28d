//! What a launched node is told: a document over its standard input, which then stays open. No word of it is seen in a list
//! of processes, and no shell in between reads it.

use crate::environment;
use crate::failure::Failure;
use anyhow::{Context, Result, anyhow, bail};
use ferrotune_checkpoint::hub::HubSettings;
use ferrotune_config::env;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Longest document that is taken.
const MOST: usize = 16 << 20;

/// One node's part of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Job {
    /// The program's name, as it is typed where the run was launched.
    pub(super) program: String,
    /// The folder to work in.
    pub(super) folder: PathBuf,
    /// Name and text of the recipe file, where there is one: the first of `arguments`.
    pub(super) recipe: Option<(String, String)>,
    /// What follows `train`.
    pub(super) arguments: Vec<String>,
    /// Variables of the environment.
    pub(super) variables: Vec<(String, String)>,
}

impl Job {
    /// Writes it: its length as a line, then the document.
    ///
    /// # Errors
    /// If the reader has gone.
    pub(super) fn send(&self, to: &mut impl Write) -> Result<()> {
        let text = serde_json::to_vec(self)?;
        to.write_all(format!("{}\n", text.len()).as_bytes())?;
        to.write_all(&text)?;
        Ok(to.flush()?)
    }

    /// Reads one and not a byte more.
    fn receive(from: &mut impl Read) -> Result<Self> {
        let mut digits = Vec::new();
        loop {
            let mut byte = [0];
            from.read_exact(&mut byte).context("nothing was sent")?;
            match byte[0] {
                b'\n' => break,
                digit if digit.is_ascii_digit() && digits.len() < 9 => digits.push(digit),
                _ => bail!("what was sent is no job"),
            }
        }
        let length: usize = String::from_utf8_lossy(&digits).parse().context("what was sent has no length")?;
        if length > MOST {
            bail!("a job of {length} bytes is longer than {MOST}");
        }
        let mut text = vec![0; length];
        from.read_exact(&mut text).context("the job was cut short")?;
        serde_json::from_slice(&text).context("what was sent is no job")
    }
}

/// `launched`: what `launch` starts on each host. Becomes `train`, with what it was told; standard input stays and is its
/// lifeline.
///
/// # Errors
/// If nothing sensible was sent, or the folder isn't there.
pub(crate) fn launched() -> Result<(), Failure> {
    let cannot = |error: anyhow::Error| Failure::Other(error.context("this is started by `ferrotune launch` alone"));
    // Past the buffer that `stdin()` has: what comes after the job is read by another program.
    let mut input = std::fs::File::open("/dev/stdin").map_err(|error| cannot(error.into()))?;
    let job = Job::receive(&mut input).map_err(cannot)?;
    let host = environment::host();
    std::env::set_current_dir(&job.folder).map_err(|error| {
        let folder = job.folder.display();
        Failure::Other(anyhow!(
            "{host} has no folder {folder}, which the run is started in: {error}; make it, with the data in it, or name another \
             one with --dir"
        ))
    })?;
    let mut arguments = job.arguments;
    if let (Some((name, text)), Some(first)) = (&job.recipe, arguments.first_mut()) {
        *first = recipe(name, text).map_err(Failure::Other)?;
    }
    let mut command = Command::new("/proc/self/exe");
    command.arg0(job.program).arg("train").args(arguments).envs(job.variables);
    command.env(env::FERROTUNE_LAUNCHED, "1");
    Err(Failure::Other(anyhow!("cannot go on as `train`: {}", command.exec())))
}

/// The recipe's path here: its own where the same text lies there, else that of a copy in the cache.
fn recipe(name: &str, text: &str) -> Result<String> {
    if std::fs::read(name).is_ok_and(|bytes| bytes == text.as_bytes()) {
        return Ok(name.to_owned());
    }
    let digest: String = Sha256::digest(text).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let file = Path::new(name).file_name().unwrap_or_default();
    let home = environment::home().context("HOME is not set")?;
    let folder = HubSettings::from_vars(environment::var, home).own_cache.join("recipes").join(digest);
    let write = || -> std::io::Result<String> {
        std::fs::create_dir_all(&folder)?;
        let draft = tempfile::NamedTempFile::new_in(&folder)?;
        std::fs::write(draft.path(), text)?;
        draft.persist(folder.join(file))?;
        Ok(folder.join(file).to_string_lossy().into_owned())
    };
    write().with_context(|| format!("cannot keep the recipe in {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_read_back_and_what_follows_is_left() {
        let job = Job {
            program: "ferrotune".into(),
            folder: "a folder".into(),
            recipe: Some(("r.yaml".into(), "a: 'ü'\n".into())),
            arguments: vec!["r.yaml".into(), "output_dir=with spaces and 'quotes'".into()],
            variables: vec![("NAME".into(), "two words\nand a line".into())],
        };
        let mut sent = Vec::new();
        job.send(&mut sent).unwrap();
        sent.extend(b"15\n");
        let mut input = &sent[..];
        assert_eq!(Job::receive(&mut input).unwrap(), job);
        assert_eq!(input, b"15\n");
    }

    #[test]
    fn what_is_no_job_is_an_error() {
        for wrong in ["", "x", "12", "5\n{}", "99999999\n", "9999999999\n", "2\n{}", "\n", "-1\n"] {
            assert!(Job::receive(&mut wrong.as_bytes()).is_err(), "{wrong:?}");
        }
    }
}
