//! What the kernels' tests share: values, operands of either type, comparison.

use ferrotune_tensor::cpu::{Data, DataMut};
use half::bf16;

/// Deterministic values within 2, exact in bf16.
pub(crate) fn values(n: usize, seed: u32) -> Vec<f32> {
    let mix = |i: u32| {
        (i ^ seed.wrapping_mul(0x9e37_79b9)).wrapping_mul(2_654_435_761).rotate_left(13).wrapping_mul(0x85eb_ca6b)
    };
    (0..n as u32).map(|i| f32::from((mix(i) >> 24) as u8 as i8) / 64.0).collect()
}

/// A buffer of either type.
#[derive(Clone)]
pub(crate) struct Owned {
    f: Vec<f32>,
    h: Vec<bf16>,
    half: bool,
}

impl Owned {
    pub(crate) fn new(n: usize, seed: u32, half: bool) -> Self {
        Self::from(&values(n, seed), half)
    }
    pub(crate) fn zeros(n: usize, half: bool) -> Self {
        Self::from(&vec![0.0; n], half)
    }
    pub(crate) fn from(values: &[f32], half: bool) -> Self {
        let h = values.iter().map(|&x| bf16::from_f32(x)).collect();
        Self { f: values.to_vec(), h, half }
    }
    pub(crate) fn data(&self) -> Data<'_> {
        if self.half { Data::Bf16(&self.h) } else { Data::F32(&self.f) }
    }
    pub(crate) fn data_mut(&mut self) -> DataMut<'_> {
        if self.half { DataMut::Bf16(&mut self.h) } else { DataMut::F32(&mut self.f) }
    }
    pub(crate) fn at(&self, i: usize) -> f64 {
        if self.half { f64::from(self.h[i].to_f32()) } else { f64::from(self.f[i]) }
    }
    pub(crate) fn to_f64(&self) -> Vec<f64> {
        (0..self.f.len()).map(|i| self.at(i)).collect()
    }
}

/// Asserts that all elements are within `relative` of the largest expected one (but at least `relative` of 1e-3).
pub(crate) fn assert_close(what: &str, got: &[f64], want: &[f64], relative: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    let size = want.iter().fold(1e-3, |m: f64, x| m.max(x.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= relative * size, "{what} at {i}: {g}, expected {w}, largest {size}");
    }
}

/// The gradient of `f` at `x` by central differences.
pub(crate) fn differences(x: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let step = 1e-5;
    (0..x.len())
        .map(|i| {
            let mut moved = x.to_vec();
            moved[i] = x[i] + step;
            let up = f(&moved);
            moved[i] = x[i] - step;
            (up - f(&moved)) / (2.0 * step)
        })
        .collect()
}
