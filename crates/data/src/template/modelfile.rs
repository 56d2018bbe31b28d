//! The Ollama Modelfile of a model: the template in Go's language, the system prompt, where answers end.
//!
//! Format: <https://github.com/ollama/ollama/blob/main/docs/modelfile.mdx>; the template's variables are those of its
//! `docs/template.mdx`. A prompt is written as the trainer's own chat writes it, tools and reasoning included. JSON of tools and
//! calls is what Ollama makes of it, without the spaces that training had.

mod tools;

use super::{Class, Slot, Template};
use crate::tokenizer::{SpecialToken, Tokenizer};

/// Tokens that Ollama gives a conversation unless told otherwise; LLaMA-Factory's number.
const CONTEXT: usize = 4096;
/// What stands between the results of tools called at once, as in training.
const BETWEEN_RESULTS: &str = "\n</tool_response>\n<tool_response>\n";

/// A Modelfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Modelfile {
    /// Its text.
    pub text: String,
    /// What it can't say; worth telling the user.
    pub notes: Vec<String>,
}

impl Template {
    /// The Modelfile; `from` is the folder or file of the weights, and `system` stands in for the template's own system prompt.
    pub fn modelfile(&self, tokenizer: &Tokenizer, from: &str, system: Option<&str>) -> Modelfile {
        let mut notes = Vec::new();
        let mut text = format!("FROM {from}\n\nTEMPLATE \"\"\"{}\"\"\"\n", self.go_template(tokenizer, &mut notes));
        let system = system.unwrap_or(&self.default_system);
        if !system.is_empty() {
            if system.contains("\"\"\"") {
                notes.push("a Modelfile can't hold three double quotes: in SYSTEM they are single ones".to_owned());
            }
            text.push_str(&format!("\nSYSTEM \"\"\"{}\"\"\"\n", system.replace("\"\"\"", "'''")));
        }
        text.push('\n');
        for id in self.stop_ids(tokenizer) {
            if let Some(token) = tokenizer.id_to_token(id) {
                text.push_str(&format!("PARAMETER stop {}\n", quoted(&token)));
            }
        }
        text.push_str(&format!("PARAMETER num_ctx {CONTEXT}\n"));
        Modelfile { text, notes }
    }

    /// The text of `TEMPLATE`.
    fn go_template(&self, tokenizer: &Tokenizer, notes: &mut Vec<String>) -> String {
        let go = |slots: &[Slot<String>], content: &str| go_text(slots, content, tokenizer);
        let tools = match tools::go(self) {
            Ok(tools) => Some(tools),
            Err(why) => {
                notes.push(format!("the Modelfile leaves tools out: {why}"));
                None
            }
        };
        notes.extend(tools.iter().flat_map(|tools| tools.note.clone()));
        let described = tools.as_ref().map(|tools| format!("{{{{ if $.Tools }}}}{}{{{{ end }}}}", tools.described));
        let system = format!("{{{{ $.System }}}}{}", described.unwrap_or_default());
        let given = if tools.is_some() { "or $.System $.Tools" } else { "$.System" };
        let (before, in_user) = match self.class {
            Class::SystemInUser => {
                let first = self.system.first().map(std::slice::from_ref).unwrap_or_default();
                let system = go(first, &system);
                // The first user's message is the first of all, or the second behind the system's.
                (
                    String::new(),
                    format!("{{{{ if and ({given}) (or (eq $i 0) (and $.System (eq $i 1))) }}}}{system}{{{{ end }}}}"),
                )
            }
            _ => (format!("{{{{ if {given} }}}}{}{{{{ end }}}}", go(&self.system, &system)), String::new()),
        };
        let prefix = go(&self.prefix, "");
        // Ollama's tokenizer puts it there by itself.
        let own = tokenizer.surrounding_text().unwrap_or_default();
        let prefix = if own.is_empty() { &prefix[..] } else { prefix.strip_prefix(&own[..]).unwrap_or(&prefix) };
        let (opening, answer_thought) = self.go_thought();
        let user = go(&self.user, &format!("{in_user}{{{{ .Content }}}}"));
        let answer = go(&self.assistant, "{{ .Content }}");
        let answer = match &tools {
            None => answer,
            Some(tools) => {
                let calls = go(&self.function, &format!("{{{{ .Content }}}}{}", tools.called));
                format!("{{{{ if .ToolCalls }}}}{calls}{{{{ else }}}}{answer}{{{{ end }}}}")
            }
        };
        let mut body = format!(
            "{{{{ if eq .Role \"user\" }}}}{user}{opening}{{{{ else if eq .Role \"assistant\" }}}}{answer_thought}{answer}"
        );
        if tools.is_some() {
            body.push_str(&format!("{{{{ else if eq .Role \"tool\" }}}}{}", self.go_results(&opening, tokenizer)));
        }
        format!(
            "{prefix}{before}{{{{ $before := \"\" }}}}{{{{ range $i, $_ := .Messages }}}}\
             {{{{ $rest := slice $.Messages $i }}}}{{{{ $last := eq (len $rest) 1 }}}}\
             {body}{{{{ end }}}}{{{{ $before = .Role }}}}{{{{ end }}}}"
        )
    }

    /// Results of tools called at once are one turn.
    fn go_results(&self, opening: &str, tokenizer: &Tokenizer) -> String {
        const CONTENT: &str = "{{ .Content }}";
        let turn = go_text(&self.observation, CONTENT, tokenizer);
        let (head, tail) = turn.split_once(CONTENT).unwrap_or((&turn, ""));
        let glue = literal(BETWEEN_RESULTS);
        format!(
            "{{{{ if eq $before \"tool\" }}}}{glue}{{{{ else }}}}{head}{{{{ end }}}}{CONTENT}\
             {{{{ $ends := true }}}}{{{{ if not $last }}}}{{{{ $ends = ne (index $rest 1).Role \"tool\" }}}}{{{{ end }}}}\
             {{{{ if $ends }}}}{tail}{opening}{{{{ end }}}}"
        )
    }

    /// What an answer is to begin with, at the end of a prompt; and the reasoning of an answer that stands there. See
    /// [`super::think`]: earlier answers lose theirs unless `preserve_thinking` is set.
    fn go_thought(&self) -> (String, String) {
        if !self.is_reasoning() {
            return (String::new(), String::new());
        }
        let empty = literal(&self.empty_thought());
        let opening = match self.enable_thinking {
            Some(true) => format!("{{{{ if and $last $.IsThinkSet (not $.Think) }}}}{empty}{{{{ end }}}}"),
            None => format!("{{{{ if and $last (not (and $.IsThinkSet $.Think)) }}}}{empty}{{{{ end }}}}"),
            Some(false) => format!("{{{{ if $last }}}}{empty}{{{{ end }}}}"),
        };
        let (open, close) = (literal(&self.thought.0), literal(&self.thought.1));
        let block = format!("{open}{{{{ .Thinking }}}}{close}");
        let answer = match (self.enable_thinking, self.preserve_thinking) {
            (Some(false), true) => empty,
            (Some(false), false) => String::new(),
            (_, true) => format!("{{{{ if .Thinking }}}}{block}{{{{ else }}}}{empty}{{{{ end }}}}"),
            // Ollama finds the marks of reasoning in an answer by this block.
            (_, false) => format!("{{{{ if and $last .Thinking }}}}{block}{{{{ end }}}}"),
        };
        (opening, answer)
    }
}

/// The slots with `content`, which is Go already.
fn go_text(slots: &[Slot<String>], content: &str, tokenizer: &Tokenizer) -> String {
    let special = tokenizer.special();
    let token = |token: &Option<SpecialToken>| literal(token.as_ref().map_or("", |t| &t.text));
    let piece = |slot: &Slot<String>| match slot {
        Slot::Text(text) => match text.split_once("{{content}}") {
            Some((before, after)) => format!("{}{content}{}", literal(before), literal(after)),
            None => literal(text),
        },
        Slot::Token(name) => literal(name),
        Slot::Bos => token(&special.bos),
        Slot::Eos => token(&special.eos),
    };
    slots.iter().map(piece).collect()
}

/// Text as Go's templates and a Modelfile hold it: no brace that could begin an action, no three quotes that end the string.
fn literal(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        if c == '{' && (after.is_empty() || after.starts_with('{')) {
            out.push_str("{{ \"{\" }}");
        } else if rest.starts_with("\"\"\"") {
            out.push_str("{{ \"\\\"\" }}");
        } else {
            out.push(c);
        }
        rest = after;
    }
    out
}

/// A value between double quotes, as a line of a Modelfile holds it.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

#[cfg(test)]
mod tests {
    use super::literal;

    #[test]
    fn braces_and_quotes_are_no_syntax() {
        assert_eq!(literal("{a} {{b}} {"), "{a} {{ \"{\" }}{b}} {{ \"{\" }}");
        assert_eq!(literal("a\"\"\"b"), "a{{ \"\\\"\" }}\"\"b");
    }
}
