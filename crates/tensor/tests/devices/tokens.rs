//! What answers a prompt: attention of a few queries over a long cache, and the next token from logits.

use super::gpus::{pooled, strict};
use super::nets::{BF16, F32, near};
use super::support::{Weights, random};
use ferrotune_tensor::ops::{self, Continued, Heads, Sampling, Spans};
use ferrotune_tensor::{DType, Device, Kind, Tape, Tensor, Var};
use std::rc::Rc;

/// The output of `new` queries at the end of `total` keys.
fn attended(device: &Device, of: DType, [new, total]: [usize; 2], heads: Heads) -> Vec<Vec<f32>> {
    let w = Weights::new(device);
    let tape = Tape::forward_only(device, &w);
    let var = |rows: usize, count: usize, seed| {
        let x = device.empty([rows, count * heads.head_dim], of, Kind::Act);
        x.write_f32(&random(x.numel(), seed));
        Var::constant(x)
    };
    let (q, k, v) = (var(new, heads.heads, 1), var(total, heads.kv_heads, 2), var(total, heads.kv_heads, 3));
    let place = Continued { first: 0, total: total as u32, new: new as u32 };
    let spans = Rc::new(Spans::continuing(&[place], total as u32));
    vec![ops::attention(&tape, &q, &k, &v, &spans, heads).value.to_f32()]
}

/// Keys within a stretch, just beyond it, several stretches; with a window, which leaves whole stretches out.
#[test]
fn queries_over_a_cache() {
    let heads = |head_dim, window| Heads { heads: 4, kv_heads: 2, head_dim, window };
    for (of, slack) in [(DType::F32, F32), (DType::Bf16, BF16)] {
        for (new, total, shape) in [
            (1, 1, heads(16, None)),
            (1, 256, heads(64, None)),
            (1, 257, heads(64, None)),
            (3, 900, heads(16, None)),
            (8, 700, heads(128, Some(300))),
            (9, 400, heads(64, None)),
        ] {
            let want = attended(&Device::cpu(), of, [new, total], shape);
            for gpu in [strict("seed=3"), pooled("seed=4")] {
                near(&attended(&gpu, of, [new, total], shape), &want, slack);
                assert_eq!(gpu.check(), Ok(()));
            }
        }
    }
}

/// Tokens of a vocabulary, one after the other, each penalised from then on.
fn answer(device: &Device, how: Sampling) -> Vec<u32> {
    const VOCAB: usize = 1500;
    let (mut seen, mut state) = (vec![7, 7, 3000], 42u64);
    for round in 0..12 {
        let values: Vec<f32> = random(VOCAB, round + 1).iter().map(|x| x * 4.0).collect();
        let logits = Tensor::from_f32(device, &values, [1, VOCAB], Kind::Act);
        seen.push(ops::sample(&logits, &seen, &how, state));
        state = state.wrapping_add(Sampling::STRIDE);
    }
    seen
}

#[test]
fn tokens_are_the_cpus() {
    let greedy = Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, repetition_penalty: 1.0 };
    for how in [
        greedy,
        Sampling { repetition_penalty: 1.7, ..greedy },
        Sampling { temperature: 0.9, ..greedy },
        Sampling { temperature: 0.7, top_k: 20, top_p: 0.8, repetition_penalty: 1.2 },
    ] {
        let gpu = strict("seed=2");
        assert_eq!(answer(&gpu, how), answer(&Device::cpu(), how), "{how:?}");
        assert_eq!(gpu.check(), Ok(()));
    }
}
