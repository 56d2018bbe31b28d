//! Tools in Go's template language, read off what the trainer writes for one tool and for two.

use serde_json::{Value, json};

use super::literal;
use crate::pyjson::dumps;
use crate::template::{Template, ToolText};
use crate::tools::{Call, ToolFormat};

/// Names and a text that no format writes by itself.
const NAMES: [&str; 2] = ["tool-of-name-1", "tool-of-name-2"];

/// Pieces of a template.
pub(super) struct GoTools {
    /// The list of tools in the system prompt.
    pub(super) described: String,
    /// The calls of an answer.
    pub(super) called: String,
    /// What is otherwise than in training.
    pub(super) note: Option<String>,
}

/// The pieces, or why there are none.
pub(super) fn go(template: &Template) -> Result<GoTools, String> {
    let ToolText::Format(format) = template.tools else {
        return Err("the dataset writes them in its own words".to_owned());
    };
    let (described, mut note) = described(format, template)?;
    if described.contains(&template.now.format("%d %b %Y")) {
        note = Some(
            "what is said of tools holds the day of this export, which Ollama's template can't write anew".to_owned(),
        );
    }
    Ok(GoTools { described, called: called(template.calls)?, note })
}

/// The list of tools: its text around each tool's JSON.
fn described(format: ToolFormat, template: &Template) -> Result<(String, Option<String>), String> {
    let tools = NAMES.map(|name| {
        let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}}});
        json!({"type": "function", "function": {"name": name, "description": "d", "parameters": parameters}})
    });
    let write = |tools: &[Value]| {
        format.describe(&Value::Array(tools.to_vec()).to_string(), template.now).map_err(|reason| reason.to_string())
    };
    let (one, two) = (write(&tools[..1])?, write(&tools)?);
    // The whole tool, or what is inside; on one line, or on several.
    for (part, action) in [(None, "{{ . }}"), (Some("function"), "{{ .Function }}")] {
        for indent in [None, Some(4)] {
            let json = tools.each_ref().map(|tool| dumps(part.map_or(tool, |part| &tool[part]), indent));
            if let Some(pieces) = Pieces::of(&one, &two, &json) {
                let note =
                    indent.map(|_| "Ollama writes the JSON of a tool on one line, training on several".to_owned());
                return Ok((pieces.go("$.Tools", &[(NAMES[0], "{{ .Function.Name }}")], action), note));
            }
        }
    }
    Err(format!("Go's template language can't write what the format {format:?} says of a tool"))
}

/// The calls of an answer: their text around name and arguments.
fn called(format: ToolFormat) -> Result<String, String> {
    let arguments = json!({"city": "x"});
    let call = |name: &str| Call { name: name.into(), arguments: arguments.clone() };
    let calls = NAMES.map(call);
    let one = format.write_calls(&calls[..1]).map_err(|reason| reason.to_string())?;
    // A format of one call a turn: several stand on lines of their own.
    let two = format
        .write_calls(&calls)
        .or_else(|_| Ok::<_, String>(format!("{one}\n{}", one.replace(NAMES[0], NAMES[1]))))?;
    // From a name to the end of its arguments.
    let span = |text: &str, name: &str| -> Option<String> {
        let start = text.find(name)?;
        let json = dumps(&arguments, None);
        let end = start + text[start..].find(&json)? + json.len();
        Some(text[start..end].to_owned())
    };
    let spans = span(&two, NAMES[0]).zip(span(&two, NAMES[1]));
    let pieces = spans.and_then(|(first, second)| {
        let between = first[NAMES[0].len()..first.len() - dumps(&arguments, None).len()].to_owned();
        Some((Pieces::of(&one, &two, &[first, second])?, between))
    });
    let (pieces, between) =
        pieces.ok_or_else(|| format!("Go's template language can't write calls in the format {format:?}"))?;
    let action = format!("{{{{ .Function.Name }}}}{}{{{{ .Function.Arguments }}}}", literal(&between));
    Ok(pieces.go(".ToolCalls", &[], &action))
}

/// Text around the items of a list, of one item and of more.
struct Pieces {
    before_one: String,
    after_one: String,
    before: String,
    between: String,
    after: String,
}

impl Pieces {
    fn of(one: &str, two: &str, items: &[String; 2]) -> Option<Self> {
        let (before_one, after_one) = one.split_once(&items[0])?;
        let (before, rest) = two.split_once(&items[0])?;
        let (between, after) = rest.split_once(&items[1])?;
        let owned = str::to_owned;
        Some(Self {
            before_one: owned(before_one),
            after_one: owned(after_one),
            before: owned(before),
            // The second's name is the current one's.
            between: between.replace(NAMES[1], NAMES[0]),
            after: owned(after),
        })
    }

    /// A loop over `list`; `fields` are texts that stand for a field of an item.
    fn go(&self, list: &str, fields: &[(&str, &str)], item: &str) -> String {
        let text = |piece: &str| fields.iter().fold(literal(piece), |text, (mark, field)| text.replace(mark, field));
        let either = |one: &str, many: &str| match (text(one), text(many)) {
            (one, many) if one == many => one,
            (one, many) => format!("{{{{ if eq (len $list) 1 }}}}{one}{{{{ else }}}}{many}{{{{ end }}}}"),
        };
        format!(
            "{{{{ $list := {list} }}}}{{{{ range $j, $_ := $list }}}}{{{{ if $j }}}}{}{{{{ else }}}}{}{{{{ end }}}}\
             {item}{{{{ end }}}}{}",
            text(&self.between),
            either(&self.before_one, &self.before),
            either(&self.after_one, &self.after)
        )
    }
}
