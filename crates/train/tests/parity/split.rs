//! One short run of a small model under any split, and what came of it.

use ferrotune_checkpoint::{Dtype, TensorInfo, TensorSource, encode};
use ferrotune_config::plan::{AdamWPlan, Plan, Tuning};
use ferrotune_config::{Recipe, Verb};
use ferrotune_data::rows::Row;
use ferrotune_dist::{Comm, Layout, Mesh, threads};
use ferrotune_model::{Config, Model};
use ferrotune_tensor::{DType, Device};
use ferrotune_train::engine::{Division, Engine, Offload, Sharding};
use ferrotune_train::{Fresh, Order, Sample, Share, StepOptions, Votes, Work, step};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

const ROWS: usize = 32;
const ROWS_PER_STEP: usize = 16;
const STEPS: u64 = 6;
const VOCABULARY: u32 = 96;
/// Of learning. With 1e-2 a step of Mixtral's full training is so steep that one rank by itself, with its rows in other
/// micro-batches, had norms that differ by 3e-6 to 2.4e-5; with this one by 2e-6.
const RATE: f64 = 3e-3;

/// What is trained.
pub(crate) struct Case {
    pub(crate) tuning: Tuning,
    pub(crate) tied: bool,
    pub(crate) pure_bf16: bool,
    pub(crate) experts: Experts,
    /// Of models that have experts.
    pub(crate) family: Family,
    /// Weight of the loss on the balance of experts.
    pub(crate) router_aux_loss: f64,
}

/// Whether blocks have experts, and how rows are spread over them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Experts {
    None,
    /// As the router has it.
    Spread,
    /// Every token's heaviest expert is the same one.
    OneHasAll,
    /// It is every token's only one.
    OneAlone,
}

/// How experts lie in a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// In place of the MLP.
    Qwen3,
    /// Beside an expert that sees every token.
    Qwen2,
    /// In every block, under names of their own.
    Mixtral,
}

/// The expert that has all.
const FAVOURITE: usize = 2;

/// First weights in which the residual stream's first element is large in all tokens, and the routers look at it alone.
struct Biased(Fresh);

impl TensorSource for Biased {
    fn names(&self) -> Vec<String> {
        self.0.names()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.0.info(name)
    }

    fn read_range(
        &self,
        name: &str,
        range: Range<usize>,
        to: Dtype,
        dst: &mut [u8],
    ) -> ferrotune_checkpoint::Result<()> {
        let shape = self.0.info(name).unwrap().shape;
        let mut values = self.0.read_f32(name)?;
        if name == "model.embed_tokens.weight" {
            values.chunks_exact_mut(shape[1]).for_each(|row| row[0] = 2.0);
        }
        if name.ends_with(".gate.weight") {
            values
                .chunks_exact_mut(shape[1])
                .enumerate()
                .for_each(|(e, row)| row[0] = if e == FAVOURITE { 9.0 } else { -1.0 });
        }
        encode(to, &values[range], dst);
        Ok(())
    }
}

/// How it is divided.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Split {
    #[expect(dead_code, reason = "printed when a check fails")]
    pub(crate) name: &'static str,
    pub(crate) layout: Layout,
    pub(crate) sharding: Sharding,
    pub(crate) micro_batch: usize,
    pub(crate) recompute: bool,
    pub(crate) overlap: bool,
    pub(crate) offload: Offload,
    pub(crate) budget: Option<usize>,
    /// AdamW's. A gradient that is zero but for rounding becomes a whole step of random sign when it is divided by its own
    /// size; weights can be compared to 1e-5 only where `eps` is well above such gradients (with 1e-6, one weight in a
    /// hundred thousand differed by 2e-4, while losses agreed to 5e-8).
    pub(crate) eps: f64,
}

impl Split {
    pub(crate) fn solo() -> Self {
        Self {
            name: "solo",
            layout: Layout::SOLO,
            sharding: Sharding::Whole,
            micro_batch: 2,
            recompute: false,
            overlap: true,
            offload: Offload::default(),
            budget: None,
            eps: 1e-3,
        }
    }
}

/// What came of a run.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Curve {
    pub(crate) losses: Vec<f64>,
    /// On the balance of experts, where it counts.
    pub(crate) router_losses: Vec<f64>,
    norms: Vec<f64>,
    weights: BTreeMap<String, Vec<f32>>,
}

impl Curve {
    /// The largest relative difference of a loss or norm, or of a weight from the largest of its tensor.
    pub(crate) fn gap(&self, other: &Self) -> f64 {
        assert_eq!(self.weights.keys().collect::<Vec<_>>(), other.weights.keys().collect::<Vec<_>>());
        let weights = self.weights.iter().map(|(name, a)| {
            let b = &other.weights[name];
            let scale = b.iter().fold(1e-30, |m, v| v.abs().max(m));
            a.iter().zip(b).map(|(a, b)| f64::from((a - b).abs() / scale)).fold(0.0, f64::max)
        });
        weights.fold(self.curve_gap(other), f64::max)
    }

    /// The same of losses and norms alone.
    pub(crate) fn curve_gap(&self, other: &Self) -> f64 {
        let numbers = |c: &Self| [&c.losses[..], &c.router_losses[..], &c.norms[..]].concat();
        let pairs = numbers(self).into_iter().zip(numbers(other));
        pairs.map(|(a, b)| (a - b).abs() / b.abs()).fold(0.0, f64::max)
    }
}

/// Rows of 1 to 48 tokens; some have no label.
struct Rows(Vec<(Vec<u32>, Vec<i32>, [u32; 1])>);

impl Rows {
    fn new() -> Self {
        let row = |i: usize| {
            let len = 1 + i * 29 % 48;
            let ids: Vec<u32> = (0..len).map(|t| ((t * t + 7 * i + 3) as u32).wrapping_mul(31) % VOCABULARY).collect();
            let label = |t: usize| if i % 7 == 3 || t < len / 3 { -100 } else { ids[t] as i32 };
            let labels = (0..len).map(label).collect();
            (ids, labels, [len as u32])
        };
        Self((0..ROWS).map(row).collect())
    }

    fn sample(&self, index: usize) -> Sample<'_> {
        let (input_ids, labels, segments) = &self.0[index];
        Sample { row: Row { input_ids, labels, segments, isolated: false, source: (0, index as u64) }, index }
    }
}

fn config(case: &Case) -> Config {
    let each = if case.experts == Experts::OneAlone { 1 } else { 2 };
    let mut json = serde_json::json!({
        "model_type": "qwen3", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": VOCABULARY,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 64, "tie_word_embeddings": case.tied,
    });
    let with_experts = match case.family {
        _ if case.experts == Experts::None => serde_json::json!({}),
        Family::Qwen3 => serde_json::json!({
            "model_type": "qwen3_moe", "num_experts": 6, "moe_intermediate_size": 24, "norm_topk_prob": true, "mlp_only_layers": [1],
        }),
        Family::Qwen2 => serde_json::json!({
            "model_type": "qwen2_moe", "num_experts": 6, "moe_intermediate_size": 24, "norm_topk_prob": false,
            "shared_expert_intermediate_size": 40, "mlp_only_layers": [1],
        }),
        Family::Mixtral => serde_json::json!({ "model_type": "mixtral", "num_local_experts": 6 }),
    };
    json["num_experts_per_tok"] = each.into();
    json.as_object_mut().unwrap().extend(with_experts.as_object().unwrap().clone());
    Config::from_json(&json).unwrap()
}

/// The model's segments in stages of about the same number.
fn spans(segments: usize, stages: usize) -> Vec<Range<usize>> {
    (0..stages).map(|i| i * segments / stages..(i + 1) * segments / stages).collect()
}

fn plan(micro_batch: usize, accumulation: usize) -> Plan {
    let text = format!(
        "model_name_or_path: m\nstage: sft\ndo_train: true\nfinetuning_type: lora\ndataset: d\ntemplate: default\noutput_dir: o\n\
         num_train_epochs: 9\nper_device_train_batch_size: {micro_batch}\ngradient_accumulation_steps: {accumulation}\n"
    );
    Plan::resolve(&Recipe::parse("test.yaml", text.as_bytes()).unwrap(), Verb::Train).unwrap().0
}

/// Trains on as many ranks as the split has; all must tell the same.
pub(crate) fn curve(case: &Case, split: &Split) -> Curve {
    let mut curves = threads::run(split.layout.world(), |comm| one_rank(case, split, comm));
    let first = curves.remove(0);
    for other in curves {
        let told = |curve: &Curve| [curve.losses.clone(), curve.router_losses.clone(), curve.norms.clone()];
        assert_eq!(told(&other), told(&first), "{split:?}: all ranks read one curve");
    }
    first
}

pub(crate) fn model(case: &Case) -> Model {
    let dtype = if case.pure_bf16 { DType::Bf16 } else { DType::F32 };
    Model::new(&config(case), dtype, Some(&case.tuning), case.pure_bf16).unwrap()
}

/// A rank's engine with first weights.
pub(crate) fn engine(case: &Case, split: &Split, model: &Model, comm: Rc<dyn Comm>) -> Engine {
    let mesh = Mesh::new(comm, split.layout);
    let division = Division {
        mesh,
        sharding: split.sharding,
        spans: spans(model.segments(), split.layout.stages),
        overlap: split.overlap,
        offload: split.offload,
    };
    let engine = Engine::new(&Device::cpu(), model, division, false);
    let fresh = Fresh::new(model, 0.2, 5);
    match case.experts {
        Experts::OneHasAll | Experts::OneAlone => engine.load(&Biased(fresh), &[], None, 7).unwrap(),
        Experts::None | Experts::Spread => engine.load(&fresh, &[], None, 7).unwrap(),
    }
    engine
}

pub(crate) fn options(case: &Case, split: &Split) -> StepOptions {
    StepOptions {
        optimizer: AdamWPlan { beta1: 0.9, beta2: 0.99, eps: split.eps, weight_decay: 0.1 },
        max_norm: 1.0,
        smoothing: 0.0,
        router_aux_loss: case.router_aux_loss,
        embedding_alpha: 0.0,
        seed: 3,
        plus: None,
        recompute: split.recompute,
    }
}

fn one_rank(case: &Case, split: &Split, comm: Rc<dyn Comm>) -> Curve {
    let model = model(case);
    let engine = engine(case, split, &model, comm);
    let mesh = &engine.division().mesh;
    let ranks = mesh.layout().data_ranks();
    let share = Share { rank: mesh.data_rank(), ranks, of_a_step: ranks };
    let plan = plan(split.micro_batch, ROWS_PER_STEP / split.micro_batch / share.ranks);
    let order = Order::new(ROWS, &plan.train, split.budget, share);
    let options = options(case, split);
    let rows = Rows::new();
    let mut curve =
        Curve { losses: Vec::new(), router_losses: Vec::new(), norms: Vec::new(), weights: BTreeMap::new() };
    for number in 1..=STEPS {
        let mine = order.step_rows(number, |row| rows.0[row].0.len()).expect("all rows are there");
        let micro_batches: Vec<Vec<Sample<'_>>> =
            mine.into_iter().map(|batch| batch.into_iter().map(|row| rows.sample(row)).collect()).collect();
        let work =
            Work { step: number, rate: RATE, micro_batches: &micro_batches, scale: None, votes: &Votes::default };
        let outcome = step(&model, &engine, &options, &work).unwrap();
        curve.losses.push(outcome.loss);
        curve.router_losses.extend(outcome.router_loss);
        curve.norms.push(outcome.grad_norm);
    }
    for (number, parameter) in model.parameters().iter().enumerate().filter(|(_, p)| p.param.trainable) {
        if let Some(value) = engine.gather(number).unwrap() {
            curve.weights.insert(parameter.param.name.clone(), value.to_f32());
        }
    }
    curve
}
