//! Descriptions of tools, as each family's system prompt words them.

use serde_json::{Value, json};

use super::{ToolFormat, bad_tools, gemma4, shorten};
use crate::clock::Moment;
use crate::encode::DropReason;
use crate::pyjson::{dumps, text, truthy};

const GLM4: &str = "你是一个名为 ChatGLM 的人工智能助手。你是基于智谱 AI 公司训练的语言模型 GLM-4 模型开发的，\
    你的任务是针对用户的问题和要求提供适当的答复和支持。\n\n# 可用工具";
const IN_XML: &str = "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n\
    You are provided with function signatures within <tools></tools> XML tags:\n<tools>";
const AS_JSON: &str = "\n</tools>\n\nFor each function call, return a json object with function name and arguments \
    within <tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, \
    \"arguments\": <args-json-object>}\n</tool_call>";
const GLM4_MOE_CALL: &str = "\n</tools>\n\nFor each function call, output the function name and arguments within the \
    following XML format:\n<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>\n\
    <arg_value>{arg-value-1}</arg_value>\n<arg_key>{arg-key-2}</arg_key>\n<arg_value>{arg-value-2}</arg_value>\n...\n\
    </tool_call>\n";
const MINIMAX1_CALL: &str = "</tools>\n\nIf you need to call tools, please respond with <tool_calls></tool_calls> XML \
    tags, and provide tool-name and json-object of arguments, following the format below:\n<tool_calls>\n\
    {\"name\": <tool-name-1>, \"arguments\": <args-json-object-1>}\n...\n</tool_calls>";
const MINIMAX2: &str = "\n\n# Tools\n\nYou may call one or more tools to assist with the user query.\n\
    Here are the tools available in JSONSchema format:\n\n<tools>\n";
const MINIMAX2_CALL: &str = "</tools>\n\nWhen making tool calls, use XML format to invoke tools and pass parameters:\n\n\
    <minimax:tool_call>\n<invoke name=\"tool-name-1\">\n<parameter name=\"param-key-1\">param-value-1</parameter>\n\
    <parameter name=\"param-key-2\">param-value-2</parameter>\n...\n</invoke>\n</minimax:tool_call>";
const QWEN35: &str = "\n\n# Tools\n\nYou have access to the following functions:\n\n<tools>";
const QWEN35_CALL: &str = "\n</tools>\n\nIf you choose to call a function ONLY reply in the following format with NO \
    suffix:\n\n<tool_call>\n<function=example_function_name>\n<parameter=example_parameter_1>\nvalue_1\n</parameter>\n\
    <parameter=example_parameter_2>\nThis is the value for the second parameter\nthat can span\nmultiple lines\n\
    </parameter>\n</function>\n</tool_call>\n\n<IMPORTANT>\nReminder:\n\
    - Function calls MUST follow the specified format: an inner <function=...></function> block must be nested within \
    <tool_call></tool_call> XML tags\n\
    - Required parameters MUST be specified\n\
    - You may provide optional reasoning for your function call in natural language BEFORE the function call, but NOT \
    after\n\
    - If there is no function call available, answer the question like normal with your current knowledge and do not \
    tell the user about function calls\n</IMPORTANT>";
const SEED_OSS: &str = "system\nYou are Doubao, a helpful AI assistant. You may call one or more functions to assist \
    with the user query.Tool List:\nYou are authorized to use the following tools (described in JSON Schema format). \
    Before performing any task, you must decide how to call them based on the descriptions and parameters of these \
    tools.";
const SEED_OSS_CALL: &str = "\n工具调用请遵循如下格式:\n<seed:tool_call>\n<function=example_function_name>\n\
    <parameter=example_parameter_1>value_1</parameter>\n<parameter=example_parameter_2>This is the value for the \
    second parameter\nthat can span\nmultiple lines</parameter>\n</function>\n</seed:tool_call>\n";
const LLAMA3: &str = "You have access to the following functions. To call a function, please respond with JSON for a \
    function call. Respond in the format {\"name\": function name, \"parameters\": dictionary of argument name and its \
    value}. Do not use variables.\n\n";

pub(super) fn describe(format: ToolFormat, tools: &[Value], now: Moment) -> Result<String, DropReason> {
    let wrapped = || lines(tools, |tool| Ok(format!("\n{}", dumps(&wrap(tool), None))));
    Ok(match format {
        ToolFormat::Default => default(tools)?,
        ToolFormat::Gemma4 => gemma4::describe(tools)?,
        ToolFormat::Glm4 => format!("{GLM4}{}", lines(tools, glm4)?),
        ToolFormat::Glm4Moe => format!("\n\n{IN_XML}{}{GLM4_MOE_CALL}", wrapped()?),
        ToolFormat::Qwen => format!("\n\n{IN_XML}{}{AS_JSON}", wrapped()?),
        ToolFormat::Ling => format!("{IN_XML}{}{AS_JSON}\ndetailed thinking off", wrapped()?),
        ToolFormat::Qwen35 => {
            let tools = lines(tools, |tool| Ok(format!("\n{}", dumps(unwrap_or_self(tool), None))))?;
            format!("{QWEN35}{tools}{QWEN35_CALL}")
        }
        ToolFormat::Lfm2 => {
            let tools = tools.iter().map(|tool| unwrap_or_self(tool).clone()).collect();
            format!("List of tools: <|tool_list_start|>{}<|tool_list_end|>", dumps(&Value::Array(tools), None))
        }
        ToolFormat::Llama3 => {
            let tools = lines(tools, |tool| Ok(format!("{}\n\n", dumps(&wrap(tool), Some(4)))))?;
            let date = now.format("%d %b %Y");
            format!("Cutting Knowledge Date: December 2023\nToday Date: {date}\n\n{LLAMA3}{tools}")
        }
        ToolFormat::MiniMax1 => {
            let tools = lines(tools, |tool| Ok(format!("{}\n", dumps(unwrap(tool)?, None))))?;
            format!("You are provided with these tools:\n<tools>\n{tools}{MINIMAX1_CALL}")
        }
        ToolFormat::MiniMax2 => {
            let tools = lines(tools, |tool| Ok(format!("<tool>{}</tool>\n", dumps(unwrap(tool)?, None))))?;
            format!("{MINIMAX2}{tools}{MINIMAX2_CALL}")
        }
        ToolFormat::Mistral => {
            let tools = tools.iter().map(wrap).collect();
            format!("[AVAILABLE_TOOLS] {}[/AVAILABLE_TOOLS]", dumps(&Value::Array(tools), None))
        }
        ToolFormat::SeedOss => {
            format!("{SEED_OSS}\n{}{SEED_OSS_CALL}", dumps(&Value::Array(tools.to_vec()), None))
        }
    })
}

fn lines(tools: &[Value], write: impl Fn(&Value) -> Result<String, DropReason>) -> Result<String, DropReason> {
    tools.iter().map(write).collect()
}

fn is_wrapped(tool: &Value) -> bool {
    tool["type"] == "function"
}

/// The tool inside `{"type": "function", "function": tool}`.
fn unwrap(tool: &Value) -> Result<&Value, DropReason> {
    if !is_wrapped(tool) {
        return Ok(tool);
    }
    tool.get("function").ok_or_else(|| bad_tools(format!("`function` is missing in {}", shorten(tool))))
}

/// [`unwrap`], but a wrapper without content stands for itself.
pub(super) fn unwrap_or_self(tool: &Value) -> &Value {
    unwrap(tool).unwrap_or(tool)
}

fn wrap(tool: &Value) -> Value {
    if is_wrapped(tool) { tool.clone() } else { json!({"type": "function", "function": tool}) }
}

pub(super) fn name_of(tool: &Value) -> Result<String, DropReason> {
    tool.get("name").map(text).ok_or_else(|| bad_tools(format!("`name` is missing in {}", shorten(tool))))
}

fn glm4(tool: &Value) -> Result<String, DropReason> {
    let tool = unwrap(tool)?;
    let name = name_of(tool)?;
    Ok(format!("\n\n## {name}\n\n{}\n在调用上述函数时，请使用 Json 格式表示调用的参数。", dumps(tool, Some(4))))
}

fn default(tools: &[Value]) -> Result<String, DropReason> {
    let mut descriptions = String::new();
    let mut names = Vec::with_capacity(tools.len());
    for tool in tools {
        let tool = unwrap(tool)?;
        let name = name_of(tool)?;
        let description = tool.get("description").map(text).unwrap_or_default();
        let arguments = default_arguments(tool)?;
        descriptions += &format!("> Tool Name: {name}\nTool Description: {description}\nTool Args:\n{arguments}\n");
        names.push(name);
    }
    Ok(format!(
        "You have access to the following tools:\n{descriptions}Use the following format if using a tool:\n```\n\
         Action: tool name (one of [{}])\nAction Input: the input to the tool, in a JSON format representing the \
         kwargs (e.g. ```{{\"input\": \"hello world\", \"num_beams\": 5}}```)\n```\n",
        names.join(", ")
    ))
}

/// One line a parameter: `  - city (string, required): where, should be one of [A, B]`.
fn default_arguments(tool: &Value) -> Result<String, DropReason> {
    let parameters = &tool["parameters"];
    let properties = parameters["properties"]
        .as_object()
        .ok_or_else(|| bad_tools(format!("`parameters.properties` must be an object in {}", shorten(tool))))?;
    let required = parameters["required"].as_array();
    let mut out = String::new();
    for (name, property) in properties {
        let part = |key: &str| property.get(key).map(text).unwrap_or_default();
        let is_required = required.is_some_and(|names| names.iter().any(|n| n == name));
        let required = if is_required { ", required" } else { "" };
        let choices = match property.get("enum") {
            Some(Value::Array(choices)) if !choices.is_empty() => {
                format!(", should be one of [{}]", choices.iter().map(text).collect::<Vec<_>>().join(", "))
            }
            _ => String::new(),
        };
        let items = match property.get("items") {
            Some(items) if truthy(items) => {
                format!(", where each item should be {}", items.get("type").map(text).unwrap_or_default())
            }
            _ => String::new(),
        };
        out += &format!("  - {name} ({}{required}): {}{choices}{items}\n", part("type"), part("description"));
    }
    Ok(out)
}
