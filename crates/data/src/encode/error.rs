//! What can go wrong between text and ids: for the whole run ([`EncodeError`]) or for one row
//! ([`DropReason`]).

/// Why nothing can be encoded with this tokenizer, template or set of options.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// `tokenizer.json` isn't usable.
    #[error("tokenizer.json can't be used: {problem}; take the file from the model's own folder")]
    TokenizerJson {
        /// What the parser said.
        problem: String,
    },
    /// `tokenizer_config.json` isn't usable.
    #[error("tokenizer_config.json can't be used: {problem}; take the file from the model's own folder")]
    TokenizerConfig {
        /// What is wrong.
        problem: String,
    },
    /// The tokenizer failed on a text or on ids.
    #[error("the tokenizer failed: {problem}")]
    Tokenize {
        /// What it said.
        problem: String,
    },
    /// No template has this name.
    #[error("there is no template `{name}`{}; leave `template` out to use the model's own chat template", did_you_mean(.nearest))]
    UnknownTemplate {
        /// As in the recipe.
        name: String,
        /// The known name that looks most like it.
        nearest: Option<String>,
    },
    /// No tool format has this name.
    #[error("there is no tool format `{name}`; known are {known}")]
    UnknownToolFormat {
        /// As in the recipe.
        name: String,
        /// All names.
        known: String,
    },
    /// A template is made of a token that the tokenizer doesn't have.
    #[error(
        "template `{template}` needs the token `{token}`, which this model's tokenizer lacks; choose the template of this model's family"
    )]
    MissingToken {
        /// Name of the template.
        template: String,
        /// The token.
        token: String,
    },
    /// `train_on_prompt` with a template that ends a turn at the start of the next.
    #[error(
        "template `{template}` can't be used with `train_on_prompt: true`, because the end of an answer is the first token of the next prompt; leave `train_on_prompt` out"
    )]
    TrainOnPrompt {
        /// Name of the template.
        template: String,
    },
    /// The model's chat template can't be read as Jinja.
    #[error("the model's chat template can't be read: {problem}; set `template` to the name of its family")]
    ChatTemplateSyntax {
        /// What the parser said, with its line.
        problem: String,
    },
    /// The model's chat template failed or refused the messages.
    #[error("the model's chat template failed: {problem}")]
    ChatTemplateRender {
        /// What it said.
        problem: String,
    },
    /// The model's chat template can't be taken apart into turns.
    #[error(
        "the model's chat template can't be turned into labels: {problem}; set `template` to the name of its family"
    )]
    ChatTemplateShape {
        /// Which part can't be found.
        problem: String,
    },
    /// A chat that can't be written out.
    #[error("{0}")]
    Conversation(#[from] DropReason),
}

/// Why a row can't be encoded. It is left out and reported.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum DropReason {
    /// There is no turn, or prompt turns and answers don't alternate up to a last answer.
    #[error("turns must alternate between a prompt and an answer, and end with {}; turn {turn} {problem}", if *.answer_last { "an answer" } else { "a prompt" })]
    Turns {
        /// The first turn that breaks the rule, counted from 1.
        turn: usize,
        /// What is wrong with it.
        problem: &'static str,
        /// Whether the last turn had to be an answer.
        answer_last: bool,
    },
    /// The tools aren't a JSON list of descriptions.
    #[error("the tools can't be used: {problem}")]
    Tools {
        /// What is wrong.
        problem: String,
    },
    /// A function call isn't JSON of a name and arguments.
    #[error("the function call can't be used: {problem}")]
    Call {
        /// What is wrong.
        problem: String,
    },
    /// The tokenizer failed on the row.
    #[error("the tokenizer failed: {problem}")]
    Tokenize {
        /// What it said.
        problem: String,
    },
}

fn did_you_mean(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!("; did you mean `{name}`?")).unwrap_or_default()
}
