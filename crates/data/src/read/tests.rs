use std::fs;

use super::*;

fn open(name: &str, bytes: &[u8]) -> Result<Source, DataError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, bytes).unwrap();
    Source::open(&path, files::file_type("d", &path)?, dir.path())
}

/// Each row as its line and its JSON, or its line and what is wrong.
fn rows(name: &str, bytes: &[u8]) -> Vec<String> {
    let source = open(name, bytes).unwrap();
    (0..source.len())
        .map(|row| match source.read(row) {
            Ok(value) => format!("{} {value}", source.line(row)),
            Err(reject) => format!("{} {}: {}", reject.line, reject.fault, reject.detail),
        })
        .collect()
}

fn message(name: &str, bytes: &[u8]) -> String {
    let text = open(name, bytes).unwrap_err().to_string();
    text[text.rfind('/').map_or(0, |slash| slash + 1)..].to_owned()
}

#[test]
fn json_in_all_its_forms() {
    assert_eq!(rows("a.json", b"[{\"a\": 1},\n {\"a\": null}]"), [r#"1 {"a":1}"#, r#"2 {"a":null}"#]);
    assert_eq!(rows("a.json", b"\xef\xbb\xbf[{\"a\": 1}]\r\n"), [r#"1 {"a":1}"#]);
    assert_eq!(rows("a.jsonl", b"{\"a\": 1}\r\n\r\n{\"a\": \"\\u00e9\"}"), [r#"1 {"a":1}"#, r#"3 {"a":"é"}"#]);
    assert_eq!(rows("a.json", b"{\"a\": 1}\n{\"a\": 2}\n"), [r#"1 {"a":1}"#, r#"2 {"a":2}"#]);
    assert_eq!(rows("a.json", b"{\n \"a\": 1\n}\n{\n \"a\": 2\n}"), [r#"1 {"a":1}"#, r#"4 {"a":2}"#]);
    assert_eq!(rows("a.jsonl", b"[{\"a\": 1}]"), [r#"1 {"a":1}"#]);
    assert!(rows("a.json", b"").is_empty());
    assert!(rows("a.json", b" []").is_empty());
    assert!(rows("a.jsonl", b"\n\n").is_empty());
}

#[test]
fn broken_rows_say_where_and_why_and_the_rest_is_read() {
    assert_eq!(
        rows("a.jsonl", b"{\"a\": 1}\n{\"a\": }\nnot json\n{\"a\": 2"),
        [
            r#"1 {"a":1}"#,
            "2 broken JSON: expected value, column 7",
            "3 broken JSON: expected ident, column 2",
            "4 broken JSON: EOF while parsing an object, column 7",
        ]
    );
    assert_eq!(
        rows("a.json", b"[\n  {\"a\": 1},\n  {\n    \"a\": 1,\n    oops\n  },\n  {\"a\": 2},,\n  {\"a\": 3}\n]"),
        [
            r#"2 {"a":1}"#,
            "5 broken JSON: key must be a string, column 5",
            r#"7 {"a":2}"#,
            "7 broken JSON: a comma without a row before it",
            r#"8 {"a":3}"#,
        ]
    );
    assert_eq!(
        rows("a.json", b"[\n  {\"a\": 1},\n  {\"a\": [2},\n  {\"a\": {\"b\": 3},\n  {\"a\": 4}\n]"),
        [
            r#"2 {"a":1}"#,
            "3 broken JSON: expected `,` or `]`, column 9",
            "4 broken JSON: EOF while parsing an object, column 14",
            r#"5 {"a":4}"#,
        ]
    );
    assert_eq!(
        rows("a.json", b"[{\"a\": 1}, {\"a\": \"cut o"),
        [r#"1 {"a":1}"#, "1 broken JSON: EOF while parsing a string, column 12"]
    );
    assert_eq!(
        rows("a.json", b"[{\"a\": 1}]\n, {\"a\": 2}"),
        [r#"1 {"a":1}"#, "2 broken JSON: the list ends with `]` before this point", r#"2 {"a":2}"#]
    );
}

#[test]
fn a_row_nested_without_end_is_refused() {
    let deep = format!("{{\"a\": {}{}}}\n{{\"a\": 1}}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(
        rows("a.jsonl", deep.as_bytes()),
        ["1 broken JSON: recursion limit exceeded, column 133", r#"2 {"a":1}"#]
    );
}

#[test]
fn invalid_utf8_names_the_byte() {
    assert_eq!(
        rows("a.json", b"[{\"a\": 1},\n{\"a\":\n\"\xff\"}]"),
        [r#"1 {"a":1}"#, "3 invalid UTF-8: byte 18 of the file"]
    );
    assert_eq!(
        rows("a.csv", b"a,b\n1,2\n3,\xe9\n"),
        [r#"2 {"a":"1","b":"2"}"#, "3 invalid UTF-8: byte 0 of column `b`"]
    );
    assert_eq!(rows("a.txt", b"ok\n\xff\xfe"), [r#"1 {"text":"ok"}"#, "2 invalid UTF-8: byte 3 of the file"]);
}

#[test]
fn files_of_the_wrong_form_are_refused() {
    assert_eq!(
        message("a.json", b"  \"text\""),
        "a.json:1: expected a list of rows, `[{...}, {...}]`, or a row a line; it begins with `\\\"`"
    );
    assert_eq!(
        message("a.json", b"{\"version\": 1, \"data\": [{\"instruction\": \"a\"}]}"),
        "a.json:1: expected a list of rows, found one object; save the list under `data` by itself"
    );
    assert_eq!(message("a.json", b"\xff\xfe[\0"), "a.json: this is UTF-16 text; save it as UTF-8");
    assert_eq!(
        message("a.jsonl", b"\x1f\x8b\x08"),
        "a.jsonl: is compressed with gzip; give it a name that ends in `.gz`"
    );
    assert_eq!(message("a.json", b"PAR1\x15\x04"), "a.json: is a parquet file; name it .parquet");
    assert_eq!(message("a.csv", b"a\0b"), "a.csv: holds zero bytes: it isn't text");
    assert_eq!(message("a.csv", b"a,b,a\n"), "a.csv:1: the header names column `a` twice");
    assert!(message("a.parquet", b"PAR1 and nothing else").starts_with("a.parquet: is no readable parquet file: "));
}

#[test]
fn csv_fields_are_text_and_empty_ones_null() {
    assert_eq!(
        rows("a.csv", b"\xef\xbb\xbfa,b,c\r\n1,\"x, \"\"y\"\"\nz\",\r\nshort\r\n1,2,3,4\r\nlast,2,3"),
        [
            r#"2 {"a":"1","b":"x, \"y\"\nz","c":null}"#,
            r#"4 {"a":"short","b":null,"c":null}"#,
            "5 wrong fields: 4 fields under 3 columns",
            r#"6 {"a":"last","b":"2","c":"3"}"#,
        ]
    );
    assert_eq!(
        rows("a.csv", b"a,b\n1,2\n3,\"open\n4,5\n"),
        [
            r#"2 {"a":"1","b":"2"}"#,
            "3 wrong fields: a quote in this row never closes; the rest of the file went into it",
        ]
    );
}

#[test]
fn text_files_give_a_row_a_line() {
    assert_eq!(rows("a.txt", b"one\r\n\ntwo"), [r#"1 {"text":"one"}"#, r#"2 {"text":""}"#, r#"3 {"text":"two"}"#]);
}

#[test]
fn parquet_with_nested_columns() {
    let bytes = include_bytes!("../../../../fixtures/data/turns.parquet");
    assert_eq!(
        rows("a.parquet", bytes),
        [
            r#"1 {"conversations":[{"from":"human","value":"Weather?"},{"from":"gpt","value":"Sunny – 18 °C"}],"system":"Be brief.","score":0.5,"tags":["a","b"]}"#,
            r#"2 {"conversations":[{"from":"human","value":"1+1"},{"from":"gpt","value":"2"},{"from":"human","value":"Sure?"},{"from":"gpt","value":"Yes."}],"system":null,"score":null,"tags":[]}"#,
            r#"3 {"conversations":[{"from":"human","value":"odd"}],"system":"","score":1.0,"tags":null}"#,
        ]
    );
    assert_eq!(
        rows("a.parquet", include_bytes!("../../../../fixtures/data/binary.parquet")),
        [r#"1 {"instruction":"a","output":"x","n":1,"d":1.5}"#, r#"2 {"instruction":"b","output":"y","n":2,"d":null}"#]
    );
}

#[test]
fn a_row_of_ten_megabytes_is_read() {
    let long = "x".repeat(10 << 20);
    let json = format!("[{{\"a\": 1}}, {{\"a\": \"{long}\"}}, {{\"a\": 2}}]");
    let source = open("a.json", json.as_bytes()).unwrap();
    assert_eq!(source.len(), 3);
    assert_eq!(source.read(1).unwrap()["a"].as_str().unwrap().len(), long.len());
    assert_eq!(source.read(2).unwrap()["a"], 2);
}

#[test]
fn a_file_written_to_while_it_is_read_is_found_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.jsonl");
    fs::write(&path, "{}\n").unwrap();
    let source = Source::open(&path, FileType::JsonLines, dir.path()).unwrap();
    source.check_unchanged().unwrap();
    fs::write(&path, "{}\n{}\n").unwrap();
    let error = source.check_unchanged().unwrap_err().to_string();
    assert!(error.ends_with("a.jsonl changed while it was being read; start again when it is complete"), "{error}");
}

/// A small generator of bytes, so that failures repeat.
struct Bytes(u64);

impl Bytes {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) % n as u64) as usize
    }
}

#[test]
fn mutated_files_never_panic() {
    let json =
        br#"[{"instruction": "a\"b", "history": [["q", "r"]]}, {"conversations": [{"from": "x", "value": null}]}]"#;
    let csv = b"instruction,input,output\n\"a \"\"b\"\"\",,c\nd,e,f\n";
    let parquet = include_bytes!("../../../../fixtures/data/turns.parquet");
    let mut bytes = Bytes(1);
    let dir = tempfile::tempdir().unwrap();
    for (name, seed, rounds) in [
        ("a.json", json.as_slice(), 3000),
        ("a.jsonl", json.as_slice(), 1000),
        ("a.csv", csv.as_slice(), 1000),
        ("a.txt", csv.as_slice(), 200),
        ("a.parquet", parquet.as_slice(), 300),
    ] {
        for round in 0..rounds {
            let mut mutated = seed.to_vec();
            for _ in 0..=bytes.below(4) {
                let position = bytes.below(mutated.len());
                match bytes.below(3) {
                    0 => mutated[position] = bytes.below(256) as u8,
                    1 => mutated[position] = b"{}[]\",:\\\n\r"[bytes.below(10)],
                    _ => mutated.truncate(position.max(1)),
                }
            }
            // A new name each time: overwriting a file waits for the disk.
            let path = dir.path().join(format!("{round}{name}"));
            fs::write(&path, &mutated).unwrap();
            let source = Source::open(&path, files::file_type("d", &path).unwrap(), dir.path());
            if let Ok(source) = source {
                (0..source.len()).for_each(|row| drop(source.read(row)));
            }
            fs::remove_file(&path).unwrap();
        }
    }
}

#[test]
fn packed_files_are_unpacked_also_in_several_parts_and_damage_of_them_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let gzip = |text: &str| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        std::io::Write::write_all(&mut encoder, text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    let zstandard = |text: &str| zstd::encode_all(text.as_bytes(), 3).unwrap();
    let open = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        Source::open(&path, files::file_type("d", &path)?, dir.path())
    };
    let (first, second) = ("{\"a\": 1}\n", "{\"a\": 2}\n");
    for (name, bytes) in [
        ("a.jsonl.gz", [gzip(first), gzip(second)].concat()),
        ("a.json.GZ", gzip("[{\"a\": 1}, {\"a\": 2}]")),
        ("a.csv.gz", gzip("a\n1\n2\n")),
        ("a.txt.gz", gzip("1\n2\n")),
        ("a.jsonl.zst", [zstandard(first), zstandard(second)].concat()),
        ("a.csv.zst", zstandard("a\n1\n2\n")),
    ] {
        let source = open(name, &bytes).unwrap();
        let rows: Vec<String> = (0..source.len()).map(|row| source.read(row).unwrap().to_string()).collect();
        assert!(rows.len() == 2 && rows[0].contains('1') && rows[1].contains('2'), "{name}: {rows:?}");
        source.check_unchanged().unwrap();
        for damaged in [&bytes[..bytes.len() - 9], &bytes[..3], b"plain"] {
            let error = open(name, damaged).unwrap_err().to_string();
            let told = error.contains("is cut short: ") || error.contains(", or damaged: ");
            assert!(told && error.contains(name), "{error}");
        }
    }
}

/// What pyarrow wrote; `fixtures/data/make_arrow.py` says how.
#[test]
fn arrow_files_are_read_as_their_writer_meant_them() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/data");
    let expected: Vec<Value> = serde_json::from_slice(&fs::read(folder.join("arrow.json")).unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for name in ["stream", "file", "zstd", "lz4"] {
        let path = folder.join(format!("{name}.arrow"));
        let source = Source::open(&path, FileType::Arrow, dir.path()).unwrap();
        let rows: Vec<Value> = (0..source.len()).map(|row| source.read(row).unwrap()).collect();
        assert_eq!(rows, expected, "{name}");
    }
}

#[test]
fn damaged_arrow_files_give_rows_or_a_reason() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/data");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.arrow");
    let whole = fs::read(folder.join("stream.arrow")).unwrap();
    for len in 0..whole.len() {
        fs::write(&path, &whole[..len]).unwrap();
        match Source::open(&path, FileType::Arrow, dir.path()) {
            Ok(source) => assert!((0..source.len()).any(|row| source.read(row).is_err()), "{len} bytes"),
            Err(error) => assert!(error.to_string().contains("is no readable Arrow file: "), "{error}"),
        }
    }
    for position in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[position] ^= 1 << (position % 8);
        fs::write(&path, bytes).unwrap();
        if let Ok(source) = Source::open(&path, FileType::Arrow, dir.path()) {
            (0..source.len()).for_each(|row| drop(source.read(row)));
        }
    }
}

#[test]
fn what_is_no_data_in_a_folder_of_data_is_told_with_a_cure() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a.jsonl", "README.md"] {
        fs::write(dir.path().join(name), "{}").unwrap();
    }
    let message = data_files("d", dir.path()).unwrap_err().to_string();
    assert!(message.contains("README.md is not a json") && message.ends_with("such as `folder/*.jsonl`"), "{message}");
    let alone = data_files("d", &dir.path().join("README.md")).unwrap_err().to_string();
    assert!(alone.ends_with("txt file"), "{alone}");
}
