//! A process's end of its lifeline, which is its standard input.
//!
//! A worker's is a socket that its agent gave it: a byte a second says that it lives, signals that the agent got come back as
//! lines, and the end of the line is the agent's, which no worker outlives. That of a node that `launch` started comes over
//! ssh: signals as lines, and an end, upon which it is asked to stop.

use crate::{environment, interrupt};
use rustix::process::{Signal, getpid, kill_process, set_parent_process_death_signal};
use std::io::{ErrorKind, Read, Result, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Set for a process whose standard input is a lifeline.
pub(crate) const LIFELINE: &str = "FERROTUNE_LIFELINE";
/// Set for a process whose standard input is the lifeline of `launch`.
pub(crate) const LAUNCHED: &str = "FERROTUNE_LAUNCHED";
/// Seconds after 1970 at which an agent first started the workers of its run: what is older is not of this run.
pub(crate) const STARTED: &str = "FERROTUNE_RUN_STARTED";
/// The file that gets what a worker prints besides the terminal.
pub(crate) const LOG: &str = "FERROTUNE_LOG";

/// Time between beats.
const BEAT: Duration = Duration::from_secs(1);
/// How long a node may take to stop once `launch` has gone.
const FAREWELL: Duration = Duration::from_secs(60);

/// Begins to hold the lifeline of a process that has one; else does nothing. To be called first of all.
///
/// # Errors
/// If standard input isn't the lifeline that the environment promises.
pub(crate) fn start() -> Result<()> {
    if environment::var(LIFELINE).is_none() {
        if environment::var(LAUNCHED).is_some() {
            std::thread::Builder::new().name("lifeline".into()).spawn(follow)?;
        }
        return Ok(());
    }
    let line = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    line.set_read_timeout(Some(BEAT))?;
    // Reaches a stopped worker, too, where the system has it.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    std::thread::Builder::new().name("lifeline".into()).spawn(move || hold(line))?;
    Ok(())
}

/// Writes beats and reads signals until the agent is gone, and then ends this process.
#[expect(clippy::exit, reason = "a worker without an agent must not stay, whatever it is doing")]
fn hold(mut line: UnixStream) {
    let mut text = [0; 16];
    loop {
        let heard = line.write_all(b".").and_then(|()| line.read(&mut text));
        match heard {
            Ok(0) => break,
            Ok(length) => obey(&text[..length]),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {}
                _ => break,
            },
        }
    }
    std::process::exit(i32::from(crate::failure::PASSING));
}

/// Reads signals until `launch` is gone, then asks this process to stop, and at last ends it.
#[expect(clippy::exit, reason = "nobody is left to end a run that doesn't stop")]
fn follow() {
    let (mut line, mut text) = (std::io::stdin(), [0; 16]);
    loop {
        match line.read(&mut text) {
            Ok(0) => break,
            Ok(length) => obey(&text[..length]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    obey(format!("{}\n", Signal::TERM.as_raw()).as_bytes());
    std::thread::sleep(FAREWELL);
    std::process::exit(i32::from(crate::failure::PASSING));
}

/// Does to this process what the signals in `text` would. If it was asked to stop before, only what can't be asked counts.
fn obey(text: &[u8]) {
    let signals = text.split(|byte| *byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok()?.parse().ok());
    if let Some(signal) = signals.filter_map(Signal::from_named_raw).next()
        && (signal == Signal::KILL || !interrupt::asked())
    {
        // A process may always signal itself.
        let _ = kill_process(getpid(), signal);
    }
}
