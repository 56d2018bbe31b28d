//! Element by element: sums of residual streams and gradients, copies, casts.

use crate::device::On;
use crate::{DType, Kind, Profile, Tape, Tensor, Var};
use crate::{cpu, cuda};

/// `x + y` for two values of one shape and dtype. `y` is taken by value and written over where nobody else holds it.
pub fn add(t: &Tape<'_>, x: &Var, y: Var) -> Var {
    assert_eq!(x.value.shape(), y.value.shape(), "terms of a sum");
    let (x_id, y_id) = (x.id(), y.id());
    let needs = x.needs_grad() || y.needs_grad();
    let sum = if y.value.is_unique() {
        add_assign(&y.value, &x.value);
        y.value
    } else {
        sum_of(&x.value, &y.value)
    };
    t.op(sum, needs, move |g, dy| {
        if let Some(id) = x_id {
            g.put(id, dy.clone());
        }
        if let Some(id) = y_id {
            g.put(id, dy);
        }
    })
}

/// A new tensor `x + y`.
pub(crate) fn sum_of(x: &Tensor, y: &Tensor) -> Tensor {
    let sum = x.empty_like(Kind::ActGrad);
    copy(&sum, x);
    add_assign(&sum, y);
    sum
}

/// `x += y`.
pub(crate) fn add_assign(x: &Tensor, y: &Tensor) {
    assert_eq!(x.numel(), y.numel(), "terms of a sum");
    match x.runs_on() {
        None => {}
        Some(On::Cpu) => cpu::add_assign(x.data_mut(), y.data()),
        Some(On::Cuda(gpu)) => gpu.add_assign(x, y),
    }
}

/// `x += y`.
///
/// # Panics
/// If they differ in size.
pub fn add_into(x: &Tensor, y: &Tensor) {
    add_assign(x, y);
}

/// Copies bytes between tensors of one dtype and size, which may lie on different devices.
///
/// # Panics
/// If they differ in dtype or size.
pub fn copy(to: &Tensor, from: &Tensor) {
    assert_eq!((to.dtype(), to.numel()), (from.dtype(), from.numel()), "copy");
    match (from.runs_on(), to.runs_on()) {
        (Some(On::Cuda(gpu)), Some(On::Cuda(_))) if from.device().is(to.device()) => {
            gpu.copy(to.address(), from.address(), to.bytes());
        }
        // From a device to the host and back: straight from and to the host's tensor.
        (Some(_), Some(On::Cuda(gpu))) => from.with_bytes(|src| gpu.upload(to.address(), src)),
        (Some(_), Some(On::Cpu)) => to.with_bytes_mut(|dst| from.with_bytes(|src| dst.copy_from_slice(src))),
        _ => {}
    }
}

/// Copies values between tensors of any floating dtypes, rounding to nearest even.
///
/// # Panics
/// If they differ in size.
pub fn cast(to: &Tensor, from: &Tensor) {
    assert_eq!(to.numel(), from.numel(), "cast");
    match to.runs_on() {
        None => {}
        Some(On::Cpu) => cpu::cast(to.data_mut(), from.data()),
        Some(On::Cuda(gpu)) => gpu.cast(to, from),
    }
}

/// `sums[c] += sum over rows of x[row, c]`, f32.
pub(crate) fn add_column_sums(sums: &Tensor, x: &Tensor) {
    assert_eq!(sums.numel(), x.shape().last(), "column sums");
    let work = sums.device().empty([column_parts_workspace(x)], DType::F32, Kind::Work);
    match sums.runs_on() {
        None => {}
        Some(On::Cpu) => cpu::add_column_sums(x.data(), sums.f32_mut()),
        Some(On::Cuda(gpu)) => gpu.add_column_sums(sums, x, &work),
    }
}

/// Elements of workspace of a sum over x's rows.
pub(crate) fn column_parts_workspace(x: &Tensor) -> usize {
    match x.device().profile() {
        Profile::Cpu => 0,
        Profile::Cuda => cuda::kernels::column_parts_workspace(x.shape().rows(), x.shape().last()),
    }
}
