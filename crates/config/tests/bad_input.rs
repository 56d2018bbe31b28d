//! What is said about every kind of wrong or doubtful recipe: `messages.txt` holds, under each recipe
//! (laid over a sound one), the place, the message and the cure. And how such a message looks.

use ferrotune_config::plan::Plan;
use ferrotune_config::{Diagnostic, Recipe, Verb};

const BASE: &str = "model_name_or_path: m\ndataset: d\noutput_dir: o\ndo_train: true\n";

fn line(d: &Diagnostic) -> String {
    let place = d.span.as_ref().map_or_else(|| "-".to_owned(), |s| format!("{}:{}+{}", s.line, s.column, s.len));
    format!("{place} {} | {}", d.message, d.help.as_deref().unwrap_or("-"))
}

/// The errors, or else the notes; one a line.
fn said(verb: Verb, name: &str, bytes: &[u8]) -> String {
    let said = match Recipe::parse(name, bytes).and_then(|recipe| Plan::resolve(&recipe, verb)) {
        Ok((_, notes)) => notes,
        Err(errors) => errors.0,
    };
    said.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn every_message_is_as_written_down() {
    let key = |line: &str| line.split(':').next().map(str::to_owned);
    let mut wrong = String::new();
    for block in include_str!("messages.txt").split("=== ").skip(1) {
        let (recipe, expected) = block.split_once('\n').unwrap_or((block, ""));
        let extra = recipe.replace("\\n", "\n");
        let kept = BASE.lines().filter(|line| !extra.lines().any(|over| key(over) == key(line)));
        let file: String = kept.map(|line| format!("{line}\n")).chain([extra.clone()]).collect();
        let actual = said(Verb::Train, "r.yaml", file.as_bytes());
        if actual != expected.trim_end() {
            wrong += &format!("=== {recipe}\n{actual}\n");
        }
    }
    assert!(wrong.is_empty(), "these are said, and messages.txt has it otherwise:\n{wrong}");
}

#[test]
fn files_that_are_no_recipes() {
    let empty = "- the recipe is empty | write at least `model_name_or_path`, `stage`, `dataset` and `output_dir`";
    let no_json = "| JSON wants double quotes, no comments and no comma after the last item";
    let cases: &[(&str, &[u8], &str)] = &[
        ("r.yaml", b"", empty),
        ("r.yaml", b"# only a comment\n", empty),
        ("r.yaml", b"null", empty),
        ("r.json", b" ", empty),
        (
            "r.yaml",
            b"- a\n- b\n",
            "1:1+1 a recipe is keys and values, but this file is a list | write `key: value`, one a line, without leading dashes",
        ),
        (
            "r.json",
            b"[1]",
            "1:1+1 a recipe is keys and values, but this file is a list | write `key: value`, one a line, without leading dashes",
        ),
        (
            "r.yaml",
            b"hello",
            "1:1+5 a recipe is keys and values, but this file is a single value | write `key: value`, one a line, without leading dashes",
        ),
        ("r.yaml", b"a: 1\nb: \xff\n", "2:4+1 invalid UTF-8 at byte 8 of the file | save the file as UTF-8"),
        ("r.yaml", b"\xff\xfea\0", "- the file is in UTF-16 | save it as UTF-8"),
        ("r.json", b"{\"a\": 1,}", &format!("1:9+1 not valid JSON: key must be a string {no_json}")),
        ("r.JSON", b"{'a': 1}", &format!("1:2+1 not valid JSON: key must be a string {no_json}")),
        (
            "r.yaml",
            b"a:\n\tb: 1\n",
            "2:1+1 a tab is used for indentation | YAML is indented with spaces: replace the tab",
        ),
        (
            "r.yaml",
            b"a: 1\n---\nb: 2\n",
            "2:1+3 a second document begins here | a recipe is one document: remove the `---` line or split the file",
        ),
    ];
    for (name, bytes, expected) in cases {
        assert_eq!(said(Verb::Train, name, bytes), *expected, "{name} {:?}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn a_byte_order_mark_and_carriage_returns_do_not_matter() {
    let file = b"\xef\xbb\xbfmodel_name_or_path: m\r\ndataset: d\r\noutput_dir: o\r\ndo_train: true\r\nseed: x\r\n";
    assert_eq!(
        said(Verb::Train, "r.yaml", file),
        "5:7+1 `seed`: expected a whole number, found 'x' | write, for example, `seed: 42`"
    );
}

#[test]
fn each_verb_needs_other_keys() {
    let missing = |verb| {
        let text = said(verb, "r.yaml", b"seed: 1\n");
        text.lines().filter_map(|l| l.split('`').nth(1).map(str::to_owned)).collect::<Vec<_>>()
    };
    assert_eq!(missing(Verb::Train), ["model_name_or_path", "dataset"]);
    assert_eq!(missing(Verb::Data), ["model_name_or_path", "dataset"]);
    assert_eq!(missing(Verb::Chat), ["model_name_or_path"]);
    assert_eq!(missing(Verb::Export), ["model_name_or_path", "export_dir"]);
}

#[test]
fn all_errors_come_at_once_and_show_their_lines() {
    let file = "model_name_or_path: m\nlora_rnak: 8  # a slip\nlearning_rate: fast\n";
    let errors = Recipe::parse("recipe.yaml", file.as_bytes())
        .and_then(|recipe| Plan::resolve(&recipe, Verb::Train))
        .expect_err("three errors");
    assert_eq!(
        errors.to_string(),
        "error: unknown key `lora_rnak`
 --> recipe.yaml:2:1
  |
2 | lora_rnak: 8  # a slip
  | ^^^^^^^^^
  = help: did you mean `lora_rank`?

error: `learning_rate`: expected a number, found 'fast'
 --> recipe.yaml:3:16
  |
3 | learning_rate: fast
  |                ^^^^
  = help: write, for example, `learning_rate: 5e-5`

error: `dataset` is missing
 --> recipe.yaml
  = help: add `dataset: name`, a name in `dataset_info.json`"
    );
}

/// Messages end up in logs.
#[test]
fn tokens_are_not_shown() {
    let json = br#"{"model_name_or_path": "m", "dataset": "d", "hub_token": "hf_abcdefgh", "seed": "x"}"#;
    let error = Recipe::parse("r.json", json).and_then(|recipe| Plan::resolve(&recipe, Verb::Train)).expect_err("seed");
    assert!(error.to_string().contains("\"hub_token\": \"***********\", \"seed\": \"x\""), "{error}");
    let recipe = Recipe::parse("r.yaml", format!("{BASE}swanlab_api_key: abcdefgh\n").as_bytes()).expect("sound");
    let (_, notes) = Plan::resolve(&recipe, Verb::Train).expect("sound");
    assert!(notes[0].render(false).contains("5 | swanlab_api_key: ********\n"), "{}", notes[0]);
}
