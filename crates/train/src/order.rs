//! Which rows a step trains on: a pure function of the step's number, so that a run resumes without reading what it
//! has already seen.
//!
//! As transformers and accelerate count: a micro-batch is consecutive rows of the epoch's order; ranks take micro-batches in
//! turn, and where these don't come out even, several ranks begin again at the epoch's first row, so that all have full
//! ones; the last step of an epoch may hold fewer micro-batches, and a new epoch starts a new step.

use crate::clock::RunShape;
use ferrotune_config::plan::{RunLength, TrainPlan};
use ferrotune_data::rows::Rows;
use ferrotune_data::sampler::Sampler;
use ferrotune_data::stream;
use std::cell::RefCell;

/// Lengths, in tokens, of the longest micro-batch that an order can make of rows of `lengths`: the longest rows together, or
/// as many of them as the budget of tokens holds.
pub fn longest_batch(mut lengths: Vec<usize>, micro_batch: usize, budget: Option<usize>) -> Vec<usize> {
    lengths.sort_unstable_by(|a, b| b.cmp(a));
    match budget {
        None => lengths.truncate(micro_batch),
        Some(budget) => {
            // Rows of this length as often as they fit, and a shorter one that fills up what is left.
            let longest = lengths.first().copied().unwrap_or(0).max(1);
            let fit = (budget / longest).clamp(1, lengths.len().max(1));
            lengths = vec![longest; fit];
            lengths.extend(Some(budget.saturating_sub(fit * longest)).filter(|&rest| rest > 0));
        }
    }
    lengths
}

/// Steps that are looked at for the longest micro-batch: a start waits for it, and of a longer run others are hardly longer.
const LOOKED_AT: u64 = 100_000;

/// Lengths of the rows of the longest micro-batch that a run over `rows`, of so many tokens each, comes by: mostly the longest
/// rows of all are not in one. `ranks` ranks' rows make a step.
pub(crate) fn longest_met(rows: &[usize], plan: &TrainPlan, budget: Option<usize>, ranks: usize) -> Vec<usize> {
    let order = Order::new(rows.len(), plan, budget, Share { of_a_step: ranks, ..Share::ALL });
    let tokens = |batch: &Vec<usize>| batch.iter().map(|&row| rows[row]).sum::<usize>();
    let mut longest = Vec::new();
    for step in 1..=order.shape().total_steps().min(LOOKED_AT) {
        // Only rows that are still coming can fail to come, and these are here.
        let batches = order.step_rows(step, |row| rows[row]).unwrap_or_default();
        longest = batches.into_iter().chain([longest]).max_by_key(tokens).unwrap_or_default();
    }
    longest.into_iter().map(|row| rows[row]).collect()
}

/// Where a rank stands among those that see different rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// This rank.
    pub rank: usize,
    /// How many there are.
    pub ranks: usize,
    /// How many ranks' rows make a step, however many there are.
    pub of_a_step: usize,
}

impl Share {
    /// One rank sees all rows.
    pub const ALL: Self = Self { rank: 0, ranks: 1, of_a_step: 1 };
}

/// The order of a run.
#[derive(Debug, Clone)]
pub struct Order {
    shape: RunShape,
    micro_batch: usize,
    drop_last: bool,
    share: Share,
    /// Most tokens of a micro-batch, where rows are laid together by length.
    budget: Option<usize>,
    rows: Source,
}

/// Where rows come from, and in which order.
#[derive(Debug, Clone)]
enum Source {
    /// All rows, at random.
    Shuffled(Sampler),
    /// Rows as they stand, which may still be coming; in later epochs drawn from a buffer.
    Streamed { rows: Rows, buffer: usize, seed: u64, later: RefCell<Option<(u64, Vec<u32>)>> },
}

/// Where a step stands.
struct Place {
    epoch: u64,
    /// Step of the epoch, from 0.
    within: u64,
    /// Rows of the epoch, as far as is known.
    rows: usize,
    /// Micro-batches of the epoch on each rank.
    per_rank: u64,
}

impl Order {
    /// The order over `rows` rows, at least one, as one rank sees it.
    pub fn new(rows: usize, plan: &TrainPlan, budget: Option<usize>, share: Share) -> Self {
        let per_rank = per_rank(rows, plan.micro_batch, plan.drop_last, share.of_a_step);
        let sampler = Sampler::new(rows, plan.data_seed, plan.shuffle);
        Self::over(Source::Shuffled(sampler), per_rank, plan, budget, share)
    }

    /// The order over rows that are streamed: they stand in the order of the first epoch; `stream` is the size of the buffer
    /// and the seed of later ones. As transformers has it, the run is one epoch by name, as nobody knows how many it will be.
    pub fn streamed(rows: &Rows, plan: &TrainPlan, stream: (usize, u64), budget: Option<usize>, share: Share) -> Self {
        let (buffer, seed) = stream;
        let steps = match plan.length {
            RunLength::Steps(steps) => steps,
            // The plan has a stream only with `max_steps`.
            RunLength::Epochs(epochs) => epochs as u64,
        };
        let rows = Source::Streamed { rows: rows.clone(), buffer, seed, later: RefCell::default() };
        Self::over(rows, steps * plan.accumulation as u64, plan, budget, share)
    }

    fn over(rows: Source, micro_batches: u64, plan: &TrainPlan, budget: Option<usize>, share: Share) -> Self {
        let shape = RunShape { micro_batches, accumulation: plan.accumulation as u64, length: plan.length };
        Self { shape, micro_batch: plan.micro_batch, drop_last: plan.drop_last, share, budget, rows }
    }

    /// Steps and epochs.
    pub fn shape(&self) -> &RunShape {
        &self.shape
    }

    /// Who sees which rows.
    pub fn share(&self) -> Share {
        self.share
    }

    /// Rows of a full step over all ranks.
    pub fn rows_per_step(&self) -> usize {
        self.micro_batch * self.shape.accumulation as usize * self.share.of_a_step
    }

    /// Whether an epoch ends with step `step` (from 1).
    pub fn ends_epoch(&self, step: u64) -> bool {
        step.is_multiple_of(self.shape.steps_per_epoch())
    }

    /// The rows of step `step` (from 1) on this rank, by micro-batch; `size` tells a row's length. Every rank has as many
    /// micro-batches, the last ones empty where they don't come out even.
    ///
    /// # Errors
    /// If rows are still coming, and what was to encode them failed.
    pub fn step_rows(&self, step: u64, size: impl Fn(usize) -> usize) -> Result<Vec<Vec<usize>>, String> {
        let place = self.place(step)?;
        let first = place.within * self.shape.accumulation;
        let last = (first + self.shape.accumulation).min(place.per_rank);
        let ranks = self.share.of_a_step as u64;
        let all = first * ranks..last * ranks;
        let all: Vec<Vec<usize>> = all.map(|i| self.micro_batch_rows(&place, i as usize)).collect();
        let all = match self.budget {
            Some(budget) => by_tokens(&all.concat(), budget, size),
            None => all,
        };
        let each = all.len().div_ceil(self.share.ranks);
        let mine = (0..each).map(|i| all.get(i * self.share.ranks + self.share.rank).cloned().unwrap_or_default());
        Ok(mine.collect())
    }

    /// Where a step stands. Of rows that are still coming, waits for those of the step.
    fn place(&self, step: u64) -> Result<Place, String> {
        let of = |rows| per_rank(rows, self.micro_batch, self.drop_last, self.share.of_a_step);
        let (rows, per_rank) = match &self.rows {
            Source::Shuffled(sampler) => (sampler.len(), of(sampler.len())),
            Source::Streamed { rows, .. } => {
                let needed = usize::try_from(step).unwrap_or(usize::MAX).saturating_mul(self.rows_per_step());
                match rows.wait(needed)? {
                    (there, true) => (there, of(there)),
                    // However many more may come: the step lies in the first epoch.
                    (there, false) => (there, u64::MAX),
                }
            }
        };
        let steps = per_rank.div_ceil(self.shape.accumulation).max(1);
        Ok(Place { epoch: (step - 1) / steps, within: (step - 1) % steps, rows, per_rank })
    }

    fn micro_batch_rows(&self, place: &Place, index: usize) -> Vec<usize> {
        let start = index * self.micro_batch;
        // What one process alone has left at the end stays as it is.
        let end = if self.share.of_a_step == 1 { place.rows } else { usize::MAX };
        let positions = (start..(start + self.micro_batch).min(end)).map(|position| position % place.rows);
        match &self.rows {
            Source::Shuffled(sampler) => positions.map(|position| sampler.row(place.epoch, position)).collect(),
            Source::Streamed { .. } if place.epoch == 0 => positions.collect(),
            Source::Streamed { buffer, seed, later, .. } => {
                let mut later = later.borrow_mut();
                if later.as_ref().is_none_or(|(of, _)| *of != place.epoch) {
                    *later = Some((place.epoch, stream::later_epoch(place.rows, *seed, place.epoch, *buffer)));
                }
                let order = later.as_ref().map_or(&[][..], |(_, order)| order);
                positions.map(|position| order[position] as usize).collect()
            }
        }
    }
}

/// Micro-batches of an epoch of `rows` rows on each of `ranks` ranks.
fn per_rank(rows: usize, micro_batch: usize, drop_last: bool, ranks: usize) -> u64 {
    let of_all_ranks = micro_batch * ranks;
    let rounds = match rows / of_all_ranks {
        // One incomplete round is all there is: leaving it out would leave nothing.
        0 => 1,
        whole if drop_last => whole,
        _ => rows.div_ceil(of_all_ranks),
    };
    rounds as u64
}

/// Lays a step's rows into micro-batches of at most `budget` tokens (a longer row is one by itself), the fullest
/// first, so that the ranks' `i`-th ones, dealt in turn, cost about the same.
///
/// First fit, longest first: at most 11/9 of the fewest that would do (Johnson 1973).
fn by_tokens(rows: &[usize], budget: usize, size: impl Fn(usize) -> usize) -> Vec<Vec<usize>> {
    let mut sized: Vec<(usize, usize)> = rows.iter().map(|&row| (size(row), row)).collect();
    sized.sort_by_key(|&(tokens, _)| std::cmp::Reverse(tokens));
    let mut bins: Vec<(usize, Vec<usize>)> = Vec::new();
    for (tokens, row) in sized {
        match bins.iter_mut().find(|(filled, _)| filled + tokens <= budget) {
            Some((filled, bin)) => {
                *filled += tokens;
                bin.push(row);
            }
            None => bins.push((tokens, vec![row])),
        }
    }
    bins.sort_by_key(|&(tokens, _)| std::cmp::Reverse(tokens));
    bins.into_iter().map(|(_, bin)| bin).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::train_plan;

    fn order(share: Share, budget: Option<usize>) -> Order {
        Order::new(22, &train_plan(2, 3), budget, share)
    }

    fn size_of(row: usize) -> usize {
        1 + row * 7 % 19
    }

    /// All ranks' rows of a step, sorted.
    fn step(ranks: usize, of_a_step: usize, budget: Option<usize>, step: u64) -> Vec<usize> {
        let of = |rank| order(Share { rank, ranks, of_a_step }, budget).step_rows(step, size_of).unwrap();
        let each: Vec<Vec<Vec<usize>>> = (0..ranks).map(of).collect();
        assert!(each.iter().all(|mine| mine.len() == each[0].len()), "as many micro-batches on each rank");
        let mut all = each.concat().concat();
        all.sort_unstable();
        all
    }

    #[test]
    fn the_longest_micro_batch_of_a_run_is_one_that_it_comes_by() {
        let sizes: Vec<usize> = (0..22).map(size_of).collect();
        let plan = train_plan(2, 3);
        for (ranks, budget) in [(1, None), (4, None), (4, Some(40))] {
            let met = longest_met(&sizes, &plan, budget, ranks);
            let of = |rank| {
                let order = order(Share { rank, ranks, of_a_step: ranks }, budget);
                let steps = 1..=order.shape().total_steps();
                steps.flat_map(|step| order.step_rows(step, size_of).unwrap()).collect::<Vec<_>>()
            };
            let tokens = |batch: &Vec<usize>| batch.iter().map(|&row| sizes[row]).sum::<usize>();
            let most = (0..ranks).flat_map(of).map(|batch| tokens(&batch)).max().unwrap();
            assert_eq!(met.iter().sum::<usize>(), most, "{ranks} ranks, {budget:?}");
            let worst = longest_batch(sizes.clone(), 2, budget).iter().sum::<usize>();
            assert!(most <= worst, "{most} of {worst}");
        }
    }

    #[test]
    fn fewer_ranks_and_other_micro_batches_see_the_same_rows_in_a_step() {
        for number in 1..6 {
            let whole = step(4, 4, None, number);
            for ranks in 1..6 {
                assert_eq!(step(ranks, 4, None, number), whole);
                assert_eq!(step(ranks, 4, Some(40), number), whole);
            }
        }
    }

    /// Positions of the rows of each micro-batch of `rank`, as accelerate's `BatchSamplerShard` deals them (its
    /// `_iter_with_no_split`, with even batches).
    fn dealt_by_accelerate(rows: usize, size: usize, ranks: usize, rank: usize, drop_last: bool) -> Vec<Vec<usize>> {
        let positions: Vec<usize> = (0..rows).collect();
        let mut batches: Vec<Vec<usize>> = positions.chunks(size).map(<[usize]>::to_vec).collect();
        if drop_last {
            batches.retain(|batch| batch.len() == size);
            batches.truncate(batches.len() / ranks * ranks);
            return batches.into_iter().skip(rank).step_by(ranks).collect();
        }
        let mut initial = batches.iter().take(ranks).flatten().copied().collect::<Vec<_>>();
        while initial.len() < ranks * size {
            initial.extend(initial.clone());
        }
        let mut more = initial.into_iter();
        if let Some(last) = batches.last_mut() {
            last.extend(more.by_ref().take(size - last.len()));
        }
        while !batches.len().is_multiple_of(ranks) {
            batches.push(more.by_ref().take(size).collect());
        }
        batches.into_iter().skip(rank).step_by(ranks).collect()
    }

    #[test]
    fn several_ranks_are_dealt_the_rows_that_accelerate_deals() {
        for (rows, size, ranks, drop_last) in [
            (5, 2, 2, false),
            (7, 3, 2, false),
            (8, 2, 2, false),
            (9, 2, 2, false),
            (3, 4, 2, false),
            (1, 2, 3, false),
            (23, 3, 4, false),
            (22, 2, 4, true),
            (23, 3, 4, true),
        ] {
            let plan = TrainPlan { drop_last, shuffle: false, ..train_plan(size, 1) };
            for rank in 0..ranks {
                let order = Order::new(rows, &plan, None, Share { rank, ranks, of_a_step: ranks });
                let steps = 1..=order.shape().steps_per_epoch();
                let got: Vec<Vec<usize>> = steps.flat_map(|step| order.step_rows(step, size_of).unwrap()).collect();
                let what = format!("{rows} rows, {size} at once, rank {rank} of {ranks}, drop_last {drop_last}");
                assert_eq!(got, dealt_by_accelerate(rows, size, ranks, rank, drop_last), "{what}");
            }
        }
        // One process keeps what is left as it is.
        let order = Order::new(5, &TrainPlan { shuffle: false, ..train_plan(2, 1) }, None, Share::ALL);
        assert_eq!(order.step_rows(3, size_of).unwrap(), [[4]]);
    }

    #[test]
    fn micro_batches_keep_to_their_budget_unless_one_row_is_longer() {
        for bin in order(Share::ALL, Some(12)).step_rows(1, size_of).unwrap() {
            assert!(bin.len() == 1 || bin.iter().map(|&row| size_of(row)).sum::<usize>() <= 12);
        }
    }
}
