//! The tape: one closure an op, recorded only where a gradient is needed, consumed backwards.
//!
//! A parameter is metadata; where its data and its gradient lie is asked of the tape's [`Host`], so that a
//! strategy (one rank or many, gathered or whole) stays outside the model. A block of a model is a *segment*: the
//! host hears when one begins and ends in either direction, and a segment may be run again in the backward pass
//! instead of keeping its activations.
//!
//! `&Tape`, not `&mut Tape`, so that `add(t, x, &linear(t, ..))` compiles: one rank is one thread.

use crate::ops::ExpertRanks;
use crate::ops::elementwise::add_assign;
use crate::{DType, Device, Kind, Shape, Tensor};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

/// A trainable or frozen parameter: what it is, not where.
#[derive(Clone, Debug)]
pub struct Param(Rc<ParamInfo>);

/// Facts on a parameter.
#[derive(Debug)]
pub struct ParamInfo {
    /// Its place in the model's list; unique in a model.
    pub id: usize,
    /// Hugging Face name.
    pub name: String,
    /// Shape.
    pub shape: Shape,
    /// Element type of its data.
    pub dtype: DType,
    /// Whether it has a gradient.
    pub trainable: bool,
    /// The segments that read it (a tied head reads the embedding).
    pub segments: Vec<Segment>,
}

impl Param {
    /// Wraps the facts.
    pub fn new(info: ParamInfo) -> Self {
        Self(Rc::new(info))
    }
}

impl std::ops::Deref for Param {
    type Target = ParamInfo;
    fn deref(&self) -> &ParamInfo {
        &self.0
    }
}

/// A stretch of the model that the host is told of: embedding, block, head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Segment(pub usize);

/// Direction of a visit to a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Forward.
    Forward,
    /// Backward, the repeated forward of a recomputed segment included.
    Backward,
}

/// Holds data and gradients of parameters.
pub trait Host {
    /// The parameter's data, valid until the segment is left. Ops must not keep it in a closure.
    fn weight(&self, param: &Param) -> Tensor;
    /// Where the parameter's gradient is to be *added*, in f32.
    fn grad(&self, param: &Param) -> Tensor;
    /// Whether any parameter of the segment has a gradient.
    fn trains(&self, segment: Segment) -> bool;
    /// A segment begins.
    fn enter(&self, segment: Segment, phase: Phase);
    /// A segment ends. After its backward visit all its gradients of this micro-batch are added.
    fn leave(&self, segment: Segment, phase: Phase);
    /// The ranks that hold each block's experts together; `None` where this one holds all of them. A parameter of experts is
    /// then this rank's part of it: the sizes of its data and of its gradient say so.
    fn expert_ranks(&self) -> Option<&dyn ExpertRanks> {
        None
    }
}

type Id = u32;

/// A tensor on the tape.
#[derive(Clone)]
pub struct Var {
    /// Its value.
    pub value: Tensor,
    id: Option<Id>,
    again: Option<Rc<Again>>,
}

impl Var {
    /// A value without a gradient.
    pub fn constant(value: Tensor) -> Self {
        Self { value, id: None, again: None }
    }

    /// Whether a gradient is wanted.
    pub fn needs_grad(&self) -> bool {
        self.id.is_some()
    }

    pub(crate) fn id(&self) -> Option<Id> {
        self.id
    }

    /// Its value for the backward pass: itself, or the means to make it again.
    pub(crate) fn save(&self) -> Saved {
        match &self.again {
            Some(again) => Saved::Again(again.clone()),
            None => Saved::Whole(self.value.clone()),
        }
    }
}

/// A value cheap enough to be made again in the backward pass from what is saved anyway (a norm's output from its
/// input, SwiGLU's from its halves): one pass over memory instead of holding it through the whole step.
pub(crate) struct Again {
    make: Box<dyn Fn(&Grads<'_>) -> Tensor>,
    made: RefCell<Option<Tensor>>,
}

/// A value kept for the backward pass.
pub(crate) enum Saved {
    Whole(Tensor),
    Again(Rc<Again>),
}

impl Saved {
    /// The value; made at the first reader's call and shared with the others, freed with the last of them.
    pub(crate) fn get(&self, grads: &Grads<'_>) -> Tensor {
        match self {
            Saved::Whole(tensor) => tensor.clone(),
            Saved::Again(again) => again.made.borrow_mut().get_or_insert_with(|| (again.make)(grads)).clone(),
        }
    }
}

type Back = Box<dyn FnOnce(&mut Grads<'_>, Tensor)>;
type Body = Rc<dyn Fn(&Tape<'_>, Option<Var>) -> Var>;

enum Node {
    Op { out: Id, shape: Shape, back: Back },
    Begin(Segment),
    End(Segment),
    Replay { segment: Segment, x: Option<Var>, out: Id, shape: Shape, body: Body },
}

/// Work that was recorded by itself, inside an op: to be differentiated in that op's backward pass.
pub(crate) struct Recorded {
    nodes: Vec<Node>,
    root: Id,
    leaf: Option<Id>,
}

/// Records a forward pass.
pub struct Tape<'h> {
    device: Device,
    host: &'h dyn Host,
    recompute: &'h dyn Fn(Segment) -> bool,
    nodes: RefCell<Vec<Node>>,
    next: Cell<Id>,
    recording: Cell<bool>,
}

impl<'h> Tape<'h> {
    /// A tape that records; `recompute` says which segments run again in the backward pass.
    pub fn new(device: &Device, host: &'h dyn Host, recompute: &'h dyn Fn(Segment) -> bool) -> Self {
        Self::with(device, host, recompute, true)
    }

    /// A tape that records nothing: evaluation and generation.
    pub fn forward_only(device: &Device, host: &'h dyn Host) -> Self {
        Self::with(device, host, &|_| false, false)
    }

    fn with(device: &Device, host: &'h dyn Host, recompute: &'h dyn Fn(Segment) -> bool, on: bool) -> Self {
        let (nodes, next) = (RefCell::default(), Cell::new(0));
        Self { device: device.clone(), host, recompute, nodes, next, recording: Cell::new(on) }
    }

    /// The device work is done on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Whether gradients are wanted.
    pub fn records(&self) -> bool {
        self.recording.get()
    }

    /// A value that came from elsewhere (another stage of the model) and whose gradient goes back there:
    /// [`backward`](Self::backward) returns it.
    pub fn leaf(&self, value: Tensor) -> Var {
        let id = self.records().then(|| self.fresh());
        Var { value, id, again: None }
    }

    /// A parameter's data, for use inside the op that asks.
    pub fn weight(&self, param: &Param) -> Tensor {
        self.host.weight(param)
    }

    /// The ranks that hold experts together, if this one doesn't hold all.
    pub fn expert_ranks(&self) -> Option<&'h dyn ExpertRanks> {
        self.host.expert_ranks()
    }

    /// Runs `body` on `x` apart from this tape, and returns what it made, and the record where one is wanted and anything in
    /// it needs a gradient; that of `x` is among them if `leaf`.
    pub(crate) fn apart(
        &self,
        x: Tensor,
        [records, leaf]: [bool; 2],
        body: impl FnOnce(&Tape<'_>, &Var) -> Var,
    ) -> (Tensor, Option<Recorded>) {
        apart((&self.device, self.host), x, [records && self.records(), leaf], body)
    }

    /// Where a loss that is differentiated while it is computed adds a parameter's gradient.
    pub(crate) fn grad(&self, param: &Param) -> Tensor {
        self.host.grad(param)
    }

    /// Whether `param`'s gradient is wanted here.
    pub(crate) fn trains(&self, param: &Param) -> bool {
        param.trainable && self.records()
    }

    fn fresh(&self) -> Id {
        self.next.replace(self.next.get() + 1)
    }

    /// Records an op's output. `needs`: whether an input wants a gradient; `back` adds to the inputs' gradients,
    /// given the output's in the output's shape.
    pub(crate) fn op(&self, value: Tensor, needs: bool, back: impl FnOnce(&mut Grads<'_>, Tensor) + 'static) -> Var {
        if !(needs && self.records()) {
            return Var::constant(value);
        }
        let (out, shape) = (self.fresh(), value.shape());
        self.nodes.borrow_mut().push(Node::Op { out, shape, back: Box::new(back) });
        Var { value, id: Some(out), again: None }
    }

    /// Says that readers of `var` should make its value again in the backward pass instead of keeping it.
    pub(crate) fn again(&self, mut var: Var, make: impl Fn(&Grads<'_>) -> Tensor + 'static) -> Var {
        if self.records() {
            var.again = Some(Rc::new(Again { make: Box::new(make), made: RefCell::default() }));
        }
        var
    }

    /// Runs a segment of the model: `body` gets the segment's input and must own all else that it uses, for it
    /// may run a second time in the backward pass.
    pub fn segment(
        &self,
        segment: Segment,
        x: Option<Var>,
        body: impl Fn(&Tape<'_>, Option<Var>) -> Var + 'static,
    ) -> Var {
        self.host.enter(segment, Phase::Forward);
        let needs = x.as_ref().is_some_and(Var::needs_grad) || self.host.trains(segment);
        let var = if needs && self.records() && (self.recompute)(segment) {
            self.recording.set(false);
            let value = body(self, x.clone()).value;
            self.recording.set(true);
            let (out, shape) = (self.fresh(), value.shape());
            self.nodes.borrow_mut().push(Node::Replay { segment, x, out, shape, body: Rc::new(body) });
            Var { value, id: Some(out), again: None }
        } else if needs && self.records() {
            self.nodes.borrow_mut().push(Node::Begin(segment));
            let var = body(self, x);
            self.nodes.borrow_mut().push(Node::End(segment));
            var
        } else {
            body(self, x)
        };
        self.host.leave(segment, Phase::Forward);
        var
    }

    /// Differentiates `root`, whose gradient is `seed`, and returns the gradient of `leaf`. Consumes the tape: what an op
    /// saved dies as its gradient is computed.
    pub fn backward(self, root: &Var, seed: Tensor, leaf: Option<&Var>) -> Option<Tensor> {
        let mut grads = Grads { device: self.device.clone(), host: self.host, slots: HashMap::new() };
        grads.put(root.id?, seed);
        run_back(self.nodes.into_inner(), &mut grads);
        grads.slots.remove(&leaf?.id?)
    }
}

fn run_back(nodes: Vec<Node>, grads: &mut Grads<'_>) {
    let host = grads.host;
    for node in nodes.into_iter().rev() {
        match node {
            Node::Op { out, shape, back } => {
                if let Some(dy) = grads.slots.remove(&out) {
                    back(grads, dy.reshape(shape));
                }
            }
            Node::End(segment) => host.enter(segment, Phase::Backward),
            Node::Begin(segment) => host.leave(segment, Phase::Backward),
            Node::Replay { segment, x, out, shape, body } => {
                host.enter(segment, Phase::Backward);
                if let Some(dy) = grads.slots.remove(&out) {
                    let again = Tape::new(&grads.device, host, &|_| false);
                    let input = x.as_ref().map(|x| match x.id {
                        Some(_) => again.leaf(x.value.clone()),
                        None => Var::constant(x.value.clone()),
                    });
                    let y = body(&again, input.clone());
                    let dx = again.backward(&y, dy.reshape(shape), input.as_ref());
                    if let (Some(id), Some(dx)) = (x.and_then(|x| x.id), dx) {
                        grads.put(id, dx);
                    }
                }
                host.leave(segment, Phase::Backward);
            }
        }
    }
}

fn apart(
    (device, host): (&Device, &dyn Host),
    x: Tensor,
    [records, leaf]: [bool; 2],
    body: impl FnOnce(&Tape<'_>, &Var) -> Var,
) -> (Tensor, Option<Recorded>) {
    let tape = Tape::with(device, host, &|_| false, records);
    let x = if leaf { tape.leaf(x) } else { Var::constant(x) };
    let y = body(&tape, &x);
    let nodes = tape.nodes.into_inner();
    (y.value, y.id.map(|root| Recorded { nodes, root, leaf: x.id }))
}

/// Gradients under way through the backward pass.
pub struct Grads<'h> {
    device: Device,
    host: &'h dyn Host,
    slots: HashMap<Id, Tensor>,
}

impl Grads<'_> {
    /// A parameter's data.
    pub(crate) fn weight(&self, param: &Param) -> Tensor {
        self.host.weight(param)
    }

    /// Where a parameter's gradient is added.
    pub(crate) fn grad(&self, param: &Param) -> Tensor {
        self.host.grad(param)
    }

    /// The device work is done on.
    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// As [`Tape::expert_ranks`].
    pub(crate) fn expert_ranks(&self) -> Option<&dyn ExpertRanks> {
        self.host.expert_ranks()
    }

    /// Records `body` on `x` once more: see [`Tape::apart`].
    pub(crate) fn again_apart(
        &self,
        x: Tensor,
        leaf: bool,
        body: impl FnOnce(&Tape<'_>, &Var) -> Var,
    ) -> Option<Recorded> {
        apart((&self.device, self.host), x, [true, leaf], body).1
    }

    /// Differentiates what was recorded apart and returns the gradient of its input, if that was to have one.
    pub(crate) fn run(&self, recorded: Recorded, seed: Tensor) -> Option<Tensor> {
        let mut grads = Grads { device: self.device.clone(), host: self.host, slots: HashMap::new() };
        grads.put(recorded.root, seed);
        run_back(recorded.nodes, &mut grads);
        grads.slots.remove(&recorded.leaf?)
    }

    /// Hands `id` a whole gradient, which may be shared with others.
    pub(crate) fn put(&mut self, id: Id, dx: Tensor) {
        match self.slots.remove(&id) {
            None => drop(self.slots.insert(id, dx)),
            Some(sum) if sum.is_unique() => {
                add_assign(&sum, &dx);
                self.slots.insert(id, sum);
            }
            // Never into a tensor that another reader still holds.
            Some(held) if dx.is_unique() => {
                let dx = dx.reshape(held.shape());
                add_assign(&dx, &held);
                self.slots.insert(id, dx);
            }
            Some(held) => {
                let sum = crate::ops::elementwise::sum_of(&held, &dx);
                self.slots.insert(id, sum);
            }
        }
    }

    /// The gradient of `id` for a kernel that accumulates: the tensor and the `beta` to keep (1) or ignore (0) what it
    /// holds. [`close`](Self::close) must follow.
    pub(crate) fn open(&mut self, id: Id, shape: Shape, dtype: DType) -> (Tensor, f32) {
        match self.slots.remove(&id) {
            Some(sum) if sum.is_unique() => (sum.reshape(shape), 1.0),
            Some(held) => {
                let copy = held.empty_like(Kind::ActGrad);
                crate::ops::elementwise::copy(&copy, &held);
                (copy.reshape(shape), 1.0)
            }
            None => (self.device.empty(shape, dtype, Kind::ActGrad), 0.0),
        }
    }

    /// Ends what [`open`](Self::open) began.
    pub(crate) fn close(&mut self, id: Id, dx: Tensor) {
        self.slots.insert(id, dx);
    }
}
