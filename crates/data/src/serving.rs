//! How a server writes a conversation: by the model's chat template, with which variables. Tried on conversations, not
//! guessed from names, so that what is served is what was trained.

use crate::chat_template::{ChatTemplate, Rendering};
use crate::clock::Moment;
use crate::conversation::{Conversation, Message, Role};
use crate::encode::{EncodeError, EncodeOptions, Encoded, Encoder, IGNORE};
use crate::template::Template;
use crate::tokenizer::Tokenizer;
use crate::tools::parse_calls;
use rayon::iter::{IntoParallelRefIterator, ParallelIterator};
use serde_json::{Map, Value, json};

/// Result of this module: an error is about one conversation, or about a template as a whole.
type Result<T, E = EncodeError> = std::result::Result<T, E>;

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
    /// The conversations are the data's; else none was without tools, and a plain question was tried.
    pub tried_rows: bool,
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
    let tried_rows = conversations.iter().any(is_plain);
    let conversations: Vec<&Conversation> = match conversations.iter().filter(|c| is_plain(c)).collect::<Vec<_>>() {
        none if none.is_empty() => probes.iter().collect(),
        some => some,
    };
    let trained: Vec<Option<Vec<u32>>> =
        conversations.par_iter().map(|c| trained_prompt(tokenizer, template, c).ok()).collect();
    let own = tokenizer.chat_template().map(str::to_owned);
    let written = template.as_chat_template(tokenizer);
    let candidates = [(own, true), (written, false)].into_iter().filter_map(|(text, is_own)| Some((text?, is_own)));
    let mut best: Option<ServedPrompt> = None;
    for (text, is_own) in candidates {
        for thinking in [None, Some(false), Some(true)] {
            let kwargs: Map<String, Value> =
                thinking.map(|on| ("enable_thinking".to_owned(), on.into())).into_iter().collect();
            let Ok(server) = Server::new(tokenizer, &text, kwargs.clone()) else { continue };
            let served: Vec<Option<Vec<u32>>> = conversations.par_iter().map(|c| server.prompt(c).ok()).collect();
            let same = trained.iter().zip(&served).filter(|(trained, served)| trained.is_some() && trained == served);
            let agrees = (same.count(), conversations.len());
            if best.as_ref().is_none_or(|best| agrees.0 > best.agrees.0) {
                let chat_template = with_defaults(&text, &kwargs);
                best = Some(ServedPrompt { chat_template, kwargs, is_own, agrees, tried_rows });
            }
        }
    }
    best.ok_or_else(|| EncodeError::ChatTemplateRender {
        problem: "neither the model nor the template has a chat template".into(),
    })
}

/// A server with a chat template and its variables.
pub struct Server<'a> {
    tokenizer: &'a Tokenizer,
    chat: ChatTemplate,
    kwargs: Map<String, Value>,
}

impl<'a> Server<'a> {
    /// A server; `template` is Jinja.
    ///
    /// # Errors
    /// If it isn't.
    pub fn new(tokenizer: &'a Tokenizer, template: &str, kwargs: Map<String, Value>) -> Result<Self> {
        Ok(Self { tokenizer, chat: ChatTemplate::parse(template)?, kwargs })
    }

    /// Token ids of what is sent to the model for the last answer.
    ///
    /// # Errors
    /// If the template refuses the conversation.
    pub fn prompt(&self, conversation: &Conversation) -> Result<Vec<u32>> {
        self.write(conversation, true)
    }

    /// Token ids of all turns, the last answer among them.
    ///
    /// # Errors
    /// If the template refuses the conversation.
    pub fn whole(&self, conversation: &Conversation) -> Result<Vec<u32>> {
        self.write(conversation, false)
    }

    fn write(&self, conversation: &Conversation, asked: bool) -> Result<Vec<u32>> {
        let turns = conversation.messages.len() - usize::from(asked && !conversation.messages.is_empty());
        let (messages, tools) = openai(conversation, turns)?;
        let rendering = Rendering {
            tools: tools.as_ref(),
            add_generation_prompt: asked,
            extra: Some(&self.kwargs),
            ..Rendering::new(&messages, self.tokenizer.special(), Moment::now())
        };
        self.tokenizer.encode(&self.chat.render(&rendering)?)
    }
}

/// The first `turns` turns in OpenAI's form, with the tools on offer.
fn openai(conversation: &Conversation, turns: usize) -> Result<(Value, Option<Value>)> {
    let wrong = |problem: String| EncodeError::ChatTemplateRender { problem };
    let system = Some(&conversation.system).filter(|text| !text.is_empty());
    let mut messages: Vec<Value> = system.map(|text| json!({"role": "system", "content": text})).into_iter().collect();
    for message in &conversation.messages[..turns] {
        let content = &message.content;
        messages.push(match message.role {
            Role::User => json!({"role": "user", "content": content}),
            Role::Assistant => json!({"role": "assistant", "content": content}),
            Role::Observation => json!({"role": "tool", "content": content}),
            Role::Function => {
                let calls = parse_calls(content).map_err(|reason| wrong(reason.to_string()))?;
                let call = |call: &crate::tools::Call| {
                    json!({"type": "function", "function": {"name": call.name, "arguments": call.arguments}})
                };
                json!({"role": "assistant", "content": "", "tool_calls": calls.iter().map(call).collect::<Vec<_>>()})
            }
        });
    }
    if conversation.tools.is_empty() {
        return Ok((messages.into(), None));
    }
    let tools: Value = serde_json::from_str(&conversation.tools).map_err(|error| wrong(error.to_string()))?;
    let Value::Array(tools) = tools else { return Err(wrong("tools are no list".into())) };
    let wrapped = |tool: Value| match tool.get("function") {
        Some(_) => tool,
        None => json!({"type": "function", "function": tool}),
    };
    Ok((messages.into(), Some(tools.into_iter().map(wrapped).collect())))
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
    trained_row(tokenizer, template, conversation).map(|mut row| {
        row.input_ids.truncate(answer_of(&row).start);
        row.input_ids
    })
}

/// A training row, uncut.
///
/// # Errors
/// If the row can't be encoded.
pub fn trained_row(tokenizer: &Tokenizer, template: &Template, conversation: &Conversation) -> Result<Encoded> {
    const NEVER_REACHED: usize = 1 << 30;
    let options =
        EncodeOptions { cutoff_len: NEVER_REACHED, train_on_prompt: false, mask_history: template.mask_history };
    let encoded = Encoder::new(tokenizer, template, &options).encode(conversation);
    encoded.map_err(|reason| EncodeError::ChatTemplateRender { problem: reason.to_string() })
}

/// The tokens of a row's last answer: the last that are trained on.
pub(crate) fn answer_of(row: &Encoded) -> std::ops::Range<usize> {
    let labels = &row.labels;
    let end = labels.iter().rposition(|&label| label != IGNORE).map_or(0, |last| last + 1);
    let begin = labels[..end].iter().rposition(|&label| label == IGNORE).map_or(0, |before| before + 1);
    begin..end
}

/// The messages of a conversation up to its last answer, in OpenAI's form; nothing if it has tools.
pub fn messages(conversation: &Conversation) -> Option<Value> {
    if !is_plain(conversation) || conversation.messages.is_empty() {
        return None;
    }
    openai(conversation, conversation.messages.len() - 1).ok().map(|(messages, _)| messages)
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
