//! A model's own chat template, rendered as `transformers` renders it.
//!
//! A template comes with a model, so it is hostile input: it has no access to anything, its work
//! and its depth are bounded, and whatever fails is an error.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value, escape_formatter};
use serde_json::{Map, Value as Json, json};

use crate::clock::Moment;
use crate::encode::EncodeError;
use crate::pyjson::{self, Layout};
use crate::tokenizer::SpecialTokens;

/// Steps a rendering may take, of which 64 bytes of text are one too; a long chat takes some hundred
/// thousand.
const FUEL: u64 = 10_000_000;
/// Widest indentation of `tojson`.
const INDENT: usize = 64;
/// Nested calls a rendering may make.
const DEPTH: usize = 200;
const NAME: &str = "chat";

/// A parsed chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
}

/// What is rendered.
#[derive(Debug, Clone, Copy)]
pub struct Rendering<'a> {
    /// Messages in OpenAI's form: a list of objects with `role`, `content`, `tool_calls`.
    pub messages: &'a Json,
    /// Tools in OpenAI's form, a list.
    pub tools: Option<&'a Json>,
    /// End with the beginning of an answer.
    pub add_generation_prompt: bool,
    /// `bos_token`, `eos_token`, `pad_token` and `unk_token` of the template.
    pub special: &'a SpecialTokens,
    /// More variables, such as `enable_thinking`.
    pub extra: Option<&'a Map<String, Json>>,
    /// Today, for templates that write the date.
    pub now: Moment,
}

impl<'a> Rendering<'a> {
    /// Finished turns without tools.
    pub fn new(messages: &'a Json, special: &'a SpecialTokens, now: Moment) -> Self {
        Self { messages, tools: None, add_generation_prompt: false, special, extra: None, now }
    }
}

impl ChatTemplate {
    /// Parses a template in Jinja.
    ///
    /// # Errors
    /// If it isn't one; the error names the line.
    pub fn parse(source: &str) -> Result<Self, EncodeError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment
            .set_syntax(syntax.map_err(|source| EncodeError::ChatTemplateSyntax { problem: describe(&source) })?);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(DEPTH);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_formatter(|out, state, value| match printed(value) {
            Some(text) => escape_formatter(out, state, &Value::from(text)),
            None => escape_formatter(out, state, value),
        });
        environment.add_filter("tojson", tojson);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |state: &State<'_, '_>, format: String| -> Result<String, Error> {
            let seconds = state.lookup(NOW).and_then(|now| i64::try_from(now).ok()).unwrap_or_default();
            Ok(Moment { unix_seconds: seconds }.format(&format))
        });
        environment
            .add_template_owned(NAME, without_generation_blocks(source))
            .map_err(|source| EncodeError::ChatTemplateSyntax { problem: describe(&source) })?;
        Ok(Self { environment })
    }

    /// The text of a chat.
    ///
    /// # Errors
    /// If the template refuses the messages (`raise_exception`), fails, or does too much work.
    pub fn render(&self, rendering: &Rendering<'_>) -> Result<String, EncodeError> {
        let failed = |source: Error| EncodeError::ChatTemplateRender { problem: describe(&source) };
        let template = self.environment.get_template(NAME).map_err(failed)?;
        let mut variables = json!({
            "messages": rendering.messages,
            "tools": rendering.tools,
            "documents": null,
            "add_generation_prompt": rendering.add_generation_prompt,
            NOW: rendering.now.unix_seconds,
        });
        let special = rendering.special;
        let named = [
            ("bos_token", &special.bos),
            ("eos_token", &special.eos),
            ("pad_token", &special.pad),
            ("unk_token", &special.unk),
        ];
        for (name, token) in named {
            if let Some(token) = token {
                variables[name] = Json::from(token.text.as_str());
            }
        }
        for (name, value) in rendering.extra.into_iter().flatten() {
            variables[name] = value.clone();
        }
        template.render(Value::from(Serde(variables))).map_err(failed)
    }
}

/// The variable that carries [`Rendering::now`]; no template would choose this name.
const NOW: &str = "__now_unix_seconds";

/// What an error says, with its line and the errors behind it.
fn describe(error: &Error) -> String {
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("{detail} (line {line})"),
        None => detail,
    }
}

/// `value` as Python prints it, where that is not how the engine does.
fn printed(value: &Value) -> Option<String> {
    let differs = match value.kind() {
        ValueKind::None | ValueKind::Bool | ValueKind::Seq | ValueKind::Map => true,
        ValueKind::Number => !value.is_integer(),
        _ => false,
    };
    differs.then(|| serde_json::to_value(value).ok()).flatten().map(|json| pyjson::text(&json))
}

/// The `tojson` filter of `transformers`: Python's `json.dumps` without escaping for HTML.
#[expect(clippy::needless_pass_by_value, reason = "the engine hands filters their options by value")]
fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let invalid = |what: String| Error::new(ErrorKind::InvalidOperation, what);
    let mut json = serde_json::to_value(value).map_err(|e| invalid(format!("tojson: {e}")))?;
    let indent: Option<usize> = options.get("indent")?;
    if indent.is_some_and(|indent| indent > INDENT) {
        return Err(invalid(format!("tojson: an indent above {INDENT}")));
    }
    let separators: Option<Vec<String>> = options.get("separators")?;
    let ensure_ascii: Option<bool> = options.get("ensure_ascii")?;
    let sort_keys: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    if sort_keys == Some(true) {
        json.sort_all_objects();
    }
    let text = match separators.as_deref() {
        None => pyjson::dumps(&json, indent),
        Some([item, colon]) => pyjson::dumps_with(&json, &Layout { item, colon, indent }),
        Some(_) => return Err(invalid("tojson: separators must be two texts".to_owned())),
    };
    Ok(if ensure_ascii == Some(true) { escape_non_ascii(&text) } else { text })
}

fn escape_non_ascii(json: &str) -> String {
    let mut units = [0; 2];
    json.chars().fold(String::with_capacity(json.len()), |mut out, c| {
        if c.is_ascii() {
            out.push(c);
        } else {
            out.extend(c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")));
        }
        out
    })
}

/// `{% generation %}` marks the answers for masks in `transformers`; it writes nothing. It becomes
/// a block that is always written, so that white space around it is treated the same.
fn without_generation_blocks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut pieces = source.split("{%");
    out.push_str(pieces.next().unwrap_or_default());
    for piece in pieces {
        out.push_str("{%");
        match generation_tag(piece) {
            Some((tag, block)) => out.push_str(&piece.replacen(tag, block, 1)),
            None => out.push_str(piece),
        }
    }
    out
}

/// The word of a tag that begins or ends a generation block, and what to write instead; `piece`
/// follows the tag's `{%`.
fn generation_tag(piece: &str) -> Option<(&'static str, &'static str)> {
    const SIGNS: [char; 2] = ['-', '+'];
    let inside = piece.strip_prefix(SIGNS).unwrap_or(piece).trim_start();
    let (word, block) = [("generation", "if true"), ("endgeneration", "endif")]
        .into_iter()
        .find(|(word, _)| inside.starts_with(word))?;
    let rest = inside[word.len()..].trim_start();
    rest.strip_prefix(SIGNS).unwrap_or(rest).starts_with("%}").then_some((word, block))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, messages: &Json) -> Result<String, EncodeError> {
        let special = SpecialTokens::default();
        let now = Moment { unix_seconds: 951_782_400 };
        ChatTemplate::parse(source)?.render(&Rendering::new(messages, &special, now))
    }

    #[test]
    fn values_are_printed_as_python_prints_them() {
        let messages = json!([{"a": 1.0, "n": null, "l": ["x", true]}]);
        let source = "{% set m = messages[0] %}{{ m.a }} {{ m.n }} {{ m.l }} {{ missing }}|{{ m.l is sequence }}";
        assert_eq!(render(source, &messages).unwrap(), "1.0 None ['x', True] |True");
    }

    #[test]
    fn tojson_follows_json_dumps() {
        let messages = json!([{"b": "<é>'", "a": [1, 0.5]}]);
        assert_eq!(render("{{ messages[0]|tojson }}", &messages).unwrap(), r#"{"b": "<é>'", "a": [1, 0.5]}"#);
        let source = "{{ messages[0]|tojson(sort_keys=true, ensure_ascii=true, separators=(',', ':')) }}";
        assert_eq!(render(source, &messages).unwrap(), r#"{"a":[1,0.5],"b":"<\u00e9>'"}"#);
        assert_eq!(render("{{ [1]|tojson(indent=2) }}", &messages).unwrap(), "[\n  1\n]");
    }

    #[test]
    fn generation_blocks_are_transparent() {
        let source = "a\n  {%- generation %}\nb{{ '{% generation x' }}\n{% endgeneration -%}\n c";
        assert_eq!(render(source, &json!([])).unwrap(), "ab{% generation x\nc");
    }

    #[test]
    fn dates_come_from_the_caller() {
        assert_eq!(render("{{ strftime_now('%d %b %Y') }}", &json!([])).unwrap(), "29 Feb 2000");
    }

    #[test]
    fn hostile_templates_are_errors() {
        let raised = render("\n{{ raise_exception('System role not supported') }}", &json!([])).unwrap_err();
        assert_eq!(raised.to_string(), "the model's chat template failed: System role not supported (line 2)");
        assert!(matches!(render("{% if %}", &json!([])), Err(EncodeError::ChatTemplateSyntax { .. })));
        let endless = "{% for a in range(99999) %}{% for b in range(99999) %}{{ b }}{% endfor %}{% endfor %}";
        assert!(matches!(render(endless, &json!([])), Err(EncodeError::ChatTemplateRender { .. })));
        assert!(matches!(
            render("{{ [1]|tojson(indent=999999999) }}", &json!([])),
            Err(EncodeError::ChatTemplateRender { .. })
        ));
        let deep = "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}";
        assert!(matches!(render(deep, &json!([])), Err(EncodeError::ChatTemplateRender { .. })));
    }
}
