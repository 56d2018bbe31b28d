//! What lies between a router and the sum of its experts: rows sorted by expert, products of each expert's rows with its own
//! matrix, and the weighted sum.
//!
//! `t` tokens, `k` experts each, so `t k` sorted rows. Matrices of all experts lie in one parameter, `[experts, out, in]`; so
//! does a low-rank update, A `[experts, r, in]` and B `[experts, out, r]`. For the rows of expert e a
//! [`grouped_linear`] is the layer of `linear.rs` with W_e, A_e and B_e.

use super::linear::{Lora, operand};
use super::matmul::as_type;
use super::noise::{Noise, dropped};
use super::route::Routes;
use crate::cpu::{self, Stack};
use crate::cuda::kernels::{GroupedTerm, grouped_type};
use crate::device::On;
use crate::tape::{Grads, Saved};
use crate::{DType, Kind, Param, Profile, Shape, Tape, Tensor, Var};
use std::rc::Rc;

/// The same linear layer of each expert.
#[derive(Debug, Clone)]
pub struct GroupedLinear {
    /// `[experts, out, in]`.
    pub weight: Param,
    /// Low-rank update; without DoRA.
    pub lora: Option<Lora>,
}

/// Brings each token to its experts: rows sorted by expert, `[t k, width]`. They are made again in the backward pass where a
/// reader saved them. dx is the sum of a token's rows.
pub fn dispatch(t: &Tape<'_>, x: &Var, routes: &Rc<Routes>) -> Var {
    let rows = gathered(&x.value, routes);
    let (id, shape) = (x.id(), x.value.shape());
    let ways = routes.clone();
    let var = t.op(rows, x.needs_grad(), move |g, drows| {
        let Some(id) = id else { return };
        g.put(id, summed(&drows, &ways, shape));
    });
    let (saved, ways) = (x.save(), routes.clone());
    t.again(var, move |g| gathered(&saved.get(g), &ways))
}

/// Each token's rows, sorted by expert.
pub(super) fn gathered(x: &Tensor, routes: &Routes) -> Tensor {
    let rows = x.device().empty([routes.rows(), x.shape().last()], x.dtype(), Kind::Act);
    gather_into(x, routes, &rows);
    rows
}

/// The same into a tensor that is there.
pub(super) fn gather_into(x: &Tensor, routes: &Routes, rows: &Tensor) {
    match rows.runs_on() {
        None => {}
        Some(On::Cpu) => cpu::gather_rows(x.data(), routes.sources.u32(), rows.data_mut(), x.shape().last()),
        Some(On::Cuda(gpu)) => gpu.gather_rows(x, &routes.sources, rows),
    }
}

/// The sum of each token's sorted rows, `shape`.
pub(super) fn summed(rows: &Tensor, routes: &Routes, shape: Shape) -> Tensor {
    let x = rows.device().empty(shape, rows.dtype(), Kind::ActGrad);
    match x.runs_on() {
        None => {}
        Some(On::Cpu) => cpu::combine(rows.data(), routes.slots.u32(), None, x.data_mut(), shape.last()),
        Some(On::Cuda(gpu)) => gpu.combine(rows, routes, None, &x),
    }
    x
}

/// Sums what a token's experts made of it: `y[t] = sum_j weights[t, j] rows[slot(t, j)]`, `[t, width]` in the rows' type.
pub fn combine(t: &Tape<'_>, rows: &Var, weights: &Var, routes: &Rc<Routes>) -> Var {
    let (width, tokens) = (rows.value.shape().last(), weights.value.shape().rows());
    let y = t.device().empty([tokens, width], rows.value.dtype(), Kind::Act);
    match y.runs_on() {
        None => {}
        Some(On::Cpu) => {
            let by = Some(weights.value.f32());
            cpu::combine(rows.value.data(), routes.slots.u32(), by, y.data_mut(), width);
        }
        Some(On::Cuda(gpu)) => gpu.combine(&rows.value, routes, Some(&weights.value), &y),
    }
    let (made, by, ways) = (rows.value.clone(), weights.value.clone(), routes.clone());
    let (rows_id, weights_id) = (rows.id(), weights.id());
    t.op(y, rows.needs_grad() || weights.needs_grad(), move |g, dy| {
        let (drows, dweights) = (made.empty_like(Kind::ActGrad), by.empty_like(Kind::ActGrad));
        match dy.runs_on() {
            None => {}
            Some(On::Cpu) => {
                let to = (drows.data_mut(), dweights.f32_mut());
                cpu::combine_backward((dy.data(), made.data()), (ways.slots.u32(), by.f32()), to, width);
            }
            Some(On::Cuda(gpu)) => gpu.combine_backward([&dy, &made, &by], &ways, [&drows, &dweights]),
        }
        if let Some(id) = rows_id {
            g.put(id, drows);
        }
        if let Some(id) = weights_id {
            g.put(id, dweights);
        }
    })
}

/// The keys of the sorted rows' dropout: each expert drops other elements of a token.
pub(super) fn noise_of(noise: &Noise, routes: &Routes) -> Noise {
    let (samples, positions) = (routes.sources.empty_like(Kind::Work), routes.sources.empty_like(Kind::Work));
    match samples.runs_on() {
        None => {}
        Some(On::Cpu) => {
            let experts = routes.args.experts as u32;
            let to = (samples.u32_mut(), positions.u32_mut());
            for (i, (&slot, &expert)) in routes.slots.u32().iter().zip(routes.chosen.u32()).enumerate() {
                let (token, slot) = (i / routes.args.top_k, slot as usize);
                to.0[slot] = noise.samples.u32()[token];
                to.1[slot] = noise.positions.u32()[token].wrapping_mul(experts).wrapping_add(expert);
            }
        }
        // The site is that of whoever draws.
        Some(On::Cuda(gpu)) => gpu.expert_noise(&noise.source(0), routes, [&samples, &positions]),
    }
    let lengths = noise.lengths.clone();
    Noise { seed: noise.seed, step: noise.step, samples, positions, lengths, embedding_alpha: noise.embedding_alpha }
}

/// Applies `layer` to rows that [`dispatch`] has sorted.
pub fn grouped_linear(
    t: &Tape<'_>,
    layer: &GroupedLinear,
    x: &Var,
    routes: &Rc<Routes>,
    noise: Option<&Rc<Noise>>,
) -> Var {
    let (device, rows) = (t.device(), x.value.shape().rows());
    let weight = operand(device, &t.weight(&layer.weight), x.value.dtype());
    let y = device.empty([rows, weight.dims()[1]], x.value.dtype(), Kind::Act);
    let drops = layer.lora.as_ref().is_some_and(|lora| lora.dropout > 0.0);
    let noise = noise.filter(|_| drops).map(|noise| noise_of(noise, routes));
    let main = Term { alpha: 1.0, a: &x.value, b: &weight, trans: true };
    let u = layer.lora.as_ref().map(|lora| {
        let (a, b) = (t.weight(&lora.a), t.weight(&lora.b));
        let u = device.empty([rows, a.dims()[1]], DType::F32, Kind::Act);
        let input = dropped(&x.value, lora, noise.as_ref());
        multiply(routes, &u, 0.0, Term { alpha: 1.0, a: &input, b: &a, trans: true }, None);
        multiply(routes, &y, 0.0, main, Some(Term { alpha: lora.scale, a: &u, b: &b, trans: true }));
        u
    });
    if u.is_none() {
        multiply(routes, &y, 0.0, main, None);
    }
    let adapter = layer.lora.as_ref().map(|lora| [&lora.a, &lora.b]);
    let trains = adapter.into_iter().flatten().chain([&layer.weight]).any(|param| t.trains(param));
    let reads_x = layer.lora.is_some() || layer.weight.trainable;
    let back =
        Back { layer: layer.clone(), routes: routes.clone(), x: reads_x.then(|| x.save()), x_id: x.id(), u, noise };
    t.op(y, x.needs_grad() || trains, move |g, dy| back.run(g, &dy))
}

/// `alpha a[rows of e] op(b[e])`.
#[derive(Clone, Copy)]
struct Term<'a> {
    alpha: f32,
    /// `[rows, k]`
    a: &'a Tensor,
    /// `[experts, n, k]` if `trans`, else `[experts, k, n]`.
    b: &'a Tensor,
    trans: bool,
}

impl Term<'_> {
    fn sizes(&self) -> [usize; 3] {
        let &[_, rows, columns] = self.b.dims() else { panic!("a stack of matrices, not {:?}", self.b) };
        let (n, k) = if self.trans { (rows, columns) } else { (columns, rows) };
        assert_eq!(k, self.a.shape().last(), "inner sizes of {:?} x {:?}", self.a, self.b);
        [self.a.shape().rows(), n, k]
    }

    fn stack(&self) -> Stack<'_> {
        let k = self.sizes()[2];
        Stack { alpha: self.alpha, a: self.a.data(), b: self.b.data(), trans: self.trans, k }
    }
}

/// `c = beta c + first (+ second)`, an expert's rows at a time.
fn multiply(routes: &Routes, c: &Tensor, beta: f32, first: Term<'_>, second: Option<Term<'_>>) {
    for term in [Some(first), second].into_iter().flatten() {
        let [m, n, k] = term.sizes();
        assert_eq!((c.shape().rows(), c.shape().last()), (m, n), "result of a grouped product");
        c.device().count_flops(2.0 * routes.seen as f64 * n as f64 * k as f64);
    }
    if beta == 0.0 {
        routes.zero_unseen(c);
    }
    if c.device().profile() == Profile::Cuda {
        return on_gpu(routes, (c, beta), first, second);
    }
    if c.executes() {
        let second = second.as_ref().map(Term::stack);
        cpu::grouped(routes.offsets.u32(), c.shape().last(), beta, &first.stack(), second.as_ref(), c.data_mut());
    }
}

/// The same on a GPU, whose matrix instructions take operands of one type.
fn on_gpu(routes: &Routes, (c, beta): (&Tensor, f32), first: Term<'_>, second: Option<Term<'_>>) {
    let terms = [Some(first), second];
    let types: Vec<DType> =
        terms.iter().flatten().flat_map(|term| [term.a, term.b]).chain([c]).map(Tensor::dtype).collect();
    let widths: Vec<usize> = terms.iter().flatten().map(|term| term.sizes()[2]).chain([c.shape().last()]).collect();
    let of = grouped_type(&types, &widths);
    let taken = |x: &Tensor| of.map_or_else(|| x.clone(), |of| as_type(x, of));
    let operands = terms.map(|term| term.map(|term| (taken(term.a), taken(term.b), term)));
    if let Some(On::Cuda(gpu)) = c.runs_on() {
        let given = operands.each_ref().map(|operand| {
            let (a, b, term) = operand.as_ref()?;
            Some(GroupedTerm { alpha: term.alpha, a, b, k: term.sizes()[2] })
        });
        let [first_given, second_given] = given.each_ref().map(Option::as_ref);
        gpu.grouped(routes, (c, beta), [first_given, second_given], (first.trans, of.is_some()));
    }
}

/// `c[e] += alpha a[rows of e]' b[rows of e]`.
fn add_outer(routes: &Routes, c: &Tensor, alpha: f32, a: &Tensor, b: &Tensor) {
    let (m, n) = (a.shape().last(), b.shape().last());
    c.device().count_flops(2.0 * routes.seen as f64 * m as f64 * n as f64);
    if c.device().profile() == Profile::Cuda {
        let of = grouped_type(&[a.dtype(), b.dtype()], &[m, n]);
        let [a, b] = [a, b].map(|x| of.map_or_else(|| x.clone(), |of| as_type(x, of)));
        if let Some(On::Cuda(gpu)) = c.runs_on() {
            gpu.grouped_outer(routes, c, (alpha, [&a, &b]), of.is_some());
        }
        return;
    }
    if c.executes() {
        cpu::grouped_outer(routes.offsets.u32(), (m, n), alpha, (a.data(), b.data()), c.f32_mut());
    }
}

struct Back {
    layer: GroupedLinear,
    routes: Rc<Routes>,
    x: Option<Saved>,
    x_id: Option<u32>,
    u: Option<Tensor>,
    noise: Option<Noise>,
}

impl Back {
    fn run(self, g: &mut Grads<'_>, dy: &Tensor) {
        let x = self.x.as_ref().map(|x| x.get(g));
        if let (Some(x), true) = (&x, self.layer.weight.trainable) {
            add_outer(&self.routes, &g.grad(&self.layer.weight), 1.0, dy, x);
        }
        let du = self.layer.lora.as_ref().zip(self.u.as_ref()).zip(x.as_ref()).map(|((lora, u), x)| {
            let b = g.weight(&lora.b);
            let du = g.device().empty(u.shape(), DType::F32, Kind::Work);
            multiply(&self.routes, &du, 0.0, Term { alpha: lora.scale, a: dy, b: &b, trans: false }, None);
            if lora.b.trainable {
                add_outer(&self.routes, &g.grad(&lora.b), lora.scale, dy, u);
            }
            if lora.a.trainable {
                let input = dropped(x, lora, self.noise.as_ref());
                add_outer(&self.routes, &g.grad(&lora.a), 1.0, &du, &input);
            }
            (lora, du)
        });
        if let Some(id) = self.x_id {
            self.input_gradient(g, dy, id, du);
        }
    }

    fn input_gradient(&self, g: &mut Grads<'_>, dy: &Tensor, id: u32, du: Option<(&Lora, Tensor)>) {
        let weight = operand(g.device(), &g.weight(&self.layer.weight), dy.dtype());
        let shape = [dy.shape().rows(), weight.dims()[2]];
        let (dx, beta) = g.open(id, shape.into(), dy.dtype());
        let main = Term { alpha: 1.0, a: dy, b: &weight, trans: false };
        match du {
            None => multiply(&self.routes, &dx, beta, main, None),
            Some((lora, du)) => {
                let a = g.weight(&lora.a);
                let low = Term { alpha: 1.0, a: &du, b: &a, trans: false };
                if self.noise.is_some() {
                    multiply(&self.routes, &dx, beta, main, None);
                    let through = g.device().empty(shape, dy.dtype(), Kind::Work);
                    multiply(&self.routes, &through, 0.0, low, None);
                    super::elementwise::add_assign(&dx, &dropped(&through, lora, self.noise.as_ref()));
                } else {
                    multiply(&self.routes, &dx, beta, main, Some(low));
                }
            }
        }
        g.close(id, dx);
    }
}
