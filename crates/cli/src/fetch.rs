//! How hubs are reached, and datasets that lie elsewhere: they are brought to this machine before anything reads them.

use crate::failure::Failure;
use crate::{environment, ui};
use anyhow::anyhow;
use ferrotune_checkpoint::hub::{self, DatasetPart, HubSettings};
use ferrotune_config::plan::{ModelPlan, Plan};
use ferrotune_config::{Diagnostics, Recipe};
use ferrotune_data::prepare::remote;
use ferrotune_data::registry::{Remote, is_online, remote_registry};

const REGISTRY: &str = "dataset_info.json";

/// How hubs are reached: by the environment, the recipe's cache and token.
pub(crate) fn hub_settings(plan: &ModelPlan) -> Result<HubSettings, Failure> {
    let home = environment::home().ok_or_else(|| Failure::Other(anyhow!("HOME is not set")))?;
    let mut settings = HubSettings::from_vars(environment::var, home);
    if let Some(folder) = &plan.cache_dir {
        settings = settings.with_cache_dir(folder);
    }
    Ok(with_tokens(settings, plan))
}

/// The recipe's tokens, each for its own hub: what one hub is told is no other's business.
fn with_tokens(mut settings: HubSettings, plan: &ModelPlan) -> HubSettings {
    let given = |token: &String| hub::Token::Given(hub::Secret::new(token));
    if let Some(token) = &plan.hugging_face_token {
        settings.hugging_face.token = given(token);
    }
    if let Some(token) = &plan.modelscope_token {
        settings.modelscope.token = given(token);
    }
    settings
}

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
    // Registries are looked for on Hugging Face, whatever the hub of models, as LLaMA-Factory does.
    let settings = HubSettings { use_modelscope: false, ..settings };
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
        Remote::Hub { hugging_face, modelscope, subset, split, folder } => {
            // As LLaMA-Factory: Hugging Face, unless ModelScope is asked for or only it has the data.
            let there = modelscope.as_ref().filter(|_| settings.use_modelscope || hugging_face.is_none());
            let settings = HubSettings { use_modelscope: there.is_some(), ..settings.clone() };
            let id = there.or(hugging_face.as_ref()).map_or("", String::as_str);
            let part = DatasetPart {
                subset: subset.as_deref(),
                split: split.as_deref(),
                folder: folder.as_deref(),
                file: None,
            };
            hub::resolve_dataset(id, part, &settings, &progress)
        }
        Remote::Cloud { url } => hub::resolve_cloud(url, settings, &progress),
    }
}

fn at(recipe: &Recipe, key: &str, error: &hub::HubError) -> Failure {
    let diagnostic = recipe.error_at(key, error.to_string());
    if diagnostic.span.is_some() { Failure::Recipe(diagnostic.into()) } else { Failure::Other(anyhow!("{error}")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferrotune_checkpoint::hub::{Secret, Token};
    use ferrotune_config::Verb;

    /// A token is a password: ModelScope's is never told to Hugging Face, nor the other way.
    #[test]
    fn each_hub_gets_its_own_token() {
        let settings = |keys: &[&str]| {
            let words = keys.iter().chain(&["model_name_or_path=m"]).map(|&word| word.to_owned());
            let recipe = Recipe::from_args(&words.collect::<Vec<_>>()).unwrap();
            let (plan, notes) = Plan::resolve(&recipe, Verb::Chat).unwrap();
            assert!(notes.is_empty(), "{notes:?}");
            let settings = with_tokens(HubSettings::from_vars(|_| None, "/home/u".into()), &plan.model);
            (settings.hugging_face.token, settings.modelscope.token)
        };
        let given = |token: &str| Token::Given(Secret::new(token));
        let (nobodys, anonymous) = settings(&[]);
        assert_eq!(settings(&["ms_hub_token=m"]), (nobodys, given("m")));
        assert_eq!(settings(&["hf_hub_token=h"]), (given("h"), anonymous));
        assert_eq!(settings(&["hf_hub_token=h", "ms_hub_token=m"]), (given("h"), given("m")));
    }
}
