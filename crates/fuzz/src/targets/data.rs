//! Data files of every type, the registry, tokenizers, chat templates.

use std::path::Path;

use ferrotune_config::plan::{DataPlan, Plan};
use ferrotune_config::{Recipe, Verb};
use ferrotune_data::chat_template::{ChatTemplate, Rendering};
use ferrotune_data::clock::Moment;
use ferrotune_data::conversation::{Conversation, Message, Role};
use ferrotune_data::encode::{EncodeOptions, Encoder};
use ferrotune_data::prepare::{conversations, prepare};
use ferrotune_data::template::{Template, TemplateOptions};
use ferrotune_data::tokenizer::Tokenizer;
use ferrotune_data::tools::ToolFormat;
use serde_json::json;

use super::{Target, fixture};

const JSON: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\\",
    "\\u0000",
    "\\ud83d",
    "null",
    "1e999",
    "-0",
    "true",
    "\n",
    "\r\n",
    "\u{feff}",
    "\"instruction\"",
    "\"input\"",
    "\"output\"",
    "\"history\"",
    "\"conversations\"",
    "\"from\"",
    "\"value\"",
    "\"human\"",
    "\"gpt\"",
    "\"tools\"",
    "\"system\"",
    "\"observation\"",
    "\"function_call\"",
    "{\"name\": \"f\", \"arguments\": {}}",
];

pub(super) const TARGETS: &[Target] = &[
    Target {
        name: "json",
        run: |input| rows("d.json", input),
        most_bytes: MOST,
        words: JSON,
        seeds: || {
            vec![
        br#"[{"instruction": "a", "input": 1, "output": "b", "history": [["q", "r"]], "system": "s"}, {"output": null}]"#.to_vec(),
        b"{\"instruction\": \"a\",\n \"output\": \"b\"}\n{\"instruction\": \"c\"}\n".to_vec(),
        "\u{feff}[\n  {\"instruction\": \"\\u00e4\", \"output\": \"\"},\n  {oops,\n  {\"instruction\": [], \"output\": {}}\n]".into(),
    ]
        },
    },
    Target {
        name: "jsonl",
        run: |input| rows("d.jsonl", input),
        most_bytes: MOST,
        words: JSON,
        seeds: || {
            vec![
        b"{\"conversations\": [{\"from\": \"human\", \"value\": \"a\"}, {\"from\": \"gpt\", \"value\": \"b\"}], \"tools\": \"[]\"}\n".to_vec(),
        b"{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"a\"}]}, {\"role\": \"assistant\", \"tool_calls\": [{\"function\": {\"name\": \"f\", \"arguments\": \"{}\"}}]}]}\n\r\n5\n".to_vec(),
    ]
        },
    },
    Target {
        name: "csv",
        run: |input| rows("d.csv", input),
        most_bytes: MOST,
        words: &["\"", ",", "\n", "\r\n", "\"\"", "instruction", "output", "\u{feff}", "\0"],
        seeds: || vec![b"instruction,input,output\na,\"b, c\",\"d\ne\"\n,,\n1,2\n".to_vec()],
    },
    Target {
        name: "text",
        run: |input| rows("d.txt", input),
        most_bytes: MOST,
        words: &["\n", "\r", "\u{feff}", "\0", "é"],
        seeds: || vec![b"a\nb\r\n\nc".to_vec()],
    },
    Target {
        name: "parquet",
        run: |input| rows("d.parquet", input),
        most_bytes: MOST,
        words: &["PAR1"],
        seeds: || vec![fixture("data/turns.parquet"), fixture("data/binary.parquet")],
    },
    Target {
        name: "arrow",
        run: |input| rows("d.arrow", input),
        most_bytes: MOST,
        words: &["ARROW1\0\0"],
        seeds: || ["stream", "file", "zstd", "lz4"].map(|name| fixture(&format!("data/{name}.arrow"))).to_vec(),
    },
    Target {
        name: "packed",
        run: |input| format!("{}{}", rows("d.jsonl.gz", input), rows("d.csv.zst", input)),
        most_bytes: MOST,
        words: &["\x1f"],
        seeds: || {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            let written = std::io::Write::write_all(&mut gzip, b"{\"instruction\": \"a\", \"output\": \"b\"}\n");
            let gzip = written.and_then(|()| gzip.finish()).unwrap_or_default();
            vec![gzip, zstd::encode_all(&b"instruction,output\na,b\n"[..], 3).unwrap_or_default()]
        },
    },
    Target {
        name: "registry",
        run: registry,
        most_bytes: MOST,
        words: &[
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "\"",
            "null",
            "true",
            "1e9",
            "-1",
            "\"file_name\"",
            "\"formatting\"",
            "\"sharegpt\"",
            "\"openai\"",
            "\"columns\"",
            "\"tags\"",
            "\"num_samples\"",
            "\"prompt\"",
            "\"messages\"",
            "\"system\"",
            "\"role_tag\"",
            "\"ranking\"",
            "\"hf_hub_url\"",
            "\"subset\"",
            "\"split\"",
            "\"folder\"",
            "d.json",
            "*.json",
            "**/*.json",
            "../d.json",
        ],
        seeds: || {
            vec![
        br#"{"d": {"file_name": "d.json", "columns": {"prompt": "instruction", "response": "output"}, "num_samples": 3}}"#.to_vec(),
        br#"{"d": {"file_name": "d.json", "formatting": "sharegpt", "columns": {"messages": "conversations"}, "tags": {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"}}}"#.to_vec(),
    ]
        },
    },
    Target {
        name: "tokenizer",
        run: tokenizer,
        most_bytes: 256 << 20,
        words: &[
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "\"",
            "null",
            "true",
            "-1",
            "\"BPE\"",
            "\"Unigram\"",
            "\"ByteLevel\"",
            "\"Split\"",
            "\"Regex\"",
            "\"vocab\"",
            "\"merges\"",
            "\"added_tokens\"",
            "\"id\"",
            "\"content\"",
            "\"special\"",
            "\"Sequence\"",
            "(?i:x)+",
            "\"NFC\"",
        ],
        seeds: || vec![SMALL_TOKENIZER.to_vec()],
    },
    Target {
        name: "chat",
        run: chat,
        most_bytes: MOST,
        words: &[
            "{{",
            "}}",
            "{%",
            "%}",
            "for",
            "in",
            "if",
            "endif",
            "endfor",
            "set",
            "message",
            "messages",
            "content",
            "role",
            "loop.index0",
            "|",
            "tojson",
            "trim",
            "range(1000000000)",
            "*",
            "-",
            "[-1]",
            "[::-1]",
            "raise_exception('x')",
            "namespace(a=1)",
            "macro m()",
            "endmacro",
            "~",
        ],
        seeds: || {
            vec![
        fixture("tokenizers/qwen3/chat_template.jinja"),
        fixture("tokenizers/smollm2/chat_template.jinja"),
        b"{% for m in messages %}<|{{ m.role }}|>{{ m['content'] | trim }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}".to_vec(),
    ]
        },
    },
    Target {
        name: "tools",
        run: tools,
        most_bytes: MOST,
        words: JSON,
        seeds: || {
            vec![
        br#"[{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}}}]"#.to_vec(),
        br#"[{"name": "f", "arguments": {"a": [1, "x", null, {"b": 2.5}]}}, {"name": "g", "arguments": "{}"}]"#.to_vec(),
    ]
        },
    },
];

/// Files are unpacked and copied in steps of a mebibyte.
const MOST: usize = 64 << 20;

/// A byte-level vocabulary of a few tokens.
const SMALL_TOKENIZER: &[u8] = br#"{"version": "1.0", "added_tokens": [{"id": 4, "content": "<eos>", "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false}], "normalizer": {"type": "NFC"}, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": "(?i:'s|'t)|\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+|\\s+"}, "behavior": "Isolated", "invert": false}, {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]}, "post_processor": null, "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}, "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3}, "merges": [["a", "b"]]}}"#;

fn plan(folder: &Path) -> Option<DataPlan> {
    let text = format!(
        "model_name_or_path: m\ndataset: d\ntemplate: qwen3\ncutoff_len: 64\ndataset_dir: {}\n",
        folder.display()
    );
    let recipe = Recipe::parse("r.yaml", text.as_bytes()).ok()?;
    Some(Plan::resolve(&recipe, Verb::Data).ok()?.0.data)
}

/// A data file of this name, read by each form that rows may have, and encoded.
fn rows(name: &str, input: &[u8]) -> String {
    let Ok(dir) = tempfile::tempdir() else { return String::new() };
    let openai = json!({"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant", "observation_tag": "tool", "function_tag": "function", "system_tag": "system"});
    let entries = json!({
        "d": {"file_name": name, "columns": {"prompt": "instruction", "query": "input", "response": "output", "history": "history", "system": "system", "tools": "tools"}},
        "s": {"file_name": name, "formatting": "sharegpt", "columns": {"messages": "conversations", "tools": "tools"}},
        "o": {"file_name": name, "formatting": "openai", "columns": {"messages": "messages"}, "tags": openai},
    });
    let written = std::fs::write(dir.path().join(name), input)
        .and_then(|()| std::fs::write(dir.path().join("dataset_info.json"), entries.to_string()));
    let Some(plan) = plan(dir.path()).filter(|_| written.is_ok()) else { return String::new() };
    let mut said = String::new();
    for dataset in ["d", "s", "o"] {
        let plan = DataPlan { datasets: vec![dataset.to_owned()], workers: Some(1), ..plan.clone() };
        said += &match conversations(&plan, 100) {
            Ok(found) => format!("{} rows", found.len().min(3)),
            Err(error) => error.to_string(),
        };
        if dataset == "d"
            && let Some(mut tokenizer) = small_tokenizer()
        {
            said += &match prepare(&plan, &mut tokenizer, &()) {
                Ok(prepared) => prepared.report.render(),
                Err(error) => error.to_string(),
            };
        }
    }
    said.replace(&*dir.path().to_string_lossy(), "")
}

fn small_tokenizer() -> Option<Tokenizer> {
    Tokenizer::from_parts(SMALL_TOKENIZER, &json!({"eos_token": "<eos>"}), None).ok()
}

fn registry(input: &[u8]) -> String {
    let Ok(dir) = tempfile::tempdir() else { return String::new() };
    let rows = br#"[{"instruction": "a", "output": "b", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}]"#;
    let written = std::fs::write(dir.path().join("d.json"), rows)
        .and_then(|()| std::fs::write(dir.path().join("dataset_info.json"), input));
    let Some(plan) = plan(dir.path()).filter(|_| written.is_ok()) else { return String::new() };
    let said = match conversations(&plan, 10) {
        Ok(found) => format!("{found:?}"),
        Err(error) => error.to_string(),
    };
    said.replace(&*dir.path().to_string_lossy(), "")
}

fn tokenizer(input: &[u8]) -> String {
    let config = json!({"eos_token": "<eos>", "bos_token": null});
    match Tokenizer::from_parts(input, &config, None) {
        Err(error) => error.to_string(),
        Ok(tokenizer) => {
            let text = "ab abc  \u{e9}\u{1f600}'s 12<eos>\n";
            let ids = tokenizer.encode(text).map_err(|error| error.to_string());
            let reference = tokenizer.encode_reference(text).map_err(|error| error.to_string());
            // Two ways to the same ids.
            assert_eq!(ids, reference, "the fast way differs");
            let back = ids.map(|ids| tokenizer.decode(&ids, false).is_ok());
            format!("{back:?} {}", tokenizer.is_fast())
        }
    }
}

fn chat(input: &[u8]) -> String {
    let source = String::from_utf8_lossy(input);
    let Some(mut tokenizer) = small_tokenizer() else { return String::new() };
    let messages = json!([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]);
    let rendered = ChatTemplate::parse(&source).and_then(|template| {
        let moment = Moment { unix_seconds: 0 };
        template.render(&Rendering::new(&messages, tokenizer.special(), moment))
    });
    let mut said = rendered.map_or_else(|error| error.to_string(), |text| format!("{} bytes", text.len().min(9)));
    let own = Tokenizer::from_parts(SMALL_TOKENIZER, &json!({"eos_token": "<eos>"}), Some(source.into_owned()));
    if let Ok(own) = own {
        tokenizer = own;
        let options =
            TemplateOptions { choice: ferrotune_config::plan::TemplateChoice::Model, ..TemplateOptions::named("") };
        said += &match Template::resolve(&options, &mut tokenizer) {
            Ok(resolved) => resolved.notes.concat(),
            Err(error) => error.to_string(),
        };
    }
    said
}

/// Descriptions and calls of tools, in every format.
fn tools(input: &[u8]) -> String {
    const FORMATS: [&str; 13] = [
        "default", "gemma4", "glm4", "glm4_moe", "lfm2", "ling", "llama3", "minimax1", "minimax2", "mistral", "qwen",
        "qwen3_5", "seed_oss",
    ];
    let text = String::from_utf8_lossy(input);
    let Some(mut tokenizer) = small_tokenizer() else { return String::new() };
    let options = EncodeOptions { cutoff_len: 1000, train_on_prompt: false, mask_history: false };
    let mut said = String::new();
    for name in FORMATS {
        let Ok(format) = ToolFormat::named(name) else { continue };
        said += &format
            .describe(&text, Moment { unix_seconds: 0 })
            .map_or_else(|error| error.to_string(), |_| "described".into());
        let template = TemplateOptions { tool_format: Some(name.to_owned()), ..TemplateOptions::named("default") };
        let Ok(resolved) = Template::resolve(&template, &mut tokenizer) else { continue };
        let messages = vec![Message::new(Role::User, "q"), Message::new(Role::Function, text.clone())];
        let chat = Conversation { messages, ..Conversation::default() };
        let encoded = Encoder::new(&tokenizer, &resolved.template, &options).encode(&chat);
        said += &encoded.map_or_else(|error| error.to_string(), |_| "called".into());
    }
    said
}
