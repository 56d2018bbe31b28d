//! What is wrong with a recipe, where, and what to do about it.
//!
//! A [`Diagnostic`] owns the line it points at (cut to a window, lines can be enormous), so it can be
//! shown without the file. All of a recipe's errors travel together in [`Diagnostics`].

use std::fmt::{self, Write as _};

use unicode_width::UnicodeWidthChar as _;

/// Characters of a source line that are kept on either side of the place in question.
const WINDOW: usize = 80;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The run can't start.
    Error,
    /// The run starts; the user should know this.
    Note,
}

/// A place in a source, with the part of its line that is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// Length in characters, at least 1, within the line.
    pub len: usize,
    /// The line, or a window of it.
    excerpt: String,
    /// Characters of the excerpt before the place.
    offset: usize,
}

impl Span {
    /// A place in `line_text`; `line` and `column` count from 1.
    #[must_use]
    pub fn new(line_text: &str, line: usize, column: usize, len: usize) -> Self {
        let column = column.max(1);
        let skipped = (column - 1).saturating_sub(WINDOW);
        let excerpt: String = line_text
            .trim_end_matches(['\r', '\n'])
            .chars()
            .skip(skipped)
            .take(2 * WINDOW)
            // Nothing from a file may steer the terminal.
            .map(|c| {
                if c == '\t' {
                    ' '
                } else if c.is_control() {
                    '\u{fffd}'
                } else {
                    c
                }
            })
            .collect();
        Self { line, column, len: len.max(1), excerpt, offset: column - 1 - skipped }
    }

    /// The line that is pointed at, cut to a window around the place.
    #[must_use]
    pub fn excerpt(&self) -> &str {
        &self.excerpt
    }

    /// Columns of a terminal before the place, and under it.
    fn caret(&self) -> (usize, usize) {
        let width = |c: char| c.width().unwrap_or(0);
        let before = self.excerpt.chars().take(self.offset).map(width).sum();
        let under: usize = self.excerpt.chars().skip(self.offset).take(self.len).map(width).sum();
        (before, under.max(1))
    }
}

/// One message about a recipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Error or note.
    pub severity: Severity,
    /// File, or `command line`, or the name of an environment variable.
    pub file: String,
    /// Where in it; `None` if something is missing from it.
    pub span: Option<Span>,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
}

impl Diagnostic {
    /// The message as a terminal shows it: message, place, line with a caret, help.
    #[must_use]
    pub fn render(&self, colour: bool) -> String {
        let paint = |code: &str, text: &str| {
            if colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
        };
        let (name, code) = match self.severity {
            Severity::Error => ("error", "1;31"),
            Severity::Note => ("note", "1;36"),
        };
        let mut out = format!("{}: {}\n", paint(code, name), paint("1", &self.message));
        let gutter = self.span.as_ref().map_or(1, |span| span.line.to_string().len());
        let pad = " ".repeat(gutter);
        if let Some(span) = &self.span {
            let (before, under) = span.caret();
            let bar = paint("34", "|");
            // Writing to a String can't fail.
            let _ = writeln!(out, "{pad}{} {}:{}:{}", paint("34", "-->"), self.file, span.line, span.column);
            let _ = writeln!(out, "{pad} {bar}");
            let _ = writeln!(out, "{} {bar} {}", paint("34", &span.line.to_string()), span.excerpt.trim_end());
            let _ = writeln!(out, "{pad} {bar} {}{}", " ".repeat(before), paint(code, &"^".repeat(under)));
        } else {
            let _ = writeln!(out, "{pad}{} {}", paint("34", "-->"), self.file);
        }
        if let Some(help) = &self.help {
            let _ = writeln!(out, "{pad} {} {help}", paint("34", "= help:"));
        }
        out
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.render(false).trim_end())
    }
}

/// Everything that is wrong with a recipe, in the order of the file. Never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.render(false).trim_end())]
pub struct Diagnostics(pub Vec<Diagnostic>);

impl Diagnostics {
    /// All messages, with a blank line between them.
    #[must_use]
    pub fn render(&self, colour: bool) -> String {
        self.0.iter().map(|d| d.render(colour)).collect::<Vec<_>>().join("\n")
    }
}

impl From<Diagnostic> for Diagnostics {
    fn from(one: Diagnostic) -> Self {
        Self(vec![one])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(line_text: &str, column: usize, len: usize) -> Diagnostic {
        Diagnostic {
            severity: Severity::Error,
            file: "r.yaml".into(),
            span: Some(Span::new(line_text, 12, column, len)),
            message: "bad".into(),
            help: Some("do this".into()),
        }
    }

    #[test]
    fn points_at_the_place() {
        assert_eq!(
            at("seed: abc", 7, 3).render(false),
            "error: bad\n  --> r.yaml:12:7\n   |\n12 | seed: abc\n   |       ^^^\n   = help: do this\n"
        );
    }

    #[test]
    fn wide_characters_and_tabs_keep_the_caret_in_place() {
        assert!(at("数据: abc", 5, 3).render(false).contains("12 | 数据: abc\n   |       ^^^\n"));
        assert!(at("\tx: abc", 5, 3).render(false).contains("12 |  x: abc\n   |     ^^^\n"));
    }

    #[test]
    fn enormous_lines_are_cut_and_control_characters_do_not_reach_the_terminal() {
        let line = "x".repeat(1_000_000) + "\x1b[2Jhere";
        let text = at(&line, 1_000_005, 4).render(false);
        assert!(text.len() < 700, "{}", text.len());
        assert!(text.contains("\u{fffd}[2Jhere") && !text.contains('\x1b'), "{text}");
    }

    #[test]
    fn colour_only_when_asked_for() {
        assert!(at("a", 1, 1).render(true).starts_with("\x1b[1;31merror\x1b[0m: "));
        assert!(!at("a", 1, 1).render(false).contains('\x1b'));
    }
}
