//! `docs/commands.md`, written from the definitions that the command line is read by. A test compares the two.

use crate::Cli;
use crate::failure::CODES;
use clap::{Arg, ArgAction, Command, CommandFactory};
use std::fmt::Write as _;
use std::path::Path;

/// Every verb with its options, and the exit codes.
fn commands_markdown() -> String {
    let mut out = String::from(
        "# Commands\n\n\
         Written by the program from its own definitions; `FERROTUNE_TEST_WRITE=1 cargo test -p ferrotune reference` writes it \
         again.\n\n\
         A verb that works on a recipe takes keys behind it, `key=value` or `--key value`, which win over the file: \
         [recipe-keys.md](recipe-keys.md) lists them, and the environment variables. A verb's own options may stand anywhere. \
         `ferrotune VERB --help` says the same as this page.\n",
    );
    let mut program = Cli::command();
    program.build();
    // Writing to a String can't fail.
    for verb in program.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        let about = verb.get_about().map(ToString::to_string).unwrap_or_default();
        let _ = writeln!(out, "\n## {}\n\n{}", verb.get_name(), sentence(&about));
        let arguments: Vec<&Arg> =
            verb.get_arguments().filter(|arg| !arg.is_hide_set() && arg.get_id() != "help").collect();
        let _ = writeln!(out, "\n    {}", usage(verb, &arguments));
        if !arguments.is_empty() {
            out.push_str("\n| argument | default | |\n|---|---|---|\n");
        }
        arguments.iter().for_each(|argument| out.push_str(&row(argument)));
    }
    out.push_str("\n## Exit codes\n\n| code | |\n|---|---|\n");
    for (code, meaning) in CODES {
        let _ = writeln!(out, "| {code} | {meaning} |");
    }
    out
}

fn usage(verb: &Command, arguments: &[&Arg]) -> String {
    let options = if arguments.iter().any(|arg| !arg.is_positional()) { " [OPTIONS]" } else { "" };
    let places = arguments.iter().filter(|arg| arg.is_positional()).map(|arg| {
        let more = if matches!(arg.get_action(), ArgAction::Append) { "..." } else { "" };
        if arg.is_required_set() { format!(" <{}>{more}", value(arg)) } else { format!(" [{}]{more}", value(arg)) }
    });
    format!("ferrotune {}{options}{}", verb.get_name(), places.collect::<String>())
}

/// What a user writes for the value of an argument.
fn value(argument: &Arg) -> String {
    let names = argument.get_value_names().unwrap_or_default();
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn row(argument: &Arg) -> String {
    let short = argument.get_short().map(|short| format!("-{short}"));
    let names: Vec<String> = short.into_iter().chain(argument.get_long().map(|long| format!("--{long}"))).collect();
    let takes = if argument.get_action().takes_values() { value(argument) } else { String::new() };
    let written = format!("{} {takes}", names.join(", "));
    let default: Vec<_> =
        argument.get_default_values().iter().map(|value| format!("`{}`", value.to_string_lossy())).collect();
    let is_flag = !argument.get_action().takes_values();
    let default = if is_flag { String::new() } else { default.join(" ") };
    let one_of: Vec<_> = argument
        .get_possible_values()
        .iter()
        .filter(|_| !is_flag)
        .map(|value| format!("`{}`", value.get_name()))
        .collect();
    let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
    let one_of = if one_of.is_empty() { String::new() } else { format!(" One of {}.", one_of.join(", ")) };
    let cell = |text: String| text.trim().replace('|', "\\|");
    format!("| `{}` | {default} | {}{one_of} |\n", cell(written), cell(sentence(&help)))
}

/// Help as clap keeps it has no full stop.
fn sentence(help: &str) -> String {
    let help = help.trim();
    if help.is_empty() || help.ends_with(['.', ')']) { help.to_owned() } else { format!("{help}.") }
}

#[test]
fn the_page_of_commands_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/commands.md");
    let text = commands_markdown();
    if std::env::var_os("FERROTUNE_TEST_WRITE").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default().replace("\r\n", "\n");
    assert!(written == text, "run `FERROTUNE_TEST_WRITE=1 cargo test -p ferrotune reference`");
}

#[test]
fn every_verb_and_every_option_says_what_it_is_for() {
    let text = commands_markdown();
    for verb in
        ["train", "plan", "check", "data", "chat", "export", "deploy", "launch", "status", "schema", "env", "doctor"]
    {
        assert!(text.contains(&format!("\n## {verb}\n")), "{verb}");
    }
    let silent: Vec<&str> = text.lines().filter(|line| line.starts_with("| `") && line.ends_with("|  |")).collect();
    assert_eq!(silent, Vec::<&str>::new());
    assert!(!text.contains("## launched") && !text.contains("## webui"), "what is hidden stays hidden");
}

/// Each variable that is read is in the tables of `config::env`: `environment::var` asks for that, and nothing else reads any.
#[test]
fn the_environment_is_read_in_one_place() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut readers = Vec::new();
    for name in [
        "config",
        "data",
        "tensor",
        "model",
        "dist",
        "checkpoint",
        "train",
        "infer",
        "deploy",
        "track",
        "doctor",
        "cli",
    ] {
        files(&crates.join(name).join("src"), &mut |path, text| {
            let reads = ["env::var", "env::vars", "env::var_os", "env::vars_os"]
                .iter()
                .any(|word| text.contains(&format!("{word}(")));
            if reads {
                readers.push(path.strip_prefix(&crates).unwrap_or(path).to_string_lossy().into_owned());
            }
        });
    }
    readers.sort();
    assert_eq!(readers, ["cli/src/environment.rs", "cli/src/reference.rs"], "environment::var reads the environment");
}

fn files(folder: &Path, see: &mut dyn FnMut(&Path, &str)) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, see);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            see(&path, &std::fs::read_to_string(&path).unwrap());
        }
    }
}
