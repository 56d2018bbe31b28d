//! `deploy --with`: adapters that a server has beside the first. It has one base, one chat template, one way to end an answer and one
//! position scaling for all of them, so what differs in one of these is refused.

use super::check::Opened;
use super::deploy::{self, DeployArgs};
use crate::failure::Failure;
use anyhow::anyhow;
use ferrotune_deploy::{Adapter, model_name};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// How a model is asked and computed.
#[derive(Debug, PartialEq)]
pub(super) struct Manner {
    pub(super) chat_template: String,
    pub(super) ends: Vec<u32>,
    pub(super) overrides: Option<Value>,
}

impl Manner {
    /// What of it is otherwise, in words.
    fn difference(&self, other: &Self) -> Option<&'static str> {
        match (self.chat_template == other.chat_template, self.ends == other.ends) {
            (false, _) => Some("needs another chat template"),
            (true, false) => Some("ends its answers otherwise"),
            (true, true) => (self.overrides != other.overrides).then_some("has other positions (rope_scaling)"),
        }
    }
}

/// The adapters of `--with` and how many numbers each has, if they go with the first one, which lies in `first` on `base`.
pub(super) fn adapters(
    args: &DeployArgs,
    (first, base): (&Path, &Path),
    manner: &Manner,
) -> Result<Vec<(Adapter, u64)>, Failure> {
    args.with.iter().map(|word| adapter(args, word, (first, base), manner)).collect()
}

fn adapter(
    args: &DeployArgs,
    word: &str,
    (first, base): (&Path, &Path),
    manner: &Manner,
) -> Result<(Adapter, u64), Failure> {
    let (name, folder) = match word.split_once('=') {
        Some((name, folder)) => (Some(name), folder),
        None => (None, word),
    };
    let folder = PathBuf::from(folder).canonicalize().map_err(|error| Failure::Other(anyhow!("{folder}: {error}")))?;
    if !folder.join("adapter_config.json").is_file() {
        return Err(Failure::Other(anyhow!(
            "--with {word}: {} has no adapter_config.json; only adapters of one base share a server",
            folder.display()
        )));
    }
    let name = model_name(name.unwrap_or(&folder.file_name().unwrap_or_default().to_string_lossy()))?;
    let opened = Opened::of_adapter(&folder, args.base.as_deref());
    let found = deploy::checked_adapter(args, (&name, &folder), &opened)?;
    let (path, model) = opened.found.as_ref().map_err(|reason| deploy::no_base(&opened.name, reason))?;
    let apart = |what: String| {
        let first = first.display();
        Failure::Other(anyhow!("--with {word}: {what} than {first}, and a server has one for all; deploy it by itself"))
    };
    if path != base {
        return Err(apart(format!("it was trained on another base ({})", opened.name)));
    }
    let resolved = deploy::recipe_of(args, &folder, true, path)?;
    let (_, own, _) = deploy::manner_of(&resolved, &folder, model)?;
    match own.difference(manner) {
        Some(difference) => Err(apart(format!("it {difference}"))),
        None => Ok(found),
    }
}
