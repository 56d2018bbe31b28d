//! The Ollama Modelfile of a model: the template in Go's language, the system prompt, where answers end.
//!
//! Format: <https://github.com/ollama/ollama/blob/main/docs/modelfile.mdx>. Reasoning and tools are left to the model's own
//! template there; what is written is the plain exchange that training used.

use super::{Slot, Template};
use crate::tokenizer::Tokenizer;

/// Tokens that Ollama gives a conversation unless told otherwise; LLaMA-Factory's number.
const CONTEXT: usize = 4096;

impl Template {
    /// The Modelfile's text; `system` stands in for the template's own system prompt.
    pub fn modelfile(&self, tokenizer: &Tokenizer, system: Option<&str>) -> String {
        let go = |slots: &[Slot<String>], content: &str| go_text(slots, content, tokenizer);
        let mut text = String::from("FROM .\n\nTEMPLATE \"\"\"");
        text.push_str(&go(&self.prefix, ""));
        text.push_str(&format!("{{{{ if .System }}}}{}{{{{ end }}}}", go(&self.system, "{{ .System }}")));
        text.push_str("{{ range .Messages }}");
        text.push_str(&format!("{{{{ if eq .Role \"user\" }}}}{}", go(&self.user, "{{ .Content }}")));
        text.push_str(&format!("{{{{ else if eq .Role \"assistant\" }}}}{}", go(&self.assistant, "{{ .Content }}")));
        text.push_str("{{ end }}{{ end }}\"\"\"\n");
        let system = system.unwrap_or(&self.default_system);
        if !system.is_empty() {
            text.push_str(&format!("\nSYSTEM \"\"\"{}\"\"\"\n", system.replace("\"\"\"", "'''")));
        }
        text.push('\n');
        for id in self.stop_ids(tokenizer) {
            if let Some(token) = tokenizer.id_to_token(id) {
                text.push_str(&format!("PARAMETER stop {}\n", quoted(&token)));
            }
        }
        text.push_str(&format!("PARAMETER num_ctx {CONTEXT}\n"));
        text
    }
}

fn go_text(slots: &[Slot<String>], content: &str, tokenizer: &Tokenizer) -> String {
    let special = tokenizer.special();
    let token = |token: &Option<crate::tokenizer::SpecialToken>| token.as_ref().map_or("", |t| &t.text).to_owned();
    let piece = |slot: &Slot<String>| match slot {
        Slot::Text(text) => text.replace("{{content}}", content).replace("{{idx}}", "{{ $i }}"),
        Slot::Token(name) => name.clone(),
        Slot::Bos => token(&special.bos),
        Slot::Eos => token(&special.eos),
    };
    slots.iter().map(piece).collect()
}

/// A value between double quotes, as a line of a Modelfile holds it.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}
