//! What trackers are told of a run.

use std::path::PathBuf;

use ferrotune_data::clock::Moment;
use serde_json::{Map, Value};

/// A run as it begins or goes on.
#[derive(Debug, Clone)]
pub struct Run {
    /// Its output folder.
    pub output: PathBuf,
    /// The recipe's keys as written, without secrets.
    pub recipe: Map<String, Value>,
    /// The model's `config.json`.
    pub model: Map<String, Value>,
    /// All parameters.
    pub parameters: u64,
    /// Trained parameters.
    pub trainable: u64,
    /// Optimiser steps done before.
    pub done: u64,
    /// This machine's name.
    pub host: String,
    /// The user's name.
    pub user: String,
    /// This process.
    pub process: u32,
    /// Now.
    pub now: Moment,
}

impl Run {
    /// Everything that is a setting of the run: the recipe wins over the model's configuration, as in transformers.
    pub(crate) fn settings(&self) -> Map<String, Value> {
        self.model.iter().chain(&self.recipe).map(|(key, value)| (key.clone(), value.clone())).collect()
    }
}

/// What the model answered to a sample prompt at some step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// The question.
    pub prompt: String,
    /// The answer.
    pub answer: String,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// All its steps are done.
    Finished,
    /// It was asked to stop, and will perhaps go on.
    Interrupted,
    /// It failed; why.
    Failed(String),
}

/// Lengths of rows in tokens, counted in ranges of one width.
#[derive(Debug, Clone, PartialEq)]
pub struct Lengths {
    /// Borders of the ranges, one more than there are ranges.
    pub borders: Vec<f64>,
    /// How many rows are in each; the border above belongs to the last range only.
    pub counts: Vec<u64>,
    /// Shortest row.
    pub min: f64,
    /// Longest row.
    pub max: f64,
    /// Sum of all lengths.
    pub sum: f64,
    /// Sum of their squares.
    pub squares: f64,
}

impl Lengths {
    /// Most ranges.
    const RANGES: usize = 64;

    /// Counts lengths; nothing if there are none.
    #[must_use]
    pub fn of(lengths: impl Iterator<Item = usize> + Clone) -> Option<Self> {
        let min = lengths.clone().min()? as f64;
        let max = lengths.clone().max()? as f64;
        let ranges = ((max - min) as usize + 1).min(Self::RANGES);
        let width = (max - min + 1.0) / ranges as f64;
        let mut counts = vec![0; ranges];
        let (mut sum, mut squares) = (0.0, 0.0);
        for length in lengths {
            let length = length as f64;
            let range = ((length - min) / width) as usize;
            counts[range.min(ranges - 1)] += 1;
            sum += length;
            squares += length * length;
        }
        let borders = (0..=ranges).map(|n| min + width * n as f64).collect();
        Some(Self { borders, counts, min, max, sum, squares })
    }

    /// How many rows there are.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.counts.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_counted_once() {
        let lengths = Lengths::of([3, 5, 3, 4].into_iter()).unwrap();
        assert_eq!(lengths.borders, [3.0, 4.0, 5.0, 6.0]);
        assert_eq!(lengths.counts, [2, 1, 1]);
        assert_eq!((lengths.min, lengths.max, lengths.sum, lengths.squares), (3.0, 5.0, 15.0, 59.0));
        let many = Lengths::of((0..100_000).map(|n| n * 31 % 2049)).unwrap();
        assert_eq!((many.rows(), many.counts.len(), many.borders.len()), (100_000, 64, 65));
        assert_eq!(Lengths::of([7; 3].into_iter()).unwrap().counts, [3]);
        assert_eq!(Lengths::of(std::iter::empty()), None);
    }
}
