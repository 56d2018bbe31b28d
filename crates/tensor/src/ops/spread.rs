//! Experts on several ranks (expert parallelism, as in GShard, <https://arxiv.org/abs/2006.16668>): each rank of a group holds
//! some of every block's experts, rows go to the ranks of their experts, and what these make of them comes back.
//!
//! Every rank tells the others where each expert's rows begin; from that table all know who sends what, and in how many
//! rounds (`rounds.rs`). An owner takes in at most the table's `capacity` of rows at a time, and all that it allocates is of
//! that size: memory depends on the lengths of micro-batches and never on where tokens go. Nothing is dropped.
//!
//! What the first round made is kept for the backward pass, as a tape of its own; later rounds are run before it, keep nothing,
//! and are run again on the way back. So no number of rounds needs more memory than one. Rows beyond those that came in are
//! zeros, since what goes over all rows reads them; grouped products look at an expert's own rows only.
//!
//! ```text
//! forward    x --sort--> rows --round--> experts' ranks --experts--> --round--> rows
//! backward   dx <--sum-- drows <--round-- experts' ranks <-- d experts <--round-- drows
//! ```

use super::experts::{gathered, noise_of, summed};
use super::noise::Noise;
use super::rounds::{Round, Table};
use super::route::Routes;
use crate::cpu;
use crate::device::On;
use crate::tape::{Grads, Recorded, Saved};
use crate::{DType, Device, Kind, Shape, Tape, Tensor, Var};
use std::ops::Range;
use std::rc::Rc;

/// The ranks among which the experts of every block are shared out, each having those of
/// [`expert_share`](super::expert_share). What fails is told by the one who implements it; the rest runs through.
pub trait ExpertRanks {
    /// This rank's number among them.
    fn rank(&self) -> usize;
    /// How many there are.
    fn world(&self) -> usize;
    /// Every rank's `mine`, of u32 and as long on each, in rank order. Nothing where the device doesn't execute, or where a rank
    /// is lost: what came may then be anything.
    fn gather(&self, mine: &Tensor) -> Vec<u32>;
    /// Sends each rank the tensor of its number in `out`, and receives from each into `into`. Both sides know the sizes;
    /// empty ones aren't sent.
    fn swap(&self, out: &[Tensor], into: &[Tensor]);
}

/// What experts make of rows that are sorted by expert, as many as were given.
pub type Experts = Rc<dyn Fn(&Tape<'_>, &Var, &Rc<Routes>, Option<&Rc<Noise>>) -> Var>;

/// What the experts make of each token's rows, wherever these experts are: `[t k, width]`, sorted as
/// [`dispatch`](super::dispatch) sorts them. `noise` holds the tokens' keys, if an expert draws any.
///
/// # Panics
/// If this rank holds all experts.
pub fn spread(t: &Tape<'_>, x: &Var, routes: &Rc<Routes>, noise: Option<&Rc<Noise>>, experts: Experts) -> Var {
    let ranks = t.expert_ranks().expect("experts are on several ranks");
    let rows = gathered(&x.value, routes);
    let spread = Spread::new(ranks, routes, noise, &rows, experts);
    let made = rows.empty_like(Kind::Act);
    let mut kept = None;
    for number in (0..spread.table.rounds).rev() {
        let visit = spread.visit(number);
        let brought = visit.bring(ranks, &rows);
        let noise = visit.noise(ranks);
        let records = [number == 0, x.needs_grad()];
        let (y, recorded) = t.apart(brought, records, |t, x| (spread.experts)(t, x, &visit.routes, noise.as_ref()));
        assert_eq!((y.shape(), y.dtype()), (visit.shape(), made.dtype()), "what experts make of rows");
        visit.send_back(ranks, &y, &made);
        kept = recorded;
    }
    drop(rows);
    let needs = kept.is_some();
    let back = Back { spread, x: x.save(), x_id: x.id(), tokens: x.value.shape().rows(), kept };
    t.op(made, needs, move |g, dmade| back.run(g, &dmade))
}

/// What all rounds of a layer's visit share.
struct Spread {
    table: Table,
    ways: Rc<Routes>,
    width: usize,
    device: Device,
    /// Of this rank's sorted rows, with the keys of each one's dropout.
    noise: Option<Noise>,
    experts: Experts,
}

impl Spread {
    fn new(
        ranks: &dyn ExpertRanks,
        routes: &Rc<Routes>,
        noise: Option<&Rc<Noise>>,
        rows: &Tensor,
        experts: Experts,
    ) -> Self {
        let (width, device) = (rows.shape().last(), rows.device().clone());
        let table = Table::new(counts(ranks, routes), ranks.rank());
        let noise = noise.map(|noise| noise_of(noise, routes));
        Self { table, ways: routes.clone(), width, device, noise, experts }
    }

    fn visit(&self, number: usize) -> Visit<'_> {
        let round = self.table.round(number);
        let routes = Rc::new(Routes::of_rows(&self.device, self.table.capacity, &round.order, &round.offsets));
        Visit { spread: self, round, routes }
    }
}

/// One round.
struct Visit<'a> {
    spread: &'a Spread,
    round: Round,
    /// Of the rows that came in: where each of the sorted ones was put, and where each own expert's begin.
    routes: Rc<Routes>,
}

impl Visit<'_> {
    fn shape(&self) -> Shape {
        [self.spread.table.capacity, self.spread.width].into()
    }

    /// Where the sorted rows were put.
    fn order(&self) -> Tensor {
        self.routes.sources.view(0, [self.round.rows()], DType::U32)
    }

    /// Brings this round's part of all ranks' `rows` to the owners of their experts; gives what came in, sorted.
    fn bring(&self, ranks: &dyn ExpertRanks, rows: &Tensor) -> Tensor {
        let (shape, dtype) = ([self.spread.table.capacity, rows.shape().last()], rows.dtype());
        let staged = self.spread.device.empty(shape, dtype, Kind::Work);
        ranks.swap(&cut(rows, &self.round.out), &cut(&staged, &self.round.into));
        let sorted = self.spread.device.empty(shape, dtype, Kind::Act);
        let to = sorted.rows(0, self.round.rows());
        match sorted.runs_on() {
            None => {}
            Some(On::Cpu) => cpu::gather_rows(staged.data(), self.order().u32(), to.data_mut(), shape[1]),
            Some(On::Cuda(gpu)) => gpu.gather_rows(&staged, &self.order(), &to),
        }
        self.routes.zero_unseen(&sorted);
        sorted
    }

    /// Takes what was made of them back to where they came from, into these ranks' `rows`.
    fn send_back(&self, ranks: &dyn ExpertRanks, sorted: &Tensor, rows: &Tensor) {
        let staged = sorted.empty_like(Kind::Work);
        let from = sorted.rows(0, self.round.rows());
        match staged.runs_on() {
            None => {}
            Some(On::Cpu) => {
                cpu::scatter_rows(from.data(), self.order().u32(), staged.data_mut(), self.spread.width);
            }
            Some(On::Cuda(gpu)) => gpu.scatter_rows(&from, &self.order(), &staged),
        }
        ranks.swap(&cut(&staged, &self.round.into), &cut(rows, &self.round.out));
    }

    /// The keys of the rows that came in.
    fn noise(&self, ranks: &dyn ExpertRanks) -> Option<Rc<Noise>> {
        let of = self.spread.noise.as_ref()?;
        let key = |keys: &Tensor| {
            // Rows of one number, which travel as f32: nobody computes with them on the way.
            let brought = self.bring(ranks, &keys.view(0, [keys.numel(), 1], DType::F32));
            brought.view(0, [brought.numel()], DType::U32)
        };
        let (samples, positions) = (key(&of.samples), key(&of.positions));
        let lengths = positions.clone();
        Some(Rc::new(Noise { seed: of.seed, step: of.step, samples, positions, lengths, embedding_alpha: 0.0 }))
    }
}

/// Every rank's rows for each expert. Where the device doesn't execute, all ranks are taken to have as many rows as this one,
/// spread evenly.
fn counts(ranks: &dyn ExpertRanks, routes: &Routes) -> Vec<Vec<u32>> {
    let each = routes.offsets.numel();
    // The one place at which the host waits for the router: what goes where, and how often, is the host's to say.
    let offsets = ranks.gather(&routes.offsets);
    if offsets.is_empty() {
        return vec![even(routes.rows(), each - 1); ranks.world()];
    }
    offsets.chunks_exact(each).map(|of| of.windows(2).map(|at| at[1] - at[0]).collect()).collect()
}

fn even(rows: usize, experts: usize) -> Vec<u32> {
    (0..experts).map(|expert| (rows / experts + usize::from(expert < rows % experts)) as u32).collect()
}

fn cut(rows: &Tensor, ranges: &[Range<usize>]) -> Vec<Tensor> {
    ranges.iter().map(|range| rows.rows(range.start, range.len())).collect()
}

struct Back {
    spread: Spread,
    x: Saved,
    x_id: Option<u32>,
    tokens: usize,
    /// What the first round recorded.
    kept: Option<Recorded>,
}

impl Back {
    fn run(mut self, g: &mut Grads<'_>, dmade: &Tensor) {
        let spread = &self.spread;
        // Needed by later rounds only, and made for all: memory may not depend on their number.
        let x = self.x.get(g);
        let drows = dmade.empty_like(Kind::ActGrad);
        if spread.table.rounds > 1 {
            // A row waits where its gradient will be.
            super::experts::gather_into(&x, &spread.ways, &drows);
        }
        for number in 0..spread.table.rounds {
            let visit = spread.visit(number);
            let recorded = self.kept.take().or_else(|| visit.again(g, &drows, self.x_id.is_some()));
            let ranks = g.expert_ranks().expect("they were there on the way forward");
            let dy = visit.bring(ranks, dmade);
            let dx = recorded.and_then(|recorded| g.run(recorded, dy));
            // Structure decides whether there is one, so all ranks agree.
            if let (Some(dx), true) = (dx, self.x_id.is_some()) {
                visit.send_back(ranks, &dx.reshape(visit.shape()), &drows);
            }
        }
        if let Some(id) = self.x_id {
            let dx = summed(&drows, &spread.ways, [self.tokens, spread.width].into());
            g.put(id, dx);
        }
    }
}

impl Visit<'_> {
    /// Brings a later round's rows once more, and records what experts make of them.
    fn again(&self, g: &Grads<'_>, rows: &Tensor, leaf: bool) -> Option<Recorded> {
        let ranks = g.expert_ranks().expect("they were there on the way forward");
        let brought = self.bring(ranks, rows);
        let noise = self.noise(ranks);
        g.again_apart(brought, leaf, |t, x| (self.spread.experts)(t, x, &self.routes, noise.as_ref()))
    }
}
