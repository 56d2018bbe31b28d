//! Words and scores against Python's jieba, rouge_chinese and nltk, on the texts of `fixtures/similarity`.

use ferrotune_similarity::{NAMES, Similarity, mean, words};
use serde_json::Value;

fn cases() -> Vec<Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/similarity/cases.jsonl.zst");
    let text = zstd::decode_all(std::fs::File::open(path).expect("the fixture is there")).expect("it is whole");
    text.split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).expect("JSON"))
        .collect()
}

#[test]
fn words_are_jiebas() {
    let mut seen = 0;
    for case in cases().iter().filter(|case| case["prediction"].is_string()) {
        let text = case["prediction"].as_str().expect("a text");
        let cut = words(text);
        assert_eq!(
            cut.iter().collect::<Vec<_>>(),
            case["words"].as_array().expect("a list").iter().map(|w| w.as_str().expect("text")).collect::<Vec<_>>(),
            "{text:?}"
        );
        assert_eq!(cut.iter().collect::<String>(), text);
        seen += 1;
    }
    assert!(seen > 4000, "{seen}");
}

#[test]
fn scores_are_those_of_the_python_packages() {
    for case in cases().iter().filter(|case| case["prediction"].is_string()) {
        let [prediction, reference] = ["prediction", "reference"].map(|key| case[key].as_str().expect("a text"));
        let ours = Similarity::of(prediction, reference).values();
        let theirs = NAMES.map(|name| case[name].as_f64().expect("a number"));
        assert_eq!(ours, theirs, "{prediction:?} beside {reference:?}");
    }
}

#[test]
fn means_are_numpys() {
    for case in cases().iter().filter(|case| case["mean"].is_number()) {
        let values: Vec<f64> =
            case["values"].as_array().expect("a list").iter().map(|v| v.as_f64().expect("a number")).collect();
        assert_eq!(Some(mean(&values)), case["mean"].as_f64(), "{} numbers", values.len());
    }
}
