//! How alike a predicted text and its reference are: BLEU-4 and ROUGE-1, ROUGE-2 and ROUGE-L, the numbers that LLaMA-Factory
//! reports of a model's answers.
//!
//! Users compare them with runs elsewhere, so they are those of its parts to the last digit: ROUGE of rouge_chinese over the
//! words that jieba finds, BLEU of nltk over characters. Numbers are percentages of four decimals.
#![forbid(unsafe_code)]

mod bleu;
mod dictionary;
mod hidden;
mod python;
mod rouge;
mod words;

pub use python::mean;
pub use words::{Words, words};

/// How alike two texts are, in percent.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Similarity {
    /// Shared words.
    pub rouge_1: f64,
    /// Shared pairs of words.
    pub rouge_2: f64,
    /// The longest run of words that both have in the same order, with gaps.
    pub rouge_l: f64,
    /// Shared runs of one to four characters.
    pub bleu_4: f64,
}

/// Names of the numbers as LLaMA-Factory writes them, in the order of [`Similarity::values`].
pub const NAMES: [&str; 4] = ["rouge-1", "rouge-2", "rouge-l", "bleu-4"];

impl Similarity {
    /// Compares a prediction with its reference. Texts without a word have no ROUGE: 0.
    #[must_use]
    pub fn of(prediction: &str, reference: &str) -> Self {
        let [rouge_1, rouge_2, rouge_l] = rouge::scores(&words(prediction), &words(reference)).map(percent);
        Self { rouge_1, rouge_2, rouge_l, bleu_4: percent(bleu::score(prediction, reference)) }
    }

    /// The numbers in the order of [`NAMES`].
    #[must_use]
    pub fn values(&self) -> [f64; 4] {
        [self.rouge_1, self.rouge_2, self.rouge_l, self.bleu_4]
    }
}

/// Times 100, to four decimals; a tie goes to the even digit, as Python's `round` has it.
fn percent(share: f64) -> f64 {
    format!("{:.4}", share * 100.0).parse().expect("a formatted number is a number")
}
