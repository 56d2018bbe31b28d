//! What can be wrong with a model's configuration or with its files.

/// An error of this crate. Each names what was found, what was expected and, where there is one, the cure.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// `model_type` isn't one of ours.
    #[error("model type `{found}` is not supported; supported are {supported}")]
    UnknownFamily {
        /// As written in config.json.
        found: String,
        /// What there is.
        supported: String,
    },
    /// A key of config.json is missing.
    #[error("config.json has no `{key}`, which a `{family}` model needs")]
    MissingKey {
        /// The key.
        key: &'static str,
        /// `model_type`.
        family: String,
    },
    /// A value of config.json can't be.
    #[error("config.json: `{key}` is {found}, expected {expected}")]
    BadValue {
        /// The key.
        key: String,
        /// As written.
        found: String,
        /// What would be right.
        expected: String,
    },
    /// The recipe wants what the model doesn't have; never empty.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Unmet(Vec<Unmet>),
}

/// What a recipe asks for and the model doesn't have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unmet {
    /// A module.
    #[error("{key} names `{name}`, which this model doesn't have; its modules are {available}")]
    Module {
        /// Recipe key.
        key: &'static str,
        /// As written.
        name: String,
        /// What there is.
        available: String,
    },
    /// `freeze_trainable_layers` asks for more blocks than there are.
    #[error(
        "freeze_trainable_layers asks for {asked} blocks, the model has {layers}; write a number from -{layers} to {layers}"
    )]
    Layers {
        /// Asked for.
        asked: i64,
        /// In the model.
        layers: usize,
    },
    /// DoRA's norms are not there for experts.
    #[error("use_dora is not possible on experts ({name}); leave it out, or write lora_target: attention")]
    DoraOfExperts {
        /// A module that would get it.
        name: String,
    },
    /// No adapter's file has experts that train whole in a form that PEFT or a server reads.
    #[error(
        "additional_target would train experts whole beside an adapter ({name}), which PEFT can't load; name them in lora_target, \
         or train them with finetuning_type: freeze or full"
    )]
    ExpertsWhole {
        /// A module that would train.
        name: String,
    },
    /// Each module that would get an adapter trains whole.
    #[error(
        "additional_target trains every module of lora_target ({targets}) whole, which leaves none for an adapter; name another \
         in lora_target"
    )]
    NoAdapter {
        /// The modules named.
        targets: String,
    },
}

impl Unmet {
    /// The recipe key that asks for it, and which item of its list does.
    pub fn asked_by(&self) -> (&'static str, Option<&str>) {
        match self {
            Unmet::Module { key, name, .. } => (key, Some(name)),
            Unmet::NoAdapter { .. } => ("lora_target", None),
            Unmet::ExpertsWhole { .. } => ("additional_target", None),
            Unmet::DoraOfExperts { .. } => ("use_dora", None),
            Unmet::Layers { .. } => ("freeze_trainable_layers", None),
        }
    }
}
