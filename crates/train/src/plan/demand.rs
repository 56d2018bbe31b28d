//! What one step of a model computes and holds, segment by segment and group by group: what the other parts of the plan
//! reckon with.

use crate::{Error, Result};
use ferrotune_model::{Batch, LossOptions, Model, Parameter, Role, Sequence};
use ferrotune_tensor::cards::Card;
use ferrotune_tensor::ops::expert_share;
use ferrotune_tensor::{DType, Device, Host, Kind, Param, Phase, Segment, Tape, Tensor};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Parameters of a group begin at multiples of so many bytes, and a group is padded to that times its shards.
const ALIGN: u64 = 64;

/// What a group of parameters is to a strategy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupKind {
    /// Never changes: sharded or whole, it has no gradient.
    Frozen,
    /// Adapters: whole on every rank; of what belongs to them only optimiser states are ever sharded.
    Adapter,
    /// Weights of the model itself that train.
    Trained,
}

/// Parameters that lie in one flat buffer and are treated alike.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// What it is.
    pub kind: GroupKind,
    /// The segments that read it, ascending: two for a tied embedding.
    pub segments: Vec<usize>,
    /// The visits that read its weights. A frozen embedding is not read in the backward pass.
    pub visits: Vec<(usize, Phase)>,
    /// Bytes of its weights, each parameter at a multiple of 64.
    pub weights: u64,
    /// Bytes of a weight.
    pub element: u64,
    /// Of a group of experts: of each parameter, how many experts it holds and the bytes of one. Nothing of other groups.
    pub stacks: Vec<(usize, u64)>,
}

impl Group {
    /// Bytes of the weights of the experts that rank `shard` of `shards` has, where each has its own.
    pub fn share(&self, shards: usize, shard: usize) -> u64 {
        let of = |&(experts, one): &(usize, u64)| {
            (expert_share(experts, shards, shard).len() as u64 * one).next_multiple_of(ALIGN)
        };
        self.stacks.iter().map(of).sum()
    }

    /// Bytes of the weights, padded so that `shards` ranks hold equal parts.
    pub fn padded(&self, shards: usize) -> u64 {
        self.weights.next_multiple_of(ALIGN * shards as u64)
    }

    /// Bytes of the gradient, f32, padded in the same way; 0 for a frozen group.
    pub fn gradient(&self, shards: usize) -> u64 {
        match self.kind {
            GroupKind::Frozen => 0,
            GroupKind::Adapter | GroupKind::Trained => self.padded(shards) / self.element * 4,
        }
    }
}

/// What one segment costs for one micro-batch.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Cost {
    /// Seconds of its forward pass.
    pub forward: f64,
    /// Seconds of its backward pass, the repeated forward included where blocks are recomputed; 0 for none.
    pub backward: f64,
    /// Bytes that it keeps for the backward pass of one micro-batch.
    pub held: u64,
    /// What goes to its experts and back where these are spread over ranks.
    pub rows: Rows,
}

/// Rows of one block and micro-batch on their way to experts that are spread over ranks; of nothing in a block without.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Rows {
    /// Experts.
    pub experts: usize,
    /// Bytes of all rows of the micro-batch, one for each of a token's experts.
    pub bytes: u64,
    /// Bytes of the keys of their dropout, if they have any.
    pub keys: u64,
    /// Of a forward and of a backward visit.
    pub trips: [Trips; 2],
    /// The share of the block's computing that is its experts'.
    pub share: f64,
}

/// How many times the rows of an even spread the fullest owner is taken to have, whom all others wait for: what it takes in at
/// a time. Routers that are trained for balance come near that over thousands of tokens; nothing known before the run says more.
pub(super) const FULLEST: f64 = 1.25;

/// How often rows go one way in a visit, if there is one round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Trips {
    /// To the experts of a forward pass, each with its keys and after counts are exchanged; as often back from there.
    pub forward: u64,
    /// Gradients to the experts.
    pub gradients: u64,
    /// Gradients back.
    pub back: u64,
}

impl Trips {
    /// Of a forward visit.
    pub const FORWARD: Self = Self { forward: 1, gradients: 0, back: 0 };
}

/// What a rank does in a second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// Floating-point operations of blocks, attention included: the peak times what of it is reached.
    pub blocks: f64,
    /// Those of the head and its loss.
    pub head: f64,
    /// Parameters that the optimiser updates.
    pub update: f64,
    /// Bytes of weights that are read: a visit takes no less, however few its tokens are.
    pub reads: f64,
}

/// Of a card's dense rate, the share that blocks of a dense model reach, with a token budget that fills it: between a
/// third and two thirds are reported for training with attention (see `docs/plan.md`).
const REACHED: f64 = 0.5;
/// The same by mixtures of experts, whose products are narrow.
const REACHED_BY_EXPERTS: f64 = 0.35;
/// Bytes of a card's memory that AdamW moves for a parameter in f32: weight, gradient and two moments read, all but the
/// gradient written.
pub(super) const UPDATED: f64 = 28.0;

impl Rates {
    /// `flops` floating-point operations a second wherever they are done, and updates that take no time.
    pub fn even(flops: f64) -> Self {
        Self { blocks: flops, head: flops, update: f64::INFINITY, reads: f64::INFINITY }
    }

    /// What a card is taken to do, from its data sheet; `experts` in a mixture of experts.
    pub fn of_card(card: &Card, experts: bool) -> Self {
        let reached = if experts { REACHED_BY_EXPERTS } else { REACHED };
        let (bf16, bandwidth) = (card.bf16, card.bandwidth);
        Self { blocks: bf16 * reached, head: bf16 * REACHED, update: bandwidth / UPDATED, reads: bandwidth }
    }
}

/// One step of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Demand {
    /// Embedding, blocks, head.
    pub segments: Vec<Cost>,
    /// Groups of parameters.
    pub groups: Vec<Group>,
    /// Bytes of the residual stream of one micro-batch, `[tokens, hidden_size]`: what a pipeline's border passes on, and
    /// what comes back as its gradient.
    pub border: u64,
    /// Seconds to update all trained parameters on one rank.
    pub update: f64,
    /// Experts whose choices are counted for the loss on their balance; 0 where it doesn't count.
    pub counted_experts: u64,
}

impl Demand {
    /// Counts one micro-batch of rows of `lengths` tokens, a label on each, by running it on the `meta` device, and takes
    /// its time from `rates`. `recompute` runs blocks again in the backward pass; `plus` splits adapters into two groups,
    /// as LoRA+ has it.
    ///
    /// # Errors
    /// If the device gives up.
    pub fn of(model: &Model, lengths: &[usize], recompute: bool, plus: bool, rates: Rates) -> Result<Self> {
        let device = Device::meta();
        let host = Counting::new(&device, model);
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let (ids, labels) = (vec![0; longest], vec![0; longest]);
        let whole: Vec<[u32; 1]> = lengths.iter().map(|len| [*len as u32]).collect();
        let mut sequences = Vec::with_capacity(lengths.len());
        for (sample, (&len, segments)) in (0..).zip(lengths.iter().zip(&whole)) {
            let (input_ids, labels) = (&ids[..len], &labels[..len]);
            sequences.push(Sequence { input_ids, labels, segments, isolated: false, sample });
        }
        let batch = Rc::new(Batch::new(&device, model.config(), &sequences, None));
        let wanted = |segment: Segment| recompute && model.is_block(segment);
        let tape = Tape::new(&device, &host, &wanted);
        let root = model.loss(&tape, &batch, LossOptions { scale: 1.0, smoothing: 0.0 });
        tape.backward(&root, Tensor::from_f32(&device, &[1.0], [1], Kind::ActGrad), None);
        device.check().map_err(Error::from)?;
        let tokens: usize = lengths.iter().sum();
        let border = model.activations().bytes(tokens * model.config().hidden_size) as u64;
        let cost = |(segment, count): (usize, &Count)| {
            let rate = if segment + 1 == model.segments() { rates.head } else { rates.blocks };
            let reading = |phase| host.bytes_read((segment, phase)) as f64 / rates.reads;
            let seconds = |flops: f64, phase| (flops / rate).max(if flops > 0.0 { reading(phase) } else { 0.0 });
            let [forward, backward] = count.flops;
            Cost {
                forward: seconds(forward, Phase::Forward),
                backward: seconds(backward, Phase::Backward),
                held: count.held,
                rows: rows(model, Segment(segment), (tokens, forward), recompute),
            }
        };
        let segments = host.counts.borrow().iter().enumerate().map(cost).collect();
        let trained: usize =
            model.parameters().iter().map(|p| &p.param).filter(|p| p.trainable).map(|p| p.shape.numel()).sum();
        let update = trained as f64 / rates.update;
        let groups = groups(model.parameters(), plus, &host.reads.borrow());
        Ok(Self { segments, groups, border, update, counted_experts: 0 })
    }

    /// The same with a loss on the balance of the model's experts, if `weight` isn't 0.
    #[must_use]
    pub fn with_router_loss(self, model: &Model, weight: f64) -> Self {
        let moe = model.config().moe.as_ref().filter(|moe| weight != 0.0 && moe.sparse.contains(&true));
        Self { counted_experts: moe.map_or(0, |moe| moe.experts as u64), ..self }
    }

    /// Experts of the block that has fewest; `None` of a model without.
    pub fn experts(&self) -> Option<usize> {
        self.groups.iter().flat_map(|group| &group.stacks).map(|(experts, _)| *experts).min()
    }

    /// Whether a rank runs its `micro_batches` forward once more, without the head, to count what routers choose.
    pub(super) fn counts_first(&self, micro_batches: usize) -> bool {
        self.counted_experts > 0 && micro_batches > 1
    }

    /// Seconds of a segment when routers are counted.
    pub(super) fn census(&self, segment: usize) -> f64 {
        if segment + 1 == self.segments.len() { 0.0 } else { self.segments[segment].forward }
    }

    /// The mean of steps that are alike but for their lengths; `None` of no step.
    pub fn mean(demands: &[Self]) -> Option<Self> {
        let mut mean = demands.first()?.clone();
        let count = demands.len();
        let of = |seconds: &dyn Fn(&Self) -> f64| demands.iter().map(seconds).sum::<f64>() / count as f64;
        for (i, segment) in mean.segments.iter_mut().enumerate() {
            segment.forward = of(&|demand| demand.segments[i].forward);
            segment.backward = of(&|demand| demand.segments[i].backward);
        }
        for (i, segment) in mean.segments.iter_mut().enumerate() {
            let of = |bytes: &dyn Fn(&Rows) -> u64| {
                demands.iter().map(|d| bytes(&d.segments[i].rows)).sum::<u64>() / count as u64
            };
            (segment.rows.bytes, segment.rows.keys) = (of(&|rows| rows.bytes), of(&|rows| rows.keys));
        }
        mean.border = demands.iter().map(|demand| demand.border).sum::<u64>() / count as u64;
        Some(mean)
    }

    /// Bytes that a segment's weights, gradients and optimiser states take on a rank that holds all of them.
    pub fn resident(&self, segment: usize) -> u64 {
        let of = |group: &&Group| group.segments.contains(&segment);
        let bytes = |group: &Group| {
            // Gradient, two moments, and the f32 copy of weights that aren't f32.
            let states = if group.element == 4 { 3 } else { 4 };
            group.weights + states * group.gradient(1)
        };
        self.groups.iter().filter(of).map(bytes).sum()
    }
}

/// What goes to the experts of a segment for `tokens` tokens, whose forward pass takes `flops` operations.
fn rows(model: &Model, segment: Segment, (tokens, flops): (usize, f64), recompute: bool) -> Rows {
    let Some((moe, training)) = model.config().moe.as_ref().zip(model.expert_training(segment)) else {
        return Rows::default();
    };
    let rows = tokens * moe.top_k;
    // Their own matrices; what adapters add is small, and small elsewhere too.
    let by_experts = 2.0 * (3 * rows * model.config().hidden_size * moe.intermediate_size) as f64;
    let recorded = training.trains || training.passes;
    let backward =
        Trips { forward: u64::from(recompute), gradients: u64::from(recorded), back: u64::from(training.passes) };
    Rows {
        experts: moe.experts,
        bytes: model.activations().bytes(rows * model.config().hidden_size) as u64,
        keys: if training.drops { 8 * rows as u64 } else { 0 },
        trips: [Trips::FORWARD, backward],
        share: if flops > 0.0 { (by_experts / flops).min(1.0) } else { 0.0 },
    }
}

/// What makes parameters members of one group, as the engine has it.
#[derive(PartialEq)]
struct Class<'a> {
    segments: &'a [Segment],
    dtype: DType,
    kind: GroupKind,
    decays: bool,
    rate_of_b: bool,
    experts: bool,
}

/// The groups that the engine makes of `parameters`; `reads` are each parameter's visits.
fn groups(parameters: &[Parameter], plus: bool, reads: &[Vec<(usize, Phase)>]) -> Vec<Group> {
    let mut found: Vec<(Class<'_>, Group)> = Vec::new();
    for parameter in parameters {
        let param = &parameter.param;
        let kind = match (param.trainable, parameter.role) {
            (false, _) => GroupKind::Frozen,
            (true, Role::Base) => GroupKind::Trained,
            (true, Role::LoraA | Role::LoraB | Role::Magnitude) => GroupKind::Adapter,
        };
        let (decays, rate_of_b) = (parameter.decays(), plus && parameter.role == Role::LoraB);
        let class = Class {
            segments: &param.segments,
            dtype: param.dtype,
            kind,
            decays: param.trainable && decays,
            rate_of_b: param.trainable && rate_of_b,
            experts: parameter.experts().is_some(),
        };
        let place = found.iter().position(|(known, _)| *known == class).unwrap_or_else(|| {
            let segments = param.segments.iter().map(|segment| segment.0).collect();
            let element = param.dtype.bytes(1) as u64;
            found.push((class, Group { kind, segments, visits: Vec::new(), weights: 0, element, stacks: Vec::new() }));
            found.len() - 1
        });
        let group = &mut found[place].1;
        let bytes = param.dtype.bytes(param.shape.numel()) as u64;
        group.weights += bytes.next_multiple_of(ALIGN);
        group.stacks.extend(parameter.experts().map(|experts| (experts, bytes / experts as u64)));
        let new: Vec<_> = reads[param.id].iter().filter(|visit| !group.visits.contains(visit)).copied().collect();
        group.visits.extend(new);
    }
    found.into_iter().map(|(_, group)| group).collect()
}

/// What was counted of a segment.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    /// Operations, forward and backward.
    flops: [f64; 2],
    held: u64,
}

/// A host without data that reads the device's counters at each segment's borders.
struct Counting<'a> {
    device: &'a Device,
    trains: Vec<bool>,
    /// Bytes of each parameter.
    sizes: Vec<u64>,
    counts: RefCell<Vec<Count>>,
    /// The visits in which each parameter was read.
    reads: RefCell<Vec<Vec<(usize, Phase)>>>,
    visit: Cell<(usize, Phase)>,
    /// Operations and bytes of activations at the last entry.
    entered: Cell<(f64, u64)>,
}

impl<'a> Counting<'a> {
    fn new(device: &'a Device, model: &Model) -> Self {
        let mut trains = vec![false; model.segments()];
        let trained = model.parameters().iter().filter(|parameter| parameter.param.trainable);
        trained.flat_map(|parameter| &parameter.param.segments).for_each(|segment| trains[segment.0] = true);
        let counts = RefCell::new(vec![Count::default(); model.segments()]);
        let reads = RefCell::new(vec![Vec::new(); model.parameters().len()]);
        let visit = Cell::new((0, Phase::Forward));
        let sizes = model.parameters().iter().map(|p| p.param.dtype.bytes(p.param.shape.numel()) as u64).collect();
        Self { device, trains, sizes, counts, reads, visit, entered: Cell::default() }
    }

    /// Bytes of the weights that a visit reads.
    fn bytes_read(&self, visit: (usize, Phase)) -> u64 {
        let reads = self.reads.borrow();
        let read = reads.iter().zip(&self.sizes).filter(|(visits, _)| visits.contains(&visit));
        read.map(|(_, bytes)| bytes).sum()
    }

    fn now(&self) -> (f64, u64) {
        let track = self.device.track();
        (track.flops, track.live[Kind::Act as usize])
    }
}

impl Host for Counting<'_> {
    fn weight(&self, param: &Param) -> Tensor {
        let (mut reads, visit) = (self.reads.borrow_mut(), self.visit.get());
        if !reads[param.id].contains(&visit) {
            reads[param.id].push(visit);
        }
        self.device.empty(param.shape, param.dtype, Kind::Weight)
    }

    fn grad(&self, param: &Param) -> Tensor {
        self.device.empty(param.shape, DType::F32, Kind::Grad)
    }

    fn trains(&self, segment: Segment) -> bool {
        self.trains[segment.0]
    }

    fn enter(&self, segment: Segment, phase: Phase) {
        self.visit.set((segment.0, phase));
        self.entered.set(self.now());
    }

    fn leave(&self, segment: Segment, phase: Phase) {
        let ((flops, held), (before, live)) = (self.now(), self.entered.get());
        let count = &mut self.counts.borrow_mut()[segment.0];
        match phase {
            Phase::Forward => {
                count.flops[0] += flops - before;
                count.held = held.saturating_sub(live);
            }
            Phase::Backward => count.flops[1] += flops - before,
        }
    }
}
