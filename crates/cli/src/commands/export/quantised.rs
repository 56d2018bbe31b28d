//! Merging into a quantised base: sound where training saw the same dequantised weights, and refused where it saw others.

use crate::failure::Failure;
use crate::prepare::{Answering, Located, Resolved};
use crate::ui;
use ferrotune_checkpoint::TensorSource;
use ferrotune_config::Diagnostics;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Says what a quantised base means for the merged model.
///
/// # Errors
/// If an adapter was trained on another base than this quantised one.
pub(super) fn check(resolved: &Resolved, open: &Answering) -> Result<(), Failure> {
    let Some(kind) = kind(&*open.files.tensors) else { return Ok(()) };
    let adapters = &resolved.plan.model.adapters;
    let mut faults = Vec::new();
    for path in adapters {
        let Some(trained_on) = trained_on(path).filter(|name| !is(name, &open.located)) else { continue };
        let message = format!(
            "adapter {path} was trained on {trained_on}, and {} is quantised ({kind}): the merged model would have the errors of \
             both, which training never saw. Merge into {trained_on}, and quantise with export_format: gguf; if the two are one \
             model, name it in the adapter's base_model_name_or_path",
            open.located.name
        );
        faults.push(resolved.recipe.error_at_item("adapter_name_or_path", path, message));
    }
    if !faults.is_empty() {
        return Err(Failure::Recipe(Diagnostics(faults)));
    }
    ui::note(&format!(
        "the base is quantised ({kind}); what is written is its dequantised weights{}",
        if adapters.is_empty() { "" } else { ", as training saw them, plus the adapters" }
    ));
    Ok(())
}

/// The type of most quantised weights.
fn kind(tensors: &dyn TensorSource) -> Option<&'static str> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for info in tensors.names().iter().filter_map(|name| tensors.info(name)).filter(|info| info.dtype.is_quantised()) {
        *counts.entry(info.dtype.name()).or_default() += info.elements();
    }
    counts.into_iter().max_by_key(|(_, elements)| *elements).map(|(name, _)| name)
}

/// The base that an adapter names.
fn trained_on(adapter: &str) -> Option<String> {
    let config = std::fs::read(Path::new(adapter).join("adapter_config.json")).ok()?;
    let config: Value = serde_json::from_slice(&config).ok()?;
    config["base_model_name_or_path"].as_str().filter(|name| !name.is_empty()).map(str::to_owned)
}

/// Whether a name means the base that was opened.
fn is(name: &str, base: &Located) -> bool {
    let same_path = || Some(Path::new(name).canonicalize().ok()? == base.path.canonicalize().ok()?);
    name.eq_ignore_ascii_case(&base.name) || same_path().unwrap_or(false)
}
