//! What of a recipe must be the same on all machines of a run.

use crate::keys;
use crate::recipe::Recipe;
use crate::tree::{Data, Node};

/// Keys that may differ from machine to machine: where files lie, how many helpers read them, who may read them. Whether
/// the files are the same is compared by their content.
const LOCAL: [&str; 12] = [
    "adapter_name_or_path",
    "cache_dir",
    "dataset_dir",
    "deepspeed",
    "dataloader_num_workers",
    "local_rank",
    "logging_dir",
    "model_name_or_path",
    "output_dir",
    "overwrite_cache",
    "preprocessing_num_workers",
    "run_name",
];

impl Recipe {
    /// Each key and its value as written, in the order of their names; secrets and what may differ left out.
    pub fn common(&self) -> Vec<(String, String)> {
        let mut all: Vec<(String, String)> = self
            .entries
            .iter()
            .filter(|entry| !entry.key.is_secret())
            .map(|entry| {
                let name = entry.key.text.as_str();
                let canonical = keys::find(name).map_or(name, |key| keys::canonical(key).name);
                (canonical.to_owned(), text(&entry.value))
            })
            .filter(|(name, _)| !LOCAL.contains(&name.as_str()))
            .collect();
        all.sort();
        all
    }
}

/// A value on one line.
pub(crate) fn text(node: &Node) -> String {
    match &node.data {
        Data::Scalar { text, .. } => text.clone(),
        Data::List(items) => format!("[{}]", items.iter().map(text).collect::<Vec<_>>().join(", ")),
        Data::Map(pairs) => {
            let pair = |(key, value): &(crate::tree::Key, Node)| format!("{}: {}", key.text, text(value));
            format!("{{{}}}", pairs.iter().map(pair).collect::<Vec<_>>().join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_differ_or_is_secret_is_left_out() {
        let recipe = b"output_dir: a\nlearning_rate: 1e-4\nhf_hub_token: hf_12345678\ndataset: [a, b]\n";
        let mut recipe = Recipe::parse("x.yaml", recipe).unwrap();
        recipe.apply(&["learning_rate=2e-4".to_owned()]).unwrap();
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(recipe.common(), [pair("dataset", "[a, b]"), pair("learning_rate", "2e-4")]);
    }
}
