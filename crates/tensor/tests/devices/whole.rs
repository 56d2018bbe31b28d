//! Steps of a small decoder's block with its loss and update, again and again on one GPU, with a heap that gives freed memory out
//! at once: what comes out is the same in any order of work, and no wait or event can be left away unnoticed.

use super::gpus::{open, set};
use super::support::{Weights, lora};
use ferrotune_tensor::cuda::Options;
use ferrotune_tensor::ops::{self, Heads, Linear, Spans, Targets};
use ferrotune_tensor::{DType, Device, Kind, Segment, Tape, Tensor};
use std::rc::Rc;

const WIDTH: usize = 16;
const VOCAB: usize = 40;

struct Small {
    weights: Weights,
    embed: ferrotune_tensor::Param,
    norm: ferrotune_tensor::Param,
    projections: [Linear; 4],
    moments: Vec<[Tensor; 2]>,
}

impl Small {
    fn new(device: &Device) -> Self {
        let mut weights = Weights::new(device);
        let (embed, norm) = (weights.add([VOCAB, WIDTH], false), weights.add([WIDTH], false));
        let projections = [(); 4].map(|()| Linear {
            weight: weights.add([WIDTH, WIDTH], false),
            bias: None,
            lora: Some(lora(&mut weights, WIDTH, WIDTH, 4, 0.0, false)),
        });
        let zeros = |t: &Tensor| device.zeros(t.shape(), DType::F32, Kind::Optim);
        let moments = weights.values.iter().map(|(_, value, _)| [zeros(value), zeros(value)]).collect();
        Self { weights, embed, norm, projections, moments }
    }

    /// One step; gives the loss.
    fn step(&self, number: u64) -> f32 {
        let (device, w) = (&self.weights.device, &self.weights);
        w.values.iter().for_each(|(_, _, gradient)| gradient.zero());
        let tokens = 5 + (number as usize * 4) % 7;
        let ids: Vec<u32> = (0..tokens).map(|i| ((i as u64 * 7 + number * 3) % VOCAB as u64) as u32).collect();
        let labels: Vec<i32> = ids.iter().map(|id| (*id as i32 * 5 + 1) % VOCAB as i32).collect();
        let rows: Vec<u32> = (0..tokens as u32).collect();
        let loss = {
            let tape = Tape::new(device, w, &|_: Segment| false);
            let x = ops::embedding(&tape, &Tensor::from_u32(device, &ids, Kind::Input), &self.embed, DType::F32);
            let h = ops::rmsnorm(&tape, &x, &self.norm, 1e-5);
            let of = |i: usize, x| ops::linear(&tape, &self.projections[i], x, None);
            let spans = Rc::new(Spans::causal(vec![0, 3, tokens as u32]));
            let heads = Heads { heads: 2, kv_heads: 2, head_dim: 8, window: None };
            let a = ops::attention(&tape, &of(0, &h), &of(1, &h), &of(2, &h), &spans, heads);
            let y = ops::add(&tape, &x, of(3, &a));
            let targets = Targets::new(device, &rows, &labels);
            let options = ops::CrossEntropy { scale: 1.0 / tokens as f32, smoothing: 0.0 };
            let loss = ops::linear_cross_entropy(&tape, &y, &self.embed, &targets, options);
            let value = loss.value.clone();
            tape.backward(&loss, Tensor::from_f32(device, &[1.0], [1], Kind::ActGrad), None);
            value
        };
        let trained = || w.values.iter().zip(&self.moments).filter(|((param, ..), _)| param.trainable);
        let gradients: Vec<Tensor> = trained().map(|((_, _, gradient), _)| gradient.clone()).collect();
        let squares = device.zeros([1], DType::F64, Kind::Work);
        ops::add_squares(&squares, &gradients);
        let factor = ops::clip_factor(&squares, &loss, 1.0, 1.0);
        let step = ops::AdamW {
            rate: 0.01,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            step: number,
            grad_scale: 1.0,
        };
        for ((_, value, gradient), [m, v]) in trained() {
            ops::adamw(value, None, (gradient, Some(&factor)), (m, v), &step);
        }
        loss.item()
    }
}

/// Losses of a few steps, and the weights after them; `None` if the device failed.
fn run(device: &Device, steps: u64) -> Option<(Vec<f32>, Vec<f32>)> {
    let small = Small::new(device);
    let losses = (1..=steps).map(|number| small.step(number)).collect();
    let weights = small.weights.values.iter().flat_map(|(_, value, _)| value.to_f32()).collect();
    device.check().ok().map(|()| (losses, weights))
}

fn gpu(number: usize, settings: &str) -> Device {
    set(number, settings);
    open(&Options { device: number, ..Options::default() })
}

#[test]
fn steps_are_the_cpus() {
    let want = run(&Device::cpu(), 6).unwrap();
    let got = run(&gpu(50, "seed=1"), 6).unwrap();
    for seed in 2..6 {
        assert!(run(&gpu(50, &format!("seed={seed}")), 6).unwrap() == got, "seed {seed}");
    }
    for (got, want) in got.0.iter().zip(&want.0) {
        assert!((got - want).abs() < 2e-5 * want.abs(), "{got} {want}");
    }
    let largest = want.1.iter().fold(0f32, |most, x| most.max(x.abs()));
    let gap = got.1.iter().zip(&want.1).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
    // AdamW's first steps are as large as their rate, whatever the gradient: a sign may differ where it is near zero.
    assert!(gap < 2e-3 * largest, "{gap} of {largest}");
}
