//! Words that the dictionary doesn't have: jieba's hidden Markov model says of each character whether it begins a word, is
//! inside one, ends one, or is one (its `finalseg`; Viterbi 1967).
//!
//! Sums are made in jieba's order and ties fall as there, to the state whose letter comes later.

use crate::dictionary::{Dictionary, STATES};

/// In the order of the letters B, E, M, S: of equals the later one wins.
const B: usize = 0;
const E: usize = 1;
const M: usize = 2;
const S: usize = 3;
/// The columns of the dictionary, whose order is B, M, E, S.
const COLUMN: [usize; STATES] = [0, 2, 1, 3];
/// The logarithm of what can't be.
const NEVER: f64 = -3.14e100;
const START: [f64; STATES] = [-0.26268660809250016, NEVER, NEVER, -1.4652633398537678];

/// The states that may stand before a state, in rising order, with the logarithm of how likely it follows them.
const BEFORE: [[(usize, f64); 2]; STATES] = [
    [(E, -0.5897149736854513), (S, -0.7211965654669841)],
    [(B, -0.51082562376599), (M, -0.33344856811948514)],
    [(B, -0.916290731874155), (M, -1.2603623820268226)],
    [(E, -0.8085250474669937), (S, -0.6658631448798212)],
];

/// Cuts a run of Chinese characters; hears of each word's length.
pub(crate) fn cut(dictionary: &Dictionary, chars: &[char], mut hear: impl FnMut(usize)) {
    let states = likeliest(dictionary, chars);
    let (mut begin, mut next) = (0, 0);
    for (i, state) in states.into_iter().enumerate() {
        match state {
            B => begin = i,
            E => {
                hear(i + 1 - begin);
                next = i + 1;
            }
            S => {
                hear(1);
                next = i + 1;
            }
            _ => {}
        }
    }
    if next < chars.len() {
        hear(chars.len() - next);
    }
}

/// The likeliest states of a run of characters, at least one.
fn likeliest(dictionary: &Dictionary, chars: &[char]) -> Vec<usize> {
    let emit = |char: char| {
        let row = dictionary.emissions(char);
        COLUMN.map(|column| row[column].unwrap_or(NEVER))
    };
    let mut scores = [0.0; STATES];
    let mut from: Vec<[usize; STATES]> = Vec::with_capacity(chars.len());
    for (i, &char) in chars.iter().enumerate() {
        let emissions = emit(char);
        if i == 0 {
            scores = std::array::from_fn(|state| START[state] + emissions[state]);
            from.push([0; STATES]);
            continue;
        }
        let best = |state: usize| {
            let [first, second] =
                BEFORE[state].map(|(before, step)| (scores[before] + step + emissions[state], before));
            if second.0 >= first.0 { second } else { first }
        };
        let found: [(f64, usize); STATES] = std::array::from_fn(best);
        scores = found.map(|(score, _)| score);
        from.push(found.map(|(_, before)| before));
    }
    let mut state = if scores[S] >= scores[E] { S } else { E };
    let mut states = vec![state; chars.len()];
    for i in (1..chars.len()).rev() {
        state = from[i][state];
        states[i - 1] = state;
    }
    states
}
