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
    /// A module named by the recipe isn't in the model.
    #[error("{key} names `{name}`, which this model doesn't have; its modules are {available}")]
    UnknownModule {
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
    TooManyLayers {
        /// Asked for.
        asked: i64,
        /// In the model.
        layers: usize,
    },
}
