//! What encoded rows depend on, as one digest.
//!
//! Content, not dates: a data file that is touched keeps its rows, one that is edited within a
//! second loses them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;

use ferrotune_config::plan::DataPlan;

use super::datasets::Dataset;
use crate::clock::Moment;
use crate::digest::{self, Digest};
use crate::error::DataError;
use crate::template::Template;
use crate::tokenizer::Tokenizer;

/// How rows are read and written into ids: one more whenever the same rows come out otherwise, so that what was encoded
/// before is encoded anew. 2: whole numbers of more than 64 bits keep their digits; an answer that can't be written is no
/// other row's partner in stage kto.
pub(super) const RULES: u32 = 2;

/// The key of the rows that `plan` gives with these files, tokenizer and template, by these [`RULES`].
pub(super) fn of(
    rules: u32,
    plan: &DataPlan,
    datasets: &[Dataset],
    tokenizer: &Tokenizer,
    template: &Template,
) -> Result<Digest, DataError> {
    // Options that change nothing about the rows don't count.
    let plan =
        DataPlan { overwrite_cache: false, cache_dir: None, workers: None, fetched: BTreeMap::new(), ..plan.clone() };
    // Nor does the day: a run that is resumed tomorrow goes on with the same tokens.
    let template = Template { now: Moment { unix_seconds: 0 }, ..template.clone() };
    let mut parts: Vec<Vec<u8>> = vec![
        env!("CARGO_PKG_VERSION").into(),
        rules.to_le_bytes().into(),
        format!("{plan:?}").into(),
        format!("{template:?}").into(),
        format!("{:?}", tokenizer.special()).into(),
        tokenizer.digest().to_vec(),
    ];
    for dataset in datasets {
        parts.push(format!("{:?}", dataset.entry).into());
        for path in &dataset.files {
            let io = |error| DataError::io("read", path, error);
            parts.push(path.to_string_lossy().into_owned().into());
            parts.push(digest::of_file(&File::open(path).map_err(io)?).map_err(io)?.to_vec());
        }
    }
    Ok(digest::of_parts(parts.iter().map(Vec::as_slice)))
}

/// Name of the file for rows under `key`.
pub(super) fn file_name(key: &Digest) -> String {
    let mut name = String::new();
    for byte in &key[..12] {
        write!(name, "{byte:02x}").expect("writing to a String can't fail");
    }
    name + ".rows"
}
