//! ROUGE-1, ROUGE-2 and ROUGE-L of rouge_chinese 1.0.3, Lin 2004, <https://aclanthology.org/W04-1013>.
//!
//! It is given words with blanks between them, cuts sentences at the marks that end one, and takes words apart again at
//! blanks. So a sentence of white space is one empty word, which counts; every step is made as there. Runs of words are
//! sets: how often a word is repeated makes no difference but for ROUGE-L.

use std::collections::{HashMap, HashSet};

use crate::python::is_space;
use crate::words::Words;

/// ROUGE-1, ROUGE-2 and ROUGE-L as shares; all 0 where one of the texts has no word.
pub(crate) fn scores(prediction: &Words, reference: &Words) -> [f64; 3] {
    let [prediction, reference] = [prediction, reference].map(|words| words.iter().collect::<Vec<_>>().join(" "));
    if [&prediction, &reference].iter().any(|text| text.chars().all(is_space)) {
        return [0.0; 3];
    }
    let (prediction, reference) = (sentences(&prediction), sentences(&reference));
    let (prediction, reference) = (tokens(&prediction), tokens(&reference));
    let (ours, theirs) = numbered(&prediction, &reference);
    [by_runs(&ours, &theirs, 1), by_runs(&ours, &theirs, 2), by_order(&ours, &theirs)]
}

/// The sentences, their white space made single blanks.
fn sentences(text: &str) -> Vec<String> {
    let mut text: Vec<char> = text.chars().collect();
    let ends = |c: char| "。！？?".contains(c);
    let quotes = |c: char| "”’".contains(c);
    text = break_behind(&text, |at| (ends(at[0]) && !quotes(at[1])).then_some(1), 1);
    text = break_behind(&text, |at| (at[..6] == ['.'; 6] && !quotes(at[6])).then_some(6), 6);
    text = break_behind(&text, |at| (at[..2] == ['…'; 2] && !quotes(at[2])).then_some(2), 2);
    text = break_behind(&text, |at| (ends(at[0]) && quotes(at[1]) && at[2] != '，' && !ends(at[2])).then_some(2), 2);
    let text: String = text.into_iter().collect();
    let lines = text.trim_end_matches(is_space).split('\n').filter(|line| !line.is_empty());
    lines.map(|line| line.split(is_space).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")).collect()
}

/// Puts a line's end behind each mark of `length` characters that `marks` finds at the beginning of what it is shown, one
/// character beyond the mark included. As with a regular expression, that character begins no further mark.
fn break_behind(text: &[char], marks: impl Fn(&[char]) -> Option<usize>, length: usize) -> Vec<char> {
    let mut out = Vec::with_capacity(text.len() + text.len() / 8);
    let mut at = 0;
    while at < text.len() {
        match text.get(at..=at + length).and_then(&marks) {
            Some(mark) => {
                out.extend_from_slice(&text[at..at + mark]);
                out.extend(['\n', text[at + mark]]);
                at += mark + 1;
            }
            None => {
                out.push(text[at]);
                at += 1;
            }
        }
    }
    out
}

fn tokens(sentences: &[String]) -> Vec<&str> {
    sentences.iter().flat_map(|sentence| sentence.split(' ')).collect()
}

/// Words as numbers, equal for equal words.
fn numbered(prediction: &[&str], reference: &[&str]) -> (Vec<u32>, Vec<u32>) {
    let mut known: HashMap<String, u32> = HashMap::new();
    let mut number = |words: &[&str]| -> Vec<u32> {
        let of = |word: &&str| {
            let next = known.len() as u32;
            *known.entry((*word).to_owned()).or_insert(next)
        };
        words.iter().map(of).collect()
    };
    (number(prediction), number(reference))
}

/// F1 of the sets of runs of `order` words.
fn by_runs(prediction: &[u32], reference: &[u32], order: usize) -> f64 {
    let [ours, theirs] = [prediction, reference].map(|words| words.windows(order).collect::<HashSet<_>>());
    let shared = ours.intersection(&theirs).count() as f64;
    let share = |of: usize| if of == 0 { 0.0 } else { shared / of as f64 };
    f1(share(ours.len()), share(theirs.len()))
}

/// F1 of the longest common subsequence.
fn by_order(prediction: &[u32], reference: &[u32]) -> f64 {
    let shared = f64::from(common(reference, prediction));
    f1(shared / prediction.len() as f64, shared / reference.len() as f64)
}

/// Length of the longest common subsequence; a row of the table at a time.
fn common(a: &[u32], b: &[u32]) -> u32 {
    let mut row = vec![0u32; b.len() + 1];
    for x in a {
        let mut diagonal = 0;
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if x == y { diagonal + 1 } else { above.max(row[j]) };
            diagonal = above;
        }
    }
    row.last().copied().unwrap_or(0)
}

fn f1(precision: f64, recall: f64) -> f64 {
    2.0 * ((precision * recall) / (precision + recall + 1e-8))
}
