//! `schema`, `version`, `help`: what this program is.

use crate::failure::Failure;
use crate::{Cli, ui};
use clap::CommandFactory;

/// Prints the version.
pub(crate) fn version() -> Result<(), Failure> {
    Ok(ui::line(concat!("ferrotune ", env!("CARGO_PKG_VERSION")))?)
}

/// Prints the help.
pub(crate) fn help() -> Result<(), Failure> {
    Ok(ui::text(&Cli::command().render_help().to_string())?)
}

/// Prints a JSON schema for editors.
pub(crate) fn schema(of: SchemaOf) -> Result<(), Failure> {
    let schema = match of {
        SchemaOf::Recipe => ferrotune_config::recipe_schema(),
        SchemaOf::DatasetInfo => ferrotune_data::schema::dataset_info_schema(),
    };
    Ok(ui::line(&format!("{schema:#}"))?)
}

/// What a schema is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum SchemaOf {
    /// Recipes.
    Recipe,
    /// `dataset_info.json`.
    #[value(name = "dataset_info")]
    DatasetInfo,
}
