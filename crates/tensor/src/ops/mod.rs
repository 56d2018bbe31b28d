//! The ops: few and fused. Each file is one op: contract, shape rule, gradient. An op asserts shapes, allocates all it
//! will need (workspace included), counts its work, runs its kernel only where the device executes, and records one
//! closure. Kernels lie in [`crate::cpu`] under the same names.

mod attention;
mod cross_entropy;
mod dora;
pub(crate) mod elementwise;
mod embedding;
mod experts;
mod gated;
mod linear;
mod matmul;
mod noise;
mod norm_rope;
mod optimizer;
mod rmsnorm;
mod rope;
mod rounds;
mod route;
mod sample;
mod spread;
mod swiglu;

pub(crate) use attention::SpanTables;
pub use attention::{Continued, Heads, Spans, attention};
pub use cross_entropy::{CrossEntropy, Targets, linear_cross_entropy, row_logits};
pub use dora::{merge_dora, row_norms};
pub use elementwise::{add, add_into, cast, copy};
pub use embedding::embedding;
pub use experts::{GroupedLinear, combine, dispatch, grouped_linear};
pub use gated::add_gated;
pub use linear::{Linear, Lora, linear, merge_embedding_lora, merge_lora};
pub use noise::{Noise, embedding_noise, fill_uniform};
pub use norm_rope::norm_rope;
pub use optimizer::{AdamW, adamw, add_all, add_squares, all_finite, clip_factor, sum_of_squares};
pub use rmsnorm::rmsnorm;
pub use rope::{Rotary, rope};
pub use rounds::expert_share;
pub use route::{Balance, Routes, route};
pub use sample::{Sampling, sample};
pub use spread::{ExpertRanks, Experts, spread};
pub use swiglu::swiglu;

pub use crate::cpu::Route;
