//! Linear layer with its adapter inside: `y = x W' + b + s (drop(x) A') B'`, Hu et al. 2021,
//! <https://arxiv.org/abs/2106.09685>; with DoRA the sum is scaled a row at a time (see `dora.rs`).
//!
//! x `[t, in]` in f32 or bf16, W `[out, in]`, A `[r, in]` and B `[out, r]` in f32, y `[t, out]` in x's dtype. The low-rank
//! update is added inside the product's tiles. With u = drop(x) A' and du = s dy B:
//! dB += s dy' u, dA += du' drop(x), dx = dy W + drop(du A), dW += dy' x, db += column sums of dy.

use super::dora;
use super::elementwise::{add_assign, add_column_sums, cast};
use super::matmul::{Term, flipped, matmul, plain};
use super::noise::{Noise, dropped};
use crate::tape::{Grads, Saved};
use crate::{DType, Device, Kind, Param, Tape, Tensor, Var};
use std::rc::Rc;

/// A linear layer.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Param,
    /// `[out]`.
    pub bias: Option<Param>,
    /// Low-rank update.
    pub lora: Option<Lora>,
}

/// A low-rank update of a linear layer.
#[derive(Debug, Clone)]
pub struct Lora {
    /// `[r, in]`, f32.
    pub a: Param,
    /// `[out, r]`, f32.
    pub b: Param,
    /// alpha / r, or alpha / sqrt(r).
    pub scale: f32,
    /// Probability that an element of the adapter's input is dropped.
    pub dropout: f32,
    /// DoRA's trained row norms, `[out]`, f32.
    pub magnitude: Option<Param>,
}

/// Applies `layer` to `x`.
pub fn linear(t: &Tape<'_>, layer: &Linear, x: &Var, noise: Option<&Rc<Noise>>) -> Var {
    match layer.lora.as_ref().and_then(|lora| lora.magnitude.as_ref()) {
        None => product(t, layer, x, noise),
        Some(magnitude) => {
            let bare = Linear { bias: None, ..layer.clone() };
            let z = product(t, &bare, x, noise);
            dora::rescale(t, z, layer, magnitude)
        }
    }
}

fn product(t: &Tape<'_>, layer: &Linear, x: &Var, noise: Option<&Rc<Noise>>) -> Var {
    let device = t.device();
    let weight = operand(device, &t.weight(&layer.weight), x.value.dtype());
    let tokens = x.value.shape().rows();
    let y = device.empty([tokens, weight.dims()[0]], x.value.dtype(), Kind::Act);
    let bias = layer.bias.as_ref().map(|b| t.weight(b));
    let noise = noise.cloned();
    let main = Term::new(1.0, plain(&x.value), flipped(&weight));
    let u = layer.lora.as_ref().map(|lora| {
        let (a, b) = (t.weight(&lora.a), t.weight(&lora.b));
        let u = device.empty([tokens, a.dims()[0]], DType::F32, Kind::Act);
        let input = dropped(&x.value, lora, noise.as_deref());
        matmul(&u, 0.0, Term::new(1.0, plain(&input), flipped(&a)), None, None);
        matmul(&y, 0.0, main, Some(Term::new(lora.scale, plain(&u), flipped(&b))), bias.as_ref());
        u
    });
    if u.is_none() {
        matmul(&y, 0.0, main, None, bias.as_ref());
    }
    let trains = [
        Some(&layer.weight),
        layer.bias.as_ref(),
        layer.lora.as_ref().map(|l| &l.a),
        layer.lora.as_ref().map(|l| &l.b),
    ];
    let trains = trains.into_iter().flatten().any(|p| t.trains(p));
    let reads_x = layer.lora.is_some() || layer.weight.trainable;
    let back =
        Back { layer: layer.clone(), x: reads_x.then(|| x.save()), x_id: x.id(), x_dtype: x.value.dtype(), u, noise };
    t.op(y, x.needs_grad() || trains, move |g, dy| back.run(g, &dy))
}

/// The weight as the product wants it: with narrower activations, f32 weights under training are rounded once more.
pub(super) fn operand(device: &Device, weight: &Tensor, activations: DType) -> Tensor {
    if weight.dtype() == DType::F32 && activations != DType::F32 {
        let rounded = device.empty(weight.shape(), activations, Kind::Work);
        cast(&rounded, weight);
        return rounded;
    }
    weight.clone()
}

struct Back {
    layer: Linear,
    x: Option<Saved>,
    x_id: Option<u32>,
    x_dtype: DType,
    u: Option<Tensor>,
    noise: Option<Rc<Noise>>,
}

impl Back {
    fn run(self, g: &mut Grads<'_>, dy: &Tensor) {
        let x = self.x.as_ref().map(|x| x.get(g));
        if let (Some(x), true) = (&x, self.layer.weight.trainable) {
            let dw = g.grad(&self.layer.weight);
            matmul(&dw, 1.0, Term::new(1.0, flipped(dy), plain(x)), None, None);
        }
        if let Some(bias) = self.layer.bias.as_ref().filter(|b| b.trainable) {
            add_column_sums(&g.grad(bias), dy);
        }
        let du = self.layer.lora.as_ref().zip(self.u.as_ref()).zip(x.as_ref()).map(|((lora, u), x)| {
            let b = g.weight(&lora.b);
            let du = g.device().empty(u.shape(), DType::F32, Kind::Work);
            matmul(&du, 0.0, Term::new(lora.scale, plain(dy), plain(&b)), None, None);
            if lora.b.trainable {
                matmul(&g.grad(&lora.b), 1.0, Term::new(lora.scale, flipped(dy), plain(u)), None, None);
            }
            if lora.a.trainable {
                let input = dropped(x, lora, self.noise.as_deref());
                matmul(&g.grad(&lora.a), 1.0, Term::new(1.0, flipped(&du), plain(&input)), None, None);
            }
            (lora, du)
        });
        if let Some(id) = self.x_id {
            self.input_gradient(g, dy, id, du);
        }
    }

    fn input_gradient(&self, g: &mut Grads<'_>, dy: &Tensor, id: u32, du: Option<(&Lora, Tensor)>) {
        let weight = operand(g.device(), &g.weight(&self.layer.weight), dy.dtype());
        let shape = [dy.shape().rows(), weight.dims()[1]];
        let (dx, beta) = g.open(id, shape.into(), self.x_dtype);
        let main = Term::new(1.0, plain(dy), plain(&weight));
        match du {
            None => matmul(&dx, beta, main, None, None),
            Some((lora, du)) => {
                let a = g.weight(&lora.a);
                let low = Term::new(1.0, plain(&du), plain(&a));
                if lora.dropout > 0.0 && self.noise.is_some() {
                    matmul(&dx, beta, main, None, None);
                    let through = g.device().empty(shape, self.x_dtype, Kind::Work);
                    matmul(&through, 0.0, low, None, None);
                    add_assign(&dx, &dropped(&through, lora, self.noise.as_deref()));
                } else {
                    matmul(&dx, beta, main, Some(low), None);
                }
            }
        }
        g.close(id, dx);
    }
}

/// `W += scale B A`, in f32, rounded once to W's dtype. W `[out, in]`; done in bands of rows so that the f32 copy stays small.
pub fn merge_lora(weight: &Tensor, a: &Tensor, b: &Tensor, scale: f32) {
    let (rows, cols) = (weight.dims()[0], weight.dims()[1]);
    const BAND: usize = 256;
    let device = weight.device();
    for start in (0..rows).step_by(BAND) {
        let count = BAND.min(rows - start);
        let band = weight.rows(start, count);
        let sum = device.empty([count, cols], DType::F32, Kind::Work);
        cast(&sum, &band);
        matmul(&sum, 1.0, Term::new(scale, plain(&b.rows(start, count)), plain(a)), None, None);
        cast(&band, &sum);
    }
}

/// `W += scale (B A)'`, in f32, rounded once: the update of an embedding W `[vocab, width]` by A `[r, vocab]`, B `[width, r]`.
pub fn merge_embedding_lora(weight: &Tensor, a: &Tensor, b: &Tensor, scale: f32) {
    let sum = weight.device().empty(weight.shape(), DType::F32, Kind::Work);
    cast(&sum, weight);
    matmul(&sum, 1.0, Term::new(scale, flipped(a), flipped(b)), None, None);
    cast(weight, &sum);
}
