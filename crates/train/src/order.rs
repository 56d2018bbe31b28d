//! Which rows a step trains on: a pure function of the step's number, so that a run resumes without reading what it
//! has already seen.
//!
//! As transformers and accelerate count: a micro-batch is consecutive rows of the epoch's order; ranks take micro-batches in
//! turn, and where these don't come out even, several ranks begin again at the epoch's first row, so that all have full
//! ones; the last step of an epoch may hold fewer micro-batches, and a new epoch starts a new step.

use crate::clock::RunShape;
use ferrotune_config::plan::TrainPlan;
use ferrotune_data::sampler::Sampler;

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
    rows: usize,
    micro_batch: usize,
    share: Share,
    /// Most tokens of a micro-batch, where rows are laid together by length.
    budget: Option<usize>,
    sampler: Sampler,
}

impl Order {
    /// The order over `rows` rows, at least one, as one rank sees it.
    pub fn new(rows: usize, plan: &TrainPlan, budget: Option<usize>, share: Share) -> Self {
        let of_all_ranks = plan.micro_batch * share.of_a_step;
        let per_rank = match rows / of_all_ranks {
            // One incomplete round is all there is: leaving it out would leave nothing.
            0 => 1,
            whole if plan.drop_last => whole,
            _ => rows.div_ceil(of_all_ranks),
        };
        let shape =
            RunShape { micro_batches: per_rank as u64, accumulation: plan.accumulation as u64, length: plan.length };
        let sampler = Sampler::new(rows, plan.data_seed, plan.shuffle);
        Self { shape, rows, micro_batch: plan.micro_batch, share, budget, sampler }
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
    pub fn step_rows(&self, step: u64, size: impl Fn(usize) -> usize) -> Vec<Vec<usize>> {
        let steps = self.shape.steps_per_epoch();
        let (epoch, within) = ((step - 1) / steps, (step - 1) % steps);
        let first = within * self.shape.accumulation;
        let last = (first + self.shape.accumulation).min(self.shape.micro_batches);
        let ranks = self.share.of_a_step as u64;
        let all = first * ranks..last * ranks;
        let all: Vec<Vec<usize>> = all.map(|i| self.micro_batch_rows(epoch, i as usize)).collect();
        let all = match self.budget {
            Some(budget) => by_tokens(&all.concat(), budget, size),
            None => all,
        };
        let each = all.len().div_ceil(self.share.ranks);
        let mine = (0..each).map(|i| all.get(i * self.share.ranks + self.share.rank).cloned().unwrap_or_default());
        mine.collect()
    }

    fn micro_batch_rows(&self, epoch: u64, index: usize) -> Vec<usize> {
        let start = index * self.micro_batch;
        // What one process alone has left at the end stays as it is.
        let end = if self.share.of_a_step == 1 { self.rows } else { usize::MAX };
        let positions = start..(start + self.micro_batch).min(end);
        positions.map(|position| self.sampler.row(epoch, position % self.rows)).collect()
    }
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
        let of = |rank| order(Share { rank, ranks, of_a_step }, budget).step_rows(step, size_of);
        let each: Vec<Vec<Vec<usize>>> = (0..ranks).map(of).collect();
        assert!(each.iter().all(|mine| mine.len() == each[0].len()), "as many micro-batches on each rank");
        let mut all = each.concat().concat();
        all.sort_unstable();
        all
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
                let got: Vec<Vec<usize>> = steps.flat_map(|step| order.step_rows(step, size_of)).collect();
                let what = format!("{rows} rows, {size} at once, rank {rank} of {ranks}, drop_last {drop_last}");
                assert_eq!(got, dealt_by_accelerate(rows, size, ranks, rank, drop_last), "{what}");
            }
        }
        // One process keeps what is left as it is.
        let order = Order::new(5, &TrainPlan { shuffle: false, ..train_plan(2, 1) }, None, Share::ALL);
        assert_eq!(order.step_rows(3, size_of), [[4]]);
    }

    #[test]
    fn micro_batches_keep_to_their_budget_unless_one_row_is_longer() {
        for bin in order(Share::ALL, Some(12)).step_rows(1, size_of) {
            assert!(bin.len() == 1 || bin.iter().map(|&row| size_of(row)).sum::<usize>() <= 12);
        }
    }
}
