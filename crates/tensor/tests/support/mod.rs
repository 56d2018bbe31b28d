//! Parameters with gradients, adapters and noise for tests of ops, on any device.

use ferrotune_tensor::ops::{Lora, Noise};
use ferrotune_tensor::{DType, Device, Host, Kind, Param, ParamInfo, Phase, Segment, Shape, Tensor};
use std::rc::Rc;

/// Parameters of a test, each with a gradient.
pub(crate) struct Weights {
    pub(crate) device: Device,
    pub(crate) values: Vec<(Param, Tensor, Tensor)>,
}

impl Weights {
    pub(crate) fn new(device: &Device) -> Self {
        Self { device: device.clone(), values: Vec::new() }
    }

    pub(crate) fn add(&mut self, shape: impl Into<Shape>, trainable: bool) -> Param {
        self.add_as(shape, DType::F32, trainable)
    }

    pub(crate) fn add_as(&mut self, shape: impl Into<Shape>, dtype: DType, trainable: bool) -> Param {
        let id = self.values.len();
        let (shape, name) = (shape.into(), format!("p{id}"));
        let param = Param::new(ParamInfo { id, name, shape, dtype, trainable, segments: vec![Segment(0)] });
        let value = self.device.empty(shape, dtype, Kind::Weight);
        value.write_f32(&random(shape.numel(), id as u64 + 100));
        self.values.push((param.clone(), value, self.device.zeros(shape, DType::F32, Kind::Grad)));
        param
    }
}

impl Host for Weights {
    fn weight(&self, param: &Param) -> Tensor {
        self.values[param.id].1.clone()
    }
    fn grad(&self, param: &Param) -> Tensor {
        self.values[param.id].2.clone()
    }
    fn trains(&self, _: Segment) -> bool {
        self.values.iter().any(|(p, ..)| p.trainable)
    }
    fn enter(&self, _: Segment, _: Phase) {}
    fn leave(&self, _: Segment, _: Phase) {}
}

/// Values in (-1, 1).
pub(crate) fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(n).collect()
}

pub(crate) fn lora(w: &mut Weights, out: usize, inputs: usize, rank: usize, dropout: f32, dora: bool) -> Lora {
    let (a, b) = (w.add([rank, inputs], true), w.add([out, rank], true));
    Lora { a, b, scale: 0.7, dropout, magnitude: dora.then(|| w.add([out], true)) }
}

pub(crate) fn noise(device: &Device, tokens: usize, embedding_alpha: f32) -> Rc<Noise> {
    let up = |f: &dyn Fn(usize) -> u32| Tensor::from_u32(device, &(0..tokens).map(f).collect::<Vec<_>>(), Kind::Input);
    Rc::new(Noise {
        seed: 3,
        step: 5,
        samples: up(&|i| i as u32 / 3),
        positions: up(&|i| i as u32 % 3),
        lengths: up(&|_| 3),
        embedding_alpha,
    })
}
