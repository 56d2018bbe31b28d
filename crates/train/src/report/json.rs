//! JSON laid out as Python's `json.dumps` does: the files of a run then equal transformers' byte for byte, and scripts
//! that cut lines by hand, or compare files, go on working.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

/// Many lines, nested values indented by so many spaces.
pub(super) fn indented(value: &impl Serialize, spaces: usize) -> Vec<u8> {
    write(value, Some(spaces))
}

/// One line, with a space after each comma and colon.
pub(super) fn line(value: &impl Serialize) -> Vec<u8> {
    write(value, None)
}

fn write(value: &impl Serialize, indent: Option<usize>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let layout = Layout { indent, depth: 0, empty: true };
    value.serialize(&mut Serializer::with_formatter(&mut bytes, layout)).expect("numbers and strings serialise");
    bytes
}

struct Layout {
    indent: Option<usize>,
    depth: usize,
    /// Whether the innermost container holds nothing yet.
    empty: bool,
}

impl Layout {
    fn open<W: ?Sized + Write>(&mut self, writer: &mut W, bracket: u8) -> io::Result<()> {
        self.depth += 1;
        self.empty = true;
        writer.write_all(&[bracket])
    }

    fn close<W: ?Sized + Write>(&mut self, writer: &mut W, bracket: u8) -> io::Result<()> {
        self.depth -= 1;
        if !self.empty {
            self.break_line(writer)?;
        }
        self.empty = false;
        writer.write_all(&[bracket])
    }

    fn item<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.empty = false;
        match (first, self.indent) {
            (true, _) => {}
            (false, Some(_)) => writer.write_all(b",")?,
            (false, None) => writer.write_all(b", ")?,
        }
        self.break_line(writer)
    }

    fn break_line<W: ?Sized + Write>(&self, writer: &mut W) -> io::Result<()> {
        match self.indent {
            Some(spaces) => write!(writer, "\n{:width$}", "", width = spaces * self.depth),
            None => Ok(()),
        }
    }
}

impl Formatter for Layout {
    fn write_f64<W: ?Sized + Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(number(value).as_bytes())
    }

    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b'[')
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b']')
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.item(writer, first)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b'{')
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b'}')
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.item(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

/// Python's `repr` of a finite float: the fewest digits that read back, of two equally near ones the even, with an
/// exponent of two digits below 1e-4 and from 1e16 on.
fn number(value: f64) -> String {
    let shortest = format!("{value:e}");
    let (digits, exponent) = shortest.split_once('e').expect("scientific notation has an exponent");
    let decimals = digits.bytes().filter(u8::is_ascii_digit).count() - 1;
    let exponent: i64 = exponent.parse().expect("an exponent is an integer");
    let nearest = |text: String, shortest: String| {
        if text.parse() == Ok(value) { text } else { shortest }
    };
    if (-4..16).contains(&exponent) {
        let decimals = (decimals as i64 - exponent).max(1) as usize;
        return nearest(format!("{value:.decimals$}"), format!("{value:?}"));
    }
    let text = nearest(format!("{value:.decimals$e}"), shortest);
    let (digits, exponent) = text.split_once('e').expect("scientific notation has an exponent");
    match exponent.strip_prefix('-') {
        Some(exponent) => format!("{digits}e-{exponent:0>2}"),
        None => format!("{digits}e+{exponent:0>2}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn text(bytes: Vec<u8>) -> String {
        String::from_utf8(bytes).expect("JSON is UTF-8")
    }

    /// The right-hand sides are what Python 3.11 prints.
    #[test]
    fn layout_is_python_s() {
        let value = json!({"a": [1, {"b": {}}], "c": [], "d": "x\"y", "e": null, "f": {"g": true}});
        assert_eq!(text(line(&value)), r#"{"a": [1, {"b": {}}], "c": [], "d": "x\"y", "e": null, "f": {"g": true}}"#);
        assert_eq!(
            text(indented(&value, 1)),
            "{\n \"a\": [\n  1,\n  {\n   \"b\": {}\n  }\n ],\n \"c\": [],\n \"d\": \"x\\\"y\",\n \"e\": null,\n \
             \"f\": {\n  \"g\": true\n }\n}"
        );
    }

    #[test]
    fn numbers_are_python_s() {
        let numbers = [
            2.919_013_977_050_781_2,
            0.0,
            -0.0,
            1.0,
            0.1,
            1e-4,
            9.9e-5,
            5e-5,
            -4.894348370484647e-5,
            1e15,
            1e16,
            1.5e300,
            5e-324,
        ];
        assert_eq!(
            text(line(&numbers)),
            "[2.9190139770507812, 0.0, -0.0, 1.0, 0.1, 0.0001, 9.9e-05, 5e-05, -4.894348370484647e-05, 1000000000000000.0, 1e+16, \
             1.5e+300, 5e-324]"
        );
        assert_eq!(text(line(&[f64::NAN, f64::NEG_INFINITY])), "[null, null]");
    }

    #[test]
    fn every_number_reads_back() {
        let mut bits = 0x9E37_79B9_7F4A_7C15_u64;
        for _ in 0..20_000 {
            bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let number = f64::from_bits(bits);
            if number.is_finite() {
                let back: Value = serde_json::from_slice(&line(&number)).expect("a number");
                assert_eq!(back.as_f64().map(f64::to_bits), Some(bits), "{number:e}");
            }
        }
    }
}
