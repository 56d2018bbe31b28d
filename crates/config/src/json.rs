//! JSON recipes. JSON is YAML but for escaped surrogate pairs, so the same tree is built by the same
//! code; a strict JSON reader goes first, because a JSON file deserves JSON's error messages.

use std::borrow::Cow;

use serde::de::IgnoredAny;

use crate::faults::Fault;
use crate::tree::{self, At, Data, Node, Parsed};

/// Reads a JSON text.
pub(crate) fn parse(text: &str, source: usize) -> Result<Parsed, Fault> {
    if text.trim().is_empty() {
        return Ok(Parsed::default());
    }
    if let Err(error) = serde_json::from_str::<IgnoredAny>(text) {
        let line = error.line().max(1);
        let content = text.lines().nth(line - 1).unwrap_or_default();
        // serde_json counts bytes.
        let column = content.char_indices().filter(|(byte, _)| byte + 1 < error.column()).count() + 1;
        let full = error.to_string();
        let message = full.split(" at line ").next().unwrap_or(&full);
        return Err(Fault {
            at: Some(At { source, line, column, len: 1 }),
            message: format!("not valid JSON: {message}"),
            help: Some("JSON wants double quotes, no comments and no comma after the last item"),
        });
    }
    let (joined, moved) = join_surrogates(text);
    // In the order of the file.
    let before = |place: (usize, usize)| moved.partition_point(|pair| *pair < place);
    let restore = |at: &mut At| at.column += 2 * (before((at.line, at.column)) - before((at.line, 0)));
    let mut parsed = tree::parse(&joined, source).map_err(|mut fault| {
        fault.at.iter_mut().for_each(restore);
        fault
    })?;
    parsed.twice.iter_mut().filter_map(|(_, fault)| fault.at.as_mut()).for_each(restore);
    if let Some(root) = &mut parsed.root {
        walk(root, &restore);
    }
    Ok(parsed)
}

fn walk(node: &mut Node, restore: &impl Fn(&mut At)) {
    restore(&mut node.at);
    match &mut node.data {
        Data::Scalar { .. } => {}
        Data::List(items) => items.iter_mut().for_each(|item| walk(item, restore)),
        Data::Map(pairs) => {
            for (key, value) in pairs {
                restore(&mut key.at);
                walk(value, restore);
            }
        }
    }
}

/// Writes `\ud83d\ude00` (two halves of one character, as JSON has it) as `\U0001f600`, which YAML
/// knows. Two columns are lost each time: their places (line, column) come along.
fn join_surrogates(text: &str) -> (Cow<'_, str>, Vec<(usize, usize)>) {
    if !text.contains("\\ud") && !text.contains("\\uD") {
        return (Cow::Borrowed(text), Vec::new());
    }
    let half = |at: usize| {
        let hex = text.get(at..at + 6)?.strip_prefix("\\u")?;
        u32::from_str_radix(hex, 16).ok()
    };
    let (mut out, mut moved) = (String::with_capacity(text.len()), Vec::new());
    let (mut line, mut column, mut at) = (1, 1, 0);
    while let Some(c) = text[at..].chars().next() {
        let pair = half(at).filter(|h| (0xd800..0xdc00).contains(h)).zip(half(at + 6));
        if let Some((high, low)) = pair.filter(|(_, low)| (0xdc00..0xe000).contains(low)) {
            let code = 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
            out.push_str(&format!("\\U{code:08x}"));
            moved.push((line, column));
            (at, column) = (at + 12, column + 10);
            continue;
        }
        // An escape is copied whole, or the second half of `\\` would be taken for a beginning.
        let step = if c == '\\' { 1 + text[at + 1..].chars().next().map_or(0, char::len_utf8) } else { c.len_utf8() };
        out.push_str(&text[at..at + step]);
        (line, column) = if c == '\n' { (line + 1, 1) } else { (line, column + text[at..at + step].chars().count()) };
        at += step;
    }
    (Cow::Owned(out), moved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_pairs_become_one_character_and_columns_stay() {
        let text = "{\"s\": \"\\ud83d\\ude00 \\\\ud83d\\ude00x\", \"t\": 1}";
        // The second is an escaped backslash before a plain `ud83d`, then a lone low half: not JSON.
        assert!(parse(text, 0).is_err());
        let text = "{\"s\": \"\\ud83d\\ude00 \\\\ud83d\", \"t\": 1}";
        let root = parse(text, 0).unwrap().sound().unwrap();
        let Data::Map(pairs) = root.data else { panic!() };
        assert_eq!(pairs[0].1.data, Data::Scalar { text: "😀 \\ud83d".into(), quoted: true });
        assert_eq!(pairs[1].1.at.column, text.find('1').unwrap() + 1);
    }

    #[test]
    fn tabs_and_escapes_are_fine_and_duplicates_are_not() {
        let root = parse("{\n\t\"a\":1,\n\t\"b\": \"x\\u00e9\\/\\t\"\n}\n", 0).unwrap().sound().unwrap();
        let Data::Map(pairs) = root.data else { panic!() };
        assert_eq!(pairs[1].1.data, Data::Scalar { text: "xé/\t".into(), quoted: true });
        assert_eq!((pairs[0].1.at.line, pairs[0].1.at.column), (2, 6));
        let faults = parse("{\"a\": 1,\n \"a\": 2}", 0).unwrap().twice;
        assert_eq!(faults[0].1.message, "`a` is written twice: first on line 1");
    }

    #[test]
    fn json_errors_have_a_place() {
        let fault = parse("{\n  \"é\": 1,\n  \"é\": ,\n}", 0).unwrap_err();
        let at = fault.at.unwrap();
        assert_eq!((fault.message.as_str(), at.line, at.column), ("not valid JSON: expected value", 3, 8));
    }
}
