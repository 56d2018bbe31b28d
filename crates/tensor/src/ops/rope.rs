//! Rotary positions: each head's halves (x1, x2) become (x1 cos - x2 sin, x2 cos + x1 sin), Su et al. 2021,
//! <https://arxiv.org/abs/2104.09864>, halves as Hugging Face's `rotate_half` pairs them.
//!
//! x `[t, heads * head_dim]`, cos and sin `[t, head_dim / 2]` in f32. The gradient is the rotation by the negative angle
//! (times the tables' own scale, which YaRN sets).

use crate::cpu;
use crate::device::On;
use crate::{DType, Device, Kind, Tape, Tensor, Var};

/// cos and sin of each token's position.
#[derive(Clone)]
pub struct Rotary {
    cos: Tensor,
    sin: Tensor,
}

impl Rotary {
    /// Uploads the tables, `[t, head_dim / 2]` row-major each.
    pub fn new(device: &Device, cos: &[f32], sin: &[f32], head_dim: usize) -> Self {
        let half = head_dim / 2;
        let upload = |table: &[f32]| Tensor::from_f32(device, table, [table.len() / half, half], Kind::Input);
        Self { cos: upload(cos), sin: upload(sin) }
    }

    /// Tables of `t` tokens that nobody filled, for devices that only count.
    pub fn uncomputed(device: &Device, tokens: usize, head_dim: usize) -> Self {
        let table = || device.empty([tokens, head_dim / 2], DType::F32, Kind::Input);
        Self { cos: table(), sin: table() }
    }

    /// # Panics
    /// Unless there is an angle for each of `rows` tokens and pair of a head.
    pub(super) fn check(&self, rows: usize, head_dim: usize) {
        assert_eq!(self.cos.dims(), [rows, head_dim / 2], "one angle a token and pair");
    }

    /// cos and sin.
    pub(super) fn tables(&self) -> [&Tensor; 2] {
        [&self.cos, &self.sin]
    }
}

/// Rotates every head of `x`, which is taken by value: its bytes are reused where nobody else holds them.
pub fn rope(t: &Tape<'_>, x: Var, rotary: &Rotary, head_dim: usize) -> Var {
    rotary.check(x.value.shape().rows(), head_dim);
    let (id, needs) = (x.id(), x.needs_grad());
    let y = owned(x.value);
    rotate(&y, rotary, head_dim, false);
    let rotary = rotary.clone();
    t.op(y, needs, move |g, dy| {
        let dx = owned(dy);
        rotate(&dx, &rotary, head_dim, true);
        if let Some(id) = id {
            g.put(id, dx);
        }
    })
}

/// The tensor itself if nobody else holds its bytes, otherwise a copy.
fn owned(x: Tensor) -> Tensor {
    if x.is_unique() {
        return x;
    }
    let copy = x.empty_like(Kind::Act);
    super::copy(&copy, &x);
    copy
}

fn rotate(x: &Tensor, rotary: &Rotary, head_dim: usize, back: bool) {
    match x.runs_on() {
        None => {}
        Some(On::Cpu) => cpu::rope(x.data_mut(), rotary.cos.f32(), rotary.sin.f32(), head_dim, back),
        Some(On::Cuda(gpu)) => gpu.rope(x, rotary.tables(), head_dim, back),
    }
}
