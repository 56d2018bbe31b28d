//! A process's end of its lifeline, which is its standard input.
//!
//! A worker's is a socket that its agent gave it: a byte a second says that it lives, signals that the agent got come back as
//! lines, and the end of the line is the agent's, which no worker outlives. That of a node that `launch` started comes over
//! ssh: signals as lines, and an end, or a long silence, upon which it is asked to stop.

use crate::{environment, interrupt};
use ferrotune_config::env;
use rustix::process::{Signal, getpid, kill_process, set_parent_process_death_signal};
use std::io::{ErrorKind, Read, Result, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

/// Time between beats.
const BEAT: Duration = Duration::from_secs(1);
/// How long nothing may be heard of `launch`, whose machine may have lost its power or its network.
const SILENCE: Duration = Duration::from_secs(300);
/// How long a node may take to stop once `launch` has gone.
const FAREWELL: Duration = Duration::from_secs(60);

/// Begins to hold the lifeline of a process that has one; else does nothing. To be called first of all.
///
/// # Errors
/// If standard input isn't the lifeline that the environment promises.
pub(crate) fn start() -> Result<()> {
    if environment::var(env::FERROTUNE_LIFELINE).is_none() {
        if environment::var(env::FERROTUNE_LAUNCHED).is_some() {
            let (sender, lines) = mpsc::channel();
            let read = move || std::io::stdin().lines().map_while(Result::ok).try_for_each(|line| sender.send(line));
            std::thread::Builder::new().name("lifeline".into()).spawn(read)?;
            std::thread::Builder::new().name("follower".into()).spawn(move || follow(&lines))?;
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

/// Obeys signals until `launch` is gone, then asks this process to stop, and at last ends it.
#[expect(clippy::exit, reason = "nobody is left to end a run that doesn't stop")]
fn follow(lines: &Receiver<String>) {
    until_silence(lines, SILENCE, |line| obey(line.as_bytes()));
    obey(Signal::TERM.as_raw().to_string().as_bytes());
    std::thread::sleep(FAREWELL);
    std::process::exit(i32::from(crate::failure::PASSING));
}

/// Hands lines on until there are no more, or none has come for so long.
fn until_silence(lines: &Receiver<String>, longest: Duration, mut hear: impl FnMut(&str)) {
    while let Ok(line) = lines.recv_timeout(longest) {
        hear(&line);
    }
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

#[cfg(test)]
mod tests {
    use super::until_silence;
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    #[test]
    fn a_line_is_over_at_its_end_or_after_a_long_silence() {
        let (sender, lines) = mpsc::channel();
        ["0", "2"].into_iter().for_each(|line| sender.send(line.to_owned()).unwrap());
        let (mut heard, silence, start) = (Vec::new(), Duration::from_millis(50), Instant::now());
        until_silence(&lines, silence, |line| heard.push(line.to_owned()));
        assert_eq!(heard, ["0", "2"]);
        assert!(start.elapsed() >= silence);
        drop(sender);
        until_silence(&lines, Duration::from_secs(3600), |_| unreachable!("nothing was sent"));
    }
}
