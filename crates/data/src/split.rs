//! The validation split of `val_size`, row for row that of Hugging Face `datasets`.

use ferrotune_config::plan::ValSize;

use crate::error::DataError;
use crate::numpy::Generator;

/// Parts `rows` into (training, validation) as `train_test_split(test_size, seed)` does: a
/// permutation, its head for validation, its tail, in permuted order, for training. A fraction is
/// rounded up to whole validation rows.
///
/// # Errors
/// A `val_size` that leaves one side without rows.
pub(crate) fn split<T: Copy>(rows: &[T], val_size: ValSize, seed: u64) -> Result<(Vec<T>, Vec<T>), DataError> {
    let count = rows.len() as u64;
    let (held_out, written) = match val_size {
        ValSize::None => return Ok((rows.to_vec(), Vec::new())),
        ValSize::Fraction(fraction) => ((fraction * count as f64).ceil() as u64, fraction.to_string()),
        ValSize::Count(held_out) => (held_out as u64, held_out.to_string()),
    };
    if held_out >= count || held_out == 0 {
        let left = if held_out == 0 { "evaluate on" } else { "train on" };
        return Err(DataError::ValSize { val_size: written, rows: count, left });
    }
    let order = Generator::new(seed).permutation(count);
    let (validation, training) = order.split_at(held_out as usize);
    let take = |part: &[u64]| part.iter().map(|&row| rows[row as usize]).collect();
    Ok((take(training), take(validation)))
}

/// Parts the rows of a stream into (training, validation): the first ones are for validation (`take` and `skip`).
///
/// # Errors
/// As [`split`].
pub(crate) fn hold_out<T: Copy>(rows: &[T], val_size: ValSize) -> Result<(Vec<T>, Vec<T>), DataError> {
    let held_out = match val_size {
        ValSize::None => return Ok((rows.to_vec(), Vec::new())),
        // The plan has no shares of streams.
        ValSize::Fraction(fraction) => (fraction * rows.len() as f64).ceil() as usize,
        ValSize::Count(held_out) => held_out,
    };
    if held_out >= rows.len() {
        let (val_size, rows) = (held_out.to_string(), rows.len() as u64);
        return Err(DataError::ValSize { val_size, rows, left: "train on" });
    }
    let (validation, training) = rows.split_at(held_out);
    Ok((training.to_vec(), validation.to_vec()))
}

#[cfg(test)]
mod tests {
    //! Expected orders are those of `datasets` 5.2.0 on ten rows.
    use super::*;

    #[test]
    fn splits_as_datasets_does() {
        let rows: Vec<u32> = (0..10).collect();
        let (train, held_out) = split(&rows, ValSize::Fraction(0.25), 42).unwrap();
        assert_eq!(train, [7, 3, 2, 4, 9, 1, 8]);
        assert_eq!(held_out, [5, 6, 0]);
        let (train, held_out) = split(&rows, ValSize::Count(3), 1).unwrap();
        assert_eq!(train, [0, 1, 2, 5, 9, 6, 3]);
        assert_eq!(held_out, [8, 4, 7]);
        assert_eq!(split(&rows, ValSize::None, 1).unwrap(), (rows.clone(), vec![]));
    }

    #[test]
    fn a_split_that_leaves_nothing_is_refused() {
        let message = |size| split(&[1, 2, 3], size, 0).unwrap_err().to_string();
        assert_eq!(
            message(ValSize::Count(3)),
            "`val_size: 3` of 3 rows leaves nothing to train on; choose a smaller one"
        );
        assert_eq!(
            message(ValSize::Fraction(0.9)),
            "`val_size: 0.9` of 3 rows leaves nothing to train on; choose a smaller one"
        );
    }
}
