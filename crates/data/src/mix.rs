//! Several datasets become one, row by row as Hugging Face `datasets` does it.
//!
//! Pure functions on lengths: what comes out is a list of (dataset, row), so that nothing is read
//! or copied to mix.

use ferrotune_config::plan::Mix;

use crate::error::DataError;
use crate::numpy::Generator;

/// A row of a dataset: which dataset, and which of its rows.
pub(crate) type Place = (u32, u64);

/// The order in which the rows of datasets of these `lengths` stand in their mix.
///
/// `probabilities` are shares of the datasets (made to sum to 1); without them an interleaved mix
/// takes the datasets in turn.
///
/// # Errors
/// A mix with probabilities in which a dataset can be drawn but is empty, or must be used up but
/// is never drawn, or whose number of probabilities isn't that of the datasets.
pub(crate) fn mix(
    strategy: Mix,
    lengths: &[u64],
    probabilities: Option<&[f64]>,
    seed: u64,
) -> Result<Vec<Place>, DataError> {
    mix_with(strategy, lengths, probabilities, Generator::new(seed))
}

/// [`mix`] with the generator that draws.
pub(crate) fn mix_with(
    strategy: Mix,
    lengths: &[u64],
    probabilities: Option<&[f64]>,
    generator: Generator,
) -> Result<Vec<Place>, DataError> {
    if strategy == Mix::Concat || lengths.len() < 2 {
        return Ok((0..).zip(lengths).flat_map(|(dataset, &rows)| (0..rows).map(move |row| (dataset, row))).collect());
    }
    match probabilities {
        None => Ok(in_turn(strategy, lengths)),
        Some(probabilities) => {
            let cumulative = cumulative(strategy, lengths, probabilities)?;
            Ok(drawn(strategy, lengths, &cumulative, generator))
        }
    }
}

fn in_turn(strategy: Mix, lengths: &[u64]) -> Vec<Place> {
    let shortest = lengths.iter().copied().min().unwrap_or(0);
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let rounds = if strategy == Mix::InterleaveUnder { shortest } else { longest };
    let repeat = strategy == Mix::InterleaveOver;
    let mut places = Vec::new();
    for round in 0..rounds {
        for (dataset, &rows) in (0..).zip(lengths) {
            if round < rows {
                places.push((dataset, round));
            } else if repeat && rows > 0 {
                places.push((dataset, round % rows));
            }
        }
    }
    places
}

/// The running sum of the probabilities, ending in 1.
fn cumulative(strategy: Mix, lengths: &[u64], probabilities: &[f64]) -> Result<Vec<f64>, DataError> {
    let problem = |problem: String| Err(DataError::Mix { problem });
    if probabilities.len() != lengths.len() {
        return problem(format!(
            "`interleave_probs` gives {} shares for {} datasets; give one for each",
            probabilities.len(),
            lengths.len()
        ));
    }
    if probabilities.iter().any(|p| !p.is_finite() || *p < 0.0) || probabilities.iter().sum::<f64>() <= 0.0 {
        return problem("`interleave_probs` must be positive numbers".to_owned());
    }
    for (i, (&rows, &share)) in lengths.iter().zip(probabilities).enumerate() {
        if rows == 0 && share > 0.0 {
            return problem(format!("dataset {} is empty and can't have a share; take it out", i + 1));
        }
        if share == 0.0 && rows > 0 && strategy != Mix::InterleaveUnder {
            return problem(format!(
                "dataset {} has a share of 0 and would never be used up; take it out or give it a share",
                i + 1
            ));
        }
    }
    let sums: Vec<f64> = probabilities
        .iter()
        .scan(0.0, |sum, p| {
            *sum += p;
            Some(*sum)
        })
        .collect();
    let total = sums[sums.len() - 1];
    Ok(sums.iter().map(|sum| sum / total).collect())
}

fn drawn(strategy: Mix, lengths: &[u64], cumulative: &[f64], mut generator: Generator) -> Vec<Place> {
    let mut next = vec![0_u64; lengths.len()];
    let mut used_up: Vec<bool> = lengths.iter().map(|&rows| rows == 0).collect();
    let ends = |used_up: &[bool]| match strategy {
        // A dataset that is empty is never drawn here, and so ends nothing.
        Mix::InterleaveUnder => used_up.iter().zip(lengths).any(|(&used, &rows)| used && rows > 0),
        _ => used_up.iter().all(|&used| used),
    };
    let mut places = Vec::new();
    while !ends(&used_up) {
        let dataset = generator.choose(cumulative);
        if strategy == Mix::InterleaveOnce && used_up[dataset] {
            continue;
        }
        places.push((dataset as u32, next[dataset]));
        next[dataset] += 1;
        if next[dataset] == lengths[dataset] {
            used_up[dataset] = true;
            if strategy == Mix::InterleaveOver {
                next[dataset] = 0;
            }
        }
    }
    places
}

#[cfg(test)]
mod tests {
    //! Expected orders are those of `datasets` 5.2.0 (`interleave_datasets`), as row numbers of the
    //! datasets laid end to end.
    use super::*;

    fn flat(strategy: Mix, lengths: &[u64], probabilities: Option<&[f64]>) -> Vec<u64> {
        let offset = |dataset: u32| lengths[..dataset as usize].iter().sum::<u64>();
        let places = mix(strategy, lengths, probabilities, 42).unwrap();
        places.into_iter().map(|(dataset, row)| offset(dataset) + row).collect()
    }

    #[test]
    fn concat_keeps_the_order() {
        assert_eq!(flat(Mix::Concat, &[2, 0, 3], None), [0, 1, 2, 3, 4]);
        assert_eq!(flat(Mix::InterleaveUnder, &[3], Some(&[1.0])), [0, 1, 2]);
    }

    #[test]
    fn in_turn_as_datasets_does() {
        assert_eq!(flat(Mix::InterleaveUnder, &[3, 4, 5], None), [0, 3, 7, 1, 4, 8, 2, 5, 9]);
        assert_eq!(flat(Mix::InterleaveOver, &[3, 4, 5], None), [0, 3, 7, 1, 4, 8, 2, 5, 9, 0, 6, 10, 1, 3, 11]);
        assert_eq!(flat(Mix::InterleaveOnce, &[3, 4, 5], None), [0, 3, 7, 1, 4, 8, 2, 5, 9, 6, 10, 11]);
        assert_eq!(flat(Mix::InterleaveOnce, &[3, 4, 3], None), [0, 3, 7, 1, 4, 8, 2, 5, 9, 6]);
    }

    #[test]
    fn drawn_as_datasets_does() {
        let shares = Some([0.5, 0.3, 0.2].as_slice());
        assert_eq!(flat(Mix::InterleaveUnder, &[6, 4, 5], shares), [6, 0, 10, 7, 1, 11, 8, 9]);
        assert_eq!(
            flat(Mix::InterleaveOver, &[6, 4, 5], shares),
            [6, 0, 10, 7, 1, 11, 8, 9, 2, 3, 4, 12, 6, 13, 5, 0, 7, 1, 14]
        );
        assert_eq!(flat(Mix::InterleaveOnce, &[6, 4, 5], shares), [6, 0, 10, 7, 1, 11, 8, 9, 2, 3, 4, 12, 13, 5, 14]);
        assert_eq!(flat(Mix::InterleaveUnder, &[6, 4, 5], Some(&[5.0, 3.0, 2.0])).len(), 8);
    }

    #[test]
    fn impossible_mixes_are_refused() {
        let message = |strategy, lengths: &[u64], shares: &[f64]| {
            mix(strategy, lengths, Some(shares), 0).unwrap_err().to_string()
        };
        assert_eq!(
            message(Mix::InterleaveOver, &[2, 2], &[1.0, 0.0]),
            "`mix_strategy`: dataset 2 has a share of 0 and would never be used up; take it out or give it a share"
        );
        assert_eq!(
            message(Mix::InterleaveUnder, &[0, 2], &[0.5, 0.5]),
            "`mix_strategy`: dataset 1 is empty and can't have a share; take it out"
        );
        assert_eq!(
            message(Mix::InterleaveUnder, &[2, 2], &[0.5]),
            "`mix_strategy`: `interleave_probs` gives 1 shares for 2 datasets; give one for each"
        );
        assert_eq!(
            message(Mix::InterleaveUnder, &[2, 2], &[0.5, f64::NAN]),
            "`mix_strategy`: `interleave_probs` must be positive numbers"
        );
    }
}
