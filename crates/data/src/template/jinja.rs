//! The chat template that is saved beside a model which has none, or whose own says something else
//! than what was trained: the plain exchange of [`Template`], in Jinja, as LLaMA-Factory saves it.

use super::{Class, Slot, Template};
use crate::tokenizer::Tokenizer;

impl Template {
    /// The chat template to save with a model trained on this template, if the model's own is
    /// missing or to be replaced. A template with tokens that Jinja can't write gives none.
    pub fn chat_template_to_save(&self, tokenizer: &Tokenizer) -> Option<String> {
        if tokenizer.chat_template().is_some() && !self.replace_chat_template {
            return None;
        }
        self.as_chat_template(tokenizer)
    }

    /// The plain exchange of this template in Jinja: no tools, no reasoning. Tokens that Jinja can't write give none.
    pub fn as_chat_template(&self, tokenizer: &Tokenizer) -> Option<String> {
        let prefix = expression(&self.prefix, "content", tokenizer)?;
        let system = expression(&self.system, "system_message", tokenizer)?;
        let user = expression(&self.user, "content", tokenizer)?;
        let assistant = expression(&self.assistant, "content", tokenizer)?;
        let mut out = String::new();
        if !prefix.is_empty() {
            out += &format!("{{{{ {prefix} }}}}");
        }
        if !self.default_system.is_empty() {
            out += &format!("{{% set system_message = '{}' %}}", escape(&self.default_system));
        }
        out += "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}\
                {% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% endif %}";
        out += &match self.class {
            Class::SystemInUser => format!(
                "{{% for message in loop_messages %}}\
                 {{% if loop.index0 == 0 and system_message is defined %}}\
                 {{% set content = {system} + message['content'] %}}\
                 {{% else %}}{{% set content = message['content'] %}}{{% endif %}}"
            ),
            _ => format!(
                "{{% if system_message is defined %}}{{{{ {system} }}}}{{% endif %}}\
                 {{% for message in loop_messages %}}{{% set content = message['content'] %}}"
            ),
        };
        out += &format!(
            "{{% if message['role'] == 'user' %}}{{{{ {user} }}}}\
             {{% elif message['role'] == 'assistant' %}}{{{{ {assistant} }}}}{{% endif %}}{{% endfor %}}"
        );
        Some(out)
    }
}

/// Slots as a sum of texts and of the variable that holds the content.
fn expression(slots: &[Slot<String>], variable: &str, tokenizer: &Tokenizer) -> Option<String> {
    let special = tokenizer.special();
    let mut terms = Vec::new();
    let quote = |text: &str| (!text.is_empty()).then(|| format!("'{}'", escape(text)));
    for slot in slots {
        match slot {
            Slot::Token(_) => return None,
            Slot::Bos => terms.extend(special.bos.as_ref().and_then(|bos| quote(&bos.text))),
            Slot::Eos => terms.extend(special.eos.as_ref().and_then(|eos| quote(&eos.text))),
            Slot::Text(text) => match text.split_once("{{content}}") {
                None => terms.extend(quote(text)),
                Some((before, after)) => {
                    terms.extend(quote(before));
                    terms.push(variable.to_owned());
                    terms.extend(quote(after));
                }
            },
        }
    }
    Some(terms.join(" + "))
}

fn escape(text: &str) -> String {
    text.replace('\'', "\\'")
}
