//! The decoder of the Llama line: embedding, blocks of attention and SwiGLU MLP with RMSNorm before each, head.
//!
//! Written forward only. `t` is a token of the flat batch, so a hidden state is `[t, hidden_size]`; queries are
//! `[t, num_attention_heads * head_dim]`, keys and values `[t, num_key_value_heads * head_dim]`. Each block is a segment of
//! the tape: gathering of weights and recomputation hang there, and nothing of it is seen here.

use crate::config::Moe;
use crate::experts::{Experts, Mixture, Shared};
use crate::parameters::{Collector, New, Parameter, Role, Source};
use crate::{Batch, Config, ModelError, Trainables};
use ferrotune_config::plan::Tuning;
use ferrotune_tensor::ops::{self, GroupedLinear, Linear, Lora};
use ferrotune_tensor::{DType, Param, Segment, Shape, Tape, Tensor, Var};
use std::ops::Range;
use std::rc::Rc;

/// What stands behind the attention of a block.
enum Mlp {
    Dense(Dense),
    Experts(Mixture),
}

/// Gate, up and down projection: `down(silu(gate(x)) * up(x))`.
pub(crate) struct Dense {
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl Dense {
    pub(crate) fn forward(&self, t: &Tape<'_>, x: &Var, batch: &Batch) -> Var {
        let noise = batch.noise.as_ref();
        let gate = ops::linear(t, &self.gate, x, noise);
        let up = ops::linear(t, &self.up, x, noise);
        ops::linear(t, &self.down, &ops::swiglu(t, &gate, &up), noise)
    }
}

/// Grouped-query attention with rotary positions; Qwen3 normalises each head of q and k first.
struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    q_norm: Option<Param>,
    k_norm: Option<Param>,
    eps: f32,
    shape: ops::Heads,
    layer: usize,
}

impl Attention {
    fn forward(&self, t: &Tape<'_>, x: &Var, batch: &Batch) -> Var {
        let noise = batch.noise.as_ref();
        let q = self.positioned(t, ops::linear(t, &self.q, x, noise), self.q_norm.as_ref(), batch);
        let k = self.positioned(t, ops::linear(t, &self.k, x, noise), self.k_norm.as_ref(), batch);
        let v = ops::linear(t, &self.v, x, noise);
        let o = match &batch.cache {
            None => ops::attention(t, &q, &k, &v, &batch.spans, self.shape),
            Some((cache, parts)) => {
                let (k, v) = cache.append(self.layer, parts, &k.value, &v.value);
                ops::attention(t, &q, &Var::constant(k), &Var::constant(v), &batch.spans, self.shape)
            }
        };
        ops::linear(t, &self.o, &o, noise)
    }

    fn positioned(&self, t: &Tape<'_>, x: Var, norm: Option<&Param>, batch: &Batch) -> Var {
        match norm {
            Some(weight) => ops::norm_rope(t, &x, weight, self.eps, &batch.rotary),
            None => ops::rope(t, x, &batch.rotary, self.shape.head_dim),
        }
    }
}

/// `h = x + attention(norm(x)); h + mlp(norm(h))`.
struct Block {
    input_norm: Param,
    attention: Attention,
    post_norm: Param,
    mlp: Mlp,
    eps: f32,
}

impl Block {
    /// Whether anything of it trains that experts stand behind.
    fn trains_before_experts(&self) -> bool {
        let Attention { q, k, v, o, q_norm, k_norm, .. } = &self.attention;
        let norms = [Some(&self.input_norm), Some(&self.post_norm), q_norm.as_ref(), k_norm.as_ref()];
        let biases = [q, k, v, o].map(|linear| linear.bias.as_ref());
        let params = [q, k, v, o].map(|linear| Some(&linear.weight));
        let own = norms.into_iter().chain(biases).chain(params).flatten().any(|param| param.trainable);
        own || [q, k, v, o].iter().any(|linear| linear.lora.is_some())
    }

    fn forward(&self, t: &Tape<'_>, x: &Var, batch: &Batch) -> Var {
        let attended = self.attention.forward(t, &ops::rmsnorm(t, x, &self.input_norm, self.eps), batch);
        let h = ops::add(t, x, attended);
        let x = ops::rmsnorm(t, &h, &self.post_norm, self.eps);
        let out = match &self.mlp {
            Mlp::Dense(mlp) => mlp.forward(t, &x, batch),
            Mlp::Experts(mixture) => mixture.forward(t, &x, batch),
        };
        ops::add(t, &h, out)
    }
}

/// What training asks of the experts of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertTraining {
    /// Something of the experts trains.
    pub trains: bool,
    /// Something before them trains, so that a gradient goes through them.
    pub passes: bool,
    /// They draw dropout.
    pub drops: bool,
}

/// A decoder with a language-model head.
pub struct Model {
    config: Config,
    activations: DType,
    parameters: Vec<Parameter>,
    embed: Param,
    blocks: Vec<Rc<Block>>,
    norm: Param,
    head: Param,
}

/// How the loss is computed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossOptions {
    /// What the sum over label rows is multiplied with: 1 / label tokens of the step.
    pub scale: f32,
    /// Share of the target spread over the vocabulary.
    pub smoothing: f32,
}

impl Model {
    /// Puts a model together. `dtype` is that of frozen weights; what trains is in f32 unless `pure` keeps `dtype`.
    pub fn new(config: &Config, dtype: DType, tuning: Option<&Tuning>, pure: bool) -> Result<Self, ModelError> {
        let frozen = Builder::new(config, dtype, Trainables::none(), pure).build();
        let Some(tuning) = tuning else { return Ok(frozen) };
        let names: Vec<String> = frozen.parameters.iter().map(|p| p.param.name.clone()).collect();
        let trainables = Trainables::resolve(tuning, config, &names)?;
        Ok(Builder::new(config, dtype, trainables, pure).build())
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Element type of activations.
    pub fn activations(&self) -> DType {
        self.activations
    }

    /// All parameters, in one stable order; a parameter's id is its place.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Number of segments: embedding, blocks, head.
    pub fn segments(&self) -> usize {
        self.blocks.len() + 2
    }

    /// Whether `segment` is a block, and so worth recomputing.
    pub fn is_block(&self, segment: Segment) -> bool {
        (1..=self.blocks.len()).contains(&segment.0)
    }

    /// What training asks of the experts of a segment; `None` if it has none.
    pub fn expert_training(&self, segment: Segment) -> Option<ExpertTraining> {
        let block = self.blocks.get(segment.0.checked_sub(1)?)?;
        let Mlp::Experts(mixture) = &block.mlp else { return None };
        let before = |parameter: &Parameter| {
            let param = &parameter.param;
            param.trainable && param.segments.iter().any(|read_by| read_by.0 < segment.0)
        };
        let passes = self.parameters.iter().any(before) || block.trains_before_experts();
        Some(ExpertTraining { trains: mixture.experts.train(), passes, drops: mixture.experts.drops() })
    }

    /// All segments, in order.
    pub fn span(&self) -> Range<usize> {
        0..self.segments()
    }

    /// The segments of `span` on top of `x`, which is `None` where the span begins with the embedding. The result is the
    /// residual stream, `[t, hidden_size]`, or the loss where the span ends with the head: the sum over the batch's label
    /// rows times `options.scale`; the unscaled sum and the number of right guesses are added to `batch.targets`.
    pub fn forward(
        &self,
        t: &Tape<'_>,
        batch: &Rc<Batch>,
        span: Range<usize>,
        x: Option<Var>,
        options: LossOptions,
    ) -> Var {
        let head = self.blocks.len() + 1;
        let x = self.stream(t, batch, span.start..span.end.min(head), x, |_, _| {});
        if span.end <= head { x } else { self.head_loss(t, batch, x, options) }
    }

    /// The residual stream after the segments of `span`, the head not among them; `look` is shown each one's output.
    fn stream(
        &self,
        t: &Tape<'_>,
        batch: &Rc<Batch>,
        span: Range<usize>,
        mut x: Option<Var>,
        mut look: impl FnMut(Segment, &Tensor),
    ) -> Var {
        for segment in span.map(Segment) {
            let of = batch.clone();
            let y = match segment.0.checked_sub(1).map(|layer| self.blocks[layer].clone()) {
                None => {
                    let (embed, activations) = (self.embed.clone(), self.activations);
                    t.segment(segment, None, move |t, _| embed_tokens(t, &embed, &of, activations))
                }
                Some(block) => t.segment(segment, x.take(), move |t, x| {
                    block.forward(t, &x.expect("a block is given its input"), &of)
                }),
            };
            look(segment, &y.value);
            x = Some(y);
        }
        x.expect("a span without segments is given its input")
    }

    /// The last segment: the final norm, the head and the loss.
    fn head_loss(&self, t: &Tape<'_>, batch: &Rc<Batch>, x: Var, options: LossOptions) -> Var {
        let (norm, head, of, eps) = (self.norm.clone(), self.head.clone(), batch.clone(), self.config.rms_norm_eps);
        t.segment(Segment(self.blocks.len() + 1), Some(x), move |t, x| {
            let x = ops::rmsnorm(t, &x.expect("the head is given its input"), &norm, eps);
            let loss = ops::CrossEntropy { scale: options.scale, smoothing: options.smoothing };
            ops::linear_cross_entropy(t, &x, &head, &of.targets, loss)
        })
    }

    /// The loss of the whole model: [`forward`](Self::forward) over all segments.
    pub fn loss(&self, t: &Tape<'_>, batch: &Rc<Batch>, options: LossOptions) -> Var {
        self.forward(t, batch, self.span(), None, options)
    }

    /// The first of the segments of `span`, in the order of the forward pass, whose output holds an infinite value or NaN;
    /// and the residual stream behind it.
    pub fn first_bad_part(
        &self,
        t: &Tape<'_>,
        batch: &Rc<Batch>,
        span: Range<usize>,
        x: Option<Var>,
    ) -> (Option<String>, Var) {
        let mut first = None;
        let x = self.stream(t, batch, span.start..span.end.min(self.blocks.len() + 1), x, |segment, x| {
            if first.is_none() && !ops::all_finite(x) {
                first = Some(segment);
            }
        });
        let name = first.map(|segment| match segment.0.checked_sub(1) {
            None => "model.embed_tokens".to_owned(),
            Some(layer) => format!("model.layers.{layer}"),
        });
        (name, x)
    }

    /// The logits of the whole model: [`predict`](Self::predict) over all segments.
    pub fn logits(&self, t: &Tape<'_>, batch: &Rc<Batch>, rows: &Tensor) -> Tensor {
        self.predict(t, batch, self.span(), None, rows)
    }

    /// The segments of `span` on top of `x`, as [`forward`](Self::forward) has them. The result is the residual stream,
    /// or the logits in f32 of the given rows of the batch, `[rows, vocab_size]`, where the span ends with the head.
    pub fn predict(
        &self,
        t: &Tape<'_>,
        batch: &Rc<Batch>,
        span: Range<usize>,
        x: Option<Var>,
        rows: &Tensor,
    ) -> Tensor {
        let head = self.blocks.len() + 1;
        let x = self.stream(t, batch, span.start..span.end.min(head), x, |_, _| {});
        if span.end > head { self.head_logits(t, x, rows) } else { x.value }
    }

    fn head_logits(&self, t: &Tape<'_>, x: Var, rows: &Tensor) -> Tensor {
        let (norm, head, eps) = (self.norm.clone(), self.head.clone(), self.config.rms_norm_eps);
        let rows = rows.clone();
        let segment = Segment(self.blocks.len() + 1);
        let logits = t.segment(segment, Some(x), move |t, x| {
            let x = ops::rmsnorm(t, &x.expect("the head is given its input"), &norm, eps);
            Var::constant(ops::row_logits(t, &x.value, &head, &rows))
        });
        logits.value
    }
}

/// The first segment: the tokens' rows of the embedding, with NEFTune's noise where the recipe wants it.
fn embed_tokens(t: &Tape<'_>, embed: &Param, batch: &Batch, activations: DType) -> Var {
    let x = ops::embedding(t, &batch.ids, embed, activations);
    match &batch.noise {
        Some(noise) if noise.embedding_alpha > 0.0 => ops::embedding_noise(t, x, noise),
        _ => x,
    }
}

/// Puts the parts of a model together and collects their parameters.
struct Builder<'a> {
    config: &'a Config,
    dtype: DType,
    trainables: Trainables,
    pure: bool,
    collector: Collector,
}

impl<'a> Builder<'a> {
    fn new(config: &'a Config, dtype: DType, trainables: Trainables, pure: bool) -> Self {
        Self { config, dtype, trainables, pure, collector: Collector::default() }
    }

    fn build(mut self) -> Model {
        let config = self.config;
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let head_segment = Segment(config.num_hidden_layers + 1);
        let tied = config.tie_word_embeddings && !config.separate_head && !self.trainables.unties();
        let embed_segments = [Segment(0), head_segment];
        let embed_segments = if tied { &embed_segments[..] } else { &embed_segments[..1] };
        let embed = self.base("model.embed_tokens.weight", [vocab, hidden], embed_segments);
        let blocks = (0..config.num_hidden_layers).map(|i| Rc::new(self.block(i))).collect();
        let norm = self.base("model.norm.weight", [hidden], &[head_segment]);
        let head = if tied {
            embed.clone()
        } else {
            let from = if config.tie_word_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" };
            self.base_from("lm_head.weight", from, [vocab, hidden], &[head_segment])
        };
        let (config, activations, parameters) = (config.clone(), self.dtype, self.collector.list);
        Model { config, activations, parameters, embed, blocks, norm, head }
    }

    fn block(&mut self, layer: usize) -> Block {
        let config = self.config;
        let segment = Segment(layer + 1);
        let path = format!("model.layers.{layer}");
        let (hidden, d) = (config.hidden_size, config.head_dim);
        let (q_out, kv_out) = (config.num_attention_heads * d, config.num_key_value_heads * d);
        let input_norm = self.base(&format!("{path}.input_layernorm.weight"), [hidden], &[segment]);
        let attn = format!("{path}.self_attn");
        let mut linear = |name: String, out, inputs, bias| self.linear(&name, [out, inputs], bias, segment);
        let q = linear(format!("{attn}.q_proj"), q_out, hidden, config.qkv_bias);
        let k = linear(format!("{attn}.k_proj"), kv_out, hidden, config.qkv_bias);
        let v = linear(format!("{attn}.v_proj"), kv_out, hidden, config.qkv_bias);
        let o = linear(format!("{attn}.o_proj"), hidden, q_out, config.o_bias);
        let mlp = match config.experts(layer) {
            None => Mlp::Dense(self.dense(&format!("{path}.mlp"), config.intermediate_size, segment)),
            Some(moe) => Mlp::Experts(self.mixture(&format!("{path}.{}", moe.names.module), moe, segment)),
        };
        let mut head_norm =
            |name: &str| config.qk_norm.then(|| self.base(&format!("{attn}.{name}.weight"), [d], &[segment]));
        let (q_norm, k_norm) = (head_norm("q_norm"), head_norm("k_norm"));
        let post_norm = self.base(&format!("{path}.post_attention_layernorm.weight"), [hidden], &[segment]);
        let shape = ops::Heads {
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: d,
            window: config.sliding_window[layer],
        };
        let eps = config.rms_norm_eps;
        let attention = Attention { q, k, v, o, q_norm, k_norm, eps, shape, layer };
        Block { input_norm, attention, post_norm, mlp, eps }
    }

    fn dense(&mut self, path: &str, inner: usize, segment: Segment) -> Dense {
        let (hidden, bias) = (self.config.hidden_size, self.config.mlp_bias);
        let gate = self.linear(&format!("{path}.gate_proj"), [inner, hidden], bias, segment);
        let up = self.linear(&format!("{path}.up_proj"), [inner, hidden], bias, segment);
        let down = self.linear(&format!("{path}.down_proj"), [hidden, inner], bias, segment);
        Dense { gate, up, down }
    }

    fn mixture(&mut self, path: &str, moe: &Moe, segment: Segment) -> Mixture {
        let (hidden, inner) = (self.config.hidden_size, moe.intermediate_size);
        let router = self.base(&format!("{path}.gate.weight"), [moe.experts, hidden], &[segment]);
        let [gate, up, down] = moe.names.projections.map(|name| format!("{path}.experts.{name}"));
        let gate = self.grouped(&gate, [moe.experts, inner, hidden], segment);
        let up = self.grouped(&up, [moe.experts, inner, hidden], segment);
        let down = self.grouped(&down, [moe.experts, hidden, inner], segment);
        let shared = moe.shared.map(|inner| Shared {
            mlp: self.dense(&format!("{path}.shared_expert"), inner, segment),
            gate: self.linear(&format!("{path}.shared_expert_gate"), [1, hidden], false, segment),
        });
        Mixture { router, route: moe.route(), experts: Rc::new(Experts { gate, up, down }), shared }
    }

    fn base(&mut self, name: &str, shape: impl Into<Shape>, segments: &[Segment]) -> Param {
        self.base_from(name, name, shape, segments)
    }

    fn base_from(&mut self, name: &str, file: &str, shape: impl Into<Shape>, segments: &[Segment]) -> Param {
        let trainable = self.trainables.trains(name);
        let dtype = if trainable && !self.pure { DType::F32 } else { self.dtype };
        let source = Source::File(file.to_owned());
        let (name, shape) = (name.to_owned(), shape.into());
        self.collector.add(New { name, shape, dtype, trainable, segments, source, role: Role::Base })
    }

    /// A linear layer `[out, in]`, with an adapter if the recipe wants one there.
    fn linear(&mut self, name: &str, [out, inputs]: [usize; 2], bias: bool, segment: Segment) -> Linear {
        let weight = self.base(&format!("{name}.weight"), [out, inputs], &[segment]);
        let bias = bias.then(|| self.base(&format!("{name}.bias"), [out], &[segment]));
        let lora = self.adapter(name, &weight, &[], [out, inputs], segment);
        Linear { weight, bias, lora }
    }

    /// The same linear layer of each expert, `[experts, out, in]`.
    fn grouped(&mut self, name: &str, [experts, out, inputs]: [usize; 3], segment: Segment) -> GroupedLinear {
        let weight = self.base(&format!("{name}.weight"), [experts, out, inputs], &[segment]);
        let lora = self.adapter(name, &weight, &[experts], [out, inputs], segment);
        GroupedLinear { weight, lora }
    }

    /// The adapter of the linear layer `name`, if the recipe wants one there; `stacked` stands before the sizes of its
    /// matrices.
    fn adapter(
        &mut self,
        name: &str,
        weight: &Param,
        stacked: &[usize],
        [out, inputs]: [usize; 2],
        segment: Segment,
    ) -> Option<Lora> {
        let plan = self.trainables.lora(name).cloned()?;
        let mut adapter = |part: &str, sizes: &[usize], source, role| {
            let (name, dtype, segments) = (format!("{name}.{part}"), DType::F32, &[segment][..]);
            let shape = [stacked, sizes].concat()[..].into();
            self.collector.add(New { name, shape, dtype, trainable: true, segments, source, role })
        };
        let rank = plan.rank;
        let root = if plan.rslora { (rank as f64).sqrt() } else { rank as f64 };
        let scale = (plan.alpha / root) as f32;
        // PEFT's kaiming_uniform(a = sqrt(5)): uniform within 1 / sqrt(in).
        let bound = 1.0 / (inputs as f32).sqrt();
        let a = adapter("lora_A.weight", &[rank, inputs], Source::Uniform { bound }, Role::LoraA);
        let b = adapter("lora_B.weight", &[out, rank], Source::Zeros, Role::LoraB);
        let norms = Source::RowNorms { weight: weight.id, a: a.id, b: b.id, scale };
        let magnitude = plan.dora.then(|| adapter("lora_magnitude_vector", &[out], norms, Role::Magnitude));
        Some(Lora { a, b, scale, dropout: plan.dropout as f32, magnitude })
    }
}
