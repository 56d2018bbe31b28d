//! Packing: several short rows in one, as LLaMA-Factory fills its knapsacks.
//!
//! Rows of one batch are sorted by length; each knapsack takes the longest row that still fits,
//! again and again. Which row of equal length goes where matters for parity: the last one read is
//! taken first.

/// Rows that LLaMA-Factory converts and packs at a time; a knapsack never crosses such a border.
pub(crate) const BATCH: usize = 1000;

/// Knapsacks of at most `capacity` tokens, each a list of indices into `lengths` in the order in
/// which they stand in the packed row. Rows longer than `capacity` are in none of them.
pub(crate) fn pack(lengths: &[usize], capacity: usize) -> Vec<Vec<usize>> {
    let mut open: Vec<usize> = (0..lengths.len()).filter(|&i| lengths[i] <= capacity).collect();
    open.sort_by_key(|&i| lengths[i]);
    let mut knapsacks = Vec::new();
    while !open.is_empty() {
        let mut knapsack = Vec::new();
        let mut room = capacity;
        loop {
            let fitting = open.partition_point(|&i| lengths[i] <= room);
            if fitting == 0 {
                break;
            }
            let row = open.remove(fitting - 1);
            room -= lengths[row];
            knapsack.push(row);
        }
        knapsacks.push(knapsack);
    }
    knapsacks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_longest_that_fits_and_the_last_of_equals() {
        assert_eq!(pack(&[3, 5, 2, 5, 9, 11], 10), [vec![4], vec![3, 1], vec![0, 2]]);
        assert_eq!(pack(&[1, 1, 1], 2), [vec![2, 1], vec![0]]);
        assert!(pack(&[], 4).is_empty());
        assert!(pack(&[5], 4).is_empty());
    }

    #[test]
    fn every_row_that_fits_is_packed_once_and_no_knapsack_overflows() {
        let lengths: Vec<usize> = (0..500).map(|i| (i * 7919) % 97 + 1).collect();
        let knapsacks = pack(&lengths, 90);
        let mut seen: Vec<usize> = knapsacks.concat();
        seen.sort_unstable();
        let fitting: Vec<usize> = (0..500).filter(|&i| lengths[i] <= 90).collect();
        assert_eq!(seen, fitting);
        assert!(knapsacks.iter().all(|k| k.iter().map(|&i| lengths[i]).sum::<usize>() <= 90));
    }
}
