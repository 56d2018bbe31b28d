//! Datasets that lie elsewhere, brought to this machine before anything reads them.

use crate::failure::Failure;
use crate::prepare::hub_settings;
use crate::ui;
use anyhow::anyhow;
use ferrotune_checkpoint::hub::{self, DatasetPart, HubSettings};
use ferrotune_config::plan::Plan;
use ferrotune_config::{Diagnostics, Recipe};
use ferrotune_data::prepare::remote;
use ferrotune_data::registry::{Remote, is_online, remote_registry};

const REGISTRY: &str = "dataset_info.json";

/// Fetches the registry of a `dataset_dir: REMOTE:id`, which from then on is a folder.
pub(crate) fn registry(plan: &mut Plan, recipe: &Recipe) -> Result<(), Failure> {
    let elsewhere = remote_registry(&plan.data.dir).map(str::to_owned);
    if elsewhere.is_none() && !is_online(&plan.data.dir) {
        return Ok(());
    }
    let settings = hub_settings(&plan.model)?;
    // A snapshot of the hub's is not the place for rows.
    plan.data.cache_dir.get_or_insert(settings.own_cache.join("rows"));
    let Some(id) = elsewhere else { return Ok(()) };
    let part = DatasetPart { file: Some(REGISTRY), ..DatasetPart::default() };
    let found = hub::resolve_dataset(&id, part, &settings, &ui::Downloads::default());
    let found = found.map_err(|error| at(recipe, "dataset_dir", &error))?;
    if let Some(folder) = found.first().and_then(|file| file.parent()) {
        plan.data.dir = folder.to_path_buf();
    }
    Ok(())
}

/// Fetches the datasets that the plan names and that don't lie here; all that can't be had are told.
pub(crate) fn datasets(plan: &mut Plan, recipe: &Recipe) -> Result<(), Failure> {
    let wanted = remote(&plan.data);
    if wanted.is_empty() {
        return Ok(());
    }
    let settings = hub_settings(&plan.model)?;
    let mut faults = Vec::new();
    for (name, place) in wanted {
        let key = if plan.data.datasets.contains(&name) { "dataset" } else { "eval_dataset" };
        match one(&place, &settings) {
            Ok(files) => drop(plan.data.fetched.insert(name, files)),
            Err(error) => faults.push(recipe.error_at_item(key, &name, format!("dataset `{name}`: {error}"))),
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(Failure::Recipe(Diagnostics(faults))) }
}

fn one(place: &Remote, settings: &HubSettings) -> Result<Vec<std::path::PathBuf>, hub::HubError> {
    let progress = ui::Downloads::default();
    match place {
        Remote::HuggingFace { id, subset, split, folder } => {
            let part = DatasetPart {
                subset: subset.as_deref(),
                split: split.as_deref(),
                folder: folder.as_deref(),
                file: None,
            };
            hub::resolve_dataset(id, part, settings, &progress)
        }
        Remote::Cloud { url } => hub::resolve_cloud(url, settings, &progress),
    }
}

fn at(recipe: &Recipe, key: &str, error: &hub::HubError) -> Failure {
    let diagnostic = recipe.error_at(key, error.to_string());
    if diagnostic.span.is_some() { Failure::Recipe(diagnostic.into()) } else { Failure::Other(anyhow!("{error}")) }
}
