//! Who sends which rows to whom where experts lie on several ranks: pure arithmetic on one table of counts that all ranks of a
//! group have, so that all come to the same.
//!
//! A rank's rows are sorted by expert, then by token. The rows of all ranks for one owner's experts are put in the order of
//! (expert, rank, token) and cut into rounds of `capacity` rows. In that order the rows of one rank stay in their own, so
//! what it sends to an owner in a round is one stretch; and a round's rows are sorted by expert, as grouped products want
//! them.
//!
//! ```text
//! an owner of two experts, two ranks, 5 rows at a time
//! order       e0: rank 0 rank 0 rank 1   e1: rank 0 rank 1 | rank 1 rank 1
//! round       0                                             1
//! ```

use std::ops::Range;

/// The experts of rank `rank` of `ranks`: consecutive ones; where they don't come out even, the first ranks have one more.
pub fn expert_share(experts: usize, ranks: usize, rank: usize) -> Range<usize> {
    let (each, more) = (experts / ranks, experts % ranks);
    let border = |rank: usize| rank * each + rank.min(more);
    border(rank)..border(rank + 1)
}

/// How many rows beyond an even spread an owner takes in at a time: a quarter.
const SPARE: usize = 4;

/// What all ranks of a group know of one layer's rows in one micro-batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    /// Rows by rank and expert.
    counts: Vec<Vec<u32>>,
    /// This rank.
    rank: usize,
    /// Most rows that an owner takes in at a time: what an even spread of as many rows as the fullest rank has would bring to
    /// the owner of the most experts, and a quarter more. So it depends on the lengths of micro-batches alone.
    pub(crate) capacity: usize,
    /// How often, on all ranks: as often as the fullest owner needs. At least once, whatever there is to do.
    pub(crate) rounds: usize,
}

/// One round as one rank sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Round {
    /// By owner: which of this rank's sorted rows go there.
    pub(crate) out: Vec<Range<usize>>,
    /// By rank: where its rows are put as they come in.
    pub(crate) into: Vec<Range<usize>>,
    /// Where each of the rows that came in, sorted by expert, was put.
    pub(crate) order: Vec<u32>,
    /// Where each expert's rows begin in that order, and where the last one's end.
    pub(crate) offsets: Vec<u32>,
}

impl Round {
    /// Rows that come in.
    pub(crate) fn rows(&self) -> usize {
        self.order.len()
    }
}

impl Table {
    /// The table of `counts`, each rank's rows for each expert.
    pub(crate) fn new(counts: Vec<Vec<u32>>, rank: usize) -> Self {
        let (ranks, experts) = (counts.len(), counts[rank].len());
        let total = |counts: &[u32]| counts.iter().map(|count| *count as usize).sum::<usize>();
        let most = counts.iter().map(|counts| total(counts)).max().unwrap_or(0);
        let even = (most * ranks * expert_share(experts, ranks, 0).len()).div_ceil(experts);
        let capacity = even + even.div_ceil(SPARE);
        let mut table = Self { counts, rank, capacity, rounds: 1 };
        let fullest = (0..ranks).map(|owner| table.rows_of(owner)).max().unwrap_or(0);
        table.rounds = fullest.div_ceil(capacity.max(1)).max(1);
        table
    }

    fn share(&self, owner: usize) -> Range<usize> {
        expert_share(self.counts[self.rank].len(), self.counts.len(), owner)
    }

    /// All rows for an owner's experts.
    fn rows_of(&self, owner: usize) -> usize {
        let of = |counts: &Vec<u32>| counts[self.share(owner)].iter().map(|count| *count as usize).sum::<usize>();
        self.counts.iter().map(of).sum()
    }

    /// Calls `take` with each stretch of an owner's round, in order: expert, rank, how many rows, and how many of that rank's
    /// rows for this owner come before.
    fn stretches(&self, owner: usize, round: usize, mut take: impl FnMut(usize, usize, usize, usize)) {
        let (start, end) = (round * self.capacity, (round + 1) * self.capacity);
        let mut before = vec![0; self.counts.len()];
        let mut at = 0;
        for expert in self.share(owner) {
            for (rank, counts) in self.counts.iter().enumerate() {
                let count = counts[expert] as usize;
                let (from, to) = (at.clamp(start, end), (at + count).clamp(start, end));
                if from < to {
                    take(expert, rank, to - from, before[rank] + from - at);
                }
                before[rank] += count;
                at += count;
            }
        }
    }

    /// What this rank does in a round.
    pub(crate) fn round(&self, number: usize) -> Round {
        let ranks = self.counts.len();
        let first_row = |expert: usize| self.counts[self.rank][..expert].iter().map(|c| *c as usize).sum::<usize>();
        let out = (0..ranks).map(|owner| {
            let first = first_row(self.share(owner).start);
            let mut sent: Option<Range<usize>> = None;
            self.stretches(owner, number, |_, rank, rows, before| {
                if rank == self.rank {
                    let start = sent.as_ref().map_or(first + before, |sent| sent.start);
                    sent = Some(start..first + before + rows);
                }
            });
            sent.unwrap_or(first..first)
        });
        let out = out.collect();
        let mut lengths = vec![0; ranks];
        self.stretches(self.rank, number, |_, rank, rows, _| lengths[rank] += rows);
        let ends = lengths.iter().scan(0, |end, rows: &usize| {
            *end += rows;
            Some(*end)
        });
        let into: Vec<Range<usize>> = ends.zip(&lengths).map(|(end, rows)| end - rows..end).collect();
        let own = self.share(self.rank);
        let (mut order, mut offsets) = (Vec::new(), vec![0; own.len() + 1]);
        let mut places: Vec<usize> = into.iter().map(|range| range.start).collect();
        self.stretches(self.rank, number, |expert, rank, rows, _| {
            order.extend((places[rank]..places[rank] + rows).map(|place| place as u32));
            places[rank] += rows;
            offsets[expert - own.start + 1] += rows as u32;
        });
        for expert in 1..offsets.len() {
            offsets[expert] += offsets[expert - 1];
        }
        Round { out, into, order, offsets }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_expert_has_one_owner() {
        for (experts, ranks) in [(128, 8), (6, 4), (5, 2), (3, 3), (7, 1)] {
            let shares: Vec<_> = (0..ranks).map(|rank| expert_share(experts, ranks, rank)).collect();
            assert!(shares.windows(2).all(|pair| pair[0].end == pair[1].start && pair[0].len() >= pair[1].len()));
            assert!(shares.iter().all(|share| !share.is_empty()));
            assert_eq!((shares[0].start, shares[ranks - 1].end), (0, experts));
        }
    }

    /// Every row of every rank comes to the owner of its expert once, sorted by expert, and never more than fit at a time.
    #[test]
    fn every_row_arrives_once_whatever_the_counts() {
        let mut state = 5_u64;
        let mut next = |below: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % below
        };
        let mut most = 0;
        for case in 0..200 {
            let ranks = 2 + case % 4;
            let experts = ranks + next(6) as usize;
            let hot = next(experts as u64) as usize;
            let mut of = |expert| match case % 3 {
                0 => next(9) as u32,
                1 if expert == hot => next(40) as u32,
                _ => 0,
            };
            let counts: Vec<Vec<u32>> = (0..ranks).map(|_| (0..experts).map(&mut of).collect()).collect();
            let tables: Vec<Table> = (0..ranks).map(|rank| Table::new(counts.clone(), rank)).collect();
            assert!(tables.iter().all(|t| (t.capacity, t.rounds) == (tables[0].capacity, tables[0].rounds)));
            most = most.max(tables[0].rounds);
            // The expert of each of a rank's sorted rows.
            let expert_of = |rank: usize| -> Vec<usize> {
                (0..experts).flat_map(|e| std::iter::repeat_n(e, counts[rank][e] as usize)).collect()
            };
            let mut seen: Vec<Vec<u32>> = (0..ranks).map(|rank| vec![0; expert_of(rank).len()]).collect();
            for number in 0..tables[0].rounds {
                let rounds: Vec<Round> = tables.iter().map(|table| table.round(number)).collect();
                for (owner, round) in rounds.iter().enumerate() {
                    assert!(round.rows() <= tables[owner].capacity);
                    let mut arrived = Vec::new();
                    for (rank, into) in round.into.iter().enumerate() {
                        let sent = &rounds[rank].out[owner];
                        assert_eq!((sent.len(), arrived.len()), (into.len(), into.start));
                        sent.clone().for_each(|row| seen[rank][row] += 1);
                        arrived.extend(expert_of(rank)[sent.clone()].iter().copied());
                    }
                    let own = expert_share(experts, ranks, owner);
                    let sorted: Vec<usize> = round.order.iter().map(|place| arrived[*place as usize]).collect();
                    assert_eq!(*round.offsets.last().expect("an end") as usize, sorted.len());
                    for (expert, at) in own.zip(round.offsets.windows(2)) {
                        assert!(sorted[at[0] as usize..at[1] as usize].iter().all(|e| *e == expert), "case {case}");
                    }
                }
            }
            assert!(seen.iter().flatten().all(|times| *times == 1), "case {case}");
        }
        assert!(most > 1, "one expert has all at times");
    }

    #[test]
    fn an_even_spread_takes_one_round() {
        let table = Table::new(vec![vec![3; 8]; 4], 1);
        assert_eq!((table.capacity, table.rounds), (30, 1));
        let none = Table::new(vec![vec![0; 8]; 4], 1);
        assert_eq!((none.capacity, none.rounds, none.round(0).rows()), (0, 1, 0));
        let one_has_all = Table::new(vec![vec![24, 0, 0, 0, 0, 0, 0, 0]; 4], 3);
        assert_eq!((one_has_all.capacity, one_has_all.rounds), (30, 4));
    }
}
