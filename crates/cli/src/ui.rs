//! The terminal: notes, errors, bars. Colours and bars only where a person looks.

use crate::environment;
use ferrotune_config::env;
use indicatif::{ProgressBar, ProgressStyle};
use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Write, stderr, stdout};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

/// Whether stderr is a terminal that may be coloured.
pub(crate) fn colours() -> bool {
    watched() && environment::var(env::NO_COLOR).is_none_or(|value| value.is_empty())
}

/// Whether a person follows on stderr, in a terminal that can do more than print line after line.
pub(crate) fn watched() -> bool {
    stderr().is_terminal() && environment::var(env::TERM).is_none_or(|kind| kind != "dumb")
}

/// Writes a line to stdout.
///
/// # Errors
/// If nobody reads it any more.
pub(crate) fn line(text: &str) -> std::io::Result<()> {
    keep(text);
    writeln!(stdout(), "{text}")
}

/// Writes text to stdout at once.
///
/// # Errors
/// If nobody reads it any more.
pub(crate) fn text(text: &str) -> std::io::Result<()> {
    let mut out = stdout();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// A time in its two largest units.
pub(crate) fn duration(seconds: f64) -> String {
    let seconds = seconds.max(0.0).round() as u64;
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min {} s", seconds % 60),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

/// Says something that the user should know.
pub(crate) fn note(text: &str) {
    let head = if colours() { "\x1b[36mnote\x1b[0m" } else { "note" };
    say(&format!("{head}: {text}"));
}

/// Says something that the user should look at.
pub(crate) fn warning(text: &str) {
    let head = if colours() { "\x1b[33mwarning\x1b[0m" } else { "warning" };
    say(&format!("{head}: {text}"));
}

/// Says why the program ends.
pub(crate) fn error(text: &str) {
    let head = if colours() { "\x1b[1;31merror\x1b[0m" } else { "error" };
    say(&format!("{head}: {text}"));
}

/// Writes messages that are laid out already.
pub(crate) fn error_text(text: &str) {
    say(text.trim_end());
}

/// Writes a line to stderr; there is nobody to tell if that fails.
pub(crate) fn say(text: &str) {
    keep(text);
    let _ = writeln!(stderr(), "{text}");
}

/// Writes a line to this worker's log if it shares the terminal of its agent; the others' streams are their logs.
fn keep(text: &str) {
    static LOG: OnceLock<Option<File>> = OnceLock::new();
    let open = || OpenOptions::new().append(true).open(environment::var(env::FERROTUNE_LOG)?).ok();
    if let Some(mut log) = LOG.get_or_init(open).as_ref() {
        // A disk that is full is told of by what the run itself writes.
        let _ = log.write_all(format!("{}\n", uncoloured(text)).as_bytes());
    }
}

/// Text without the terminal's colours.
fn uncoloured(text: &str) -> String {
    let mut parts = text.split("\x1b[");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    plain.extend(parts.map(|part| part.split_once('m').map_or(part, |(_, rest)| rest)));
    plain
}

/// A bar over a known number of steps; nothing where nobody looks.
pub(crate) fn bar(total: u64, template: &str) -> ProgressBar {
    if !watched() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(total);
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("━╸─"));
    }
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}

/// Bars of a download.
#[derive(Default)]
pub(crate) struct Downloads {
    bar: Mutex<Option<ProgressBar>>,
}

impl Downloads {
    fn with(&self, act: impl FnOnce(&mut Option<ProgressBar>)) {
        act(&mut self.bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }
}

impl ferrotune_checkpoint::hub::Progress for Downloads {
    fn begin(&self, what: &str, total: Option<u64>) {
        let template = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        let new = bar(total.unwrap_or(0), template);
        new.set_message(what.to_owned());
        if !watched() {
            say(what);
        }
        self.with(|bar| *bar = Some(new));
    }

    fn advance(&self, bytes: u64) {
        self.with(|bar| bar.iter().for_each(|bar| bar.inc(bytes)));
    }

    fn end(&self) {
        self.with(|bar| bar.take().iter().for_each(ProgressBar::finish_and_clear));
    }

    fn waiting(&self, lock: &std::path::Path) {
        note(&format!("waiting for another process that holds {}", lock.display()));
    }
}

/// A bar over rows being encoded.
#[derive(Default)]
pub(crate) struct Encoding {
    bar: Mutex<Option<ProgressBar>>,
}

impl ferrotune_data::prepare::Progress for Encoding {
    fn encoding(&self, set: &str, done: u64, total: u64) {
        let mut slot = self.bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let bar = slot.get_or_insert_with(|| bar(total, "encoding {msg} {wide_bar} {pos}/{len} rows {per_sec} {eta}"));
        bar.set_message(set.to_owned());
        bar.set_length(total);
        bar.set_position(done);
        if done >= total {
            bar.finish_and_clear();
            *slot = None;
        }
    }
}

/// Bytes as people read them.
pub(crate) fn bytes(count: u64) -> String {
    let kib = count as f64 / 1024.0;
    match kib {
        0.0..1024.0 => format!("{kib:.0} KiB"),
        1024.0..1_048_576.0 => format!("{:.0} MiB", kib / 1024.0),
        _ => format!("{:.2} GiB", kib / 1_048_576.0),
    }
}

/// A number with thousands apart.
pub(crate) fn grouped(count: usize) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::uncoloured;

    #[test]
    fn colours_are_taken_off() {
        assert_eq!(uncoloured("\x1b[1;31merror\x1b[0m: no [m] in it"), "error: no [m] in it");
        assert_eq!(uncoloured("plain"), "plain");
    }
}
