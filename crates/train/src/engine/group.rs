//! A group: parameters that are treated alike, end to end in one flat buffer, and the part of it that is this rank's.

use super::division::{Division, Sharding};
use ferrotune_dist::Ticket;
use ferrotune_model::{Parameter, Role};
use ferrotune_tensor::{DType, Device, Kind, Param, Phase, Segment, Shape, Tensor};
use std::cell::RefCell;
use std::ops::Range;

/// Parameters, and each rank's part, begin at multiples of so many bytes.
pub(super) const ALIGN: usize = 64;

/// What makes parameters members of one group.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Class {
    /// The segments of this rank that read it.
    pub(super) segments: Vec<Segment>,
    pub(super) dtype: DType,
    pub(super) trained: Option<Trained>,
    /// Another stage holds a copy, which must stay equal: a tied embedding.
    pub(super) twin: bool,
    /// Experts of a block: one group of all of them, which ranks may share out by number.
    pub(super) experts: bool,
}

/// How a trained group is updated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Trained {
    pub(super) adapter: bool,
    pub(super) decays: bool,
    pub(super) rate: RateClass,
}

/// Which rate a group is trained at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RateClass {
    Base,
    /// LoRA+: B matrices.
    LoraB,
}

impl Class {
    /// The class of a parameter; `None` if no segment of this rank reads it.
    pub(super) fn of(parameter: &Parameter, plus: bool, division: &Division) -> Option<Self> {
        let (param, span) = (&parameter.param, division.span());
        let segments: Vec<Segment> = param.segments.iter().copied().filter(|s| span.contains(&s.0)).collect();
        let rate = if plus && parameter.role == Role::LoraB { RateClass::LoraB } else { RateClass::Base };
        let adapter = parameter.role != Role::Base;
        let trained = param.trainable.then(|| Trained { adapter, decays: parameter.decays(), rate });
        let twin = segments.len() < param.segments.len();
        let (dtype, experts) = (param.dtype, parameter.experts().is_some());
        (!segments.is_empty()).then_some(Self { segments, dtype, trained, twin, experts })
    }
}

/// What of a group the ranks hold in parts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    pub(super) weights: bool,
    pub(super) grads: bool,
}

/// Weights brought together for a visit of a segment.
pub(super) enum Live {
    Absent,
    Coming(Tensor, Ticket),
    Here(Tensor),
}

/// Parameters that are treated alike.
pub(super) struct Group {
    pub(super) class: Class,
    pub(super) cut: Cut,
    /// It is of this rank's own experts: no other rank of the shard group has anything of it.
    pub(super) apart: bool,
    /// Elements of the whole group, with what fills it up.
    pub(super) elements: usize,
    /// This rank's part of them: it updates these.
    pub(super) own: Range<usize>,
    /// All elements, or `own` where weights are cut.
    pub(super) weights: Tensor,
    /// The whole, where `weights` isn't that or lies elsewhere.
    pub(super) live: RefCell<Live>,
    /// Visits that have asked for the whole so far.
    pub(super) asked: RefCell<Vec<(Segment, Phase)>>,
    pub(super) training: Option<Training>,
}

/// What a trained group holds besides its weights, in f32.
pub(super) struct Training {
    /// All elements, or `own` where gradients are cut.
    pub(super) grads: Tensor,
    /// The whole while a micro-batch's gradients are added, where they are cut.
    pub(super) open: RefCell<Option<Tensor>>,
    /// Moments of `own`.
    pub(super) m: Tensor,
    pub(super) v: Tensor,
    /// `own` in f32, where the weights are bf16.
    pub(super) master: Option<Tensor>,
}

impl Group {
    /// A group whose parameters take `bytes`.
    pub(super) fn new(device: &Device, host: &Device, class: Class, bytes: usize, division: &Division) -> Self {
        let apart = class.experts && division.spreads_experts();
        let (shards, shard) = match apart {
            true => (1, 0),
            false => (division.mesh.layout().shards, division.mesh.place().shard),
        };
        let size = class.dtype.bytes(1);
        let elements = bytes.next_multiple_of(ALIGN * shards) / size;
        let part = elements / shards;
        let own = shard * part..(shard + 1) * part;
        let adapter = class.trained.is_some_and(|t| t.adapter);
        let cuts = |level| shards > 1 && !adapter && division.sharding >= level;
        let cut = Cut { weights: cuts(Sharding::Weights), grads: cuts(Sharding::Gradients) };
        let held = |cut: bool| if cut { part } else { elements };
        let home = if division.offload.weights && !adapter { host } else { device };
        let weights = home.zeros([held(cut.weights)], class.dtype, Kind::Weight);
        let states = if division.offload.optimizer { host } else { device };
        let state = || states.zeros([part], DType::F32, Kind::Optim);
        let training = class.trained.map(|_| Training {
            grads: device.zeros([held(cut.grads)], DType::F32, Kind::Grad),
            open: RefCell::default(),
            m: state(),
            v: state(),
            master: (class.dtype != DType::F32).then(state),
        });
        let (live, asked) = (RefCell::new(Live::Absent), RefCell::default());
        Self { class, cut, apart, elements, own, weights, live, asked, training }
    }

    /// Elements of the group that lie in `weights`.
    pub(super) fn held(&self) -> Range<usize> {
        if self.cut.weights { self.own.clone() } else { 0..self.elements }
    }

    /// A view of this rank's part of `flat`, which holds the whole or that part alone.
    pub(super) fn own_of(&self, flat: &Tensor) -> Tensor {
        if flat.numel() == self.own.len() {
            return flat.clone();
        }
        flat.view(flat.dtype().bytes(self.own.start), [self.own.len()], flat.dtype())
    }
}

/// Where a parameter lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) group: usize,
    /// Its first element in the group.
    pub(super) start: usize,
    /// Which of the parameter's elements that is: 0, but where others have its first experts.
    pub(super) first: usize,
    /// How many of its elements the group has.
    pub(super) len: usize,
}

impl Place {
    /// The parameter's elements among the group's elements `among`: as numbered in the parameter, and as numbered in `among`.
    /// Empty where it has none there.
    pub(super) fn within(self, among: &Range<usize>) -> (Range<usize>, usize) {
        let start = self.start.clamp(among.start, among.end);
        let end = (self.start + self.len).clamp(among.start, among.end);
        if start >= end {
            return (0..0, 0);
        }
        let of = |at: usize| at - self.start + self.first;
        (of(start)..of(end), start - among.start)
    }

    /// The shape of what the group has of `param`: whole, or as many of its experts.
    pub(super) fn shape(self, param: &Param) -> Shape {
        if self.len == param.shape.numel() {
            return param.shape;
        }
        let mut sizes = param.shape.dims().to_vec();
        sizes[0] = self.len * sizes[0] / param.shape.numel();
        sizes[..].into()
    }
}
