//! PTX text to statements: comments removed, line numbers kept.

use crate::Fault;

/// A statement.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kind {
    /// `.visible .entry name(parameters) ...`, up to its brace.
    Entry,
    Open,
    Close,
    Label,
    /// Whatever ends with a semicolon, and module directives.
    Plain,
}

#[derive(Debug, Clone)]
pub(crate) struct Statement {
    pub(crate) kind: Kind,
    pub(crate) text: String,
    pub(crate) line: u32,
}

/// Directives that end with their line.
const LINES: [&str; 3] = [".version", ".target", ".address_size"];

/// Splits `text`.
pub(crate) fn statements(text: &str) -> Result<Vec<Statement>, Fault> {
    let mut found = Vec::new();
    let (mut pending, mut start) = (String::new(), 0u32);
    for (line, at) in text.lines().zip(1u32..) {
        let code = line.split("//").next().unwrap_or_default().trim();
        if pending.is_empty() && LINES.iter().any(|d| code.starts_with(d)) {
            found.push(Statement { kind: Kind::Plain, text: code.to_owned(), line: at });
            continue;
        }
        for c in code.chars() {
            if pending.is_empty() {
                start = at;
            }
            let kind = match c {
                '{' if pending.is_empty() => Some(Kind::Open),
                '}' if pending.is_empty() => Some(Kind::Close),
                '{' if pending.contains(".entry") => Some(Kind::Entry),
                ':' => Some(Kind::Label),
                ';' => Some(Kind::Plain),
                _ => None,
            };
            let brace = c == '{' && kind == Some(Kind::Entry);
            match kind {
                Some(kind) => {
                    let text = std::mem::take(&mut pending).trim_end().to_owned();
                    found.push(Statement { kind, text, line: start });
                    if brace {
                        found.push(Statement { kind: Kind::Open, text: String::new(), line: at });
                    }
                }
                None if c.is_whitespace() && (pending.is_empty() || pending.ends_with(' ')) => {}
                None => pending.push(if c.is_whitespace() { ' ' } else { c }),
            }
        }
        if !pending.is_empty() && !pending.ends_with(' ') {
            pending.push(' ');
        }
    }
    if pending.trim().is_empty() {
        Ok(found)
    } else {
        Err(Fault::Parse { line: start, text: pending, what: "no end of this statement".into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_keep_their_lines() {
        let text =
            ".version 8.1\n.visible .entry k(\n.param .u64 a // x;\n)\n{\nL: mov.b32 {%r1,\n %r2}, %r3; ret;\n}\n";
        let found = statements(text).unwrap();
        let short: Vec<_> = found.iter().map(|s| (s.kind.clone(), s.line)).collect();
        use Kind::*;
        assert_eq!(short, [(Plain, 1), (Entry, 2), (Open, 5), (Label, 6), (Plain, 6), (Plain, 7), (Close, 8)]);
        assert_eq!(found[4].text, "mov.b32 {%r1, %r2}, %r3");
        assert!(statements("mov.b32 %r1, %r2").is_err());
    }
}
