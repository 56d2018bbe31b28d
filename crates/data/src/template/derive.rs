//! A template out of the model's own chat template, found by rendering it around a mark.
//!
//! What stands before the mark, after it, and what is added by a system prompt become the slots.
//! The way of comparing is LLaMA-Factory's, so that the same model gives the same tokens.

use serde_json::{Value, json};

use super::{Class, Slot, Template, ToolText};
use crate::chat_template::{ChatTemplate, Rendering};
use crate::clock::Moment;
use crate::encode::EncodeError;
use crate::tokenizer::Tokenizer;
use crate::tools::ToolFormat;

const MARK: &str = "{{content}}";

pub(super) fn derive(source: &str, tokenizer: &Tokenizer, now: Moment) -> Result<Template, EncodeError> {
    let chat = ChatTemplate::parse(source)?;
    let prefix = tokenizer.surrounding_text()?;
    let render = |messages: Value, open: bool| {
        let rendering =
            Rendering { add_generation_prompt: open, ..Rendering::new(&messages, tokenizer.special(), now) };
        chat.render(&rendering).map(|text| skip(&text, &prefix).to_owned())
    };
    let user_turn = json!({"role": "user", "content": MARK});
    let system = render(json!([{"role": "system", "content": MARK}]), false)?;
    let without_system = render(json!([{"role": "system", "content": ""}, user_turn]), true)?;
    let user = render(json!([user_turn]), true)?;
    let exchange = render(json!([user_turn, {"role": "assistant", "content": MARK}]), false)?;
    let assistant = skip(&exchange, &user).to_owned();

    let class = if assistant.contains("<think>") { Class::Reasoning } else { Class::Plain };
    let assistant = assistant.replace("<think>", "").replace("</think>", "").trim_start_matches('\n').to_owned();
    // A default system prompt is what a chat without one has more than a chat with an empty one.
    let (default_system, user) = if user.chars().count() > without_system.chars().count() {
        let default = added(&without_system, &user);
        let block = system.replacen(MARK, &default, 1);
        let user = skip(&user, &block).to_owned();
        (default, user)
    } else {
        (String::new(), user)
    };
    for (part, slot) in [("system prompt", &system), ("question", &user), ("answer", &assistant)] {
        if !slot.contains(MARK) {
            return Err(EncodeError::ChatTemplateShape {
                problem: format!("the {part} can't be found in what it writes"),
            });
        }
    }
    Ok(assemble(class, &prefix, [&system, &user, &assistant], default_system))
}

fn assemble(class: Class, prefix: &str, [system, user, assistant]: [&str; 3], default_system: String) -> Template {
    let slot = |text: &str| if text.is_empty() { Vec::new() } else { vec![Slot::Text(text.to_owned())] };
    Template {
        name: String::new(),
        class,
        prefix: slot(prefix),
        system: slot(system),
        user: slot(user),
        function: slot(assistant),
        assistant: slot(assistant),
        observation: slot(user),
        calls: ToolFormat::Default,
        tools: ToolText::Format(ToolFormat::Default),
        default_system,
        stop_words: Vec::new(),
        thought: ("<think>\n".to_owned(), "\n</think>\n\n".to_owned()),
        call: ("<tool_call>".to_owned(), "</tool_call>".to_owned()),
        efficient_eos: false,
        replace_eos: false,
        replace_chat_template: false,
        enable_thinking: Some(true),
        preserve_thinking: false,
        mask_history: false,
        now: Moment { unix_seconds: 0 },
    }
}

/// `text` after as many characters as `leading` has, whatever they are.
fn skip<'a>(text: &'a str, leading: &str) -> &'a str {
    let count = leading.chars().count();
    text.char_indices().nth(count).map_or("", |(at, _)| &text[at..])
}

/// The characters of `long` that are left over when `short` is found in it one by one.
fn added(short: &str, long: &str) -> String {
    let mut short = short.chars().peekable();
    let mut rest = String::new();
    for c in long.chars() {
        match short.peek() {
            None => break,
            Some(&expected) if expected == c => {
                short.next();
            }
            Some(_) => rest.push(c),
        }
    }
    rest
}
