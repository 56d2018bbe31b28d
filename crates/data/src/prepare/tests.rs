mod feedback;
mod rules;
mod streamed;

use std::sync::Mutex;

use ferrotune_config::plan::{TemplateChoice, ValSize};
use serde_json::{Value, json};

use super::*;
use crate::report::Fault;

/// A dataset folder with one dataset `d` and a plan for it.
struct Bench {
    dir: tempfile::TempDir,
    plan: DataPlan,
}

impl Bench {
    fn new(entry: Value, rows: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let plan = DataPlan {
            stage: Stage::Sft,
            dir: dir.path().to_path_buf(),
            datasets: vec!["d".into()],
            eval_datasets: vec![],
            eval_each: false,
            generate: false,
            template: TemplateChoice::Named("qwen".into()),
            cutoff_len: 256,
            train_on_prompt: false,
            mask_history: false,
            default_system: None,
            enable_thinking: Some(true),
            preserve_thinking: false,
            tool_format: None,
            split_special_tokens: false,
            max_samples: None,
            val_size: ValSize::None,
            packing: Packing::Off,
            mix: Mix::Concat,
            mix_probabilities: None,
            stream: None,
            fetched: std::collections::BTreeMap::new(),
            seed: 42,
            overwrite_cache: false,
            cache_dir: None,
            workers: Some(2),
            bad_rows: BadRows::Report,
        };
        let bench = Self { dir, plan };
        bench.add("d", entry, "d.json", rows);
        bench
    }

    /// `n` rows that say their number.
    fn numbered(n: usize) -> Self {
        Self::new(json!({}), &numbered("d", n))
    }

    fn add(&self, name: &str, mut entry: Value, file: &str, rows: &str) {
        let registry = self.dir.path().join("dataset_info.json");
        let mut entries: Value = fs::read(&registry).map_or(json!({}), |bytes| serde_json::from_slice(&bytes).unwrap());
        entry["file_name"] = json!(file);
        entries[name] = entry;
        fs::write(registry, entries.to_string()).unwrap();
        fs::write(self.dir.path().join(file), rows).unwrap();
    }

    fn prepare(&self) -> Result<Prepared, DataError> {
        prepare(&self.plan, &mut tokenizer(), &())
    }

    fn message(&self) -> String {
        let text = self.prepare().unwrap_err().to_string();
        text.replace(&self.dir.path().display().to_string(), "DIR")
    }
}

fn numbered(name: &str, n: usize) -> String {
    let row = |i| json!({"instruction": format!("{name}{i}"), "output": "yes"});
    Value::Array((0..n).map(row).collect()).to_string()
}

fn tokenizer() -> Tokenizer {
    let json = include_bytes!("../../../../fixtures/tokenizers/tiny-qwen/tokenizer.json");
    let config = include_str!("../../../../fixtures/tokenizers/tiny-qwen/tokenizer_config.json");
    Tokenizer::from_parts(json, &serde_json::from_str(config).unwrap(), None).unwrap()
}

/// What each row is about, in order.
fn questions(rows: &Rows) -> Vec<String> {
    let tokenizer = tokenizer();
    rows.iter()
        .map(|row| {
            let text = tokenizer.decode(row.input_ids, false).unwrap();
            let (_, after) = text.split_once("<|im_start|>user\n").unwrap();
            after.split_once("<|im_end|>").unwrap().0.to_owned()
        })
        .collect()
}

#[test]
fn broken_rows_are_left_out_and_reported() {
    let rows = "[\n{\"instruction\": \"a\", \"output\": \"b\"},\n{\"instruction\": \"c\"},\n{oops},\n\
                {\"instruction\": \"d\", \"output\": 5}\n]";
    let mut bench = Bench::new(json!({}), rows);
    let prepared = bench.prepare().unwrap();
    let report = &prepared.report.datasets[0];
    let dropped: Vec<_> = report.dropped.iter().map(|dropped| (dropped.line, dropped.reason())).collect();
    assert_eq!(
        dropped,
        [
            (3, "no answer: `output` is missing".to_owned()),
            (4, "broken JSON: key must be a string, column 2".to_owned()),
        ]
    );
    assert_eq!((report.rows_read, report.rows_used, report.rows_kept), (4, 4, 2));
    assert_eq!(report.quirks.numbers_as_text, 1);
    assert_eq!(questions(prepared.train.as_ref().unwrap()), ["a", "d"]);
    assert_eq!(prepared.train.unwrap().get(1).source, (0, 3));
    bench.plan.bad_rows = BadRows::Stop;
    assert_eq!(
        bench.message(),
        "DIR/d.json:3 (row 2): no answer: `output` is missing; `on_bad_row: report` leaves such rows out and goes on"
    );
}

#[test]
fn runs_without_usable_data_say_why() {
    assert_eq!(Bench::new(json!({}), "[]").message(), "dataset `d` is empty: DIR/d.json holds no rows");
    assert_eq!(
        Bench::new(json!({}), "[{\"q\": 1}, {\"q\": 2}, 3]").message(),
        "not one of the 3 rows of the training set can be used:\n  1: not an object of columns: found a number, first \
         at DIR/d.json:1 (row 3)\n  2: no answer: `output` is missing, first at DIR/d.json:1\n  the rows of `d` have the columns `q`"
    );
    assert_eq!(
        Bench::new(json!({"columns": {"system": "system"}}), &numbered("d", 2)).message(),
        "not one of the 2 rows of the training set can be used:\n  2: no answer: the dataset's `columns` map no \
         `response`, first at DIR/d.json:1\n  the rows of `d` have the columns `instruction`, `output`"
    );
    let mut bench = Bench::numbered(3);
    bench.plan.cutoff_len = 5;
    assert_eq!(
        bench.message(),
        "`cutoff_len: 5` leaves no room for a row: the template alone takes 15 tokens; set it to 16 or more"
    );
    let mut bench = Bench::numbered(3);
    bench.plan.val_size = ValSize::Count(3);
    assert_eq!(bench.message(), "`val_size: 3` of 3 rows leaves nothing to train on; choose a smaller one");
    bench.plan.datasets = vec!["e".into()];
    assert_eq!(bench.message(), "dataset `e` is not in DIR/dataset_info.json; it has d");
    bench.plan.datasets.clear();
    assert_eq!(bench.message(), "no dataset is named: set `dataset` to one or more names of `dataset_info.json`");
    let mut bench = Bench::numbered(3);
    fs::remove_file(bench.dir.path().join("d.json")).unwrap();
    assert_eq!(bench.message(), "dataset `d`: there is no DIR/d.json; `file_name` is relative to `dataset_dir`");
    bench.plan.template = TemplateChoice::Named("qwem".into());
    bench.add("d", json!({}), "d.json", "[]");
    assert!(bench.message().starts_with("there is no template `qwem`"), "{}", bench.message());
}

#[test]
fn data_without_labels_is_refused() {
    let question = "words ".repeat(400);
    let rows = json!([{"instruction": question, "output": "words ".repeat(9)}]).to_string();
    let mut bench = Bench::new(json!({}), &rows);
    bench.plan.cutoff_len = 17;
    assert_eq!(
        bench.message(),
        "not one token of the training set is trained on: in all 1 rows the answer is empty or cut off by \
         `cutoff_len: 17`"
    );
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let mut bench = Bench::numbered(1);
    bench.plan.cache_dir = Some(bench.dir.path().join("d.json/cache"));
    let message = bench.message();
    assert!(message.starts_with("can't write to DIR/d.json/cache, where encoded rows are kept: "), "{message}");
    assert!(message.ends_with("; `tokenized_path` names another folder"), "{message}");
}

#[test]
fn columns_that_nothing_reads_come_with_their_cure() {
    let rows = json!([
        {"instruction": "a", "output": "b", "system": "s", "history": [["q", "r"]], "id": 1},
        {"instruction": "a", "output": "b", "system": "", "history": [], "id": 2},
    ]);
    let bench = Bench::new(json!({}), &rows.to_string());
    let report = bench.prepare().unwrap().report;
    let unmapped: Vec<_> = report.datasets[0].unmapped.iter().map(|u| (u.column.as_str(), u.rows)).collect();
    assert_eq!(unmapped, [("id", 2), ("history", 1), ("system", 1)]);
    assert_eq!(
        report.datasets[0].columns_cure.as_deref().unwrap(),
        "{\"prompt\": \"instruction\", \"query\": \"input\", \"response\": \"output\", \"history\": \"history\", \
         \"system\": \"system\"}"
    );
    assert!(report.render().contains("`id` (100.0 %), `history` (50.0 %), `system` (50.0 %)"), "{}", report.render());
    let cure: Value = serde_json::from_str(report.datasets[0].columns_cure.as_ref().unwrap()).unwrap();
    bench.add("d", json!({"columns": cure}), "d.json", &rows.to_string());
    let report = bench.prepare().unwrap().report;
    assert_eq!(report.datasets[0].columns_cure, None);
}

#[test]
fn a_mapped_column_that_no_row_has_is_named() {
    let columns = json!({"columns": {"prompt": "instructions", "response": "output", "query": "zz"}});
    let report = Bench::new(columns, &numbered("d", 2)).prepare().unwrap().report;
    let absent: Vec<String> = report.datasets[0].absent.iter().map(ToString::to_string).collect();
    let told = [
        "`columns.prompt` is `instructions`, which no row has; did you mean `instruction`?",
        "`columns.query` is `zz`, which no row has",
    ];
    assert_eq!(absent, told);
    assert!(report.render().contains(&format!("  warning: {}\n", told[0])), "{}", report.render());
}

#[test]
fn what_turns_hold_and_nobody_reads_is_named() {
    let call = |arguments: Value| json!([{"id": "c", "function": {"name": "f", "arguments": arguments}}]);
    let ask = |extra: &str, value: Value| json!({"role": "user", "content": "a", extra: value});
    let rows = json!([
        {"messages": [ask("weight", json!(0)), {"role": "assistant", "content": "b", "reasoning_content": "why"}]},
        {"messages": [ask("name", json!("Eve")), {"role": "assistant", "content": "b", "reasoning_content": null}]},
        {"messages": [ask("id", json!(1)), {"role": "assistant", "content": "Let me see.", "tool_calls": call(json!("{}"))}]},
        {"messages": [ask("id", json!(1)), {"role": "assistant", "content": "", "tool_calls": call(json!({}))}]},
    ])
    .to_string();
    let tags = json!({"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
        "observation_tag": "tool", "function_tag": "function", "system_tag": "system"});
    let entry = |formatting: &str| json!({"formatting": formatting, "columns": {"messages": "messages"}, "tags": tags});
    let unread = |bench: &Bench| {
        let report = bench.prepare().unwrap().report.datasets.remove(0);
        let unmapped: Vec<_> = report.unmapped.iter().map(|u| (u.column.clone(), u.rows)).collect();
        (unmapped, report.quirks)
    };
    let named =
        |names: &[(&str, u64)]| names.iter().map(|(name, rows)| ((*name).to_owned(), *rows)).collect::<Vec<_>>();
    let (unmapped, quirks) = unread(&Bench::new(entry("openai"), &rows));
    assert_eq!(unmapped, named(&[("messages[].reasoning_content", 1), ("messages[].weight", 1)]));
    assert_eq!((quirks.text_beside_calls, quirks.calls_as_text), (1, 1));
    let (unmapped, _) = unread(&Bench::new(entry("sharegpt"), &rows));
    let all = [("messages[].tool_calls", 2), ("messages[].reasoning_content", 1), ("messages[].weight", 1)];
    assert_eq!(unmapped, named(&all));
}

#[test]
fn what_an_entry_says_in_vain_stands_beside_what_it_leaves_out() {
    let bench = Bench::new(json!({"columns": {"promt": "instruction"}}), &numbered("d", 2));
    let message = bench.message();
    assert!(message.contains("the dataset's `columns` map no `response`"), "{message}");
    assert!(message.contains("note on `d`: `columns.promt` is unknown"), "{message}");
}

#[test]
fn all_datasets_that_cannot_be_read_are_named_at_once() {
    let mut bench = Bench::numbered(1);
    bench.add("gone", json!({}), "gone.json", "[]");
    fs::remove_file(bench.dir.path().join("gone.json")).unwrap();
    bench.add("zeros", json!({}), "zeros.json", "[\0]");
    bench.add("empty", json!({}), "empty.json", "[]");
    bench.plan.datasets = ["d", "gone", "zeros", "empty"].map(str::to_owned).into();
    let message = bench.message();
    assert!(message.starts_with("3 things are wrong:"), "{message}");
    for part in ["there is no DIR/gone.json", "DIR/zeros.json: holds zero bytes", "dataset `empty` is empty"] {
        assert!(message.contains(part), "{part} is not in {message}");
    }
    bench.plan.datasets = ["d", "empty"].map(str::to_owned).into();
    bench.plan.cutoff_len = 4;
    let message = bench.message();
    assert!(message.contains("`cutoff_len: 4` leaves no room") && message.contains("`empty` is empty"), "{message}");
}

#[test]
fn the_first_rows_are_taken_and_held_out_rows_are_those_of_datasets() {
    let mut bench = Bench::numbered(12);
    bench.plan.max_samples = Some(10);
    bench.plan.val_size = ValSize::Fraction(0.25);
    let prepared = bench.prepare().unwrap();
    let names = |numbers: &[usize]| numbers.iter().map(|i| format!("d{i}")).collect::<Vec<_>>();
    assert_eq!(questions(prepared.train.as_ref().unwrap()), names(&[7, 3, 2, 4, 9, 1, 8]));
    let [(name, validation)] = &prepared.eval[..] else { panic!("one evaluation set") };
    assert_eq!(name, VALIDATION);
    assert_eq!(questions(validation), names(&[5, 6, 0]));
}

#[test]
fn num_samples_draws_with_the_global_generator() {
    let bench = Bench::new(json!({"num_samples": 27}), &numbered("d", 15));
    let prepared = bench.prepare().unwrap();
    let drawn = questions(prepared.train.as_ref().unwrap());
    let first: Vec<String> =
        [9, 11, 0, 13, 5, 8, 2, 1, 14, 4, 7, 10, 12, 3, 6].iter().map(|i| format!("d{i}")).collect();
    assert_eq!(drawn[..15], first);
    assert_eq!(drawn.len(), 27);
    let report = &prepared.report.datasets[0];
    assert_eq!((report.rows_read, report.rows_used, report.rows_kept), (15, 27, 27));
}

#[test]
fn datasets_are_mixed_and_evaluation_sets_kept_apart() {
    let mut bench = Bench::numbered(2);
    bench.add("e", json!({}), "e.json", &numbered("e", 3));
    bench.add("f", json!({}), "f.json", &numbered("f", 1));
    bench.plan.datasets = vec!["d".into(), "e".into(), "d".into()];
    bench.plan.eval_datasets = vec!["f".into(), "e".into()];
    bench.plan.mix = Mix::InterleaveOnce;
    let prepared = bench.prepare().unwrap();
    assert_eq!(questions(prepared.train.as_ref().unwrap()), ["d0", "e0", "d1", "e1", "e2"]);
    assert_eq!(prepared.eval.len(), 1);
    assert_eq!(questions(&prepared.eval[0].1), ["f0", "e0", "e1", "e2"]);
    assert_eq!(prepared.report.notes, ["dataset `d` is named twice and used once, as in LLaMA-Factory"]);
    bench.plan.eval_each = true;
    let prepared = bench.prepare().unwrap();
    let names: Vec<_> = prepared.eval.iter().map(|(name, rows)| (name.as_str(), rows.len())).collect();
    assert_eq!(names, [("f", 1), ("e", 3)]);
    bench.plan.datasets.clear();
    let prepared = bench.prepare().unwrap();
    assert!(prepared.train.is_none());
    assert_eq!(prepared.eval.len(), 2);
}

#[test]
fn the_cache_is_used_for_the_same_rows_only() {
    let mut bench = Bench::numbered(5);
    let first = bench.prepare().unwrap();
    assert!(!first.from_cache);
    assert_eq!(fs::read_to_string(first.cache.with_file_name(".gitignore")).unwrap(), "*\n");
    let second = bench.prepare().unwrap();
    assert!(second.from_cache);
    assert_eq!(first.report, second.report);
    assert!(first.train.as_ref().unwrap().iter().eq(second.train.as_ref().unwrap().iter()));

    bench.plan.workers = None;
    assert!(bench.prepare().unwrap().from_cache, "the number of threads changes nothing");
    bench.plan.overwrite_cache = true;
    assert!(!bench.prepare().unwrap().from_cache);
    bench.plan.overwrite_cache = false;
    bench.plan.cutoff_len += 1;
    assert!(!bench.prepare().unwrap().from_cache, "an option");
    bench.plan.cutoff_len -= 1;
    assert!(bench.prepare().unwrap().from_cache);
    bench.add("d", json!({}), "d.json", &numbered("x", 5));
    assert!(!bench.prepare().unwrap().from_cache, "the content of a file of the same size");

    let cache = bench.prepare().unwrap().cache;
    let mut bytes = fs::read(&cache).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::remove_file(&cache).unwrap();
    fs::write(&cache, bytes).unwrap();
    let repaired = bench.prepare().unwrap();
    assert!(!repaired.from_cache, "a damaged file");
    assert_eq!(questions(repaired.train.as_ref().unwrap())[0], "x0");
    assert!(bench.prepare().unwrap().from_cache);
}

#[test]
fn every_row_is_announced() {
    struct Steps(Mutex<Vec<(String, u64, u64)>>);
    impl Progress for Steps {
        fn encoding(&self, set: &str, done: u64, total: u64) {
            self.0.lock().unwrap().push((set.to_owned(), done, total));
        }
    }
    let bench = Bench::numbered(4100);
    let steps = Steps(Mutex::default());
    prepare(&bench.plan, &mut tokenizer(), &steps).unwrap();
    let steps = steps.0.into_inner().unwrap();
    let train = |done| ("train".to_owned(), done, 4100);
    assert_eq!(steps, [train(0), train(2000), train(4000), train(4100)]);
}

#[test]
fn packs_and_blocks_do_not_depend_on_the_number_of_threads() {
    for stage in [Stage::Sft, Stage::Pretrain] {
        let mut bench = Bench::numbered(3500);
        bench.plan.stage = stage;
        bench.plan.packing = Packing::On;
        bench.plan.cutoff_len = 100;
        bench.plan.workers = Some(1);
        let one = bench.prepare().unwrap().train.unwrap();
        bench.plan.workers = Some(5);
        bench.plan.overwrite_cache = true;
        let five = bench.prepare().unwrap().train.unwrap();
        assert!(one.len() > 50);
        assert!(one.iter().eq(five.iter()));
    }
}

#[test]
fn blocks_of_text() {
    let mut bench = Bench::new(json!({}), "");
    bench.add("d", json!({}), "d.txt", "some words to train on\n\nand more of them");
    bench.plan.stage = Stage::Pretrain;
    bench.plan.packing = Packing::On;
    bench.plan.cutoff_len = 1000;
    let message = bench.message();
    assert!(message.starts_with("the text of the training set has "), "{message}");
    assert!(message.contains(" tokens in all, fewer than one block of `cutoff_len: 1000`"), "{message}");
    bench.plan.cutoff_len = 8;
    let prepared = bench.prepare().unwrap();
    let rows = prepared.train.unwrap();
    assert!(rows.iter().all(|row| row.input_ids.len() == 8 && row.segments == [8] && !row.isolated));
    assert_eq!(rows.label_tokens(), rows.tokens());
    assert_eq!(prepared.report.sets[0].rows_kept, 3);
}

#[test]
fn every_file_type_gives_the_same_rows() {
    let bench = Bench::numbered(2);
    let expected = questions(bench.prepare().unwrap().train.as_ref().unwrap());
    for (file, text) in [
        ("d.jsonl", "{\"instruction\": \"d0\", \"output\": \"yes\"}\n{\"instruction\": \"d1\", \"output\": \"yes\"}"),
        ("d.csv", "instruction,output\r\nd0,yes\r\n\"d1\",yes\r\n"),
    ] {
        bench.add("d", json!({}), file, text);
        assert_eq!(questions(bench.prepare().unwrap().train.as_ref().unwrap()), expected, "{file}");
    }
}

#[test]
fn rows_are_shown_in_stretches() {
    let rows = Bench::numbered(1).prepare().unwrap().train.unwrap();
    let [(_, whole)] = sequences(&rows.get(0), Stage::Sft)[..] else { panic!("one sequence") };
    let spans = spans(&whole, &tokenizer()).unwrap();
    let trained: Vec<_> = spans.iter().map(|span| span.trained).collect();
    assert_eq!(trained, [false, true]);
    assert!(spans[0].text.ends_with("<|im_start|>assistant\n"), "{:?}", spans[0].text);
    assert!(spans[1].text.starts_with("yes<|im_end|>"), "{:?}", spans[1].text);
}

/// Takes a picture of a folder in the middle of an encoding, as a kill would leave it, and notes where encodings begin.
struct Camera {
    from: PathBuf,
    to: PathBuf,
    at: u64,
    began: Mutex<Vec<u64>>,
}

impl Progress for Camera {
    fn encoding(&self, _: &str, done: u64, _: u64) {
        let mut began = self.began.lock().unwrap();
        began.push(done);
        if done == self.at && self.from != self.to {
            for entry in fs::read_dir(&self.from).unwrap() {
                let entry = entry.unwrap();
                fs::copy(entry.path(), self.to.join(entry.file_name())).unwrap();
            }
        }
    }
}

#[test]
fn a_killed_encoding_goes_on_where_it_stopped() {
    for (packing, validation) in [(Packing::Off, ValSize::None), (Packing::On, ValSize::Count(2500))] {
        let mut bench = Bench::numbered(9000);
        let broken = r#"[{"instruction": 1, "output": "b"}, {"instruction": "c"}, {"x": {}, "output": "d"}, 5]"#;
        bench.add("e", json!({}), "e.json", broken);
        bench.plan.datasets = vec!["e".into(), "d".into()];
        (bench.plan.packing, bench.plan.val_size) = (packing, validation);
        let [whole, killed] = ["whole", "killed"].map(|name| bench.dir.path().join(name));
        [&whole, &killed].iter().for_each(|folder| fs::create_dir(folder).unwrap());
        let run = |bench: &Bench, to: &Path| {
            let began = Mutex::new(Vec::new());
            let from = bench.plan.cache_dir.clone().unwrap();
            let camera = Camera { from, to: to.to_path_buf(), at: 4000, began };
            let prepared = prepare(&bench.plan, &mut tokenizer(), &camera).unwrap();
            (prepared, camera.began.into_inner().unwrap())
        };
        bench.plan.cache_dir = Some(whole);
        let (expected, began) = run(&bench, &killed);
        assert_eq!(began[..2], [0, 2000]);
        bench.plan.cache_dir = Some(killed.clone());
        // On other threads, whose windows are other ones.
        bench.plan.workers = Some(3);
        let (prepared, began) = run(&bench, &killed);
        assert_eq!(began[0], 4000, "{began:?}");
        assert_eq!(prepared.report, expected.report);
        assert_eq!(fs::read(prepared.cache).unwrap(), fs::read(expected.cache).unwrap());
    }
}

#[test]
fn everything_wrong_with_files_is_told_at_once() {
    let mut bench = Bench::numbered(1);
    bench.add("e", json!({}), "e.json.gz", "no gzip");
    bench.add("f", json!({}), "f.json.zst", "no zstd");
    bench.add("g", json!({}), "g.arrow", "no arrow");
    bench.add("h", json!({}), "h.parquet", "no parquet");
    bench.plan.datasets = ["e", "d", "f", "g", "h"].map(String::from).into();
    let message = bench.message();
    for part in ["e.json.gz", "f.json.zst", "g.arrow", "h.parquet"] {
        assert!(message.contains(part), "{message}");
    }
    bench.plan.datasets = ["d", "no1", "no2"].map(String::from).into();
    let message = bench.message();
    assert!(message.contains("`no1`") && message.contains("`no2`"), "{message}");
}

#[test]
fn datasets_that_lie_elsewhere_are_read_once_they_are_here() {
    let mut bench = Bench::numbered(2);
    let entries = json!({
        "hub": {"hf_hub_url": "o/d", "subset": "en", "columns": {"prompt": "instruction", "response": "output"}},
        "cloud": {"cloud_file_name": "s3://bucket/rows.json"},
        "bad": {"cloud_file_name": "ftp://x"},
    });
    fs::write(bench.dir.path().join("dataset_info.json"), entries.to_string()).unwrap();
    bench.plan.datasets = vec!["hub".into(), "cloud".into()];
    let hub = Remote::Hub {
        hugging_face: Some("o/d".into()),
        modelscope: None,
        subset: Some("en".into()),
        split: None,
        folder: None,
    };
    let cloud = Remote::Cloud { url: "s3://bucket/rows.json".into() };
    assert_eq!(remote(&bench.plan), [("hub".to_owned(), hub), ("cloud".to_owned(), cloud)]);
    assert!(bench.message().contains("dataset `hub` was not downloaded"));
    let file = bench.dir.path().join("d.json");
    bench.plan.fetched = [("hub".to_owned(), vec![file.clone()]), ("cloud".to_owned(), vec![file.clone()])].into();
    assert_eq!(bench.prepare().unwrap().train.unwrap().len(), 4);
    bench.plan.datasets = vec!["bad".into()];
    assert!(bench.message().contains("must begin with s3://, gs:// or gcs://"), "{}", bench.message());
    bench.plan.datasets = vec!["o/any".into()];
    bench.plan.cache_dir = Some(bench.dir.path().join("cache"));
    bench.plan.dir = "ONLINE".into();
    bench.plan.fetched = [("o/any".to_owned(), vec![file])].into();
    assert_eq!(bench.prepare().unwrap().train.unwrap().len(), 2);
}
