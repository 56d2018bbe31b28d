//! `train_results.json`, `eval_results.json` and the two in one, `all_results.json`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use ferrotune_checkpoint::write_atomic;
use serde_json::Value;

use super::json;
use super::row::LogRow;
use crate::error::{Error, Result};
use crate::predict::Prediction;

/// The file of answers to rows.
pub const PREDICTIONS: &str = "generated_predictions.jsonl";

/// Writes what rows were answered into `generated_predictions.jsonl` in `folder`, a line a row, as LLaMA-Factory does.
///
/// # Errors
/// If the file can't be written.
pub fn write_predictions<'a>(folder: &Path, predictions: impl Iterator<Item = &'a Prediction>) -> Result<()> {
    let mut text = Vec::new();
    for prediction in predictions {
        text.extend(json::line(prediction));
        text.push(b'\n');
    }
    Ok(write_atomic(&folder.join(PREDICTIONS), &text)?)
}

/// The file that collects all results.
pub const ALL_RESULTS: &str = "all_results.json";

/// Writes what `row` measured, and the epoch, to `<split>_results.json` in `folder`, and adds it to
/// `all_results.json`. Splits are `train`, `eval` and `predict`; the last one has no epoch.
///
/// # Errors
/// [`Error::Io`] if a file can't be written, [`Error::Json`] if an `all_results.json` is there that is no JSON object.
pub fn write_results(folder: &Path, split: &str, row: &LogRow) -> Result<()> {
    let measured: BTreeMap<String, Value> = row
        .values()
        .map(|(name, value)| (name.to_owned(), value.into()))
        .chain((split != "predict").then(|| ("epoch".to_owned(), row.when.epoch.into())))
        .collect();
    write_atomic(&folder.join(format!("{split}_results.json")), &json::indented(&measured, 4))?;

    let path = folder.join(ALL_RESULTS);
    let mut all: BTreeMap<String, Value> = match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map_err(|source| Error::Json {
            path: path.clone(),
            what: "table of results",
            source,
        })?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
        Err(error) => return Err(Error::io("read", &path)(error)),
    };
    all.extend(measured);
    Ok(write_atomic(&path, &json::indented(&all, 4))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;
    use crate::report::state::TrainerState;

    fn last(state: &TrainerState, name: &str) -> LogRow {
        state.log_history.iter().rev().find(|row| row.get(name).is_some()).expect("a row has it").clone()
    }

    #[test]
    fn results_of_whole_runs_come_out_byte_for_byte() {
        for case in fixtures::train_cases().iter().filter(|case| case.name() != "qwen3_lora_eval") {
            let state = TrainerState::read(&case.path("")).expect("a state");
            let folder = tempfile::tempdir().expect("a folder");
            write_results(folder.path(), "train", &last(&state, "train_loss")).expect("writable");
            for file in [ALL_RESULTS, "train_results.json"] {
                let ours = fs::read_to_string(folder.path().join(file)).expect("written");
                assert_eq!(ours, case.text(ALL_RESULTS), "{} {file}", case.name());
            }
        }
    }

    #[test]
    fn an_evaluation_is_added_to_the_training() {
        let case = fixtures::train_case("qwen3_lora_eval");
        let state = TrainerState::read(&case.path("")).expect("a state");
        let folder = tempfile::tempdir().expect("a folder");
        write_results(folder.path(), "train", &last(&state, "train_loss")).expect("writable");
        write_results(folder.path(), "eval", &last(&state, "eval_loss")).expect("writable");
        let keys = |text: &str| -> Vec<String> {
            let value: Value = serde_json::from_str(text).expect("JSON");
            value.as_object().expect("an object").keys().cloned().collect()
        };
        let ours = fs::read_to_string(folder.path().join(ALL_RESULTS)).expect("written");
        assert_eq!(keys(&ours), keys(&case.text(ALL_RESULTS)));
        let eval = fs::read_to_string(folder.path().join("eval_results.json")).expect("written");
        assert_eq!(
            keys(&eval),
            ["epoch", "eval_loss", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second"]
        );
    }

    #[test]
    fn answers_are_lines_as_python_writes_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let prediction =
            |text: &str| Prediction { prompt: text.into(), predict: "\u{1f}/".into(), label: String::new() };
        let all = [prediction("<s>\n\"é\" 你\u{7f}"), prediction("\u{2028}")];
        write_predictions(folder.path(), all.iter()).expect("writable");
        let text = fs::read_to_string(folder.path().join(PREDICTIONS)).expect("written");
        // json.dumps(.., ensure_ascii=False)
        let first = r#"{"prompt": "<s>\n\"é\" 你DEL", "predict": "\u001f/", "label": ""}"#.replace("DEL", "\u{7f}");
        let second = "{\"prompt\": \"\u{2028}\", \"predict\": \"\\u001f/\", \"label\": \"\"}";
        assert_eq!(text, format!("{first}\n{second}\n"));
    }

    #[test]
    fn a_broken_table_is_not_overwritten() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join(ALL_RESULTS), "[1]").expect("writable");
        let state = TrainerState::read(&fixtures::train_case("qwen3_lora_eval").path("")).expect("a state");
        let error = write_results(folder.path(), "eval", &last(&state, "eval_loss")).expect_err("refused").to_string();
        assert!(error.contains("all_results.json is not a table of results"), "{error}");
        assert_eq!(fs::read_to_string(folder.path().join(ALL_RESULTS)).expect("still there"), "[1]");
    }
}
