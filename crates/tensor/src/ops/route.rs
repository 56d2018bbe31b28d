//! The router of a mixture of experts: which experts see a token, and with which weight (Shazeer et al. 2017,
//! <https://arxiv.org/abs/1701.06538>; as Qwen3-MoE and Mixtral have it).
//!
//! x `[t, hidden]`, W `[experts, hidden]`. `p = softmax(x W')` in f32, whatever x's type; the `top_k` largest of a token are its
//! experts, with weights `w_j = p_j`, divided by their sum with `normalize` (`norm_topk_prob`). No token is dropped: each is
//! seen by exactly `top_k` experts, so that the number of rows is known without looking.
//! dlogits: see `cpu::route_backward`; dx = dlogits W, dW += dlogits' x.
//!
//! A [`Balance`] counts who is chosen, and adds a loss that is linear in p.

use super::matmul::{Term, flipped, matmul, plain};
use crate::cpu::{self, Route, Routed};
use crate::cuda;
use crate::device::On;
use crate::{DType, Device, Kind, Param, Profile, Tape, Tensor, Var};
use std::cell::Cell;
use std::rc::Rc;

/// How evenly experts are used, over all routers that are given it: first a census, then a loss.
///
/// While the census is open, each router adds to it how often it chose each expert, and the sums of its probabilities. Closing
/// it sets the loss `sum over tokens of price . p`; the prices are a function of the census of a whole step, so they are
/// constants to the backward pass, as the counts are in Switch Transformers (<https://arxiv.org/abs/2101.03961>, eq. 4 to 6).
#[derive(Debug)]
pub struct Balance {
    /// Choices, then sums of probabilities, f32 `[2, experts]`.
    census: Tensor,
    /// Gradient of the loss with respect to a probability of each expert, f32 `[experts]`.
    prices: Tensor,
    open: Cell<bool>,
}

impl Balance {
    /// An empty census, and no loss.
    pub fn new(device: &Device, experts: usize) -> Self {
        let (census, prices) =
            (device.zeros([2, experts], DType::F32, Kind::Input), device.zeros([experts], DType::F32, Kind::Input));
        Self { census, prices, open: Cell::new(true) }
    }

    /// Experts that are counted.
    pub fn experts(&self) -> usize {
        self.prices.numel()
    }

    /// What was counted: choices of each expert, then sums of its probabilities. Zeros where the device doesn't execute.
    pub fn census(&self) -> Vec<f64> {
        let counted = self.census.to_f32();
        if counted.is_empty() { vec![0.0; self.census.numel()] } else { counted.into_iter().map(f64::from).collect() }
    }

    /// The same as a tensor, f32 `[2, experts]`, to be summed over ranks.
    pub fn counted(&self) -> &Tensor {
        &self.census
    }

    /// Ends the census. `prices`: what the probability of each expert adds to the loss.
    ///
    /// # Panics
    /// If there isn't one for each expert.
    pub fn close(&self, prices: &[f32]) {
        assert_eq!(prices.len(), self.experts(), "a price for each expert");
        self.open.set(false);
        self.prices.write_f32(prices);
    }

    /// Ends the census where it was made, `price` a choice: nobody waits for the device.
    pub fn close_at(&self, price: f64) {
        self.open.set(false);
        let experts = self.experts();
        let choices = self.census.view(0, [1, experts], DType::F32);
        let floats = if self.prices.device().profile() == Profile::Cuda { experts } else { 0 };
        let factors = Tensor::from_f32(self.prices.device(), &vec![price as f32; floats], [floats], Kind::Input);
        match self.prices.runs_on() {
            None => {}
            Some(On::Cpu) => {
                let priced = self.prices.f32_mut().iter_mut().zip(choices.f32());
                priced.for_each(|(to, count)| *to = (price * f64::from(*count)) as f32);
            }
            Some(On::Cuda(gpu)) => gpu.scale_columns(&choices, &factors, None, &self.prices),
        }
    }

    fn count(&self, probabilities: &Tensor, routes: &Routes) {
        match self.census.runs_on().filter(|_| self.open.get()) {
            None => {}
            Some(On::Cpu) => cpu::census(probabilities.f32(), routes.offsets.u32(), self.census.f32_mut()),
            Some(On::Cuda(gpu)) => gpu.census(probabilities, routes, &self.census),
        }
    }
}

/// Where the tokens of a batch go. All are tensors, so nobody has to look at the counts.
#[derive(Debug)]
pub struct Routes {
    /// How they were chosen.
    pub(crate) args: Route,
    /// How many of the rows that there is room for experts see, which is all but where they came from other ranks.
    pub(crate) seen: usize,
    /// `[t, top_k]`
    pub(crate) chosen: Tensor,
    /// `[t, top_k]`
    pub(crate) slots: Tensor,
    /// `[t * top_k]`
    pub(crate) sources: Tensor,
    /// `[experts + 1]`
    pub(crate) offsets: Tensor,
    /// On a GPU, `[tiles, 3]`: the stretches of sorted rows that blocks of a grouped product have. Else nothing.
    pub(crate) tiles: Tensor,
}

impl Routes {
    fn new(device: &Device, args: Route, tokens: usize) -> Self {
        let of = |count: usize| device.empty([count], DType::U32, Kind::Act);
        let rows = tokens * args.top_k;
        let tiles = match device.profile() {
            Profile::Cpu => 0,
            Profile::Cuda => cuda::kernels::expert_tiles(rows, args.experts),
        };
        let (offsets, tiles) = (of(args.experts + 1), of(tiles));
        Self { args, seen: rows, chosen: of(rows), slots: of(rows), sources: of(rows), offsets, tiles }
    }

    /// The ways of rows that came from other ranks, up to `capacity` of them: sorted row i was put at `order[i]`, and the own
    /// experts' rows begin at `offsets`. Each counts as a token with one expert, whose keys of dropout are its own already.
    pub(crate) fn of_rows(device: &Device, capacity: usize, order: &[u32], offsets: &[u32]) -> Self {
        let args = Route { experts: 1, top_k: 1, normalize: false };
        let of = |count: usize| device.empty([count], DType::U32, Kind::Act);
        let tiles = match device.profile() {
            Profile::Cpu => Vec::new(),
            Profile::Cuda => cuda::kernels::tiles_of(capacity, offsets),
        };
        let [chosen, slots, sources] = [capacity; 3].map(of);
        let [borders, list] = [offsets.len(), tiles.len()].map(of);
        let ways = Self { args, seen: order.len(), chosen, slots, sources, offsets: borders, tiles: list };
        let places: Vec<u32> = (0..capacity as u32).collect();
        let write = |to: &Tensor, values: &[u32]| {
            to.with_bytes_mut(|bytes| bytes[..4 * values.len()].copy_from_slice(bytemuck::cast_slice(values)));
        };
        write(&ways.slots, &places);
        write(&ways.chosen, &vec![0; capacity]);
        write(&ways.sources, order);
        write(&ways.offsets, offsets);
        write(&ways.tiles, &tiles);
        ways
    }

    /// Makes zeros of the rows of `x` that no expert sees.
    pub(crate) fn zero_unseen(&self, x: &Tensor) {
        let unseen = x.shape().rows() - self.seen;
        if unseen > 0 {
            x.rows(self.seen, unseen).zero();
        }
    }

    /// Rows that experts see.
    pub fn rows(&self) -> usize {
        self.sources.numel()
    }

    /// How many rows each expert sees; empty where the device doesn't execute. For tests and reports: nothing that is
    /// computed asks for it.
    pub fn counts(&self) -> Vec<u32> {
        self.offsets.to_u32().windows(2).map(|at| at[1] - at[0]).collect()
    }
}

/// Routes the tokens of `x`; gives the weights, `[t, top_k]` in f32, and the ways.
///
/// # Panics
/// If `balance` counts another number of experts.
pub fn route(t: &Tape<'_>, x: &Var, router: &Param, args: Route, balance: Option<&Rc<Balance>>) -> (Var, Rc<Routes>) {
    let (device, tokens) = (t.device(), x.value.shape().rows());
    assert!(balance.is_none_or(|balance| balance.experts() == args.experts), "a census of {} experts", args.experts);
    let weight = t.weight(router);
    assert_eq!(weight.dims()[0], args.experts, "a row of the router for each expert");
    let logits = device.empty([tokens, args.experts], DType::F32, Kind::Work);
    let probabilities = device.empty([tokens, args.experts], DType::F32, Kind::Act);
    let weights = device.empty([tokens, args.top_k], DType::F32, Kind::Act);
    let routes = Rc::new(Routes::new(device, args, tokens));
    let counters = match device.profile() {
        Profile::Cpu => 0,
        Profile::Cuda => cuda::kernels::route_workspace(routes.rows(), args.experts),
    };
    let counts = device.empty([counters], DType::U32, Kind::Work);
    matmul(&logits, 0.0, Term::new(1.0, plain(&x.value), flipped(&weight)), None, None);
    match weights.runs_on() {
        None => {}
        Some(On::Cpu) => {
            let mut out = Routed {
                probabilities: probabilities.f32_mut(),
                weights: weights.f32_mut(),
                chosen: routes.chosen.u32_mut(),
                slots: routes.slots.u32_mut(),
                sources: routes.sources.u32_mut(),
                offsets: routes.offsets.u32_mut(),
            };
            cpu::route(logits.f32(), args, &mut out);
        }
        Some(On::Cuda(gpu)) => gpu.route(&logits, [&probabilities, &weights], &routes, &counts),
    }
    balance.iter().for_each(|balance| balance.count(&probabilities, &routes));
    let balance = balance.cloned();
    let (saved, x_id, x_dtype) = (x.save(), x.id(), x.value.dtype());
    let (router, ways) = (router.clone(), routes.clone());
    let var = t.op(weights, x.needs_grad() || t.trains(&router), move |g, dw| {
        let dlogits = probabilities.empty_like(Kind::Work);
        match dlogits.runs_on() {
            None => {}
            Some(On::Cpu) => {
                let (p, chosen) = (probabilities.f32(), ways.chosen.u32());
                let prices = balance.as_ref().map(|balance| balance.prices.f32());
                cpu::route_backward(args, (p, chosen), (dw.f32(), prices), dlogits.f32_mut());
            }
            Some(On::Cuda(gpu)) => {
                let prices = balance.as_ref().map(|balance| &balance.prices);
                gpu.route_backward(&probabilities, &ways, (&dw, prices), &dlogits);
            }
        }
        if router.trainable {
            let x = saved.get(g);
            matmul(&g.grad(&router), 1.0, Term::new(1.0, flipped(&dlogits), plain(&x)), None, None);
        }
        if let Some(id) = x_id {
            let weight = g.weight(&router);
            let (dx, beta) = g.open(id, [tokens, weight.dims()[1]].into(), x_dtype);
            matmul(&dx, beta, Term::new(1.0, plain(&dlogits), plain(&weight)), None, None);
            g.close(id, dx);
        }
    });
    (var, routes)
}
