//! BLEU-4 of characters: nltk's `sentence_bleu` of one reference with the smoothing of `method3`.
//!
//! Papineni et al. 2002, <https://aclanthology.org/P02-1040>; the smoothing is NIST's, by Chen and Cherry 2014,
//! <https://aclanthology.org/W14-3346>: where no run of a length is shared, its precision is half of what it would be had
//! half a run been shared, a quarter for the next such length, and so on.

use std::collections::HashMap;

/// Longest run.
const ORDERS: usize = 4;

/// BLEU-4 as a share; 0 if no character is shared.
pub(crate) fn score(prediction: &str, reference: &str) -> f64 {
    let prediction: Vec<char> = prediction.chars().collect();
    let reference: Vec<char> = reference.chars().collect();
    let mut logarithms = [0.0; ORDERS];
    let mut missed = 0;
    for order in 1..=ORDERS {
        let (shared, all) = precision(&prediction, &reference, order);
        if order == 1 && shared == 0 {
            return 0.0;
        }
        let share = if shared == 0 {
            missed += 1;
            1.0 / (f64::from(1u32 << missed) * all as f64)
        } else {
            shared as f64 / all as f64
        };
        logarithms[order - 1] = 0.25 * share.ln();
    }
    brevity(prediction.len(), reference.len()) * exact_sum(logarithms).exp()
}

/// Runs of `order` characters of the prediction that the reference has, each as often as it has it; and all of them, at
/// least one.
fn precision(prediction: &[char], reference: &[char], order: usize) -> (usize, usize) {
    let count = |text: &[char]| {
        let mut counts: HashMap<[char; ORDERS], usize> = HashMap::new();
        for run in text.windows(order) {
            let mut key = ['\0'; ORDERS];
            key[..order].copy_from_slice(run);
            *counts.entry(key).or_default() += 1;
        }
        counts
    };
    let (ours, theirs) = (count(prediction), count(reference));
    let shared = ours.iter().map(|(run, &count)| count.min(theirs.get(run).copied().unwrap_or(0))).sum();
    (shared, prediction.windows(order).len().max(1))
}

/// What a prediction that is shorter than its reference is worth.
fn brevity(prediction: usize, reference: usize) -> f64 {
    if prediction > reference { 1.0 } else { (1.0 - reference as f64 / prediction as f64).exp() }
}

/// The sum, rounded once, as Python's `math.fsum` gives it: the error of each addition is carried along (Knuth's two-sum).
fn exact_sum(terms: [f64; ORDERS]) -> f64 {
    let (mut sum, mut lost) = (0.0, 0.0);
    for term in terms {
        let next: f64 = sum + term;
        let back = next - sum;
        lost += (sum - (next - back)) + (term - back);
        sum = next;
    }
    sum + lost
}
