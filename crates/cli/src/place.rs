//! Which recipe key an error is about that was found only later, in data, in a model's files or in a run: it is told with
//! that key's place, as the recipe's own errors are.

use ferrotune_checkpoint::hub::HubError;
use ferrotune_data::encode::EncodeError;
use ferrotune_data::error::DataError;
use ferrotune_train::Error;

/// The key that an error is about, if it is about one.
pub(crate) trait About: std::error::Error + Send + Sync + Sized + 'static {
    /// Its name.
    fn key(&self) -> Option<&'static str>;
}

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
            DataError::Encode(error) => error.key(),
            _ => None,
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
