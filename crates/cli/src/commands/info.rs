//! `env`, `schema`, `version`, `help`: what this program and this machine are.

use crate::failure::Failure;
use crate::{Cli, environment, ui};
use clap::CommandFactory;

/// Prints the version.
pub(crate) fn version() -> Result<(), Failure> {
    Ok(ui::line(concat!("ferrotune ", env!("CARGO_PKG_VERSION")))?)
}

/// Prints the help.
pub(crate) fn help() -> Result<(), Failure> {
    Ok(ui::text(&Cli::command().render_help().to_string())?)
}

/// Prints a report that can be copied into an issue.
pub(crate) fn env() -> Result<(), Failure> {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':')).map_or("unknown", |p| p.1.trim());
    let memory = environment::available_memory().map_or_else(|| "unknown".into(), ui::bytes);
    ui::line(concat!("- `ferrotune` version: ", env!("CARGO_PKG_VERSION")))?;
    ui::line(&format!("- Platform: {} {}", std::env::consts::OS, std::env::consts::ARCH))?;
    ui::line(&format!("- Processor: {model}, {} threads", rayon::current_num_threads()))?;
    ui::line(&format!("- Instructions used: {}", ferrotune_tensor::cpu::features()))?;
    ui::line(&format!("- Memory available: {memory}"))?;
    for (name, _) in ferrotune_config::env::ALL {
        if let Some(value) = environment::var(name).filter(|_| !["HOME", "USER"].contains(name)) {
            let is_secret = ferrotune_config::env::is_secret(name, &value);
            ui::line(&format!("- {name}={}", if is_secret { "(set)" } else { &value }))?;
        }
    }
    let listed = |name: &str| ferrotune_config::env::ALL.iter().any(|(known, _)| *known == name);
    for (name, value) in environment::of_nccl().into_iter().filter(|(name, _)| !listed(name)) {
        ui::line(&format!("- {name}={value}"))?;
    }
    Ok(())
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
