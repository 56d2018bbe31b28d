//! The reference of recipe keys and environment variables, written from the tables.

use std::fmt::Write as _;

use crate::env;
use crate::keys::{GROUPS, Key, Kind, State, all, canonical};

/// `docs/recipe-keys.md`: every key with its type, its default and what it does. A test compares the
/// file with this text.
#[must_use]
pub fn reference_markdown() -> String {
    let mut out = String::from(
        "# Recipe keys\n\n\
         Written by the program from its own table; `cargo run -p ferrotune-config --example recipe_keys` prints it.\n\n\
         A recipe is YAML or JSON. Keys can also be given, or overridden, on the command line: `key=value`, \
         `--key value`, `--key=value`, `--flag`, `--no_flag`, and `key.inner=value` for mappings; the last one wins. \
         `null`, `~` and an empty value mean that a key is not set.\n\n\
         **works**: does what it says. **no effect**: accepted, and a note says why. **not supported**: any other value \
         than the default is an error that says what to do instead.\n",
    );
    let count = |wanted: fn(&State) -> bool| all().filter(|key| wanted(&key.state)).count();
    // Writing to a String can't fail.
    let _ = writeln!(
        out,
        "\n{} keys: {} work, {} have no effect here, {} are not supported, {} are other names.",
        all().count(),
        count(|s| matches!(s, State::Works(_) | State::Old(..))),
        count(|s| matches!(s, State::NoEffect(_))),
        count(|s| matches!(s, State::Unsupported(_))),
        count(|s| matches!(s, State::Alias(_))),
    );
    for (title, keys) in GROUPS {
        let _ = writeln!(out, "\n## {title}\n\n| key | values | default | |\n|---|---|---|---|");
        for key in *keys {
            let _ = writeln!(out, "{}", row(key));
        }
    }
    let mut variables = |title: &str, table: &[(&str, &str)]| {
        let _ = writeln!(out, "\n{title}\n\n| variable | |\n|---|---|");
        for (name, meaning) in table {
            let _ = writeln!(out, "| `{name}` | {} |", meaning.trim().trim_end_matches('.'));
        }
    };
    variables("## Environment variables\n\nAll that the program reads.", env::ALL);
    variables("What the program tells its own processes by; not to be set.", env::OWN);
    out
}

fn row(key: &'static Key) -> String {
    let Key { name, state, .. } = key;
    let target = canonical(key);
    let default = if target.default == "null" { String::new() } else { format!("`{}`", target.default) };
    let elsewhere = match key.kind {
        Kind::Choice(choices) if !choices.elsewhere.is_empty() => {
            format!(". Not supported: {}; {}", choices.elsewhere.join(", "), choices.instead)
        }
        _ => String::new(),
    };
    let text = match state {
        State::Works(meaning) => format!("{meaning}{elsewhere}"),
        State::Old(meaning, now) => format!("{meaning}; old spelling: write {now}"),
        State::NoEffect(why) => format!("**no effect**: {why}"),
        State::Unsupported(instead) => format!("**not supported**: {instead}"),
        State::Alias(of) => format!("another name of `{of}`"),
    };
    format!("| `{name}` | {} | {default} | {text} |", target.kind.describe())
}
