//! Cuts a model into stages of a pipeline: consecutive segments, the slowest stage as fast as can be.

use std::ops::Range;

/// What one segment puts on the stage that holds it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// Seconds for a micro-batch, forward and backward.
    pub seconds: f64,
    /// Bytes that lie there all the time: weights, gradients, optimiser states.
    pub resident: u64,
    /// Bytes kept for each micro-batch between its forward and its backward pass.
    pub held: u64,
}

/// The contiguous partition of `loads` into `stages` non-empty spans whose slowest stage is fastest; among those the one
/// whose fullest stage is emptiest. Stage `s` of `p` keeps `min(micro_batches, p - s)` micro-batches at a time (1F1B), and
/// no stage may take more than `capacity` bytes. `None` if there are fewer segments than stages, or if nothing fits.
///
/// Two passes of one recurrence, `best[s][i]` = the least possible maximum over `s` stages of the first `i` segments:
/// first over seconds, then over bytes among the partitions that reach it. O(stages x segments^2).
pub fn balance(
    loads: &[Load],
    stages: usize,
    micro_batches: usize,
    capacity: Option<u64>,
) -> Option<Vec<Range<usize>>> {
    let mut sums = vec![(0.0, 0, 0)];
    for load in loads {
        let (seconds, resident, held) = sums[sums.len() - 1];
        sums.push((seconds + load.seconds, resident + load.resident, held + load.held));
    }
    let seconds = |span: &Range<usize>| sums[span.end].0 - sums[span.start].0;
    let bytes = |stage: usize, span: &Range<usize>| {
        let resident: u64 = sums[span.end].1 - sums[span.start].1;
        let held: u64 = sums[span.end].2 - sums[span.start].2;
        resident + held * micro_batches.min(stages - stage) as u64
    };
    let fits = |stage: usize, span: &Range<usize>| capacity.is_none_or(|most| bytes(stage, span) <= most);
    let fastest = least_maximum(loads.len(), stages, |stage, span| fits(stage, span).then(|| seconds(span)))?;
    let limit = fastest.iter().map(seconds).fold(0.0, f64::max);
    least_maximum(loads.len(), stages, |stage, span| {
        (fits(stage, span) && seconds(span) <= limit).then(|| bytes(stage, span) as f64)
    })
}

/// The partition of `0..count` into `stages` non-empty spans whose largest cost is least; a span without a cost is
/// forbidden. Of equals the one whose later stages begin earliest.
fn least_maximum(
    count: usize,
    stages: usize,
    cost: impl Fn(usize, &Range<usize>) -> Option<f64>,
) -> Option<Vec<Range<usize>>> {
    // best[i]: the least maximum over the stages so far for the first i segments, and where the last of them begins.
    let mut table = vec![vec![None; count + 1]; stages + 1];
    table[0][0] = Some((0.0_f64, 0));
    for stage in 0..stages {
        for end in stage + 1..=count {
            for start in stage..end {
                let Some((before, _)) = table[stage][start] else { continue };
                let Some(own) = cost(stage, &(start..end)) else { continue };
                let most = before.max(own);
                if table[stage + 1][end].is_none_or(|(least, _)| most < least) {
                    table[stage + 1][end] = Some((most, start));
                }
            }
        }
    }
    let mut spans = Vec::with_capacity(stages);
    let mut end = count;
    for stage in (1..=stages).rev() {
        let (_, start) = table[stage][end]?;
        spans.push(start..end);
        end = start;
    }
    spans.reverse();
    Some(spans)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All partitions of `0..count` into `stages` spans.
    fn partitions(count: usize, stages: usize) -> Vec<Vec<Range<usize>>> {
        if stages == 1 {
            return vec![vec![0..count; 1]];
        }
        let mut all = Vec::new();
        for last in stages - 1..count {
            for mut spans in partitions(last, stages - 1) {
                spans.push(last..count);
                all.push(spans);
            }
        }
        all
    }

    /// (slowest, fullest) of a partition, or `None` if it doesn't fit.
    fn score(loads: &[Load], spans: &[Range<usize>], micro: usize, capacity: Option<u64>) -> Option<(f64, u64)> {
        let (mut slowest, mut fullest) = (0.0_f64, 0);
        for (stage, span) in spans.iter().enumerate() {
            let part = &loads[span.clone()];
            let kept = micro.min(spans.len() - stage) as u64;
            slowest = slowest.max(part.iter().map(|load| load.seconds).sum());
            fullest = fullest.max(part.iter().map(|load| load.resident + kept * load.held).sum());
        }
        capacity.is_none_or(|most| fullest <= most).then_some((slowest, fullest))
    }

    #[test]
    fn no_partition_is_better() {
        let mut state = 7_u64;
        let mut next = |below: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % below
        };
        let (mut fitted, mut refused) = (0, 0);
        for case in 0..400 {
            let count = 2 + case % 7;
            // Whole seconds, so that sums are exact whatever their order.
            let loads: Vec<Load> =
                (0..count).map(|_| Load { seconds: next(20) as f64, resident: next(50), held: next(10) }).collect();
            let capacity = (case % 3 != 0).then(|| 40 + next(120));
            let (stages, micro) = (1 + next(count as u64) as usize, 1 + next(6) as usize);
            let scores = partitions(count, stages).into_iter().filter_map(|p| score(&loads, &p, micro, capacity));
            let best = scores.min_by(|a, b| a.partial_cmp(b).expect("finite"));
            let found = balance(&loads, stages, micro, capacity);
            assert_eq!(found.is_some(), best.is_some(), "case {case}");
            let Some(found) = found else {
                refused += 1;
                continue;
            };
            fitted += 1;
            assert_eq!(score(&loads, &found, micro, capacity), best, "case {case}: {found:?}");
            assert!(found.windows(2).all(|w| w[0].end == w[1].start) && found.iter().all(|s| !s.is_empty()));
        }
        assert!(fitted > 100 && refused > 20, "both happen: {fitted}, {refused}");
    }

    #[test]
    fn fewer_segments_than_stages_is_no_pipeline() {
        let load = Load { seconds: 1.0, resident: 1, held: 0 };
        assert_eq!(balance(&[load; 2], 3, 1, None), None);
        assert_eq!(balance(&[load; 3], 3, 1, None), Some(vec![0..1, 1..2, 2..3]));
    }
}
