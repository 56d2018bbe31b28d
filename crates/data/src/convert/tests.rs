use std::path::Path;

use serde_json::json;

use super::*;
use crate::registry::Registry;
use ferrotune_config::plan::Stage;

fn entry(fields: Value) -> DatasetEntry {
    let dir = tempfile::tempdir().unwrap();
    let mut fields = fields;
    fields["file_name"] = json!("d.json");
    std::fs::write(dir.path().join("dataset_info.json"), json!({"d": fields}).to_string()).unwrap();
    let entry = Registry::open(dir.path()).unwrap().entry("d", Stage::Sft).unwrap();
    assert_eq!(entry.path.file_name(), Some(Path::new("d.json").as_os_str()));
    entry
}

/// A conversation in one line: `system|tools|user: ..|assistant: ..`, or the reason it is none.
fn converted(fields: &Value, row: &Value) -> String {
    let entry = entry(fields.clone());
    match Converter::new(&entry).conversation(row, 5) {
        Err(reject) => {
            assert_eq!(reject.line, 5);
            format!("{}: {}", reject.fault, reject.detail)
        }
        Ok((conversation, _)) => {
            let mut parts = vec![conversation.system, conversation.tools];
            let turns = conversation.messages.iter();
            parts.extend(turns.map(|turn| format!("{:?}: {}", turn.role, turn.content).to_lowercase()));
            parts.join("|")
        }
    }
}

fn check(fields: &Value, cases: &[(Value, &str)]) {
    for (row, expected) in cases {
        assert_eq!(converted(fields, row), *expected, "{row}");
    }
}

#[test]
fn alpaca() {
    let all = json!({"columns": {"prompt": "instruction", "query": "input", "response": "output", "history": "history",
        "system": "system", "tools": "tools", "images": "images"}});
    check(
        &all,
        &[
            (json!({"instruction": "a", "input": "b", "output": "c"}), "||user: a\nb|assistant: c"),
            (json!({"instruction": "", "input": "b", "output": ""}), "||user: b|assistant: "),
            (json!({"output": "c"}), "||user: |assistant: c"),
            (
                json!({"instruction": "a", "output": "c", "system": "s", "history": [["q", "r"]], "tools": [{"n": 1}]}),
                "s|[{\"n\": 1}]|user: q|assistant: r|user: a|assistant: c",
            ),
            (json!({"instruction": "a", "output": "c", "history": "x", "tools": "[]"}), "|[]|user: a|assistant: c"),
            (json!({"instruction": 7, "input": null, "output": 1.5}), "||user: 7|assistant: 1.5"),
            (json!({"instruction": "a", "output": null}), "no answer: `output` is null"),
            (json!({"instruction": "a"}), "no answer: `output` is missing"),
            (json!({"instruction": ["a"], "output": "c"}), "not text: `instruction` is a list"),
            (json!({"instruction": "a", "output": true}), "not text: `output` is true or false"),
            (
                json!({"instruction": "a", "output": "c", "history": [["q"]]}),
                "history is not a list of pairs: `history[0]` must be a question and its answer",
            ),
            (json!({"instruction": "a", "output": "c", "history": [["q", null]]}), "not text: `history[0][1]` is null"),
            (
                json!({"instruction": "a", "output": "c", "images": ["x.png"]}),
                "images, videos or audios, which aren't trained on: column `images`",
            ),
            (json!("a"), "not an object of columns: found text"),
            (json!(null), "not an object of columns: found null"),
        ],
    );
    check(
        &json!({"columns": {"prompt": "instruction"}}),
        &[(json!({"instruction": "a", "output": "b"}), "no answer: the dataset's `columns` map no `response`")],
    );
    check(&json!({}), &[(json!({"instruction": "a", "output": "c", "system": "s"}), "||user: a|assistant: c")]);
}

#[test]
fn sharegpt() {
    let fields = json!({"formatting": "sharegpt", "columns": {"messages": "c", "system": "system", "tools": "tools"}});
    let turn = |from: &str, value: &str| json!({"from": from, "value": value});
    let (human, gpt) = (turn("human", "q"), turn("gpt", "r"));
    check(
        &fields,
        &[
            (json!({"c": [human, gpt], "system": "s", "tools": {"n": 1}}), "s|{\"n\": 1}|user: q|assistant: r"),
            (json!({"c": [turn("system", "first"), human, gpt], "system": "s"}), "first||user: q|assistant: r"),
            (
                json!({"c": [human, {"from": "function_call", "value": {"name": "f", "arguments": {}}},
                    turn("observation", "o"), gpt]}),
                "||user: q|function: {\"name\": \"f\", \"arguments\": {}}|observation: o|assistant: r",
            ),
            (json!({"c": [human, human, gpt]}), "turns don't alternate: turn 2 is a question, not an answer"),
            (json!({"c": [gpt, human]}), "turns don't alternate: turn 1 is an answer, not a question"),
            (json!({"c": [human, gpt, human]}), "the last turn is a question: 3 turns"),
            (
                json!({"c": [human, turn("system", "s")]}),
                "turns don't alternate: turn 2 is a system prompt; only the first may be",
            ),
            (
                json!({"c": [turn("user", "q"), gpt]}),
                "unknown role: turn 1 is by `user`; the dataset's `tags` know `human`, `gpt`, `observation`, \
                 `function_call`, `system`",
            ),
            (json!({"c": []}), "no turns: `c` holds no turns"),
            (json!({"c": [turn("system", "s")]}), "no turns: `c` holds no turns"),
            (json!({"c": null}), "no turns: `c` is missing or null"),
            (json!({"c": "text"}), "no turns: `c` is text, not a list of turns"),
            (json!({"c": ["q", "r"]}), "not a turn: turn 1 is text, not an object"),
            (json!({"c": [{"value": "q"}, gpt]}), "not a turn: turn 1 has no `from`"),
            (json!({"c": [{"from": null, "value": "q"}, gpt]}), "not a turn: `from` of turn 1 is null"),
            (json!({"c": [human, {"from": "gpt", "value": null}]}), "not text: `value` of turn 2 is null"),
            (json!({"c": [human, {"from": "gpt"}]}), "not text: `value` of turn 2 is missing"),
            (json!({"c": [human, {"from": "gpt", "value": {}}]}), "not text: `value` of turn 2 is an object"),
        ],
    );
    let without = |given: Value| json!({"formatting": "sharegpt", "columns": {"messages": "c"}, "tags": given});
    let row = json!({"c": [human, gpt]});
    check(&without(json!({})), &[(row.clone(), "not a turn: the dataset's `tags` have no `role_tag`")]);
    let tags = json!({"role_tag": "from", "user_tag": "human", "assistant_tag": "gpt"});
    check(&without(tags), &[(row.clone(), "not a turn: the dataset's `tags` have no `content_tag`")]);
    check(
        &json!({"formatting": "sharegpt", "columns": {}}),
        &[(row, "no turns: the dataset's `columns` map no `messages`")],
    );
}

#[test]
fn openai() {
    let fields = json!({"formatting": "openai", "columns": {"messages": "messages", "tools": "tools"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
            "observation_tag": "tool", "function_tag": "function_call", "system_tag": "system"}});
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let call = json!({"role": "assistant", "content": null, "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]});
    let (user, assistant, tool) = (turn("user", "q"), turn("assistant", "r"), turn("tool", "o"));
    check(
        &fields,
        &[
            (json!({"messages": [user, assistant]}), "detailed thinking off||user: q|assistant: r"),
            (
                json!({"messages": [turn("system", "s"), user, assistant]}),
                "s\ndetailed thinking off||user: q|assistant: r",
            ),
            (
                json!({"messages": [turn("system", "detailed thinking on"), user, assistant]}),
                "detailed thinking on||user: q|assistant: r",
            ),
            (json!({"messages": [turn("system", "s"), user, assistant], "tools": []}), "s\n|[]|user: q|assistant: r"),
            (
                json!({"messages": [user, call, tool, tool, assistant], "tools": "[]"}),
                "|[]|user: q|function: [{\"name\": \"f\", \"arguments\": \"{\\\"x\\\": 1}\"}]|\
                 observation: o\n</tool_response>\n<tool_response>\no|assistant: r",
            ),
            (
                json!({"messages": [user, call, tool], "tools": "[]"}),
                "|[]|user: q|function: [{\"name\": \"f\", \"arguments\": \"{\\\"x\\\": 1}\"}]",
            ),
            (
                json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"},
                    {"type": "text", "text": "b"}]}, assistant], "tools": "x"}),
                "|x|user: ab|assistant: r",
            ),
            (
                json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, assistant]}),
                "images, videos or audios, which aren't trained on: turn 1 has a part of type `image_url`",
            ),
            (
                json!({"messages": [user, {"role": "assistant", "tool_calls": [{"id": 1}]}]}),
                "broken tool calls: a tool call of turn 2 has no `function` object",
            ),
            (
                json!({"messages": [user, {"role": "assistant", "tool_calls": "f"}]}),
                "broken tool calls: `tool_calls` of turn 2 is text, not a list",
            ),
            (
                json!({"messages": [user, {"role": "assistant", "content": null}]}),
                "not text: `content` of turn 2 is null",
            ),
            (json!({"messages": [tool]}), "no turns: only results of tools"),
        ],
    );
}

#[test]
fn text_of_stage_pt() {
    let text = |fields: Value, row: Value| {
        let entry = entry(fields);
        Converter::new(&entry)
            .text(&row, 1)
            .map(|(text, _)| text)
            .map_err(|reject| format!("{}: {}", reject.fault, reject.detail))
    };
    let column = json!({"columns": {"prompt": "text"}});
    assert_eq!(text(column.clone(), json!({"text": "a"})).unwrap(), "a");
    assert_eq!(text(column.clone(), json!({"text": ""})).unwrap(), "");
    assert_eq!(text(column.clone(), json!({"text": null})).unwrap_err(), "no text: `text` is missing or null");
    assert_eq!(
        text(json!({"columns": {}}), json!({})).unwrap_err(),
        "no text: the dataset's `columns` map no `prompt`"
    );
    assert_eq!(text(json!({}), json!({"instruction": "a", "input": "b"})).unwrap(), "a\nb");
    assert_eq!(text(column, json!({"text": {}})).unwrap_err(), "not text: `text` is an object");
    let turns = json!([{"from": "human", "value": "q"}, {"from": "gpt", "value": "r"}]);
    assert_eq!(text(json!({"formatting": "sharegpt"}), json!({"conversations": turns})).unwrap(), "q");
}

#[test]
fn unusual_rows_are_counted() {
    let quirks = |fields: Value, row: Value| Converter::new(&entry(fields)).conversation(&row, 1).unwrap().1;
    assert_eq!(quirks(json!({}), json!({"instruction": 1, "output": 2})).numbers_as_text, 2);
    let history = json!({"columns": {"prompt": "p", "response": "r", "history": "h"}});
    assert!(quirks(history.clone(), json!({"p": "a", "r": "b", "h": "[]"})).history_ignored);
    assert!(!quirks(history, json!({"p": "a", "r": "b", "h": ""})).history_ignored);
}

#[test]
fn values_of_any_kind_anywhere_never_panic() {
    let turn = |role: Value, content: Value| json!({"from": role, "value": content, "role": role, "content": content, "tool_calls": content});
    let plain = [
        json!(null),
        json!(true),
        json!(-1e300),
        json!(""),
        json!("text"),
        json!([]),
        json!({}),
        json!([[]]),
        json!([["q", "r"], ["q"]]),
        json!([{"function": {}}]),
        json!([{"type": "text", "text": "x"}]),
    ];
    let mut values = plain.to_vec();
    for role in ["human", "gpt", "system", "observation", "function_call", "x"] {
        for content in &plain {
            values.push(json!([turn(json!("human"), json!("q")), turn(json!(role), content.clone())]));
            values.push(json!([turn(content.clone(), json!(role))]));
        }
    }
    let columns = json!({"prompt": "p", "query": "q", "response": "r", "history": "h", "messages": "m", "system": "s",
        "tools": "t", "images": "i"});
    for formatting in ["alpaca", "sharegpt", "openai"] {
        let entry = entry(json!({"formatting": formatting, "columns": columns}));
        let converter = Converter::new(&entry);
        for value in &values {
            for column in ["p", "q", "r", "h", "m", "s", "t", "i"] {
                let mut row = json!({"p": "a", "r": "b", "m": [turn(json!("human"), json!("q")), turn(json!("gpt"), json!("r"))]});
                row[column] = value.clone();
                let _ = converter.conversation(&row, 1);
                let _ = converter.text(&row, 1);
            }
            assert!(converter.conversation(value, 1).is_err(), "{value}");
        }
    }
}
