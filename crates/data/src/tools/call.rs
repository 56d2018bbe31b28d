//! Calls of tools, as each family's models write them.

use serde_json::{Map, Value, json};

use super::{Call, ToolFormat, bad_call, gemma4, shorten};
use crate::encode::DropReason;
use crate::pyjson::{dumps, text, whole};

pub(super) fn write(format: ToolFormat, calls: &[Call]) -> Result<String, DropReason> {
    let as_json = |call: &Call| dumps(&json!({"name": call.name, "arguments": call.arguments}), None);
    Ok(match format {
        ToolFormat::Default => joined(calls, "\n", |call| {
            Ok(format!("Action: {}\nAction Input: {}", text(&call.name), dumps(&call.arguments, None)))
        })?,
        ToolFormat::Gemma4 => gemma4::write_calls(calls),
        ToolFormat::Glm4 => match calls {
            [call] => format!("{}\n{}", text(&call.name), dumps(&call.arguments, None)),
            _ => return Err(bad_call(format!("this format makes one call a turn, not {}", calls.len()))),
        },
        ToolFormat::Glm4Moe => joined(calls, "\n", |call| {
            let start = format!("\n<tool_call>{}", text(&call.name));
            each_argument(call, start, "", |key, value| {
                format!("\n<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>")
            })
        })?,
        ToolFormat::Lfm2 => {
            let calls = joined(calls, ", ", lfm2)?;
            format!("<|tool_call_start|>[{calls}]<|tool_call_end|>")
        }
        ToolFormat::Llama3 => {
            let calls: Vec<_> =
                calls.iter().map(|call| json!({"name": call.name, "parameters": call.arguments})).collect();
            match calls.as_slice() {
                [call] => dumps(call, None),
                _ => dumps(&Value::Array(calls), None),
            }
        }
        ToolFormat::MiniMax1 => {
            format!("<tool_calls>\n{}\n</tool_calls>", joined(calls, "\n", |call| Ok(as_json(call)))?)
        }
        ToolFormat::MiniMax2 => joined(calls, "\n", |call| {
            let start = format!("<invoke name=\"{}\">", text(&call.name));
            each_argument(call, start, "\n</invoke>", |key, value| {
                format!("\n<parameter name=\"{key}\">{value}</parameter>")
            })
        })?,
        ToolFormat::Mistral => {
            format!("[{}]", joined(calls, ", ", |call| Ok(as_json(call)))?)
        }
        ToolFormat::Qwen | ToolFormat::Ling => {
            joined(calls, "\n", |call| Ok(format!("<tool_call>\n{}\n</tool_call>", as_json(call))))?
        }
        ToolFormat::Qwen35 => joined(calls, "\n", |call| {
            let start = format!("<tool_call>\n<function={}>", text(&call.name));
            each_argument(call, start, "\n</function>\n</tool_call>", |key, value| {
                format!("\n<parameter={key}>\n{value}\n</parameter>")
            })
        })?,
        ToolFormat::SeedOss => joined(calls, "\n", |call| {
            // Without the closing bracket of `<function=...>`, as LLaMA-Factory trains it.
            let start = format!("\n<seed:tool_call>\n<function={}", text(&call.name));
            each_argument(call, start, "\n</function>\n</seed:tool_call>", |key, value| {
                format!("\n<parameter={key}>{value}</parameter>")
            })
        })?,
    })
}

fn joined(
    calls: &[Call],
    separator: &str,
    write: impl Fn(&Call) -> Result<String, DropReason>,
) -> Result<String, DropReason> {
    Ok(calls.iter().map(write).collect::<Result<Vec<_>, _>>()?.join(separator))
}

fn arguments(call: &Call) -> Result<&Map<String, Value>, DropReason> {
    call.arguments.as_object().ok_or_else(|| {
        bad_call(format!("this format needs `arguments` to be an object, not {}", shorten(&call.arguments)))
    })
}

/// `start`, then each argument as `write` says (text as it stands, the rest as JSON), then `end`.
fn each_argument(
    call: &Call,
    start: String,
    end: &str,
    write: impl Fn(&str, &str) -> String,
) -> Result<String, DropReason> {
    let mut out = start;
    for (key, value) in arguments(call)? {
        out += &match value {
            Value::String(value) if whole(value).is_none() => write(key, value),
            value => write(key, &dumps(value, None)),
        };
    }
    Ok(out + end)
}

fn lfm2(call: &Call) -> Result<String, DropReason> {
    let arguments: Vec<_> = arguments(call)?
        .iter()
        .map(|(key, value)| match value {
            Value::String(value) if whole(value).is_none() => format!("{key}=\"{value}\""),
            value => format!("{key}={}", dumps(value, None)),
        })
        .collect();
    Ok(format!("{}({})", text(&call.name), arguments.join(", ")))
}
