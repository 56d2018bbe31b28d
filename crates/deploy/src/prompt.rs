//! Which chat template, with which variables, writes the prompts that training wrote: tried on conversations, not guessed
//! from names.

use ferrotune_data::chat_template::{ChatTemplate, Rendering};
use ferrotune_data::clock::Moment;
use ferrotune_data::conversation::{Conversation, Message, Role};
use ferrotune_data::encode::{EncodeOptions, Encoder, IGNORE};
use ferrotune_data::template::Template;
use ferrotune_data::tokenizer::Tokenizer;
use serde_json::{Map, Value, json};

use crate::{Error, Result};

/// How prompts are served.
#[derive(Debug, Clone, PartialEq)]
pub struct ServedPrompt {
    /// The chat template, in Jinja, with `kwargs` as its defaults.
    pub chat_template: String,
    /// Its variables, for clients that say them too.
    pub kwargs: Map<String, Value>,
    /// It is the model's own, not one written for the occasion.
    pub is_own: bool,
    /// How many of the conversations it writes as in training, and of how many.
    pub agrees: (usize, usize),
}

/// The chat template that writes most of the conversations' prompts as training did.
///
/// # Errors
/// If there is no template at all.
pub fn served_prompt(
    tokenizer: &Tokenizer,
    template: &Template,
    conversations: &[Conversation],
) -> Result<ServedPrompt> {
    let probes = [plain()];
    let conversations: Vec<&Conversation> = match conversations.iter().filter(|c| is_plain(c)).collect::<Vec<_>>() {
        none if none.is_empty() => probes.iter().collect(),
        some => some,
    };
    let own = tokenizer.chat_template().map(str::to_owned);
    let written = template.as_chat_template(tokenizer);
    let candidates = [(own, true), (written, false)].into_iter().filter_map(|(text, is_own)| Some((text?, is_own)));
    let mut best: Option<ServedPrompt> = None;
    for (text, is_own) in candidates {
        for thinking in [None, Some(false), Some(true)] {
            let kwargs: Map<String, Value> =
                thinking.map(|on| ("enable_thinking".to_owned(), on.into())).into_iter().collect();
            let same = |conversation: &&&Conversation| {
                let trained = trained_prompt(tokenizer, template, conversation);
                let served = render(tokenizer, &text, conversation, &kwargs);
                matches!((trained, served), (Ok(trained), Ok(served)) if trained == served)
            };
            let agrees = (conversations.iter().filter(same).count(), conversations.len());
            if best.as_ref().is_none_or(|best| agrees.0 > best.agrees.0) {
                let chat_template = with_defaults(&text, &kwargs);
                best = Some(ServedPrompt { chat_template, kwargs, is_own, agrees });
            }
        }
    }
    best.ok_or_else(|| Error::Prompt("neither the model nor the template has a chat template".into()))
}

/// A conversation where there are no rows to try.
fn plain() -> Conversation {
    let messages =
        vec![Message::new(Role::User, "Hello, who are you?"), Message::new(Role::Assistant, "An assistant.")];
    Conversation { messages, ..Conversation::default() }
}

/// Without tools, whose calls each server writes in its own way.
fn is_plain(conversation: &Conversation) -> bool {
    let plain = |message: &Message| matches!(message.role, Role::User | Role::Assistant);
    conversation.tools.is_empty() && conversation.messages.iter().all(plain)
}

/// Token ids of a training row up to its last answer.
///
/// # Errors
/// If the row can't be encoded.
pub fn trained_prompt(tokenizer: &Tokenizer, template: &Template, conversation: &Conversation) -> Result<Vec<u32>> {
    const NEVER_REACHED: usize = 1 << 30;
    let options = EncodeOptions { cutoff_len: NEVER_REACHED, train_on_prompt: false, mask_history: false };
    let encoded = Encoder::new(tokenizer, template, &options).encode(conversation);
    let mut encoded = encoded.map_err(|reason| Error::Prompt(reason.to_string()))?;
    let labels = &encoded.labels;
    let end = labels.iter().rposition(|&label| label != IGNORE).map_or(0, |last| last + 1);
    let begin = labels[..end].iter().rposition(|&label| label == IGNORE).map_or(0, |before| before + 1);
    encoded.input_ids.truncate(begin);
    Ok(encoded.input_ids)
}

/// The messages of a conversation up to its last answer, in OpenAI's form; nothing if it has tools.
pub fn messages(conversation: &Conversation) -> Option<Value> {
    if !is_plain(conversation) {
        return None;
    }
    let (_, asked) = conversation.messages.split_last()?;
    let system = Some(&conversation.system).filter(|text| !text.is_empty());
    let system = system.map(|text| json!({"role": "system", "content": text}));
    let turn = |message: &Message| {
        let role = if message.role == Role::User { "user" } else { "assistant" };
        json!({"role": role, "content": message.content})
    };
    Some(system.into_iter().chain(asked.iter().map(turn)).collect())
}

/// Token ids of a prompt as a server writes it.
fn render(
    tokenizer: &Tokenizer,
    template: &str,
    conversation: &Conversation,
    kwargs: &Map<String, Value>,
) -> Result<Vec<u32>> {
    let wrong = |error: ferrotune_data::encode::EncodeError| Error::Prompt(error.to_string());
    let messages = messages(conversation).ok_or_else(|| Error::Prompt("it has tools".into()))?;
    let rendering = Rendering {
        add_generation_prompt: true,
        extra: Some(kwargs),
        ..Rendering::new(&messages, tokenizer.special(), Moment::now())
    };
    let text = ChatTemplate::parse(template).map_err(wrong)?.render(&rendering).map_err(wrong)?;
    tokenizer.encode(&text).map_err(wrong)
}

/// A template whose variables have values of their own unless a request says others: no server option is needed.
fn with_defaults(template: &str, kwargs: &Map<String, Value>) -> String {
    let line = |(name, value): (&String, &Value)| {
        format!("{{%- if {name} is not defined %}}{{%- set {name} = {value} %}}{{%- endif %}}\n")
    };
    let head: String = kwargs.iter().map(line).collect();
    match head.strip_suffix('\n') {
        // What stands first in the model's template must not get a line before it.
        Some(head) => format!("{head}{{#- #}}{template}"),
        None => template.to_owned(),
    }
}
