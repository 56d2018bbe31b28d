//! The reference of templates and of data formats, written from the tables that the program itself goes by.

use std::fmt::Write as _;

use crate::read::ENDINGS;
use crate::registry::{Columns, FIELDS, Formatting, Tags};
use crate::report::Fault;
use crate::template::{Class, Slot, TableRow, table};
use crate::tools;

/// `docs/templates.md`: every template with its turns. A test compares the file with this text.
#[must_use]
pub fn templates_markdown() -> String {
    let rows = table();
    let mut out = format!(
        "# Templates\n\n\
         Written by the program from its own table; `cargo run -p ferrotune-data --example reference templates` prints it.\n\n\
         `template: auto`, or no `template`, is the model's own chat template, taken apart into the same pieces; then what is \
         trained is what a server that uses that template will send. The {} names below are LLaMA-Factory's, and so are the \
         token ids. `ferrotune data RECIPE` shows a row as any of them writes it.\n\n\
         `…` is what is said, `⟨bos⟩` and `⟨eos⟩` are the model's own tokens, `⏎` is a line break, and `⟨name⟩` is one token \
         whatever the vocabulary. Each piece is turned into tokens by itself. Words under *ends* end an answer beside the eos \
         token; *late eos* means that the eos token stands once, at the end of a row, and that the first token of the next \
         question teaches where an answer ends.\n\n\
         | template | before all | system | question | answer | ends |\n|---|---|---|---|---|---|\n",
        rows.len()
    );
    // Writing to a String can't fail.
    for row in rows {
        let ends = row.stop_words.iter().map(|word| code(word)).collect::<Vec<_>>().join(" ");
        let late = if row.efficient_eos { "late eos" } else { "" };
        let answer = if row.assistant.is_empty() { default_answer(row) } else { written(row.assistant) };
        let _ = writeln!(
            out,
            "| `{}` | {} | {} | {} | {answer} | {} |",
            row.name,
            written(row.prefix),
            if row.class == Class::SystemInUser { "in the first question".to_owned() } else { written(row.system) },
            written(row.user),
            [ends.as_str(), late].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ")
        );
    }
    thinking(&mut out);
    calling(&mut out);
    out.push_str("\n## System prompts of conversations without one\n\n| template | prompt |\n|---|---|\n");
    for row in rows.iter().filter(|row| !row.default_system.is_empty()) {
        let _ = writeln!(out, "| `{}` | {} |", row.name, code(row.default_system));
    }
    out
}

fn thinking(out: &mut String) {
    out.push_str(
        "\n## Reasoning\n\n\
         Answers of these templates have a block of reasoning. `enable_thinking: true`: an answer without one gets an empty \
         block, with a loss; `false`: reasoning is removed everywhere, and an empty block, without a loss, ends the question; \
         `null`: a missing block is put into the question, without a loss. With `mask_history: true` only the last turn keeps \
         its reasoning, unless `preserve_thinking: true`.\n\n| template | an empty block |\n|---|---|\n",
    );
    for row in table() {
        let block = match row.class {
            Class::Reasoning => format!("{}{}", row.thought.0, row.thought.1),
            Class::ReasoningClosed => row.thought.1.to_owned(),
            _ => continue,
        };
        let _ = writeln!(out, "| `{}` | {} |", row.name, code(&block));
    }
}

fn calling(out: &mut String) {
    out.push_str(
        "\n## Tools\n\n\
         `tool_format` takes another than the template's. A call is the JSON of a `function_call` turn, `{\"name\": .., \
         \"arguments\": ..}` or a list of such, written as below; here `f` is called with `{\"a\": \"x\"}`.\n\n\
         | format | a call | templates |\n|---|---|---|\n",
    );
    for (name, format) in tools::NAMES {
        let call = format.example().map_or_else(|error| error.to_string(), |call| code(&call));
        let named = |row: &&TableRow| row.tools == format;
        let templates: Vec<String> = table().iter().filter(named).map(|row| format!("`{}`", row.name)).collect();
        let templates = if name == "default" { "all others".to_owned() } else { templates.join(" ") };
        let _ = writeln!(out, "| `{name}` | {call} | {templates} |");
    }
}

fn default_answer(row: &TableRow) -> String {
    if row.efficient_eos { code("…") } else { code("…⟨eos⟩") }
}

fn written(slots: &[Slot<&str>]) -> String {
    let piece = |slot: &Slot<&str>| match slot {
        Slot::Text(text) => text.replace("{{content}}", "…").replace("{{idx}}", "⟨number of the exchange⟩"),
        Slot::Token(token) => format!("⟨{token}⟩"),
        Slot::Bos => "⟨bos⟩".to_owned(),
        Slot::Eos => "⟨eos⟩".to_owned(),
    };
    let text: String = slots.iter().map(piece).collect();
    if text.is_empty() { String::new() } else { code(&text) }
}

/// Text as code inside a table.
fn code(text: &str) -> String {
    let text = text.replace('\n', "⏎").replace('|', "\\|");
    let fence = if text.contains('`') { "``" } else { "`" };
    let space = if text.starts_with(['`', ' ']) || text.ends_with(['`', ' ']) { " " } else { "" };
    format!("{fence}{space}{text}{space}{fence}")
}

/// `docs/data-formats.md`: what data files, the registry and rows may be. A test compares the file with this text.
#[must_use]
pub fn formats_markdown() -> String {
    let mut out = String::from(
        "# Data formats\n\n\
         Written by the program from its own tables; `cargo run -p ferrotune-data --example reference formats` prints it. \
         [data.md](data.md) is the introduction.\n\n## Files\n\n| ending | what it holds |\n|---|---|\n",
    );
    for (endings, _, meaning) in ENDINGS {
        let endings: Vec<String> = endings.iter().map(|ending| format!("`.{ending}`")).collect();
        let _ = writeln!(out, "| {} | {meaning} |", endings.join(", "));
    }
    out.push_str("\n`.gz` or `.zst` behind any of them: packed with gzip or Zstandard.\n");
    out.push_str("\n## `dataset_info.json`: fields of an entry\n\n| field | |\n|---|---|\n");
    for (field, meaning) in FIELDS {
        let _ = writeln!(out, "| `{field}` | {meaning} |");
    }
    let formattings =
        [("alpaca", Formatting::Alpaca), ("sharegpt", Formatting::ShareGpt), ("openai", Formatting::OpenAi)];
    out.push_str("\n## `columns`\n\nWithout `columns`, these are read; with it, those it lists and no others.\n\n| name | column without `columns` | read by |\n|---|---|---|\n");
    let defaults = Columns::default();
    for name in Columns::NAMES {
        let default =
            defaults.mapped().find(|(mapped, _)| *mapped == name).map_or(String::new(), |(_, c)| format!("`{c}`"));
        let reads = |formatting: Formatting| formatting.reads(name);
        let by: Vec<&str> = formattings.iter().filter(|(_, f)| reads(*f)).map(|(name, _)| *name).collect();
        let _ = writeln!(out, "| `{name}` | {default} | {} |", by.join(", "));
    }
    out.push_str("\n## `tags`\n\n| tag | without `tags` |\n|---|---|\n");
    for (tag, default) in Tags::NAMES.iter().zip(Tags::default().values()) {
        let _ = writeln!(out, "| `{tag}` | `{}` |", default.unwrap_or_default());
    }
    out.push_str("\n## Why a row is left out\n\nEach with file, line and key, all at once, in the report.\n\n");
    for fault in Fault::ALL {
        let _ = writeln!(out, "- {fault}");
    }
    out
}
