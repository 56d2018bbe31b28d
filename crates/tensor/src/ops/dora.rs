//! DoRA: `y = m / ||W + s B A|| * z + b`, z the low-rank layer's output without bias, the norm taken a row of the merged
//! weight and held constant in the backward pass (Liu et al. 2024, <https://arxiv.org/abs/2402.09353>, section 4.3).
//!
//! z `[t, out]`, m and the norm `[out]` in f32. dz = dy c with c = m / norm; dm = sum over rows of dy z / norm.

use super::elementwise::column_parts_workspace;
use super::elementwise::{add_column_sums, cast};
use super::linear::Linear;
use super::matmul::{Term, matmul, plain};
use crate::cpu;
use crate::device::On;
use crate::{DType, Kind, Param, Tape, Tensor, Var};

/// Rows of the merged weight that are in f32 at a time.
const BAND: usize = 64;

/// The norm of each row of `W + scale B A`, `[out]` in f32.
pub fn row_norms(weight: &Tensor, a: &Tensor, b: &Tensor, scale: f32) -> Tensor {
    let (out, inputs) = (weight.dims()[0], weight.dims()[1]);
    let device = weight.device();
    let norms = device.empty([out], DType::F32, Kind::Act);
    for start in (0..out).step_by(BAND) {
        let rows = BAND.min(out - start);
        let merged = device.empty([rows, inputs], DType::F32, Kind::Work);
        cast(&merged, &weight.rows(start, rows));
        matmul(&merged, 1.0, Term::new(scale, plain(&b.rows(start, rows)), plain(a)), None, None);
        match merged.runs_on() {
            None => {}
            Some(On::Cpu) => cpu::row_norms(merged.f32(), &mut norms.f32_mut()[start..start + rows]),
            Some(On::Cuda(gpu)) => gpu.row_norms(&merged, &norms.rows(start, rows)),
        }
    }
    norms
}

/// Gives `z` its trained magnitude and the layer's bias.
pub(crate) fn rescale(t: &Tape<'_>, z: Var, layer: &Linear, magnitude: &Param) -> Var {
    let Some(lora) = &layer.lora else { return z };
    let norms = row_norms(&t.weight(&layer.weight), &t.weight(&lora.a), &t.weight(&lora.b), lora.scale);
    let factors = t.device().empty(norms.shape(), DType::F32, Kind::Act);
    let bias = layer.bias.as_ref().map(|b| t.weight(b));
    let y = z.value.empty_like(Kind::Act);
    match y.runs_on() {
        None => {}
        Some(On::Cpu) => {
            let m = t.weight(magnitude);
            factors.f32_mut().iter_mut().zip(m.f32().iter().zip(norms.f32())).for_each(|(c, (m, n))| *c = m / n);
            cpu::scale_columns(z.value.data(), factors.f32(), bias.as_ref().map(Tensor::data), y.data_mut());
        }
        Some(On::Cuda(gpu)) => {
            gpu.quotients(&factors, &t.weight(magnitude), &norms);
            gpu.scale_columns(&z.value, &factors, bias.as_ref(), &y);
        }
    }
    let (z_id, z_value, bias, magnitude) = (z.id(), z.value.clone(), layer.bias.clone(), magnitude.clone());
    t.op(y, z.needs_grad() || t.trains(&magnitude), move |g, dy| {
        if let Some(bias) = bias.filter(|b| b.trainable) {
            add_column_sums(&g.grad(&bias), &dy);
        }
        let dz = dy.empty_like(Kind::ActGrad);
        let dm = g.grad(&magnitude);
        let work = g.device().empty([column_parts_workspace(&dy)], DType::F32, Kind::Work);
        match dz.runs_on() {
            None => {}
            Some(On::Cpu) => {
                cpu::add_column_dots(dy.data(), z_value.data(), norms.f32(), dm.f32_mut());
                cpu::scale_columns(dy.data(), factors.f32(), None, dz.data_mut());
            }
            Some(On::Cuda(gpu)) => {
                gpu.add_column_dots([&dy, &z_value], &norms, &dm, &work);
                gpu.scale_columns(&dy, &factors, None, &dz);
            }
        }
        if let Some(id) = z_id {
            g.put(id, dz);
        }
    })
}

/// `W = m / ||W + scale B A|| * (W + scale B A)` a row, in f32, rounded once to W's dtype.
pub fn merge_dora(weight: &Tensor, a: &Tensor, b: &Tensor, scale: f32, magnitude: &Tensor) {
    let (out, inputs) = (weight.dims()[0], weight.dims()[1]);
    let device = weight.device();
    for start in (0..out).step_by(BAND) {
        let rows = BAND.min(out - start);
        let band = weight.rows(start, rows);
        let merged = device.empty([rows, inputs], DType::F32, Kind::Work);
        let norms = device.empty([rows], DType::F32, Kind::Work);
        cast(&merged, &band);
        matmul(&merged, 1.0, Term::new(scale, plain(&b.rows(start, rows)), plain(a)), None, None);
        match merged.runs_on() {
            None => {}
            Some(On::Cpu) => {
                cpu::row_norms(merged.f32(), norms.f32_mut());
                let factors = norms.f32().iter().zip(&magnitude.f32()[start..]);
                for (row, (norm, m)) in merged.f32_mut().chunks_exact_mut(inputs).zip(factors) {
                    row.iter_mut().for_each(|v| *v *= m / norm);
                }
            }
            Some(On::Cuda(gpu)) => {
                gpu.row_norms(&merged, &norms);
                gpu.quotients(&norms, &magnitude.view(4 * start, [rows], DType::F32), &norms);
                gpu.scale_rows(&merged, &norms);
            }
        }
        cast(&band, &merged);
    }
}
