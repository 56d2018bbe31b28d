//! A group: parameters that are treated alike, end to end in one flat buffer, and the part of it that is this rank's.

use super::division::{Division, Sharding};
use ferrotune_dist::Ticket;
use ferrotune_model::{Parameter, Role};
use ferrotune_tensor::{DType, Device, Kind, Param, Phase, Segment, Tensor};
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
        (!segments.is_empty()).then_some(Self { segments, dtype: param.dtype, trained, twin })
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
        let shards = division.mesh.layout().shards;
        let size = class.dtype.bytes(1);
        let elements = bytes.next_multiple_of(ALIGN * shards) / size;
        let part = elements / shards;
        let own = division.mesh.place().shard * part..(division.mesh.place().shard + 1) * part;
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
        Self { class, cut, elements, own, weights, live, asked, training }
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
}

impl Place {
    /// The elements of `param` among the group's elements `among`: as numbered in the parameter, and as numbered in
    /// `among`. Empty where it has none there.
    pub(super) fn within(self, param: &Param, among: &Range<usize>) -> (Range<usize>, usize) {
        let start = self.start.clamp(among.start, among.end);
        let end = (self.start + param.shape.numel()).clamp(among.start, among.end);
        if start >= end {
            return (0..0, 0);
        }
        (start - self.start..end - self.start, start - among.start)
    }
}
