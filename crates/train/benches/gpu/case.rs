//! A LoRA step (r = 16, every linear layer, bf16, random weights) on a GPU: its time, its memory beside what was planned, and what
//! the GPU's own cublasLt reaches on the same products.
//!
//! Needed work of a step, in floating-point operations: 4 a block parameter and token (forward and input gradient), 12 a pair of
//! query and key and element of the width for attention, 4 a head parameter and label row. Nothing is credited for recomputation,
//! adapters or weights' gradients.

use super::shapes::Shape;
use ferrotune_checkpoint::{Dtype, TensorInfo, TensorSource};
use ferrotune_config::plan::{AdamWPlan, LoraPlan, Tuning};
use ferrotune_data::rows::Row;
use ferrotune_model::{Config, Model};
use ferrotune_tensor::ops::{self, Linear};
use ferrotune_tensor::{DType, Device, Host, Kind, Param, Phase, Profile, Segment, Tape, Tensor, Track, Var};
use ferrotune_train::engine::{Division, Engine, Offload, Sharding};
use ferrotune_train::plan::Candidate;
use ferrotune_train::{Sample, StepOptions, Votes, Work, predict, step};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::ops::Range;
use std::time::Instant;

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) shape: Shape,
    /// Of the one row.
    pub(crate) tokens: usize,
    /// Blocks are computed again in the backward pass.
    pub(crate) recompute: bool,
    /// Steps that are timed.
    pub(crate) steps: u64,
}

/// Steps before the first that is timed: kernels are loaded and algorithms chosen in them.
const WARMING: u64 = 2;
/// Most bytes of weights of a case that is run twice, to compare its bits.
const TWICE: u64 = 4 << 30;

type Any<T> = Result<T, Box<dyn std::error::Error>>;

impl Case {
    fn model(&self) -> Any<Model> {
        let lora = LoraPlan::plain(16);
        Ok(Model::new(&Config::from_json(&self.shape.config())?, DType::Bf16, Some(&Tuning::Lora(lora)), false)?)
    }

    fn options(&self) -> StepOptions {
        StepOptions {
            optimizer: AdamWPlan { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 },
            max_norm: 1.0,
            smoothing: 0.0,
            router_aux_loss: 0.0,
            embedding_alpha: 0.0,
            seed: 1,
            plus: None,
            recompute: self.recompute,
        }
    }

    /// Bytes that the plan foretells.
    pub(crate) fn planned(&self) -> Any<u64> {
        Ok(self.foretold(&self.model()?)?.peak)
    }

    /// What the plan's device has counted.
    fn foretold(&self, model: &Model) -> Any<Track> {
        let layout = ferrotune_dist::Layout::SOLO;
        let candidate = Candidate { layout, sharded: Sharding::Whole, spans: vec![model.span()] };
        let shape = ferrotune_train::Shape { candidate, overlap: true, offload: Offload::default() };
        Ok(predict(model, &self.options(), &shape, &[self.tokens], Profile::Cuda)?.device)
    }

    /// As many layers as fit into `bytes`, all of them at most.
    pub(crate) fn that_fits(self, bytes: u64) -> Any<Option<Self>> {
        let with = |layers| Self { shape: self.shape.with_layers(layers), ..self };
        let (mut fits, mut fails) = (0, self.shape.layers + 1);
        while fits + 1 < fails {
            let middle = fits.midpoint(fails);
            if with(middle).planned()? <= bytes { fits = middle } else { fails = middle }
        }
        Ok((fits > 0).then(|| with(fits)))
    }

    /// What the plan says of it; nothing is run.
    pub(crate) fn on_paper(&self) -> Any<Value> {
        let model = self.model()?;
        let track = self.foretold(&model)?;
        let counted = self.steps(&model, &Device::imitating(Profile::Cuda), &mut Vec::new())?.1;
        Ok(json!({
            "who": "ferrotune", "shape": self.shape.name, "layers": self.shape.layers, "tokens": self.tokens,
            "recompute": self.recompute, "peak": track.peak, "weights": track.live[Kind::Weight as usize],
            "operations": counted.flops / (WARMING + self.steps) as f64, "work": self.work(model.config()), "trained": trained(&model),
            "config": self.shape.config(),
        }))
    }

    /// Runs it.
    pub(crate) fn run(&self, device: &Device) -> Any<Value> {
        let (model, planned, before) = (self.model()?, self.planned()?, device.free_memory());
        device.reserve(planned)?;
        let mut seconds = Vec::new();
        let (losses, track) = self.steps(&model, device, &mut seconds)?;
        let taken = before.zip(device.free_memory()).map(|(before, now)| before - now);
        let weights = track.live[Kind::Weight as usize];
        let again =
            if weights <= TWICE { Some(self.steps(&model, device, &mut Vec::new())?.0 == losses) } else { None };
        seconds.sort_by(f64::total_cmp);
        let median = seconds[seconds.len() / 2];
        let work = self.work(model.config());
        Ok(json!({
            "who": "ferrotune", "shape": self.shape.name, "layers": self.shape.layers, "tokens": self.tokens,
            "recompute": self.recompute, "seconds": median, "tokens_per_second": self.tokens as f64 / median,
            "flops": work / median, "products": products(&model, self.tokens, device)?, "peak": track.peak,
            "weights": weights, "planned": planned, "taken": taken, "same_bits": again, "loss": losses[losses.len() - 2],
            "trained": trained(&model),
            "config": self.shape.config(),
        }))
    }

    /// Losses and norms of the steps, and what lay on the device.
    fn steps(&self, model: &Model, device: &Device, seconds: &mut Vec<f64>) -> Any<(Vec<f64>, Track)> {
        let engine = Engine::new(device, model, Division::solo(model), false);
        engine.load(&Noise::new(model), &[], None, 1)?;
        let vocabulary = model.config().vocab_size as u32;
        let ids: Vec<u32> = (0..self.tokens as u32).map(|i| i.wrapping_mul(7919) % vocabulary).collect();
        let labels: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
        let segments = [self.tokens as u32];
        let row = Row { input_ids: &ids, labels: &labels, segments: &segments, isolated: false, source: (0, 0) };
        let micro_batches = [vec![Sample { row, index: 0 }]];
        let mut found = Vec::new();
        for number in 1..=WARMING + self.steps {
            let work =
                Work { step: number, rate: 1e-4, micro_batches: &micro_batches, scale: None, votes: &Votes::default };
            // A step ends with its loss on the host: all its work is done.
            let start = Instant::now();
            let outcome = step(model, &engine, &self.options(), &work)?;
            if number > WARMING {
                seconds.push(start.elapsed().as_secs_f64());
            }
            found.extend([outcome.loss, outcome.grad_norm]);
        }
        Ok((found, device.track()))
    }

    fn work(&self, config: &Config) -> f64 {
        let (width, tokens) = ((config.num_attention_heads * config.head_dim) as f64, self.tokens as f64);
        let blocks = 4.0 * config.block_parameters() as f64 * tokens;
        let attention = 12.0 * width * tokens * (tokens + 1.0) / 2.0 * config.num_hidden_layers as f64;
        blocks + attention + 4.0 * (config.vocab_size * config.hidden_size) as f64 * (tokens - 1.0)
    }
}

/// Numbers that are trained.
fn trained(model: &Model) -> usize {
    let of = |p: &ferrotune_model::Parameter| p.param.shape.dims().iter().product::<usize>();
    model.parameters().iter().filter(|p| p.param.trainable).map(of).sum()
}

/// Small random weights, the same each time: a stretch of numbers, again and again.
struct Noise {
    shapes: HashMap<String, Vec<usize>>,
    values: Vec<f32>,
}

/// A prime number, so that rows differ.
const STRETCH: usize = 65_537;

impl Noise {
    fn new(model: &Model) -> Self {
        let shapes = model.parameters().iter().map(|p| (p.param.name.clone(), p.param.shape.dims().to_vec())).collect();
        let value = |i: usize| ((i as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32 * 0.08 - 0.04;
        Self { shapes, values: (0..STRETCH).map(value).collect() }
    }
}

impl TensorSource for Noise {
    fn names(&self) -> Vec<String> {
        self.shapes.keys().cloned().collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.shapes.get(name).map(|shape| TensorInfo { shape: shape.clone(), dtype: Dtype::F32 })
    }

    fn read_range(
        &self,
        _: &str,
        range: Range<usize>,
        to: Dtype,
        dst: &mut [u8],
    ) -> Result<(), ferrotune_checkpoint::Error> {
        let (mut at, bytes) = (range.start, to.block().1);
        let mut rest = dst;
        while !rest.is_empty() {
            let from = at % STRETCH;
            let count = (STRETCH - from).min(rest.len() / bytes);
            let (part, more) = rest.split_at_mut(count * bytes);
            ferrotune_checkpoint::encode(to, &self.values[from..from + count], part);
            (at, rest) = (at + count, more);
        }
        Ok(())
    }
}

/// One weight, for a layer by itself.
struct One(Tensor);

impl Host for One {
    fn weight(&self, _: &Param) -> Tensor {
        self.0.clone()
    }

    fn grad(&self, _: &Param) -> Tensor {
        unreachable!("nothing trains")
    }

    fn trains(&self, _: Segment) -> bool {
        false
    }

    fn enter(&self, _: Segment, _: Phase) {}

    fn leave(&self, _: Segment, _: Phase) {}
}

/// Operations a second of cublasLt on the products of the first block's frozen matrices, forward.
fn products(model: &Model, tokens: usize, device: &Device) -> Any<f64> {
    const TIMES: usize = 20;
    let of_block = |p: &&ferrotune_model::Parameter| {
        p.param.name.contains(".layers.0.") && !p.param.trainable && p.param.shape.dims().len() == 2
    };
    let (mut work, mut seconds) = (0.0, 0.0);
    for parameter in model.parameters().iter().filter(of_block) {
        let [out, within] = parameter.param.shape.dims() else { continue };
        let weight = device.zeros([*out, *within], DType::Bf16, Kind::Weight);
        let x = Var::constant(device.zeros([tokens, *within], DType::Bf16, Kind::Act));
        let (host, layer) = (One(weight), Linear { weight: parameter.param.clone(), bias: None, lora: None });
        let once = || drop(ops::linear(&Tape::forward_only(device, &host), &layer, &x, None));
        once();
        device.synchronize()?;
        let start = Instant::now();
        (0..TIMES).for_each(|_| once());
        device.synchronize()?;
        seconds += start.elapsed().as_secs_f64();
        work += TIMES as f64 * 2.0 * (tokens * out * within) as f64;
    }
    Ok(work / seconds)
}
