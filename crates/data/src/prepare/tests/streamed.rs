//! Rows that are used while they are being encoded, by the process that encodes them and by others.

use super::*;

#[test]
fn streamed_rows_are_there_before_all_are_encoded() {
    let mut bench = Bench::numbered(30_000);
    bench.add("e", json!({}), "e.json", &numbered("e", 300));
    bench.plan.datasets = vec!["d".into()];
    bench.plan.eval_datasets = vec!["e".into()];
    bench.plan.stream = Some(100);
    bench.plan.workers = Some(1);
    let early = begin(&bench.plan, &mut tokenizer(), &()).unwrap();
    let rows = early.train.as_ref().unwrap();
    assert_eq!(early.eval[0].1.len(), 300);
    assert_eq!(questions(&early.eval[0].1)[299], "e299");
    assert!(!rows.is_empty());
    let first: Vec<u32> = rows.get(0).input_ids.to_vec();
    // A reference stays good whatever is written after.
    let held = rows.get(0);
    let (there, _) = rows.wait(10_000).unwrap();
    assert!(there >= 10_000);
    assert_eq!(rows.wait(usize::MAX - 300).unwrap(), (30_000, true));
    assert_eq!(held.input_ids, first);
    assert!(!rows.is_growing());
    let coming = early.coming.unwrap();
    assert_eq!(coming.rows(), 30_300);
    let report = coming.report().unwrap();
    assert_eq!(
        report.sets.iter().map(|set| (set.name.as_str(), set.rows)).collect::<Vec<_>>(),
        [(TRAIN, 30_000), (VALIDATION, 300)]
    );
    let later = begin(&bench.plan, &mut tokenizer(), &()).unwrap();
    assert!(later.from_cache && later.coming.is_none());
    let whole = later.train.unwrap();
    assert_eq!((whole.len(), whole.tokens()), (rows.len(), rows.tokens()));
    assert_eq!(whole.label_tokens(), rows.label_tokens());
    assert!(whole.iter().eq(rows.iter()));
    let order = stream::first_epoch(Mix::Concat, &[30_000], None, 42, 100).unwrap();
    let expected: Vec<String> = order[..50].iter().map(|(_, row)| format!("d{row}")).collect();
    assert_eq!(questions(&whole)[..50], expected);
}

/// Another process reads along, whenever it comes; here it is another thread.
#[test]
fn streamed_rows_are_there_for_others_before_all_are_encoded() {
    let mut bench = Bench::numbered(60_000);
    bench.add("e", json!({}), "e.json", &numbered("e", 300));
    bench.plan.datasets = vec!["d".into()];
    bench.plan.eval_datasets = vec!["e".into()];
    bench.plan.stream = Some(100);
    bench.plan.workers = Some(1);
    let first = begin(&bench.plan, &mut tokenizer(), &()).unwrap();
    let other = follow(&bench.plan, &mut tokenizer()).unwrap();
    // As long as it is being encoded for one, the other can't have all of it.
    assert!(first.train.as_ref().unwrap().is_growing() && other.coming.is_some());
    let (ours, theirs) = (first.train.unwrap(), other.train.unwrap());
    assert_eq!(questions(&other.eval[0].1), questions(&first.eval[0].1));
    let (there, _) = theirs.wait(10_000).unwrap();
    assert!(there >= 10_000);
    for rows in [&ours, &theirs] {
        assert_eq!(rows.wait(usize::MAX - 300).unwrap(), (60_000, true));
    }
    assert!(theirs.iter().eq(ours.iter()));
    assert_eq!((theirs.tokens(), theirs.label_tokens()), (ours.tokens(), ours.label_tokens()));
    assert_eq!(other.coming.unwrap().report(), first.coming.unwrap().report());
    let late = follow(&bench.plan, &mut tokenizer()).unwrap();
    assert!(late.from_cache && late.train.unwrap().iter().eq(ours.iter()));
}

#[test]
fn who_reads_along_is_told_when_encoding_fails() {
    let rows: Vec<Value> =
        (0..60_000).map(|i| if i < 59_000 { json!({"instruction": "a", "output": "b"}) } else { json!(5) }).collect();
    let mut bench = Bench::new(json!({}), &Value::from(rows).to_string());
    bench.plan.stream = Some(10);
    bench.plan.bad_rows = BadRows::Stop;
    bench.plan.workers = Some(1);
    let first = begin(&bench.plan, &mut tokenizer(), &()).unwrap();
    let other = follow(&bench.plan, &mut tokenizer()).unwrap();
    let problem = first.train.unwrap().wait(60_000).unwrap_err();
    assert!(problem.contains("not an object of columns"), "{problem}");
    let problem = other.train.unwrap().wait(60_000).unwrap_err();
    assert!(problem.contains("has ended before they were all there"), "{problem}");
}

#[test]
fn what_is_wrong_with_streamed_data_is_told_as_ever() {
    let mut bench = Bench::new(json!({}), "[{\"instruction\": \"a\"}]");
    bench.plan.stream = Some(10);
    let message = begin(&bench.plan, &mut tokenizer(), &()).unwrap_err().to_string();
    assert!(message.starts_with("not one of the 1 rows of the training set can be used"), "{message}");
    // Late: every row but the first ones is broken, and a plan that stops at them.
    let rows: Vec<Value> =
        (0..9000).map(|i| if i < 5000 { json!({"instruction": "a", "output": "b"}) } else { json!(5) }).collect();
    bench.add("d", json!({}), "d.json", &Value::from(rows).to_string());
    bench.plan.bad_rows = BadRows::Stop;
    bench.plan.workers = Some(1);
    match begin(&bench.plan, &mut tokenizer(), &()) {
        Ok(early) => {
            let problem = early.train.unwrap().wait(8000).unwrap_err();
            assert!(problem.contains("not an object of columns"), "{problem}");
        }
        Err(error) => assert!(error.to_string().contains("not an object of columns"), "{error}"),
    }
}
