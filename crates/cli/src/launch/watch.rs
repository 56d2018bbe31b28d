//! The nodes of a launched run, until their ends: what they print on one screen, signals passed on, nobody left behind.

use super::hosts::Host;
use super::job::Job;
use super::logs::Log;
use super::remote::{Program, Shell};
use crate::failure::{self, Failure};
use crate::interrupt::Requests;
use crate::ui;
use anyhow::{Context, Result};
use signal_hook::consts::SIGKILL;
use signal_hook::low_level::signal_name;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ExitStatus};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

/// Time between two looks at nodes and signals.
const TICK: Duration = Duration::from_millis(50);
/// How long a node may take to stop once its lifeline has ended, before its connection is ended too.
const FAREWELL: Duration = Duration::from_secs(75);
/// Time between two signs of life to each node, which would stop without.
const BEAT: Duration = Duration::from_secs(10);
/// Longest line that is shown whole.
const LONGEST: u64 = 64 << 10;
/// ssh ends with this when it is the connection that failed.
const NO_CONNECTION: i32 = 255;

/// A node under way.
pub(super) struct Node {
    name: String,
    child: Child,
    /// Its lifeline; it stops when this is dropped.
    line: Option<ChildStdin>,
    log: Log,
    ended: Option<(ExitStatus, Instant)>,
}

impl Node {
    /// Starts a node and tells it its job.
    ///
    /// # Errors
    /// If ssh can't be started.
    pub(super) fn start(shell: &Shell, host: &Host, program: &Program, job: &Job, log: Log) -> Result<Self> {
        let mut child = shell.start(host, program)?;
        let mut line = child.stdin.take().context("a lifeline was asked for")?;
        // Who can't be told has gone, and its end says why.
        let _ = job.send(&mut line);
        Ok(Self { name: host.name().to_owned(), child, line: Some(line), log, ended: None })
    }

    fn runs(&self) -> bool {
        self.ended.is_none()
    }

    /// Says something over the lifeline: the number of a signal, or 0 as a sign of life. Who can't be told has ended.
    fn say(&mut self, number: i32) {
        if let Some(line) = &mut self.line {
            let _ = line.write_all(format!("{number}\n").as_bytes()).and_then(|()| line.flush());
        }
    }

    /// Exit code there, as a shell has it; [`NO_CONNECTION`] too if something ended ssh itself.
    fn code(&self) -> Option<i32> {
        self.ended.map(|(status, _)| status.code().unwrap_or(NO_CONNECTION))
    }

    /// How it ended.
    fn describe(&self) -> String {
        let name = &self.name;
        match self.code() {
            Some(NO_CONNECTION) => format!("the connection to {name} was lost"),
            Some(137) => {
                format!("{name} was killed by signal 9 (SIGKILL); if nobody did that, it ran out of memory")
            }
            Some(code @ 129..=192) => {
                let signal = signal_name(code - 128).unwrap_or("unknown");
                format!("{name} was killed by signal {} ({signal})", code - 128)
            }
            code => format!("{name} ended with exit code {}", code.unwrap_or_default()),
        }
    }
}

/// Something that a node printed.
struct Line {
    node: usize,
    error: bool,
    text: String,
}

/// Shows what `nodes` print and passes signals on, until all have ended. Once one has failed the others have `patience` to
/// end by themselves, unless the run goes on without it.
///
/// # Errors
/// With the exit code of the node that failed first.
pub(super) fn watch(mut nodes: Vec<Node>, patience: Duration, elastic: bool) -> Result<(), Failure> {
    let requests = Requests::listen()?;
    let (sender, lines) = mpsc::channel();
    for (number, node) in nodes.iter_mut().enumerate() {
        let (out, err) = (node.child.stdout.take(), node.child.stderr.take());
        out.map(|out| listen(number, false, out, sender.clone())).transpose()?;
        err.map(|err| listen(number, true, err, sender.clone())).transpose()?;
    }
    drop(sender);
    let (mut asked, mut times, mut beat) = (None, 0, Instant::now());
    while nodes.iter().any(Node::runs) {
        show(&mut nodes, &lines);
        let sign = beat.elapsed() >= BEAT;
        for node in nodes.iter_mut().filter(|node| node.runs()) {
            if let Some(status) = node.child.try_wait()? {
                node.ended = Some((status, Instant::now()));
                node.line = None;
            } else if sign {
                node.say(0);
            }
        }
        if sign {
            beat = Instant::now();
        }
        if let Some(signal) = requests.take() {
            pass_on(&mut nodes, signal, times);
            times += 1;
            asked = asked.or(Some(signal));
        }
        let failed = nodes.iter().filter(|node| node.code().is_some_and(|code| code != 0));
        let first = failed.filter_map(|node| node.ended).map(|(_, at)| at).min();
        if let Some(at) = first.filter(|_| !elastic) {
            end_late_ones(&mut nodes, at + patience);
        }
    }
    // What is still on its way; nobody writes any more.
    while let Ok(line) = lines.recv_timeout(Duration::from_secs(1)) {
        tell(&mut nodes, &line);
    }
    verdict(&nodes, asked, elastic)
}

/// Reads lines in a thread.
fn listen(node: usize, error: bool, from: impl Read + Send + 'static, to: Sender<Line>) -> std::io::Result<()> {
    let read = move || {
        let mut from = BufReader::new(from);
        let mut bytes = Vec::new();
        while from.by_ref().take(LONGEST).read_until(b'\n', &mut bytes).is_ok_and(|length| length > 0) {
            let text = String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']).to_owned();
            bytes.clear();
            if to.send(Line { node, error, text }).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("node".into()).spawn(read).map(drop)
}

/// Shows what has come, and waits a little for more.
fn show(nodes: &mut [Node], lines: &Receiver<Line>) {
    let until = Instant::now() + TICK;
    loop {
        match lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(line) => tell(nodes, &line),
            Err(RecvTimeoutError::Timeout) => return,
            Err(RecvTimeoutError::Disconnected) => return std::thread::sleep(TICK),
        }
    }
}

/// The first node speaks for the run; what others say bears their name.
fn tell(nodes: &mut [Node], line: &Line) {
    let Line { node, error, text } = line;
    nodes[*node].log.line(text);
    match (*node, *error) {
        // A reader that goes away ends nothing.
        (0, false) => drop(ui::line(text)),
        (0, true) => ui::say(text),
        (node, _) => ui::say(&format!("{}: {text}", nodes[node].name)),
    }
}

/// The first signal asks all nodes to stop after their step, the second ends them, the third their connections.
fn pass_on(nodes: &mut [Node], signal: i32, times: usize) {
    ui::note(match times {
        0 => "asking all nodes to stop after this step; once more ends them at once",
        1 => "ending all nodes",
        _ => "ending all connections",
    });
    for node in nodes.iter_mut().filter(|node| node.runs()) {
        node.say(if times == 0 { signal } else { SIGKILL });
        if times > 1 {
            end(node);
        }
    }
}

/// Ends nodes that are there after `deadline`: by their lifeline, and later by their connection.
fn end_late_ones(nodes: &mut [Node], deadline: Instant) {
    for node in nodes.iter_mut().filter(|node| node.runs() && Instant::now() >= deadline) {
        if node.line.take().is_some() {
            ui::warning(&format!("{} goes on although the run has failed; it is being stopped", node.name));
        } else if Instant::now() >= deadline + FAREWELL {
            end(node);
        }
    }
}

/// Ends the connection to a node, whose program ends with its lifeline.
fn end(node: &mut Node) {
    // It may have ended in this moment.
    let _ = node.child.kill();
}

/// Says how the nodes ended that didn't end well, and which code that is.
fn verdict(nodes: &[Node], asked: Option<i32>, elastic: bool) -> Result<(), Failure> {
    if let Some(signal) = asked {
        return Err(Failure::Told(failure::signal_code(signal)));
    }
    let mut failed: Vec<&Node> = nodes.iter().filter(|node| node.code() != Some(0)).collect();
    if failed.is_empty() || (elastic && failed.len() < nodes.len()) {
        return Ok(());
    }
    // A node that lost another one is no cause.
    failed.sort_by_key(|node| (node.code() == Some(failure::PASSING.into()), node.ended.map(|(_, at)| at)));
    for (number, node) in failed.iter().enumerate() {
        // What a program ended with is said already, by itself.
        let is_news = node.code().is_some_and(|code| code >= 128);
        if number == 0 && is_news { ui::error(&node.describe()) } else { ui::note(&node.describe()) }
    }
    let code = failed[0].code().filter(|code| *code != NO_CONNECTION).and_then(|code| u8::try_from(code).ok());
    Err(Failure::Told(code.unwrap_or(failure::PASSING)))
}
