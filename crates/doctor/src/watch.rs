//! Processes of their own for work on GPUs, watched: each line that they tell sets the clock back, and whoever is silent for too
//! long has hung and is ended. What they were doing then is known, since they tell before they begin.
//!
//! A line of theirs has a mark before it: libraries print what they like.

use crate::gpus::{Part, Told};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What comes before a line that is meant for us.
const MARK: &str = "ferrotune-doctor: ";
/// What keeps NCCL from copying between GPUs directly.
pub(crate) const WITHOUT_DIRECT: (&str, &str) = ("NCCL_P2P_DISABLE", "1");
/// Bytes of a line at the most: a survey of a machine full of GPUs is a tenth of that.
const LONGEST: u64 = 1 << 22;
/// Last lines that are kept of what libraries say.
const LAST: usize = 6;
/// How long an ended process is waited for: one that hangs in the driver can't be ended.
const FAREWELL: Duration = Duration::from_secs(3);

/// A line for the process that watches this one.
///
/// # Errors
/// If it can't be written as JSON.
pub fn line(told: &Told) -> serde_json::Result<String> {
    Ok(format!("{MARK}{}", serde_json::to_string(told)?))
}

/// The part of the work that a process was started for.
///
/// # Errors
/// If the words are no such part.
pub fn part(words: &str) -> serde_json::Result<Part> {
    serde_json::from_str(words)
}

/// What is heard of a process.
#[derive(Debug, Clone, PartialEq)]
pub enum Heard {
    /// A line.
    Told(Box<Told>),
    /// Its end, with its last words; `None` if it was a good one.
    Ended(Option<String>),
    /// Nothing, for so long; it has been ended.
    Silent(Duration),
}

/// A process under watch. It is ended with this.
pub struct Watched {
    child: Child,
    lines: Receiver<Told>,
    errors: Arc<Mutex<VecDeque<String>>>,
}

/// Starts processes: the program itself, with the words of a part.
pub type Start<'a> = dyn Fn(&str) -> Command + 'a;

impl Watched {
    /// Starts a part.
    ///
    /// # Errors
    /// In words, if the system starts no process.
    pub fn start(start: &Start<'_>, part: &Part) -> Result<Self, String> {
        let words = serde_json::to_string(part).map_err(|error| error.to_string())?;
        let mut command = start(&words);
        // NCCL reads it when it is loaded.
        if let Part::Rank { direct: false, .. } = part {
            command.env(WITHOUT_DIRECT.0, WITHOUT_DIRECT.1);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| format!("no process could be started: {error}"))?;
        let (sender, lines) = channel();
        if let Some(out) = child.stdout.take() {
            std::thread::spawn(move || {
                each_line(out, |line| {
                    let told = line.strip_prefix(MARK).and_then(|rest| serde_json::from_str(rest).ok());
                    told.is_none_or(|told| sender.send(told).is_ok())
                });
            });
        }
        let errors = Arc::<Mutex<VecDeque<String>>>::default();
        if let Some(err) = child.stderr.take() {
            let kept = errors.clone();
            std::thread::spawn(move || {
                each_line(err, |line| {
                    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                    kept.push_back(line.chars().filter(|c| !c.is_control()).take(300).collect());
                    let more = kept.len().saturating_sub(LAST);
                    kept.drain(..more);
                    true
                });
            });
        }
        Ok(Self { child, lines, errors })
    }

    /// Waits for the next line, at most for `patience`.
    pub fn next(&mut self, patience: Duration) -> Heard {
        match self.lines.recv_timeout(patience) {
            Ok(told) => Heard::Told(Box::new(told)),
            Err(RecvTimeoutError::Timeout) => {
                self.end();
                Heard::Silent(patience)
            }
            Err(RecvTimeoutError::Disconnected) => Heard::Ended(self.last_words()),
        }
    }

    /// Why it ended; `None` if it ended well.
    fn last_words(&mut self) -> Option<String> {
        let begun = Instant::now();
        let status = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) if begun.elapsed() < FAREWELL => std::thread::sleep(PAUSE),
                _ => return Some("it closed its output and doesn't end".to_owned()),
            }
        };
        if status.success() {
            return None;
        }
        // Its last lines may still be on their way.
        std::thread::sleep(PAUSE);
        let errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        let words: Vec<&str> = errors.iter().map(String::as_str).collect();
        let words = if words.is_empty() { String::new() } else { format!(": {}", words.join("; ")) };
        Some(format!("the process ended with {status}{words}"))
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let begun = Instant::now();
        // Its end takes a while in the driver; where it never comes, the system keeps the process.
        while matches!(self.child.try_wait(), Ok(None)) && begun.elapsed() < FAREWELL {
            std::thread::sleep(PAUSE);
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.end();
    }
}

/// Between two looks at a process.
const PAUSE: Duration = Duration::from_millis(20);

/// Hands lines on until there are no more, or nobody wants them. What is longer than a line can be is passed by.
fn each_line(from: impl Read, mut hear: impl FnMut(&str) -> bool) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    loop {
        line.clear();
        match from.by_ref().take(LONGEST).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        if !hear(String::from_utf8_lossy(&line).trim_end()) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::What;

    fn shell(script: &str) -> Watched {
        let start = |_: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            command
        };
        Watched::start(&start, &Part::Survey).unwrap()
    }

    #[test]
    fn lines_ends_and_silence_are_told_apart() {
        let told = Told::Begin(What::Copy { from: 0, to: 1 });
        let patience = Duration::from_secs(20);
        let mut good = shell(&format!("echo NCCL version 2; echo '{}'", line(&told).unwrap()));
        assert_eq!(good.next(patience), Heard::Told(Box::new(told)));
        assert_eq!(good.next(patience), Heard::Ended(None));
        let Heard::Ended(Some(words)) = shell("echo it broke >&2; exit 3").next(patience) else { panic!("no end") };
        assert!(words.contains("exit status: 3") && words.ends_with(": it broke"), "{words}");
        let Heard::Ended(Some(words)) = shell("kill -SEGV $$").next(patience) else { panic!("no end") };
        assert!(words.contains("signal: 11"), "{words}");
        let (begun, short) = (Instant::now(), Duration::from_millis(200));
        assert_eq!(shell("exec sleep 100").next(short), Heard::Silent(short));
        assert!(begun.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_rank_without_direct_copies_has_the_setting() {
        let of = |direct| {
            let start = |_: &str| {
                let mut command = Command::new("sh");
                command.args(["-c", "echo \"with '$NCCL_P2P_DISABLE'\" >&2; exit 1"]).env_remove(WITHOUT_DIRECT.0);
                command
            };
            let part = Part::Rank { rank: 0, ranks: 2, identity: None, direct };
            match Watched::start(&start, &part).unwrap().next(Duration::from_secs(20)) {
                Heard::Ended(Some(words)) => words,
                other => panic!("{other:?}"),
            }
        };
        assert!(of(true).ends_with(": with ''") && of(false).ends_with(": with '1'"), "{} {}", of(true), of(false));
    }

    #[test]
    fn parts_are_read_back() {
        for told in [Part::Survey, Part::Copies(vec![(0, 1)], true), Part::Kernels(3, 5)] {
            assert_eq!(part(&serde_json::to_string(&told).unwrap()).unwrap(), told);
        }
        assert!(part("survey").is_err());
    }
}
