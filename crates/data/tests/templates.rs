//! Templates, tool formats and chat templates against what LLaMA-Factory and `transformers` write.
//!
//! `tests/prepare.rs` compares token ids of whole datasets; here every row of the table is written
//! out once, with every kind of turn, and every tool format with every kind of value.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use ferrotune_config::plan::TemplateChoice;
use ferrotune_data::chat_template::{ChatTemplate, Rendering};
use ferrotune_data::clock::Moment;
use ferrotune_data::conversation::{Conversation, Message, Role};
use ferrotune_data::encode::{DropReason, EncodeError, EncodeOptions, Encoder, IGNORE};
use ferrotune_data::template::{Template, TemplateOptions};
use ferrotune_data::tokenizer::{SpecialToken, Tokenizer};
use ferrotune_data::tools::ToolFormat;
use serde_json::{Value, json};

/// The day the goldens were made on: one tool format writes it.
const MADE: Moment = Moment { unix_seconds: 1_795_392_000 };

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("a fixture")).expect("a fixture is JSON")
}

fn tokenizer(name: &str) -> Tokenizer {
    let dir = fixtures().join("tokenizers").join(name);
    let json = std::fs::read(dir.join("tokenizer.json")).unwrap_or_else(|_| {
        let file = std::fs::File::open(dir.join("tokenizer.json.zst")).expect("a fixture");
        zstd::decode_all(file).expect("a fixture is whole")
    });
    let chat_template = std::fs::read_to_string(dir.join("chat_template.jinja")).ok();
    Tokenizer::from_parts(&json, &read_json(&dir.join("tokenizer_config.json")), chat_template)
        .expect("a fixture is a tokenizer")
}

fn goldens(kind: &str) -> Vec<Value> {
    let folder = std::fs::read_dir(fixtures().join(kind)).expect("a folder of fixtures");
    let mut paths: Vec<_> = folder.map(|entry| entry.expect("a fixture").path()).collect();
    paths.sort();
    paths.iter().map(|path| read_json(path)).collect()
}

fn options(name: &str) -> TemplateOptions {
    TemplateOptions { now: MADE, ..TemplateOptions::named(name) }
}

fn conversation(messages: &Value, system: &str, tools: &str) -> Conversation {
    let message = |turn: &Value| {
        let role = match turn[0].as_str() {
            Some("user") => Role::User,
            Some("assistant") => Role::Assistant,
            Some("function") => Role::Function,
            _ => Role::Observation,
        };
        Message::new(role, turn[1].as_str().unwrap_or_default())
    };
    let messages = messages.as_array().expect("a list").iter().map(message).collect();
    Conversation { messages, system: system.to_owned(), tools: tools.to_owned() }
}

/// A byte-level tokenizer that writes any text and has the tokens that `names` lists.
fn plain_tokenizer(names: &Value) -> Tokenizer {
    let spec = read_json(&fixtures().join("tokenizers/tiny-qwen/tokenizer.json"));
    let config = json!({"bos_token": "<bos>", "eos_token": "<eos>"});
    let mut tokenizer = Tokenizer::from_parts(spec.to_string().as_bytes(), &config, None).expect("it is a tokenizer");
    let names: Vec<String> = serde_json::from_value(names.clone()).expect("a list of names");
    tokenizer.add_tokens(&names, true);
    tokenizer
}

#[test]
fn every_template_writes_what_llamafactory_writes() {
    let rendered = read_json(&fixtures().join("templates/rendered.json"));
    let templates = rendered["templates"].as_object().expect("templates by name");
    assert_eq!(templates.keys().map(String::as_str).collect::<Vec<_>>(), Template::names().collect::<Vec<_>>());
    let mut faults = Vec::new();
    for (name, cases) in templates {
        for (case, expected) in cases.as_object().expect("cases by name").iter().filter(|(_, c)| c.is_object()) {
            let mut tokenizer = plain_tokenizer(&cases["tokens"]);
            let mut options = options(name);
            options.enable_thinking = expected.get("enable_thinking").map_or(Some(true), Value::as_bool);
            let template = Template::resolve(&options, &mut tokenizer).expect("it has all tokens").template;
            assert_eq!(cases["eos"], tokenizer.special().eos.as_ref().expect("an eos").text.as_str(), "{name}");
            let mask_history = expected["mask_history"] == true;
            let options = EncodeOptions { cutoff_len: 100_000, train_on_prompt: false, mask_history };
            let messages = expected.get("messages").unwrap_or(&rendered["cases"][case]["messages"]);
            let tools = if expected["tools"] == true { rendered["tools"].as_str() } else { None };
            let system = expected["system"].as_str().unwrap_or_default();
            let chat = conversation(messages, system, tools.unwrap_or_default());
            let row = Encoder::new(&tokenizer, &template, &options).encode(&chat).expect("the row is sound");
            let turns = expected["turns"].as_array().expect("turns");
            let text: String = turns.iter().flat_map(|turn| [&turn[0], &turn[1]]).filter_map(Value::as_str).collect();
            let got = tokenizer.decode(&row.input_ids, false).expect("ids are known");
            if got != text {
                faults.push(format!("{name}, {case}:\n {got:?}\n {text:?}"));
            }
            if mask_history {
                // With a late eos, the first token of a prompt teaches where the answer before ends.
                let late = if template.efficient_eos() { "<eos>" } else { "" };
                let answer = turns.iter().rev().filter_map(|turn| turn[1].as_str()).find(|text| !text.is_empty());
                let labels: Vec<u32> = row.labels.iter().filter_map(|&id| u32::try_from(id).ok()).collect();
                let expected = format!("{late}{}{late}", answer.expect("an answer"));
                assert_eq!(tokenizer.decode(&labels, false).expect("ids are known"), expected, "{name}, {case}");
            }
        }
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn every_tool_format_writes_what_llamafactory_writes() {
    let rendered = read_json(&fixtures().join("templates/rendered.json"));
    let formats = rendered["formats"].as_object().expect("formats by name");
    assert_eq!(formats.len(), 13);
    for (name, expected) in formats {
        let format = ToolFormat::named(name).expect("a known name");
        let tools = rendered["tools"].as_str().expect("JSON text");
        assert_eq!(format.describe(tools, MADE).expect("sound tools"), expected["tools"], "{name}");
        // The plain template writes a call and nothing else around it but the eos token.
        let mut options = options("default");
        options.tool_format = Some(name.clone());
        let mut tokenizer = plain_tokenizer(&json!([]));
        let template = Template::resolve(&options, &mut tokenizer).expect("it has all tokens").template;
        let options = EncodeOptions { cutoff_len: 100_000, train_on_prompt: false, mask_history: false };
        for key in ["call", "calls"] {
            let chat = conversation(&json!([["user", "q"], ["function", rendered[key]]]), "", "");
            let row = Encoder::new(&tokenizer, &template, &options).encode(&chat);
            let Some(call) = expected[key].as_str() else {
                assert!(matches!(row, Err(DropReason::Call { .. })), "{name}, {key}: {row:?}");
                continue;
            };
            let labels: Vec<u32> =
                row.expect("a sound call").labels.iter().filter_map(|&id| u32::try_from(id).ok()).collect();
            let written = tokenizer.decode(&labels, false).expect("ids are known");
            assert_eq!(written, format!("{call}<eos>"), "{name}, {key}");
        }
    }
}

#[test]
fn saved_chat_templates_are_those_of_llamafactory() {
    let rendered = read_json(&fixtures().join("templates/rendered.json"));
    for (name, cases) in rendered["templates"].as_object().expect("templates by name") {
        let mut tokenizer = plain_tokenizer(&cases["tokens"]);
        let template = Template::resolve(&options(name), &mut tokenizer).expect("it has all tokens").template;
        let saved = template.chat_template_to_save(&tokenizer);
        assert_eq!(Value::from(saved.clone()), cases["jinja"], "{name}");
        if let Some(source) = saved {
            // What is saved writes what was trained.
            let messages = json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]);
            let chat = ChatTemplate::parse(&source).expect("it is sound");
            let text = chat.render(&Rendering::new(&messages, tokenizer.special(), MADE)).expect("it renders");
            assert!(text.contains("Hi") && text.contains("Hello."), "{name}: {text}");
        }
    }
}

#[test]
fn special_tokens_are_set_as_llamafactory_sets_them() {
    let mut tokenizers: HashMap<String, Tokenizer> = HashMap::new();
    let mut checked = 0;
    for golden in goldens("encode").iter().filter(|golden| golden.get("eos_token").is_some()) {
        let name = golden["tokenizer"].as_str().expect("a name");
        let mut tokenizer = tokenizers.entry(name.to_owned()).or_insert_with(|| tokenizer(name)).clone();
        let choice = golden["template"].as_str().map_or(TemplateChoice::Model, |n| TemplateChoice::Named(n.to_owned()));
        let template = Template::resolve(&TemplateOptions { choice, ..options("") }, &mut tokenizer);
        let template = template.expect("it fits").template;
        let special = tokenizer.special();
        let text = |token: &Option<SpecialToken>| Value::from(token.as_ref().map(|token| token.text.clone()));
        let id = |token: &Option<SpecialToken>| Value::from(token.as_ref().map(|token| token.id));
        let mut stop_ids = template.stop_ids(&tokenizer);
        stop_ids.sort_unstable();
        let got = [
            ("eos_token", text(&special.eos)),
            ("eos_token_id", id(&special.eos)),
            ("pad_token", text(&special.pad)),
            ("pad_token_id", id(&special.pad)),
            ("bos_token_id", id(&special.bos)),
            ("vocab_len_after", tokenizer.len().into()),
            ("stop_token_ids", stop_ids.into()),
        ];
        for (what, value) in got {
            assert_eq!(value, golden[what], "{}: {what}", golden["id"]);
        }
        checked += 1;
    }
    assert!(checked > 120, "{checked} cases");
}

#[test]
fn chat_templates_render_as_in_transformers() {
    let tokenizers = ["qwen3", "smollm2"].map(|name| (name, tokenizer(name)));
    for golden in goldens("chat_template") {
        let (_, tokenizer) = tokenizers.iter().find(|(name, _)| golden["tokenizer"] == *name).expect("a fixture");
        let chat = ChatTemplate::parse(tokenizer.chat_template().expect("it has one")).expect("it is sound");
        let rendering = Rendering {
            tools: Some(&golden["tools"]),
            add_generation_prompt: golden["add_generation_prompt"] == true,
            extra: golden["kwargs"].as_object(),
            ..Rendering::new(&golden["messages"], tokenizer.special(), MADE)
        };
        let text = chat.render(&rendering).expect("it renders");
        assert_eq!(golden["rendered"], text.as_str(), "{}", golden["id"]);
        assert_eq!(golden["input_ids"], Value::from(tokenizer.encode(&text).expect("it is text")), "{}", golden["id"]);
    }
}

#[test]
fn a_prompt_is_the_beginning_of_its_row() {
    let rendered = read_json(&fixtures().join("templates/rendered.json"));
    for name in Template::names() {
        let mut tokenizer = plain_tokenizer(&rendered["templates"][name]["tokens"]);
        // Without thinking, a row and a prompt both have the empty block before the answer.
        let options = TemplateOptions { enable_thinking: Some(false), ..options(name) };
        let template = Template::resolve(&options, &mut tokenizer).expect("it has all tokens").template;
        let options = EncodeOptions { cutoff_len: 100_000, train_on_prompt: false, mask_history: true };
        let encoder = Encoder::new(&tokenizer, &template, &options);
        let mut chat =
            conversation(&json!([["user", "Hi"], ["assistant", "A"], ["user", "B"], ["assistant", "C"]]), "S", "");
        let row = encoder.encode(&chat).expect("the row is sound");
        chat.messages.pop();
        let prompt = encoder.encode_prompt(&chat).expect("the chat is sound");
        assert!(row.input_ids.starts_with(&prompt), "{name}");
        assert!(row.labels[prompt.len()] != IGNORE && !row.eos_lost && row.cut_tokens == 0, "{name}");
    }
}

#[test]
fn what_is_cut_is_counted() {
    let mut tokenizer = plain_tokenizer(&json!([]));
    let template = Template::resolve(&options("default"), &mut tokenizer).expect("it has all tokens").template;
    let turns = json!([["user", "1234567890"], ["assistant", "1234567890"], ["user", "12"], ["assistant", "34"]]);
    let chat = conversation(&turns, "", "");
    let encode = |cutoff_len, mask_history| {
        let options = EncodeOptions { cutoff_len, train_on_prompt: false, mask_history };
        Encoder::new(&tokenizer, &template, &options).encode(&chat).expect("the row is sound")
    };
    let whole = encode(1000, false);
    assert!(!whole.eos_lost && whole.cut_tokens == 0);
    for cutoff_len in 0..whole.input_ids.len() {
        for mask_history in [false, true] {
            let row = encode(cutoff_len, mask_history);
            assert!(row.input_ids.len() <= cutoff_len && row.labels.len() == row.input_ids.len());
            assert_eq!(row.input_ids.len() + row.cut_tokens, whole.input_ids.len(), "{cutoff_len}");
            let ends = row.input_ids.last() == whole.input_ids.last();
            assert_eq!(row.eos_lost, !ends, "{cutoff_len} {mask_history}");
        }
    }
}

#[test]
fn bad_choices_say_what_to_do() {
    let resolve = |options: &TemplateOptions| {
        let mut tokenizer = tokenizer("tiny-qwen");
        Template::resolve(options, &mut tokenizer).expect_err("it must fail").to_string()
    };
    assert_eq!(
        resolve(&options("qwen3_nothinking")),
        "there is no template `qwen3_nothinking`; did you mean `qwen3_nothink`?; leave `template` out to use the \
         model's own chat template"
    );
    let mut formats = options("qwen");
    formats.tool_format = Some("qwen2".to_owned());
    assert!(resolve(&formats).starts_with("there is no tool format `qwen2`; known are default, gemma4, "));
    let prompts = TemplateOptions { train_on_prompt: true, ..options("breeze") };
    assert!(resolve(&prompts).starts_with("template `breeze` can't be used with `train_on_prompt: true`"));
    assert!(resolve(&options("chatglm3")).starts_with("template `chatglm3` needs the token `[gMASK]`"));
}

#[test]
fn rows_that_cannot_be_written_say_why() {
    let mut tokenizer = tokenizer("tiny-qwen");
    let template = Template::resolve(&options("qwen"), &mut tokenizer).expect("it fits").template;
    let encode_options = EncodeOptions { cutoff_len: 100, train_on_prompt: false, mask_history: false };
    let encoder = Encoder::new(&tokenizer, &template, &encode_options);
    let reason = |turns: Value, tools: &str| {
        encoder.encode(&conversation(&turns, "", tools)).expect_err("it must fail").to_string()
    };
    let rule = "turns must alternate between a prompt and an answer, and end with an answer; ";
    let good = json!([["user", "a"], ["assistant", "b"]]);
    assert_eq!(reason(json!([]), ""), format!("{rule}turn 1 is missing"));
    assert_eq!(reason(json!([["user", "a"], ["observation", "b"]]), ""), format!("{rule}turn 2 is no answer"));
    assert_eq!(reason(json!([["assistant", "b"], ["user", "a"]]), ""), format!("{rule}turn 1 is an answer"));
    assert_eq!(reason(json!([["user", "a"]]), ""), format!("{rule}turn 1 has no answer"));
    assert_eq!(reason(good.clone(), "{}"), "the tools can't be used: a list of tool descriptions was expected");
    assert!(reason(good, "[").starts_with("the tools can't be used: it isn't JSON: "));
    let call = |call: &str| reason(json!([["user", "a"], ["function", call]]), "");
    assert!(call("get()").starts_with("the function call can't be used: it isn't JSON: "));
    assert_eq!(call(r#"{"name": "f"}"#), r#"the function call can't be used: `arguments` is missing in {"name": "f"}"#);
}

#[test]
fn chat_templates_that_give_no_labels_are_errors() {
    let spec = read_json(&fixtures().join("tokenizers/tiny-qwen/tokenizer.json")).to_string();
    let resolve = |source: &str| {
        let mut tokenizer = Tokenizer::from_parts(spec.as_bytes(), &json!({}), Some(source.to_owned()));
        let tokenizer = tokenizer.as_mut().expect("it is a tokenizer");
        let options = TemplateOptions { choice: TemplateChoice::Model, ..options("") };
        Template::resolve(&options, tokenizer).expect_err("it must fail")
    };
    assert!(matches!(resolve("{% for %}"), EncodeError::ChatTemplateSyntax { .. }));
    assert!(matches!(resolve("{{ raise_exception('no system') }}"), EncodeError::ChatTemplateRender { .. }));
    assert!(matches!(resolve("always the same"), EncodeError::ChatTemplateShape { .. }));
}

/// Conversations as Ollama has them and as the trainer has them: system prompt, messages, tools; beside the trainer's prompt.
fn ollama_cases(template: &Template, tokenizer: &Tokenizer, with_tools: bool) -> Vec<Value> {
    let call = |day: u32| json!({"name": "get_weather", "arguments": {"city": "Paris {}", "day": day}});
    let said = |role: &str, content: &str| json!({"role": role, "content": content});
    let called = |calls: &[Value]| {
        let calls: Vec<Value> = calls.iter().map(|call| json!({"function": call})).collect();
        json!({"role": "assistant", "content": "", "tool_calls": calls})
    };
    let tool = json!({"type": "function", "function": {"name": "get_weather", "description": "Weather <b> & more",
                      "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}});
    let other = json!({"type": "function", "function": {"name": "roll", "description": "a die", "parameters": {"type": "object"}}});
    let (one, two) = (json!([tool]), json!([tool, other]));
    let results = "12°\n</tool_response>\n<tool_response>\n13°";
    let plain: [(&str, Value, Value); 3] = [
        ("", json!([["user", "Hi {{x}}"]]), json!([said("user", "Hi {{x}}")])),
        ("Be brief.", json!([["user", "Hi"]]), json!([said("system", "Be brief."), said("user", "Hi")])),
        (
            "Be brief.",
            json!([["user", "Hi"], ["assistant", "Hello."], ["user", "\"\"\"Again?"]]),
            json!([
                said("system", "Be brief."),
                said("user", "Hi"),
                said("assistant", "Hello."),
                said("user", "\"\"\"Again?")
            ]),
        ),
    ];
    let user = said("user", "Weather?");
    let tools: [(&Value, Value, Value); 4] = [
        (&one, json!([["user", "Weather?"]]), json!([user])),
        (&two, json!([["user", "Weather?"]]), json!([user])),
        (
            &one,
            json!([["user", "Weather?"], ["function", call(1).to_string()], ["observation", "12°"]]),
            json!([user, called(&[call(1)]), said("tool", "12°")]),
        ),
        (
            &two,
            json!([
                ["user", "Weather?"],
                ["function", json!([call(1), call(2)]).to_string()],
                ["observation", results],
                ["assistant", "Fine."],
                ["user", "Bye"]
            ]),
            json!([
                user,
                called(&[call(1), call(2)]),
                said("tool", "12°"),
                said("tool", "13°"),
                said("assistant", "Fine."),
                said("user", "Bye")
            ]),
        ),
    ];
    let options = EncodeOptions { cutoff_len: 100_000, train_on_prompt: false, mask_history: false };
    let encoder = Encoder::new(tokenizer, template, &options);
    let mut cases = Vec::new();
    let mut add = |chat: Conversation, messages: Value, tools: Option<&Value>| {
        // A format that can't write a call says so in training, too.
        let Ok(ids) = encoder.encode_prompt(&chat) else { return };
        let prompt = tokenizer.decode(&ids, false).expect("ids are known");
        cases.push(json!({"messages": messages, "tools": tools, "prompt": prompt}));
    };
    for (system, turns, messages) in plain {
        add(conversation(&turns, system, ""), messages, None);
    }
    for (tools, turns, messages) in tools.into_iter().filter(|_| with_tools) {
        add(conversation(&turns, "", &tools.to_string()), messages, Some(tools));
    }
    cases
}

/// What Ollama's template of each of our templates is, with conversations: by name and, of models that reason, by the recipe's
/// settings.
fn ollama_files() -> Value {
    let rendered = read_json(&fixtures().join("templates/rendered.json"));
    let mut files = serde_json::Map::new();
    for name in Template::names() {
        for (suffix, thinking, preserve) in
            [("", Some(true), false), (" none", None, false), (" off", Some(false), false), (" kept", Some(true), true)]
        {
            let mut tokenizer = plain_tokenizer(&rendered["templates"][name]["tokens"]);
            let options = TemplateOptions { enable_thinking: thinking, preserve_thinking: preserve, ..options(name) };
            let template = Template::resolve(&options, &mut tokenizer).expect("it has all tokens").template;
            if !suffix.is_empty() && !template.is_reasoning() {
                continue;
            }
            let text = template.modelfile(&tokenizer, ".", None).text;
            let quoted = |key: &str| {
                let (_, rest) = text.split_once(&format!("{key} \"\"\""))?;
                Some(rest.split_once("\"\"\"\n").expect("the string ends").0.to_owned())
            };
            let go = quoted("TEMPLATE").expect("a template");
            let cases = ollama_cases(&template, &tokenizer, go.contains(".ToolCalls"));
            let file = json!({"template": go, "system": quoted("SYSTEM").unwrap_or_default(), "cases": cases});
            files.insert(format!("{name}{suffix}"), file);
        }
    }
    files.into()
}

/// JSON is Ollama's in tools and calls, so spaces don't count there, nor how Go writes `<`, `>` and `&` in it.
fn without_spaces(text: &str) -> String {
    let plain = [("\\u003c", "<"), ("\\u003e", ">"), ("\\u0026", "&")];
    let text = plain.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to));
    text.split_whitespace().collect()
}

/// What Go's `text/template` made of the templates in the fixture, fed as Ollama's `template.Execute` feeds it, is what the
/// trainer's chat asks; and they are still the templates that are written.
#[test]
fn ollama_asks_what_the_trainer_asks() {
    let goldens = read_json(&fixtures().join("modelfile/rendered.json"));
    let files = ollama_files();
    let goldens = goldens.as_object().expect("files by name");
    assert!(goldens.len() > 15);
    for (name, golden) in goldens {
        assert_eq!(files[name]["template"], golden["template"], "{name}");
        let cases = files[name]["cases"].as_array().expect("cases");
        let rendered = golden["rendered"].as_array().expect("a text a case");
        assert_eq!(cases.len(), rendered.len(), "{name}");
        for (case, rendered) in cases.iter().zip(rendered) {
            let (prompt, rendered) = (case["prompt"].as_str().expect("text"), rendered.as_str().expect("text"));
            match case["tools"].is_null() {
                true => assert_eq!(rendered, prompt, "{name}: {}", case["messages"]),
                false => assert_eq!(without_spaces(rendered), without_spaces(prompt), "{name}: {}", case["messages"]),
            }
        }
    }
}

/// Writes what is to be rendered to a file that `FERROTUNE_MODELFILES` names.
#[test]
#[ignore = "makes the fixture's other half, for Go"]
fn what_ollama_is_to_render() {
    let path = std::env::var_os("FERROTUNE_MODELFILES").expect("FERROTUNE_MODELFILES");
    std::fs::write(path, ollama_files().to_string()).expect("the file can be written");
}
