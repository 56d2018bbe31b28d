//! The order of streamed rows: a shuffle buffer, as Hugging Face `datasets` keeps one since version 5.
//!
//! A streamed run never sees all rows at once, so rows are drawn from a buffer of the next few thousand; that is why it
//! can train while rows are still being encoded. Everything is computed on row numbers, so a resumed run finds its
//! place without reading what it has seen. Each dataset counts as one shard.

use ferrotune_config::plan::Mix;

use crate::error::DataError;
use crate::mix::{Place, mix_with};
use crate::numpy::Generator;

/// Rows of datasets of these `lengths` in the order in which a first epoch sees them: mixed, then shuffled in a buffer of
/// `buffer` rows.
///
/// # Errors
/// As [`crate::mix::mix`].
pub(crate) fn first_epoch(
    strategy: Mix,
    lengths: &[u64],
    probabilities: Option<&[f64]>,
    seed: u64,
    buffer: usize,
) -> Result<Vec<Place>, DataError> {
    let places = match strategy {
        Mix::Concat => in_turn_of_shards(lengths, Generator::new(seed)),
        _ => {
            let mut places = mix_with(strategy, lengths, probabilities, Generator::new(seed))?;
            if strategy == Mix::InterleaveOver && probabilities.is_none() {
                places.truncate(in_turn_rows(lengths));
            }
            places
        }
    };
    Ok(buffered(&places, Generator::new(seed), buffer))
}

/// Datasets laid end to end are shuffled, and a few of them, or of groups of neighbours, feed the buffer in turn.
fn in_turn_of_shards(lengths: &[u64], mut generator: Generator) -> Vec<Place> {
    /// Shards that feed the buffer at a time.
    const AT_ONCE: usize = 10;
    let mut order: Vec<u32> = (0..lengths.len() as u32).collect();
    generator.shuffle(&mut order);
    let groups = order.len().clamp(1, AT_ONCE);
    let (each, more) = (order.len() / groups, order.len() % groups);
    let mut rest = order.as_slice();
    let mut feeds: Vec<_> = (0..groups)
        .map(|group| {
            let (own, others) = rest.split_at(each + usize::from(group < more));
            rest = others;
            own.iter().flat_map(|&dataset| (0..lengths[dataset as usize]).map(move |row| (dataset, row)))
        })
        .collect();
    let mut places = Vec::new();
    while !feeds.is_empty() {
        feeds.retain_mut(|feed| match feed.next() {
            Some(place) => {
                places.push(place);
                true
            }
            None => false,
        });
    }
    places
}

/// Rows of datasets taken in turn until each is used up: a stream ends there, not at the end of the round.
fn in_turn_rows(lengths: &[u64]) -> usize {
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let taking = |upto: usize| lengths[..upto].iter().filter(|&&rows| rows > 0).count() as u64;
    let last = lengths.iter().rposition(|&rows| rows == longest).unwrap_or(0);
    (longest.saturating_sub(1) * taking(lengths.len()) + taking(last + 1)) as usize
}

/// `0..len` in the order of epoch `epoch`, which is at least 1: what the first epoch has left, shuffled as `datasets` seeds
/// that epoch.
pub fn later_epoch(len: usize, seed: u64, epoch: u64, buffer: usize) -> Vec<u32> {
    let places: Vec<u32> = (0..len as u32).collect();
    let seed = (Generator::new(seed).next_u64() >> 1).wrapping_sub(epoch) & (u64::MAX >> 1);
    buffered(&places, Generator::new(seed), buffer)
}

/// `rows` as they leave a buffer: whenever it is full it is shuffled, and all but half of it leave.
fn buffered<T: Copy>(rows: &[T], mut generator: Generator, buffer: usize) -> Vec<T> {
    let buffer = buffer.max(1);
    let mut out = Vec::with_capacity(rows.len());
    let mut held: Vec<T> = Vec::with_capacity(buffer.min(rows.len()));
    let mut shuffled = |held: &[T]| -> Vec<T> {
        generator.permutation(held.len() as u64).into_iter().map(|i| held[i as usize]).collect()
    };
    for &row in rows {
        held.push(row);
        if held.len() == buffer {
            held = shuffled(&held);
            out.extend(held.drain(..buffer - buffer / 2));
        }
    }
    out.extend(shuffled(&held));
    out
}

#[cfg(test)]
mod tests {
    //! Expected orders are those of `datasets` 5.2.0 (`IterableDataset.shuffle`), as row numbers of the datasets laid end
    //! to end.
    use super::*;

    fn flat(strategy: Mix, lengths: &[u64], shares: Option<&[f64]>, seed: u64, buffer: usize) -> Vec<u64> {
        let before = |dataset: u32| lengths[..dataset as usize].iter().sum::<u64>();
        let places = first_epoch(strategy, lengths, shares, seed, buffer).unwrap();
        places.into_iter().map(|(dataset, row)| before(dataset) + row).collect()
    }

    #[test]
    fn one_dataset() {
        assert_eq!(flat(Mix::Concat, &[12], None, 42, 5), [4, 2, 3, 6, 1, 0, 8, 10, 5, 7, 11, 9]);
        assert_eq!(flat(Mix::Concat, &[12], None, 7, 100), [4, 6, 10, 0, 1, 3, 8, 7, 2, 5, 9, 11]);
        assert_eq!(flat(Mix::Concat, &[50], None, 3, 1), (0..50).collect::<Vec<_>>());
        let long = flat(Mix::Concat, &[3000], None, 3, 700);
        assert_eq!(long[..6], [162, 588, 63, 570, 146, 625]);
        assert_eq!((0..).zip(&long).map(|(i, row)| i * row).sum::<u64>(), 8_689_211_844);
    }

    #[test]
    fn later_epochs() {
        assert_eq!(later_epoch(12, 42, 1, 5), [4, 3, 2, 1, 7, 0, 6, 9, 10, 11, 5, 8]);
        assert_eq!(later_epoch(12, 42, 2, 5), [3, 0, 2, 1, 6, 4, 7, 5, 9, 8, 11, 10]);
        assert_eq!(later_epoch(12, 7, 1, 100), [1, 11, 4, 7, 9, 6, 8, 10, 3, 5, 2, 0]);
        let long = later_epoch(3000, 3, 2, 700);
        assert_eq!((0..).zip(&long).map(|(i, &row)| i * u64::from(row)).sum::<u64>(), 8_672_781_921);
    }

    #[test]
    fn several_datasets() {
        const LENGTHS: &[u64] = &[5, 4, 3];
        assert_eq!(flat(Mix::Concat, LENGTHS, None, 42, 3), [0, 5, 9, 6, 1, 11, 2, 10, 3, 7, 8, 4]);
        assert_eq!(flat(Mix::Concat, LENGTHS, None, 1, 3), [0, 5, 6, 9, 10, 1, 11, 2, 8, 3, 4, 7]);
        let shares = Some([0.5, 0.3, 0.2].as_slice());
        for (strategy, turn, drawn) in [
            (Mix::InterleaveUnder, vec![9, 5, 0, 6, 10, 2, 11, 1, 7], vec![9, 0, 5, 1, 10, 7, 6, 8]),
            (
                Mix::InterleaveOver,
                vec![9, 5, 0, 6, 10, 2, 11, 1, 8, 7, 3, 4, 9],
                vec![9, 0, 5, 1, 10, 7, 2, 6, 4, 8, 3, 11],
            ),
            (
                Mix::InterleaveOnce,
                vec![9, 5, 0, 6, 10, 2, 11, 1, 8, 7, 3, 4],
                vec![9, 0, 5, 1, 10, 7, 2, 6, 4, 8, 3, 11],
            ),
        ] {
            assert_eq!(flat(strategy, LENGTHS, None, 42, 3), turn, "{strategy:?}");
            assert_eq!(flat(strategy, LENGTHS, shares, 42, 3), drawn, "{strategy:?}");
        }
    }
}
