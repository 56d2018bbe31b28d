//! Rows of stage kto: an answer and what was thought of it, beside another row's.

use super::*;
use crate::preference::Feedback;

fn judged(answer: &Value, wanted: bool) -> Value {
    json!({"conversations": [{"from": "human", "value": "q"}, answer], "label": wanted})
}

fn bench(rows: &[Value]) -> Bench {
    let entry = json!({"formatting": "sharegpt", "columns": {"messages": "conversations", "kto_tag": "label"}});
    let mut bench = Bench::new(entry, &json!(rows).to_string());
    bench.plan.stage = Stage::Feedback;
    bench
}

fn said(text: &str) -> Value {
    json!({"from": "gpt", "value": text})
}

#[test]
fn an_answer_that_cannot_be_written_costs_no_row_but_its_own() {
    let broken = json!({"from": "function_call", "value": "no JSON"});
    let prepared = bench(&[judged(&said("first"), true), judged(&broken, true), judged(&said("last"), false)]);
    let prepared = prepared.prepare().unwrap();
    let report = &prepared.report.datasets[0];
    let dropped: Vec<_> = report.dropped.iter().map(|dropped| (dropped.row, dropped.fault)).collect();
    assert_eq!((report.rows_kept, dropped), (2, vec![(2, Fault::Template)]));
    let (rows, tokenizer) = (prepared.train.unwrap(), tokenizer());
    let text = |ids: &[u32]| tokenizer.decode(ids, true).unwrap();
    let answers: Vec<_> = rows
        .iter()
        .map(|row| {
            let row = Feedback::of(&row).unwrap();
            let [own, other] = [row.own, row.mismatched].map(|part| text(part.input_ids));
            (own.contains("first"), other.contains("first"), own.contains("last"), other.contains("last"))
        })
        .collect();
    assert_eq!(answers, [(true, false, false, true), (false, true, true, false)]);
}

#[test]
fn an_empty_answer_that_is_tagged_as_wanted_is_told() {
    let prepared =
        bench(&[judged(&said(""), true), judged(&said("a"), true), judged(&said(""), false)]).prepare().unwrap();
    let wanted: Vec<bool> = prepared.train.unwrap().iter().map(|row| Feedback::of(&row).unwrap().wanted).collect();
    assert_eq!(wanted, [false, true, false]);
    let told = prepared.report.datasets[0].quirks.told();
    assert_eq!(told.iter().map(|(rows, _, otherwise)| (*rows, *otherwise)).collect::<Vec<_>>(), [(1, true)]);
    let text = prepared.report.render();
    assert!(text.contains("an empty answer is tagged `true` and counts as one that isn't wanted"), "{text}");
}
