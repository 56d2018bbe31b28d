//! What is wrong with a text, and the YAML parser's errors in the words of someone who writes a recipe.

use saphyr_parser::ScanError;

use crate::tree::{At, clip};

/// What is wrong with a text, before it has a file name.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Fault {
    pub at: Option<At>,
    pub message: String,
    pub help: Option<&'static str>,
}

impl Fault {
    pub(crate) fn new(at: At, message: impl Into<String>, help: &'static str) -> Self {
        Self { at: Some(at), message: message.into(), help: Some(help) }
    }
}

/// The parser's error in the words of someone who writes a recipe, at the line that is to be changed.
pub(crate) fn of_scanner(error: &ScanError, text: &str, source: usize) -> Fault {
    let (mut line, mut column) = (error.marker().line().max(1), error.marker().col() + 1);
    let info = error.info();
    let lines: Vec<&str> = text.lines().collect();
    let (message, help) = if let Some(tabbed) = tab_indented(info, &lines, line) {
        (line, column) = tabbed;
        ("a tab is used for indentation", "YAML is indented with spaces: replace the tab")
    } else if info.contains("simple key expect") {
        // The parser notices on the line after.
        while line > 1 && lines.get(line - 1).is_none_or(|l| !l.trim_end().is_empty()) {
            line -= 1;
            if lines.get(line - 1).is_some_and(|l| !l.trim().is_empty()) {
                break;
            }
        }
        column = 1;
        ("expected `key: value`", "write a colon and a space after the key")
    } else if info.contains("mapping values are not allowed") {
        (
            "a `: ` stands where none can be",
            "put quotes around a value that holds `: `; check that the line above is `key: value`",
        )
    } else if info.contains("unexpected end of stream") {
        ("a quote is opened and never closed", "close the quote at the end of the value")
    } else if info.contains("did not find expected key") {
        ("the indentation fits no line above", "begin the keys of one level in the same column")
    } else if info.contains("flow sequence") || info.contains("flow mapping") {
        ("a `[` or `{` is not closed, or a comma is missing", "close the bracket, put commas between the items")
    } else if info.contains("unknown anchor") {
        ("an alias without an anchor", "put quotes around a value that begins with `*`, or define `&name` above")
    } else if info.contains("unexpected character") {
        ("a value can't begin with this character", "put quotes around the value")
    } else {
        let at = At { source, line, column, len: 1 };
        return Fault { at: Some(at), message: format!("not valid YAML: {}", clip(info)), help: None };
    };
    Fault::new(At { source, line, column, len: 1 }, message, help)
}

/// The first line with a tab in its indentation at or below `line`, if the error is about tabs.
fn tab_indented(info: &str, lines: &[&str], line: usize) -> Option<(usize, usize)> {
    if !info.contains("tab") {
        return None;
    }
    lines.iter().enumerate().skip(line - 1).take(2).find_map(|(index, text)| {
        let indent = &text[..text.len() - text.trim_start().len()];
        indent.chars().position(|c| c == '\t').map(|column| (index + 1, column + 1))
    })
}
