//! Where the rows of a JSON file begin and end, without parsing them.
//!
//! A JSON file of many gigabytes is never held in memory: one pass notes offset, length and line of
//! each row, and rows are read and parsed when their turn comes. Because rows are found by
//! brackets alone, a broken row costs only itself. Bytes that can't be JSON are used to find back:
//! a line break inside a string, `{` after a comma inside an object, a bracket of the wrong kind.
//! If a row never closes, the rows after it are looked for by their indentation.

use std::io::{self, Read};

/// A row's place in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    /// Byte at which it begins.
    pub(crate) offset: u64,
    /// Bytes; 0 for a place at which a row is missing.
    pub(crate) len: u64,
    /// Line at which it begins, from 1.
    pub(crate) line: u64,
}

/// Non-empty lines.
pub(crate) fn lines(input: impl Read, from: Span) -> io::Result<Vec<Span>> {
    let mut spans = Vec::new();
    let mut span = from;
    let mut blank = true;
    each_byte(input, |byte| {
        if byte == b'\n' {
            if !blank {
                spans.push(span);
            }
            span = Span { offset: span.offset + span.len + 1, len: 0, line: span.line + 1 };
            blank = true;
        } else {
            blank &= byte.is_ascii_whitespace();
            span.len += 1;
        }
    })?;
    if !blank {
        spans.push(span);
    }
    Ok(spans)
}

/// All lines, empty ones too, without their line breaks.
pub(crate) fn all_lines(input: impl Read, from: Span) -> io::Result<Vec<Span>> {
    let mut spans = Vec::new();
    let mut span = from;
    let mut last = 0;
    each_byte(input, |byte| {
        if byte == b'\n' {
            let carriage = u64::from(last == b'\r' && span.len > 0);
            spans.push(Span { len: span.len - carriage, ..span });
            span = Span { offset: span.offset + span.len + 1, len: 0, line: span.line + 1 };
        } else {
            span.len += 1;
        }
        last = byte;
    })?;
    if span.len > 0 {
        spans.push(span);
    }
    Ok(spans)
}

/// What a scan for rows found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Rows {
    /// The rows in order.
    pub(crate) spans: Vec<Span>,
    /// Whether the last row isn't closed at the end of the file.
    pub(crate) open: bool,
    /// Line at which something stands after the list's `]`.
    pub(crate) after_end: Option<u64>,
}

/// How rows stand in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// `[row, row]`.
    List,
    /// `row row`, over several lines each.
    Objects,
}

/// Finds the rows of a list or of a sequence of objects. `indent`: a `{` that stands first in its
/// line at this column begins a row whatever came before; for files known to be broken.
pub(crate) fn rows(input: impl Read, from: Span, layout: Layout, indent: Option<u64>) -> io::Result<Rows> {
    let mut scan = Scan::new(from, layout, indent);
    each_byte(input, |byte| scan.byte(byte))?;
    Ok(scan.finish())
}

fn each_byte(mut input: impl Read, mut visit: impl FnMut(u8)) -> io::Result<()> {
    const CHUNK: usize = 1 << 18;
    let mut chunk = vec![0; CHUNK];
    loop {
        match input.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(read) => chunk[..read].iter().for_each(|&byte| visit(byte)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

struct Scan {
    layout: Layout,
    indent: Option<u64>,
    found: Rows,
    offset: u64,
    line: u64,
    /// Offset at which the line begins.
    line_start: u64,
    /// Whether only spaces stand before this byte in its line.
    first_in_line: bool,
    /// The list's own `[` was seen.
    entered: bool,
    /// The list's own `]` was seen.
    closed: bool,
    /// Whether a comma was the last thing between rows.
    comma: bool,
    /// Start of the row being scanned.
    row: Option<(u64, u64)>,
    /// Open brackets inside the row.
    brackets: Vec<u8>,
    in_string: bool,
    escaped: bool,
    /// The last byte that isn't white space, and the end of the one before it.
    last: u8,
    end: u64,
    end_before_last: u64,
}

impl Scan {
    fn new(from: Span, layout: Layout, indent: Option<u64>) -> Self {
        Self {
            layout,
            indent,
            found: Rows::default(),
            offset: from.offset,
            line: from.line,
            line_start: from.offset,
            first_in_line: true,
            entered: layout == Layout::Objects || indent.is_some(),
            closed: false,
            comma: false,
            row: None,
            brackets: Vec::new(),
            in_string: false,
            escaped: false,
            last: 0,
            end: from.offset,
            end_before_last: from.offset,
        }
    }

    fn byte(&mut self, byte: u8) {
        if byte == b'\n' {
            self.line += 1;
            self.line_start = self.offset + 1;
            self.first_in_line = true;
            if self.in_string {
                // A string can't hold a line break: its closing quote is missing, and a comma may be inside.
                self.last = b',';
                self.end_before_last = self.end;
            }
            self.in_string = false;
            self.escaped = false;
        } else if self.in_string {
            self.string_byte(byte);
        } else if !byte.is_ascii_whitespace() {
            self.token(byte);
            self.first_in_line = false;
            self.last = byte;
            self.end_before_last = self.end;
            self.end = self.offset + 1;
        }
        self.offset += 1;
    }

    fn string_byte(&mut self, byte: u8) {
        self.end = self.offset + 1;
        match byte {
            _ if self.escaped => self.escaped = false,
            b'\\' => self.escaped = true,
            b'"' => self.in_string = false,
            _ => {}
        }
    }

    fn token(&mut self, byte: u8) {
        if !self.entered {
            self.entered = byte == b'[';
            return;
        }
        if self.closed && self.found.after_end.is_none() {
            self.found.after_end = Some(self.line);
        }
        match byte {
            b'{' | b'[' => self.open(byte),
            b'}' => self.close(b'{'),
            b']' if self.brackets.is_empty() && self.layout == Layout::List => {
                self.end_row(self.end);
                self.closed = true;
                self.comma = false;
            }
            b']' => self.close(b'['),
            b',' if self.brackets.is_empty() => self.comma(),
            b'"' => {
                self.begin_row();
                self.in_string = true;
            }
            _ => self.begin_row(),
        }
    }

    fn open(&mut self, byte: u8) {
        let at_indent = self.first_in_line && self.indent == Some(self.offset - self.line_start);
        if byte == b'{' && at_indent && !self.brackets.is_empty() {
            let end = if self.last == b',' { self.end_before_last } else { self.end };
            self.end_row(end);
        } else if byte == b'{' && self.last == b',' && self.brackets.last() == Some(&b'{') {
            // Inside an object a comma is followed by a key.
            if self.brackets.len() == 1 {
                self.end_row(self.end_before_last);
            } else {
                self.brackets.pop();
            }
        }
        self.begin_row();
        self.brackets.push(byte);
    }

    fn close(&mut self, opener: u8) {
        self.begin_row();
        if let Some(depth) = self.brackets.iter().rposition(|&bracket| bracket == opener) {
            self.brackets.truncate(depth);
        }
        if self.brackets.is_empty() && self.layout == Layout::Objects {
            self.end_row(self.offset + 1);
        }
    }

    /// A comma between rows.
    fn comma(&mut self) {
        if self.row.is_some() {
            self.end_row(self.end);
        } else if self.comma || self.found.spans.is_empty() {
            self.found.spans.push(Span { offset: self.offset, len: 0, line: self.line });
        }
        self.comma = true;
    }

    fn begin_row(&mut self) {
        if self.row.is_none() {
            self.row = Some((self.offset, self.line));
            self.comma = false;
        }
    }

    fn end_row(&mut self, end: u64) {
        if let Some((offset, line)) = self.row.take() {
            self.found.spans.push(Span { offset, len: end.saturating_sub(offset), line });
        }
        self.brackets.clear();
    }

    fn finish(mut self) -> Rows {
        self.found.open = self.row.is_some();
        self.end_row(self.offset);
        self.found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Span = Span { offset: 0, len: 0, line: 1 };

    fn texts(json: &str, layout: Layout, indent: Option<u64>) -> Vec<&str> {
        let found = rows(json.as_bytes(), START, layout, indent).unwrap();
        found.spans.iter().map(|span| &json[span.offset as usize..][..span.len as usize]).collect()
    }

    #[test]
    fn a_list_gives_its_elements() {
        assert_eq!(
            texts(r#" [ {"a": "]}\"{["}, 7 ,"x,y", [1, [2]], null ] "#, Layout::List, None),
            [r#"{"a": "]}\"{["}"#, "7", "\"x,y\"", "[1, [2]]", "null"]
        );
        assert!(texts("[]", Layout::List, None).is_empty());
        let found = rows("[\n{},\n\n{}\n]".as_bytes(), START, Layout::List, None).unwrap();
        assert_eq!(found.spans.iter().map(|span| span.line).collect::<Vec<_>>(), [2, 4]);
        assert!(!found.open && found.after_end.is_none());
    }

    #[test]
    fn a_broken_row_costs_only_itself() {
        for (broken, expected) in [
            ("{\"a\": [1}", "{\"a\": [1}"),
            ("{\"a\": 1", "{\"a\": 1"),
            ("{\"a\": \"x", "{\"a\": \"x,"),
            ("{\"a\": \"x\ny\"}", "{\"a\": \"x\ny\"},"),
            ("{\"a\": 1}}", "{\"a\": 1}}"),
            ("", ""),
        ] {
            let json = format!("[{{\"i\": 1}},\n{broken},\n{{\"i\": 2}}]");
            assert_eq!(texts(&json, Layout::List, None), ["{\"i\": 1}", expected, "{\"i\": 2}"], "{broken}");
        }
    }

    #[test]
    fn rows_after_one_that_never_closes_are_found_by_indentation() {
        let json = "[\n  {\"a\": [\n    {\"b\": 1},\n    {\"b\": 2}\n  ,\n  {\"a\": []},\n  {\"a\": [3]}\n]";
        let found = rows(json.as_bytes(), START, Layout::List, None).unwrap();
        assert!(found.open);
        assert_eq!(
            texts(&json[2..], Layout::List, Some(2)),
            ["{\"a\": [\n    {\"b\": 1},\n    {\"b\": 2}", "{\"a\": []}", "{\"a\": [3]}"]
        );
    }

    #[test]
    fn what_stands_after_the_list_is_noticed_and_still_read() {
        let found = rows("[{}],\n{}".as_bytes(), START, Layout::List, None).unwrap();
        assert_eq!((found.spans.len(), found.after_end), (2, Some(1)));
    }

    #[test]
    fn objects_without_a_list() {
        assert_eq!(texts("{\n\"a\": 1\n}\n{\n\"a\": [2]\n}", Layout::Objects, None).len(), 2);
    }

    #[test]
    fn lines_skip_blank_ones_and_keep_their_numbers() {
        let spans = lines("{}\n \r\n{\"a\":1}\r\n".as_bytes(), START).unwrap();
        assert_eq!(spans.iter().map(|s| (s.offset, s.line)).collect::<Vec<_>>(), [(0, 1), (6, 3)]);
        let text = "a\r\n\nb";
        let spans = all_lines(text.as_bytes(), START).unwrap();
        let texts: Vec<_> = spans.iter().map(|s| &text[s.offset as usize..][..s.len as usize]).collect();
        assert_eq!(texts, ["a", "", "b"]);
    }

    #[test]
    fn no_bytes_make_it_panic_or_leave_the_file() {
        let seed = br#"[{"a": "x\"y", "b": [1, {"c": null}]}, "s", {"d": {}}]"#;
        for position in 0..seed.len() {
            for byte in [b'[', b']', b'{', b'}', b'"', b',', b'\\', b'\n', 0, 0xff] {
                let mut bytes = seed.to_vec();
                bytes[position] = byte;
                for layout in [Layout::List, Layout::Objects] {
                    for indent in [None, Some(0)] {
                        let found = rows(bytes.as_slice(), START, layout, indent).unwrap();
                        let mut at = 0;
                        for span in found.spans {
                            assert!(span.offset >= at && span.offset + span.len <= bytes.len() as u64);
                            at = span.offset + span.len;
                        }
                    }
                }
            }
        }
    }
}
