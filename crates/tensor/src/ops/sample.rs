//! The next token from logits: repetition penalty, temperature, top-k, top-p, in transformers' order. Nothing is recorded.
//!
//! Logits `[1, vocab]` in f32. A GPU picks where the logits lie, and is waited for: one number comes back instead of a vocabulary's.

use crate::cpu;
use crate::device::On;
use crate::{DType, Kind, Profile, Tensor};

/// How a token is picked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the likeliest token.
    pub temperature: f64,
    /// Only so many tokens may come; 0 for no limit.
    pub top_k: usize,
    /// Only the likeliest tokens that sum to this probability may come; 1 for no limit.
    pub top_p: f64,
    /// Divides positive logits of tokens seen before and multiplies negative ones; 1 does nothing (Keskar et al. 2019,
    /// <https://arxiv.org/abs/1909.05858>).
    pub repetition_penalty: f32,
}

impl Sampling {
    /// By how much the generator's state grows with a pick: splitmix64's.
    pub const STRIDE: u64 = 0x9e37_79b9_7f4a_7c15;

    /// Splitmix64's mixing of a state (Steele et al. 2014, <https://doi.org/10.1145/2660193.2660195>).
    pub fn mixed(state: u64) -> u64 {
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// The token after `seen`; `state` is the generator's before this pick. Logits are written over. 0 where nobody executes.
///
/// # Panics
/// If the logits aren't one row of f32.
pub fn sample(logits: &Tensor, seen: &[u32], how: &Sampling, state: u64) -> u32 {
    assert_eq!((logits.shape().rows(), logits.dtype()), (1, DType::F32), "logits of one token");
    let (device, vocab) = (logits.device(), logits.numel());
    if device.profile() == Profile::Cpu {
        return if logits.executes() { cpu::sample(logits.f32_mut(), seen, how, state) } else { 0 };
    }
    let token = device.empty([1], DType::U32, Kind::Work);
    let penalised = (how.repetition_penalty != 1.0).then(|| {
        let marks = device.zeros([vocab], DType::U32, Kind::Work);
        (marks, Tensor::from_u32(device, seen, Kind::Input))
    });
    // A generator's state has 64 bits, the lower ones first.
    let state = Tensor::from_u32(device, &[state as u32, (state >> 32) as u32], Kind::Input);
    if let Some(On::Cuda(gpu)) = logits.runs_on() {
        if let Some((marks, seen)) = &penalised {
            gpu.penalise(logits, seen, how.repetition_penalty, marks);
        }
        gpu.sample(logits, &state, how, &token);
    }
    token.to_u32().first().copied().unwrap_or(0)
}
