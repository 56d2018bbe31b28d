//! The one shape every dataset format is converted to, and every template is written from.
//!
//! Converters produce [`Conversation`]s, the encoder turns them into ids and labels; neither knows
//! the other. A system prompt is a field, not a turn: templates place it where their model wants it.

/// Who speaks in a turn. A system prompt is not a turn: see [`Conversation::system`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The person.
    User,
    /// The model, in plain text.
    Assistant,
    /// The result of a tool, standing where a user's turn stands.
    Observation,
    /// The model, calling tools: the content is JSON of one call or an array of calls.
    Function,
}

impl Role {
    /// Whether the turn stands on the model's side, so that its tokens can carry labels.
    pub fn is_response(self) -> bool {
        matches!(self, Role::Assistant | Role::Function)
    }
}

/// One turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said, as it stands in the dataset.
    pub content: String,
}

impl Message {
    /// A turn of `role` saying `content`.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into() }
    }
}

/// A whole training example or chat so far.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Conversation {
    /// Prompt turns (user or observation) and responses in strict alternation. A training example
    /// ends with a response, a chat waiting for its answer with a prompt.
    pub messages: Vec<Message>,
    /// System prompt; empty means none was given.
    pub system: String,
    /// JSON text of the tools on offer; empty means none.
    pub tools: String,
}
