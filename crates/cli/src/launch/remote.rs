//! What is done on a host over ssh: looking what is there, copying the program, starting it.
//!
//! The commands are fixed text for any shell that knows `sh -c '...'`; what differs from run to run goes over standard
//! input.

use super::hosts::Host;
use super::words;
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};

/// Where hosts keep copies of the program, by digest.
const KEPT: &str = "\"${XDG_CACHE_HOME:-$HOME/.cache}/ferrotune/bin\"";
/// Copies that no run has used for so many days go when a new one comes.
const UNUSED_DAYS: u32 = 30;
/// Begins the lines that are meant for us: a host's own greetings come beside them.
const MARK: &str = "ferrotune-launch:";

/// How hosts are reached.
#[derive(Debug, Clone)]
pub(super) struct Shell {
    program: String,
    arguments: Vec<String>,
}

/// The program to copy: this very one.
#[derive(Debug)]
pub(super) struct Program {
    /// SHA-256 in hexadecimal digits.
    digest: String,
    bytes: Vec<u8>,
}

impl Program {
    /// Reads the file of this process, even if it was replaced since.
    pub(super) fn own() -> Result<Self> {
        use sha2::{Digest, Sha256};
        let bytes = std::fs::read("/proc/self/exe").context("cannot read this program's own file")?;
        let digest = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { digest, bytes })
    }

    pub(super) fn len(&self) -> u64 {
        self.bytes.len() as u64
    }
}

impl Shell {
    /// A command as users write it, words apart. What ssh itself must be told so that nothing waits for somebody to type is
    /// added if it is ssh.
    pub(super) fn new(command: &str) -> Result<Self> {
        let mut words = words::split(command).context("in --ssh")?.into_iter();
        let Some(program) = words.next() else { bail!("--ssh names no program") };
        let mut arguments: Vec<String> = words.collect();
        if program.rsplit('/').next() == Some("ssh") {
            let quiet = ["BatchMode=yes", "ConnectTimeout=15", "ServerAliveInterval=15", "ServerAliveCountMax=4"];
            arguments.extend(quiet.iter().flat_map(|option| ["-o".to_owned(), (*option).to_owned()]));
            arguments.push("-T".into());
        }
        Ok(Self { program, arguments })
    }

    /// A command on a host, in a group of its own: Ctrl-C in the terminal is for this program to pass on.
    fn command(&self, host: &Host, script: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).arg(&host.target).arg(format!("sh -c '{script}'")).process_group(0);
        command
    }

    /// Makes sure that the host has the program; whether it had to be copied.
    ///
    /// # Errors
    /// If the host can't be reached, is of another kind, or has no room.
    pub(super) fn prepare(&self, host: &Host, program: &Program, copying: impl FnOnce()) -> Result<bool> {
        let digest = &program.digest;
        let look = format!(
            "echo {MARK} $(uname -s) $(uname -m); d={KEPT}; \
             if [ -x \"$d/{digest}\" ]; then touch \"$d/{digest}\"; echo {MARK} $(sha256sum < \"$d/{digest}\"); fi"
        );
        let told = self.answer(host, &look, None)?;
        let mut lines = told.lines().filter_map(|line| Some(line.split_once(MARK)?.1.trim()));
        let kind = lines.next().unwrap_or_default();
        let ours = format!("Linux {}", std::env::consts::ARCH);
        if kind != ours {
            bail!("it is `{kind}` and this program is for {ours}: start the run from a machine of its kind");
        }
        if lines.next().is_some_and(|sum| sum.starts_with(digest.as_str())) {
            return Ok(false);
        }
        copying();
        let copy = format!(
            "set -e; d={KEPT}; mkdir -p \"$d\"; t=\"$d/.{digest}.$$\"; trap \"rm -f \\\"$t\\\"\" EXIT; \
             trap \"exit 1\" HUP INT PIPE TERM; cat > \"$t\"; \
             s=$(sha256sum < \"$t\"); case \"$s\" in {digest}*) ;; *) echo {MARK} damaged; exit 0;; esac; \
             chmod 700 \"$t\"; \
             e=$(\"$t\" version 2>&1 >/dev/null) || {{ echo {MARK} alien $e; exit 0; }}; \
             mv -f \"$t\" \"$d/{digest}\"; trap - EXIT; \
             find \"$d\" -type f -mtime +{UNUSED_DAYS} -exec rm -f {{}} +; echo {MARK} whole"
        );
        let told = self.answer(host, &copy, Some(&program.bytes))?;
        let word = told.split_once(MARK).map_or("", |(_, word)| word.trim());
        if let Some(why) = word.strip_prefix("alien") {
            bail!("it can't run this program:{why}; that of the packages runs on any Linux with glibc 2.28 or newer");
        }
        if word != "whole" {
            bail!("the program arrived there damaged: the connection cut it short, or its disk is full");
        }
        Ok(true)
    }

    /// Starts the program; it waits for its job on standard input.
    ///
    /// # Errors
    /// If ssh itself can't be started.
    pub(super) fn start(&self, host: &Host, program: &Program) -> Result<Child> {
        // The shell stays: what ssh says of a program that a signal ended can't be told from a lost connection.
        let mut command = self.command(host, &format!("{KEPT}/{} launched; exit $?", program.digest));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().with_context(|| format!("cannot start `{}`", self.program))
    }

    /// What a command prints there that reads `input`. If this process dies the command reads less, and so notices.
    fn answer(&self, host: &Host, script: &str, input: Option<&[u8]>) -> Result<String> {
        let mut command = self.command(host, script);
        command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start `{}`", self.program))?;
        let line = child.stdin.take().zip(input);
        let output = std::thread::scope(|scope| {
            // A command that reads no further has failed, and says why.
            scope.spawn(|| line.map(|(mut line, input)| line.write_all(input)));
            child.wait_with_output()
        })?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        bail!("{}", self.trouble(host, &output))
    }

    /// Why a command failed there, and what to do.
    fn trouble(&self, host: &Host, output: &Output) -> String {
        let text = String::from_utf8_lossy(&output.stderr);
        let last = text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("it printed nothing");
        let last = last.strip_prefix("ssh: ").unwrap_or(last).trim_end_matches('.');
        let login = host.login();
        let cure = [
            ("Host key verification failed", format!("connect once by hand and accept its key: ssh {login}")),
            ("Permission denied", format!("it must let you in without a password: ssh-copy-id {login}")),
            ("Could not resolve hostname", "write its address, or add it to ~/.ssh/config".to_owned()),
            ("timed out", "is it up, and does a firewall let ssh pass?".to_owned()),
            ("refused", "does its ssh server run? Another port is written ssh://host:2222".to_owned()),
            ("No route to host", "is it the right address, and is that host up?".to_owned()),
            ("No space left", "make room in the cache folder of its user".to_owned()),
            ("Disk quota exceeded", "make room in the cache folder of its user".to_owned()),
            ("Read-only file system", "set XDG_CACHE_HOME there to a folder that can be written".to_owned()),
            ("sha256sum", "install coreutils there".to_owned()),
        ];
        let cure = cure.iter().find(|(sign, _)| text.contains(sign)).map(|(_, cure)| format!("; {cure}"));
        format!("{}: {last}{}", self.program, cure.unwrap_or_default())
    }

    /// The address that ssh connects to for a host, which may be a short name of the user's own.
    pub(super) fn address(&self, host: &Host) -> String {
        let mut command = Command::new(&self.program);
        let output = command.args(&self.arguments).arg("-G").arg(&host.target).stdin(Stdio::null()).output();
        let text = output.ok().filter(|output| output.status.success()).map(|output| output.stdout).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let named = text.lines().find_map(|line| line.strip_prefix("hostname ").map(str::trim));
        named.map_or_else(|| host.address().to_owned(), |named| named.trim_matches(['[', ']']).to_owned())
    }
}

/// A token that nobody guesses, in hexadecimal digits.
pub(super) fn token() -> Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).context("cannot read random bytes")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
