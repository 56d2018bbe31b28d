//! Where an answer ends. A template may end a turn with another token than the model's own, and whoever reads nothing but the
//! model's files would then never stop: the ids go into the files that a run leaves, and to the servers of its adapter.

use ferrotune_checkpoint::{OpenModel, TokenizerFiles};
use ferrotune_data::tokenizer::Tokenizer;
use serde_json::{Value, json};

/// The file in which older versions of transformers look first.
const OLDER: &str = "special_tokens_map.json";

/// Names the eos token of training in the tokenizer's files, as LLaMA-Factory does.
pub(crate) fn name_eos(files: &mut TokenizerFiles, tokenizer: &Tokenizer) {
    let Some(eos) = &tokenizer.special().eos else { return };
    let is_named = |config: &Value| {
        let named = &config["eos_token"];
        named.as_str().or_else(|| named["content"].as_str()) == Some(&eos.text)
    };
    if !is_named(&files.tokenizer_config) {
        files.tokenizer_config["eos_token"] = eos.text.as_str().into();
    }
    for (name, bytes) in &mut files.extra {
        let Ok(mut map) = serde_json::from_slice::<Value>(bytes) else { continue };
        if name == OLDER && map.is_object() && !is_named(&map) {
            map["eos_token"] = eos.text.as_str().into();
            *bytes = format!("{map:#}").into_bytes();
        }
    }
}

/// Lets the generation_config of a whole model that is saved end where training ended.
pub(crate) fn complete(files: &mut OpenModel, ends: &[u32]) {
    if let Some(generation) = missing(files, &[], ends) {
        files.generation_config = Some(generation);
    }
}

/// The generation_config with which a server of `base` ends where training ended; nothing if it does so by itself, by the base's
/// files and the eos token of the base's `tokenizer`.
pub(crate) fn of_server(base: &OpenModel, tokenizer: &Tokenizer, ends: &[u32]) -> Option<Value> {
    let eos = tokenizer.special().eos.as_ref().map(|eos| eos.id);
    missing(base, eos.as_slice(), ends)
}

fn missing(files: &OpenModel, known: &[u32], ends: &[u32]) -> Option<Value> {
    // Without the one file, the other counts.
    let told = files.generation_config.as_ref().unwrap_or(&files.config);
    let told: Vec<u32> = match &told["eos_token_id"] {
        Value::Array(ids) => ids.iter().filter_map(id).collect(),
        one => id(one).into_iter().collect(),
    };
    if ends.iter().all(|end| told.contains(end) || known.contains(end)) {
        return None;
    }
    let mut ids = ends.to_vec();
    ids.extend(told.into_iter().filter(|id| !ends.contains(id)));
    let mut generation = files.generation_config.clone().unwrap_or_else(|| json!({}));
    generation["eos_token_id"] = ids.into();
    Some(generation)
}

fn id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}
