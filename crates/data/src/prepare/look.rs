//! Rows that are read and understood but not encoded: what can be said of data while something else of a recipe is wrong,
//! which no encoding would be right for.

use ferrotune_config::plan::{DataPlan, Stage};

use super::datasets;
use super::encode::{is_asked, read_all};
use super::{TRAIN, VALIDATION};
use crate::error::DataError;
use crate::mix::Place;
use crate::numpy::Legacy;
use crate::registry::Registry;
use crate::report::{DatasetReport, Report};

/// Rows that are held in memory at a time.
const AT_ONCE: u64 = 16_000;

/// Reads all rows of all datasets that `plan` names, each by itself, so that one that can't be read hides nothing of another.
/// Of the plan only the datasets, their folder, the stage, `max_samples` and whether evaluation generates count. What can't be
/// used at all is told beside the report, which has no sets.
pub fn look(plan: &DataPlan) -> (Report, Vec<DataError>) {
    if let Err(error) = Registry::open(&plan.dir) {
        return (Report::default(), vec![error]);
    }
    let (mut report, mut faults) = (Report::default(), Vec::new());
    let train = plan.datasets.iter().map(|name| (name, false));
    let eval = plan.eval_datasets.iter().map(|name| (name, true));
    let mut seen: Vec<(&String, bool)> = Vec::new();
    for named in train.chain(eval) {
        if seen.contains(&named) {
            continue;
        }
        seen.push(named);
        match one(plan, named) {
            Ok(found) => report.datasets.push(found),
            Err(error) => faults.push(error),
        }
    }
    (report, faults)
}

fn one(plan: &DataPlan, (name, for_eval): (&String, bool)) -> Result<DatasetReport, DataError> {
    let of = |used: bool| if used { vec![name.clone()] } else { Vec::new() };
    let alone = DataPlan { datasets: of(!for_eval), eval_datasets: of(for_eval), ..plan.clone() };
    let (mut found, _) = datasets::find(&alone)?;
    let scratch =
        tempfile::tempdir().map_err(|source| DataError::CacheFolder { path: std::env::temp_dir(), source })?;
    for dataset in &mut found {
        // Which rows are drawn depends on the datasets before: all are looked at.
        dataset.entry.num_samples = None;
        dataset.open(scratch.path(), plan.max_samples, &mut Legacy::new(plan.seed))?;
    }
    let asked = is_asked(plan, if for_eval { VALIDATION } else { TRAIN });
    let len = found.first().map_or(0, |dataset| dataset.len());
    let mut from = 0;
    while from < len {
        let end = len.min(from + AT_ONCE);
        let places: Vec<Place> = (from..end).map(|row| (0, row)).collect();
        let outcomes = read_all(&places, &found, |converter, row, line| {
            let quirks = match plan.stage {
                Stage::Sft if asked => converter.asked(row, line)?.1,
                Stage::Sft => converter.conversation(row, line)?.1,
                Stage::Pretrain => converter.text(row, line)?.1,
                Stage::Pairwise => converter.pair(row, line)?.1,
                Stage::Feedback => converter.feedback(row, line)?.1,
            };
            Ok(((), quirks))
        });
        let Some(dataset) = found.first_mut() else { break };
        for outcome in outcomes {
            dataset.saw(&outcome.columns);
            dataset.used();
            match outcome.result {
                Ok(((), quirks)) => dataset.kept(quirks),
                Err(reject) => drop(dataset.dropped(outcome.row, reject)),
            }
        }
        from = end;
    }
    let nothing = || DataError::NoDataset;
    let dataset = found.pop().ok_or_else(nothing)?;
    let fault = dataset.no_row_kept();
    let report = dataset.into_report();
    if report.rows_kept == 0 { Err(fault) } else { Ok(report) }
}
