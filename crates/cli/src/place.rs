//! Which recipe key an error is about that was found only later, in data, in a model's files or in a run: it is told with
//! that key's place, as the recipe's own errors are.

use crate::failure::Failure;
use ferrotune_checkpoint::hub::HubError;
use ferrotune_config::{Diagnostic, Diagnostics, Recipe};
use ferrotune_data::encode::EncodeError;
use ferrotune_data::error::DataError;
use ferrotune_train::Error;

/// The key that an error is about, if it is about one.
pub(crate) trait About: std::error::Error + Send + Sync + Sized + 'static {
    /// Its name.
    fn key(&self) -> Option<&'static str>;

    /// The item of that key's list, if it is about one.
    fn item(&self) -> Option<&str> {
        None
    }

    /// What it consists of, if it is several errors.
    fn parts(&self) -> Vec<&Self> {
        vec![self]
    }
}

/// An error with its key's place in the recipe; any other, or one about keys that aren't written, as it is.
pub(crate) fn placed<E: About>(recipe: &Recipe, error: E) -> Failure {
    let told = diagnostics(recipe, &error);
    let is_of_dataset = error.parts().iter().all(|part| part.key() == Some(DATASET));
    match told.iter().any(|diagnostic| diagnostic.span.is_some()) {
        true if is_of_dataset => Failure::Data(Diagnostics(told)),
        true => Failure::Recipe(Diagnostics(told)),
        false => error.into(),
    }
}

/// What an error consists of, each with its place in the recipe if it is about a key.
pub(crate) fn diagnostics<E: About>(recipe: &Recipe, error: &E) -> Vec<Diagnostic> {
    let at = |part: &E| match (part.key().unwrap_or_default(), part.item()) {
        (DATASET, Some(item)) if !recipe.lists(DATASET, item) => {
            recipe.error_at_item("eval_dataset", item, part.to_string())
        }
        (key, Some(item)) => recipe.error_at_item(key, item, part.to_string()),
        (key, None) => recipe.error_at(key, part.to_string()),
    };
    error.parts().into_iter().map(at).collect()
}

const DATASET: &str = "dataset";

impl About for HubError {
    fn key(&self) -> Option<&'static str> {
        match self {
            HubError::BadRevision { .. } => Some("model_revision"),
            HubError::NoSuchPath { .. }
            | HubError::NotAModel { .. }
            | HubError::NotFound { .. }
            | HubError::NothingToLoad { .. } => Some("model_name_or_path"),
            HubError::UploadRefused { .. } | HubError::NoToken { .. } => Some("export_hub_model_id"),
            _ => None,
        }
    }
}

impl About for ferrotune_checkpoint::Error {
    fn key(&self) -> Option<&'static str> {
        match self {
            ferrotune_checkpoint::Error::Architecture { .. } => Some("model_name_or_path"),
            ferrotune_checkpoint::Error::Adapter { .. } | ferrotune_checkpoint::Error::OtherModel { .. } => {
                Some("adapter_name_or_path")
            }
            _ => None,
        }
    }
}

impl About for ferrotune_model::ModelError {
    fn key(&self) -> Option<&'static str> {
        matches!(self, ferrotune_model::ModelError::UnknownFamily { .. }).then_some("model_name_or_path")
    }
}

impl About for EncodeError {
    fn key(&self) -> Option<&'static str> {
        match self {
            EncodeError::UnknownTemplate { .. } | EncodeError::MissingToken { .. } => Some("template"),
            EncodeError::TrainOnPrompt { .. } => Some("train_on_prompt"),
            _ => None,
        }
    }
}

impl About for DataError {
    fn key(&self) -> Option<&'static str> {
        match self {
            DataError::CutoffTooShort { .. } | DataError::NoBlock { .. } => Some("cutoff_len"),
            DataError::ValSize { .. } => Some("val_size"),
            DataError::Mix { .. } => Some("mix_strategy"),
            DataError::CacheFolder { .. } => Some("tokenized_path"),
            DataError::NoRegistry { .. } | DataError::Registry { .. } | DataError::RemoteRegistry { .. } => {
                Some("dataset_dir")
            }
            DataError::Encode(error) => error.key(),
            _ => self.dataset().map(|_| DATASET),
        }
    }

    fn item(&self) -> Option<&str> {
        self.dataset()
    }

    fn parts(&self) -> Vec<&Self> {
        match self {
            DataError::Several(errors) => errors.iter().flat_map(About::parts).collect(),
            _ => vec![self],
        }
    }
}

impl About for Error {
    fn key(&self) -> Option<&'static str> {
        match self {
            Error::AdapterShape { .. } | Error::AdapterUnused { .. } | Error::AdapterLacks { .. } => {
                Some("adapter_name_or_path")
            }
            Error::BestNotSaved { .. } => Some("load_best_model_at_end"),
            Error::NoSuchMetric { .. } => Some("metric_for_best_model"),
            Error::Schedule { .. } => Some("lr_scheduler_type"),
            Error::Checkpoint(error) => error.key(),
            Error::Model(error) => error.key(),
            _ => None,
        }
    }
}
